/*
 * refblocks.c - phase 3: the refcount table and the clusters of its blocks (Format, section "Host
 * cluster management"). Decides which blocks can be believed: aligned, inside the file, and the
 * only user of their cluster. Runs after everything else is counted.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "check/internal.h"

uint64_t block_clusters(const struct check *c)
{
    return UINT64_C(1) << c->g->refblock_bits;
}

enum block_state block_state(const struct check *c, uint64_t b)
{
    if (b < c->reftable.len)
        return (enum block_state)(c->blocks[b] & BLOCK_STATE);
    return c->table_lost ? BLOCK_BAD : BLOCK_NONE;
}

uint64_t block_next(const struct check *c, uint64_t b)
{
    uint64_t per = block_clusters(c), end = div_round_up(c->clusters, per);
    while (b < end && b >= c->reftable.len) {
        uint64_t region = (b * per) >> REFMAP_REGION_BITS;
        uint64_t last = min_u64((b + 1) * per, c->clusters) - 1;
        for (; region <= last >> REFMAP_REGION_BITS; region++) {
            if (c->refs.regions[region].words)
                return b;
        }
        b = max_u64(b + 1, (region << REFMAP_REGION_BITS) / per);
    }
    return b < end ? b : UINT64_MAX;
}

/* Of a table that reaches past the end, only as much is believed as the file needs. */
static uint64_t table_bytes(const struct check *c, uint64_t off)
{
    uint64_t bytes = (uint64_t)c->h->reftable_clusters << c->g->cluster_bits;
    bytes = min_u64(bytes, QCOW2_MAX_REFTABLE_BYTES);
    if (c->sink.seen[PROBLEM_REFTABLE_RANGE])
        bytes = min_u64(
            bytes, round_up(div_round_up(c->clusters, block_clusters(c)) * 8, c->g->cluster_bytes));
    return min_u64(bytes, round_down(c->file_bytes - off, 8)); /* half an entry is none */
}

static int table_load(struct check *c, struct qk_error *err)
{
    uint64_t off = min_u64(c->h->reftable_off, c->file_bytes);
    uint64_t bytes = table_bytes(c, off);
    if (u64_vec_reserve(&c->reftable, bytes / 8 + 1) < 0)
        return qk_fail_nomem(err);
    if (io_read(c->file, off, c->reftable.ptr, bytes, NULL) < 0) {
        const struct finding f = {PROBLEM_REFTABLE_UNREADABLE, off, QK_OFFSET_NONE, 0, 0};
        sink_found(&c->sink, &f, off);
        return 0;
    }
    c->reftable.len = bytes / 8;
    for (size_t i = 0; i < c->reftable.len; i++)
        c->reftable.ptr[i] = be64toh(c->reftable.ptr[i]);
    return 0;
}

/* What is wrong with an entry for itself; PROBLEM_COUNT: nothing. */
static enum problem_id entry_fault(const struct check *c, uint64_t raw)
{
    if (raw & REFTABLE_RESERVED_MASK)
        return PROBLEM_REFTABLE_RESERVED;
    if (!is_aligned(raw, c->g->cluster_bytes))
        return PROBLEM_REFTABLE_UNALIGNED;
    return raw >= c->clusters << c->g->cluster_bits ? PROBLEM_REFTABLE_OUTSIDE : PROBLEM_COUNT;
}

/* A block past the end reads as zeroes, as everything there does. */
static int entry_bad(struct check *c, size_t i, enum problem_id id, uint64_t arg)
{
    const struct finding f = {id, c->h->reftable_off + i * 8, QK_OFFSET_NONE, 0,
                              c->reftable.ptr[i]};
    sink_found(&c->sink, &f, (uint64_t)i, arg);
    if (id == PROBLEM_REFTABLE_OUTSIDE)
        cut_named(c, id, c->reftable.ptr[i], c->g->cluster_bytes);
    return id == PROBLEM_REFTABLE_OUTSIDE ? BLOCK_NONE : BLOCK_BAD;
}

/* The state and flags of the block that entry i names; -ENOMEM. */
static int entry_collect(struct check *c, size_t i)
{
    uint64_t raw = c->reftable.ptr[i];
    if (!raw)
        return BLOCK_NONE;
    enum problem_id fault = entry_fault(c, raw);
    if (fault != PROBLEM_COUNT)
        return entry_bad(c, i, fault, raw);
    struct refmap_span span = {raw >> c->g->cluster_bits, 1};
    if (refmap_add(&c->refs, span, 1, 0) < 0)
        return -ENOMEM;
    uint64_t users = refmap_count(&c->refs, span.first);
    if (users == 1)
        return BLOCK_GOOD | BLOCK_COUNTED;
    sink_of_cluster(c, span.first);
    int state = entry_bad(c, i, PROBLEM_REFBLOCK_SHARED, users);
    sink_of_nothing(c);
    return state | BLOCK_COUNTED;
}

/* ---- who shares ---- */

enum shared_step { SHARED_COUNT, SHARED_ASK, SHARED_FORGET, SHARED_STEPS };

static int shared_step(struct check *c, enum shared_step step, uint64_t cluster,
                       struct qk_error *err)
{
    const struct refmap_span span = {cluster, 1};
    switch (step) {
    case SHARED_COUNT:
        return refmap_add(&c->refs, span, 1, 0) < 0 ? qk_fail_nomem(err) : 0;
    case SHARED_ASK:
        return refmap_count(&c->refs, cluster) > 1 ? users_want(c, cluster, err) : 0;
    default:
        refmap_drop(&c->refs, span);
        return 0;
    }
}

/* Whom a finding is about is known before the first is told: the blocks are counted for that, and
 * taken off again. */
static int shared_find(struct check *c, struct qk_error *err)
{
    int ret = 0;
    for (unsigned step = 0; ret == 0 && c->opts->on_problem && step < SHARED_STEPS; step++) {
        for (size_t i = 0; ret == 0 && i < c->reftable.len; i++) {
            uint64_t raw = c->reftable.ptr[i];
            if (raw && entry_fault(c, raw) == PROBLEM_COUNT)
                ret = shared_step(c, (enum shared_step)step, raw >> c->g->cluster_bits, err);
        }
        if (ret == 0 && step == SHARED_ASK)
            ret = users_find(c, err);
    }
    return ret;
}

/* A block that a later entry or the one before it shares is bad for both. */
static void distrust_shared(struct check *c)
{
    if (!c->sink.seen[PROBLEM_REFBLOCK_SHARED])
        return;
    for (size_t i = 0; i < c->reftable.len; i++) {
        uint64_t cluster = c->reftable.ptr[i] >> c->g->cluster_bits;
        if (block_state(c, i) == BLOCK_GOOD && refmap_count(&c->refs, cluster) != 1)
            c->blocks[i] = BLOCK_BAD | BLOCK_COUNTED;
    }
}

/* ---- where they lie ---- */

static int cluster_compare(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static int places_sort(struct check *c, struct qk_error *err)
{
    struct u64_vec *v = &c->block_places;
    if (u64_vec_reserve(v, c->reftable.len + 1) < 0)
        return qk_fail_nomem(err);
    for (size_t i = 0; i < c->reftable.len; i++) {
        if (c->blocks[i] & BLOCK_COUNTED)
            v->ptr[v->len++] = c->reftable.ptr[i] >> c->g->cluster_bits;
    }
    qsort(v->ptr, v->len, sizeof(*v->ptr), cluster_compare);
    return 0;
}

bool block_at(const struct check *c, uint64_t cluster)
{
    const struct u64_vec *v = &c->block_places;
    return v->len && bsearch(&cluster, v->ptr, v->len, sizeof(*v->ptr), cluster_compare);
}

int refblocks_collect(struct check *c, struct qk_error *err)
{
    const struct root root = {c->h->reftable_off,
                              (uint64_t)c->h->reftable_clusters << c->g->cluster_bits, 1,
                              PROBLEM_REFTABLE_RANGE};
    int ret = count_root(c, &root, err);
    if (ret == 0)
        ret = table_load(c, err);
    if (ret < 0)
        return ret;
    c->blocks = calloc(c->reftable.len + 1, 1);
    if (!c->blocks)
        return qk_fail_nomem(err);
    ret = shared_find(c, err);
    if (ret < 0)
        return ret;
    for (size_t i = 0; i < c->reftable.len; i++) {
        int state = entry_collect(c, i);
        if (state < 0)
            return qk_fail_nomem(err);
        c->blocks[i] = (uint8_t)state;
    }
    c->shared.len = 0;
    distrust_shared(c);
    c->table_lost = c->sink.seen[PROBLEM_REFTABLE_UNREADABLE] ||
                    c->sink.seen[PROBLEM_REFTABLE_RANGE] || c->sink.seen[PROBLEM_REFTABLE_PLACE] ||
                    c->sink.seen[PROBLEM_REFCOUNT_ORDER];
    return places_sort(c, err);
}
