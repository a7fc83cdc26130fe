/*
 * backing.c - the layer below, as an image sees it: naming another one in the header, and giving up
 * all clusters that hide it. What has to be the same for the guest before and after is up to the
 * caller; here each step is stable before the next one.
 */
#include "image/image_int.h"

#define BACKING_NAME_MAX 1023 /* Format, "Header": backing_file_size */

int image_change_backing(struct image *img, const char *name, const char *format,
                         struct qk_error *err)
{
    const char *new_name = name ? name : "";
    if (strlen(new_name) > BACKING_NAME_MAX)
        return qk_fail(err, -EINVAL, "The name of a backing file has at most %d bytes",
                       BACKING_NAME_MAX);
    if (*new_name && img->h.autoclear & AUTOCLEAR_DATA_FILE_RAW)
        return qk_fail(err, -EINVAL,
                       "An image whose external data file is raw cannot have a backing file");
    struct header_extension ext = {.type = HEXT_BACKING_FORMAT};
    if (*new_name && format) {
        ext.data = (uint8_t *)(uintptr_t)format;
        ext.len = (uint32_t)strlen(format);
    }
    const struct header_change change = {.exts = &ext, .ext_count = 1, .backing_name = new_name};
    struct range_hold hold;
    image_drain(img, &hold);
    int ret = image_begin_writing(img, err);
    if (ret == 0)
        ret = image_writeback(img, false, err);
    if (ret == 0)
        ret = header_io_switch(img, &change, err);
    range_release(&img->ranges, &hold);
    return ret;
}

/* ---- giving up the clusters ---- */

static bool forget_entry(void *opaque, uint64_t index, struct l2_entry old, struct l2_entry *entry)
{
    (void)opaque;
    (void)index;
    *entry = (struct l2_entry){0};
    return old.raw || old.bitmap;
}

static int empty_held(struct image *img, struct qk_error *err)
{
    const uint64_t table_bytes = (uint64_t)img->g.l2_entries << img->g.cluster_bits;
    const uint64_t end = image_size(img);
    int ret = image_begin_writing(img, err);
    for (uint64_t off = 0; off < end && ret == 0; off += table_bytes) {
        if (!l1_load(img, image_l1_index(img, guest_off(off))))
            continue;
        uint64_t bytes = min_u64(end - off, table_bytes);
        ret = l2_change(img, guest_off(off), div_round_up(bytes, img->g.cluster_bytes),
                        forget_entry, NULL, err);
        if (ret == 0)
            ret = image_throttle(img, err);
    }
    return ret < 0 ? ret : image_writeback(img, false, err);
}

int image_empty(struct image *img, struct qk_error *err)
{
    struct range_hold hold;
    image_drain(img, &hold);
    int ret = empty_held(img, err);
    range_release(&img->ranges, &hold);
    return ret;
}
