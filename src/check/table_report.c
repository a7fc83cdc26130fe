/*
 * table_report.c - the second look at an L2 table that the walk has marked: says what is wrong with
 * each entry, and rewrites those that are repaired or given up.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"

#include <string.h>

uint64_t table_guest_off(const struct check *c, const struct l2_table *t, uint32_t index)
{
    if (t->first_l1 == UINT32_MAX)
        return QK_OFFSET_NONE;
    return ((uint64_t)t->first_l1 << (c->g->l2_bits + c->g->cluster_bits)) +
           ((uint64_t)index << c->g->cluster_bits);
}

uint64_t table_place(const struct check *c, const struct l2_table *t, uint32_t index)
{
    if (t->first_l1 != UINT32_MAX || !t->snapshot)
        return table_guest_off(c, t, index);
    const struct l2_table as_active = {.first_l1 = t->snapshot_l1};
    return table_guest_off(c, &as_active, index);
}

/* The two arguments of each L2 problem's line. */
static void problem_args(enum problem_id id, uint32_t index, struct l2_entry e,
                         const struct l2_verdict *v, uint64_t args[2])
{
    args[0] = v->off;
    args[1] = v->bytes;
    switch ((int)id) {
    case PROBLEM_L2_RESERVED:
        args[0] = e.raw;
        break;
    case PROBLEM_L2_COMPRESSED_DATA_FILE:
    case PROBLEM_L2_COMPRESSED_BITMAP:
        args[0] = index;
        args[1] = e.raw;
        break;
    default:
        break;
    }
}

/* An entry that leads nowhere: what reads as zero anyway still does. */
static struct l2_entry given_up(const struct check *c, struct l2_entry e)
{
    bool compressed = e.raw & ENTRY_COMPRESSED;
    if (c->g->l2_entry_bytes == 16)
        return (struct l2_entry){0, compressed ? 0 : e.bitmap & ~(uint64_t)UINT32_MAX};
    return (struct l2_entry){!compressed && c->g->zero_flag ? e.raw & ENTRY_ZERO : 0, 0};
}

/* The new value of an entry with this problem. */
static struct l2_entry edited(const struct check *c, struct l2_entry e, enum problem_id id,
                              const struct l2_verdict *v)
{
    switch ((int)id) {
    case PROBLEM_L2_COMPRESSED_COPIED:
        return (struct l2_entry){e.raw & ~ENTRY_COPIED, e.bitmap};
    case PROBLEM_L2_RESERVED:
        e.raw &= ~(uint64_t)(L2_RESERVED_MASK | (c->h->version < 3 ? ENTRY_ZERO : 0));
        return e;
    case PROBLEM_L2_COMPRESSED_BITMAP:
        return (struct l2_entry){e.raw, 0};
    case PROBLEM_L2_BITMAP_CONTRADICTS: /* what is stored is kept */
        return (struct l2_entry){e.raw, e.bitmap & ~(e.bitmap << 32)};
    case PROBLEM_L2_BITMAP_UNALLOCATED:
        return (struct l2_entry){e.raw, e.bitmap & ~(uint64_t)UINT32_MAX};
    case PROBLEM_L2_DATA_FILE_OFFSET: /* there is only one place where it can be */
        return (struct l2_entry){(e.raw & ~L2_OFFSET_MASK) | v->bytes, e.bitmap};
    default:
        return given_up(c, e);
    }
}

/* Whether the guest loses what the entry named. */
static bool is_loss(const struct check *c, struct l2_entry old, struct l2_entry new)
{
    bool was = (old.raw & ENTRY_COMPRESSED) || l2_entry_host(old).v;
    bool held = c->g->l2_entry_bytes == 16 ? (old.bitmap & UINT32_MAX) != 0
                                           : !(old.raw & ENTRY_ZERO) || !c->g->zero_flag;
    bool elsewhere = c->data_file && l2_entry_host(old).v < c->data_bytes;
    return was && ((old.raw & ENTRY_COMPRESSED) || held) && !(new.raw &ENTRY_COMPRESSED) &&
           !l2_entry_host(new).v && !elsewhere;
}

/* What the entry names cannot be read. */
static bool costs_cluster(enum problem_id id)
{
    return id == PROBLEM_L2_UNALIGNED || id == PROBLEM_L2_OUTSIDE ||
           id == PROBLEM_L2_COMPRESSED_CUT || id == PROBLEM_L2_COMPRESSED_DATA_FILE ||
           id == PROBLEM_L2_DATA_FILE_CUT;
}

#define WILD_ENTRIES 8u /* that many, and most of all, are no single damage any more */

/* Returns whether no program writes such an entry. */
static bool entry_report(struct check *c, const struct l2_table *t, uint32_t index,
                         struct l2_entry e)
{
    bool wild = false;
    struct l2_verdict v;
    uint64_t args[2];
    l2_judge(c, e, table_guest_off(c, t, index), &v);
    uint64_t off = (t->cluster << c->g->cluster_bits) + (uint64_t)index * c->g->l2_entry_bytes;
    for (unsigned i = 0; i < v.problem_count; i++) {
        const struct finding f = {v.problems[i], off, table_place(c, t, index), 0, e.raw};
        problem_args(f.id, index, e, &v, args);
        sink_found(&c->sink, &f, args[0], args[1]);
        c->guest_changes |= t->active && problem_chosen(c->opts, f.id);
        if (f.id == PROBLEM_L2_OUTSIDE || f.id == PROBLEM_L2_COMPRESSED_CUT)
            cut_named(c, f.id, v.off, v.bytes);
        c->cut.torn |= f.id == PROBLEM_L2_COMPRESSED_CUT;
        if (costs_cluster(f.id))
            cost_note(c, (struct lost_run){t->cluster, index, 1, 0});
        wild |= f.id == PROBLEM_L2_RESERVED || f.id == PROBLEM_L2_UNALIGNED;
    }
    return wild;
}

static void table_cut(struct check *c, const struct l2_table *t)
{
    uint64_t off = t->cluster << c->g->cluster_bits;
    uint32_t first = cut_first_lost(c, off, c->g->l2_entry_bytes);
    const struct cut_off_table cut = {PROBLEM_L2_CUT,
                                      off,
                                      c->g->cluster_bytes,
                                      table_place(c, t, first),
                                      c->g->l2_entry_bytes,
                                      t->active != 0,
                                      refmap_count(&c->refs, t->cluster) == t->refs};
    cost_note(c, (struct lost_run){t->cluster, first, c->g->l2_entries - first, 0});
    cut_found(c, &cut);
}

int table_report(struct check *c, struct l2_table *t, struct qk_error *err)
{
    if (!(t->flags & L2_BAD) || (t->flags & L2_REPORTED))
        return 0;
    t->flags |= L2_REPORTED;
    sink_of_snapshot(c, t->active ? 0 : t->snapshot);
    uint64_t off = t->cluster << c->g->cluster_bits;
    CLEANUP_FREE uint8_t *table = malloc(c->g->cluster_bytes);
    if (!table)
        return qk_fail_nomem(err);
    if ((t->flags & L2_UNREAD) || io_read(c->file, off, table, c->g->cluster_bytes, NULL) < 0) {
        const struct finding f = {PROBLEM_L2_UNREADABLE, off, table_place(c, t, 0), 0, 0};
        sink_found(&c->sink, &f, off);
        cost_note(c, (struct lost_run){t->cluster, 0, c->g->l2_entries, 0});
        sink_of_nothing(c);
        return 0;
    }
    cut_clean(c, t->cluster, table);
    uint32_t used = 0, wild = 0;
    for (uint32_t i = 0; i < c->g->l2_entries; i++) {
        struct l2_entry e = l2_entry_load(c->g, table, i);
        if (!(e.raw | e.bitmap))
            continue;
        used++;
        wild += entry_report(c, t, i, e);
    }
    c->wild_table |= wild >= WILD_ENTRIES && wild > used / 2;
    if (cut_table(c, t->cluster))
        table_cut(c, t);
    sink_of_nothing(c);
    return 0;
}

/* What is repaired of an entry is told; `alone`: it can be. Returns how many problems that were. */
static unsigned entry_edit_once(struct check *c, const struct l2_table *t, uint32_t index,
                                struct l2_entry *e, bool alone)
{
    const struct l2_entry old = *e;
    struct l2_verdict v;
    uint64_t args[2];
    unsigned edits = 0;
    l2_judge(c, old, table_guest_off(c, t, index), &v);
    for (unsigned i = 0; i < v.problem_count; i++) {
        if (!(problems[v.problems[i]].actions & ACT_EDIT_L2) ||
            !problem_fixable(c->opts, v.problems[i]))
            continue;
        edits++;
        *e = edited(c, *e, v.problems[i], &v);
        const struct finding f = {v.problems[i],
                                  (t->cluster << c->g->cluster_bits) +
                                      (uint64_t)index * c->g->l2_entry_bytes,
                                  table_place(c, t, index), e->raw, old.raw};
        problem_args(f.id, index, old, &v, args);
        if (alone)
            sink_repaired(&c->sink, &f, args[0], args[1]);
        else
            sink_declined(&c->sink, &f, args[0], args[1]);
    }
    return edits;
}

/* One problem may hide another, which is then seen in the next round. True when the guest loses a
 * cluster by it. */
static bool entry_edit(struct check *c, const struct l2_table *t, uint32_t index, uint8_t *table)
{
    const struct l2_entry old = l2_entry_load(c->g, table, index);
    struct l2_entry e = old;
    /* Something else lies in this cluster too: a write here would change that. */
    bool alone = refmap_count(&c->refs, t->cluster) == t->refs;
    if (!(old.raw | old.bitmap))
        return false;
    for (unsigned round = 0; round < VERDICT_MAX; round++) {
        if (!entry_edit_once(c, t, index, &e, alone) || !alone)
            break;
    }
    if (alone)
        l2_entry_store(c->g, table, index, e);
    return alone && is_loss(c, old, e);
}

/* Entries [first, end), which are all lost or all kept, as one step. */
static int edit_write(struct check *c, const struct l2_table *t, struct table_write w, bool lost,
                      struct qk_error *err)
{
    uint64_t off = t->cluster << c->g->cluster_bits;
    uint32_t first = (uint32_t)((w.off - off) / w.entry_bytes);
    const struct step what = {
        .action = lost ? "clear entries" : "correct entries",
        .structure = "L2 table",
        .lost_off = table_guest_off(c, t, first),
        .lost_bytes = lost ? w.bytes / w.entry_bytes << c->g->cluster_bits : 0,
    };
    return write_changed(c, &what, &w, err);
}

int table_edit(struct check *c, struct l2_table *t, void *buf, struct qk_error *err)
{
    const uint32_t step = c->g->l2_entry_bytes, n = c->g->l2_entries;
    uint8_t *old = buf, *table = old + c->g->cluster_bytes;
    uint64_t off = t->cluster << c->g->cluster_bits;
    int ret = io_read(c->file, off, old, c->g->cluster_bytes, err);
    if (ret < 0)
        return ret;
    cut_clean(c, t->cluster, old);
    memcpy(table, old, c->g->cluster_bytes);
    bool lost = entry_edit(c, t, 0, table);
    for (uint32_t i = 1, first = 0; ret == 0 && first < n; i++) {
        bool next = i < n && entry_edit(c, t, i, table);
        if (i < n && next == lost)
            continue;
        const struct table_write w = {off + (uint64_t)first * step, (size_t)(i - first) * step,
                                      step, old + (size_t)first * step,
                                      table + (size_t)first * step};
        ret = edit_write(c, t, w, lost, err);
        first = i;
        lost = next;
    }
    return ret;
}
