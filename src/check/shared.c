/*
 * shared.c - who shares: a cluster with more references than the table in it accounts for is named
 * by an entry that cannot mean it. Refcount blocks are judged in refblocks.c. Runs when everything
 * is counted; looks at the places of tables only.
 */
#include "base/checked.h"
#include "check/internal.h"

static void tell(struct check *c, uint64_t cluster, const char *what, uint64_t users)
{
    const struct finding f = {PROBLEM_METADATA_SHARED, cluster << c->g->cluster_bits,
                              QK_OFFSET_NONE, users, refmap_count(&c->refs, cluster)};
    if (f.found <= users)
        return;
    if (c->wanting) {
        users_want(c, cluster, NULL);
        return;
    }
    sink_of_cluster(c, cluster);
    sink_found(&c->sink, &f, cluster, what);
    sink_of_nothing(c);
}

static void tell_range(struct check *c, uint64_t off, uint64_t bytes, const char *what)
{
    struct refmap_span span;
    if (!range_span(c, off, bytes, &span))
        return;
    for (uint64_t i = 0; i < span.count; i++)
        tell(c, span.first + i, what, 1);
}

/* The disk's L1 table is written in place, whatever its refcount, and so the snapshot's. */
static void tell_snapshot_table(struct check *c)
{
    const struct finding f = {PROBLEM_L1_OF_SNAPSHOT, HEADER_L1_OFF, QK_OFFSET_NONE, 0,
                              c->h->l1_off};
    const struct l2_table *t = table_find(c, c->h->l1_off >> c->g->cluster_bits);
    bool theirs = in_snapshot_l1(c, c->h->l1_off) || (t && t->refs > t->active);
    if (!c->rollback && !c->wanting && c->l1_entries && theirs)
        sink_found(&c->sink, &f, c->h->l1_off);
}

void shared_report(struct check *c)
{
    tell_snapshot_table(c);
    tell_range(c, 0, c->g->cluster_bytes, "header");
    tell_range(c, c->h->l1_off, (uint64_t)c->l1_entries * 8, "active L1 table");
    tell_range(c, c->h->reftable_off, c->reftable.len * 8, "refcount table");
    for (size_t i = 0; i < c->tables.len; i++)
        tell(c, c->tables.ptr[i].cluster, "L2 table of a guest range", c->tables.ptr[i].refs);
}
