/*
 * bitmaps.c - persistent bitmaps in the public API: arguments are judged here, the image does the
 * rest. Disks of other formats have none.
 */
#include "base/checked.h"
#include "node/node.h"

#include <string.h>

static int need_image(const struct qk_disk *disk, const char *name, struct qk_error *err)
{
    return disk->node->image ? 0 : qk_fail(err, -ENOENT, "Dirty bitmap '%s' not found", name);
}

/* It can be changed. */
static int need_writable(const struct qk_disk *disk, const char *name, struct qk_error *err)
{
    int ret = need_image(disk, name, err);
    if (ret == 0 && !disk->node->io.writable)
        ret = qk_fail(err, -EROFS, "Bitmap '%s' is readonly and cannot be modified", name);
    return ret;
}

int qk_disk_bitmap(struct qk_disk *disk, uint32_t index, struct qk_bitmap_info *info,
                   struct qk_error *err)
{
    struct image_bitmap bitmap;
    size_t size = info->struct_size;
    if (!disk->node->image)
        return qk_fail(err, -EINVAL, "There is no bitmap number %u", index);
    int ret = image_bitmap_info(disk->node->image, index, &bitmap, err);
    if (ret < 0)
        return ret;
    const struct qk_bitmap_info full = {
        .struct_size = size,
        .name = bitmap.name,
        .granularity = UINT64_C(1) << bitmap.granularity_bits,
        .in_use = bitmap.in_use,
        .enabled = bitmap.enabled,
    };
    memcpy(info, &full, (size_t)min_u64(size, sizeof(full)));
    return 0;
}

int qk_disk_bitmap_status(struct qk_disk *disk, const char *name, uint64_t off, uint64_t len,
                          struct qk_bitmap_extent *extent, struct qk_error *err)
{
    int ret = need_image(disk, name, err);
    return ret < 0 ? ret
                   : image_bitmap_status(disk->node->image, name, guest_off(off), len, extent, err);
}

int qk_disk_bitmap_add(struct qk_disk *disk, const char *name, uint64_t granularity, unsigned flags,
                       struct qk_error *err)
{
    if (!*name)
        return qk_fail(err, -EINVAL, "Bitmap name cannot be empty");
    /* Beyond 32 bits QEMU says this; below, that it exceeds the maximum. */
    if (granularity &&
        (granularity < 512 || !is_power_of_2(granularity) || granularity > UINT32_MAX))
        return qk_fail(err, -EINVAL, "Granularity must be power of 2 and at least 512");
    if (!disk->node->image)
        return qk_fail(err, -ENOTSUP, "Can't store persistent bitmaps to '%s'",
                       disk->node->shown_name);
    int ret = need_writable(disk, name, err);
    const struct image_bitmap want = {
        .name = name,
        .granularity_bits = (uint8_t)(granularity ? log2_floor(granularity) : 0),
        .enabled = !(flags & QK_BITMAP_DISABLED),
    };
    return ret < 0 ? ret : image_bitmap_add(disk->node->image, &want, err);
}

int qk_disk_bitmap_remove(struct qk_disk *disk, const char *name, struct qk_error *err)
{
    int ret = need_writable(disk, name, err);
    return ret < 0 ? ret : image_bitmap_remove(disk->node->image, name, err);
}

int qk_disk_bitmap_clear(struct qk_disk *disk, const char *name, struct qk_error *err)
{
    int ret = need_writable(disk, name, err);
    return ret < 0 ? ret : image_bitmap_clear(disk->node->image, name, err);
}

int qk_disk_bitmap_enable(struct qk_disk *disk, const char *name, struct qk_error *err)
{
    int ret = need_writable(disk, name, err);
    return ret < 0 ? ret : image_bitmap_enable(disk->node->image, name, true, err);
}

int qk_disk_bitmap_disable(struct qk_disk *disk, const char *name, struct qk_error *err)
{
    int ret = need_writable(disk, name, err);
    return ret < 0 ? ret : image_bitmap_enable(disk->node->image, name, false, err);
}

int qk_disk_bitmap_merge(struct qk_disk *disk, const char *name, struct qk_disk *source,
                         const char *source_name, struct qk_error *err)
{
    int ret = need_writable(disk, name, err);
    if (ret == 0)
        ret = need_image(source, source_name, err);
    return ret < 0
               ? ret
               : image_bitmap_merge(disk->node->image, name, source->node->image, source_name, err);
}
