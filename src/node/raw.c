/*
 * raw.c - the format "raw": the bytes of its file, or a window on them (offset=, size=). A raw
 * image that was found by probing guards its first sector: a write that would make it probe as
 * another format is refused with -EPERM, because a guest could otherwise turn its disk into an
 * image whose tables or backing file it chose (INV-7).
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "node/driver.h"
#include "node/probe.h"

#include <inttypes.h>
#include <string.h>

/* Window sizes are in sectors, as QEMU has it. */
static int take_window(struct node *node, struct open_request *req, uint64_t file_bytes,
                       struct qk_error *err)
{
    node->raw_sized = options_find(&req->opts, "size");
    int ret = options_take_size(&req->opts, "offset", &node->raw_off, err);
    if (ret == 0)
        ret = options_take_size(&req->opts, "size", &node->raw_len, err);
    if (ret < 0)
        return ret;
    if (node->raw_off > file_bytes)
        return qk_fail(err, -EINVAL,
                       "Offset (%" PRIu64 ") cannot be greater than size of the "
                       "containing file (%" PRIu64 ")",
                       node->raw_off, file_bytes);
    if (!range_within(node->raw_off, node->raw_len, file_bytes))
        return qk_fail(err, -EINVAL,
                       "The sum of offset (%" PRIu64 ") and size (%" PRIu64 ") has to "
                       "be smaller or equal to the  actual size of the containing "
                       "file (%" PRIu64 ")",
                       node->raw_off, node->raw_len, file_bytes);
    if (!is_aligned(node->raw_len, 512))
        return qk_fail(err, -EINVAL, "Specified size is not multiple of 512");
    return 0;
}

static int raw_open(struct node *node, struct open_request *req, struct qk_error *err)
{
    uint64_t bytes;
    int ret = io_size(&node->file->io, &bytes, err);
    if (ret == 0)
        ret = take_window(node, req, bytes, err);
    node->io.name = node->file->io.name;
    node->io.alignment = is_aligned(node->raw_off, 4096) ? node->file->io.alignment : 1;
    node->io.can_grow = node->file->io.can_grow && !node->raw_sized;
    node->io.zero_init = node->file->io.zero_init && !node->raw_off;
    return ret;
}

/* ---- window ------------------------------------------------------------------------------ */

/* Moves off into the file; a fixed window has no room behind its end. */
static int into_file(struct node *node, uint64_t *off, uint64_t len, struct qk_error *err)
{
    if (node->raw_sized && !range_within(*off, len, node->raw_len))
        return qk_fail_errno(err, -ENOSPC, "write past the end of the raw image");
    if (!try_add_u64(*off, node->raw_off, off) || *off > (uint64_t)INT64_MAX - len)
        return qk_fail_errno(err, -EFBIG, "write past the end of the raw image");
    return 0;
}

static int raw_preadv(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                      struct qk_error *err)
{
    struct node *node = node_of(io);
    uint64_t len = iov_total(iov, iovcnt);
    io_event(&node->file->io, "read_aio");
    if (!node->raw_sized || range_within(off, len, node->raw_len)) {
        if (!try_add_u64(off, node->raw_off, &off))
            return qk_fail(err, -EINVAL, "offset is too large");
        return io_readv(&node->file->io, off, iov, iovcnt, err);
    }
    uint64_t inside = off < node->raw_len ? node->raw_len - off : 0;
    iov_zero(iov, iovcnt, (size_t)inside, (size_t)(len - inside));
    if (!inside)
        return 0;
    CLEANUP_FREE struct iovec *head = calloc((size_t)iovcnt, sizeof(*head));
    if (!head)
        return qk_fail_nomem(err);
    int count = iov_slice(iov, iovcnt, 0, (size_t)inside, head);
    return io_readv(&node->file->io, off + node->raw_off, head, count, err);
}

/* ---- the guarded sector ------------------------------------------------------------------ */

static bool is_guarded(const struct node *node, uint64_t off, uint64_t len)
{
    return node->probed && off < PROBE_GUARD_BYTES && len;
}

/* What the first sector would be after the write, and whether that still looks like nothing. The
 * guard is held, so that two writes cannot make a signature together. */
static int check_guard(struct node *node, uint64_t off, const struct iovec *iov, int iovcnt,
                       struct qk_error *err)
{
    uint8_t sector[PROBE_GUARD_BYTES];
    int ret = io_read(&node->file->io, node->raw_off, sector, sizeof(sector), err);
    if (ret < 0)
        return ret;
    iov_to_buf(iov, iovcnt, 0, sector + off, sizeof(sector) - (size_t)off);
    const char *format = probe_format(sector, sizeof(sector));
    if (!strcmp(format, "raw"))
        return 0;
    return qk_fail(err, -EPERM,
                   "the write would make this raw image, whose format was probed, "
                   "look like a %s image: %s",
                   format, strerror(EPERM));
}

static int raw_pwritev(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                       unsigned flags, struct qk_error *err)
{
    struct node *node = node_of(io);
    uint64_t len = iov_total(iov, iovcnt), at = off;
    if (flags & QK_WRITE_COMPRESSED)
        return qk_fail_errno(err, -ENOTSUP, "raw images hold no compressed data");
    int ret = into_file(node, &at, len, err);
    if (ret < 0)
        return ret;
    io_event(&node->file->io, "write_aio");
    if (!is_guarded(node, off, len))
        return io_writev(&node->file->io, at, iov, iovcnt, flags, err);
    LOCK_SCOPE(&node->guard);
    ret = check_guard(node, off, iov, iovcnt, err);
    return ret < 0 ? ret : io_writev(&node->file->io, at, iov, iovcnt, flags, err);
}

/* Zeroes cannot make a signature by themselves, but what is left around them could be one. */
static int guard_zeroes(struct node *node, uint64_t off, uint64_t len, struct qk_error *err)
{
    uint8_t zeroes[PROBE_GUARD_BYTES] = {0};
    struct iovec iov = {zeroes, (size_t)min_u64(len, PROBE_GUARD_BYTES - off)};
    return check_guard(node, off, &iov, 1, err);
}

static int raw_zero(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                    struct qk_error *err)
{
    struct node *node = node_of(io);
    uint64_t at = off;
    int ret = into_file(node, &at, len, err);
    if (ret < 0)
        return ret;
    if (!is_guarded(node, off, len))
        return io_zero(&node->file->io, at, len, flags, err);
    LOCK_SCOPE(&node->guard);
    ret = guard_zeroes(node, off, len, err);
    return ret < 0 ? ret : io_zero(&node->file->io, at, len, flags, err);
}

static int raw_discard(struct qk_io *io, uint64_t off, uint64_t len, struct qk_error *err)
{
    struct node *node = node_of(io);
    uint64_t at = off;
    int ret = into_file(node, &at, len, err);
    if (ret < 0)
        return ret;
    if (!is_guarded(node, off, len))
        return io_discard(&node->file->io, at, len, err);
    LOCK_SCOPE(&node->guard);
    ret = guard_zeroes(node, off, len, err);
    return ret < 0 ? ret : io_discard(&node->file->io, at, len, err);
}

/* ---- size and status --------------------------------------------------------------------- */

static int raw_size(struct qk_io *io, uint64_t *size, struct qk_error *err)
{
    struct node *node = node_of(io);
    if (node->raw_sized) {
        *size = node->raw_len;
        return 0;
    }
    int ret = io_size(&node->file->io, size, err);
    if (ret == 0)
        *size = *size > node->raw_off ? *size - node->raw_off : 0;
    return ret;
}

static int raw_resize(struct qk_io *io, uint64_t size, enum qk_prealloc prealloc,
                      struct qk_error *err)
{
    struct node *node = node_of(io);
    if (node->raw_sized)
        return qk_fail(err, -ENOTSUP, "Cannot resize fixed-size raw disks");
    if (size > (uint64_t)INT64_MAX - node->raw_off)
        return qk_fail(err, -EFBIG, "Disk size too large for the chosen offset");
    return io_resize(&node->file->io, size + node->raw_off, prealloc, err);
}

static int raw_status(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                      struct qk_extent *extent, struct qk_error *err)
{
    struct node *node = node_of(io);
    uint64_t size;
    int ret = raw_size(io, &size, err);
    if (ret < 0)
        return ret;
    if (off >= size) { /* the rest of the last sector of a file of odd length */
        *extent = (struct qk_extent){
            .off = off,
            .len = len,
            .host_off = off + node->raw_off,
            .file = node->file->shown_name,
            .flags = QK_EXTENT_ZERO | QK_EXTENT_ALLOCATED | QK_EXTENT_OFFSET,
        };
        return 0;
    }
    ret = io_status(&node->file->io, off + node->raw_off, min_u64(len, size - off), flags, extent,
                    err);
    if (ret == 0) {
        extent->off = off;
        extent->flags |= QK_EXTENT_ALLOCATED;
    }
    return ret;
}

static const struct qk_io_ops raw_ops = {
    .name = "raw",
    .preadv = raw_preadv,
    .pwritev = raw_pwritev,
    .zero = raw_zero,
    .discard = raw_discard,
    .flush = pass_flush,
    .size = raw_size,
    .resize = raw_resize,
    .status = raw_status,
    .allocated = pass_allocated,
    .event = pass_event,
    .set_perm = pass_set_perm,
    .set_writable = pass_set_writable,
    .close = node_io_close,
};

static const char *const raw_strong[] = {"offset", "size", NULL};

const struct node_driver raw_driver = {
    .name = "raw",
    .kind = DRIVER_FORMAT,
    .strong = raw_strong,
    .open = raw_open,
    .ops = &raw_ops,
};
