/*
 * amend.c - changing what an image is: its version, the width of its refcounts, lazy refcounts, its
 * size. All is judged first; then come steps, each of which is safe by itself and stable before the
 * next one (doc/design/resize-amend.md).
 */
#include "image/expand_zero.h"
#include "image/l2_walk.h"
#include "image/refcount_width.h"
#include "image/reshape.h"

#include "base/bytes.h"

#include <inttypes.h>
#include <stdio.h>

static uint32_t version_after(const struct image *img, const struct amend_params *p)
{
    return p->version ? p->version : img->h.version;
}

static uint32_t width_after(const struct image *img, const struct amend_params *p)
{
    return p->refcount_bits ? p->refcount_bits : img->g.refcount_bits;
}

/* ---- judging ---- */

static int judge_values(const struct image *img, const struct amend_params *p, struct qk_error *err)
{
    const bool v2 = version_after(img, p) < 3;
    const bool downgrade = v2 && img->h.version >= 3;
    const uint32_t bits = width_after(img, p);
    const uint64_t left = INCOMPAT_DIRTY | INCOMPAT_COMPRESSION;
    char features[96];
    snprintf(features, sizeof(features),
             "Cannot downgrade an image with incompatible features %#" PRIx64 " set",
             img->h.incompatible & ~left);
    const struct {
        bool wrong;
        int code;
        const char *text;
    } rules[] = {
        {bits > 64 || !is_power_of_2(bits), -EINVAL,
         "Refcount width must be a power of two and may not exceed 64 bits"},
        {v2 && bits != 16 && bits != img->g.refcount_bits, -EINVAL,
         "Refcount widths other than 16 bits require compatibility level 1.1 or above (use "
         "compat=1.1 or greater)"},
        {v2 && p->lazy_refcounts > 0 && !(img->h.compatible & COMPAT_LAZY_REFCOUNTS), -EINVAL,
         "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or "
         "greater)"},
        {downgrade && bits != 16, -ENOTSUP, "compat=0.10 requires refcount_bits=16"},
        {downgrade && img->g.data_file, -ENOTSUP, "Cannot downgrade an image with a data file"},
        {downgrade && img->h.incompatible & ~left, -ENOTSUP, features},
        {downgrade && header_extensions_find(&img->exts, HEXT_BITMAPS), -ENOTSUP,
         "Cannot downgrade an image with persistent bitmaps"},
        {downgrade && image_is_encrypted(img) && img->backing_name, -ENOTSUP,
         "Cannot downgrade an encrypted image with a backing file"},
        {p->has_size && p->size % 512, -EINVAL, "The new size must be a multiple of 512"},
        {p->has_size && p->size < image_size(img) && !p->shrink, -EINVAL,
         "The new size is smaller than the disk; shrinking must be asked for"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(rules); i++)
        if (rules[i].wrong)
            return qk_fail(err, rules[i].code, "%s", rules[i].text);
    return 0;
}

/* Version 2 takes the size of the disk for that of all snapshots. */
static int judge_snapshots(struct image *img, const struct amend_params *p, struct qk_error *err)
{
    struct snapshot_vec snapshots;
    uint64_t size = p->has_size ? p->size : image_size(img);
    int ret = image_snapshots(img, &snapshots, err);
    if (ret == 0 && snapshots.len && img->h.version < 3 && p->has_size && size != image_size(img) &&
        version_after(img, p) < 3)
        ret = qk_fail(err, -ENOTSUP, "Can't resize a v2 image which has snapshots");
    for (size_t i = 0; i < snapshots.len && ret == 0 && version_after(img, p) < 3; i++)
        if (snapshots.ptr[i].disk_bytes != size || snapshots.ptr[i].vm_state_bytes > UINT32_MAX)
            ret = qk_fail(err, -ENOTSUP, "Internal snapshots prevent downgrade of image");
    snapshots_free_all(&snapshots);
    return ret;
}

static int judge_width(struct image *img, const struct amend_params *p, struct qk_error *err)
{
    if (width_after(img, p) >= img->g.refcount_bits)
        return 0;
    int ret = image_freeze(img, err);
    if (ret < 0)
        return ret;
    ret = refcount_width_judge(img, log2_floor(width_after(img, p)), err);
    image_thaw(img);
    return ret;
}

static int refuse_compressed(void *opaque, const struct l2_table *t, uint8_t *bytes,
                             struct qk_error *err)
{
    const struct image *img = opaque;
    for (uint32_t i = 0; i < img->g.l2_entries; i++)
        if (l2_entry_load(&img->g, bytes, i).raw & ENTRY_COMPRESSED)
            return qk_fail_at(
                err, -ENOTSUP,
                WHERE(img->file->name, "L2 table", t->off + (uint64_t)i * img->g.l2_entry_bytes),
                "Cannot downgrade an image with zstd compression type and existing "
                "compressed clusters");
    return 0;
}

/* Version 2 knows zlib only, which no cluster may contradict, also of a snapshot. */
static int judge_compression(struct image *img, const struct amend_params *p, struct qk_error *err)
{
    struct l2_table_vec tables = {0};
    if (version_after(img, p) >= 3 || !(img->h.incompatible & INCOMPAT_COMPRESSION))
        return 0;
    int ret = l2_tables_all(img, &tables, err);
    if (ret == 0)
        ret = l2_tables_visit(img, &tables, refuse_compressed, img, err);
    l2_table_vec_free(&tables);
    return ret;
}

static int judge(struct image *img, const struct amend_params *p, struct qk_error *err)
{
    int ret = judge_values(img, p, err);
    if (ret == 0)
        ret = judge_snapshots(img, p, err);
    if (ret == 0)
        ret = judge_compression(img, p, err);
    return ret < 0 ? ret : judge_width(img, p, err);
}

/* ---- versions ---- */

/* Geometry knows whether entries have a zero flag. */
static int switch_version(struct image *img, const struct header_change *change,
                          struct qk_error *err)
{
    int ret = header_io_switch(img, change, err);
    if (ret == 0)
        img->g = geometry_of(&img->h);
    return ret;
}

/* The snapshot table with the fields that version 3 demands, at a new place. */
static int write_snapshots(struct image *img, struct header *h, struct cluster_run *run,
                           struct qk_error *err)
{
    struct snapshot_vec v;
    uint64_t bytes = 0, at = 0;
    int ret = image_snapshots(img, &v, err);
    for (size_t i = 0; i < v.len; i++)
        bytes += snapshot_bytes(&v.ptr[i], 3);
    if (ret == 0 && bytes > SNAPSHOT_TABLE_BYTES_MAX)
        ret = qk_fail(err, -EFBIG, "Snapshot table too large");
    uint64_t clusters = div_round_up(bytes, img->g.cluster_bytes);
    CLEANUP_FREE uint8_t *buf = calloc(clusters + 1, img->g.cluster_bytes);
    if (ret == 0 && !buf)
        ret = qk_fail_nomem(err);
    for (size_t i = 0; i < v.len && ret == 0; i++) {
        snapshot_encode(&v.ptr[i], 3, buf + at);
        at += snapshot_bytes(&v.ptr[i], 3);
    }
    snapshots_free_all(&v);
    struct cluster_run place;
    if (ret == 0) {
        LOCK_SCOPE(&img->alloc_lock);
        ret = alloc_exact(img, clusters, &place, err);
    }
    if (ret < 0)
        return ret;
    *run = place; /* to be given back, should anything fail from here on */
    h->snapshots_off = run->first << img->g.cluster_bits;
    ret = overlap_check(img, 0, h->snapshots_off, clusters << img->g.cluster_bits, err);
    if (ret == 0)
        ret = io_write(img->file, h->snapshots_off, buf, clusters << img->g.cluster_bits, 0, err);
    image_note_unsynced(img);
    return ret < 0 ? ret : image_writeback(img, true, err);
}

/* Clusters of the snapshot table as it is. */
static int snapshot_clusters(struct image *img, struct cluster_run *run, struct qk_error *err)
{
    struct snapshot_vec v;
    uint64_t bytes = 0;
    int ret = image_snapshots(img, &v, err);
    for (size_t i = 0; i < v.len; i++)
        bytes += snapshot_entry_bytes(&v.ptr[i].fixed);
    snapshots_free_all(&v);
    *run = (struct cluster_run){image_cluster_of(img, img->h.snapshots_off),
                                div_round_up(bytes, img->g.cluster_bytes), false};
    return ret;
}

static int upgrade_held(struct image *img, struct qk_error *err)
{
    struct cluster_run old = {0}, new = {0};
    struct header h = img->h;
    size_t names_len;
    const uint8_t *names = feature_name_table(&names_len);
    struct header_extension ext = {HEXT_FEATURE_NAMES, (uint32_t)names_len, names};
    /* A list of names takes much of a small header cluster. */
    const struct header_change change = {
        .fixed = &h, .exts = &ext, .ext_count = h.cluster_bits >= 13};
    h.version = 3;
    h.header_bytes = QCOW2_FULL_HEADER_BYTES;
    h.refcount_order = 4;
    int ret = 0;
    if (h.snapshot_count)
        ret = snapshot_clusters(img, &old, err);
    if (ret == 0 && h.snapshot_count)
        ret = write_snapshots(img, &h, &new, err);
    if (ret == 0)
        ret = switch_version(img, &change, err);
    /* The overlap check learns where the snapshot table is now; without memory it sees nothing. */
    if (ret == 0 && new.count && overlap_load(img, NULL) < 0)
        overlap_destroy(img);
    if (ret < 0 && new.count && !__atomic_load_n(&img->header_uncertain, __ATOMIC_ACQUIRE))
        alloc_undo(img, new);
    return ret == 0 && old.count ? free_queue(img, old, err) : ret;
}

static int downgrade_held(struct image *img, const struct amend_params *p, struct qk_error *err)
{
    int ret = expand_zero(img, p->progress, err);
    if (ret < 0)
        return ret;
    struct header h = img->h;
    struct header_extension none = {.type = HEXT_FEATURE_NAMES};
    const struct header_change change = {.fixed = &h, .exts = &none, .ext_count = 1};
    h.version = 2;
    h.header_bytes = QCOW2_V2_HEADER_BYTES;
    h.incompatible = h.compatible = h.autoclear = 0;
    h.compression_type = COMPRESSION_ZLIB;
    ret = switch_version(img, &change, err);
    if (ret < 0)
        return ret;
    img->lazy = false;
    codec_pool_empty(img);
    return 0;
}

/* ---- the other steps ---- */

static int change_width(struct image *img, const struct amend_params *p, struct qk_error *err)
{
    int ret = image_freeze(img, err);
    if (ret < 0)
        return ret;
    ret = refcount_width_change(img, log2_floor(p->refcount_bits), p->progress, err);
    image_thaw(img);
    return ret;
}

/* Refcounts are all in the file, so that the dirty bit may go with the feature. Turned on, it is
 * for those who open the image after us. */
static int change_lazy(struct image *img, bool lazy, struct qk_error *err)
{
    struct header h = img->h;
    const struct header_change change = {.fixed = &h};
    if (lazy) {
        h.compatible |= COMPAT_LAZY_REFCOUNTS;
    } else {
        h.compatible &= ~(uint64_t)COMPAT_LAZY_REFCOUNTS;
        h.incompatible &= ~(uint64_t)INCOMPAT_DIRTY;
    }
    if (h.compatible == img->h.compatible && h.incompatible == img->h.incompatible)
        return 0;
    int ret = header_io_switch(img, &change, err);
    if (ret == 0 && !lazy)
        img->lazy = false;
    return ret;
}

/* What does not depend on the size. The whole disk is held. */
static int amend_before_size(struct image *img, const struct amend_params *p, struct qk_error *err)
{
    int ret = judge(img, p, err);
    if (ret == 0 && p->version == 3 && img->h.version < 3)
        ret = upgrade_held(img, err);
    if (ret == 0 && p->refcount_bits && p->refcount_bits != img->g.refcount_bits)
        ret = change_width(img, p, err);
    return ret;
}

static int rest(struct image *img, struct qk_error *err)
{
    int ret = image_writeback(img, true, err);
    return ret < 0 ? ret : image_writeback(img, true, err);
}

static int amend_after_size(struct image *img, const struct amend_params *p, struct qk_error *err)
{
    int ret = rest(img, err);
    if (ret == 0 && p->lazy_refcounts >= 0)
        ret = change_lazy(img, p->lazy_refcounts > 0, err);
    if (ret == 0 && p->version == 2 && img->h.version >= 3)
        ret = downgrade_held(img, p, err);
    return ret < 0 ? ret : image_writeback(img, false, err);
}

static int with_whole_disk(struct image *img, const struct amend_params *p,
                           int (*step)(struct image *, const struct amend_params *,
                                       struct qk_error *),
                           struct qk_error *err)
{
    struct range_hold hold;
    image_drain(img, &hold);
    int ret = image_begin_writing(img, err);
    if (ret == 0)
        ret = rest(img, err);
    if (ret == 0)
        ret = step(img, p, err);
    range_release(&img->ranges, &hold);
    return ret;
}

int image_amend_judge(struct image *img, const struct amend_params *p, struct qk_error *err)
{
    return with_whole_disk(img, p, judge, err);
}

int image_amend(struct image *img, const struct amend_params *p, struct qk_error *err)
{
    int ret = with_whole_disk(img, p, amend_before_size, err);
    if (ret == 0 && p->has_size)
        ret = image_resize(img, p->size, QK_PREALLOC_OFF, p->shrink ? QK_RESIZE_SHRINK : 0, err);
    return ret < 0 ? ret : with_whole_disk(img, p, amend_after_size, err);
}
