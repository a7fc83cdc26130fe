/*
 * refcount.c - refcounts of an open image: the table in memory, the blocks in slices. Everything
 * here runs with alloc_lock held. Relies on refblocks_cover for blocks that do not exist yet.
 * Upholds INV-4: entries of the table are validated each time one is used.
 */
#include "image/image_int.h"

#include "base/bytes.h"

static const char structure[] = "refcount table";

int reftable_load(struct image *img, struct qk_error *err)
{
    struct reftable *t = &img->reftable;
    uint64_t bytes = (uint64_t)img->h.reftable_clusters << img->g.cluster_bits;
    t->off = img->h.reftable_off;
    t->count = bytes / sizeof(uint64_t);
    t->moved = false;
    t->dirty.len = 0;
    free(t->entries);
    t->entries = malloc(bytes);
    if (!t->entries)
        return qk_fail_nomem(err);
    io_event(img->file, "reftable_load");
    int ret = io_read(img->file, t->off, t->entries, bytes, err);
    if (ret < 0)
        return ret;
    for (uint64_t i = 0; i < t->count; i++)
        t->entries[i] = load_be64(&t->entries[i]);
    return 0;
}

int refblock_offset(struct image *img, uint64_t block, uint64_t *off, struct qk_error *err)
{
    const struct reftable *t = &img->reftable;
    *off = block < t->count ? t->entries[block] : 0;
    struct where where = {img->file->name, structure, t->off + block * sizeof(uint64_t)};
    if (!is_aligned(*off, img->g.cluster_bytes))
        return qk_fail_at(err, -EIO, &where,
                          "Refblock offset 0x%" PRIx64 " unaligned (reftable index: 0x%" PRIx64
                          "); run a check with repair",
                          *off, block);
    if (*off >= QCOW2_OFFSET_LIMIT || image_cluster_of(img, *off) >= img->end_clusters)
        return qk_fail_at(err, -EIO, &where,
                          "refcount block %" PRIu64 " at 0x%" PRIx64
                          " lies beyond the end of the file; run a check with repair",
                          block, *off);
    return 0;
}

/* Where the refcount of a cluster is: a slice and an index in it. */
struct place {
    uint64_t slice_off; /* 0: no block */
    uint64_t index, per_slice;
};

static int place_of(struct image *img, uint64_t cluster, struct place *p, struct qk_error *err)
{
    uint64_t off;
    int ret = refblock_offset(img, cluster >> img->g.refblock_bits, &off, err);
    if (ret < 0)
        return ret;
    uint64_t in_block = cluster & ((UINT64_C(1) << img->g.refblock_bits) - 1);
    p->per_slice = (uint64_t)img->refcounts.slice_bytes * 8 >> img->g.refcount_order;
    p->index = in_block % p->per_slice;
    p->slice_off = off ? off + in_block / p->per_slice * img->refcounts.slice_bytes : 0;
    return 0;
}

int refcount_get(struct image *img, uint64_t cluster, uint64_t *value, struct qk_error *err)
{
    struct place p;
    *value = 0;
    int ret = place_of(img, cluster, &p, err);
    if (ret < 0 || !p.slice_off)
        return ret;
    struct slice *s;
    ret = cache_get(&img->refcounts, p.slice_off, &s, err);
    if (ret < 0)
        return ret;
    *value = img->rc->get(s->data, p.index);
    cache_put(&img->refcounts, s);
    return 0;
}

/* The part of the run that lies in the slice of its first cluster: returns how many were done. */
static int add_in_slice(struct image *img, struct cluster_run run, int delta, uint64_t *done,
                        struct qk_error *err)
{
    struct place p;
    struct slice *s;
    *done = 0;
    int ret = place_of(img, run.first, &p, err);
    if (ret < 0)
        return ret;
    if (!p.slice_off)
        return qk_fail_at(err, -EIO, WHERE(img->file->name, structure, img->reftable.off),
                          "no refcount block for cluster %" PRIu64, run.first);
    if (run.count >= UINT64_C(1) << img->g.refblock_bits &&
        is_aligned(p.slice_off, img->g.cluster_bytes))
        cache_prefetch(&img->refcounts, p.slice_off, img->g.cluster_bytes);
    ret = cache_get(&img->refcounts, p.slice_off, &s, err);
    if (ret < 0)
        return ret;
    uint64_t n = min_u64(run.count, p.per_slice - p.index);
    struct refcount_step step = {.amount = 1, .down = delta < 0};
    *done = refcount_step(img->rc, s->data, p.index, n, &step);
    cache_mark_dirty(&img->refcounts, s);
    cache_put(&img->refcounts, s);
    if (*done < n)
        return qk_fail_at(err, delta < 0 ? -EIO : -ERANGE,
                          WHERE(img->file->name, "refcount block", p.slice_off),
                          delta < 0 ? "refcount of cluster %" PRIu64 " is already 0 (limit %" PRIu64
                                      "); run a check with repair"
                                    : "refcount of cluster %" PRIu64
                                      " is at the limit of its width (%" PRIu64 ")",
                          run.first + *done, img->g.refcount_max);
    return 0;
}

int refcount_add(struct image *img, struct cluster_run run, int delta, struct qk_error *err)
{
    io_event(img->file, "refblock_update_part");
    uint64_t total = 0;
    while (total < run.count) {
        uint64_t done;
        struct cluster_run rest = {run.first + total, run.count - total, false};
        int ret = add_in_slice(img, rest, delta, &done, err);
        total += done;
        if (ret < 0) {
            if (total)
                refcount_add(img, (struct cluster_run){run.first, total, false}, -delta, NULL);
            return ret;
        }
    }
    return 0;
}

/* Appends the clusters whose bits are not set; cluster numbers count from `first`. */
static int append_unset(struct cluster_run_vec *out, const uint64_t *bits, uint64_t first,
                        uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        struct cluster_run *last = out->len ? &out->ptr[out->len - 1] : NULL;
        if (bits[i / 64] == UINT64_MAX && i % 64 == 0) {
            i += 63;
            continue;
        }
        if (bits[i / 64] >> (i % 64) & 1)
            continue;
        if (last && last->first + last->count == first + i)
            last->count++;
        else if (cluster_run_vec_append(out, (struct cluster_run){first + i, 1, false}) < 0)
            return -ENOMEM;
    }
    return 0;
}

#define ZERO_STEP 4096u /* refcounts that are asked for at once */

int refcount_zero_runs(struct image *img, struct cluster_run run, struct cluster_run_vec *out,
                       struct qk_error *err)
{
    for (uint64_t i = 0; i < run.count;) {
        uint64_t used[ZERO_STEP / 64] = {0};
        struct place p;
        int ret = place_of(img, run.first + i, &p, err);
        if (ret < 0)
            return ret;
        uint64_t n = min_u64(min_u64(run.count - i, p.per_slice - p.index), ZERO_STEP);
        if (p.slice_off) {
            struct slice *s;
            ret = cache_get(&img->refcounts, p.slice_off, &s, err);
            if (ret < 0)
                return ret;
            img->rc->used_bits(s->data, p.index, n, used);
            cache_put(&img->refcounts, s);
        }
        if (append_unset(out, used, run.first + i, n) < 0)
            return qk_fail_nomem(err);
        i += n;
    }
    return 0;
}

int refcount_load_leaf(void *opaque, uint64_t leaf, uint64_t used[FREEMAP_LEAF / 64],
                       struct qk_error *err)
{
    struct image *img = opaque;
    for (uint64_t i = 0; i < FREEMAP_LEAF;) {
        struct place p;
        int ret = place_of(img, leaf * FREEMAP_LEAF + i, &p, err);
        if (ret < 0)
            return ret;
        uint64_t n = min_u64(FREEMAP_LEAF - i, p.per_slice - p.index);
        if (p.slice_off) {
            struct slice *s;
            /* A search goes on through the rest of the block. */
            if (is_aligned(p.slice_off, img->g.cluster_bytes))
                cache_prefetch(&img->refcounts, p.slice_off, img->g.cluster_bytes);
            ret = cache_get(&img->refcounts, p.slice_off, &s, err);
            if (ret < 0)
                return ret;
            /* Slices hold multiples of 64 refcounts, so i is one, too. */
            img->rc->used_bits(s->data, p.index, n, &used[i / 64]);
            cache_put(&img->refcounts, s);
        }
        i += n;
    }
    return 0;
}
