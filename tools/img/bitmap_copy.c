/*
 * bitmap_copy.c - copying persistent bitmaps from one image to another. A bitmap is filled while it
 * is disabled, and enabled at the end, so that none is there that looks complete and is not: one
 * that could not be filled is removed again.
 */
#include "img/bitmap_copy.h"
#include "common/report.h"

#include <errno.h>
#include <string.h>

static bool has_bitmaps(struct qk_disk *disk, struct qk_info *info)
{
    return qk_disk_info(disk, info, NULL) == 0 && !strcmp(info->format, "qcow2") &&
           info->qcow2.version >= 3;
}

struct walk {
    int (*fn)(const struct qk_bitmap_info *bitmap, void *opaque);
    void *opaque;
    bool backwards; /* qemu-img names them from the last to the first */
};

/* Calls fn for each bitmap until one returns something else than 0. */
static int for_each(struct qk_disk *disk, const struct walk *walk)
{
    struct qk_info info = QK_INFO_INIT;
    struct qk_error err = {0};
    int ret = qk_disk_info(disk, &info, &err);
    int status = 0;
    for (uint32_t i = 0; ret == 0 && i < info.bitmap_count && status == 0; i++) {
        struct qk_bitmap_info bitmap = QK_BITMAP_INFO_INIT;
        uint32_t index = walk->backwards ? info.bitmap_count - 1 - i : i;
        ret = qk_disk_bitmap(disk, index, &bitmap, &err);
        if (ret == 0)
            status = walk->fn(&bitmap, walk->opaque);
    }
    if (ret < 0)
        report_qk(&err);
    return ret < 0 ? 1 : status;
}

/* ---- judging ----------------------------------------------------------------------------- */

static int refuse_broken(const struct qk_bitmap_info *bitmap, void *opaque)
{
    (void)opaque;
    if (!bitmap->in_use)
        return 0;
    report_error("Cannot copy inconsistent bitmap '%s'\n"
                 "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
                 bitmap->name);
    return 1;
}

int bitmaps_judge_source(struct qk_disk *source, bool skip_broken)
{
    struct qk_info info = QK_INFO_INIT;
    if (!has_bitmaps(source, &info)) {
        report_error("Source lacks bitmap support");
        return 1;
    }
    const struct walk walk = {refuse_broken, NULL, true};
    return !skip_broken && for_each(source, &walk) ? 1 : -1;
}

int bitmaps_judge_target(struct qk_disk *target)
{
    struct qk_info info = QK_INFO_INIT;
    if (has_bitmaps(target, &info))
        return -1;
    report_error("Format driver '%s' does not support bitmaps", info.format ? info.format : "");
    return 1;
}

/* ---- copying ----------------------------------------------------------------------------- */

struct copying {
    struct qk_disk *source, *target;
};

static int fill(const struct copying *c, const struct qk_bitmap_info *bitmap, struct qk_error *err)
{
    int ret = qk_disk_bitmap_merge(c->target, bitmap->name, c->source, bitmap->name, err);
    if (ret == 0 && bitmap->enabled)
        ret = qk_disk_bitmap_enable(c->target, bitmap->name, err);
    if (ret < 0)
        qk_disk_bitmap_remove(c->target, bitmap->name, NULL);
    return ret;
}

static int warn_broken(const struct qk_bitmap_info *bitmap, void *opaque)
{
    (void)opaque;
    if (bitmap->in_use)
        report_warning("Skipping inconsistent bitmap '%s'", bitmap->name);
    return 0;
}

static int copy_one(const struct qk_bitmap_info *bitmap, void *opaque)
{
    const struct copying *c = opaque;
    struct qk_error err = {0};
    if (bitmap->in_use)
        return 0;
    if (qk_disk_bitmap_add(c->target, bitmap->name, bitmap->granularity, QK_BITMAP_DISABLED, &err) <
        0) {
        report_failure(&err, "Failed to create bitmap %s", bitmap->name);
        return 1;
    }
    if (fill(c, bitmap, &err) < 0) {
        report_failure(&err, "Failed to populate bitmap %s", bitmap->name);
        return 1;
    }
    return 0;
}

int bitmaps_copy(struct qk_disk *source, struct qk_disk *target)
{
    struct copying c = {source, target};
    const struct walk warn = {warn_broken, NULL, true}, copy = {copy_one, &c, false};
    int status = for_each(source, &warn);
    return status ? status : for_each(source, &copy);
}
