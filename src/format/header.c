/*
 * header.c - the fixed header fields: one table says where each lies, and decoding, encoding,
 * judging and error texts are driven by it. Relies on nothing but bytes in memory; promises that
 * what header_validate accepts can be used without further checks of the header itself (INV-4).
 */
#include "format/header.h"

#include "base/bytes.h"
#include "base/checked.h"

#include <inttypes.h>
#include <stdio.h>

#define OFF_MAGIC                0
#define OFF_VERSION              4
#define SNAPSHOT_ENTRY_MIN_BYTES 40

/* member, name in the specification, offset, bytes */
#define FIELDS(X)                                                                                  \
    X(version, "version", 4, 4)                                                                    \
    X(backing_name_off, "backing_file_offset", 8, 8)                                               \
    X(backing_name_len, "backing_file_size", 16, 4)                                                \
    X(cluster_bits, "cluster_bits", 20, 4)                                                         \
    X(size_bytes, "size", 24, 8)                                                                   \
    X(crypt_method, "crypt_method", 32, 4)                                                         \
    X(l1_entries, "l1_size", 36, 4)                                                                \
    X(l1_off, "l1_table_offset", 40, 8)                                                            \
    X(reftable_off, "refcount_table_offset", 48, 8)                                                \
    X(reftable_clusters, "refcount_table_clusters", 56, 4)                                         \
    X(snapshot_count, "nb_snapshots", 60, 4)                                                       \
    X(snapshots_off, "snapshots_offset", 64, 8)                                                    \
    X(incompatible, "incompatible_features", 72, 8)                                                \
    X(compatible, "compatible_features", 80, 8)                                                    \
    X(autoclear, "autoclear_features", 88, 8)                                                      \
    X(refcount_order, "refcount_order", 96, 4)                                                     \
    X(header_bytes, "header_length", 100, 4)                                                       \
    X(compression_type, "compression_type", 104, 1)

#define FIELD_INDEX(member_, spec_, off_, bytes_) FIELD_##member_,
enum field_index { FIELDS(FIELD_INDEX) FIELD_COUNT };

#define FIELD_ENTRY(member_, spec_, off_, bytes_) {#member_, spec_, off_, bytes_},
const struct header_field header_fields[] = {FIELDS(FIELD_ENTRY)};
const size_t header_field_count = FIELD_COUNT;

#define FIELD_MEMBER(member_, spec_, off_, bytes_)                                                 \
    {offsetof(struct header, member_), sizeof(((struct header *)0)->member_)},
static const struct {
    size_t off, bytes;
} members[] = {FIELDS(FIELD_MEMBER)};

static uint64_t member_get(const struct header *h, enum field_index f)
{
    const uint8_t *p = (const uint8_t *)h + members[f].off;
    if (members[f].bytes == 8) {
        uint64_t v64;
        memcpy(&v64, p, sizeof(v64));
        return v64;
    }
    uint32_t v32;
    memcpy(&v32, p, sizeof(v32));
    return v32;
}

static void member_set(struct header *h, enum field_index f, uint64_t value)
{
    uint8_t *p = (uint8_t *)h + members[f].off;
    uint32_t v32 = (uint32_t)value;
    if (members[f].bytes == 8)
        memcpy(p, &value, sizeof(value));
    else
        memcpy(p, &v32, sizeof(v32));
}

/* ---- bytes <-> struct ---- */

static uint64_t field_load(const struct header_field *f, const uint8_t *bytes)
{
    const uint8_t *p = bytes + f->off;
    return f->bytes == 8 ? load_be64(p) : f->bytes == 4 ? load_be32(p) : *p;
}

static void field_store(const struct header_field *f, uint8_t *out, uint64_t value)
{
    uint8_t *p = out + f->off;
    if (f->bytes == 8)
        store_be64(p, value);
    else if (f->bytes == 4)
        store_be32(p, (uint32_t)value);
    else
        *p = (uint8_t)value;
}

/* Is the field part of a header of that many bytes? */
static bool field_present(enum field_index f, uint32_t header_bytes)
{
    return header_fields[f].off + header_fields[f].bytes <= header_bytes;
}

static int too_short(size_t len, size_t need, struct qk_error *err)
{
    return qk_fail_at(err, -EINVAL, WHERE(NULL, "header", 0),
                      "Could not read qcow2 header: the file has %zu bytes, expected at least %zu",
                      len, need);
}

static int decode_version(const uint8_t *p, size_t len, uint32_t *version, struct qk_error *err)
{
    if (len < 8 || load_be32(p + OFF_MAGIC) != QCOW2_MAGIC)
        return qk_fail_at(err, -EINVAL, WHERE(NULL, "header", OFF_MAGIC),
                          "Image is not in qcow2 format");
    *version = load_be32(p + OFF_VERSION);
    if (*version != 2 && *version != 3)
        return qk_fail_at(err, -ENOTSUP, WHERE(NULL, "header", OFF_VERSION),
                          "Unsupported qcow2 version %" PRIu32 ": expected 2 or 3", *version);
    return 0;
}

int header_decode_as(const void *bytes, size_t len, uint32_t version, struct header *h,
                     struct qk_error *err)
{
    const uint8_t *p = bytes;
    size_t need = version == 2 ? QCOW2_V2_HEADER_BYTES : QCOW2_V3_HEADER_BYTES;
    if (len < need)
        return too_short(len, need, err);
    uint32_t header_bytes =
        version == 2 ? QCOW2_V2_HEADER_BYTES : load_be32(p + header_fields[FIELD_header_bytes].off);
    if (header_bytes > QCOW2_V3_HEADER_BYTES && len <= QCOW2_V3_HEADER_BYTES)
        return too_short(len, QCOW2_FULL_HEADER_BYTES, err);
    *h = (struct header){.refcount_order = 4, .header_bytes = QCOW2_V2_HEADER_BYTES};
    for (unsigned f = 0; f < FIELD_COUNT; f++)
        if (field_present(f, need == QCOW2_V3_HEADER_BYTES && header_bytes < need ? (uint32_t)need
                                                                                  : header_bytes))
            member_set(h, f, field_load(&header_fields[f], p));
    return 0;
}

int header_decode(const void *bytes, size_t len, struct header *h, struct qk_error *err)
{
    uint32_t version;
    int ret = decode_version(bytes, len, &version, err);
    return ret < 0 ? ret : header_decode_as(bytes, len, version, h, err);
}

void header_encode(const struct header *h, uint8_t *out)
{
    uint32_t header_bytes = h->version == 2 ? QCOW2_V2_HEADER_BYTES : h->header_bytes;
    store_be32(out + OFF_MAGIC, QCOW2_MAGIC);
    for (unsigned f = 0; f < FIELD_COUNT; f++)
        if (field_present(f, header_bytes))
            field_store(&header_fields[f], out, member_get(h, f));
    if (header_bytes >= QCOW2_FULL_HEADER_BYTES)
        memset(out + 105, 0, QCOW2_FULL_HEADER_BYTES - 105);
}

/* ---- judging ---- */

/* "WHAT: l1_table_offset is 0x30001, expected EXPECTED"; the place goes beside the text. Offsets
 * and feature bits read better in hexadecimal, counts in decimal. */
static int bad_field(struct qk_error *err, const struct header *h, enum field_index f,
                     const char *what, const char *expected)
{
    const struct header_field *field = &header_fields[f];
    uint64_t v = member_get(h, f);
    char text[32];
    bool hex = field->bytes == 8 && f != FIELD_size_bytes;
    if (hex)
        snprintf(text, sizeof(text), "0x%" PRIx64, v);
    else
        snprintf(text, sizeof(text), "%" PRIu64, v);
    return qk_fail_at(err, -EINVAL, WHERE(NULL, "header", field->off), "%s: %s is %s, expected %s",
                      what, field->spec_name, text, expected);
}

/* What a rule may look at beside the header. */
struct judge {
    const struct header *h;
    const struct header_extensions *names;
    uint64_t file_bytes;
    bool for_check;
    struct qk_error *err;
};

static int judge_cluster_bits(const struct judge *j)
{
    uint32_t bits = j->h->cluster_bits;
    if (bits >= QCOW2_MIN_CLUSTER_BITS && bits <= QCOW2_MAX_CLUSTER_BITS)
        return 0;
    char what[64];
    snprintf(what, sizeof(what), "Unsupported cluster size: 2^%" PRIu32, bits);
    return bad_field(j->err, j->h, FIELD_cluster_bits, what, "9 to 21");
}

static int judge_header_bytes(const struct judge *j)
{
    const struct header *h = j->h;
    uint32_t cluster_bytes = UINT32_C(1) << h->cluster_bits;
    if (h->version < 3)
        return 0;
    if (h->header_bytes < QCOW2_V3_HEADER_BYTES)
        return bad_field(j->err, h, FIELD_header_bytes, "qcow2 header too short", "at least 104");
    char expected[64];
    snprintf(expected, sizeof(expected), "at most %" PRIu32, cluster_bytes);
    if (h->header_bytes > cluster_bytes)
        return bad_field(j->err, h, FIELD_header_bytes, "qcow2 header exceeds cluster size",
                         expected);
    if (!is_aligned(h->header_bytes, 8))
        return bad_field(j->err, h, FIELD_header_bytes, "qcow2 header length invalid",
                         "a multiple of 8");
    return 0;
}

/* Appends to a text that is cut to its buffer. */
static size_t append(char *buf, size_t size, size_t at, const char *text)
{
    if (at >= size)
        return at;
    int n = snprintf(buf + at, size - at, "%s%s", at ? ", " : "", text);
    return n < 0 ? at : at + (size_t)n;
}

void header_feature_list(const struct header_extensions *names, uint64_t bits, char *buf,
                         size_t size)
{
    size_t at = 0;
    uint64_t unnamed = 0;
    *buf = 0;
    for (unsigned bit = 0; bit < 64; bit++) {
        char name[47];
        if (!(bits >> bit & 1))
            continue;
        if (feature_name(names, 0, bit, name))
            at = append(buf, size, at, name);
        else
            unnamed |= UINT64_C(1) << bit;
    }
    if (unnamed) {
        char text[64];
        snprintf(text, sizeof(text), "Unknown incompatible feature: %" PRIx64, unnamed);
        append(buf, size, at, text);
    }
}

static int unknown_features(const struct judge *j, uint64_t unknown)
{
    char list[FEATURE_LIST_BYTES];
    header_feature_list(j->names, unknown, list, sizeof(list));
    return qk_fail_at(j->err, -ENOTSUP,
                      WHERE(NULL, "header", header_fields[FIELD_incompatible].off),
                      "Unsupported qcow2 feature(s): %s", list);
}

static int judge_features(const struct judge *j)
{
    const struct header *h = j->h;
    uint64_t unknown = h->incompatible & ~(uint64_t)INCOMPAT_KNOWN;
    if (unknown)
        return unknown_features(j, unknown);
    if (!j->for_check && (h->autoclear & AUTOCLEAR_DATA_FILE_RAW) &&
        !(h->incompatible & INCOMPAT_DATA_FILE))
        return bad_field(j->err, h, FIELD_autoclear, "data-file-raw requires a data file",
                         "bit 1 clear, as incompatible bit 2 is clear");
    if ((h->incompatible & INCOMPAT_EXTENDED_L2) &&
        h->cluster_bits < MIN_EXTENDED_L2_CLUSTER_BITS) {
        char what[64];
        snprintf(what, sizeof(what), "Unsupported subcluster size: %" PRIu32,
                 (UINT32_C(1) << h->cluster_bits) / 32);
        return bad_field(j->err, h, FIELD_cluster_bits, what,
                         "at least 14, as the image has extended L2 entries");
    }
    return 0;
}

static int judge_compression(const struct judge *j)
{
    const struct header *h = j->h;
    bool bit = h->incompatible & INCOMPAT_COMPRESSION;
    if (h->compression_type > COMPRESSION_ZSTD) {
        char what[64];
        snprintf(what, sizeof(what), "qcow2: unknown compression type: %" PRIu32,
                 h->compression_type);
        bad_field(j->err, h, FIELD_compression_type, what, "0 (zlib) or 1 (zstd)");
        if (j->err)
            j->err->code = ENOTSUP;
        return -ENOTSUP;
    }
    if (h->compression_type == COMPRESSION_ZLIB && bit)
        return bad_field(j->err, h, FIELD_incompatible,
                         "qcow2: Compression type incompatible feature bit must not be set",
                         "bit 3 clear, as the compression type is 0");
    if (h->compression_type != COMPRESSION_ZLIB && !bit)
        return bad_field(j->err, h, FIELD_compression_type,
                         "qcow2: Compression type incompatible feature bit must be set",
                         "0, as incompatible bit 3 is clear");
    return 0;
}

static int judge_refcount_order(const struct judge *j)
{
    if (j->h->refcount_order <= QCOW2_MAX_REFCOUNT_ORDER)
        return 0;
    return bad_field(j->err, j->h, FIELD_refcount_order,
                     "Reference count entry width too large; may not exceed 64 bits", "0 to 6");
}

static int judge_crypt_method(const struct judge *j)
{
    if (j->h->crypt_method <= CRYPT_LUKS)
        return 0;
    char what[64];
    snprintf(what, sizeof(what), "Unsupported encryption method %" PRIu32, j->h->crypt_method);
    return bad_field(j->err, j->h, FIELD_crypt_method, what, "0 (none), 1 (AES) or 2 (LUKS)");
}

static int judge_backing(const struct judge *j)
{
    const struct header *h = j->h;
    uint32_t cluster_bytes = UINT32_C(1) << h->cluster_bits;
    if (!h->backing_name_off)
        return 0;
    char expected[64];
    snprintf(expected, sizeof(expected), "0 or %" PRIu32 " to %" PRIu32, h->header_bytes,
             cluster_bytes);
    if (h->backing_name_off > cluster_bytes ||
        (h->backing_name_off < h->header_bytes && !j->for_check))
        return bad_field(j->err, h, FIELD_backing_name_off, "Invalid backing file offset",
                         expected);
    uint64_t room = min_u64(min_u64(QCOW2_MAX_BACKING_NAME, cluster_bytes - h->backing_name_off),
                            j->file_bytes - min_u64(j->file_bytes, h->backing_name_off));
    snprintf(expected, sizeof(expected), "at most %" PRIu64, room);
    if (h->backing_name_len > room)
        return bad_field(j->err, h, FIELD_backing_name_len, "Backing file name too long", expected);
    return 0;
}

/* A table that the header points to. */
struct table_rule {
    const char *name;
    enum field_index off, count;
    uint64_t max_count;
    uint64_t entry_bytes; /* 0: one cluster */
    bool skip_in_check;
};

static const struct table_rule table_rules[] = {
    {"Reference count table", FIELD_reftable_off, FIELD_reftable_clusters, QCOW2_MAX_REFTABLE_BYTES,
     0, false},
    {"Snapshot table", FIELD_snapshots_off, FIELD_snapshot_count,
     (uint64_t)QCOW2_MAX_SNAPSHOTS *SNAPSHOT_ENTRY_MIN_BYTES, SNAPSHOT_ENTRY_MIN_BYTES, true},
    {"Active L1 table", FIELD_l1_off, FIELD_l1_entries, QCOW2_MAX_L1_BYTES, 8, false},
};

static int judge_table(const struct judge *j, const struct table_rule *t)
{
    const struct header *h = j->h;
    uint64_t cluster_bytes = UINT64_C(1) << h->cluster_bits;
    uint64_t entry_bytes = t->entry_bytes ? t->entry_bytes : cluster_bytes;
    uint64_t count = member_get(h, t->count), off = member_get(h, t->off);
    char what[64], expected[96];
    if (count > t->max_count / entry_bytes) {
        snprintf(what, sizeof(what), "%s too large", t->name);
        snprintf(expected, sizeof(expected), "at most %" PRIu64, t->max_count / entry_bytes);
        return bad_field(j->err, h, t->count, what, expected);
    }
    snprintf(what, sizeof(what), "%s offset invalid", t->name);
    if (!is_aligned(off, cluster_bytes) || !range_within(off, count * entry_bytes, INT64_MAX)) {
        snprintf(expected, sizeof(expected), "a multiple of the cluster size %" PRIu64,
                 cluster_bytes);
        return bad_field(j->err, h, t->off, what, expected);
    }
    if (!count || j->for_check || (off && range_within(off, count * entry_bytes, j->file_bytes)))
        return 0;
    snprintf(expected, sizeof(expected),
             "room for %" PRIu64 " bytes between the header and the file's end at %" PRIu64,
             count * entry_bytes, j->file_bytes);
    return bad_field(j->err, h, t->off, what, expected);
}

static int judge_tables(const struct judge *j)
{
    if (!j->h->reftable_clusters && !j->for_check)
        return bad_field(j->err, j->h, FIELD_reftable_clusters,
                         "Image does not contain a reference count table", "at least 1");
    for (size_t i = 0; i < ARRAY_SIZE(table_rules); i++) {
        if (table_rules[i].skip_in_check && j->for_check)
            continue;
        int ret = judge_table(j, &table_rules[i]);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int judge_size(const struct judge *j)
{
    const struct header *h = j->h;
    struct geometry g = geometry_of(h);
    uint64_t need = geometry_l1_entries(&g, h->size_bytes);
    char expected[80];
    if (h->size_bytes > INT64_MAX || need > INT32_MAX) {
        snprintf(expected, sizeof(expected), "at most %" PRIu64,
                 (uint64_t)(QCOW2_MAX_L1_BYTES / 8) << (g.l2_bits + g.cluster_bits));
        bad_field(j->err, h, FIELD_size_bytes, "Image is too big", expected);
        if (j->err)
            j->err->code = EFBIG;
        return -EFBIG;
    }
    snprintf(expected, sizeof(expected), "at least %" PRIu64 " for %" PRIu64 " bytes", need,
             h->size_bytes);
    if (h->l1_entries < need && !j->for_check)
        return bad_field(j->err, h, FIELD_l1_entries, "L1 table is too small", expected);
    return 0;
}

/* In this order: each rule may rely on the ones before it. */
static int (*const rules[])(const struct judge *) = {
    judge_cluster_bits, judge_header_bytes, judge_compression, judge_features, judge_refcount_order,
    judge_crypt_method, judge_backing,      judge_tables,      judge_size,
};

static int judge_all(const struct judge *j)
{
    for (size_t i = 0; i < ARRAY_SIZE(rules); i++) {
        int ret = rules[i](j);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int header_validate(const struct header *h, const struct header_extensions *names,
                    uint64_t file_bytes, struct qk_error *err)
{
    return judge_all(
        &(const struct judge){.h = h, .names = names, .file_bytes = file_bytes, .err = err});
}

int header_validate_for_check(const struct header *h, const struct header_extensions *names,
                              struct qk_error *err)
{
    return judge_all(&(const struct judge){
        .h = h, .names = names, .file_bytes = UINT64_MAX, .for_check = true, .err = err});
}

/* ---- geometry ---- */

struct geometry geometry_of(const struct header *h)
{
    bool extended = h->incompatible & INCOMPAT_EXTENDED_L2;
    struct geometry g = {
        .cluster_bits = h->cluster_bits,
        .cluster_bytes = UINT32_C(1) << h->cluster_bits,
        .l2_entry_bytes = extended ? 16 : 8,
        .l2_bits = h->cluster_bits - (extended ? 4 : 3),
        .subclusters = extended ? 32 : 1,
        .subcluster_bits = h->cluster_bits - (extended ? 5 : 0),
        .refcount_order = h->refcount_order,
        .refcount_bits = UINT32_C(1) << h->refcount_order,
        .refblock_bits = h->cluster_bits + 3 - h->refcount_order,
        .csize_shift = 62 - (h->cluster_bits - 8),
        .csize_mask = (UINT64_C(1) << (h->cluster_bits - 8)) - 1,
        .zero_flag = h->version >= 3 && !extended,
        .data_file = h->incompatible & INCOMPAT_DATA_FILE,
    };
    g.l2_entries = UINT32_C(1) << g.l2_bits;
    g.refcount_max = UINT64_MAX >> (64 - g.refcount_bits);
    g.coffset_mask = (UINT64_C(1) << g.csize_shift) - 1;
    return g;
}

uint64_t geometry_l1_entries(const struct geometry *g, uint64_t size_bytes)
{
    return div_round_up(size_bytes, UINT64_C(1) << (g->cluster_bits + g->l2_bits));
}
