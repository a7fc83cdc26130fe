/*
 * table_report.c - the second look at an L2 table that the walk has marked: says what is wrong with
 * each entry, and rewrites those entries whose repair needs no decision.
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

/* The new value of an entry with this problem. */
static struct l2_entry edited(const struct check *c, struct l2_entry e, enum problem_id id)
{
    if (id == PROBLEM_L2_COMPRESSED_COPIED) {
        e.raw &= ~ENTRY_COPIED;
        return e;
    }
    if (c->g->l2_entry_bytes == 16)
        return (struct l2_entry){0, e.bitmap & ~(uint64_t)UINT32_MAX};
    return (struct l2_entry){ENTRY_ZERO, 0};
}

static void entry_report(struct check *c, const struct l2_table *t, uint32_t index,
                         struct l2_entry e)
{
    struct l2_verdict v;
    uint64_t args[2];
    l2_judge(c, e, table_guest_off(c, t, index), &v);
    uint64_t off = (t->cluster << c->g->cluster_bits) + (uint64_t)index * c->g->l2_entry_bytes;
    for (unsigned i = 0; i < v.problem_count; i++) {
        const struct finding f = {v.problems[i], off, table_guest_off(c, t, index), 0, e.raw};
        problem_args(f.id, index, e, &v, args);
        sink_found(&c->sink, &f, args[0], args[1]);
    }
}

int table_report(struct check *c, struct l2_table *t, struct qk_error *err)
{
    if (!(t->flags & L2_BAD) || (t->flags & L2_REPORTED))
        return 0;
    t->flags |= L2_REPORTED;
    uint64_t off = t->cluster << c->g->cluster_bits;
    CLEANUP_FREE uint8_t *table = malloc(c->g->cluster_bytes);
    if (!table)
        return qk_fail_nomem(err);
    if ((t->flags & L2_UNREAD) || io_read(c->file, off, table, c->g->cluster_bytes, NULL) < 0) {
        const struct finding f = {PROBLEM_L2_UNREADABLE, off, table_guest_off(c, t, 0), 0, 0};
        sink_found(&c->sink, &f, off);
        return 0;
    }
    for (uint32_t i = 0; i < c->g->l2_entries; i++) {
        struct l2_entry e = l2_entry_load(c->g, table, i);
        if (e.raw | e.bitmap)
            entry_report(c, t, i, e);
    }
    return 0;
}

static void entry_edit(struct check *c, const struct l2_table *t, uint32_t index, uint8_t *table)
{
    struct l2_entry e = l2_entry_load(c->g, table, index);
    struct l2_verdict v;
    l2_judge(c, e, table_guest_off(c, t, index), &v);
    for (unsigned i = 0; i < v.problem_count; i++) {
        if (!(problems[v.problems[i]].actions & ACT_EDIT_L2))
            continue;
        e = edited(c, e, v.problems[i]);
        const struct finding f = {
            v.problems[i],
            (t->cluster << c->g->cluster_bits) + (uint64_t)index * c->g->l2_entry_bytes,
            table_guest_off(c, t, index), e.raw, l2_entry_load(c->g, table, index).raw};
        /* Something else lies in this cluster too: a write here would change that. */
        if (refmap_count(&c->refs, t->cluster) != t->refs) {
            sink_declined(&c->sink, &f, v.off);
            continue;
        }
        sink_repaired(&c->sink, &f, v.off);
        l2_entry_store(c->g, table, index, e);
    }
}

int table_edit(struct check *c, struct l2_table *t, void *buf, struct qk_error *err)
{
    uint8_t *old = buf, *table = old + c->g->cluster_bytes;
    uint64_t off = t->cluster << c->g->cluster_bits;
    int ret = io_read(c->file, off, old, c->g->cluster_bytes, err);
    if (ret < 0)
        return ret;
    memcpy(table, old, c->g->cluster_bytes);
    for (uint32_t i = 0; i < c->g->l2_entries; i++)
        entry_edit(c, t, i, table);
    static const struct step what = {.action = "correct entries", .structure = "L2 table"};
    const struct table_write w = {off, c->g->cluster_bytes, c->g->l2_entry_bytes, old, table};
    return write_changed(c, &what, &w, err);
}
