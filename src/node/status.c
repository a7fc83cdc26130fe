/*
 * status.c - who decides a guest range: walking down the chain until a layer does. Depth counts
 * layers as qemu-img map prints them: where no layer decides, it is that of the last layer that
 * could be asked, and the range reads as zero.
 */
#include "base/checked.h"
#include "node/driver.h"

int node_own_status(struct node *node, uint64_t off, uint64_t len, unsigned flags,
                    struct qk_extent *extent, struct qk_error *err)
{
    if (!node->image)
        return io_status(&node->io, off, len, flags, extent, err);
    uint64_t size = image_size(node->image);
    if (off >= size) { /* above the end, up to the next multiple of 512 */
        *extent = (struct qk_extent){.off = off, .len = len};
        return 0;
    }
    if (node_only_described(node))
        return qk_fail(err, -EACCES, "the image was opened for its description only");
    int ret = image_status(node->image, guest_off(off), min_u64(len, size - off), extent, err);
    if (ret < 0)
        return ret;
    if (extent->flags & QK_EXTENT_OFFSET)
        extent->file = (node->data ? node->data : node->file)->shown_name;
    return 0;
}

int node_status_above(struct node *node, const struct node *base, uint64_t off, uint64_t len,
                      struct qk_extent *extent, struct qk_error *err)
{
    for (unsigned depth = 0;; depth++) {
        int ret = node_own_status(node, off, len, 0, extent, err);
        if (ret < 0)
            return ret;
        len = min_u64(len, extent->len);
        extent->len = len;
        extent->depth = depth;
        extent->flags &= QK_EXTENT_ALLOCATED | QK_EXTENT_ZERO | QK_EXTENT_DATA;
        if (extent->flags || node->backing == base)
            return 0;
        node = node->backing;
        uint64_t size = node ? node_size(node) : 0;
        if (off >= size) {
            /* A place may be reserved all the same. */
            extent->flags = QK_EXTENT_ZERO | (extent->flags & QK_EXTENT_OFFSET);
            return 0;
        }
        len = min_u64(len, size - off);
    }
}

/*
 * An image whose file occupies clearly less than its length was made with preallocated metadata:
 * only then is it worth to ask the file system for holes below each extent, and only then does
 * QEMU's map show them. Found out once, on the first question.
 */
static bool file_is_sparse(struct node *node)
{
    enum { UNKNOWN, DENSE, SPARSE };
    int known = atomic_load_explicit(&node->sparse_file, memory_order_relaxed);
    if (known != UNKNOWN)
        return known == SPARSE;
    uint64_t length, occupied;
    bool sparse = false;
    if (io_size(&node->file->io, &length, NULL) == 0 &&
        io_allocated(&node->file->io, &occupied, NULL) == 0) {
        uint64_t cluster = image_geometry(node->image)->cluster_bytes;
        uint64_t real = occupied / cluster;
        sparse = div_round_up(length, cluster) >= max_u64(real + real / 9, real + 2);
    }
    atomic_store_explicit(&node->sparse_file, sparse ? SPARSE : DENSE, memory_order_relaxed);
    return sparse;
}

/* The holes of a raw data file are the disk's zeroes; those of another one are never looked at, as
 * in QEMU. */
static bool holes_count(struct node *node)
{
    return node->data ? image_data_file_is_raw(node->image) : file_is_sparse(node);
}

/* A hole in the file below is zero, whatever the layer says of the data that it keeps there. */
static int look_for_hole(struct node *node, struct qk_extent *extent, unsigned flags,
                         struct qk_error *err)
{
    const unsigned data = QK_EXTENT_DATA | QK_EXTENT_OFFSET;
    if (!node->image || (flags & QK_STATUS_FAST) || (extent->flags & data) != data ||
        (extent->flags & (QK_EXTENT_ZERO | QK_EXTENT_COMPRESSED)) || !holes_count(node))
        return 0;
    struct qk_extent below;
    struct node *store = node->data ? node->data : node->file;
    int ret = io_status(&store->io, extent->host_off, extent->len, 0, &below, err);
    if (ret < 0)
        return ret;
    extent->len = min_u64(extent->len, below.len);
    if (below.flags & QK_EXTENT_ZERO)
        extent->flags |= QK_EXTENT_ZERO;
    return 0;
}

int node_status(struct node *node, uint64_t off, uint64_t len, unsigned flags,
                struct qk_extent *extent, struct qk_error *err)
{
    for (unsigned depth = 0;; depth++) {
        int ret = node_own_status(node, off, len, flags, extent, err);
        if (ret < 0)
            return ret;
        extent->depth = depth;
        extent->flags &= ~(unsigned)QK_EXTENT_EOF;
        len = min_u64(len, extent->len);
        extent->len = len;
        if (extent->flags & (QK_EXTENT_ALLOCATED | QK_EXTENT_ZERO | QK_EXTENT_DATA))
            return look_for_hole(node, extent, flags, err);
        if (flags & QK_STATUS_TOP)
            return 0;
        node = node->backing;
        uint64_t size = node ? node_size(node) : 0;
        if (off >= size) { /* there is none, or it is too short */
            /* A place may be reserved all the same. */
            extent->flags = QK_EXTENT_ZERO | (extent->flags & QK_EXTENT_OFFSET);
            return 0;
        }
        len = min_u64(len, size - off);
    }
}
