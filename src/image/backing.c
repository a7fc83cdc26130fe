/*
 * backing.c - the layer below, as an image sees it: naming another one in the header, and giving up
 * all clusters that hide it. What has to be the same for the guest before and after is up to the
 * caller; here each step is stable before the next one.
 */
#include "image/l2_walk.h"

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

/* The entries of L1 go first, together; once that is stable their tables and clusters are free.
 * What a crash leaves of them between is references that hold, and leaks. */
static int empty_held(struct image *img, struct qk_error *err)
{
    struct l2_table_vec tables = {0};
    uint64_t needed = geometry_l1_entries(&img->g, image_size(img));
    uint32_t count = (uint32_t)min_u64(needed, img->l1_count);
    int ret = image_begin_writing(img, err);
    if (ret == 0)
        ret = image_writeback(img, true, err);
    if (ret == 0)
        ret = l2_tables_of(img, img->l1, count, &tables, err);
    for (uint32_t i = 0; i < count && ret == 0; i++)
        if (l1_load(img, i))
            l1_set(img, i, 0);
    if (ret == 0)
        ret = image_writeback(img, false, err);
    if (ret == 0)
        ret = l2_tables_drop(img, &tables, err);
    l2_table_vec_free(&tables);
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
