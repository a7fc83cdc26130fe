/*
 * transfer.c - requests of a disk on their way to the top node. With copy-on-read, writers share
 * node->cor and copies hold it alone, so that a copy never overwrites what a writer put there
 * after the copy's read; without, nothing here takes a lock.
 */
#include "node/transfer.h"
#include "base/checked.h"
#include "base/cleanup.h"

#include <string.h>

/* Copies go through memory in pieces of this size. */
enum { COPY_BYTES = 1 << 20 };

static void lock_shared(struct node *node)
{
    if (node->flags & QK_OPEN_COPY_ON_READ)
        pthread_rwlock_rdlock(&node->cor);
}

static void unlock(struct node *node)
{
    if (node->flags & QK_OPEN_COPY_ON_READ)
        pthread_rwlock_unlock(&node->cor);
}

/* ---- writing ----------------------------------------------------------------------------- */

static bool is_zero(const struct iovec *iov, int iovcnt)
{
    for (int i = 0; i < iovcnt; i++) {
        const uint8_t *p = iov[i].iov_base;
        size_t len = iov[i].iov_len;
        if (len && (p[0] || memcmp(p, p + 1, len - 1)))
            return false;
    }
    return true;
}

/* Without discard=unmap a raw file keeps its space; an image may free clusters within itself. */
static unsigned zero_flags(const struct node *node, unsigned flags)
{
    bool unmap = (flags & QK_WRITE_UNMAP) && node->discard != DISCARD_IGNORE &&
                 (node->image || node->discard == DISCARD_UNMAP);
    return (unmap ? IO_ZERO_UNMAP : 0u) | (flags & QK_WRITE_NO_FALLBACK ? IO_ZERO_NO_FALLBACK : 0u);
}

static int zero_locked(struct node *node, uint64_t off, uint64_t len, unsigned flags,
                       struct qk_error *err)
{
    unsigned zero = zero_flags(node, flags);
    if (zero & IO_ZERO_NO_FALLBACK)
        return io_zero(&node->io, off, len, zero, err);
    return io_zero_or_write(&node->io, off, len, zero, err);
}

int transfer_write(struct node *node, uint64_t off, const struct iovec *iov, int iovcnt,
                   unsigned flags, struct qk_error *err)
{
    int ret;
    lock_shared(node);
    if (node->detect_zeroes && !(flags & QK_WRITE_COMPRESSED) && is_zero(iov, iovcnt))
        ret = zero_locked(node, off, iov_total(iov, iovcnt),
                          node->detect_zeroes == DETECT_UNMAP ? QK_WRITE_UNMAP : 0, err);
    else
        ret = io_writev(&node->io, off, iov, iovcnt, flags, err);
    unlock(node);
    return ret;
}

int transfer_zero(struct node *node, uint64_t off, uint64_t len, unsigned flags,
                  struct qk_error *err)
{
    lock_shared(node);
    int ret = zero_locked(node, off, len, flags, err);
    unlock(node);
    return ret;
}

int transfer_discard(struct node *node, uint64_t off, uint64_t len, struct qk_error *err)
{
    if (node->discard == DISCARD_IGNORE || (!node->image && node->discard != DISCARD_UNMAP))
        return 0;
    lock_shared(node);
    int ret = io_discard(&node->io, off, len, err);
    unlock(node);
    return ret == -ENOTSUP ? 0 : ret; /* a hint: a store that cannot is no failure */
}

/* ---- copy-on-read ------------------------------------------------------------------------ */

static int copy_range(struct node *node, uint64_t off, uint64_t len, uint8_t *buf,
                      struct qk_error *err)
{
    while (len) {
        size_t n = (size_t)min_u64(len, COPY_BYTES);
        int ret = io_read(&node->io, off, buf, n, err);
        if (ret == 0 && is_zero(&(struct iovec){buf, n}, 1)) /* takes no space where it need not */
            ret = io_zero_or_write(&node->io, off, n, 0, err);
        else if (ret == 0)
            ret = io_write(&node->io, off, buf, n, 0, err);
        if (ret < 0)
            return ret;
        off += n;
        len -= n;
    }
    return 0;
}

/* Cluster by cluster, as the image would allocate anyway: a partial copy would copy the rest of
 * the cluster all the same. */
static int copy_up(struct node *node, uint64_t off, uint64_t len, struct qk_error *err)
{
    uint64_t cluster = image_geometry(node->image)->cluster_bytes;
    uint64_t end = min_u64(round_up(off + len, cluster), node_size(node));
    off = round_down(off, cluster);
    CLEANUP_FREE uint8_t *buf = malloc(COPY_BYTES);
    if (!buf)
        return qk_fail_nomem(err);
    while (off < end) {
        struct qk_extent extent;
        int ret = node_own_status(node, off, end - off, QK_STATUS_FAST, &extent, err);
        if (ret < 0)
            return ret;
        uint64_t n = min_u64(extent.len, end - off);
        if (!(extent.flags & (QK_EXTENT_ALLOCATED | QK_EXTENT_ZERO | QK_EXTENT_DATA)))
            ret = copy_range(node, off, n, buf, err);
        if (ret < 0)
            return ret;
        off += n;
    }
    return 0;
}

int transfer_copy_on_read(struct node *node, uint64_t off, const struct iovec *iov, int iovcnt,
                          struct qk_error *err)
{
    uint64_t len = iov_total(iov, iovcnt);
    if (node->image && node->backing && len) {
        pthread_rwlock_wrlock(&node->cor);
        int ret = copy_up(node, off, len, err);
        pthread_rwlock_unlock(&node->cor);
        if (ret < 0)
            return ret;
    }
    return io_readv(&node->io, off, iov, iovcnt, err);
}
