/*
 * pack.c - host space for compressed clusters, byte by byte. Streams follow one another without
 * gaps and across the borders of host clusters; each host cluster's refcount is the number of
 * streams that touch it, so a refcount width that is exhausted begins a new one. A stream that does
 * not fit behind the last one, because the next host cluster is taken, leaves a tail; a few of
 * these are remembered, and filled with what fits best.
 *
 * A tail is only ever used forward: bytes that something referred to come back with their whole
 * cluster, through the queue of frees (INV-2).
 */
#include "image/image_int.h"

static uint64_t room_behind(const struct image *img, uint64_t tail)
{
    return img->g.cluster_bytes - (tail & (img->g.cluster_bytes - 1));
}

/* One more stream may refer to the cluster. Nothing does any more, when it waits to be released. */
static bool can_share(struct image *img, uint64_t cluster)
{
    uint64_t value;
    return refcount_get(img, cluster, &value, NULL) == 0 && value && value < img->g.refcount_max;
}

/* The tail moves to `off`; one at the end of its cluster is none. */
static void move_tail(const struct image *img, uint64_t *tail, uint64_t off)
{
    *tail = off & (img->g.cluster_bytes - 1) ? off : 0;
}

/* The tail with the least room that is enough; NULL: none. */
static uint64_t *best_tail(struct image *img, uint64_t bytes)
{
    uint64_t *best = NULL;
    for (size_t i = 0; i < PACK_TAILS; i++) {
        uint64_t *tail = &img->tails[i];
        if (!*tail || room_behind(img, *tail) < bytes ||
            (best && room_behind(img, *best) <= room_behind(img, *tail)))
            continue;
        if (can_share(img, image_cluster_of(img, *tail)))
            best = tail;
        else
            *tail = 0;
    }
    return best;
}

/* The place for a tail in a cluster that is new: a free one, or that with the least room. */
static uint64_t *worst_tail(struct image *img)
{
    uint64_t *worst = &img->tails[0];
    for (size_t i = 0; i < PACK_TAILS && *worst; i++)
        if (!img->tails[i] || room_behind(img, img->tails[i]) < room_behind(img, *worst))
            worst = &img->tails[i];
    return worst;
}

/* The tail right in front of a cluster; NULL: none. */
static uint64_t *tail_before(struct image *img, uint64_t cluster)
{
    for (size_t i = 0; i < PACK_TAILS; i++)
        if (img->tails[i] && image_cluster_of(img, img->tails[i]) + 1 == cluster)
            return &img->tails[i];
    return NULL;
}

static int add_reference(struct image *img, uint64_t off, struct qk_error *err)
{
    return refcount_add(img, (struct cluster_run){image_cluster_of(img, off), 1, false}, 1, err);
}

/* A new cluster, and before it the tail of its neighbour. */
static int begin_cluster(struct image *img, uint64_t bytes, uint64_t *off, struct qk_error *err)
{
    struct cluster_run run;
    int ret = alloc_exact(img, 1, &run, err);
    if (ret < 0)
        return ret;
    *off = run.first << img->g.cluster_bits;
    uint64_t *tail = tail_before(img, run.first);
    if (tail && can_share(img, run.first - 1) && add_reference(img, *tail, NULL) == 0)
        *off = *tail;
    else
        tail = worst_tail(img);
    move_tail(img, tail, *off + bytes);
    return 0;
}

int alloc_bytes(struct image *img, uint64_t bytes, uint64_t *off, struct qk_error *err)
{
    LOCK_SCOPE(&img->alloc_lock);
    io_event(img->file, "cluster_alloc_bytes");
    uint64_t *tail = best_tail(img, bytes);
    if (!tail)
        return begin_cluster(img, bytes, off, err);
    *off = *tail;
    int ret = add_reference(img, *off, err);
    if (ret == 0)
        move_tail(img, tail, *off + bytes);
    return ret;
}

void pack_forget(struct image *img, struct cluster_run run)
{
    for (size_t i = 0; i < PACK_TAILS; i++)
        if (image_cluster_of(img, img->tails[i]) - run.first < run.count)
            img->tails[i] = 0;
}

/* False: the cluster has no reference but the caller's. */
static bool drop_one_of_many(struct image *img, uint64_t cluster)
{
    struct cluster_run run = {cluster, 1, false};
    uint64_t value;
    LOCK_SCOPE(&img->alloc_lock);
    if (refcount_get(img, cluster, &value, NULL) == 0 && value > 1)
        return refcount_add(img, run, -1, NULL) == 0;
    pack_forget(img, run);
    return false;
}

void alloc_bytes_undo(struct image *img, uint64_t off, uint64_t bytes)
{
    uint64_t last = image_cluster_of(img, off + bytes - 1);
    for (uint64_t c = image_cluster_of(img, off); c <= last; c++)
        if (!drop_one_of_many(img, c))
            alloc_undo(img, (struct cluster_run){c, 1, false});
}
