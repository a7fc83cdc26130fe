/*
 * null_node.c - the protocols "null-co" and "null-aio": a disk of a given size that keeps nothing
 * and always reads as zero. (QEMU leaves read buffers alone unless read-zeroes=on; bytes that
 * nobody chose are no use to a library, so ours are zero either way.)
 */
#include "base/checked.h"
#include "node/driver.h"

#include <string.h>

#define NULL_DEFAULT_BYTES (UINT64_C(1) << 30)

static int parse_name(const char *name, struct options *opts, struct qk_error *err)
{
    (void)opts;
    if (strcmp(name, "null-co://") && strcmp(name, "null-aio://"))
        return qk_fail(err, -EINVAL, "The only allowed filename for this driver is '%s://'",
                       strncmp(name, "null-aio", 8) ? "null-co" : "null-aio");
    return 0;
}

static int null_open(struct node *node, struct open_request *req, struct qk_error *err)
{
    uint64_t latency = 0;
    node->raw_len = NULL_DEFAULT_BYTES;
    node->io.can_grow = false;
    int ret = options_take_size(&req->opts, "size", &node->raw_len, err);
    if (ret == 0)
        ret = options_take_bool(&req->opts, "read-zeroes", &node->null_zeroes, err);
    if (ret == 0)
        ret = options_take_size(&req->opts, "latency-ns", &latency, err);
    return ret;
}

static int null_preadv(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                       struct qk_error *err)
{
    (void)io, (void)off, (void)err;
    iov_zero(iov, iovcnt, 0, iov_total(iov, iovcnt));
    return 0;
}

static int check_end(struct qk_io *io, uint64_t off, uint64_t len, struct qk_error *err)
{
    if (range_within(off, len, node_of(io)->raw_len))
        return 0;
    return qk_fail_errno(err, -ENOSPC, "write past the end");
}

static int null_pwritev(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                        unsigned flags, struct qk_error *err)
{
    (void)flags;
    return check_end(io, off, iov_total(iov, iovcnt), err);
}

static int null_zero(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                     struct qk_error *err)
{
    (void)flags;
    return check_end(io, off, len, err);
}

static int null_discard(struct qk_io *io, uint64_t off, uint64_t len, struct qk_error *err)
{
    return check_end(io, off, len, err);
}

static int null_flush(struct qk_io *io, struct qk_error *err)
{
    (void)io, (void)err;
    return 0;
}

static int null_size(struct qk_io *io, uint64_t *size, struct qk_error *err)
{
    (void)err;
    *size = node_of(io)->raw_len;
    return 0;
}

static int null_status(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                       struct qk_extent *extent, struct qk_error *err)
{
    (void)flags, (void)err;
    /* without read-zeroes=on nobody asked for zeroes: no layer decides that they are read */
    *extent = (struct qk_extent){.off = off, .len = len, .flags = QK_EXTENT_ZERO};
    if (!node_of(io)->null_zeroes)
        return 0;
    extent->flags |= QK_EXTENT_ALLOCATED | QK_EXTENT_OFFSET;
    extent->host_off = off;
    extent->file = node_of(io)->shown_name;
    return 0;
}

static int null_allocated(struct qk_io *io, uint64_t *bytes, struct qk_error *err)
{
    (void)io, (void)err;
    *bytes = 0;
    return 0;
}

static const struct qk_io_ops null_ops = {
    .name = "null-co",
    .preadv = null_preadv,
    .pwritev = null_pwritev,
    .zero = null_zero,
    .discard = null_discard,
    .flush = null_flush,
    .size = null_size,
    .status = null_status,
    .allocated = null_allocated,
    .close = node_io_close,
};

static const char *const null_strong[] = {"size", "read-zeroes", NULL};

#define NULL_DRIVER(name_)                                                                         \
    {                                                                                              \
        .name = (name_), .kind = DRIVER_PROTOCOL, .prefix = (name_), .strong = null_strong,        \
        .parse_name = parse_name, .open = null_open, .ops = &null_ops,                             \
    }

const struct node_driver null_co_driver = NULL_DRIVER("null-co");
const struct node_driver null_aio_driver = NULL_DRIVER("null-aio");
