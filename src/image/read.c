/*
 * read.c - reading guest data and describing it. map says where each extent is, transfer fetches
 * it: from the image file, from the backing disk, or as zeroes. The caller's range hold keeps the
 * clusters in place meanwhile.
 */
#include "image/image_int.h"

static int read_into(struct qk_io *io, uint64_t off, const struct piece *p, struct qk_error *err)
{
    if (p->skip == 0 && p->len == iov_total(p->iov, p->iovcnt))
        return io_readv(io, off, p->iov, p->iovcnt, err);
    struct iov_view view;
    if (iov_view_init(&view, p->iov, p->iovcnt, p->skip, p->len) < 0)
        return qk_fail_nomem(err);
    int ret = io_readv(io, off, view.iov, view.iovcnt, err);
    iov_view_free(&view);
    return ret;
}

static int read_data(struct image *img, struct data_place at, const struct piece *p,
                     struct qk_error *err)
{
    if (p->skip == 0 && p->len == iov_total(p->iov, p->iovcnt))
        return data_readv(img, at, p->iov, p->iovcnt, err);
    struct iov_view view;
    if (iov_view_init(&view, p->iov, p->iovcnt, p->skip, p->len) < 0)
        return qk_fail_nomem(err);
    int ret = data_readv(img, at, view.iov, view.iovcnt, err);
    iov_view_free(&view);
    return ret;
}

static int read_extent(struct image *img, guest_off_t off, const struct map_extent *ext,
                       const struct piece *p, struct qk_error *err)
{
    switch (ext->kind) {
    case CLUSTER_NORMAL:
        return read_data(img, (struct data_place){off, ext->host}, p, err);
    case CLUSTER_COMPRESSED:
        return compressed_read(img, off, ext, p, err);
    case CLUSTER_UNALLOCATED:
    case CLUSTER_UNALLOCATED_ALLOC:
        if (img->backing) {
            io_event(img->file, "read_backing_aio");
            return read_into(img->backing, off.v, p, err);
        }
        break;
    default:
        break;
    }
    iov_zero(p->iov, p->iovcnt, p->skip, p->len);
    return 0;
}

int image_read_held(struct image *img, guest_off_t off, const struct iovec *iov, int iovcnt,
                    struct qk_error *err)
{
    uint64_t len = iov_total(iov, iovcnt);
    for (uint64_t done = 0; done < len;) {
        struct map_extent ext;
        guest_off_t at = guest_off(off.v + done);
        int ret = image_map(img, at, len - done, &ext, err);
        /* Neighbouring slices often continue one host run: one call to the file for all. */
        while (ret == 0 && ext.kind == CLUSTER_NORMAL && done + ext.len < len) {
            struct map_extent next;
            ret = image_map(img, guest_off(at.v + ext.len), len - done - ext.len, &next, err);
            if (ret < 0 || next.kind != ext.kind || next.host != ext.host + ext.len)
                break;
            ext.len += next.len;
        }
        struct piece p = {iov, iovcnt, done, ext.len};
        if (ret == 0)
            ret = read_extent(img, at, &ext, &p, err);
        if (ret < 0)
            return ret;
        done += ext.len;
    }
    return 0;
}

static struct range_hold hold_shared(const struct image *img, guest_off_t off, uint64_t len)
{
    return (struct range_hold){
        .first = image_cluster_of(img, off.v),
        .end = image_cluster_of(img, off.v + len - 1) + 1,
    };
}

static int check_range(struct image *img, guest_off_t off, uint64_t len, struct qk_error *err)
{
    if (range_within(off.v, len, image_size(img)))
        return 0;
    return qk_fail(err, -EIO,
                   "the range of %" PRIu64 " bytes at %" PRIu64 " leaves the disk of %" PRIu64
                   " bytes",
                   len, off.v, image_size(img));
}

int image_readv(struct image *img, guest_off_t off, const struct iovec *iov, int iovcnt,
                struct qk_error *err)
{
    uint64_t len = iov_total(iov, iovcnt);
    if (!len)
        return 0;
    struct range_hold hold = hold_shared(img, off, len);
    range_acquire(&img->ranges, &hold);
    int ret = check_range(img, off, len, err);
    if (ret == 0)
        ret = image_read_held(img, off, iov, iovcnt, err);
    range_release(&img->ranges, &hold);
    return ret;
}

static const unsigned status_flags[] = {
    [CLUSTER_UNALLOCATED] = 0,
    [CLUSTER_UNALLOCATED_ALLOC] = QK_EXTENT_OFFSET,
    [CLUSTER_ZERO_PLAIN] = QK_EXTENT_ZERO | QK_EXTENT_ALLOCATED,
    [CLUSTER_ZERO_ALLOC] = QK_EXTENT_ZERO | QK_EXTENT_ALLOCATED | QK_EXTENT_OFFSET,
    [CLUSTER_NORMAL] = QK_EXTENT_DATA | QK_EXTENT_ALLOCATED | QK_EXTENT_OFFSET,
    [CLUSTER_COMPRESSED] = QK_EXTENT_DATA | QK_EXTENT_ALLOCATED | QK_EXTENT_COMPRESSED,
};

/* Where encrypted bytes are is of no use: they are not the disk's. */
static unsigned flags_of(const struct image *img, enum cluster_kind kind)
{
    return status_flags[kind] & ~(image_is_encrypted(img) ? (unsigned)QK_EXTENT_OFFSET : 0);
}

static bool continues(const struct image *img, const struct qk_extent *extent,
                      const struct map_extent *next)
{
    unsigned flags = flags_of(img, next->kind);
    return flags == extent->flags &&
           (!(flags & QK_EXTENT_OFFSET) || next->host == extent->host_off + extent->len);
}

static int status_held(struct image *img, guest_off_t off, uint64_t len, struct qk_extent *extent,
                       struct qk_error *err)
{
    struct map_extent ext;
    int ret = l2_shapes_map(img, off, len, &ext, err);
    if (ret < 0)
        return ret;
    *extent = (struct qk_extent){
        .off = off.v,
        .len = ext.len,
        .host_off = ext.host,
        .file = img->data ? img->data->name : NULL,
        .flags = flags_of(img, ext.kind),
    };
    while (extent->len < len) {
        ret = l2_shapes_map(img, guest_off(off.v + extent->len), len - extent->len, &ext, NULL);
        if (ret < 0 || !continues(img, extent, &ext))
            break;
        extent->len += ext.len;
    }
    return 0;
}

int image_status(struct image *img, guest_off_t off, uint64_t len, struct qk_extent *extent,
                 struct qk_error *err)
{
    if (!len)
        return qk_fail(err, -EINVAL, "the range is empty");
    struct range_hold hold = hold_shared(img, off, len);
    range_acquire(&img->ranges, &hold);
    int ret = check_range(img, off, len, err);
    if (ret == 0)
        ret = status_held(img, off, len, extent, err);
    range_release(&img->ranges, &hold);
    return ret;
}
