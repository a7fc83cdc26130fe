/*
 * rebuild.c - a new refcount structure beside the old one, from the counted references. Everything
 * new lies in clusters that nothing refers to; it is written and flushed first, then one write of
 * twelve bytes in the header switches to it, so that a crash leaves either the old structure or
 * the new (INV-8). The new refcounts leave the old structure out: nothing leaks.
 *
 * Places (INV-9): each block at the first free cluster that is not before the clusters it covers,
 * then the table in the first hole that holds it. When that would grow the file, the lowest free
 * clusters anywhere are tried; only then the file grows, if it can.
 *
 * Uses the reference map as the map of free space: what is placed is counted there at once, and
 * taken out again when a try fails.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"

#include <string.h>

#define WRITE_BYTES (UINT64_C(1) << 20)

struct rebuild {
    struct check *c;
    struct u64_vec blocks; /* cluster of each new block; 0: not needed */
    uint64_t table, table_clusters;
    uint64_t end;        /* one more than the last cluster, of the file or placed */
    uint64_t room;       /* places are before this cluster: the file's last whole one */
    uint64_t from;       /* no free cluster for blocks before this one */
    bool in_order, grow; /* the rule of this try */
};

static bool is_free(const struct rebuild *r, uint64_t cluster)
{
    const struct check *c = r->c;
    bool named = cluster < c->named_end && cluster >= c->file_bytes >> c->g->cluster_bits;
    return !named && !refmap_count(&c->refs, cluster);
}

/* The first of n free clusters in a row from `at` on that need no growth; UINT64_MAX: none. */
static uint64_t find_free(const struct rebuild *r, uint64_t at, uint64_t n)
{
    uint64_t run = 0;
    while (at < r->room) {
        uint64_t word;
        if (!run && !(at % REFMAP_GROUP) && group_value(r->c, at, &word) > 0) {
            at += REFMAP_GROUP;
            continue;
        }
        run = is_free(r, at++) ? run + 1 : 0;
        if (run == n)
            return at - n;
    }
    return UINT64_MAX;
}

/* Marks n clusters as used, at a free place or, when the rule allows, at the end of the file. */
static int place(struct rebuild *r, uint64_t at, uint64_t n, uint64_t *cluster,
                 struct qk_error *err)
{
    struct check *c = r->c;
    at = max_u64(at, c->spare ? c->clusters : 0);
    *cluster = find_free(r, at, n);
    if (*cluster == UINT64_MAX) {
        if (!r->grow)
            return qk_fail_at(err, -ENOSPC, WHERE(c->file->name, "refcount table", QK_OFFSET_NONE),
                              "no free clusters for a new refcount structure");
        *cluster = max_u64(r->end, c->named_end);
        while (*cluster > at && is_free(r, *cluster - 1))
            --*cluster;
        int ret = refmap_grow(&c->refs, *cluster + n, err);
        if (ret < 0)
            return ret;
        r->end = r->room = *cluster + n;
    }
    const struct refmap_span span = {*cluster, n};
    return refmap_add(&c->refs, span, 1, 0) < 0 ? qk_fail_nomem(err) : 0;
}

/* Places the blocks that are needed and have no place yet; *placed counts them. */
static int place_blocks(struct rebuild *r, uint64_t *placed, struct qk_error *err)
{
    const uint64_t per = block_clusters(r->c);
    *placed = 0;
    for (uint64_t at = 0, b; (at = refmap_next(&r->c->refs, at, UINT64_MAX)) != UINT64_MAX;
         at = (b + 1) * per) {
        b = at / per;
        if (b * 8 >= QCOW2_MAX_REFTABLE_BYTES)
            return qk_fail(err, -EFBIG, "the refcount table would grow too large");
        while (r->blocks.len <= b) {
            if (u64_vec_append(&r->blocks, 0) < 0)
                return qk_fail_nomem(err);
        }
        if (r->blocks.ptr[b])
            continue;
        uint64_t from = max_u64(r->from, r->in_order ? b * per : 0);
        int ret = place(r, from, 1, &r->blocks.ptr[b], err);
        if (ret < 0)
            return ret;
        r->from = r->blocks.ptr[b] + 1;
        ++*placed;
    }
    return 0;
}

static void unplace(struct rebuild *r, uint64_t cluster, uint64_t n)
{
    const struct refmap_span span = {cluster, n};
    refmap_drop(&r->c->refs, span);
}

/* A table and blocks may each make more of the other necessary: until nothing changes. */
static int place_all(struct rebuild *r, struct qk_error *err)
{
    for (;;) {
        uint64_t placed;
        int ret = place_blocks(r, &placed, err);
        if (ret < 0)
            return ret;
        uint64_t need = div_round_up(r->blocks.len * 8, r->c->g->cluster_bytes);
        if (need == r->table_clusters && !placed)
            return 0;
        if (need == r->table_clusters)
            continue;
        if (r->table_clusters)
            unplace(r, r->table, r->table_clusters);
        r->table_clusters = 0;
        ret = place(r, 0, need, &r->table, err);
        if (ret < 0)
            return ret;
        r->table_clusters = need;
    }
}

static void forget_places(struct rebuild *r)
{
    for (size_t i = 0; i < r->blocks.len; i++) {
        if (r->blocks.ptr[i])
            unplace(r, r->blocks.ptr[i], 1);
    }
    if (r->table_clusters)
        unplace(r, r->table, r->table_clusters);
    r->blocks.len = 0;
    r->table_clusters = r->from = 0;
    r->end = r->c->clusters;
    r->room = r->c->file_bytes >> r->c->g->cluster_bits;
}

static int find_places(struct rebuild *r, struct qk_error *err)
{
    static const struct {
        bool in_order, grow;
    } tries[] = {{true, false}, {false, false}, {true, true}};
    int ret = -ENOSPC;
    for (size_t i = 0; ret == -ENOSPC && i < ARRAY_SIZE(tries); i++) {
        if (tries[i].grow && (!r->c->file->can_grow || r->c->no_growth))
            break;
        forget_places(r);
        r->in_order = tries[i].in_order;
        r->grow = tries[i].grow;
        ret = place_all(r, err);
    }
    if (ret < 0)
        forget_places(r);
    return ret;
}

/* ---- content ---- */

/* Leaks of block b that stay are counted as references from here on. */
static int keep_leaks_of(struct check *c, uint64_t b, uint8_t *block, struct qk_error *err)
{
    uint64_t first = b * block_clusters(c), n = min_u64(block_clusters(c), c->clusters - first);
    struct refcount_run run = {.clusters = 0};
    if (io_read(c->file, c->reftable.ptr[b], block, c->g->cluster_bytes, NULL) < 0)
        return qk_fail_at(err, -EIO, WHERE(c->file->name, "refcount block", c->reftable.ptr[b]),
                          "cannot read the refcounts of clusters that must be kept");
    while (refcount_run_next(c, b, block, n, &run)) {
        const struct refmap_span span = {first + run.first, run.clusters};
        if (run.stored > run.count && refmap_add(&c->refs, span, run.stored - run.count, 0) < 0)
            return qk_fail_nomem(err);
    }
    return 0;
}

static int keep_leaks(struct check *c, struct qk_error *err)
{
    CLEANUP_FREE uint8_t *block = malloc(c->g->cluster_bytes);
    int ret = block ? 0 : qk_fail_nomem(err);
    for (uint64_t b = 0; ret == 0 && b < c->reftable.len; b++) {
        if ((c->blocks[b] & BLOCK_MISMATCH) && block_state(c, b) == BLOCK_GOOD)
            ret = keep_leaks_of(c, b, block, err);
    }
    return ret;
}

/* The old structure's clusters are free once the header names the new one. */
static void forget_old(struct check *c)
{
    struct refmap_span span;
    if (range_span(c, c->h->reftable_off, (uint64_t)c->h->reftable_clusters << c->g->cluster_bits,
                   &span))
        refmap_drop(&c->refs, span);
    for (size_t b = 0; b < c->reftable.len; b++) {
        span = (struct refmap_span){c->reftable.ptr[b] >> c->g->cluster_bits, 1};
        if (c->blocks[b] & BLOCK_COUNTED)
            refmap_drop(&c->refs, span);
    }
}

static void block_fill(const struct rebuild *r, const struct patterns *p, uint64_t b, uint8_t *out)
{
    struct check *c = r->c;
    uint64_t first = b * block_clusters(c), n = min_u64(block_clusters(c), r->end - first);
    memset(out, 0, c->g->cluster_bytes);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t word;
        int value =
            i % REFMAP_GROUP || n - i < REFMAP_GROUP ? -1 : group_value(c, first + i, &word);
        if (value >= 0) {
            memcpy(out + i / REFMAP_GROUP * p->group_bytes, p->bytes[value], p->group_bytes);
            i += REFMAP_GROUP - 1;
            continue;
        }
        uint64_t count = reference_of(c, first + i);
        if (count)
            c->ops->set(out, i, count);
    }
}

/* Blocks that lie side by side go out in one write. */
static int write_blocks(const struct rebuild *r, struct qk_error *err)
{
    struct check *c = r->c;
    size_t most = (size_t)max_u64(1, WRITE_BYTES >> c->g->cluster_bits), have = 0;
    CLEANUP_FREE uint8_t *buf = malloc(most << c->g->cluster_bits);
    struct patterns patterns;
    patterns_init(c, &patterns);
    if (!buf)
        return qk_fail_nomem(err);
    uint64_t start = 0;
    for (uint64_t b = 0; b <= r->blocks.len; b++) {
        uint64_t cluster = b < r->blocks.len ? r->blocks.ptr[b] : 0;
        if (b < r->blocks.len && !cluster)
            continue;
        if (have && (!cluster || cluster != start + have || have == most)) {
            const struct step what = {"write new refcounts", "refcount block",
                                      .count = have * block_clusters(c)};
            const struct plan_bytes w = {start << c->g->cluster_bits, buf,
                                         have << c->g->cluster_bits};
            int ret = plan_write(c, &what, &w, err);
            if (ret < 0)
                return ret;
            have = 0;
        }
        if (!have)
            start = cluster;
        if (cluster)
            block_fill(r, &patterns, b, buf + (have++ << c->g->cluster_bits));
    }
    return 0;
}

static int write_table(const struct rebuild *r, struct qk_error *err)
{
    struct check *c = r->c;
    size_t bytes = r->table_clusters << c->g->cluster_bits;
    CLEANUP_FREE uint8_t *table = calloc(1, bytes);
    if (!table)
        return qk_fail_nomem(err);
    for (size_t b = 0; b < r->blocks.len; b++)
        store_be64(table + b * 8, r->blocks.ptr[b] << c->g->cluster_bits);
    const struct step what = {"write new table", "refcount table", .count = r->blocks.len};
    const struct plan_bytes w = {r->table << c->g->cluster_bits, table, bytes};
    return plan_write(c, &what, &w, err);
}

/* The width lies in the same sector as the table's place, so that both change at once. */
static int write_width(struct check *c, struct qk_error *err)
{
    static const struct step what = {.action = "correct field", .structure = "header"};
    uint8_t field[4];
    const struct plan_bytes w = {HEADER_REFCOUNT_ORDER_OFF, field, sizeof(field)};
    store_be32(field, c->h->refcount_order);
    return c->raw.refcount_order == c->h->refcount_order ? 0 : plan_write(c, &what, &w, err);
}

static int switch_over(const struct rebuild *r, struct qk_error *err)
{
    uint8_t fields[12];
    store_be64(fields, r->table << r->c->g->cluster_bits);
    store_be32(fields + 8, (uint32_t)r->table_clusters);
    static const struct step what = {"name the new refcount table", "header", .count = 2};
    const struct plan_bytes w = {HEADER_REFTABLE_OFF, fields, sizeof(fields)};
    int ret = plan_write(r->c, &what, &w, err);
    if (ret == 0)
        ret = write_width(r->c, err);
    if (ret == 0)
        ret = rollback_link(r->c, err);
    return ret < 0 ? ret : plan_barrier(r->c, err);
}

/* ---- afterwards ---- */

static int adopt(struct rebuild *r, struct qk_error *err)
{
    struct check *c = r->c;
    uint8_t *states = calloc(r->blocks.len + 1, 1);
    if (!states)
        return qk_fail_nomem(err);
    free(c->blocks);
    c->blocks = states;
    u64_vec_free(&c->reftable);
    for (size_t b = 0; b < r->blocks.len; b++) {
        c->blocks[b] = r->blocks.ptr[b] ? BLOCK_GOOD : BLOCK_NONE;
        r->blocks.ptr[b] <<= c->g->cluster_bits;
    }
    c->reftable = r->blocks;
    c->table_lost = false;
    r->blocks = (struct u64_vec){0};
    c->clusters = max_u64(c->clusters, r->end);
    for (unsigned id = 0; id < PROBLEM_COUNT; id++) {
        if (problems[id].actions & (ACT_REBUILD | ACT_RAISE | (c->actions & ACT_LOWER)))
            sink_settle(&c->sink, (enum problem_id)id);
    }
    return 0;
}

/* Nothing names the new clusters yet. */
static int write_beside(struct rebuild *r, struct qk_error *err)
{
    struct check *c = r->c;
    forget_old(c);
    int ret = write_blocks(r, err);
    if (ret == 0)
        ret = write_table(r, err);
    return ret < 0 ? ret : plan_barrier(c, err);
}

/* After places were found, no failure means that there is no room. */
static int write_and_switch(struct rebuild *r, struct qk_error *err)
{
    int ret = write_beside(r, err);
    if (ret == 0)
        ret = switch_over(r, err);
    if (ret == 0)
        ret = adopt(r, err);
    return ret == -ENOSPC ? -EIO : ret;
}

int rebuild_run(struct check *c, struct qk_error *err)
{
    struct rebuild r = {.c = c};
    if (c->in_place)
        return -ENOSPC;
    sink_message(&c->sink, "Rebuilding refcount structure");
    int ret = c->actions & ACT_LOWER ? 0 : keep_leaks(c, err);
    if (ret == 0)
        ret = find_places(&r, err);
    if (ret == 0)
        ret = write_and_switch(&r, err);
    u64_vec_free(&r.blocks);
    return ret;
}
