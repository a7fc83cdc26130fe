/*
 * expand_zero.c - see expand_zero.h. Tables are rewritten in place, some at a time: new clusters
 * and their refcounts are stable before an entry names them, and what entries no longer name is
 * freed when the tables are stable (INV-1, INV-2). A torn write does no harm, since each entry
 * reads the same before and after. Memory: the tables of a batch (BATCH_BYTES), and 16 bytes for
 * each table.
 */
#include "image/expand_zero.h"

#include "image/l2_walk.h"

#define BATCH_BYTES (4u << 20) /* at least a cluster */

struct changed_table {
    uint64_t off;
    uint8_t *bytes; /* owned */
};
DEFINE_VECTOR(changed_table_vec, struct changed_table)

struct expansion {
    struct image *img;
    bool backing; /* what is unallocated would show it */
    struct changed_table_vec tables;
    struct cluster_run_vec lost; /* references that go with the tables of the batch */
    bool filled;                 /* new clusters, or zeroes in old ones, in this batch */
    const struct qk_progress *progress;
    uint64_t done, total; /* tables */
};

/* ---- one entry ---- */

static int lose(struct expansion *x, uint64_t host, uint32_t uses, struct qk_error *err)
{
    struct cluster_run run = {image_cluster_of(x->img, host), 1, false};
    for (uint32_t i = 0; host && i < uses; i++)
        if (cluster_run_vec_append(&x->lost, run) < 0)
            return qk_fail_nomem(err);
    return 0;
}

/* A new cluster full of zeroes with one reference for each use of the table. */
static int new_cluster(struct expansion *x, uint32_t uses, uint64_t *host, struct qk_error *err)
{
    struct image *img = x->img;
    struct cluster_run run;
    pthread_mutex_lock(&img->alloc_lock);
    int ret = alloc_exact(img, 1, &run, err);
    for (uint32_t i = 1; i < uses && ret == 0; i++) {
        ret = refcount_add(img, run, 1, err);
        if (ret < 0)
            while (i--)
                refcount_add(img, run, -1, NULL);
        if (ret < 0)
            alloc_unreserve(img, run);
    }
    pthread_mutex_unlock(&img->alloc_lock);
    if (ret < 0)
        return ret;
    *host = run.first << img->g.cluster_bits;
    ret = overlap_check(img, 0, *host, img->g.cluster_bytes, err);
    if (ret == 0 && !run.fresh)
        ret = io_zero_or_write(img->file, *host, img->g.cluster_bytes, 0, err);
    image_note_unsynced(img);
    x->filled = true;
    return ret;
}

/* The cluster that is reserved already, where nothing but this table refers to it. */
static int fill_reserved(struct expansion *x, uint64_t host, uint32_t uses, bool *filled,
                         struct qk_error *err)
{
    struct image *img = x->img;
    uint64_t refcount;
    pthread_mutex_lock(&img->alloc_lock);
    int ret = refcount_get(img, image_cluster_of(img, host), &refcount, err);
    pthread_mutex_unlock(&img->alloc_lock);
    *filled = ret == 0 && refcount == uses;
    if (!*filled)
        return ret;
    ret = overlap_check(img, 0, host, img->g.cluster_bytes, err);
    if (ret == 0)
        ret = io_zero_or_write(img->file, host, img->g.cluster_bytes, 0, err);
    image_note_unsynced(img);
    x->filled = true;
    return ret;
}

static int expand_entry(struct expansion *x, const struct l2_table *t, struct l2_entry *e,
                        struct qk_error *err)
{
    uint64_t host = l2_entry_host(*e).v, new_host = 0;
    bool kept = false;
    int ret = 0;
    if (x->backing && host)
        ret = fill_reserved(x, host, t->uses, &kept, err);
    if (kept || ret < 0) {
        e->raw &= ~ENTRY_ZERO;
        return ret;
    }
    if (x->backing)
        ret = new_cluster(x, t->uses, &new_host, err);
    if (ret == 0)
        ret = lose(x, host, t->uses, err);
    e->raw = new_host ? new_host | (t->uses == 1 ? ENTRY_COPIED : 0) : 0;
    return ret;
}

/* ---- tables ---- */

static int keep_table(struct expansion *x, uint64_t off, const uint8_t *bytes, struct qk_error *err)
{
    size_t len = x->img->g.cluster_bytes;
    struct changed_table t = {off, aligned_alloc(4096, round_up(len, 4096))};
    if (!t.bytes || changed_table_vec_append(&x->tables, t) < 0) {
        free(t.bytes);
        return qk_fail_nomem(err);
    }
    memcpy(t.bytes, bytes, len);
    return 0;
}

static int write_tables(struct expansion *x, struct qk_error *err)
{
    struct image *img = x->img;
    int ret = 0;
    for (size_t i = 0; i < x->tables.len && ret == 0; i++) {
        const struct changed_table *t = &x->tables.ptr[i];
        ret = overlap_check(img, OVERLAP_ACTIVE_L2 | OVERLAP_INACTIVE_L2, t->off,
                            img->g.cluster_bytes, err);
        cache_forget(&img->l2, t->off, img->g.cluster_bytes);
        io_event(img->file, "l2_update");
        if (ret == 0)
            ret = io_write(img->file, t->off, t->bytes, img->g.cluster_bytes, 0, err);
        image_note_unsynced(img);
    }
    return ret < 0 ? ret : io_flush(img->file, err);
}

static void drop_batch(struct expansion *x)
{
    for (size_t i = 0; i < x->tables.len; i++)
        free(x->tables.ptr[i].bytes);
    x->tables.len = 0;
    x->lost.len = 0;
    x->filled = false;
}

static int finish_batch(struct expansion *x, struct qk_error *err)
{
    int ret = x->filled ? image_writeback(x->img, true, err) : 0;
    if (ret == 0)
        ret = write_tables(x, err);
    if (ret == 0)
        ret = free_release(x->img, &x->lost, err);
    drop_batch(x);
    return ret;
}

static int expand_table(void *opaque, const struct l2_table *t, uint8_t *bytes,
                        struct qk_error *err)
{
    struct expansion *x = opaque;
    const struct geometry *g = &x->img->g;
    bool dirty = false;
    int ret = 0;
    for (uint32_t i = 0; i < g->l2_entries && ret == 0; i++) {
        struct l2_entry e = l2_entry_load(g, bytes, i);
        enum cluster_kind kind = l2_entry_kind(g, e, 0);
        if (kind != CLUSTER_ZERO_PLAIN && kind != CLUSTER_ZERO_ALLOC)
            continue;
        ret = expand_entry(x, t, &e, err);
        l2_entry_store(g, bytes, i, e);
        dirty = true;
    }
    if (ret == 0 && dirty)
        ret = keep_table(x, t->off, bytes, err);
    if (ret == 0 && x->tables.len * g->cluster_bytes >= BATCH_BYTES)
        ret = finish_batch(x, err);
    x->done++;
    if (ret == 0 && x->progress && x->progress->report &&
        x->progress->report(x->progress->opaque, x->done, x->total))
        ret = qk_fail(err, -ECANCELED, "canceled");
    return ret;
}

int expand_zero(struct image *img, const struct qk_progress *progress, struct qk_error *err)
{
    struct l2_table_vec tables = {0};
    struct expansion x = {.img = img, .backing = img->backing || img->backing_name};
    x.progress = progress;
    int ret = image_writeback(img, true, err);
    if (ret == 0)
        ret = l2_tables_all(img, &tables, err);
    x.total = tables.len;
    if (ret == 0)
        ret = l2_tables_visit(img, &tables, expand_table, &x, err);
    if (ret == 0)
        ret = finish_batch(&x, err);
    if (ret == 0)
        ret = image_writeback(img, true, err);
    drop_batch(&x);
    changed_table_vec_free(&x.tables);
    cluster_run_vec_free(&x.lost);
    l2_table_vec_free(&tables);
    return ret;
}
