/*
 * vm_state.c - the place behind the disk where machine state is saved (format section "Snapshots",
 * "vm state"): guest addresses from the first on that no L1 entry of the disk covers. It is mapped
 * like guest data, but the disk's size does not bound it, the backing file has no part in it, and
 * L1 grows for it. Relies on the whole disk being held while L1 may move.
 */
#include "image/image_int.h"

uint64_t image_vm_state_off(const struct image *img)
{
    uint64_t off;
    if (!try_round_up(image_size(img), UINT64_C(1) << (img->g.cluster_bits + img->g.l2_bits), &off))
        return QK_OFFSET_NONE;
    return off;
}

/* Guest offset of byte `pos` of the state. */
static int place(const struct image *img, uint64_t pos, uint64_t len, guest_off_t *off,
                 struct qk_error *err)
{
    uint64_t base = image_vm_state_off(img);
    if (base > INT64_MAX || !range_within(pos, len, INT64_MAX - base))
        return qk_fail(err, -EFBIG,
                       "machine state of %" PRIu64 " bytes at %" PRIu64
                       " is more than an image can hold",
                       len, pos);
    *off = guest_off(base + pos);
    return 0;
}

/* As image_read_held, but what has no cluster is zero also when there is a backing file. */
static int read_held(struct image *img, guest_off_t off, const struct iovec *iov, int iovcnt,
                     struct qk_error *err)
{
    uint64_t len = iov_total(iov, iovcnt);
    CLEANUP_FREE struct iovec *part = calloc((size_t)iovcnt + 1, sizeof(*part));
    if (!part)
        return qk_fail_nomem(err);
    int ret = 0;
    for (uint64_t done = 0; done < len && ret == 0;) {
        struct map_extent ext;
        guest_off_t at = guest_off(off.v + done);
        ret = image_map(img, at, len - done, &ext, err);
        if (ret < 0)
            break;
        if (ext.kind == CLUSTER_UNALLOCATED || ext.kind == CLUSTER_UNALLOCATED_ALLOC)
            iov_zero(iov, iovcnt, done, ext.len);
        else
            ret = image_read_held(img, at, part, iov_slice(iov, iovcnt, done, ext.len, part), err);
        done += ext.len;
    }
    return ret;
}

int image_vm_state_readv(struct image *img, uint64_t pos, const struct iovec *iov, int iovcnt,
                         struct qk_error *err)
{
    guest_off_t off;
    struct range_hold hold;
    uint64_t len = iov_total(iov, iovcnt);
    image_drain(img, &hold);
    int ret = place(img, pos, len, &off, err);
    if (ret == 0)
        ret = read_held(img, off, iov, iovcnt, err);
    range_release(&img->ranges, &hold);
    return ret;
}

/* Whole clusters: the bytes around the new ones would else be taken from the backing file. */
static int write_held(struct image *img, guest_off_t off, const struct iovec *iov, int iovcnt,
                      struct qk_error *err)
{
    const uint64_t cluster = img->g.cluster_bytes;
    uint64_t end = off.v + iov_total(iov, iovcnt);
    uint64_t head = off.v & (cluster - 1), tail = -end & (cluster - 1);
    CLEANUP_FREE uint8_t *edges = malloc(2 * cluster);
    CLEANUP_FREE struct iovec *all = malloc(((size_t)iovcnt + 2) * sizeof(*all));
    if (!edges || !all)
        return qk_fail_nomem(err);
    all[0] = (struct iovec){edges, head};
    memcpy(all + 1, iov, (size_t)iovcnt * sizeof(*all));
    all[iovcnt + 1] = (struct iovec){edges + cluster, tail};
    int ret = read_held(img, guest_off(off.v - head), &all[0], 1, err);
    if (ret == 0)
        ret = read_held(img, guest_off(end), &all[iovcnt + 1], 1, err);
    if (ret == 0)
        ret = l1_grow(img, geometry_l1_entries(&img->g, end + tail), err);
    if (ret == 0)
        ret = image_write_held(img, guest_off(off.v - head), all, iovcnt + 2, err);
    return ret;
}

int image_vm_state_writev(struct image *img, uint64_t pos, const struct iovec *iov, int iovcnt,
                          struct qk_error *err)
{
    guest_off_t off;
    struct range_hold hold;
    uint64_t len = iov_total(iov, iovcnt);
    if (!len)
        return 0;
    image_drain(img, &hold);
    int ret = place(img, pos, len, &off, err);
    if (ret == 0 && img->g.data_file) /* a snapshot, which could use it, is not possible either */
        ret =
            qk_fail(err, -ENOTSUP, "an image with an external data file cannot hold machine state");
    if (ret == 0)
        ret = image_begin_writing(img, err);
    if (ret == 0)
        ret = write_held(img, off, iov, iovcnt, err);
    range_release(&img->ranges, &hold);
    return ret < 0 ? ret : image_throttle(img, err);
}

int image_vm_state_forget(struct image *img, uint64_t size, struct qk_error *err)
{
    const uint64_t cluster = img->g.cluster_bytes, table_bytes = cluster << img->g.l2_bits;
    uint64_t off = round_up(image_size(img), cluster);
    uint64_t end = min_u64(geometry_l1_entries(&img->g, size), img->l1_count) * table_bytes;
    while (off < end) {
        struct map_extent ext;
        /* To the end of the last table: the disk may grow on from there. */
        int ret = image_map(img, guest_off(off), end - off, &ext, err);
        if (ret < 0)
            return ret;
        /* Whole clusters, so that their places go with them. */
        uint64_t from = round_down(off, cluster), to = round_up(off + ext.len, cluster);
        if (ext.kind != CLUSTER_UNALLOCATED)
            ret = image_zero_held(img, guest_off(from), to - from, IO_ZERO_UNMAP, err);
        if (ret < 0)
            return ret;
        off += ext.len;
    }
    return 0;
}
