/*
 * apply.c - the plan's writes in place: entries that are corrected or given up, and refcounts. Each
 * step is safe on its own (INV-8): dropped entries are stable before the refcounts that they
 * justified go down, and refcounts go up before any goes down (INV-1). Only blocks that nothing
 * else uses are written (INV-6).
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"

#include <string.h>

/* ---- entries ---- */

/* The entry without what is wrong with it and may be repaired; *gone: it names nothing any more. */
static uint64_t l1_edited(const struct check *c, uint64_t raw, const struct l1_verdict *v,
                          bool *gone)
{
    *gone = false;
    for (unsigned i = 0; i < v->problem_count; i++) {
        if (!problem_fixable(c->opts, v->problems[i]))
            continue;
        if (v->problems[i] == PROBLEM_L1_RESERVED)
            raw &= ~L1_RESERVED_MASK;
        else if (v->problems[i] != PROBLEM_L1_STRAY)
            *gone = true;
        else
            raw = 0;
    }
    return *gone ? 0 : raw;
}

static void l1_announce(struct check *c, const struct finding *f, uint64_t index, bool repaired)
{
    uint64_t args[2] = {l1_entry_host(f->found), c->g->cluster_bytes};
    if (f->id == PROBLEM_L1_RESERVED)
        args[0] = f->found;
    if (f->id == PROBLEM_L1_STRAY || f->id == PROBLEM_L1_TABLE_TWICE) {
        args[1] = f->id == PROBLEM_L1_STRAY ? f->found : args[0];
        args[0] = index;
    }
    if (repaired)
        sink_repaired(&c->sink, f, args[0], args[1]);
    else
        sink_declined(&c->sink, f, args[0], args[1]);
}

static int l1_word_edit(struct check *c, uint64_t off, uint64_t raw, uint64_t users,
                        struct qk_error *err)
{
    uint64_t index = (off - c->h->l1_off) / 8,
             each = (uint64_t)c->g->l2_entries << c->g->cluster_bits;
    bool active = off >= c->h->l1_off && index < c->l1_entries, gone;
    struct l1_verdict v = active ? l1_judge_active(c, index, raw) : l1_judge(c, raw);
    uint64_t new = l1_edited(c, raw, &v, &gone), lost = each;
    if (new == raw)
        return 0;
    if (active)
        lost = min_u64(each, c->h->size_bytes - min_u64(c->h->size_bytes, index * each));
    /* Other users of this cluster would see the write too. */
    bool alone = refmap_count(&c->refs, off >> c->g->cluster_bits) <= users;
    for (unsigned i = 0; i < v.problem_count; i++) {
        const struct finding f = {v.problems[i], off, active ? index * each : QK_OFFSET_NONE, new,
                                  raw};
        if (problem_fixable(c->opts, f.id))
            l1_announce(c, &f, index, alone);
    }
    if (!alone)
        return 0;
    if (active)
        c->l1[index] = new;
    const struct step what = {.action = gone ? "clear entry" : "clear stray flags",
                              .structure = "L1 table",
                              .lost_off = active ? index * each : QK_OFFSET_NONE,
                              .lost_bytes = gone ? lost : 0};
    new = htobe64(new);
    const struct plan_bytes bytes = {off, &new, sizeof(new)};
    return plan_write(c, &what, &bytes, err);
}

static int edit_words(struct check *c, const uint64_t *words, size_t n, const struct root *piece,
                      struct qk_error *err)
{
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < n; i++) {
        if (words[i])
            ret = l1_word_edit(c, piece->off + i * 8, words[i], piece->times, err);
    }
    return ret;
}

static int edit_l1(struct check *c, struct qk_error *err)
{
    uint64_t active[] = {c->h->l1_off, (uint64_t)c->l1_entries * 8};
    struct u64_vec ranges = {active, 2, 2};
    struct sweep sweep = {.ranges = &ranges, .unreadable = PROBLEM_L1_UNREADABLE, .fn = edit_words};
    int ret = sweep_ranges(c, &sweep, err);
    sweep.ranges = &c->snapshot_l1;
    return ret < 0 ? ret : sweep_ranges(c, &sweep, err);
}

static int edit_l2(struct check *c, struct qk_error *err)
{
    CLEANUP_FREE void *buf = malloc(2 * (size_t)c->g->cluster_bytes);
    if (!buf)
        return qk_fail_nomem(err);
    for (size_t i = 0; i < c->tables.len; i++) {
        struct l2_table *t = &c->tables.ptr[i];
        if ((t->flags & (L2_BAD | L2_UNREAD)) != L2_BAD)
            continue;
        int ret = table_edit(c, t, buf, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int apply_edits(struct check *c, struct qk_error *err)
{
    static const struct {
        enum action action;
        int (*edit)(struct check *c, struct qk_error *err);
    } edits[] = {{ACT_EDIT_HEADER, header_edit},
                 {ACT_DROP_BITMAPS, bitmaps_drop},
                 {ACT_EDIT_L1, edit_l1},
                 {ACT_EDIT_L2, edit_l2},
                 {ACT_FILL, cut_fill}};
    bool any = false;
    for (size_t i = 0; i < ARRAY_SIZE(edits); i++) {
        if (!(c->actions & edits[i].action))
            continue;
        int ret = edits[i].edit(c, err);
        if (ret < 0)
            return ret;
        any = true;
    }
    return any ? plan_barrier(c, err) : 0;
}

/* ---- refcounts ---- */

/* Says what becomes of refcounts that are not what they should be. */
static void announce(struct check *c, uint64_t b, const struct refcount_run *run)
{
    uint64_t reference = min_u64(run->count, c->g->refcount_max);
    const struct sink_run clusters = {b * block_clusters(c) + run->first, run->clusters};
    const struct finding f = {refcount_problem(run->stored, reference),
                              refcount_place(c, clusters.cluster), QK_OFFSET_NONE, reference,
                              run->stored};
    if (run->stored == reference)
        return;
    if (plan_target(c, clusters.cluster, run->stored) != run->stored)
        sink_repaired_run(&c->sink, &f, clusters);
    else
        sink_declined_run(&c->sink, &f, clusters);
}

/* One block, raised or lowered. What will become of it is announced with the raise, in order. */
static int apply_block(struct check *c, uint64_t b, uint8_t *old, bool raise, struct qk_error *err)
{
    uint8_t *new = old + c->g->cluster_bytes;
    uint64_t first = b * block_clusters(c);
    uint64_t n = min_u64(block_clusters(c), c->clusters - first);
    int ret = io_read(c->file, c->reftable.ptr[b], old, c->g->cluster_bytes, err);
    if (ret < 0)
        return ret;
    memcpy(new, old, c->g->cluster_bytes);
    struct refcount_run run = {.clusters = 0};
    while (refcount_run_next(c, b, old, n, &run)) {
        uint64_t target = plan_target(c, first + run.first, run.stored);
        if (raise)
            announce(c, b, &run);
        if (target == run.stored || raise != (target > run.stored))
            continue;
        for (uint64_t i = run.first; i < run.first + run.clusters; i++)
            c->ops->set(new, i, target);
    }
    const struct step what = {.action = raise ? "raise refcounts" : "lower refcounts",
                              .structure = "refcount block"};
    const struct table_write w = {c->reftable.ptr[b], c->g->cluster_bytes,
                                  (c->g->refcount_bits + 7) / 8, old, new};
    return write_changed(c, &what, &w, err);
}

static int apply_blocks(struct check *c, bool raise, struct qk_error *err)
{
    CLEANUP_FREE uint8_t *buf = malloc(2 * (size_t)c->g->cluster_bytes);
    if (!buf)
        return qk_fail_nomem(err);
    for (uint64_t b = 0; b < c->reftable.len; b++) {
        if (!(c->blocks[b] & BLOCK_MISMATCH) || block_state(c, b) != BLOCK_GOOD)
            continue;
        int ret = apply_block(c, b, buf, raise, err);
        if (ret < 0)
            return ret;
    }
    return plan_barrier(c, err);
}

void references_drop(struct check *c, struct refmap_span span, uint64_t times)
{
    for (uint64_t i = span.first; i < span.first + span.count; i++) {
        uint64_t b = i >> c->g->refblock_bits;
        refmap_drop_times(&c->refs, i, times);
        if (b < c->reftable.len)
            c->blocks[b] |= BLOCK_MISMATCH;
    }
    block_cache_drop(c);
}

int refcounts_lower(struct check *c, struct qk_error *err)
{
    return apply_blocks(c, false, err);
}

int apply_refcounts(struct check *c, struct qk_error *err)
{
    const uint64_t *seen = c->sink.seen;
    if (!seen[PROBLEM_REFCOUNT_LOW] && !seen[PROBLEM_REFCOUNT_HIGH] &&
        !seen[PROBLEM_REFCOUNT_ZERO] && !c->rollback)
        return 0;
    int ret = apply_blocks(c, true, err);
    if (ret == 0 && c->rollback)
        ret = rollback_link(c, err);
    if (ret == 0 && c->rollback)
        ret = plan_barrier(c, err);
    if (ret == 0 && (c->actions & ACT_LOWER))
        ret = apply_blocks(c, false, err);
    return ret;
}
