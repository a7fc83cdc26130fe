/*
 * data_file.c - guest data in an external data file (format section "Header", incompatible bit 2).
 * A guest cluster lies there at its own guest offset, so there is nothing to allocate or free:
 * only tables live in the image file, with refcounts, and an entry says no more than that the
 * cluster's bytes count.
 *
 * A raw data file (autoclear bit 1) reads as the disk does without any tables. Its bytes are
 * therefore what decides: zeroes and discards change them and leave entries alone, since an entry
 * and the bytes could not change in one step (doc/design/data-file.md).
 */
#include "image/image_int.h"

void image_set_data(struct image *img, struct qk_io *data)
{
    img->data = data;
}

bool image_has_data_file(const struct image *img)
{
    return img->g.data_file;
}

/* Bytes that are encrypted in the file are not the disk's, whatever the bit says. */
bool image_data_file_is_raw(const struct image *img)
{
    return img->g.data_file && img->h.autoclear & AUTOCLEAR_DATA_FILE_RAW &&
           img->h.crypt_method == CRYPT_NONE;
}

/* Zero bytes behind the end are zeroes of the disk, should it grow; encrypted they would not be. */
bool data_ends_with_disk(const struct image *img)
{
    return img->g.data_file && img->h.crypt_method == CRYPT_NONE;
}

/* ---- clusters ---- */

int data_alloc(struct image *img, uint64_t guest_cluster, uint64_t want, struct cluster_run *run,
               struct qk_error *err)
{
    if (!img->g.data_file)
        return alloc_clusters(img, want, run, err);
    if (!img->data)
        return data_missing(img, err);
    io_event(img->file, "cluster_alloc");
    /* What was there before may be there still. */
    *run = (struct cluster_run){guest_cluster, want, false};
    return 0;
}

void data_undo(struct image *img, struct cluster_run run)
{
    if (!img->g.data_file)
        alloc_undo(img, run);
}

void data_discard(struct image *img, guest_off_t off, uint64_t len)
{
    /* Only a hint: a file system that cannot punch holes keeps the blocks. An old entry that a
     * crash brings back would have encrypted holes read as neither old bytes nor zeroes. */
    if (!img->g.data_file || !img->data || !img->opts.discard_to_file || image_is_encrypted(img))
        return;
    io_discard(img->data, off.v, min_u64(len, image_size(img) - off.v), NULL);
    image_note_unsynced_data(img);
}

/* ---- a raw data file ---- */

/* The file is not made longer than the disk for machine state that another program left there. */
static int zero_bytes(struct image *img, uint64_t off, uint64_t len, unsigned flags,
                      struct qk_error *err)
{
    if (off >= image_size(img))
        return 0;
    len = min_u64(len, image_size(img) - off);
    if (!img->opts.discard_to_file)
        flags &= ~(unsigned)IO_ZERO_UNMAP;
    int ret = flags & IO_ZERO_NO_FALLBACK ? io_zero(img->data, off, len, flags, err)
                                          : io_zero_or_write(img->data, off, len, flags, err);
    image_note_unsynced_data(img);
    return ret;
}

/* Bytes that a layer below would show get a cluster of their own; others read as zero with any
 * entry, once the data file does. */
static int zero_extent(struct image *img, guest_off_t off, const struct map_extent *ext,
                       unsigned flags, struct qk_error *err)
{
    if (ext->kind == CLUSTER_NORMAL || image_kind_is_zero(img, ext->kind))
        return zero_bytes(img, off.v, ext->len, flags, err);
    if (flags & IO_ZERO_NO_FALLBACK)
        return qk_fail(err, -ENOTSUP, "zeroes cannot hide the layer below without being written");
    return image_zero_bytes_held(img, off.v, ext->len, err);
}

int data_raw_zero(struct image *img, guest_off_t off, uint64_t len, unsigned flags,
                  struct qk_error *err)
{
    if (!img->data)
        return data_missing(img, err);
    for (uint64_t done = 0; done < len;) {
        struct map_extent ext;
        guest_off_t at = guest_off(off.v + done);
        int ret = image_map(img, at, len - done, &ext, err);
        if (ret == 0)
            ret = zero_extent(img, at, &ext, flags, err);
        if (ret < 0)
            return ret;
        done += ext.len;
    }
    return 0;
}

/* Whole clusters, as in any other image; the last one ends with the disk. */
int data_raw_discard(struct image *img, guest_off_t off, uint64_t len, struct qk_error *err)
{
    const uint64_t size = image_size(img), cluster = img->g.cluster_bytes;
    uint64_t end = off.v + len == size ? size : round_down(off.v + len, cluster);
    off = guest_off(round_up(off.v, cluster));
    len = end > off.v ? end - off.v : 0;
    if (!img->opts.discard_to_file || !img->data)
        return 0;
    for (uint64_t done = 0; done < len;) {
        struct map_extent ext;
        guest_off_t at = guest_off(off.v + done);
        int ret = image_map(img, at, len - done, &ext, err);
        /* Holes read as zero; a store that has none keeps what is there. */
        if (ret == 0 && ext.kind == CLUSTER_NORMAL) {
            ret = zero_bytes(img, at.v, ext.len, IO_ZERO_UNMAP | IO_ZERO_NO_FALLBACK, err);
            ret = ret == -ENOTSUP ? 0 : ret;
        }
        if (ret < 0)
            return ret;
        done += ext.len;
    }
    return 0;
}

/* ---- the length ---- */

/* Clusters are to be mapped where the file has something behind the old end already, as after a
 * shrinking that was cut off before the file was. What a raw file has there may be its owner's, who
 * lengthened it for the disk to grow over: it is never destroyed. */
static int clear_behind(struct image *img, uint64_t length, uint64_t size, struct qk_error *err)
{
    uint64_t old_size = image_size(img), end = min_u64(length, size);
    if (image_data_file_is_raw(img) || image_is_encrypted(img) || end <= old_size)
        return 0;
    return io_zero_or_write(img->data, old_size, end - old_size, 0, err);
}

int data_grow(struct image *img, uint64_t size, enum qk_prealloc prealloc, struct qk_error *err)
{
    uint64_t length;
    if (!img->g.data_file)
        return 0;
    if (!img->data)
        return data_missing(img, err);
    bool mapped = prealloc != QK_PREALLOC_OFF;
    if (prealloc == QK_PREALLOC_METADATA)
        prealloc = QK_PREALLOC_OFF;
    /* Old content must not come back with the new end. */
    int ret = img->data_uncut ? data_shrink(img, image_size(img), err) : 0;
    if (ret == 0)
        ret = io_size(img->data, &length, err);
    if (ret == 0 && mapped)
        ret = clear_behind(img, length, size, err);
    if (ret == 0 && length < size && img->data->can_grow)
        ret = io_resize(img->data, size, prealloc, err);
    else if (ret == 0 && length < size)
        ret = qk_fail(err, -ENOSPC, "The external data file has %" PRIu64 " bytes and cannot grow",
                      length);
    image_note_unsynced_data(img);
    return ret;
}

int data_shrink(struct image *img, uint64_t size, struct qk_error *err)
{
    uint64_t length;
    if (!img->g.data_file)
        return 0;
    if (!img->data)
        return data_missing(img, err);
    int ret = img->data->can_grow ? io_size(img->data, &length, err) : 0;
    if (ret == 0 && img->data->can_grow && length > size)
        ret = io_resize(img->data, size, QK_PREALLOC_OFF, err);
    img->data_uncut = ret < 0;
    image_note_unsynced_data(img);
    return ret;
}

enum qk_prealloc data_growth(const struct image *img, enum qk_prealloc prealloc)
{
    return prealloc == QK_PREALLOC_OFF && image_data_file_is_raw(img) ? QK_PREALLOC_METADATA
                                                                      : prealloc;
}

/* ---- what the header says ---- */

static int judge_name(const struct image *img, const char *name, bool raw, struct qk_error *err)
{
    if (name && !img->g.data_file)
        return qk_fail(err, -EINVAL,
                       "data-file can only be set for images that use an external data file");
    if (raw && !(img->h.autoclear & AUTOCLEAR_DATA_FILE_RAW))
        return qk_fail(err, -EINVAL, "data-file-raw cannot be set on existing images");
    if (name && strlen(name) > QCOW2_MAX_BACKING_NAME)
        return qk_fail(err, -EINVAL, "The name of an external data file has at most %d bytes",
                       QCOW2_MAX_BACKING_NAME);
    return 0;
}

int image_change_data_file(struct image *img, const char *name, bool raw, struct qk_error *err)
{
    int ret = judge_name(img, name, raw, err);
    if (ret < 0)
        return ret;
    struct range_hold hold;
    struct header_extension ext = {.type = HEXT_DATA_FILE};
    image_drain(img, &hold);
    ret = image_begin_writing(img, err);
    if (ret == 0)
        ret = image_writeback(img, false, err);
    struct header fixed = img->h;
    if (!raw)
        fixed.autoclear &= ~(uint64_t)AUTOCLEAR_DATA_FILE_RAW;
    if (name && *name) {
        ext.data = (const uint8_t *)name;
        ext.len = (uint32_t)strlen(name);
    }
    const struct header_change change = {
        .fixed = &fixed, .exts = name ? &ext : NULL, .ext_count = name != NULL};
    if (ret == 0)
        ret = header_io_switch(img, &change, err);
    range_release(&img->ranges, &hold);
    return ret;
}
