/*
 * disk.c - the public calls on an open disk: opening and closing, guest I/O, status, size. Ranges
 * and flags are judged here, once; below, everything is a call on the top node. Copy-on-read,
 * detect-zeroes and the meaning of discard belong to the disk, not to a driver, and live here too.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/check.h"
#include "node/driver.h"
#include "node/snapshots.h"
#include "node/transfer.h"

#include <string.h>

/* ---- opening ----------------------------------------------------------------------------- */

/* Fields behind the caller's struct_size read as zero. */
static struct qk_open_options options_of(const struct qk_open_options *opts)
{
    struct qk_open_options copy = QK_OPEN_OPTIONS_INIT;
    if (opts)
        memcpy(&copy, opts, (size_t)min_u64(opts->struct_size, sizeof(copy)));
    return copy;
}

static int check_combination(const struct qk_open_options *opts, const char *name,
                             struct qk_error *err)
{
    if (!name && !(opts->options && *opts->options))
        return qk_fail(err, -EINVAL, "Must specify either driver or file");
    if ((opts->flags & QK_OPEN_FORCE_SHARE) && (opts->flags & QK_OPEN_RDWR))
        return qk_fail(err, -EINVAL, "force-share=on can only be used with read-only images");
    bool snapshot = opts->snapshot || opts->snapshot_id || opts->snapshot_name;
    if (snapshot && opts->flags & (QK_OPEN_RDWR | QK_OPEN_CHECK))
        return qk_fail(err, -EINVAL, "an internal snapshot can only be read");
    return 0;
}

int qk_disk_open(const char *name, const struct qk_open_options *opts, struct qk_disk **out,
                 struct qk_error *err)
{
    const struct qk_open_options o = options_of(opts);
    int ret = check_combination(&o, name, err);
    if (ret < 0)
        return ret;
    struct open_request req = {
        .name = name, .format = o.format, .flags = o.flags, .role = ROLE_DISK, .policy = o.policy};
    const struct snapshot_key snapshot = {o.snapshot_id, o.snapshot_name, o.snapshot};
    req.secrets = o.secrets;
    if (o.snapshot || o.snapshot_id || o.snapshot_name)
        req.snapshot = &snapshot;
    if (o.flags & QK_OPEN_SNAPSHOT)
        req.flags &= ~(unsigned)(QK_OPEN_RDWR | QK_OPEN_COPY_ON_READ);
    ret = options_add_list(&req.opts, o.options, err);
    if (ret < 0) {
        options_free(&req.opts);
        return ret;
    }
    struct node *top;
    ret = node_open(&req, &top, err);
    if (ret == 0 && req.snapshot && !top->image) {
        ret = qk_fail_at(err, -ENOTSUP, WHERE(NULL, "snapshot table", QK_OFFSET_NONE),
                         "Block format '%s' used by device '' does not support feature 'internal "
                         "snapshots'",
                         top->driver->name);
        node_close(top, NULL);
    }
    if (ret == 0 && (o.flags & QK_OPEN_SNAPSHOT)) {
        ret = overlay_add(&top, o.flags, err);
        if (ret < 0)
            node_close(top, NULL);
    }
    if (ret == 0)
        *out = &top->handle;
    return ret;
}

int qk_disk_close(struct qk_disk *disk, struct qk_error *err)
{
    if (!disk)
        return 0;
    struct node *node = disk->node;
    int ret = node->io.writable ? io_flush(&node->io, err) : 0;
    int closed = node_close(node, ret < 0 ? NULL : err);
    return ret < 0 ? ret : closed;
}

struct qk_disk *qk_disk_backing(struct qk_disk *disk)
{
    return disk->node->backing ? &disk->node->backing->handle : NULL;
}

uint64_t qk_disk_size(struct qk_disk *disk)
{
    return node_size(disk->node);
}

/* ---- guest I/O --------------------------------------------------------------------------- */

static int check_range(struct node *node, uint64_t off, uint64_t len, struct qk_error *err)
{
    if (range_within(off, len, node_size(node)))
        return 0;
    return qk_fail_at(err, -EINVAL, WHERE(node->io.name, NULL, off),
                      "The range of %llu bytes at %llu is not inside the disk of %llu bytes",
                      (unsigned long long)len, (unsigned long long)off,
                      (unsigned long long)node_size(node));
}

static int check_iov(const struct iovec *iov, int iovcnt, struct qk_error *err)
{
    size_t total = 0;
    for (int i = 0; i < iovcnt; i++) {
        if (__builtin_add_overflow(total, iov[i].iov_len, &total))
            return qk_fail(err, -EINVAL, "The lengths of the vector are too large");
    }
    return iovcnt < 0 ? qk_fail(err, -EINVAL, "The vector has a negative length") : 0;
}

int qk_disk_readv(struct qk_disk *disk, uint64_t off, const struct iovec *iov, int iovcnt,
                  struct qk_error *err)
{
    struct node *node = disk->node;
    int ret = check_iov(iov, iovcnt, err);
    if (ret == 0)
        ret = check_range(node, off, iov_total(iov, iovcnt), err);
    if (ret < 0)
        return ret;
    if (node->flags & QK_OPEN_COPY_ON_READ)
        return transfer_copy_on_read(node, off, iov, iovcnt, err);
    return io_readv(&node->io, off, iov, iovcnt, err);
}

int qk_disk_read(struct qk_disk *disk, uint64_t off, void *buf, size_t len, struct qk_error *err)
{
    return qk_disk_readv(disk, off, &(struct iovec){buf, len}, 1, err);
}

/* After a change: what must be stable before the call returns. */
static int settle(struct node *node, unsigned flags, struct qk_error *err)
{
    if (!(flags & QK_WRITE_FUA) && !(node->flags & QK_OPEN_WRITETHROUGH))
        return 0;
    return io_flush(&node->io, err);
}

static int check_write(struct node *node, uint64_t off, uint64_t len, struct qk_error *err)
{
    if (!node->io.writable)
        return qk_fail_at(err, -EROFS, WHERE(node->io.name, NULL, off), "opened read-only");
    return check_range(node, off, len, err);
}

int qk_disk_writev(struct qk_disk *disk, uint64_t off, const struct iovec *iov, int iovcnt,
                   unsigned flags, struct qk_error *err)
{
    struct node *node = disk->node;
    int ret = check_iov(iov, iovcnt, err);
    if (ret == 0)
        ret = check_write(node, off, iov_total(iov, iovcnt), err);
    if (ret == 0)
        ret = transfer_write(node, off, iov, iovcnt, flags & ~(unsigned)QK_WRITE_FUA, err);
    return ret < 0 ? ret : settle(node, flags, err);
}

int qk_disk_write(struct qk_disk *disk, uint64_t off, const void *buf, size_t len, unsigned flags,
                  struct qk_error *err)
{
    struct iovec iov = {(void *)(uintptr_t)buf, len};
    return qk_disk_writev(disk, off, &iov, 1, flags, err);
}

int qk_disk_write_zeroes(struct qk_disk *disk, uint64_t off, uint64_t len, unsigned flags,
                         struct qk_error *err)
{
    struct node *node = disk->node;
    int ret = check_write(node, off, len, err);
    if (ret == 0 && len)
        ret = transfer_zero(node, off, len, flags, err);
    return ret < 0 ? ret : settle(node, flags, err);
}

int qk_disk_discard(struct qk_disk *disk, uint64_t off, uint64_t len, struct qk_error *err)
{
    struct node *node = disk->node;
    int ret = check_write(node, off, len, err);
    /* Not settled, as in QEMU: a crash that brings back what nobody wants takes nothing away. */
    return ret == 0 && len ? transfer_discard(node, off, len, err) : ret;
}

int qk_disk_flush(struct qk_disk *disk, struct qk_error *err)
{
    return disk->node->io.writable ? io_flush(&disk->node->io, err) : 0;
}

/* ---- machine state ----------------------------------------------------------------------- */

static int refuse_vm_state(struct node *node, struct qk_error *err)
{
    return qk_fail(err, -ENOTSUP, "Images of format '%s' cannot hold machine state",
                   node->driver->name);
}

int qk_disk_read_vm_state(struct qk_disk *disk, uint64_t off, void *buf, size_t len,
                          struct qk_error *err)
{
    struct node *node = disk->node;
    if (!node->image)
        return refuse_vm_state(node, err);
    return image_vm_state_readv(node->image, off, &(struct iovec){buf, len}, 1, err);
}

int qk_disk_write_vm_state(struct qk_disk *disk, uint64_t off, const void *buf, size_t len,
                           struct qk_error *err)
{
    struct node *node = disk->node;
    if (!node->image)
        return refuse_vm_state(node, err);
    if (!node->io.writable)
        return qk_fail_at(err, -EROFS, WHERE(node->io.name, NULL, off), "opened read-only");
    struct iovec iov = {(void *)(uintptr_t)buf, len};
    int ret = image_vm_state_writev(node->image, off, &iov, 1, err);
    return ret < 0 ? ret : settle(node, 0, err);
}

/* ---- status, size, check ----------------------------------------------------------------- */

int qk_disk_status(struct qk_disk *disk, uint64_t off, uint64_t len, unsigned flags,
                   struct qk_extent *extent, struct qk_error *err)
{
    struct node *node = disk->node;
    uint64_t size = node_size(node);
    if (off >= size || !len)
        return qk_fail_at(err, -EINVAL, WHERE(node->io.name, NULL, off),
                          "Offset %llu is not inside the disk of %llu bytes",
                          (unsigned long long)off, (unsigned long long)size);
    int ret = node_status(node, off, min_u64(len, size - off), flags, extent, err);
    if (ret == 0 && off + extent->len == size)
        extent->flags |= QK_EXTENT_EOF;
    return ret;
}

int qk_disk_check(struct qk_disk *disk, const struct qk_check_options *opts,
                  struct qk_check_result *result, struct qk_error *err)
{
    struct node *node = disk->node;
    struct qk_check_options o = QK_CHECK_OPTIONS_INIT;
    struct qk_check_result full = QK_CHECK_RESULT_INIT;
    const size_t size = result->struct_size;
    if (opts)
        memcpy(&o, opts, (size_t)min_u64(opts->struct_size, sizeof(o)));
    if (size < sizeof(size))
        return qk_fail(err, -EINVAL, "struct_size of the result is not set");
    if (!node->image)
        return qk_fail(err, -ENOTSUP, "This image format does not support checks");
    if (o.fix && !o.plan_only && !node->io.writable)
        return qk_fail(err, -EROFS, "A repair needs the image to be opened for writing");
    int ret = check_image(node->image, &o, &full, err);
    full.struct_size = size;
    memcpy(result, &full, (size_t)min_u64(size, sizeof(full)));
    return ret;
}
