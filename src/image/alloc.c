/*
 * alloc.c - handing out and taking back host clusters. Takes the lowest free run that fits (INV-5)
 * from the free map; a cluster comes back only through the queue of frees, which a writeback
 * releases when the removal of the last reference is stable (INV-2), or through alloc_undo when
 * nothing ever referred to it.
 */
#include "image/image_int.h"

static int no_space(struct image *img, uint64_t count, struct qk_error *err)
{
    return qk_fail_at(err, -ENOSPC, WHERE(img->file->name, NULL, QK_OFFSET_NONE),
                      "No space left on device: no room for %" PRIu64 " clusters, and the file "
                      "cannot grow",
                      count);
}

static bool fits(const struct image *img, struct cluster_run run)
{
    return range_within(run.first, run.count, img->limit_clusters);
}

/* The lowest run of `want`; or, when the file's fixed size leaves none, the lowest free one. */
static int find_run(struct image *img, uint64_t want, struct cluster_run *run, struct qk_error *err)
{
    run->count = want;
    int ret = freemap_find(img->free, want, &run->first, err);
    if (ret < 0 || fits(img, *run))
        return ret;
    ret = freemap_find_any(img->free, want, &run->first, &run->count, err);
    if (ret < 0)
        return ret;
    if (run->first >= img->limit_clusters)
        return no_space(img, want, err);
    run->count = min_u64(run->count, img->limit_clusters - run->first);
    return 0;
}

int alloc_reserve_some(struct image *img, uint64_t want, struct cluster_run *run,
                       struct qk_error *err)
{
    int ret = find_run(img, want, run, err);
    return ret < 0 ? ret : freemap_set(img->free, run->first, run->count, true, err);
}

int alloc_reserve(struct image *img, uint64_t count, struct cluster_run *run, struct qk_error *err)
{
    int ret = find_run(img, count, run, err);
    if (ret == 0 && run->count < count)
        ret = no_space(img, count, err);
    if (ret < 0)
        return ret;
    return freemap_set(img->free, run->first, run->count, true, err);
}

int alloc_reserve_lowest(struct image *img, uint64_t want, struct cluster_run *run,
                         struct qk_error *err)
{
    int ret = freemap_find_any(img->free, want, &run->first, &run->count, err);
    if (ret == 0 && run->first >= img->limit_clusters)
        ret = no_space(img, want, err);
    if (ret < 0)
        return ret;
    run->count = min_u64(run->count, img->limit_clusters - run->first);
    return freemap_set(img->free, run->first, run->count, true, err);
}

void alloc_unreserve(struct image *img, struct cluster_run run)
{
    /* Leaves that were marked a moment ago need neither I/O nor memory to be unmarked. */
    freemap_set(img->free, run.first, run.count, false, NULL);
}

void alloc_note_used(struct image *img, struct cluster_run run)
{
    uint64_t end = run.first + run.count;
    if (img->fresh_from != UINT64_MAX)
        img->fresh_from = max_u64(img->fresh_from, end);
    image_note_end(img, end);
}

/* The clusters are marked in the free map: gives them their refcount. */
static int take(struct image *img, struct cluster_run *run, struct qk_error *err)
{
    run->fresh = run->first >= img->fresh_from;
    int ret = refblocks_cover(img, *run, err);
    if (ret == 0)
        ret = refcount_add(img, *run, 1, err);
    if (ret < 0)
        alloc_unreserve(img, *run);
    else
        alloc_note_used(img, *run);
    return ret;
}

int alloc_exact(struct image *img, uint64_t count, struct cluster_run *run, struct qk_error *err)
{
    io_event(img->file, "cluster_alloc");
    int ret = alloc_reserve(img, count, run, err);
    return ret < 0 ? ret : take(img, run, err);
}

int alloc_clusters(struct image *img, uint64_t want, struct cluster_run *run, struct qk_error *err)
{
    LOCK_SCOPE(&img->alloc_lock);
    io_event(img->file, "cluster_alloc");
    int ret = find_run(img, want, run, err);
    if (ret == 0)
        ret = freemap_set(img->free, run->first, run->count, true, err);
    return ret < 0 ? ret : take(img, run, err);
}

int free_queue_locked(struct image *img, struct cluster_run run, struct qk_error *err)
{
    struct cluster_run_vec *q = &img->queued_frees;
    struct cluster_run *last = q->len ? &q->ptr[q->len - 1] : NULL;
    if (last && last->first + last->count == run.first) {
        last->count += run.count;
        return 0;
    }
    return cluster_run_vec_append(q, run) < 0 ? qk_fail_nomem(err) : 0;
}

int free_queue(struct image *img, struct cluster_run run, struct qk_error *err)
{
    LOCK_SCOPE(&img->alloc_lock);
    return free_queue_locked(img, run, err);
}

/* Lowers the refcounts of a run and appends the clusters that reached 0 to `gone`. The free map
 * learns first that they are used: from a refcount of 0 it would conclude that they are free. */
static int lower(struct image *img, struct cluster_run run, struct cluster_run_vec *gone,
                 struct qk_error *err)
{
    int ret = freemap_set(img->free, run.first, run.count, true, err);
    if (ret == 0)
        ret = refcount_add(img, run, -1, err);
    return ret < 0 ? ret : refcount_zero_runs(img, run, gone, err);
}

void alloc_punch(struct image *img, struct cluster_run run)
{
    /* Only a hint: a file system that cannot punch holes keeps the blocks. */
    if (img->opts.discard_to_file)
        io_discard(img->file, run.first << img->g.cluster_bits, run.count << img->g.cluster_bits,
                   NULL);
}

void alloc_trim_end(struct image *img, uint64_t freed_end)
{
    uint64_t end = img->end_clusters, size;
    if (!img->file->can_grow || freed_end < end)
        return;
    if (freemap_used_end(img->free, &end, NULL) < 0 || io_size(img->file, &size, NULL) < 0)
        return;
    if (end << img->g.cluster_bits < size &&
        io_resize(img->file, end << img->g.cluster_bits, QK_PREALLOC_OFF, NULL) < 0)
        return;
    __atomic_store_n(&img->end_clusters, end, __ATOMIC_RELAXED);
    if (img->fresh_from != UINT64_MAX)
        img->fresh_from = end;
}

void alloc_undo(struct image *img, struct cluster_run run)
{
    LOCK_SCOPE(&img->alloc_lock);
    /* A failure leaks. */
    if (refcount_add(img, run, -1, NULL) < 0)
        return;
    alloc_unreserve(img, run);
    alloc_trim_end(img, run.first + run.count);
}

int free_release(struct image *img, const struct cluster_run_vec *runs, struct qk_error *err)
{
    struct cluster_run_vec gone = {0};
    int ret = 0;
    io_event(img->file, "cluster_free");
    pthread_mutex_lock(&img->alloc_lock);
    for (size_t i = 0; i < runs->len; i++) {
        int one = lower(img, runs->ptr[i], &gone, ret == 0 ? err : NULL);
        ret = ret < 0 ? ret : one;
    }
    pthread_mutex_unlock(&img->alloc_lock);
    /* Until they are marked free nobody else can have them, so the holes hit only old bytes. */
    for (size_t i = 0; i < gone.len; i++)
        alloc_punch(img, gone.ptr[i]);
    pthread_mutex_lock(&img->alloc_lock);
    uint64_t end = 0;
    for (size_t i = 0; i < gone.len; i++) {
        pack_forget(img, gone.ptr[i]);
        alloc_unreserve(img, gone.ptr[i]);
        end = max_u64(end, gone.ptr[i].first + gone.ptr[i].count);
    }
    if (end)
        alloc_trim_end(img, end);
    pthread_mutex_unlock(&img->alloc_lock);
    cluster_run_vec_free(&gone);
    return ret;
}
