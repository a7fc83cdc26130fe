/*
 * rollback_mark.c - damage that would not last: an entry that names a place behind the end of the
 * file, or a table that is cut off there, looks like zeroes once the file has grown over it. While
 * the disk goes back to a snapshot the file may have to grow like that before the header names the
 * new tables; a power cut in between would leave a disk that lacks data and looks sound. So one
 * entry is made to name a place that no file reaches, first of all. Where the active tables have
 * damage that lasts anyway, nothing is needed. Runs at the end of a look.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"
#include "check/rollback.h"

#define NOWHERE (UINT64_C(1) << 55)

/* No growth of a repair gets there. */
static bool is_far(const struct check *c, uint64_t off)
{
    return off / 4 > c->file_bytes + (UINT64_C(64) << 20);
}

/* Looking for an entry; `lasts`: there is no need to. */
struct mark {
    uint64_t off; /* 0: none was found */
    const char *structure;
    bool lasts;
};

static void mark_at(struct mark *m, uint64_t off, const char *structure)
{
    if (!m->off)
        *m = (struct mark){off, structure, m->lasts};
}

static void judge_problem(const struct check *c, struct mark *m, enum problem_id id, uint64_t named)
{
    bool fleeting =
        id == PROBLEM_L1_OUTSIDE || id == PROBLEM_L2_OUTSIDE || id == PROBLEM_L2_COMPRESSED_CUT;
    m->lasts |= problems[id].repair != QK_REPAIR_SAFE && (!fleeting || is_far(c, named));
}

static void judge_l1(const struct check *c, struct mark *m)
{
    const uint64_t *seen = c->sink.seen, bytes = (uint64_t)c->h->l1_entries * 8;
    m->lasts |= seen[PROBLEM_L1_TABLE_MISPLACED] || seen[PROBLEM_L1_TABLE_LOST] || !c->h->l1_off ||
                (seen[PROBLEM_L1_UNREADABLE] && !c->l1_entries) || is_far(c, c->h->l1_off);
    for (uint32_t i = 0; i < c->l1_entries && !m->lasts; i++) {
        struct l1_verdict v = l1_judge(c, c->l1[i]);
        for (unsigned p = 0; p < v.problem_count; p++) {
            judge_problem(c, m, v.problems[p], l1_entry_host(c->l1[i]));
            if (v.problems[p] == PROBLEM_L1_OUTSIDE)
                mark_at(m, c->h->l1_off + 8 * (uint64_t)i, "L1 table");
        }
    }
    if (!m->lasts && !range_within(c->h->l1_off, bytes, c->file_bytes))
        mark_at(m, c->h->l1_off + 8 * (uint64_t)c->l1_entries, "L1 table");
}

static void judge_table(struct check *c, struct mark *m, const struct l2_table *t, uint8_t *table)
{
    uint64_t off = t->cluster << c->g->cluster_bits;
    const uint32_t step = c->g->l2_entry_bytes;
    if (cut_table(c, t->cluster))
        mark_at(m, off + (uint64_t)cut_first_lost(c, off, step) * step, "L2 table");
    m->lasts |= (t->flags & L2_UNREAD) != 0;
    if (!(t->flags & L2_HURT) || m->lasts ||
        io_read(c->file, off, table, c->g->cluster_bytes, NULL) < 0)
        return;
    for (uint32_t i = 0; i < c->g->l2_entries; i++) {
        struct l2_verdict v;
        l2_judge(c, l2_entry_load(c->g, table, i), table_guest_off(c, t, i), &v);
        for (unsigned p = 0; p < v.problem_count; p++) {
            judge_problem(c, m, v.problems[p], v.off);
            if (v.problems[p] == PROBLEM_L2_OUTSIDE || v.problems[p] == PROBLEM_L2_COMPRESSED_CUT)
                mark_at(m, off + (uint64_t)i * step, "L2 table");
        }
    }
}

int rollback_find_mark(struct check *c, struct qk_error *err)
{
    struct mark m = {0};
    CLEANUP_FREE uint8_t *table = malloc(c->g->cluster_bytes);
    if (!table)
        return qk_fail_nomem(err);
    judge_l1(c, &m);
    for (size_t i = 0; i < c->tables.len && !m.lasts; i++) {
        if (c->tables.ptr[i].active)
            judge_table(c, &m, &c->tables.ptr[i], table);
    }
    for (unsigned i = 0; i < c->way_back.count && !m.lasts; i++) {
        c->way_back.candidates[i].mark_off = m.off;
        c->way_back.candidates[i].mark_structure = m.structure;
    }
    return 0;
}

int rollback_write_mark(struct check *c, struct qk_error *err)
{
    const struct rollback *r = c->rollback;
    const struct step what = {.action = "keep damage from looking sound",
                              .structure = r->mark_structure};
    uint8_t entry[8];
    const struct plan_bytes w = {r->mark_off, entry, sizeof(entry)};
    store_be64(entry, NOWHERE);
    if (!r->mark_off)
        return 0;
    int ret = plan_write(c, &what, &w, err);
    return ret < 0 ? ret : plan_barrier(c, err);
}
