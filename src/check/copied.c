/*
 * copied.c - the COPIED flags of the active L1 and its L2 tables against the refcounts as they are
 * in the file now, after their repair (Format, sections "L1 table entry", "Standard Cluster
 * Descriptor"). Tables are read only when the comparison found a reason to. A flag is never set on
 * a cluster that is known to have two users.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"

#include <string.h>

#define L1_CHUNK 512u /* entries that are written together */

struct copied {
    struct check *c;
    bool repair, tables; /* tables: the L2 tables need a look */
    bool expected;       /* against what will be */
    uint8_t *buf;        /* two clusters */
};

/* As it is known to be: from the file where anything differs from the counts. */
static int refcount_now(const struct copied *p, uint64_t cluster, uint64_t *value,
                        struct qk_error *err)
{
    if (p->tables && !p->expected)
        return stored_refcount(p->c, cluster, value, err);
    *value = refmap_count(&p->c->refs, cluster);
    return 0;
}

/* True when the flag is wrong. Refcounts that cannot be read are reported elsewhere. */
static bool flag_wrong(const struct copied *p, uint64_t raw, uint64_t cluster, uint64_t *refcount)
{
    if (refcount_now(p, cluster, refcount, NULL) < 0)
        return false;
    bool copied = raw & ENTRY_COPIED;
    if ((*refcount == 1) == copied)
        return false;
    return copied || refmap_count(&p->c->refs, cluster) <= 1;
}

/* ---- L2 tables ---- */

static bool has_flag(const struct check *c, struct l2_entry e)
{
    bool zero = (e.raw & ENTRY_ZERO) && c->g->l2_entry_bytes == 8;
    if (e.raw & ENTRY_COMPRESSED)
        return false;
    return l2_entry_host(e).v || (c->data_file && (e.raw & ENTRY_COPIED) && !zero);
}

static void entry_look(struct copied *p, const struct l2_table *t, uint32_t i, bool may_write)
{
    struct check *c = p->c;
    uint8_t *table = p->buf + c->g->cluster_bytes;
    struct l2_entry e = l2_entry_load(c->g, table, i);
    uint64_t refcount = 1;
    if (!has_flag(c, e))
        return;
    bool wrong = c->data_file
                     ? !(e.raw & ENTRY_COPIED)
                     : flag_wrong(p, e.raw, l2_entry_host(e).v >> c->g->cluster_bits, &refcount);
    if (!wrong)
        return;
    uint64_t off = (t->cluster << c->g->cluster_bits) + (uint64_t)i * c->g->l2_entry_bytes;
    const struct finding f = {PROBLEM_L2_COPIED, off, table_guest_off(c, t, i), refcount == 1,
                              e.raw};
    if (!may_write) {
        sink_found(&c->sink, &f, e.raw, refcount);
        return;
    }
    sink_repaired(&c->sink, &f, e.raw, refcount);
    e.raw ^= ENTRY_COPIED;
    l2_entry_store(c->g, table, i, e);
}

static int table_look(struct copied *p, struct l2_table *t, struct qk_error *err)
{
    struct check *c = p->c;
    if (t->flags & (L2_UNREAD | L2_COPIED_DONE))
        return 0;
    t->flags |= L2_COPIED_DONE;
    uint64_t off = t->cluster << c->g->cluster_bits;
    int ret = io_read(c->file, off, p->buf, c->g->cluster_bytes, err);
    if (ret < 0)
        return ret;
    cut_clean(c, t->cluster, p->buf);
    memcpy(p->buf + c->g->cluster_bytes, p->buf, c->g->cluster_bytes);
    /* A cluster with other users that makes a bad table is likely to be no table at all. */
    bool alone = refmap_count(&c->refs, t->cluster) == t->refs;
    bool may_write = p->repair && (alone || !(t->flags & L2_BAD));
    for (uint32_t i = 0; i < c->g->l2_entries; i++)
        entry_look(p, t, i, may_write);
    static const struct step what = {.action = "correct COPIED flags", .structure = "L2 table"};
    const struct table_write w = {off, c->g->cluster_bytes, c->g->l2_entry_bytes, p->buf,
                                  p->buf + c->g->cluster_bytes};
    return write_changed(c, &what, &w, err);
}

/* ---- the active L1 ---- */

static bool l1_entry_look(struct copied *p, uint32_t i)
{
    struct check *c = p->c;
    uint64_t raw = c->l1[i], refcount, cluster = l1_entry_host(raw) >> c->g->cluster_bits;
    if (!flag_wrong(p, raw, cluster, &refcount))
        return false;
    uint64_t off = c->h->l1_off + 8u * (uint64_t)i;
    const struct finding f = {PROBLEM_L1_COPIED, off,
                              (uint64_t)i << (c->g->l2_bits + c->g->cluster_bits), refcount == 1,
                              raw};
    bool alone = refmap_count(&c->refs, off >> c->g->cluster_bits) == 1;
    bool ruin = c->sink.seen[PROBLEM_L1_RUIN] && !(c->opts->allow & QK_ALLOW_L1);
    if (!p->repair || ruin || (!alone && c->l1_bad)) {
        sink_found(&c->sink, &f, (uint64_t)i, raw, refcount);
        return false;
    }
    sink_repaired(&c->sink, &f, (uint64_t)i, raw, refcount);
    c->l1[i] ^= ENTRY_COPIED;
    return true;
}

static int l1_chunk_write(struct check *c, uint32_t first, uint32_t n, struct qk_error *err)
{
    static const struct step what = {.action = "correct COPIED flags", .structure = "L1 table"};
    uint64_t words[L1_CHUNK], old[L1_CHUNK];
    const struct table_write w = {c->h->l1_off + 8u * (uint64_t)first, 8u * (size_t)n, 8, old,
                                  words};
    for (uint32_t i = 0; i < n; i++)
        words[i] = htobe64(c->l1[first + i]);
    int ret = io_read(c->file, w.off, old, w.bytes, err);
    return ret < 0 ? ret : write_changed(c, &what, &w, err);
}

static int l1_chunk_look(struct copied *p, uint32_t first, uint32_t n, struct qk_error *err)
{
    struct check *c = p->c;
    bool dirty = false;
    int ret = 0;
    for (uint32_t i = first; ret == 0 && i < first + n; i++) {
        uint64_t off = l1_entry_host(c->l1[i]);
        if (!off || !is_aligned(off, c->g->cluster_bytes))
            continue;
        dirty |= l1_entry_look(p, i);
        struct l2_table *t = p->tables ? table_find(c, off >> c->g->cluster_bits) : NULL;
        if (t)
            ret = table_look(p, t, err);
    }
    return ret == 0 && dirty ? l1_chunk_write(c, first, n, err) : ret;
}

static bool counts_differ(const struct check *c)
{
    return c->sink.seen[PROBLEM_REFCOUNT_ZERO] || c->sink.seen[PROBLEM_REFCOUNT_LOW] ||
           c->sink.seen[PROBLEM_REFCOUNT_HIGH] || c->sink.seen[PROBLEM_REFCOUNT_OVERFLOW] ||
           c->sink.seen[PROBLEM_REFBLOCK_SHARED] || c->sink.seen[PROBLEM_REFTABLE_OUTSIDE] ||
           c->sink.seen[PROBLEM_REFTABLE_RESERVED] || c->sink.seen[PROBLEM_REFTABLE_UNALIGNED] ||
           c->sink.seen[PROBLEM_REFBLOCK_UNREADABLE] || c->sink.seen[PROBLEM_REFTABLE_PLACE] ||
           c->sink.seen[PROBLEM_REFTABLE_UNREADABLE] || c->sink.seen[PROBLEM_REFTABLE_RANGE] ||
           c->sink.seen[PROBLEM_REFCOUNT_ORDER] || c->sink.seen[PROBLEM_L2_OUTSIDE];
}

/* Only refcounts were wrong, and a new structure has made each of them what its count is: then the
 * marks of the counts say which flags are wrong, as they do where all refcounts were right. What
 * lies in a data file has no marks. */
static bool counts_made_true(const struct check *c)
{
    const unsigned refcounts = ACT_RAISE | ACT_LOWER | ACT_REBUILD;
    if (!c->opts->fix || !(c->actions & ACT_REBUILD) || c->users.len || c->data_file)
        return false;
    for (unsigned id = 0; id < PROBLEM_COUNT; id++) {
        unsigned actions = problems[id].actions;
        if (c->sink.seen[id] && (!actions || (actions & ~refcounts)))
            return false;
    }
    return true;
}

static bool tables_suspect(const struct check *c)
{
    return counts_made_true(c) ? marks_suspect(c) : c->copied_suspect || counts_differ(c);
}

/* Without leave to repair corruptions, flags are repaired only when all refcounts are right. */
static bool may_repair(const struct check *c)
{
    const struct qk_check_result *r = c->result;
    if (c->opts->fix & QK_FIX_ERRORS)
        return true;
    return c->opts->fix && !r->check_errors && !r->corruptions && !r->leaks;
}

static int look_at_all(struct copied *p, struct qk_error *err)
{
    struct check *c = p->c;
    CLEANUP_FREE uint8_t *buf = malloc(2 * (size_t)c->g->cluster_bytes);
    if (!buf)
        return qk_fail_nomem(err);
    p->buf = buf;
    int ret = 0;
    for (uint32_t i = 0; ret == 0 && i < c->l1_entries; i += L1_CHUNK)
        ret = l1_chunk_look(p, i, (uint32_t)min_u64(L1_CHUNK, c->l1_entries - i), err);
    return ret;
}

int copied_run(struct check *c, struct qk_error *err)
{
    struct copied p = {.c = c, .repair = may_repair(c), .tables = tables_suspect(c)};
    int ret = look_at_all(&p, err);
    if (ret == 0 && p.repair &&
        (c->sink.seen[PROBLEM_L1_COPIED] || c->sink.seen[PROBLEM_L2_COPIED]))
        ret = plan_barrier(c, err);
    return ret;
}

int copied_expect(struct check *c, struct qk_error *err)
{
    struct copied p = {.c = c, .repair = true, .tables = true, .expected = true};
    return look_at_all(&p, err);
}
