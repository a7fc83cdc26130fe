/*
 * qcow2.c - the format "qcow2": a node over an open image (src/image) and its backing file. An
 * image that was not closed properly is repaired when it is opened for writing, one that is marked
 * corrupt is not opened for writing at all; QK_OPEN_CHECK lifts both for those who look for damage.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/check.h"
#include "node/data_file.h"
#include "node/driver.h"
#include "node/qcow2_options.h"
#include "node/snapshots.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* What QEMU does on open: both kinds of repair, and no use of an image that stays damaged. */
static int repair_dirty(struct node *node, struct image_options opts, struct qk_error *err)
{
    opts.for_check = true;
    opts.secret = NULL; /* a repair can do without, and deriving keys takes time */
    int ret = image_open(&node->file->io, &opts, &node->image, err);
    if (ret < 0)
        return ret;
    struct qk_check_options check = QK_CHECK_OPTIONS_INIT;
    struct qk_check_result result = QK_CHECK_RESULT_INIT;
    check.fix = QK_FIX_LEAKS | QK_FIX_ERRORS;
    ret = check_image(node->image, &check, &result, err);
    if (ret == 0 && (result.check_errors || result.corruptions))
        ret = qk_fail(err, -EIO, "the repair left errors behind");
    struct image *img = node->image;
    node->image = NULL;
    if (ret < 0) {
        image_abandon(img);
        return qk_error_prefix(err, "Could not repair dirty image");
    }
    return image_close(img, err);
}

/* The size of L2 slices depends on the image: whatever was asked for can be judged only now. */
static int open_judging_slices(struct node *node, const struct image_options *opts,
                               struct qk_error *err)
{
    struct image_options safe = *opts;
    uint32_t slice = opts->l2_slice_bytes;
    if (!is_power_of_2(slice) || slice < 512)
        safe.l2_slice_bytes = 0;
    int ret = image_open(&node->file->io, &safe, &node->image, err);
    if (ret < 0)
        return ret;
    uint32_t cluster = image_geometry(node->image)->cluster_bytes;
    if (slice && (!safe.l2_slice_bytes || slice > cluster))
        return qk_fail(err, -EINVAL,
                       "L2 cache entry size must be a power of two between 512 and "
                       "the cluster size (%u)",
                       cluster);
    return 0;
}

static int open_image(struct node *node, const struct image_options *opts, struct qk_error *err)
{
    int ret = open_judging_slices(node, opts, err);
    if (ret < 0 || !opts->writable || opts->for_check || !image_needs_repair(node->image))
        return ret;
    image_abandon(TAKE(node->image));
    ret = repair_dirty(node, *opts, err);
    return ret == 0 ? image_open(&node->file->io, opts, &node->image, err) : ret;
}

/*
 * A writer that leaves the backing file closed sees zeroes there, but what it writes must hold over
 * the real one: zeroes that were written have to hide it later. So the image gets something below
 * that reads as zero, and does not take its unallocated clusters for zeroes that need no entry.
 */
int qcow2_stand_in(struct node *node, struct qk_error *err)
{
    struct open_request req = {.format = "null-co", .role = ROLE_FILE};
    char size[24];
    snprintf(size, sizeof(size), "%" PRIu64, image_size(node->image));
    int ret = options_set(&req.opts, "size", size, OPTION_TEXT, err);
    if (ret == 0)
        ret = node_open(&req, &node->blank, err);
    else
        options_free(&req.opts);
    if (ret == 0)
        image_set_backing(node->image, &node->blank->io);
    return ret;
}

static int qcow2_open(struct node *node, struct open_request *req, struct qk_error *err)
{
    struct image_options opts = {
        .writable = node->flags & QK_OPEN_RDWR,
        .for_check = node->flags & QK_OPEN_CHECK,
        .describe = node_only_described(node),
        .snapshot = req->snapshot,
    };
    struct qcow2_encryption encryption;
    qcow2_take_encryption(req, &encryption);
    opts.secret = &encryption.secret;
    int ret = qcow2_take_options(node, &req->opts, &opts, err);
    if (ret == 0)
        ret = open_image(node, &opts, err);
    if (ret == 0)
        ret = qcow2_judge_encryption(node, &encryption, err);
    if (ret < 0)
        return ret;
    node->io.name = node->file->io.name;
    node->io.can_grow = false;
    ret = data_file_open(node, req, err);
    if (ret == 0)
        ret = chain_open_backing(node, req, err);
    if (ret == 0 && node->backing)
        image_set_backing(node->image, &node->backing->io);
    else if (ret == 0 && opts.writable && image_backing_name(node->image))
        ret = qcow2_stand_in(node, err);
    return ret;
}

int qcow2_make_writable(struct node *node, struct qk_error *err)
{
    struct image_options opts = *image_options_of(node->image);
    opts.writable = true;
    opts.discard_to_file = node->discard == DISCARD_UNMAP;
    struct image *reader = TAKE(node->image);
    opts.unlocked = reader;
    int ret = data_file_set_writable(node, true, err);
    if (ret == 0)
        ret = open_image(node, &opts, err);
    if (ret == 0 && node->data)
        image_set_data(node->image, &node->data->io);
    if (ret == 0 && node->backing)
        image_set_backing(node->image, &node->backing->io);
    else if (ret == 0 && image_backing_name(node->image))
        ret = qcow2_stand_in(node, err);
    if (ret < 0 && node->image)
        image_abandon(node->image);
    if (ret < 0) {
        data_file_set_writable(node, false, NULL);
        node->image = reader;
    } else {
        image_abandon(reader);
    }
    return ret;
}

static int qcow2_release(struct node *node, struct qk_error *err)
{
    snapshots_release(node->snapshots);
    struct image *img = TAKE(node->image);
    if (!img)
        return 0;
    if (node->flags & QK_OPEN_RDWR)
        return image_close(img, err);
    image_abandon(img);
    return 0;
}

/* ---- I/O: the guest's range ends at the disk's end, reads beyond it are zero -------------- */

static int read_across_end(struct node *node, uint64_t off, const struct iovec *iov, int iovcnt,
                           struct qk_error *err)
{
    uint64_t size = image_size(node->image), len = iov_total(iov, iovcnt);
    uint64_t inside = off < size ? size - off : 0;
    iov_zero(iov, iovcnt, (size_t)inside, (size_t)(len - inside));
    if (!inside)
        return 0;
    CLEANUP_FREE struct iovec *head = calloc((size_t)iovcnt, sizeof(*head));
    if (!head)
        return qk_fail_nomem(err);
    int count = iov_slice(iov, iovcnt, 0, (size_t)inside, head);
    return image_readv(node->image, guest_off(off), head, count, err);
}

static int qcow2_preadv(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                        struct qk_error *err)
{
    struct node *node = node_of(io);
    if (node_only_described(node))
        return qk_fail(err, -EACCES, "the image was opened for its description only");
    if (range_within(off, iov_total(iov, iovcnt), image_size(node->image)))
        return image_readv(node->image, guest_off(off), iov, iovcnt, err);
    return read_across_end(node, off, iov, iovcnt, err);
}

static int check_range(struct node *node, uint64_t off, uint64_t len, struct qk_error *err)
{
    if (range_within(off, len, image_size(node->image)))
        return 0;
    return qk_fail_errno(err, -ENOSPC, "write past the end of the disk");
}

static int qcow2_pwritev(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                         unsigned flags, struct qk_error *err)
{
    struct node *node = node_of(io);
    int ret = check_range(node, off, iov_total(iov, iovcnt), err);
    return ret < 0 ? ret : image_writev(node->image, guest_off(off), iov, iovcnt, flags, err);
}

static int qcow2_zero(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                      struct qk_error *err)
{
    struct node *node = node_of(io);
    int ret = check_range(node, off, len, err);
    return ret < 0 ? ret : image_zero(node->image, guest_off(off), len, flags, err);
}

static int qcow2_discard(struct qk_io *io, uint64_t off, uint64_t len, struct qk_error *err)
{
    struct node *node = node_of(io);
    int ret = check_range(node, off, len, err);
    return ret < 0 ? ret : image_discard(node->image, guest_off(off), len, err);
}

static int qcow2_flush(struct qk_io *io, struct qk_error *err)
{
    return io->writable ? image_flush(node_of(io)->image, err) : 0;
}

static int qcow2_size(struct qk_io *io, uint64_t *size, struct qk_error *err)
{
    (void)err;
    *size = image_size(node_of(io)->image);
    return 0;
}

static int qcow2_resize(struct qk_io *io, uint64_t size, enum qk_prealloc prealloc,
                        struct qk_error *err)
{
    return image_resize(node_of(io)->image, size, prealloc, QK_RESIZE_SHRINK, err);
}

/* As a store the node shows its whole chain: what lies above it has no other way to see it. */
static int qcow2_status(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                        struct qk_extent *extent, struct qk_error *err)
{
    return node_status(node_of(io), off, len, flags, extent, err);
}

static const struct qk_io_ops qcow2_ops = {
    .name = "qcow2",
    .preadv = qcow2_preadv,
    .pwritev = qcow2_pwritev,
    .zero = qcow2_zero,
    .discard = qcow2_discard,
    .flush = qcow2_flush,
    .size = qcow2_size,
    .resize = qcow2_resize,
    .status = qcow2_status,
    .allocated = pass_allocated,
    .event = pass_event,
    .set_perm = pass_set_perm,
    .close = node_io_close,
};

const struct node_driver qcow2_driver = {
    .name = "qcow2",
    .kind = DRIVER_FORMAT,
    .metadata = true,
    .open = qcow2_open,
    .release = qcow2_release,
    .ops = &qcow2_ops,
};
