/* snapshot.c - entries of the snapshot table, from bytes and back: see snapshot.h. */
#include "format/snapshot.h"
#include "base/bytes.h"
#include "base/checked.h"

struct snapshot_fixed snapshot_fixed_decode(const uint8_t bytes[SNAPSHOT_FIXED_BYTES])
{
    return (struct snapshot_fixed){
        .l1_off = load_be64(bytes),
        .l1_entries = load_be32(bytes + 8),
        .id_bytes = load_be16(bytes + 12),
        .name_bytes = load_be16(bytes + 14),
        .date_sec = load_be32(bytes + 16),
        .date_nsec = load_be32(bytes + 20),
        .vm_clock_ns = load_be64(bytes + 24),
        .vm_state_bytes = load_be32(bytes + 32),
        .extra_bytes = load_be32(bytes + 36),
    };
}

uint64_t snapshot_entry_bytes(const struct snapshot_fixed *f)
{
    /* At most 2^32 + 2 * 2^16 + 40: cannot wrap. */
    return round_up((uint64_t)SNAPSHOT_FIXED_BYTES + f->extra_bytes + f->id_bytes + f->name_bytes,
                    8);
}

/* A copy with a terminator behind it. */
static void *copy_bytes(const uint8_t *bytes, size_t len)
{
    uint8_t *copy = malloc(len + 1);
    if (copy) {
        memcpy(copy, bytes, len);
        copy[len] = 0;
    }
    return copy;
}

static void decode_extra(const uint8_t *extra, const struct snapshot_defaults *defaults,
                         struct snapshot *out)
{
    uint32_t len = out->fixed.extra_bytes;
    out->vm_state_bytes = len >= 8 ? load_be64(extra) : out->fixed.vm_state_bytes;
    out->disk_bytes = len >= 16 ? load_be64(extra + 8) : defaults->disk_bytes;
    out->icount = len >= 24 ? load_be64(extra + 16) : UINT64_MAX;
}

int snapshot_decode(const uint8_t *bytes, size_t len, const struct snapshot_defaults *defaults,
                    struct snapshot *out, size_t *used, struct qk_error *err)
{
    *out = (struct snapshot){0};
    if (len < SNAPSHOT_FIXED_BYTES)
        return qk_fail(err, -EINVAL, "the entry ends early");
    out->fixed = snapshot_fixed_decode(bytes);
    const struct snapshot_fixed *f = &out->fixed;
    const uint8_t *extra = bytes + SNAPSHOT_FIXED_BYTES;
    uint64_t rest = (uint64_t)f->extra_bytes + f->id_bytes + f->name_bytes;
    if (f->extra_bytes > SNAPSHOT_EXTRA_BYTES_MAX)
        return qk_fail(err, -EINVAL, "the entry has too much extra data (%u bytes)",
                       f->extra_bytes);
    if (rest > len - SNAPSHOT_FIXED_BYTES)
        return qk_fail(err, -EINVAL, "the entry ends early");
    decode_extra(extra, defaults, out);
    out->extra = copy_bytes(extra, f->extra_bytes);
    out->id = copy_bytes(extra + f->extra_bytes, f->id_bytes);
    out->name = copy_bytes(extra + f->extra_bytes + f->id_bytes, f->name_bytes);
    if (!out->extra || !out->id || !out->name) {
        snapshot_free(out);
        return qk_fail_nomem(err);
    }
    /* The last one's padding may be missing. */
    *used = (size_t)min_u64(snapshot_entry_bytes(f), len);
    return 0;
}

void snapshot_free(struct snapshot *s)
{
    free(s->extra);
    free(s->id);
    free(s->name);
    *s = (struct snapshot){0};
}

void snapshots_free_all(struct snapshot_vec *v)
{
    for (size_t i = 0; i < v->len; i++)
        snapshot_free(&v->ptr[i]);
    snapshot_vec_free(v);
}

/* The fixed part as it will be written. */
static struct snapshot_fixed fixed_of(const struct snapshot *s, uint32_t version)
{
    struct snapshot_fixed f = s->fixed;
    if (version >= 3 && f.extra_bytes < SNAPSHOT_V3_EXTRA_BYTES)
        f.extra_bytes = SNAPSHOT_EXTRA_KNOWN_BYTES;
    return f;
}

uint64_t snapshot_bytes(const struct snapshot *s, uint32_t version)
{
    struct snapshot_fixed f = fixed_of(s, version);
    return snapshot_entry_bytes(&f);
}

static void encode_fixed(const struct snapshot_fixed *f, uint8_t *out)
{
    store_be64(out, f->l1_off);
    store_be32(out + 8, f->l1_entries);
    store_be16(out + 12, (uint16_t)f->id_bytes);
    store_be16(out + 14, (uint16_t)f->name_bytes);
    store_be32(out + 16, f->date_sec);
    store_be32(out + 20, f->date_nsec);
    store_be64(out + 24, f->vm_clock_ns);
    store_be32(out + 32, f->vm_state_bytes);
    store_be32(out + 36, f->extra_bytes);
}

/* What was there, and behind it what has to be. */
static void encode_extra(const struct snapshot *s, uint32_t len, uint8_t *out)
{
    uint8_t known[SNAPSHOT_EXTRA_KNOWN_BYTES];
    store_be64(known, s->vm_state_bytes);
    store_be64(known + 8, s->disk_bytes);
    store_be64(known + 16, s->icount);
    memcpy(out, known, min_u64(len, sizeof(known)));
    if (s->extra)
        memcpy(out, s->extra, min_u64(len, s->fixed.extra_bytes));
}

void snapshot_encode(const struct snapshot *s, uint32_t version, uint8_t *out)
{
    struct snapshot_fixed f = fixed_of(s, version);
    memset(out, 0, (size_t)snapshot_entry_bytes(&f));
    encode_fixed(&f, out);
    out += SNAPSHOT_FIXED_BYTES;
    encode_extra(s, f.extra_bytes, out);
    memcpy(out + f.extra_bytes, s->id, f.id_bytes);
    memcpy(out + f.extra_bytes + f.id_bytes, s->name, f.name_bytes);
}
