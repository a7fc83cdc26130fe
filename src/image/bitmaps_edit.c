/*
 * bitmaps_edit.c - changes of the bitmaps themselves: add, remove, clear, enable, disable, merge.
 * Each holds the whole disk, so that no change of the guest's is between two states, and is stable
 * when it returns. What a failed one would have taken away stays.
 */
#include "image/bitmaps.h"

#include "base/bytes.h"

/* The whole disk, an image that is prepared for writes, the list, and the lock of the bitmaps. */
static int edit_begin(struct image *img, struct range_hold *hold, struct qk_error *err)
{
    image_drain(img, hold);
    int ret = image_begin_writing(img, err);
    pthread_mutex_lock(&img->bitmaps->lock);
    return ret < 0 ? ret : bitmaps_load(img, err);
}

static int edit_end(struct image *img, struct range_hold *hold, int ret)
{
    pthread_mutex_unlock(&img->bitmaps->lock);
    range_release(&img->ranges, hold);
    return ret;
}

/* ---- add ---- */

static unsigned default_granularity_bits(const struct image *img)
{
    return (unsigned)max_u64(min_u64(img->g.cluster_bits, 16), 12);
}

static int judge_bits(const struct image *img, unsigned granularity_bits, struct qk_error *err)
{
    uint64_t bits = bitmap_bits_for(image_size(img), granularity_bits);
    if (granularity_bits > BITMAP_BITS_MAX)
        return qk_fail(err, -EINVAL, "Granularity exceeds maximum (%llu bytes)",
                       1ULL << BITMAP_BITS_MAX);
    if (granularity_bits < BITMAP_BITS_MIN)
        return qk_fail(err, -EINVAL, "Granularity is under minimum (%llu bytes)",
                       1ULL << BITMAP_BITS_MIN);
    if (!bits)
        return qk_fail(err, -EINVAL, "A disk without any bytes has no place for a bitmap");
    if (bitmap_table_entries_for(bits, img->g.cluster_bytes) >
        BITMAP_DATA_MAX / img->g.cluster_bytes)
        return qk_fail(err, -EFBIG,
                       "Too much space will be occupied by the bitmap. Use larger granularity");
    return 0;
}

static int judge_new(const struct image *img, const char *name, unsigned granularity_bits,
                     struct qk_error *err)
{
    int ret = 0;
    if (bitmaps_find(img, name))
        return qk_fail(err, -EEXIST, "Bitmap already exists: %s", name);
    if (img->h.version < 3)
        ret = qk_fail(err, -ENOTSUP, "Cannot store dirty bitmaps in qcow2 v2 files");
    if (ret == 0)
        ret = judge_bits(img, granularity_bits, err);
    if (ret == 0 && strlen(name) > BITMAP_NAME_MAX)
        ret = qk_fail(err, -EINVAL, "Name length exceeds maximum (%d characters)", BITMAP_NAME_MAX);
    if (ret == 0 && img->bitmaps->list.len >= BITMAPS_MAX)
        ret = qk_fail(err, -EFBIG, "Maximum number of persistent bitmaps is already reached");
    if (ret < 0)
        qk_error_prefix(err, "Can't make bitmap '%s' persistent in '%s'", name, img->file->name);
    return ret;
}

static int make_bitmap(const struct image *img, const struct image_bitmap *want,
                       unsigned granularity_bits, struct bitmap **out, struct qk_error *err)
{
    struct bitmap *b = calloc(1, sizeof(*b));
    if (!b || !(b->name = strdup(want->name))) {
        bitmap_free(b);
        return qk_fail_nomem(err);
    }
    b->granularity_bits = (uint8_t)granularity_bits;
    b->enabled = want->enabled;
    b->entry_at = BITMAP_NOT_ON_DISK;
    b->bits = bitmap_bits_for(image_size(img), granularity_bits);
    b->cached = BITMAP_NO_CHUNK;
    b->changed = true;
    int ret = bitmap_make_table(img, b, err);
    if (ret < 0)
        bitmap_free(b);
    else
        *out = b;
    return ret;
}

static int add_locked(struct image *img, const struct image_bitmap *want, struct qk_error *err)
{
    struct bitmap_vec *list = &img->bitmaps->list;
    struct bitmap *b = NULL;
    unsigned bits = want->granularity_bits ? want->granularity_bits : default_granularity_bits(img);
    int ret = judge_new(img, want->name, bits, err);
    if (ret == 0)
        ret = make_bitmap(img, want, bits, &b, err);
    if (ret < 0)
        return ret;
    if (bitmap_vec_append(list, b) < 0)
        ret = qk_fail_nomem(err);
    else if ((ret = bitmaps_store(img, false, NULL, err)) < 0)
        list->len--;
    if (ret < 0)
        bitmap_free(b);
    return ret;
}

int image_bitmap_add(struct image *img, const struct image_bitmap *want, struct qk_error *err)
{
    struct range_hold hold;
    int ret = edit_begin(img, &hold, err);
    if (ret == 0)
        ret = add_locked(img, want, err);
    return edit_end(img, &hold, ret);
}

/* ---- remove ---- */

static int add_run(const struct image *img, uint64_t off, uint64_t bytes,
                   struct cluster_run_vec *runs)
{
    struct cluster_run run = {image_cluster_of(img, off), div_round_up(bytes, img->g.cluster_bytes),
                              false};
    return run.first ? cluster_run_vec_append(runs, run) : 0;
}

/* What a table on disk names that was not read; of one that cannot be read, or names impossible
 * places, nothing: a leak is better than a wrong free. */
static int runs_on_disk(struct image *img, const struct bitmap *b, struct cluster_run_vec *runs)
{
    uint64_t file_bytes, bytes = (uint64_t)b->disk_entries * 8;
    CLEANUP_FREE uint8_t *table = malloc(bytes);
    if (!table)
        return -ENOMEM;
    if (io_size(img->file, &file_bytes, NULL) < 0 ||
        io_read(img->file, b->disk_table, table, bytes, NULL) < 0)
        return 0;
    int ret = 0;
    for (uint64_t i = 0; i < b->disk_entries && ret == 0; i++) {
        uint64_t entry = load_be64(table + i * 8);
        if (bitmap_table_entry_valid(entry, img->g.cluster_bytes, file_bytes))
            ret = add_run(img, entry & BITMAP_TABLE_OFFSET, img->g.cluster_bytes, runs);
    }
    return ret;
}

static int all_runs(struct image *img, const struct bitmap *b, struct cluster_run_vec *runs)
{
    int ret = add_run(img, b->disk_table, (uint64_t)b->disk_entries * 8, runs);
    if (ret < 0 || b->inconsistent || !b->table)
        return ret < 0 ? ret : runs_on_disk(img, b, runs);
    for (uint32_t i = 0; i < b->chunks && ret == 0; i++)
        ret = add_run(img, b->table[i] & BITMAP_TABLE_OFFSET, img->g.cluster_bytes, runs);
    for (size_t i = 0; i < b->dropped.len && ret == 0; i++)
        ret = cluster_run_vec_append(runs, b->dropped.ptr[i]);
    return ret;
}

static int remove_locked(struct image *img, const char *name, struct qk_error *err)
{
    struct bitmap_vec *list = &img->bitmaps->list;
    struct cluster_run_vec runs = {0};
    struct bitmap *b = bitmaps_find(img, name);
    size_t i = 0;
    if (!b)
        return qk_fail(err, -ENOENT, "Dirty bitmap '%s' not found", name);
    int ret = all_runs(img, b, &runs) < 0 ? qk_fail_nomem(err) : 0;
    while (list->ptr[i] != b)
        i++;
    memmove(&list->ptr[i], &list->ptr[i + 1], (list->len - i - 1) * sizeof(*list->ptr));
    list->len--;
    if (ret == 0)
        ret = bitmaps_store(img, false, &runs, err);
    if (ret < 0) {
        memmove(&list->ptr[i + 1], &list->ptr[i], (list->len - i) * sizeof(*list->ptr));
        list->ptr[i] = b;
        list->len++;
    } else {
        bitmap_free(b);
    }
    cluster_run_vec_free(&runs);
    return ret;
}

int image_bitmap_remove(struct image *img, const char *name, struct qk_error *err)
{
    struct range_hold hold;
    int ret = edit_begin(img, &hold, err);
    if (ret == 0)
        ret = remove_locked(img, name, err);
    return edit_end(img, &hold, ret);
}

/* ---- clear ---- */

static void free_bits(struct bitmap *b)
{
    for (uint32_t i = 0; b->fresh && i < b->chunks; i++)
        free(b->fresh[i]);
    free(b->fresh);
    free(b->table);
    cluster_run_vec_free(&b->dropped);
}

/* An empty table, and what the old one named in `dropped`. */
static int empty_bits(const struct image *img, struct bitmap *b, struct qk_error *err)
{
    const struct bitmap old = *b;
    b->table = NULL;
    b->fresh = NULL;
    b->dropped = (struct cluster_run_vec){0};
    int ret = bitmap_make_table(img, b, err);
    for (size_t i = 0; i < old.dropped.len && ret == 0; i++)
        ret = cluster_run_vec_append(&b->dropped, old.dropped.ptr[i]);
    for (uint32_t i = 0; i < old.chunks && ret == 0; i++)
        ret = add_run(img, old.table[i] & BITMAP_TABLE_OFFSET, img->g.cluster_bytes, &b->dropped);
    b->changed = true;
    b->cached = BITMAP_NO_CHUNK;
    return ret < 0 ? qk_fail_nomem(err) : 0;
}

static int clear_locked(struct image *img, const char *name, struct qk_error *err)
{
    struct bitmap *b;
    int ret = bitmaps_find_usable(img, name, &b, err);
    if (ret == 0)
        ret = bitmap_need_table(img, b, err);
    if (ret < 0)
        return ret;
    struct bitmap old = *b;
    ret = empty_bits(img, b, err);
    if (ret == 0)
        ret = bitmaps_store(img, false, NULL, err);
    if (ret < 0) {
        free_bits(b);
        *b = old;
    } else {
        free_bits(&old);
    }
    return ret;
}

int image_bitmap_clear(struct image *img, const char *name, struct qk_error *err)
{
    struct range_hold hold;
    int ret = edit_begin(img, &hold, err);
    if (ret == 0)
        ret = clear_locked(img, name, err);
    return edit_end(img, &hold, ret);
}

/* ---- enable, disable ---- */

static int enable_locked(struct image *img, const char *name, bool enable, struct qk_error *err)
{
    struct bitmap *b;
    int ret = bitmaps_find_usable(img, name, &b, err);
    /* Once it is enabled its bits are set without a lock. */
    if (ret == 0)
        ret = bitmap_need_table(img, b, err);
    if (ret < 0 || b->enabled == enable)
        return ret;
    b->enabled = enable;
    ret = bitmaps_store(img, false, NULL, err);
    if (ret < 0)
        b->enabled = !enable;
    return ret;
}

int image_bitmap_enable(struct image *img, const char *name, bool enable, struct qk_error *err)
{
    struct range_hold hold;
    int ret = edit_begin(img, &hold, err);
    if (ret == 0)
        ret = enable_locked(img, name, enable, err);
    return edit_end(img, &hold, ret);
}

/* ---- merge ---- */

static int judge_sizes(const struct image *img, const struct image *from, struct qk_error *err)
{
    uint64_t size = image_size(img), from_size = image_size(from);
    if (size == from_size)
        return 0;
    return qk_fail(err, -EINVAL,
                   "Bitmaps are of different sizes (destination size is %" PRIu64
                   ", source size is %" PRIu64 ") and can't be merged",
                   size, from_size);
}

/* Without the lock: the source may be a bitmap of the same image. */
static int copy_bits(struct image *img, struct bitmap *b, struct image *from, const char *source,
                     struct qk_error *err)
{
    struct qk_bitmap_extent extent;
    uint64_t size = image_size(img);
    int ret = 0;
    for (uint64_t off = 0; off < size && ret == 0; off += extent.len) {
        ret = image_bitmap_status(from, source, guest_off(off), size - off, &extent, err);
        if (ret == 0 && extent.dirty)
            ret = bitmap_set_range(img, b, off, extent.len, err);
    }
    return ret;
}

static int merge_held(struct image *img, const char *name, struct image *from, const char *source,
                      struct qk_error *err)
{
    struct bitmap *b, *other;
    int ret = bitmaps_find_usable(img, name, &b, err);
    if (ret == 0)
        ret = bitmap_need_table(img, b, err);
    if (ret == 0 && from == img)
        ret = bitmaps_find_usable(img, source, &other, err);
    if (ret == 0)
        ret = judge_sizes(img, from, err);
    if (ret < 0 || (from == img && other == b))
        return ret;
    pthread_mutex_unlock(&img->bitmaps->lock);
    ret = copy_bits(img, b, from, source, err);
    pthread_mutex_lock(&img->bitmaps->lock);
    return ret < 0 ? ret : bitmaps_store(img, false, NULL, err);
}

int image_bitmap_merge(struct image *img, const char *name, struct image *from, const char *source,
                       struct qk_error *err)
{
    struct range_hold hold;
    int ret = edit_begin(img, &hold, err);
    if (ret == 0)
        ret = merge_held(img, name, from, source, err);
    return edit_end(img, &hold, ret);
}
