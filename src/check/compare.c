/*
 * compare.c - phase 5: the counted references against the refcount blocks, block by block on
 * several threads, sixteen clusters at a time where all of them have the same count. Blocks that
 * differ are only marked; the report reads them again, in order. Refcounts of clusters past the end
 * of the file are not looked at.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"

#include <string.h>

#define NIBBLE_ONES UINT64_C(0x1111111111111111)

uint64_t reference_of(const struct check *c, uint64_t cluster)
{
    return min_u64(refmap_count(&c->refs, cluster), c->g->refcount_max);
}

/* ---- the fast look ---- */

void patterns_init(const struct check *c, struct patterns *p)
{
    memset(p, 0, sizeof(*p));
    p->group_bytes = (size_t)c->g->refcount_bits * REFMAP_GROUP / 8;
    for (unsigned v = 0; v < 4; v++) {
        for (unsigned i = 0; i < REFMAP_GROUP; i++)
            c->ops->set(p->bytes[v], i, min_u64(v, c->g->refcount_max));
    }
}

int group_value(const struct check *c, uint64_t first, uint64_t *word)
{
    if (!refmap_group(&c->refs, first, word))
        return -1;
    uint64_t counts = (*word >> REF_MARK_BITS) & (NIBBLE_ONES * 3);
    unsigned value = counts & 3;
    return counts != NIBBLE_ONES * value || value > c->g->refcount_max ? -1 : (int)value;
}

/* One block under comparison. bytes NULL: all refcounts are zero. */
struct look {
    const struct check *c;
    const uint8_t *bytes;
    uint64_t first, count; /* its clusters */
    bool mismatch, suspect;
    uint64_t highest;
};

/* The marks of a cluster fit a refcount that equals its count. */
static bool marks_fit(uint64_t count, unsigned marks)
{
    return count == 1 ? !(marks & REF_PLAIN) : !(marks & REF_COPIED);
}

bool marks_suspect(const struct check *c)
{
    for (uint64_t at = 0; at < c->refs.clusters; at += REFMAP_GROUP) {
        uint64_t word, end = min_u64(at + REFMAP_GROUP, c->refs.clusters);
        int value = group_value(c, at, &word);
        if (value >= 0 && !(word & (NIBBLE_ONES * (value == 1 ? REF_PLAIN : REF_COPIED))))
            continue;
        for (uint64_t i = at; i < end; i++) {
            if (!marks_fit(refmap_count(&c->refs, i), refmap_marks(&c->refs, i)))
                return true;
        }
    }
    return false;
}

static void look_closely(struct look *l, uint64_t i, uint64_t n)
{
    const struct check *c = l->c;
    for (uint64_t end = i + n; i < end; i++) {
        uint64_t cluster = l->first + i, count = refmap_count(&c->refs, cluster);
        uint64_t stored = l->bytes ? c->ops->get(l->bytes, i) : 0;
        if (stored != count)
            l->mismatch = true;
        if (stored | count)
            l->highest = cluster + 1;
        if (!marks_fit(count, refmap_marks(&c->refs, cluster)))
            l->suspect = true;
    }
}

/* Sixteen refcounts, and all of them equal. block NULL: they are zero. */
static bool group_stored(const struct check *c, const uint8_t *block, uint64_t i, uint64_t *value)
{
    const unsigned bits = c->g->refcount_bits;
    size_t bytes = (size_t)bits * REFMAP_GROUP / 8, step = (size_t)max_u64(1, bits / 8);
    *value = 0;
    if (!block)
        return true;
    const uint8_t *group = block + i / REFMAP_GROUP * bytes;
    *value = c->ops->get(group, 0);
    /* Refcounts wider than a byte repeat at their own distance, narrower ones within each byte. */
    return !memcmp(group, group + step, bytes - step) &&
           (bits >= 8 || group[0] == *value * (255u / ((1u << bits) - 1)));
}

/* True when all counts of the group are the same, and fit their marks, which is nearly always. Of
 * what has no references, the refcounts must be the same too, or each is looked at. */
static bool look_group(struct look *l, uint64_t i)
{
    uint64_t count, stored;
    unsigned marks;
    if (!refmap_uniform(&l->c->refs, l->first + i, &count, &marks) || !marks_fit(count, marks))
        return false;
    bool same = group_stored(l->c, l->bytes, i, &stored);
    if (!same && !count)
        return false;
    l->mismatch |= !same || stored != count;
    if (count || stored)
        l->highest = l->first + i + REFMAP_GROUP;
    return true;
}

static void look_block(struct look *l)
{
    for (uint64_t i = 0; i < l->count; i += REFMAP_GROUP) {
        uint64_t n = min_u64(REFMAP_GROUP, l->count - i);
        if (n < REFMAP_GROUP || !look_group(l, i))
            look_closely(l, i, n);
    }
}

/* ---- many blocks ---- */

#define BATCH_BYTES (UINT64_C(1) << 20)

static uint64_t batch_blocks(const struct check *c)
{
    return max_u64(1, BATCH_BYTES >> c->g->cluster_bits);
}

static void unreadable(struct check *c, uint64_t b)
{
    c->blocks[b] = BLOCK_BAD | BLOCK_COUNTED;
    const struct finding f = {PROBLEM_REFBLOCK_UNREADABLE, c->reftable.ptr[b], QK_OFFSET_NONE, 0,
                              0};
    sink_found(&c->sink, &f, b, c->reftable.ptr[b]);
}

/* In order, and not in that in which the threads met them. */
static void report_unreadable(struct check *c)
{
    for (uint64_t b = 0; b < c->reftable.len; b++) {
        if (c->blocks[b] & BLOCK_UNREAD)
            unreadable(c, b);
    }
}

/* By what the table says, and not by the states, which other threads are at. */
static void announce_batch(struct check *c, uint64_t item)
{
    uint64_t b = item * batch_blocks(c), end = min_u64(b + batch_blocks(c), c->reftable.len);
    for (; b < end && b * block_clusters(c) < c->clusters; b++) {
        if (c->reftable.ptr[b] && c->reftable.ptr[b] < c->file_bytes)
            io_will_read(c->file, c->reftable.ptr[b], c->g->cluster_bytes);
    }
}

static void compare_block(struct look *l, struct check *c, uint64_t b)
{
    l->first = b * block_clusters(c);
    l->count = min_u64(block_clusters(c), c->clusters - l->first);
    l->mismatch = false;
    look_block(l);
    if (l->mismatch && b < c->reftable.len)
        c->blocks[b] |= BLOCK_MISMATCH;
    else if (l->mismatch)
        c->tail_mismatch = true;
}

static void note_look(struct check *c, const struct look *l)
{
    LOCK_SCOPE(&c->lock);
    c->copied_suspect |= l->suspect;
    c->highest = max_u64(c->highest, l->highest);
}

static int compare_batch(struct check *c, uint64_t item, void *scratch, struct qk_error *err)
{
    struct look l = {.c = c};
    uint64_t b = item * batch_blocks(c), end = min_u64(b + batch_blocks(c), c->reftable.len);
    for (; b < end && b * block_clusters(c) < c->clusters; b++) {
        enum block_state state = block_state(c, b);
        l.bytes = state == BLOCK_GOOD ? scratch : NULL;
        if (state == BLOCK_GOOD &&
            io_read(c->file, c->reftable.ptr[b], scratch, c->g->cluster_bytes, NULL) < 0) {
            c->blocks[b] = BLOCK_BAD | BLOCK_COUNTED | BLOCK_UNREAD;
            state = BLOCK_BAD;
        }
        if (state != BLOCK_BAD)
            compare_block(&l, c, b);
    }
    note_look(c, &l);
    return progress_add(c, batch_blocks(c), err);
}

/* Clusters behind what the refcount table covers: all their refcounts are zero, or not known. */
static void compare_tail(struct check *c)
{
    struct look l = {.c = c};
    uint64_t b = c->table_lost ? UINT64_MAX : block_next(c, c->reftable.len);
    for (; b != UINT64_MAX; b = block_next(c, b + 1))
        compare_block(&l, c, b);
    if (c->table_lost)
        l.highest = refmap_end(&c->refs);
    note_look(c, &l);
}

/* ---- clusters that differ ---- */

enum problem_id refcount_problem(uint64_t stored, uint64_t reference)
{
    return stored > reference ? PROBLEM_REFCOUNT_HIGH
           : stored           ? PROBLEM_REFCOUNT_LOW
                              : PROBLEM_REFCOUNT_ZERO;
}

/* How many clusters from index i on have the values of the first, as far as one look tells. */
static uint64_t look_values(const struct check *c, uint64_t b, const uint8_t *block,
                            struct refcount_run *run, uint64_t n)
{
    uint64_t i = run->first, cluster = b * block_clusters(c) + i;
    unsigned marks;
    if (!(i % REFMAP_GROUP) && n - i >= REFMAP_GROUP && group_stored(c, block, i, &run->stored) &&
        refmap_uniform(&c->refs, cluster, &run->count, &marks))
        return REFMAP_GROUP;
    run->stored = block ? c->ops->get(block, i) : 0;
    run->count = refmap_count(&c->refs, cluster);
    return 1;
}

bool refcount_run_next(const struct check *c, uint64_t b, const uint8_t *block, uint64_t n,
                       struct refcount_run *run)
{
    struct refcount_run at = {.first = run->first + run->clusters};
    *run = (struct refcount_run){.first = at.first};
    while (at.first < n) {
        uint64_t seen = look_values(c, b, block, &at, n);
        bool same = at.stored == run->stored && at.count == run->count;
        if (run->clusters && !same)
            return true;
        if (!run->clusters && at.stored != at.count)
            *run = at;
        if (at.stored != at.count)
            run->clusters += seen;
        at.first += seen;
    }
    return run->clusters;
}

/* ---- the report ---- */

uint64_t refcount_place(const struct check *c, uint64_t cluster)
{
    uint64_t b = cluster >> c->g->refblock_bits;
    if (b >= c->reftable.len || !c->reftable.ptr[b])
        return QK_OFFSET_NONE;
    return c->reftable.ptr[b] + (cluster & (block_clusters(c) - 1)) * c->g->refcount_bits / 8;
}

/* More references than any refcount of this width can count. */
static void report_overflow(struct check *c, uint64_t cluster)
{
    uint64_t count = refmap_count(&c->refs, cluster);
    const struct finding f = {PROBLEM_REFCOUNT_OVERFLOW, refcount_place(c, cluster), QK_OFFSET_NONE,
                              count, c->g->refcount_max};
    if (count <= c->g->refcount_max)
        return;
    sink_found(&c->sink, &f, cluster << c->g->cluster_bits);
    sink_message(&c->sink, "Use qemu-img amend to increase the refcount entry width or qemu-img "
                           "convert to create a clean copy if the image cannot be opened for "
                           "writing");
}

/* The refcounts of a damaged block are unknown, but these references fit none. */
static void report_overflows(struct check *c, uint64_t b)
{
    uint64_t at = b * block_clusters(c), end = min_u64(at + block_clusters(c), c->clusters);
    for (; (at = refmap_next(&c->refs, at, end)) != UINT64_MAX; at++)
        report_overflow(c, at);
}

static void report_refcount(struct check *c, struct sink_run run, uint64_t stored)
{
    uint64_t reference = reference_of(c, run.cluster);
    const struct finding f = {refcount_problem(stored, reference), refcount_place(c, run.cluster),
                              QK_OFFSET_NONE, reference, stored};
    sink_found_run(&c->sink, &f, run);
}

/* Guest clusters share this one, and copies would need a key that was not given. */
static void report_locked(struct check *c, uint64_t cluster)
{
    unsigned guests = 0;
    for (unsigned i = 0; i < c->sink.user_count; i++) {
        const struct qk_cluster_user *u = &c->sink.users[i];
        guests += !strcmp(u->structure, "guest data") && !u->snapshot;
    }
    if (!image_bound_to_place(c->img) || !guests || c->sink.user_count < 2)
        return;
    const struct finding f = {PROBLEM_SHARED_LOCKED, cluster << c->g->cluster_bits, QK_OFFSET_NONE,
                              1, refmap_count(&c->refs, cluster)};
    sink_found(&c->sink, &f, cluster);
}

static void report_cluster(struct check *c, uint64_t cluster, uint64_t stored)
{
    uint64_t reference = reference_of(c, cluster);
    if (c->wanting) {
        if (refmap_count(&c->refs, cluster) > max_u64(stored, 1))
            users_want(c, cluster, NULL);
        return;
    }
    sink_of_cluster(c, cluster);
    report_overflow(c, cluster);
    if (stored != reference)
        report_refcount(c, (struct sink_run){cluster, 1}, stored);
    if (stored < refmap_count(&c->refs, cluster))
        report_locked(c, cluster);
    sink_of_nothing(c);
}

/* With one reference at most, nobody else is concerned. */
static void report_run(struct check *c, uint64_t b, const struct refcount_run *run)
{
    uint64_t first = b * block_clusters(c) + run->first;
    if (run->count <= 1 && !c->wanting)
        report_refcount(c, (struct sink_run){first, run->clusters}, run->stored);
    for (uint64_t i = 0; run->count > 1 && i < run->clusters; i++)
        report_cluster(c, first + i, run->stored);
}

static int report_block(struct check *c, uint64_t b, uint8_t *buf, struct qk_error *err)
{
    uint64_t n = min_u64(block_clusters(c), c->clusters - b * block_clusters(c));
    bool there = block_state(c, b) == BLOCK_GOOD;
    if (there) {
        int ret = io_read(c->file, c->reftable.ptr[b], buf, c->g->cluster_bytes, err);
        if (ret < 0)
            return ret;
    }
    struct refcount_run run = {.clusters = 0};
    while (refcount_run_next(c, b, there ? buf : NULL, n, &run))
        report_run(c, b, &run);
    return 0;
}

static int report_blocks(struct check *c, struct qk_error *err)
{
    CLEANUP_FREE uint8_t *buf = malloc(c->g->cluster_bytes);
    if (!buf)
        return qk_fail_nomem(err);
    int ret = 0;
    for (uint64_t b = 0; ret == 0 && b < c->reftable.len; b++) {
        if (block_state(c, b) == BLOCK_BAD && !c->wanting)
            report_overflows(c, b);
        else if (c->blocks[b] & BLOCK_MISMATCH)
            ret = report_block(c, b, buf, err);
    }
    bool tail = c->tail_mismatch || (c->table_lost && !c->wanting);
    uint64_t b = tail ? block_next(c, c->reftable.len) : UINT64_MAX;
    for (; ret == 0 && b != UINT64_MAX; b = block_next(c, b + 1)) {
        if (c->table_lost)
            report_overflows(c, b);
        else
            ret = report_block(c, b, buf, err);
    }
    return ret;
}

int compare_run(struct check *c, struct qk_error *err)
{
    const struct parallel_job job = {
        .items = div_round_up(c->reftable.len, batch_blocks(c)),
        .scratch_bytes = c->g->cluster_bytes,
        .fn = compare_batch,
        .will_read = announce_batch,
    };
    int ret = parallel_for(c, &job, err);
    if (ret < 0)
        return ret;
    report_unreadable(c);
    compare_tail(c);
    c->wanting = true;
    ret = c->opts->on_problem ? report_blocks(c, err) : 0;
    shared_report(c);
    c->wanting = false;
    if (ret == 0)
        ret = users_find(c, err);
    return ret < 0 ? ret : report_blocks(c, err);
}

/* ---- single refcounts ---- */

void block_cache_drop(struct check *c)
{
    for (unsigned i = 0; i < BLOCK_CACHE_SLOTS; i++) {
        free(c->cache[i].bytes);
        c->cache[i] = (struct block_cache_slot){0};
    }
}

int stored_refcount(struct check *c, uint64_t cluster, uint64_t *value, struct qk_error *err)
{
    uint64_t b = cluster >> c->g->refblock_bits;
    *value = 0;
    switch (block_state(c, b)) {
    case BLOCK_NONE:
        return 0;
    case BLOCK_BAD:
        return -ENOENT;
    case BLOCK_GOOD:
        break;
    }
    struct block_cache_slot *slot = &c->cache[b % BLOCK_CACHE_SLOTS];
    if (!slot->bytes && !(slot->bytes = malloc(c->g->cluster_bytes)))
        return qk_fail_nomem(err);
    if (slot->off != c->reftable.ptr[b]) {
        slot->off = 0;
        if (io_read(c->file, c->reftable.ptr[b], slot->bytes, c->g->cluster_bytes, NULL) < 0) {
            unreadable(c, b);
            return -ENOENT;
        }
        slot->off = c->reftable.ptr[b];
    }
    *value = c->ops->get(slot->bytes, cluster & (block_clusters(c) - 1));
    return 0;
}
