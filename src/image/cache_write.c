/*
 * cache_write.c - the writeback half of the cache: copies of all dirty slices are taken in one
 * sweep, sorted by offset and written with neighbours merged into one call. While a batch is out,
 * its slices are marked `writing` and cannot be replaced, so nobody reads an old version back.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "image/cache.h"

#include <string.h>

#define MERGE_MAX  256 /* slices in one write call */
#define BRIDGE_MAX 16  /* slices from one dirty one to the next */

static int by_offset(const void *a, const void *b)
{
    const struct slice_copy *x = a, *y = b;
    return x->off < y->off ? -1 : x->off > y->off;
}

static int copy_slice(struct cache *c, struct slice *s, struct slice_copy_vec *out)
{
    struct slice_copy copy = {.off = s->off, .slice = s};
    copy.data = aligned_alloc(c->slice_bytes < 4096 ? 512 : 4096, c->slice_bytes);
    if (!copy.data)
        return -ENOMEM;
    memcpy(copy.data, s->data, c->slice_bytes);
    int ret = slice_copy_vec_append(out, copy);
    if (ret < 0)
        free(copy.data);
    return ret;
}

/* Moves the shard's dirty slices to `writing`, or leaves the shard as it was. */
static int collect_shard(struct cache *c, struct cache_shard *sh, struct cache_batch *batch)
{
    LOCK_SCOPE(&sh->lock);
    size_t before = batch->copies.len;
    for (struct slice *s = sh->dirty; s; s = s->dirty_next) {
        int ret = copy_slice(c, s, &batch->copies);
        if (ret < 0) {
            while (batch->copies.len > before)
                free(batch->copies.ptr[--batch->copies.len].data);
            return ret;
        }
    }
    struct slice *next;
    for (struct slice *s = sh->dirty; s; s = next) {
        next = s->dirty_next;
        s->dirty = false;
        s->writing = true;
        __atomic_sub_fetch(&c->dirty_slices, 1, __ATOMIC_RELAXED);
    }
    sh->dirty = NULL;
    return 0;
}

/* Copies the clean slice at off, if it is at hand. */
static bool copy_clean(struct cache *c, uint64_t off, struct slice_copy_vec *out)
{
    struct cache_shard *sh = cache_lock_shard(c, off);
    struct slice *s = cache_peek(c, sh, off);
    /* One that has become dirty meanwhile belongs to the next batch. */
    bool copied = s && !s->dirty && copy_slice(c, s, out) == 0;
    pthread_mutex_unlock(&sh->lock);
    if (copied)
        out->ptr[out->len - 1].slice = NULL;
    return copied;
}

static bool same_table(const struct cache *c, uint64_t a, uint64_t b)
{
    return a / c->table_bytes == b / c->table_bytes;
}

/* Dirty slices of one table with clean ones between them become one write where the clean ones are
 * cached: their bytes are what the medium has already. Best effort. */
static void bridge_gaps(struct cache_batch *batch)
{
    struct cache *c = batch->cache;
    size_t dirty = batch->copies.len;
    for (size_t i = 0; i + 1 < dirty; i++) {
        uint64_t from = batch->copies.ptr[i].off, to = batch->copies.ptr[i + 1].off;
        if (!same_table(c, from, to) || (to - from) / c->slice_bytes > BRIDGE_MAX)
            continue;
        for (uint64_t off = from + c->slice_bytes; off < to; off += c->slice_bytes)
            if (!copy_clean(c, off, &batch->copies))
                break;
    }
}

static void sort_copies(struct cache_batch *batch)
{
    if (batch->copies.len)
        qsort(batch->copies.ptr, batch->copies.len, sizeof(*batch->copies.ptr), by_offset);
}

int cache_collect(struct cache *c, struct cache_batch *batch, struct qk_error *err)
{
    *batch = (struct cache_batch){.cache = c};
    for (unsigned i = 0; i < c->shard_count; i++) {
        if (collect_shard(c, &c->shards[i], batch) < 0) {
            cache_batch_done(batch, true);
            return qk_fail_nomem(err);
        }
    }
    sort_copies(batch);
    bridge_gaps(batch);
    sort_copies(batch);
    return 0;
}

int cache_batch_write(struct cache_batch *batch, cache_write_check check, void *opaque,
                      struct qk_error *err)
{
    uint32_t bytes = batch->cache->slice_bytes;
    struct iovec iov[MERGE_MAX];
    for (size_t i = 0; i < batch->copies.len;) {
        const struct slice_copy *first = &batch->copies.ptr[i];
        int n = 0;
        while (i < batch->copies.len && n < MERGE_MAX &&
               batch->copies.ptr[i].off == first->off + (uint64_t)n * bytes)
            iov[n++] = (struct iovec){batch->copies.ptr[i++].data, bytes};
        int ret = check ? check(opaque, first->off, (uint64_t)n * bytes, err) : 0;
        if (ret == 0)
            ret = io_writev(batch->cache->file, first->off, iov, n, 0, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static void slice_done(struct cache *c, const struct slice_copy *copy, bool failed)
{
    struct slice *s = copy->slice;
    struct cache_shard *sh = cache_lock_shard(c, copy->off);
    s->writing = false;
    /* A slice that was forgotten meanwhile has no offset any more. */
    if (failed && s->off == copy->off && !s->dirty)
        cache_dirty_insert(c, sh, s);
    pthread_mutex_unlock(&sh->lock);
}

void cache_batch_done(struct cache_batch *batch, bool failed)
{
    struct cache *c = batch->cache;
    for (size_t i = 0; i < batch->copies.len; i++) {
        struct slice_copy *copy = &batch->copies.ptr[i];
        if (copy->slice)
            slice_done(c, copy, failed);
        free(copy->data);
    }
    slice_copy_vec_free(&batch->copies);
}
