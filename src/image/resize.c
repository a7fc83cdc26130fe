/*
 * resize.c - growing the disk: a larger L1 when needed, zeroes where a longer backing file or old
 * bytes would shine through, preallocation, then the size, in one header sector. Until that sector
 * is written the image is the old one; what was prepared for nothing is a leak at most. Order:
 * doc/design/resize-amend.md; shrinking is in shrink.c.
 */
#include "image/image_int.h"

#include "base/bytes.h"

/* Memory for a larger L1, entries copied. */
static int l1_enlarge(struct image *img, uint64_t count, struct qk_error *err)
{
    uint64_t room = round_up(count, 64);
    uint64_t *l1 = calloc(room, sizeof(*l1)), *dirty = calloc(room / 64 / 64 + 1, sizeof(*dirty));
    if (!l1 || !dirty) {
        free(l1);
        free(dirty);
        return qk_fail_nomem(err);
    }
    memcpy(l1, img->l1, img->l1_count * sizeof(*l1));
    free(img->l1);
    free(img->l1_dirty);
    img->l1 = l1;
    img->l1_dirty = dirty;
    return 0;
}

/* Writes the first `count` entries, zero-padded to whole clusters, at off. */
static int l1_write_whole(struct image *img, uint64_t off, uint64_t count, struct qk_error *err)
{
    uint64_t bytes = round_up(count * 8, img->g.cluster_bytes);
    CLEANUP_FREE uint8_t *buf = aligned_alloc(4096, round_up(bytes, 4096));
    if (!buf)
        return qk_fail_nomem(err);
    memset(buf, 0, bytes);
    for (uint64_t i = 0; i < count && i < img->l1_count; i++)
        store_be64(buf + i * 8, img->l1[i]);
    io_event(img->file, "l1_grow_write_table");
    int ret = io_write(img->file, off, buf, bytes, 0, err);
    image_note_unsynced(img);
    return ret;
}

int header_set_l1(struct image *img, uint64_t l1_off, uint32_t l1_entries, uint64_t size,
                  struct qk_error *err)
{
    LOCK_SCOPE(&img->header_lock);
    const struct header old = img->h;
    struct header h = old;
    h.l1_off = l1_off;
    h.l1_entries = l1_entries;
    h.size_bytes = size;
    header_adopt(img, &h);
    io_event(img->file, "l1_grow_activate_table");
    int ret = header_io_write(img, err);
    if (ret == 0)
        ret = io_flush(img->file, err);
    if (ret < 0) {
        header_adopt(img, &old);
        header_io_restore(img, 0);
    }
    return ret;
}

uint64_t l1_clusters(const struct image *img, uint64_t entries)
{
    return div_round_up(entries * 8, img->g.cluster_bytes);
}

/* Moves L1 to a new place with room for `count` entries. */
static int l1_move(struct image *img, uint64_t count, struct qk_error *err)
{
    struct cluster_run run,
        old = {image_cluster_of(img, img->h.l1_off), l1_clusters(img, img->l1_count), false};
    io_event(img->file, "l1_grow_alloc_table");
    pthread_mutex_lock(&img->alloc_lock);
    int ret = alloc_exact(img, l1_clusters(img, count), &run, err);
    pthread_mutex_unlock(&img->alloc_lock);
    if (ret < 0)
        return ret;
    uint64_t off = run.first << img->g.cluster_bits;
    ret = overlap_check(img, 0, off, run.count << img->g.cluster_bits, err);
    if (ret == 0)
        ret = l1_write_whole(img, off, count, err);
    /* The new table's refcounts and content are stable before the header names it. */
    if (ret == 0)
        ret = image_writeback(img, true, err);
    if (ret == 0)
        ret = header_set_l1(img, off, (uint32_t)count, img->h.size_bytes, err);
    if (ret < 0) {
        /* After a failed switch the header on disk may name either table: both stay. */
        return ret;
    }
    return old.count ? free_queue(img, old, err) : 0;
}

int l1_grow(struct image *img, uint64_t count, struct qk_error *err)
{
    if (count <= img->l1_count)
        return 0;
    if (count * 8 > QCOW2_MAX_L1_BYTES)
        return qk_fail(err, -EFBIG,
                       "the L1 table would exceed %u bytes: the disk is too large for "
                       "this cluster size",
                       QCOW2_MAX_L1_BYTES);
    int ret = image_writeback(img, true, err);
    if (ret == 0)
        ret = l1_enlarge(img, count, err);
    if (ret < 0)
        return ret;
    if (l1_clusters(img, count) > l1_clusters(img, img->l1_count)) {
        ret = l1_move(img, count, err);
    } else {
        /* Its last cluster has room; what is there may be anything, so it is zeroed first. */
        ret = l1_write_whole(img, img->h.l1_off, count, err);
        if (ret == 0)
            ret = io_flush(img->file, err);
        if (ret == 0)
            ret = header_set_l1(img, img->h.l1_off, (uint32_t)count, img->h.size_bytes, err);
    }
    if (ret == 0)
        img->l1_count = (uint32_t)count;
    return ret;
}

/* ---- the disk ---- */

int image_zero_behind(struct image *img, uint64_t off, uint64_t end, struct qk_error *err)
{
    int ret = 0;
    while (off < end && ret == 0) {
        struct map_extent ext;
        ret = image_map(img, guest_off(off), end - off, &ext, err);
        if (ret == 0 && (ext.kind == CLUSTER_NORMAL || ext.kind == CLUSTER_COMPRESSED))
            ret = image_zero_bytes_held(img, off, ext.len, err);
        off += ext.len;
    }
    return ret;
}

/* A backing file longer than the disk would show in what is added. All of that becomes zero, as in
 * QEMU: the backing file may grow further one day. */
static int hide_backing(struct image *img, uint64_t old_size, uint64_t size, struct qk_error *err)
{
    uint64_t backing_size = 0;
    int ret = img->backing ? io_size(img->backing, &backing_size, err) : 0;
    if (ret < 0 || backing_size <= old_size)
        return ret;
    return image_zero_held(img, guest_off(old_size), size - old_size, 0, err);
}

static int grow_held(struct image *img, uint64_t size, enum qk_prealloc prealloc,
                     struct qk_error *err)
{
    uint64_t old_size = image_size(img);
    prealloc = data_growth(img, prealloc);
    if (prealloc != QK_PREALLOC_OFF && image_is_encrypted(img) && img->h.version < 3)
        return qk_fail(err, -ENOTSUP,
                       "an encrypted image can be preallocated only with version 3, where clusters "
                       "that are there can read as zero");
    int ret = image_begin_writing(img, err);
    if (ret == 0)
        ret = data_grow(img, size, prealloc, err);
    if (ret == 0)
        ret = l1_grow(img, geometry_l1_entries(&img->g, size), err);
    if (ret == 0)
        ret = image_vm_state_forget(img, size, err);
    if (ret == 0 && !image_data_file_is_raw(img)) /* whose bytes are the disk's, wherever it ends */
        ret = image_zero_behind(img, old_size,
                                min_u64(size, round_up(old_size, img->g.cluster_bytes)), err);
    if (ret == 0)
        ret = hide_backing(img, old_size, size, err);
    if (ret == 0 && prealloc != QK_PREALLOC_OFF)
        ret = image_preallocate(img, div_round_up(old_size, img->g.cluster_bytes),
                                div_round_up(size, img->g.cluster_bytes), prealloc, err);
    if (ret == 0)
        ret = image_writeback(img, false, err);
    if (ret == 0)
        ret = header_set_l1(img, img->h.l1_off, img->h.l1_entries, size, err);
    return ret;
}

static int change_size_held(struct image *img, uint64_t size, enum qk_prealloc prealloc,
                            struct qk_error *err)
{
    uint64_t old_size = image_size(img);
    int ret = bitmaps_before_resize(img, size, err);
    if (ret == 0)
        ret = size < old_size ? image_shrink_held(img, size, err)
                              : grow_held(img, size, prealloc, err);
    /* Whatever has become of it, they follow the size that the disk has now. */
    int followed = bitmaps_after_resize(img, old_size, ret < 0 ? NULL : err);
    return ret < 0 ? ret : followed;
}

int image_resize(struct image *img, uint64_t size, enum qk_prealloc prealloc, unsigned flags,
                 struct qk_error *err)
{
    struct range_hold hold;
    image_drain(img, &hold);
    int ret = 0;
    if (img->h.version < 3 && img->h.snapshot_count && size != image_size(img))
        /* Its snapshots do not say how large their disks are. */
        ret = qk_fail(err, -ENOTSUP, "Can't resize a v2 image which has snapshots");
    else if (size < image_size(img) && !(flags & QK_RESIZE_SHRINK))
        ret = qk_fail(err, -EINVAL,
                      "the new size of %" PRIu64 " bytes is less than the disk's %" PRIu64
                      ", and shrinking was not asked for",
                      size, image_size(img));
    else if (size != image_size(img))
        ret = change_size_held(img, size, prealloc, err);
    range_release(&img->ranges, &hold);
    return ret;
}
