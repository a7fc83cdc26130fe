/*
 * snapshots.c - the public calls on internal snapshots: an image knows how, a disk knows whether it
 * has one and may be written. See snapshots.h. One call at a time: what an entry of the list names
 * must not go while it is looked at. Order: shape_lock before any lock of the image.
 */
#include "node/snapshots.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "node/driver.h"

#include <string.h>
#include <time.h>

void snapshots_release(struct snapshot_vec *list)
{
    if (list)
        snapshots_free_all(list);
    free(list);
}

/* ---- the list ---------------------------------------------------------------------------- */

/* shape_lock held, here and below */
static int load(struct node *node, struct qk_error *err)
{
    if (node->snapshots)
        return 0;
    struct snapshot_vec *list = calloc(1, sizeof(*list));
    if (!list)
        return qk_fail_nomem(err);
    int ret = image_snapshots(node->image, list, err);
    if (ret < 0)
        snapshots_release(list);
    else
        node->snapshots = list;
    return ret;
}

static int row_of(struct node *node, uint32_t index, const struct snapshot **row,
                  struct qk_error *err)
{
    int ret = node->image ? load(node, err) : 0;
    if (ret < 0)
        return ret;
    if (!node->image || index >= node->snapshots->len)
        return qk_fail(err, -EINVAL, "There is no snapshot number %u", index);
    *row = &node->snapshots->ptr[index];
    return 0;
}

int qk_disk_snapshot(struct qk_disk *disk, uint32_t index, struct qk_snapshot_info *info,
                     struct qk_error *err)
{
    const struct snapshot *row;
    size_t size = info->struct_size;
    LOCK_SCOPE(&disk->node->shape_lock);
    int ret = row_of(disk->node, index, &row, err);
    if (ret < 0)
        return ret;
    const struct qk_snapshot_info full = {
        .struct_size = size,
        .id = row->id,
        .name = row->name,
        .vm_state_size = row->vm_state_bytes,
        .disk_size = row->disk_bytes,
        .vm_clock_ns = row->fixed.vm_clock_ns,
        .icount = row->icount,
        .date_sec = row->fixed.date_sec,
        .date_nsec = row->fixed.date_nsec,
    };
    memcpy(info, &full, (size_t)min_u64(size, sizeof(full)));
    return 0;
}

int qk_disk_snapshot_freed(struct qk_disk *disk, uint32_t index, uint64_t *bytes,
                           struct qk_error *err)
{
    const struct snapshot *row;
    LOCK_SCOPE(&disk->node->shape_lock);
    int ret = row_of(disk->node, index, &row, err);
    return ret < 0 ? ret : image_snapshot_freed(disk->node->image, row, bytes, err);
}

/* ---- changing it ------------------------------------------------------------------------- */

static int judge(const struct node *node, struct qk_error *err)
{
    if (!node->image)
        return qk_fail(err, -ENOTSUP, "Block driver does not support snapshots");
    if (!node->io.writable)
        return qk_fail(err, -EROFS, "opened read-only");
    return 0;
}

/* The next who asks reads the list anew. */
static void forget(struct node *node)
{
    snapshots_release(TAKE(node->snapshots));
}

int qk_disk_snapshot_create(struct qk_disk *disk, const struct qk_snapshot_options *opts,
                            struct qk_error *err)
{
    struct qk_snapshot_options o = QK_SNAPSHOT_OPTIONS_INIT;
    struct timespec now;
    memcpy(&o, opts, (size_t)min_u64(opts->struct_size, sizeof(o)));
    int ret = judge(disk->node, err);
    if (ret < 0)
        return ret;
    clock_gettime(CLOCK_REALTIME, &now);
    const struct snapshot_params params = {
        .name = o.name ? o.name : "",
        .vm_state_bytes = o.vm_state_size,
        .vm_clock_ns = o.vm_clock_ns,
        .icount = o.icount,
        .date_sec = o.date_sec ? (uint32_t)o.date_sec : (uint32_t)now.tv_sec,
        .date_nsec = o.date_sec ? o.date_nsec : (uint32_t)now.tv_nsec,
    };
    LOCK_SCOPE(&disk->node->shape_lock);
    ret = image_snapshot_create(disk->node->image, &params, err);
    forget(disk->node);
    return ret;
}

int qk_disk_snapshot_delete(struct qk_disk *disk, const char *id, const char *name,
                            struct qk_error *err)
{
    const struct snapshot_key key = {id, name, NULL};
    LOCK_SCOPE(&disk->node->shape_lock);
    int ret = judge(disk->node, err);
    if (ret == 0)
        ret = image_snapshot_delete(disk->node->image, &key, err);
    forget(disk->node);
    return ret;
}

int qk_disk_snapshot_apply(struct qk_disk *disk, const char *id, const char *name,
                           struct qk_error *err)
{
    struct node *node = disk->node;
    const struct snapshot_key key = {id, name, NULL};
    uint64_t size;
    LOCK_SCOPE(&node->shape_lock);
    int ret = judge(node, err);
    if (ret == 0)
        ret = image_snapshot_apply(node->image, &key, err);
    if (ret == 0)
        ret = io_size(&node->io, &size, err);
    if (ret == 0)
        atomic_store(&node->size, round_up(size, 512));
    return ret;
}

int qk_disk_snapshot_rename(struct qk_disk *disk, const char *id, const char *name,
                            const char *new_name, struct qk_error *err)
{
    const struct snapshot_key key = {id, name, NULL};
    LOCK_SCOPE(&disk->node->shape_lock);
    int ret = judge(disk->node, err);
    if (ret == 0)
        ret = image_snapshot_rename(disk->node->image, &key, new_name, err);
    forget(disk->node);
    return ret;
}
