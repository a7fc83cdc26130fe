/*
 * bitmaps_track.c - recording changes of the disk in the enabled bitmaps. Before the first change
 * each of them is marked as in use on disk, stable; then a change sets bits before it touches data.
 * Who notes a change holds its guest clusters, so the list of bitmaps stands still meanwhile.
 */
#include "image/bitmaps.h"

#include "base/bytes.h"

#define SECTOR    512u
#define FLAGS_AT  12u /* in a directory entry */
#define NO_SECTOR UINT64_MAX

/* ---- marking ---- */

/* The sectors [first, end) of the directory that differ from what is on disk. */
struct sectors {
    uint64_t first, end;
};

static void set_flag(struct bitmap_set *set, const struct bitmap *b, uint32_t flag,
                     struct sectors *dirty)
{
    uint8_t *flags = set->dir + b->entry_at + FLAGS_AT;
    uint64_t sector = (b->entry_at + FLAGS_AT) / SECTOR;
    store_be32(flags, load_be32(flags) | flag);
    dirty->first = min_u64(dirty->first, sector);
    dirty->end = max_u64(dirty->end, sector + 1);
}

static int write_sectors(struct image *img, struct sectors dirty, struct qk_error *err)
{
    const struct bitmap_set *set = img->bitmaps;
    if (dirty.first == NO_SECTOR)
        return 0;
    uint64_t off = set->dir_off + dirty.first * SECTOR, bytes = (dirty.end - dirty.first) * SECTOR;
    int ret = overlap_check(img, OVERLAP_BITMAP_DIRECTORY, off, bytes, err);
    if (ret < 0)
        return ret;
    ret = io_write(img->file, off, set->dir + dirty.first * SECTOR, bytes, 0, err);
    image_note_unsynced(img);
    return ret < 0 ? ret : io_flush(img->file, err);
}

int bitmaps_mark(struct image *img, bool disabled_too, struct qk_error *err)
{
    struct bitmap_set *set = img->bitmaps;
    struct sectors dirty = {.first = NO_SECTOR};
    for (size_t i = 0; i < set->list.len; i++) {
        struct bitmap *b = set->list.ptr[i];
        if (bitmap_usable(b) && (b->enabled || disabled_too) && !b->marked &&
            b->entry_at != BITMAP_NOT_ON_DISK)
            set_flag(set, b, BITMAP_IN_USE, &dirty);
    }
    int ret = write_sectors(img, dirty, err);
    /* After a failure the flags may be there or not; they are set again then. */
    for (size_t i = 0; i < set->list.len && ret == 0; i++) {
        struct bitmap *b = set->list.ptr[i];
        b->marked |= bitmap_usable(b) && (b->enabled || disabled_too);
    }
    return ret;
}

/* ---- noting ---- */

/* One that is enabled and cannot be kept would be wrong after the first write. */
static int prepare(struct image *img, struct bitmap *b, struct qk_error *err)
{
    if (!b->enabled || b->inconsistent)
        return 0;
    int ret = bitmap_judge_usable(img, b, err);
    return ret < 0 ? ret : bitmap_need_table(img, b, err);
}

/* The extension of a time before somebody wrote who does not know bitmaps. */
static int drop_stale(struct image *img, struct qk_error *err)
{
    static const struct header_extension none = {.type = HEXT_BITMAPS};
    static const struct header_change change = {.exts = &none, .ext_count = 1};
    int ret = bitmaps_stale(img) ? header_io_switch(img, &change, err) : 0;
    return ret == -ENOSPC ? 0 : ret; /* it is ignored where it is, too */
}

static int begin(struct image *img, struct qk_error *err)
{
    struct bitmap_set *set = img->bitmaps;
    LOCK_SCOPE(&set->lock);
    if (set->tracking)
        return 0;
    int ret = drop_stale(img, err);
    if (ret == 0)
        ret = bitmaps_load(img, err);
    for (size_t i = 0; i < set->list.len && ret == 0; i++)
        ret = prepare(img, set->list.ptr[i], err);
    if (ret == 0)
        ret = bitmaps_mark(img, false, err);
    if (ret == 0)
        __atomic_store_n(&set->tracking, true, __ATOMIC_RELEASE);
    return ret;
}

int bitmaps_note(struct image *img, guest_off_t off, uint64_t len, struct qk_error *err)
{
    struct bitmap_set *set = img->bitmaps;
    int ret = 0;
    /* What a check repairs is not written by a guest: see bitmaps_distrust. */
    if (!len || img->opts.for_check)
        return 0;
    if (!__atomic_load_n(&set->tracking, __ATOMIC_ACQUIRE))
        ret = begin(img, err);
    for (size_t i = 0; i < set->list.len && ret == 0; i++) {
        struct bitmap *b = set->list.ptr[i];
        if (b->enabled && bitmap_usable(b))
            ret = bitmap_set_range(img, b, off.v, len, err);
    }
    return ret;
}

/* ---- what cannot be noted ---- */

int bitmaps_distrust(struct image *img, struct qk_error *err)
{
    static const struct header_change drop = {.autoclear_clear = AUTOCLEAR_BITMAPS};
    LOCK_SCOPE(&img->bitmaps->lock);
    int ret = bitmaps_load(img, NULL);
    if (ret == 0)
        ret = bitmaps_mark(img, false, err);
    else
        /* Nobody can say which bitmaps there are: none is trusted. */
        ret = img->h.autoclear & AUTOCLEAR_BITMAPS ? header_io_switch(img, &drop, err) : 0;
    return ret;
}

/* ---- resizing ---- */

/* Its bits fit QEMU's limit, and there are any. */
static int judge_size(const struct image *img, const struct bitmap *b, uint64_t size,
                      struct qk_error *err)
{
    uint64_t bits = bitmap_bits_for(size, b->granularity_bits);
    uint64_t chunks = bitmap_table_entries_for(bits, img->g.cluster_bytes);
    if (!bits || chunks > BITMAP_DATA_MAX / img->g.cluster_bytes)
        return qk_fail(err, -ENOTSUP,
                       "Bitmap '%s' cannot follow the disk to %" PRIu64
                       " bytes; remove it, or take another size",
                       b->name, size);
    return 0;
}

int bitmaps_before_resize(struct image *img, uint64_t size, struct qk_error *err)
{
    struct bitmap_set *set = img->bitmaps;
    LOCK_SCOPE(&set->lock);
    int ret = image_begin_writing(img, err);
    if (ret == 0)
        ret = bitmaps_load(img, err);
    for (size_t i = 0; i < set->list.len && ret == 0; i++) {
        struct bitmap *b = set->list.ptr[i];
        if (b->inconsistent)
            continue;
        ret = bitmap_judge_usable(img, b, err);
        if (ret == 0)
            ret = judge_size(img, b, size, err);
        if (ret == 0)
            ret = bitmap_need_table(img, b, err);
    }
    return ret < 0 ? ret : bitmaps_mark(img, true, err);
}

/* Chunks behind the end; there is room in `dropped`. */
static void drop_chunks(const struct image *img, struct bitmap *b, const struct bitmap *old)
{
    for (uint32_t i = b->chunks; i < old->chunks; i++) {
        uint64_t cluster = image_cluster_of(img, old->table[i] & BITMAP_TABLE_OFFSET);
        if (cluster)
            cluster_run_vec_append(&b->dropped, (struct cluster_run){cluster, 1, false});
        free(old->fresh[i]);
    }
}

static int follow(const struct image *img, struct bitmap *b, uint64_t size, struct qk_error *err)
{
    struct bitmap old = *b;
    b->bits = bitmap_bits_for(size, b->granularity_bits);
    if (b->bits == old.bits)
        return 0;
    if (cluster_run_vec_reserve(&b->dropped, b->dropped.len + b->chunks) < 0)
        return qk_fail_nomem(err);
    int ret = bitmap_make_table(img, b, err);
    if (ret < 0) {
        b->table = old.table;
        b->fresh = old.fresh;
        return ret;
    }
    size_t kept = (size_t)min_u64(old.chunks, b->chunks);
    memcpy(b->table, old.table, kept * sizeof(*b->table));
    memcpy(b->fresh, old.fresh, kept * sizeof(*b->fresh));
    drop_chunks(img, b, &old);
    free(old.table);
    free(old.fresh);
    b->changed = true;
    b->cached = BITMAP_NO_CHUNK;
    /* The last chunk is written anew, without the bits behind the end. */
    return b->bits > old.bits || bitmap_fresh_chunk(img, b, kept - 1) ? 0 : qk_fail_nomem(err);
}

int bitmaps_after_resize(struct image *img, uint64_t old_size, struct qk_error *err)
{
    struct bitmap_set *set = img->bitmaps;
    uint64_t size = image_size(img);
    LOCK_SCOPE(&set->lock);
    int ret = 0;
    for (size_t i = 0; i < set->list.len && ret == 0; i++) {
        struct bitmap *b = set->list.ptr[i];
        if (!bitmap_usable(b))
            continue;
        ret = follow(img, b, size, err);
        if (ret == 0 && b->enabled && size > old_size)
            ret = bitmap_set_range(img, b, old_size, size - old_size, err);
        if (ret < 0)
            b->inconsistent = true; /* it stays marked on disk */
    }
    return ret;
}
