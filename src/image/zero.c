/*
 * zero.c - write zeroes and discard: whole clusters by changing their entries, the rest by writing
 * zero bytes (or, for a discard, not at all). Clusters that lose their host cluster wait in the
 * queue of frees (INV-2).
 */
#include "image/image_int.h"

#define CHANGE_MAX_CLUSTERS 65536 /* entries changed between two looks at how much is dirty */

/* ---- what an entry becomes ---- */

/* What a request does with whole clusters, or with some of one cluster's subclusters. */
struct zeroing {
    struct image *img;
    bool discard, unmap, no_fallback;
    uint64_t off, end; /* guest bytes, multiples of a subcluster */
    uint64_t first;    /* guest cluster of index 0 */
};

static uint32_t all_subclusters(const struct geometry *g)
{
    return UINT32_MAX >> (32 - g->subclusters);
}

static uint32_t zeroed_subclusters(const struct zeroing *z, uint64_t index)
{
    return subclusters_touched(&z->img->g, z->first + index, z->off, z->end);
}

/* Whether nothing keeps the host cluster once the subclusters are zero. Places that were reserved
 * for data go with a whole cluster only. */
static bool host_is_free(const struct geometry *g, struct l2_entry old, uint32_t zeroed)
{
    uint32_t stored = l2_entry_stored(g, old);
    return zeroed == all_subclusters(g) || (stored && !(stored & ~zeroed));
}

static bool zero_entry(void *opaque, uint64_t index, struct l2_entry old, struct l2_entry *entry)
{
    const struct zeroing *z = opaque;
    const struct geometry *g = &z->img->g;
    uint32_t zeroed = zeroed_subclusters(z, index);
    enum cluster_kind kind = l2_entry_kind(g, old, 0);
    /* Version 2 has no zero flag: unallocated reads as zero (there is no backing file then). */
    bool v2 = z->img->h.version < 3;
    if (kind == CLUSTER_COMPRESSED)
        old = (struct l2_entry){0};
    else if ((z->unmap || v2) && cluster_kind_has_host(kind) && host_is_free(g, old, zeroed))
        old.raw = 0;
    *entry = v2 ? old : l2_entry_zeroed(g, old, zeroed);
    return true;
}

/* What has no place of its own and reads as zero stays as it is. */
static bool is_nothing(const struct image *img, struct l2_entry e)
{
    const struct l2_entry zero = l2_entry_zeroed(&img->g, e, all_subclusters(&img->g));
    enum cluster_kind kind = l2_entry_kind(&img->g, e, 0);
    return (kind == CLUSTER_UNALLOCATED || kind == CLUSTER_ZERO_PLAIN) &&
           (!img->backing || (zero.raw == e.raw && zero.bitmap == e.bitmap));
}

static bool discard_entry(void *opaque, uint64_t index, struct l2_entry old, struct l2_entry *entry)
{
    const struct zeroing *z = opaque;
    return !is_nothing(z->img, old) && zero_entry(opaque, index, old, entry);
}

/* All of a table that is ours alone or not there, and its clusters lose their places: no need to
 * look at each entry's kind. (A table that a snapshot shares is not copied for nothing.) */
static bool can_fill(const struct zeroing *z, uint64_t end)
{
    const struct image *img = z->img;
    const uint64_t in_table = img->g.l2_entries;
    guest_off_t at = guest_off(z->first << img->g.cluster_bits);
    if (!z->unmap || img->g.subclusters > 1 || img->g.data_file || z->first % in_table ||
        end - z->first < in_table || image_l1_index(img, at) >= img->l1_count)
        return false;
    uint64_t l1 = l1_load(img, image_l1_index(img, at));
    return l1 ? l1 & ENTRY_COPIED : !img->backing && z->discard;
}

static int fill_table(struct zeroing *z, struct qk_error *err)
{
    struct image *img = z->img;
    guest_off_t at = guest_off(z->first << img->g.cluster_bits);
    struct l2_fill fill = {img->h.version < 3 ? 0 : ENTRY_ZERO, z->discard && !img->backing};
    z->first += img->g.l2_entries;
    if (!l1_load(img, image_l1_index(img, at)))
        return 0;
    int ret = l2_fill(img, at, img->g.l2_entries, fill, err);
    return ret < 0 ? ret : image_throttle(img, err);
}

/* Changes the entries of z's clusters. What is unallocated and reads as zero already is left out
 * where the change would leave it so: no table is made for it. */
static int change_range(struct zeroing *z, struct qk_error *err)
{
    struct image *img = z->img;
    const uint64_t cluster = img->g.cluster_bytes;
    const uint64_t end = div_round_up(z->end, cluster);
    bool skip = !img->backing && (z->discard || img->h.version < 3);
    int ret = 0;
    for (z->first = z->off >> img->g.cluster_bits; z->first < end && ret == 0;) {
        if (can_fill(z, end)) {
            ret = fill_table(z, err);
            continue;
        }
        uint64_t n = min_u64(end - z->first, CHANGE_MAX_CLUSTERS);
        guest_off_t at = guest_off(z->first << img->g.cluster_bits);
        struct map_extent ext = {.kind = CLUSTER_NORMAL};
        if (skip)
            ret = image_map(img, at, n << img->g.cluster_bits, &ext, err);
        if (ret == 0 && skip)
            n = div_round_up(ext.len, cluster);
        if (ret == 0 && ext.kind != CLUSTER_UNALLOCATED) {
            ret = l2_change(img, at, n, z->discard ? discard_entry : zero_entry, z, err);
            if (ret == 0)
                ret = image_throttle(img, err);
        }
        z->first += n;
    }
    return ret;
}

/* ---- parts of a cluster or subcluster ---- */

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

/* The subcluster has no data of its own, and its bytes outside [off, off + len) read as zero. */
static int rest_is_zero(struct image *img, uint64_t off, uint64_t len, bool *zero,
                        struct qk_error *err)
{
    struct map_extent ext;
    const uint64_t unit = UINT64_C(1) << img->g.subcluster_bits;
    uint64_t start = round_down(off, unit);
    uint64_t end = min_u64(start + unit, max_u64(image_size(img), off + len));
    int ret = image_map(img, guest_off(off), 1, &ext, err);
    *zero = ret == 0 && image_kind_is_zero(img, ext.kind);
    if (ret < 0 || *zero ||
        (ext.kind != CLUSTER_UNALLOCATED && ext.kind != CLUSTER_UNALLOCATED_ALLOC))
        return ret;
    ret = backing_is_zero(img, start, off - start, zero, err);
    if (ret == 0 && *zero)
        ret = backing_is_zero(img, off + len, end - off - len, zero, err);
    return ret;
}

int image_zero_bytes_held(struct image *img, uint64_t off, uint64_t len, struct qk_error *err)
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

static int zero_by_writing(struct zeroing *z, uint64_t off, uint64_t len, struct qk_error *err)
{
    if (z->discard)
        return 0;
    if (z->no_fallback)
        return qk_fail(err, -ENOTSUP, "part of a cluster cannot be zeroed without writing to it");
    return image_zero_bytes_held(z->img, off, len, err);
}

/* Bytes of one subcluster. */
static int zero_part(struct zeroing *z, uint64_t off, uint64_t len, struct qk_error *err)
{
    const uint64_t unit = UINT64_C(1) << z->img->g.subcluster_bits;
    bool zero = false;
    int ret = z->discard ? 0 : rest_is_zero(z->img, off, len, &zero, err);
    if (ret < 0)
        return ret;
    if (!zero)
        return zero_by_writing(z, off, len, err);
    struct zeroing whole = {.img = z->img, .off = round_down(off, unit)};
    whole.end = whole.off + unit;
    return change_range(&whole, err);
}

/* ---- ranges ---- */

/* How many bytes from `at` on are whole clusters, or else whole subclusters of one; 0: none. */
static uint64_t whole_bytes(const struct geometry *g, uint64_t at, uint64_t end)
{
    const uint64_t cluster = g->cluster_bytes, unit = UINT64_C(1) << g->subcluster_bits;
    uint64_t stop = round_down(end, unit);
    if (!is_aligned(at, unit) || stop <= at)
        return 0;
    if (is_aligned(at, cluster) && stop - at >= cluster)
        return round_down(stop, cluster) - at;
    return min_u64(stop, round_down(at, cluster) + cluster) - at;
}

/* A compressed cluster has no subclusters: a part of it is zeroed by writing. */
static int zero_whole(struct zeroing *z, uint64_t off, uint64_t len, struct qk_error *err)
{
    struct map_extent ext = {.kind = CLUSTER_UNALLOCATED};
    int ret = len < z->img->g.cluster_bytes ? image_map(z->img, guest_off(off), 1, &ext, err) : 0;
    if (ret < 0)
        return ret;
    if (ext.kind == CLUSTER_COMPRESSED)
        return zero_by_writing(z, off, min_u64(len, image_size(z->img) - off), err);
    z->off = off;
    z->end = off + len;
    return change_range(z, err);
}

static int zero_range(struct zeroing *z, uint64_t off, uint64_t len, struct qk_error *err)
{
    const struct geometry *g = &z->img->g;
    const uint64_t unit = UINT64_C(1) << g->subcluster_bits, end = off + len;
    /* The last cluster may stick out of the disk: to its end is all of it. */
    uint64_t whole_end = end == image_size(z->img) ? round_up(end, g->cluster_bytes) : end;
    int ret = 0;
    while (off < end && ret == 0) {
        uint64_t n = whole_bytes(g, off, whole_end);
        if (n) {
            ret = zero_whole(z, off, n, err);
            if (ret == 0 && z->unmap)
                data_discard(z->img, guest_off(off), n);
        } else {
            n = min_u64(unit - (off & (unit - 1)), end - off);
            ret = zero_part(z, off, n, err);
        }
        off += n;
    }
    return ret;
}

int image_zero_held(struct image *img, guest_off_t off, uint64_t len, unsigned flags,
                    struct qk_error *err)
{
    struct zeroing z = {
        .img = img,
        .unmap = flags & IO_ZERO_UNMAP,
        .no_fallback = flags & IO_ZERO_NO_FALLBACK,
    };
    if (image_data_file_is_raw(img))
        return data_raw_zero(img, off, len, flags, err);
    if (img->h.version >= 3 || !img->backing)
        return zero_range(&z, off.v, len, err);
    if (z.no_fallback)
        return qk_fail(err, -ENOTSUP, "version 2 images have no zero clusters");
    return image_zero_bytes_held(img, off.v, len, err);
}

static int discard_held(struct image *img, guest_off_t off, uint64_t len, struct qk_error *err)
{
    struct zeroing z = {.img = img, .discard = true, .unmap = true};
    if (img->h.version < 3 && img->backing)
        return 0; /* unallocated would show the backing file's old bytes */
    if (image_data_file_is_raw(img))
        return data_raw_discard(img, off, len, err);
    return zero_range(&z, off.v, len, err);
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
