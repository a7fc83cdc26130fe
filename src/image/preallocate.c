/*
 * preallocate.c - host clusters for guest clusters that nobody has written to. Where there is no L2
 * table yet, whole tables are made in memory and written many at a time into new clusters; nothing
 * refers to them before the writeback whose first barrier makes them stable (ordering.md), so that
 * they need no place in the cache. Memory: PIECE_BYTES of tables.
 */
#include "image/image_int.h"

#include "base/bytes.h"

#define PIECE_BYTES (4u << 20) /* at least a cluster */

/* Makes new clusters read as zero, and takes their space as `prealloc` says. */
static int fill_run(struct image *img, struct cluster_run run, enum qk_prealloc prealloc,
                    struct qk_error *err)
{
    uint64_t off = run.first << img->g.cluster_bits, len = run.count << img->g.cluster_bits, size;
    /* Old bytes of an encrypted image are below a zero flag. */
    bool hidden = image_is_encrypted(img) && prealloc == QK_PREALLOC_METADATA;
    bool written = (!run.fresh && !hidden) || prealloc == QK_PREALLOC_FULL;
    if (img->g.data_file) /* data_grow has seen to it */
        return 0;
    int ret = written || prealloc == QK_PREALLOC_FALLOC ? overlap_check(img, 0, off, len, err) : 0;
    if (ret == 0 && prealloc == QK_PREALLOC_FALLOC && run.fresh && img->file->can_grow) {
        ret = io_size(img->file, &size, err);
        if (ret == 0 && size < off)
            ret = io_resize(img->file, off, QK_PREALLOC_OFF, err);
        if (ret == 0 && size < off + len)
            ret = io_resize(img->file, off + len, QK_PREALLOC_FALLOC, err);
    } else if (ret == 0 && written) {
        ret = io_zero_or_write(img->file, off, len, 0, err);
    }
    image_note_unsynced(img);
    return ret;
}

/* ---- whole tables ---- */

struct bulk {
    struct image *img;
    enum qk_prealloc prealloc;
    uint64_t first, count;       /* guest clusters; the first is that of a table */
    struct cluster_run tables;   /* new ones */
    struct cluster_run_vec data; /* new clusters, `count` in all */
};

/* How many tables from guest cluster `first` on are missing, at most a piece of them. */
static uint64_t missing_tables(const struct image *img, uint64_t first, uint64_t end)
{
    uint64_t in_table = img->g.l2_entries, index = first / in_table, n = 0;
    uint64_t max = min_u64(div_round_up(end - first, in_table),
                           max_u64(PIECE_BYTES / img->g.cluster_bytes, 1));
    if (first % in_table || img->g.subclusters > 1)
        return 0;
    while (n < max && index + n < img->l1_count && !l1_load(img, index + n))
        n++;
    return n;
}

static int take_data(struct bulk *b, struct qk_error *err)
{
    int ret = 0;
    for (uint64_t done = 0; done < b->count && ret == 0;) {
        struct cluster_run run;
        ret = data_alloc(b->img, b->first + done, b->count - done, &run, err);
        if (ret < 0)
            break;
        if (cluster_run_vec_append(&b->data, run) < 0) {
            data_undo(b->img, run);
            return qk_fail_nomem(err);
        }
        ret = fill_run(b->img, run, b->prealloc, err);
        done += run.count;
    }
    return ret;
}

static int write_tables(const struct bulk *b, struct qk_error *err)
{
    const struct image *img = b->img;
    uint64_t bytes = b->tables.count << img->g.cluster_bits;
    uint64_t off = b->tables.first << img->g.cluster_bits;
    CLEANUP_FREE uint8_t *buf = aligned_alloc(4096, round_up(bytes, 4096));
    if (!buf)
        return qk_fail_nomem(err);
    memset(buf, 0, bytes);
    const uint64_t flags = ENTRY_COPIED | (image_is_encrypted(img) ? ENTRY_ZERO : 0);
    uint8_t *at = buf;
    for (size_t i = 0; i < b->data.len; i++) {
        uint64_t host = b->data.ptr[i].first << img->g.cluster_bits;
        for (uint64_t k = 0; k < b->data.ptr[i].count; k++, at += 8)
            store_be64(at, (host + (k << img->g.cluster_bits)) | flags);
    }
    cache_forget(&b->img->l2, off, bytes);
    int ret = overlap_check(b->img, 0, off, bytes, err);
    io_event(img->file, "l2_alloc_write");
    if (ret == 0)
        ret = io_write(img->file, off, buf, bytes, 0, err);
    image_note_unsynced(b->img);
    return ret;
}

static int link_tables(const struct bulk *b, struct qk_error *err)
{
    struct image *img = b->img;
    if (overlap_note(img, b->tables, OVERLAP_ACTIVE_L2) < 0) {
        overlap_forget(img, b->tables);
        return qk_fail_nomem(err);
    }
    LOCK_SCOPE(&img->alloc_lock);
    io_event(img->file, "l1_update");
    for (uint64_t i = 0; i < b->tables.count; i++)
        l1_set(img, b->first / img->g.l2_entries + i,
               (b->tables.first + i) << img->g.cluster_bits | ENTRY_COPIED);
    return 0;
}

static int bulk_run(struct bulk *b, struct qk_error *err)
{
    int ret = take_data(b, err);
    if (ret == 0)
        ret = write_tables(b, err);
    if (ret == 0)
        ret = link_tables(b, err);
    if (ret < 0) {
        for (size_t i = 0; i < b->data.len; i++)
            data_undo(b->img, b->data.ptr[i]);
        alloc_undo(b->img, b->tables);
    }
    cluster_run_vec_free(&b->data);
    return ret;
}

/* Makes up to `tables` of them; *first goes behind what was done. */
static int preallocate_tables(struct image *img, uint64_t *first, uint64_t end, uint64_t tables,
                              enum qk_prealloc prealloc, struct qk_error *err)
{
    struct bulk b = {.img = img, .prealloc = prealloc, .first = *first};
    int ret = alloc_clusters(img, tables, &b.tables, err);
    if (ret < 0)
        return ret;
    b.count = min_u64(b.tables.count * img->g.l2_entries, end - *first);
    *first += b.count;
    return bulk_run(&b, err);
}

/* ---- in tables that are there ---- */

static int preallocate_part(struct image *img, uint64_t *first, uint64_t end,
                            enum qk_prealloc prealloc, struct qk_error *err)
{
    uint64_t in_table = img->g.l2_entries, table;
    uint64_t n = min_u64(end - *first, in_table - *first % in_table);
    guest_off_t off = guest_off(*first << img->g.cluster_bits);
    struct cluster_run run;
    int ret = l2_table_writable(img, off, &table, err);
    if (ret == 0)
        ret = data_alloc(img, *first, n, &run, err);
    if (ret < 0)
        return ret;
    ret = fill_run(img, run, prealloc, err);
    if (ret < 0) {
        data_undo(img, run);
        return ret;
    }
    ret = image_link(img, *first, run, err);
    *first += run.count;
    return ret;
}

int image_preallocate(struct image *img, uint64_t first, uint64_t end, enum qk_prealloc prealloc,
                      struct qk_error *err)
{
    int ret = 0;
    while (first < end && ret == 0) {
        uint64_t tables = missing_tables(img, first, end);
        ret = tables ? preallocate_tables(img, &first, end, tables, prealloc, err)
                     : preallocate_part(img, &first, end, prealloc, err);
        if (ret == 0)
            ret = image_throttle(img, err);
    }
    return ret;
}
