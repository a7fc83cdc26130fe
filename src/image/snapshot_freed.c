/*
 * snapshot_freed.c - what deleting a snapshot would free: the clusters of which all references come
 * from it. Relies on refcounts: below an L2 table that another L1 names, too, every cluster has
 * more references, so only tables with no others are read. Compressed clusters share their host
 * clusters: those are counted. Memory: 8 bytes for each reference of that kind.
 */
#include "image/l2_walk.h"
#include "image/snapshots.h"

DEFINE_VECTOR(u64_vec, uint64_t)

struct tally {
    struct image *img;
    struct u64_vec shared; /* clusters with several references, once for each that we have seen */
    uint64_t freed;        /* clusters */
};

static int tally_cluster(struct tally *t, uint64_t cluster, struct qk_error *err)
{
    uint64_t value;
    pthread_mutex_lock(&t->img->alloc_lock);
    int ret = refcount_get(t->img, cluster, &value, err);
    pthread_mutex_unlock(&t->img->alloc_lock);
    if (ret == 0 && value == 1)
        t->freed++;
    else if (ret == 0 && u64_vec_append(&t->shared, cluster) < 0)
        return qk_fail_nomem(err);
    return ret;
}

static int tally_run(void *opaque, struct cluster_run run, struct qk_error *err)
{
    int ret = 0;
    for (uint64_t i = 0; i < run.count && ret == 0; i++)
        ret = tally_cluster(opaque, run.first + i, err);
    return ret;
}

static int tally_table(void *opaque, const struct l2_table *table, uint8_t *bytes,
                       struct qk_error *err)
{
    struct tally *t = opaque;
    return l2_table_runs(t->img, table, bytes, tally_run, t, err);
}

/* Drops the tables that others name. */
static int own_tables(struct image *img, struct l2_table_vec *v, struct qk_error *err)
{
    size_t n = 0;
    LOCK_SCOPE(&img->alloc_lock);
    for (size_t i = 0; i < v->len; i++) {
        uint64_t value;
        int ret = refcount_get(img, image_cluster_of(img, v->ptr[i].off), &value, err);
        if (ret < 0)
            return ret;
        if (value <= v->ptr[i].uses)
            v->ptr[n++] = v->ptr[i];
    }
    v->len = n;
    return 0;
}

static int by_value(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

/* Clusters that we refer to as often as anybody does. */
static int count_shared(struct tally *t, struct qk_error *err)
{
    struct u64_vec *v = &t->shared;
    if (v->len)
        qsort(v->ptr, v->len, sizeof(*v->ptr), by_value);
    LOCK_SCOPE(&t->img->alloc_lock);
    for (size_t i = 0, n; i < v->len; i += n) {
        uint64_t value;
        for (n = 1; i + n < v->len && v->ptr[i + n] == v->ptr[i];)
            n++;
        int ret = refcount_get(t->img, v->ptr[i], &value, err);
        if (ret < 0)
            return ret;
        t->freed += value == n;
    }
    return 0;
}

static int tally_snapshot(struct tally *t, const struct snapshot *s, const uint64_t *l1,
                          struct qk_error *err)
{
    struct image *img = t->img;
    struct l2_table_vec tables = {0};
    int ret = l2_tables_of(img, l1, s->fixed.l1_entries, &tables, err);
    if (ret == 0)
        ret = own_tables(img, &tables, err);
    t->freed = tables.len + div_round_up(s->fixed.l1_entries * UINT64_C(8), img->g.cluster_bytes);
    if (ret == 0)
        ret = l2_tables_visit(img, &tables, tally_table, t, err);
    if (ret == 0)
        ret = count_shared(t, err);
    l2_table_vec_free(&tables);
    return ret;
}

int image_snapshot_freed(struct image *img, const struct snapshot *s, uint64_t *bytes,
                         struct qk_error *err)
{
    CLEANUP_FREE uint64_t *l1 = NULL;
    struct tally t = {.img = img};
    struct range_hold hold;
    image_drain(img, &hold);
    int ret = img->reftable.entries ? 0 : reftable_load(img, err);
    if (ret == 0 && img->opts.writable)
        ret = image_writeback(img, true, err);
    if (ret == 0)
        ret = snapshot_read_l1(img, s, 0, &l1, err);
    if (ret == 0)
        ret = tally_snapshot(&t, s, l1, err);
    range_release(&img->ranges, &hold);
    u64_vec_free(&t.shared);
    *bytes = t.freed << img->g.cluster_bits;
    return ret;
}
