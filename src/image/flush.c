/*
 * flush.c - the writeback: all dirty metadata reaches the file in the order of
 * doc/design/ordering.md (INV-1 to INV-3). One runs at a time; flushes that arrive meanwhile share
 * the next one.
 */
#include "image/image_int.h"

#include "base/bytes.h"

#define SECTOR_ENTRIES 64u /* L1 or refcount table entries in 512 bytes */

/* A write of up to a whole table, copied when collected. */
struct table_write {
    uint64_t off;
    uint8_t *data;
    size_t len;
};
DEFINE_VECTOR(table_write_vec, struct table_write)

struct writeback {
    struct cluster_run_vec frees;
    struct table_write_vec l1;
    struct table_write_vec reftable; /* entries in place, by sector */
    struct table_write new_table;    /* data NULL: the table has not moved */
    struct cache_batch l2, refcounts;
    bool has_refcounts;
};

/* ---- collect ---- */

static int copy_entries(struct table_write_vec *out, uint64_t table_off, const uint64_t *entries,
                        uint64_t first, uint64_t count)
{
    struct table_write w = {.off = table_off + first * 8, .len = count * 8};
    w.data = aligned_alloc(512, round_up(w.len, 512));
    if (!w.data || table_write_vec_append(out, w) < 0) {
        free(w.data);
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < count; i++)
        store_be64(w.data + i * 8, __atomic_load_n(&entries[first + i], __ATOMIC_RELAXED));
    return 0;
}

/* Runs of dirty sectors become one write each. alloc_lock held. */
static int collect_l1(struct image *img, struct writeback *wb)
{
    uint32_t sectors = (img->l1_count + SECTOR_ENTRIES - 1) / SECTOR_ENTRIES;
    if (!img->l1_any_dirty)
        return 0;
    for (uint32_t i = 0; i < sectors; i++) {
        uint32_t n = 0;
        while (i + n < sectors && img->l1_dirty[(i + n) / 64] >> ((i + n) % 64) & 1)
            n++;
        if (n && copy_entries(&wb->l1, img->h.l1_off, img->l1, (uint64_t)i * SECTOR_ENTRIES,
                              (uint64_t)n * SECTOR_ENTRIES) < 0)
            return -ENOMEM;
        i += n;
    }
    memset(img->l1_dirty, 0, div_round_up(sectors, 64) * sizeof(uint64_t));
    img->l1_any_dirty = false;
    return 0;
}

static int by_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* alloc_lock held */
static int collect_reftable(struct image *img, struct writeback *wb)
{
    struct reftable *t = &img->reftable;
    struct table_write_vec whole = {0};
    int ret = 0;
    if (t->moved) {
        ret = copy_entries(&whole, t->off, t->entries, 0, t->count);
        if (ret == 0)
            wb->new_table = whole.ptr[0];
        table_write_vec_free(&whole);
    } else if (t->dirty.len) {
        qsort(t->dirty.ptr, t->dirty.len, sizeof(*t->dirty.ptr), by_u32);
        uint64_t next = 0;
        for (size_t i = 0; i < t->dirty.len && ret == 0; i++) {
            uint64_t sector = t->dirty.ptr[i] / SECTOR_ENTRIES;
            if (sector < next)
                continue;
            next = sector + 1;
            ret = copy_entries(&wb->reftable, t->off, t->entries, sector * SECTOR_ENTRIES,
                               SECTOR_ENTRIES);
        }
    }
    if (ret == 0) {
        t->moved = false;
        t->dirty.len = 0;
    }
    return ret;
}

static int collect_refcounts(struct image *img, struct writeback *wb, struct qk_error *err)
{
    LOCK_SCOPE(&img->alloc_lock);
    int ret = cache_collect(&img->refcounts, &wb->refcounts, err);
    if (ret < 0)
        return ret;
    wb->has_refcounts = true;
    return collect_reftable(img, wb) < 0 ? qk_fail_nomem(err) : 0;
}

/* The order matters: see ordering.md. */
static int collect(struct image *img, struct writeback *wb, bool with_refcounts,
                   struct qk_error *err)
{
    pthread_mutex_lock(&img->alloc_lock);
    wb->frees = img->queued_frees;
    img->queued_frees = (struct cluster_run_vec){0};
    /* The old table is among the frees: it may go only when the header names the new one. */
    with_refcounts |= img->reftable.moved;
    int ret = collect_l1(img, wb);
    pthread_mutex_unlock(&img->alloc_lock);
    if (ret < 0)
        return qk_fail_nomem(err);
    ret = cache_collect(&img->l2, &wb->l2, err);
    if (ret == 0 && with_refcounts)
        ret = collect_refcounts(img, wb, err);
    return ret;
}

/* ---- after it: give back what did not become stable ---- */

static void redirty_l1(struct image *img, const struct writeback *wb)
{
    for (size_t i = 0; i < wb->l1.len; i++) {
        uint64_t first = (wb->l1.ptr[i].off - img->h.l1_off) / 512;
        for (uint64_t s = first; s < first + wb->l1.ptr[i].len / 512; s++)
            img->l1_dirty[s / 64] |= UINT64_C(1) << (s % 64);
    }
    img->l1_any_dirty |= wb->l1.len > 0;
}

static void redirty_reftable(struct image *img, const struct writeback *wb)
{
    struct reftable *t = &img->reftable;
    t->moved |= wb->new_table.data != NULL;
    for (size_t i = 0; i < wb->reftable.len && !t->moved; i++)
        /* Without memory for the list the whole table is written again, where it is. */
        if (u32_vec_append(&t->dirty, (uint32_t)((wb->reftable.ptr[i].off - t->off) / 8)) < 0)
            t->moved = true;
}

static void requeue_frees(struct image *img, struct writeback *wb)
{
    struct cluster_run_vec *newer = &img->queued_frees;
    for (size_t i = 0; i < newer->len; i++)
        cluster_run_vec_append(&wb->frees, newer->ptr[i]); /* at worst a leak */
    cluster_run_vec_free(newer);
    *newer = wb->frees;
    wb->frees = (struct cluster_run_vec){0};
}

static void table_writes_free(struct table_write_vec *v)
{
    for (size_t i = 0; i < v->len; i++)
        free(v->ptr[i].data);
    table_write_vec_free(v);
}

static void finish(struct image *img, struct writeback *wb, bool failed)
{
    if (failed) {
        LOCK_SCOPE(&img->alloc_lock);
        redirty_l1(img, wb);
        redirty_reftable(img, wb);
        requeue_frees(img, wb);
        image_note_unsynced(img);
    }
    if (wb->l2.cache)
        cache_batch_done(&wb->l2, failed);
    if (wb->refcounts.cache)
        cache_batch_done(&wb->refcounts, failed);
    table_writes_free(&wb->l1);
    table_writes_free(&wb->reftable);
    free(wb->new_table.data);
}

/* ---- the stages ---- */

/* Both stores: nothing in the image file may name bytes that the data file could still lose. */
static int barrier(struct image *img, struct qk_error *err)
{
    int synced = data_sync(img, err);
    if (synced < 0)
        return synced;
    if (!__atomic_exchange_n(&img->unsynced, false, __ATOMIC_ACQ_REL))
        return 0;
    io_event(img->file, "flush_to_disk");
    int ret = io_flush(img->file, err);
    if (ret < 0)
        image_note_unsynced(img);
    return ret;
}

struct own_check {
    struct image *img;
    unsigned own;
};

static int check_own(void *opaque, uint64_t off, uint64_t len, struct qk_error *err)
{
    const struct own_check *c = opaque;
    return overlap_check(c->img, c->own, off, len, err);
}

static int write_slices(struct image *img, struct cache_batch *batch, unsigned own,
                        const char *event, struct qk_error *err)
{
    if (!batch->copies.len)
        return 0;
    struct own_check c = {img, own};
    io_event(img->file, event);
    int ret = cache_batch_write(batch, check_own, &c, err);
    image_note_unsynced(img);
    return ret;
}

static int write_tables(struct image *img, const struct table_write_vec *v, unsigned own,
                        const char *event, struct qk_error *err)
{
    int ret = 0;
    for (size_t i = 0; i < v->len && ret == 0; i++) {
        ret = overlap_check(img, own, v->ptr[i].off, v->ptr[i].len, err);
        io_event(img->file, event);
        if (ret == 0)
            ret = io_write(img->file, v->ptr[i].off, v->ptr[i].data, v->ptr[i].len, 0, err);
        image_note_unsynced(img);
    }
    return ret;
}

/* The file reaches to the end of its last cluster before anything refers to that. */
static int extend_file(struct image *img, struct qk_error *err)
{
    LOCK_SCOPE(&img->alloc_lock);
    uint64_t size, want = img->end_clusters << img->g.cluster_bits;
    if (!img->file->can_grow || img->length_clusters == img->end_clusters ||
        !__atomic_load_n(&img->writing_begun, __ATOMIC_RELAXED))
        return 0;
    int ret = io_size(img->file, &size, err);
    if (ret == 0 && size < want) {
        ret = io_resize(img->file, want, QK_PREALLOC_OFF, err);
        image_note_unsynced(img);
    }
    if (ret == 0)
        img->length_clusters = img->end_clusters;
    return ret;
}

static int stage_refcounts(struct image *img, struct writeback *wb, struct qk_error *err)
{
    int ret = extend_file(img, err);
    if (ret == 0)
        ret = write_slices(img, &wb->refcounts, OVERLAP_REFCOUNT_BLOCK, "refblock_update", err);
    if (ret == 0 && wb->new_table.data) {
        io_event(img->file, "refblock_alloc_write_table");
        ret = io_write(img->file, wb->new_table.off, wb->new_table.data, wb->new_table.len, 0, err);
        image_note_unsynced(img);
    }
    return ret;
}

/* The overlap check looks at these fields, too. */
static void set_table(struct image *img, uint64_t off, uint32_t clusters)
{
    pthread_rwlock_wrlock(&img->tables_lock);
    img->h.reftable_off = off;
    img->h.reftable_clusters = clusters;
    pthread_rwlock_unlock(&img->tables_lock);
}

/* The switch to a new refcount table: one sector. */
static int switch_table(struct image *img, const struct table_write *t, struct qk_error *err)
{
    LOCK_SCOPE(&img->header_lock);
    uint64_t off = img->h.reftable_off;
    uint32_t clusters = img->h.reftable_clusters;
    set_table(img, t->off, (uint32_t)(t->len >> img->g.cluster_bits));
    io_event(img->file, "refblock_alloc_switch_table");
    int ret = header_io_write(img, err);
    if (ret < 0)
        set_table(img, off, clusters);
    return ret;
}

static int stage_reftable(struct image *img, struct writeback *wb, struct qk_error *err)
{
    int ret =
        write_tables(img, &wb->reftable, OVERLAP_REFCOUNT_TABLE, "refblock_alloc_hookup", err);
    if (ret == 0 && wb->new_table.data)
        ret = switch_table(img, &wb->new_table, err);
    return ret;
}

static int stage_l2(struct image *img, struct writeback *wb, struct qk_error *err)
{
    int ret = write_slices(img, &wb->l2, OVERLAP_ACTIVE_L2, "l2_update", err);
    if (ret == 0)
        ret = write_tables(img, &wb->l1, OVERLAP_ACTIVE_L1, "l1_update", err);
    return ret;
}

static int run_stages(struct image *img, struct writeback *wb, struct qk_error *err)
{
    bool relinks = wb->reftable.len || wb->new_table.data;
    bool links = wb->l2.copies.len || wb->l1.len;
    int ret = stage_refcounts(img, wb, err);
    if (ret == 0 && (relinks || links))
        ret = barrier(img, err);
    if (ret == 0 && relinks) {
        ret = stage_reftable(img, wb, err);
        if (ret == 0 && links)
            ret = barrier(img, err);
    }
    if (ret == 0 && links)
        ret = stage_l2(img, wb, err);
    if (ret == 0)
        ret = barrier(img, err);
    return ret;
}

static int writeback_run(struct image *img, bool final, struct qk_error *err)
{
    struct writeback wb = {0};
    bool with_refcounts =
        final || !img->lazy || cache_dirty_bytes(&img->refcounts) > img->refcount_dirty_limit;
    io_event(img->file, "flush_to_os");
    int settled = header_io_settle(img, err);
    if (settled < 0)
        return settled;
    int ret = collect(img, &wb, with_refcounts, err);
    if (ret == 0)
        ret = run_stages(img, &wb, err);
    finish(img, &wb, ret < 0);
    if (ret == 0 && wb.frees.len)
        ret = free_release(img, &wb.frees, err);
    cluster_run_vec_free(&wb.frees);
    return ret;
}

/* ---- one at a time ---- */

int image_writeback(struct image *img, bool final, struct qk_error *err)
{
    pthread_mutex_lock(&img->flush_lock);
    uint64_t enough = img->flush_started + 1; /* one that starts from now on covers the caller */
    while (img->flush_running && img->flush_finished < enough)
        pthread_cond_wait(&img->flush_done, &img->flush_lock);
    if (img->flush_finished >= enough && !final) {
        int shared = img->flush_result;
        if (shared < 0 && err)
            *err = img->flush_error;
        pthread_mutex_unlock(&img->flush_lock);
        return shared;
    }
    while (img->flush_running)
        pthread_cond_wait(&img->flush_done, &img->flush_lock);
    img->flush_running = true;
    uint64_t mine = ++img->flush_started;
    pthread_mutex_unlock(&img->flush_lock);

    struct qk_error why = {0};
    int ret = writeback_run(img, final, &why);

    pthread_mutex_lock(&img->flush_lock);
    img->flush_running = false;
    img->flush_finished = mine;
    img->flush_result = ret;
    img->flush_error = why;
    pthread_cond_broadcast(&img->flush_done);
    pthread_mutex_unlock(&img->flush_lock);
    if (ret < 0 && err)
        *err = why;
    return ret;
}

void writeback_pause(struct image *img)
{
    LOCK_SCOPE(&img->flush_lock);
    while (img->flush_running)
        pthread_cond_wait(&img->flush_done, &img->flush_lock);
    img->flush_running = true;
}

void writeback_resume(struct image *img)
{
    LOCK_SCOPE(&img->flush_lock);
    img->flush_running = false;
    pthread_cond_broadcast(&img->flush_done);
}

int image_flush(struct image *img, struct qk_error *err)
{
    return img->opts.writable ? image_writeback(img, false, err) : 0;
}

int image_throttle(struct image *img, struct qk_error *err)
{
    if (cache_dirty_bytes(&img->l2) <= img->l2_dirty_limit &&
        cache_dirty_bytes(&img->refcounts) <= img->refcount_dirty_limit)
        return 0;
    return image_writeback(img, false, err);
}
