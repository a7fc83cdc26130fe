/*
 * shrink.c - making the disk smaller. One write of the header's first sector takes the end of the
 * disk and the L1 entries behind it away; then the references that went with them are dropped,
 * whole tables at a time (doc/design/resize-amend.md has the argument for this order). Relies on
 * the whole disk being held. Memory: 16 bytes for each table that goes, 2 MiB to read them, and
 * DROP_RUNS_MAX runs of clusters.
 */
#include "image/l2_walk.h"

#define DROP_RUNS_MAX (64u << 10) /* runs between two releases; one table's runs come on top */

/* ---- whole tables ---- */

struct drop {
    struct image *img;
    struct cluster_run_vec runs;
    uint32_t uses; /* of the table that is being visited */
};

static int by_first(const void *a, const void *b)
{
    const struct cluster_run *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

/* In the order of the file, so that each refcount slice is changed once. */
static int release(struct drop *d, struct qk_error *err)
{
    struct cluster_run_vec *v = &d->runs;
    if (v->len)
        qsort(v->ptr, v->len, sizeof(*v->ptr), by_first);
    int ret = free_release(d->img, v, err);
    v->len = 0;
    return ret < 0 ? ret : image_throttle(d->img, err);
}

static int drop_run(void *opaque, struct cluster_run run, struct qk_error *err)
{
    struct drop *d = opaque;
    for (uint32_t i = 0; i < d->uses; i++)
        if (cluster_run_vec_append(&d->runs, run) < 0)
            return qk_fail_nomem(err);
    return 0;
}

static int drop_table(void *opaque, const struct l2_table *table, uint8_t *bytes,
                      struct qk_error *err)
{
    struct drop *d = opaque;
    struct image *img = d->img;
    struct cluster_run self = {image_cluster_of(img, table->off), 1, false};
    d->uses = table->uses;
    int ret = l2_table_runs(img, table, bytes, drop_run, d, err);
    if (ret == 0)
        ret = drop_run(d, self, err);
    overlap_forget(img, self);
    cache_forget(&img->l2, table->off, img->g.cluster_bytes);
    return ret == 0 && d->runs.len > DROP_RUNS_MAX ? release(d, err) : ret;
}

int l2_tables_drop(struct image *img, const struct l2_table_vec *tables, struct qk_error *err)
{
    struct drop d = {.img = img};
    io_event(img->file, "l1_shrink_free_l2_clusters");
    int ret = l2_tables_visit(img, tables, drop_table, &d, err);
    int last = release(&d, ret == 0 ? err : NULL);
    cluster_run_vec_free(&d.runs);
    return ret < 0 ? ret : last;
}

/* ---- the last table and the last cluster that stay ---- */

static bool clear_entry(void *opaque, uint64_t index, struct l2_entry old, struct l2_entry *entry)
{
    (void)opaque;
    (void)index;
    *entry = (struct l2_entry){0};
    return old.raw || old.bitmap;
}

/* Entries behind the disk's end, in the table that maps its last cluster. */
static int cut_last_table(struct image *img, uint64_t size, struct qk_error *err)
{
    const uint64_t cluster = img->g.cluster_bytes;
    uint64_t off = round_up(size, cluster), end = round_up(size, cluster << img->g.l2_bits);
    int ret = 0;
    while (off < end && ret == 0) {
        struct map_extent ext;
        ret = image_map(img, guest_off(off), end - off, &ext, err);
        uint64_t n = ret == 0 ? div_round_up(ext.len, cluster) : 0;
        /* A table that is all empty stays shared with its snapshots. */
        if (ret == 0 && ext.kind != CLUSTER_UNALLOCATED)
            ret = l2_change(img, guest_off(off), n, clear_entry, NULL, err);
        off += n * cluster;
    }
    return ret;
}

/* Only where the cluster is ours alone: with the disk's new size everything is done already, so
 * nothing should now fail for want of space. Growing zeroes these bytes in any case. */
static int zero_last_cluster(struct image *img, uint64_t size, struct qk_error *err)
{
    struct map_extent ext;
    uint64_t end = round_up(size, img->g.cluster_bytes);
    if (end == size || img->g.data_file)
        return 0;
    int ret = image_map(img, guest_off(size), end - size, &ext, err);
    if (ret < 0 || ext.kind != CLUSTER_NORMAL || !ext.copied)
        return ret;
    return image_zero_behind(img, size, size + ext.len, err);
}

/* ---- the disk ---- */

static int cut(struct image *img, uint64_t size, const struct l2_table_vec *tables,
               struct qk_error *err)
{
    int ret = cut_last_table(img, size, err);
    if (ret == 0)
        ret = l2_tables_drop(img, tables, err);
    if (ret == 0)
        ret = zero_last_cluster(img, size, err);
    return ret < 0 ? ret : image_writeback(img, false, err);
}

static int shrink_l1(struct image *img, uint64_t size, uint32_t keep, struct qk_error *err)
{
    uint64_t before = l1_clusters(img, img->l1_count), after = l1_clusters(img, keep);
    io_event(img->file, "l1_shrink_write_table");
    int ret = header_set_l1(img, img->h.l1_off, keep, size, err);
    if (ret < 0)
        return ret;
    memset(img->l1 + keep, 0, (img->l1_count - keep) * sizeof(*img->l1));
    img->l1_count = keep;
    struct cluster_run tail = {image_cluster_of(img, img->h.l1_off) + after, before - after, false};
    return tail.count ? free_queue(img, tail, err) : 0;
}

int image_shrink_held(struct image *img, uint64_t size, struct qk_error *err)
{
    struct l2_table_vec tables = {0};
    uint64_t needed = geometry_l1_entries(&img->g, size);
    uint32_t keep = (uint32_t)min_u64(needed, img->l1_count);
    int ret = image_begin_writing(img, err);
    if (ret == 0)
        ret = image_writeback(img, true, err);
    /* Damage that shows in L1 ends this before anything changes. */
    if (ret == 0)
        ret = l2_tables_of(img, img->l1 + keep, img->l1_count - keep, &tables, err);
    if (ret == 0)
        ret = shrink_l1(img, size, keep, err);
    /* Before anything else can fail: a raw data file's bytes would be the disk's once it grows. */
    if (ret == 0)
        ret = data_shrink(img, size, err);
    if (ret == 0)
        ret = cut(img, size, &tables, err);
    l2_table_vec_free(&tables);
    return ret;
}
