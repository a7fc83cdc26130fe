/*
 * twice.c - L2 tables of an image with an external data file that several active L1 entries name.
 * There each cluster is at its guest offset, so the entries of a table say which range of the disk
 * they are of: one L1 entry is right, and the others are damaged. (Without a data file nothing
 * tells; a table without clusters fits anywhere.)
 *
 * Runs before the walk, which judges entries by their place on the disk; reads such tables only.
 * Where the others are given up they are not counted as users of the table.
 */
#include "base/cleanup.h"
#include "check/internal.h"

/* The L1 entry that a table with this cluster as entry `index` is of. False: it fits none. */
static bool l1_index_of(const struct check *c, uint64_t off, uint32_t index, uint64_t *l1_index)
{
    uint64_t cluster = off >> c->g->cluster_bits;
    *l1_index = cluster >> c->g->l2_bits;
    return *l1_index < c->l1_entries && (cluster & (c->g->l2_entries - 1)) == index;
}

static bool names(const struct check *c, uint64_t l1_index, const struct l2_table *t)
{
    return l1_entry_host(c->l1[l1_index]) == t->cluster << c->g->cluster_bits;
}

/* Finds the entry that t is of by the first of its clusters that tells. */
static void place_table(struct check *c, struct l2_table *t, const uint8_t *bytes)
{
    for (uint32_t i = 0; i < c->g->l2_entries; i++) {
        uint64_t l1_index;
        struct l2_verdict v;
        l2_judge(c, l2_entry_load(c->g, bytes, i), QK_OFFSET_NONE, &v);
        if (!v.allocated)
            continue;
        t->flags |= L2_ONE_PLACE;
        if (l1_index_of(c, v.off, i, &l1_index) && names(c, l1_index, t)) {
            t->first_l1 = (uint32_t)l1_index;
            return;
        }
    }
}

int twice_named(struct check *c, struct qk_error *err)
{
    CLEANUP_FREE uint8_t *buf = NULL;
    for (size_t i = 0; c->data_file && i < c->tables.len; i++) {
        struct l2_table *t = &c->tables.ptr[i];
        if (t->active < 2)
            continue;
        if (!buf && !(buf = malloc(c->g->cluster_bytes)))
            return qk_fail_nomem(err);
        if (io_read(c->file, t->cluster << c->g->cluster_bits, buf, c->g->cluster_bytes, NULL) < 0)
            continue;
        cut_clean(c, t->cluster, buf);
        place_table(c, t, buf);
        if (!(t->flags & L2_ONE_PLACE))
            continue;
        c->l1_bad = true;
        if (problem_fixable(c->opts, PROBLEM_L1_TABLE_TWICE)) {
            t->refs -= t->active - 1;
            t->active = 1;
        }
    }
    return 0;
}
