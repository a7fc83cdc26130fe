/* model.c - see model.h. Allocation failures end the test: it has no other way to go on. */
#include "model.h"
#include "base/checked.h"

#include <stdio.h>
#include <string.h>

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t hash_sector(const uint8_t *bytes)
{
    uint64_t hash = 0;
    for (size_t i = 0; i < SECTOR; i += 8) {
        uint64_t word;
        memcpy(&word, bytes + i, 8);
        hash = (hash ^ word) * 0x9fb21c651e98df25u;
        hash ^= hash >> 29;
    }
    return hash;
}

/* The first word of a sector says in clear who wrote it. */
static uint64_t pattern_word(uint32_t op, uint64_t word_index)
{
    uint64_t sector = word_index / (SECTOR / 8);
    uint64_t tag = (uint64_t)op << 32 | (uint32_t)sector;
    return word_index % (SECTOR / 8) ? mix(mix(tag) + word_index) : tag;
}

void model_pattern(uint32_t op, uint64_t off, uint8_t *buf, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        uint64_t word = pattern_word(op, (off + i) / 8);
        buf[i] = (uint8_t)(word >> 8 * ((off + i) % 8));
    }
}

static void append(struct version_vec *v, struct version version)
{
    if (version_vec_append(v, version) < 0)
        abort();
}

void model_init(struct model *m, uint64_t size, uint64_t max_bytes)
{
    *m = (struct model){.size = size, .max_bytes = round_up(max_bytes, SECTOR)};
    m->end = m->max_bytes / SECTOR;
    m->live = calloc(1, m->max_bytes);
    m->sectors = calloc(m->max_bytes / SECTOR, sizeof(*m->sectors));
    if (!m->live || !m->sectors)
        abort();
    model_op(m, (struct op){.flush = true});
    append(&m->sizes, (struct version){.sure = true, .hash = size});
    append(&m->lists, (struct version){.sure = true});
    model_base(m, m->live, 0);
}

void model_free(struct model *m)
{
    for (uint64_t s = 0; s < m->max_bytes / SECTOR; s++)
        version_vec_free(&m->sectors[s]);
    for (size_t i = 0; i < m->snapshots.len; i++)
        free(m->snapshots.ptr[i].bytes);
    model_snapshot_vec_free(&m->snapshots);
    version_vec_free(&m->lists);
    version_vec_free(&m->sizes);
    op_vec_free(&m->ops);
    free(m->sectors);
    free(m->live);
}

void model_base(struct model *m, const uint8_t *bytes, uint64_t len)
{
    memcpy(m->live, bytes, len);
    for (uint64_t s = 0; s < m->max_bytes / SECTOR; s++) {
        m->sectors[s].len = 0;
        append(&m->sectors[s],
               (struct version){.sure = true, .hash = hash_sector(m->live + s * SECTOR)});
    }
}

uint32_t model_next_op(const struct model *m)
{
    return (uint32_t)m->ops.len;
}

void model_op(struct model *m, struct op op)
{
    if (op_vec_append(&m->ops, op) < 0)
        abort();
}

void model_put(struct model *m, uint64_t off, const uint8_t *bytes, uint64_t len, bool sure)
{
    if (bytes)
        memcpy(m->live + off, bytes, len);
    else
        memset(m->live + off, 0, len);
    for (uint64_t s = off / SECTOR; len && s <= (off + len - 1) / SECTOR; s++)
        append(&m->sectors[s], (struct version){.op = model_next_op(m),
                                                .sure = sure,
                                                .hash = hash_sector(m->live + s * SECTOR)});
}

/* Space that appears reads as zero; space that went away and comes back as well. */
void model_resize(struct model *m, uint64_t size, bool sure)
{
    append(&m->sizes, (struct version){.op = model_next_op(m), .sure = sure, .hash = size});
    if (size > m->size)
        model_put(m, m->size, NULL, size - m->size, sure);
    m->size = size;
}

/* ---- snapshots ---- */

static bool allowed(const struct version_vec *v, struct moment at, uint64_t hash);

uint64_t model_list_hash(uint64_t hash, uint32_t id, const uint8_t *bytes, uint64_t size)
{
    uint8_t last[SECTOR];
    hash = mix(mix(hash + 1) ^ id) ^ size;
    for (uint64_t at = 0; at < size; at += SECTOR) {
        uint64_t n = min_u64(SECTOR, size - at);
        memset(last, 0, sizeof(last));
        memcpy(last, bytes + at, n);
        hash = mix(hash) ^ hash_sector(last);
    }
    return hash;
}

static void append_list(struct model *m, const struct model_snapshot_vec *list, bool sure)
{
    uint64_t hash = 0;
    for (size_t i = 0; i < list->len; i++)
        hash = model_list_hash(hash, list->ptr[i].id, list->ptr[i].bytes, list->ptr[i].size);
    append(&m->lists, (struct version){.op = model_next_op(m), .sure = sure, .hash = hash});
}

void model_snapshot_take(struct model *m, uint32_t id, bool sure)
{
    struct model_snapshot s = {.id = id, .size = m->size, .bytes = malloc(m->size + 1)};
    if (!s.bytes || model_snapshot_vec_append(&m->snapshots, s) < 0)
        abort();
    memcpy(s.bytes, m->live, m->size);
    append_list(m, &m->snapshots, sure);
    if (!sure)
        free(m->snapshots.ptr[--m->snapshots.len].bytes);
}

void model_snapshot_drop(struct model *m, size_t index, bool sure)
{
    struct model_snapshot_vec *v = &m->snapshots;
    struct model_snapshot s = v->ptr[index];
    size_t behind = (v->len - index - 1) * sizeof(s);
    memmove(&v->ptr[index], &v->ptr[index + 1], behind);
    v->len--;
    append_list(m, v, sure);
    if (sure) {
        free(s.bytes);
        return;
    }
    memmove(&v->ptr[index + 1], &v->ptr[index], behind);
    v->ptr[index] = s;
    v->len++;
}

void model_snapshot_apply(struct model *m, size_t index, bool sure)
{
    const struct model_snapshot *s = &m->snapshots.ptr[index];
    uint64_t size = m->size;
    uint8_t *live = malloc(m->max_bytes);
    if (!live)
        abort();
    memcpy(live, m->live, m->max_bytes);
    append(&m->sizes, (struct version){.op = model_next_op(m), .sure = sure, .hash = s->size});
    model_put(m, 0, s->bytes, s->size, sure);
    m->size = sure ? s->size : size;
    if (!sure)
        memcpy(m->live, live, m->max_bytes);
    free(live);
}

bool model_list_allowed(const struct model *m, struct moment at, uint64_t hash)
{
    return allowed(&m->lists, at, hash);
}

static void make_unsure(struct version_vec *v, uint32_t from_op)
{
    for (size_t i = v->len; i-- > 0 && v->ptr[i].op >= from_op;)
        v->ptr[i].sure = false;
}

void model_lose_unflushed(struct model *m)
{
    uint32_t from = model_next_op(m);
    while (from > 0 && !m->ops.ptr[from - 1].flush)
        from--;
    for (uint64_t s = 0; s < m->max_bytes / SECTOR; s++)
        make_unsure(&m->sectors[s], from);
    make_unsure(&m->sizes, from);
    make_unsure(&m->lists, from);
}

struct moment model_moment(const struct model *m, size_t changes)
{
    struct moment at = {0};
    for (uint32_t i = 0; i < m->ops.len; i++) {
        if (m->ops.ptr[i].flush && m->ops.ptr[i].end <= changes)
            at.flushed = i;
        if (i == 0 || m->ops.ptr[i].start < changes)
            at.begun = i + 1;
    }
    return at;
}

struct moment model_now(const struct model *m)
{
    return (struct moment){.flushed = (uint32_t)m->ops.len, .begun = (uint32_t)m->ops.len};
}

static bool allowed(const struct version_vec *v, struct moment at, uint64_t hash)
{
    for (size_t i = v->len; i-- > 0;) {
        const struct version *version = &v->ptr[i];
        if (version->op >= at.begun)
            continue;
        if (version->hash == hash)
            return true;
        if (version->sure && (version->op < at.flushed || version->op == 0))
            return false;
    }
    return false;
}

bool model_size_allowed(const struct model *m, struct moment at, uint64_t size)
{
    return allowed(&m->sizes, at, size);
}

bool model_sector_allowed(const struct model *m, struct moment at, uint64_t sector,
                          const uint8_t *bytes)
{
    return allowed(&m->sectors[sector], at, hash_sector(bytes));
}

void model_describe(const struct model *m, struct moment at, uint64_t sector, const uint8_t *bytes,
                    char text[MODEL_TEXT])
{
    const struct version_vec *v = &m->sectors[sector];
    uint64_t tag;
    memcpy(&tag, bytes, 8);
    int n = snprintf(text, MODEL_TEXT, "guest sector %llu shows ", (unsigned long long)sector);
    if (tag)
        n += snprintf(text + n, MODEL_TEXT - (size_t)n, "operation %u, sector %u",
                      (unsigned)(tag >> 32), (unsigned)tag);
    else
        n += snprintf(text + n, MODEL_TEXT - (size_t)n, "zeroes");
    n += snprintf(text + n, MODEL_TEXT - (size_t)n, "; its versions:");
    for (size_t i = 0; i < v->len && (size_t)n + 20 < MODEL_TEXT; i++)
        n += snprintf(text + n, MODEL_TEXT - (size_t)n, " %u%s", v->ptr[i].op,
                      v->ptr[i].sure ? "" : "?");
    snprintf(text + n, MODEL_TEXT - (size_t)n, "; flushed below %u, begun below %u", at.flushed,
             at.begun);
}
