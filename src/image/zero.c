/*
 * zero.c - write zeroes and discard: whole clusters by changing their entries, the rest by writing
 * zero bytes (or, for a discard, not at all). Clusters that lose their host cluster wait in the
 * queue of frees (INV-2).
 */
#include "image/image_int.h"

#define CHANGE_MAX_CLUSTERS 65536 /* entries changed between two looks at how much is dirty */

/* ---- what an entry becomes ---- */

struct zeroing {
    const struct image *img;
    bool unmap;
};

static bool zero_entry(void *opaque, uint64_t index, struct l2_entry old, struct l2_entry *entry)
{
    const struct zeroing *z = opaque;
    (void)index;
    enum cluster_kind kind = l2_entry_kind(&z->img->g, old, 0);
    bool has_host = kind == CLUSTER_NORMAL || kind == CLUSTER_ZERO_ALLOC;
    /* Version 2 has no zero flag: unallocated reads as zero (there is no backing file then). */
    bool v2 = z->img->h.version < 3;
    bool drop = kind == CLUSTER_COMPRESSED || ((z->unmap || v2) && has_host);
    entry->raw = (drop ? 0 : old.raw) | (v2 ? 0 : ENTRY_ZERO);
    return true;
}

static bool discard_entry(void *opaque, uint64_t index, struct l2_entry old, struct l2_entry *entry)
{
    const struct image *img = opaque;
    (void)index;
    enum cluster_kind kind = l2_entry_kind(&img->g, old, 0);
    if (kind == CLUSTER_ZERO_PLAIN || (kind == CLUSTER_UNALLOCATED && !img->backing))
        return false;
    /* Without a zero flag there is no backing file either: unallocated reads as zero. */
    entry->raw = img->h.version >= 3 ? ENTRY_ZERO : 0;
    return true;
}

/* Changes entries from off on. What is unallocated and reads as zero already is left out where the
 * change would leave it so: no table is made for it. */
static int change_range(struct image *img, guest_off_t off, uint64_t clusters, l2_change_fn fn,
                        void *opaque, struct qk_error *err)
{
    bool skip = !img->backing && (fn == discard_entry || img->h.version < 3);
    int ret = 0;
    for (uint64_t done = 0; done < clusters && ret == 0;) {
        uint64_t n = min_u64(clusters - done, CHANGE_MAX_CLUSTERS);
        guest_off_t at = guest_off(off.v + (done << img->g.cluster_bits));
        struct map_extent ext = {.kind = CLUSTER_NORMAL};
        if (skip)
            ret = image_map(img, at, n << img->g.cluster_bits, &ext, err);
        if (ret == 0 && ext.kind == CLUSTER_UNALLOCATED) {
            done += div_round_up(ext.len, img->g.cluster_bytes);
            continue;
        }
        if (ret == 0 && skip)
            n = div_round_up(ext.len, img->g.cluster_bytes);
        if (ret == 0)
            ret = l2_change(img, at, n, fn, opaque, err);
        if (ret == 0)
            ret = image_throttle(img, err);
        done += n;
    }
    return ret;
}

/* ---- parts of a cluster ---- */

static int backing_is_zero(struct image *img, uint64_t off, uint64_t len, bool *zero,
                           struct qk_error *err)
{
    uint64_t size;
    int ret = io_size(img->backing, &size, err);
    uint64_t end = min_u64(off + len, size);
    *zero = true;
    while (ret == 0 && off < end && *zero) {
        struct qk_extent ext;
        ret = io_status(img->backing, off, end - off, 0, &ext, err);
        if (ret < 0)
            break;
        *zero = ext.flags & QK_EXTENT_ZERO || !(ext.flags & QK_EXTENT_ALLOCATED);
        off += ext.len;
    }
    return ret;
}

/* The cluster has no data of its own, and its bytes outside [off, off + len) read as zero. */
static int rest_is_zero(struct image *img, uint64_t off, uint64_t len, bool *zero,
                        struct qk_error *err)
{
    struct map_extent ext;
    uint64_t start = round_down(off, img->g.cluster_bytes);
    uint64_t end = min_u64(start + img->g.cluster_bytes, max_u64(image_size(img), off + len));
    int ret = image_map(img, guest_off(off), 1, &ext, err);
    *zero = ext.kind == CLUSTER_ZERO_PLAIN || ext.kind == CLUSTER_ZERO_ALLOC ||
            (ext.kind == CLUSTER_UNALLOCATED && !img->backing);
    if (ret < 0 || *zero || ext.kind != CLUSTER_UNALLOCATED)
        return ret;
    ret = backing_is_zero(img, start, off - start, zero, err);
    if (ret == 0 && *zero)
        ret = backing_is_zero(img, off + len, end - off - len, zero, err);
    return ret;
}

static int write_zero_bytes(struct image *img, uint64_t off, uint64_t len, struct qk_error *err)
{
    uint64_t chunk_max = max_u64(img->g.cluster_bytes, 1u << 20);
    CLEANUP_FREE uint8_t *zeroes = calloc(1, (size_t)min_u64(len, chunk_max));
    if (!zeroes)
        return qk_fail_nomem(err);
    int ret = 0;
    for (uint64_t done = 0; done < len && ret == 0;) {
        uint64_t n = min_u64(len - done, chunk_max);
        ret = image_write_held(img, guest_off(off + done), &(struct iovec){zeroes, (size_t)n}, 1,
                               err);
        if (ret == 0)
            ret = image_throttle(img, err);
        done += n;
    }
    return ret;
}

static int zero_part(struct image *img, uint64_t off, uint64_t len, unsigned flags,
                     struct qk_error *err)
{
    bool zero;
    int ret = rest_is_zero(img, off, len, &zero, err);
    if (ret < 0)
        return ret;
    struct zeroing z = {.img = img};
    if (zero)
        return change_range(img, guest_off(round_down(off, img->g.cluster_bytes)), 1, zero_entry,
                            &z, err);
    if (flags & IO_ZERO_NO_FALLBACK)
        return qk_fail(err, -ENOTSUP, "part of a cluster cannot be zeroed without writing to it");
    return write_zero_bytes(img, off, len, err);
}

/* ---- ranges ---- */

int image_zero_held(struct image *img, guest_off_t off, uint64_t len, unsigned flags,
                    struct qk_error *err)
{
    if (img->h.version < 3 && img->backing) {
        if (flags & IO_ZERO_NO_FALLBACK)
            return qk_fail(err, -ENOTSUP, "version 2 images have no zero clusters");
        return write_zero_bytes(img, off.v, len, err);
    }
    const uint64_t cluster = img->g.cluster_bytes;
    uint64_t end = off.v + len, at = off.v;
    int ret = 0;
    /* The last cluster may stick out of the disk: to its end is all of it. */
    bool whole_tail = end == image_size(img);
    while (at < end && ret == 0) {
        uint64_t in_cluster = at & (cluster - 1);
        uint64_t whole = in_cluster ? 0 : (end - at) / cluster;
        if (!in_cluster && whole_tail)
            whole = div_round_up(end - at, cluster);
        uint64_t n = whole ? whole * cluster : min_u64(cluster - in_cluster, end - at);
        struct zeroing z = {.img = img, .unmap = flags & IO_ZERO_UNMAP};
        ret = whole ? change_range(img, guest_off(at), whole, zero_entry, &z, err)
                    : zero_part(img, at, n, flags, err);
        at += n;
    }
    return ret;
}

static int discard_held(struct image *img, guest_off_t off, uint64_t len, struct qk_error *err)
{
    if (img->h.version < 3 && img->backing)
        return 0; /* unallocated would show the backing file's old bytes */
    const uint64_t cluster = img->g.cluster_bytes;
    uint64_t first = div_round_up(off.v, cluster);
    uint64_t end = off.v + len == image_size(img) ? div_round_up(off.v + len, cluster)
                                                  : (off.v + len) / cluster;
    if (first >= end)
        return 0;
    return change_range(img, guest_off(first << img->g.cluster_bits), end - first, discard_entry,
                        img, err);
}

static int range_hold_all(struct image *img, guest_off_t off, uint64_t len, struct range_hold *hold,
                          struct qk_error *err)
{
    *hold = (struct range_hold){
        .first = image_cluster_of(img, off.v),
        .end = image_cluster_of(img, off.v + len - 1) + 1,
        .exclusive = true,
    };
    range_acquire(&img->ranges, hold);
    return image_check_writable(img, off, len, err);
}

int image_zero(struct image *img, guest_off_t off, uint64_t len, unsigned flags,
               struct qk_error *err)
{
    if (!len)
        return 0;
    struct range_hold hold;
    int ret = range_hold_all(img, off, len, &hold, err);
    if (ret == 0)
        ret = image_zero_held(img, off, len, flags, err);
    range_release(&img->ranges, &hold);
    return ret;
}

int image_discard(struct image *img, guest_off_t off, uint64_t len, struct qk_error *err)
{
    if (!len)
        return 0;
    struct range_hold hold;
    int ret = range_hold_all(img, off, len, &hold, err);
    if (ret == 0)
        ret = discard_held(img, off, len, err);
    range_release(&img->ranges, &hold);
    return ret;
}
