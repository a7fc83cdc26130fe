/*
 * cache.c - slices in memory: see cache.h for the contract. A shard's lock is never held during
 * I/O: a slice that is being read is marked `loading`, and others who want it wait for that.
 */
#include "image/cache.h"
#include "base/checked.h"
#include "base/cleanup.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define SLAB_MIN 4u
#define SLAB_MAX 32u

static struct cache_shard *shard_of(struct cache *c, uint64_t off)
{
    uint64_t n = off / c->slice_bytes;
    return &c->shards[(n ^ (n >> 8)) & (c->shard_count - 1)];
}

static struct slice **bucket_of(struct cache *c, struct cache_shard *sh, uint64_t off)
{
    uint64_t h = (off / c->slice_bytes) * UINT64_C(0x9e3779b97f4a7c15);
    return &sh->buckets[(h >> 32) & sh->bucket_mask];
}

static struct slice *find(struct cache *c, struct cache_shard *sh, uint64_t off)
{
    struct slice *s = *bucket_of(c, sh, off);
    while (s && s->off != off)
        s = s->hash_next;
    return s;
}

static void hash_remove(struct cache *c, struct cache_shard *sh, struct slice *s)
{
    if (s->off == QK_OFFSET_NONE)
        return;
    struct slice **at = bucket_of(c, sh, s->off);
    while (*at != s)
        at = &(*at)->hash_next;
    *at = s->hash_next;
    s->off = QK_OFFSET_NONE;
}

static void hash_insert(struct cache *c, struct cache_shard *sh, struct slice *s, uint64_t off)
{
    struct slice **at = bucket_of(c, sh, off);
    s->off = off;
    s->hash_next = *at;
    *at = s;
}

void cache_dirty_insert(struct cache *c, struct cache_shard *sh, struct slice *s)
{
    s->dirty = true;
    s->dirty_prev = NULL;
    s->dirty_next = sh->dirty;
    if (sh->dirty)
        sh->dirty->dirty_prev = s;
    sh->dirty = s;
    __atomic_add_fetch(&c->dirty_slices, 1, __ATOMIC_RELAXED);
}

static void dirty_remove(struct cache *c, struct cache_shard *sh, struct slice *s)
{
    *(s->dirty_prev ? &s->dirty_prev->dirty_next : &sh->dirty) = s->dirty_next;
    if (s->dirty_next)
        s->dirty_next->dirty_prev = s->dirty_prev;
    s->dirty = false;
    __atomic_sub_fetch(&c->dirty_slices, 1, __ATOMIC_RELAXED);
}

static int shard_init(struct cache *c, struct cache_shard *sh)
{
    size_t buckets = 16;
    while (buckets < c->max_slots)
        buckets *= 2;
    *sh = (struct cache_shard){.bucket_mask = buckets - 1};
    pthread_mutex_init(&sh->lock, NULL);
    pthread_cond_init(&sh->loaded, NULL);
    sh->buckets = calloc(buckets, sizeof(*sh->buckets));
    return sh->buckets ? 0 : -ENOMEM;
}

int cache_init(struct cache *c, const struct cache_config *config, struct qk_error *err)
{
    *c = (struct cache){
        .file = config->file,
        .structure = config->structure,
        .load_event = config->load_event,
        .slice_bytes = config->slice_bytes,
        .table_bytes = config->table_bytes,
        .shard_count = config->shards,
    };
    uint64_t slots = div_round_up(config->max_bytes, config->slice_bytes);
    c->max_slots = (size_t)max_u64(div_round_up(slots, config->shards), 4);
    int ret = 0;
    for (unsigned i = 0; i < c->shard_count; i++)
        if (shard_init(c, &c->shards[i]) < 0)
            ret = -ENOMEM;
    if (ret < 0) {
        cache_destroy(c);
        return qk_fail_nomem(err);
    }
    return 0;
}

static void shard_drop(struct cache_shard *sh)
{
    for (size_t i = 0; i < sh->slabs.len; i++) {
        free(sh->slabs.ptr[i].slices);
        free(sh->slabs.ptr[i].data);
    }
    slab_vec_free(&sh->slabs);
    slice_vec_free(&sh->slots);
    sh->spare = 0;
    sh->hand = 0;
    sh->dirty = NULL;
    for (size_t i = 0; sh->buckets && i <= sh->bucket_mask; i++)
        sh->buckets[i] = NULL;
}

void cache_drop(struct cache *c)
{
    for (unsigned i = 0; i < c->shard_count; i++)
        shard_drop(&c->shards[i]);
    __atomic_store_n(&c->dirty_slices, 0, __ATOMIC_RELAXED);
}

void cache_destroy(struct cache *c)
{
    cache_drop(c);
    for (unsigned i = 0; i < c->shard_count; i++) {
        free(c->shards[i].buckets);
        pthread_mutex_destroy(&c->shards[i].lock);
        pthread_cond_destroy(&c->shards[i].loaded);
    }
    c->shard_count = 0;
}

static int slab_add(struct cache *c, struct cache_shard *sh)
{
    size_t room = c->max_slots > sh->slots.len ? c->max_slots - sh->slots.len : 0;
    struct slab slab = {.count = (size_t)min_u64(max_u64(room, SLAB_MIN), SLAB_MAX)};
    size_t bytes = (size_t)round_up(slab.count * c->slice_bytes, 4096);
    slab.slices = calloc(slab.count, sizeof(*slab.slices));
    slab.data = aligned_alloc(4096, bytes);
    if (!slab.slices || !slab.data || slab_vec_append(&sh->slabs, slab) < 0) {
        free(slab.slices);
        free(slab.data);
        return -ENOMEM;
    }
    /* One call instead of a page fault for each slice; a kernel without it faults. */
    madvise(slab.data, bytes, MADV_POPULATE_WRITE);
    sh->spare = slab.count;
    return 0;
}

static struct slice *slot_add(struct cache *c, struct cache_shard *sh)
{
    if (slice_vec_reserve(&sh->slots, sh->slots.len + 1) < 0 || (!sh->spare && slab_add(c, sh) < 0))
        return NULL;
    struct slab *slab = &sh->slabs.ptr[sh->slabs.len - 1];
    size_t i = slab->count - sh->spare--;
    struct slice *s = &slab->slices[i];
    s->off = QK_OFFSET_NONE;
    s->data = slab->data + i * c->slice_bytes;
    slice_vec_append(&sh->slots, s);
    return s;
}

/* A slot for a new slice: an unused one while there is room, else the first clean one that was
 * not used lately, else one more (all are dirty: the next writeback makes them clean). */
static struct slice *slot_take(struct cache *c, struct cache_shard *sh)
{
    if (sh->slots.len < c->max_slots)
        return slot_add(c, sh);
    for (size_t tries = 2 * sh->slots.len; tries; tries--) {
        sh->hand = sh->hand + 1 < sh->slots.len ? sh->hand + 1 : 0;
        struct slice *s = sh->slots.ptr[sh->hand];
        if (s->loading || s->dirty || s->writing)
            continue;
        if (!s->recent) {
            hash_remove(c, sh, s);
            return s;
        }
        s->recent = false;
    }
    return slot_add(c, sh);
}

/* Fills s outside the lock. On failure the slot is emptied and everyone who waited tries anew. */
static int slice_load(struct cache *c, struct cache_shard *sh, struct slice *s,
                      struct qk_error *err)
{
    uint64_t off = s->off;
    s->loading = true;
    pthread_mutex_unlock(&sh->lock);
    io_event(c->file, c->load_event);
    int ret = io_read(c->file, off, s->data, c->slice_bytes, err);
    pthread_mutex_lock(&sh->lock);
    s->loading = false;
    if (ret < 0) {
        hash_remove(c, sh, s);
        if (err) {
            snprintf(err->structure, sizeof(err->structure), "%s", c->structure);
            err->offset = off;
        }
    }
    pthread_cond_broadcast(&sh->loaded);
    return ret;
}

struct cache_shard *cache_lock_shard(struct cache *c, uint64_t off)
{
    struct cache_shard *sh = shard_of(c, off);
    pthread_mutex_lock(&sh->lock);
    return sh;
}

struct slice *cache_peek(struct cache *c, struct cache_shard *sh, uint64_t off)
{
    struct slice *s = find(c, sh, off);
    return s && !s->loading ? s : NULL;
}

static int slice_new(struct cache *c, struct cache_shard *sh, uint64_t off, struct slice **out,
                     struct qk_error *err)
{
    *out = slot_take(c, sh);
    if (!*out)
        return qk_fail_nomem(err);
    hash_insert(c, sh, *out, off);
    return 0;
}

/* Waits while the slice is being read by another thread; NULL when it is not cached. */
static struct slice *find_loaded(struct cache *c, struct cache_shard *sh, uint64_t off)
{
    struct slice *s;
    while ((s = find(c, sh, off)) && s->loading)
        pthread_cond_wait(&sh->loaded, &sh->lock);
    return s;
}

int cache_get(struct cache *c, uint64_t off, struct slice **out, struct qk_error *err)
{
    struct cache_shard *sh = shard_of(c, off);
    pthread_mutex_lock(&sh->lock);
    *out = find_loaded(c, sh, off);
    if (!*out) {
        int ret = slice_new(c, sh, off, out, err);
        if (ret == 0)
            ret = slice_load(c, sh, *out, err);
        if (ret < 0) {
            pthread_mutex_unlock(&sh->lock);
            return ret;
        }
    }
    (*out)->recent = true;
    return 0;
}

int cache_get_zeroed(struct cache *c, uint64_t off, struct slice **out, struct qk_error *err)
{
    struct cache_shard *sh = shard_of(c, off);
    pthread_mutex_lock(&sh->lock);
    *out = find_loaded(c, sh, off);
    if (!*out) {
        int ret = slice_new(c, sh, off, out, err);
        if (ret < 0) {
            pthread_mutex_unlock(&sh->lock);
            return ret;
        }
    }
    memset((*out)->data, 0, c->slice_bytes);
    (*out)->recent = true;
    return 0;
}

static bool is_cached(struct cache *c, uint64_t off)
{
    struct cache_shard *sh = cache_lock_shard(c, off);
    bool cached = find(c, sh, off) != NULL;
    pthread_mutex_unlock(&sh->lock);
    return cached;
}

static void insert_read(struct cache *c, uint64_t off, const uint8_t *data)
{
    struct cache_shard *sh = cache_lock_shard(c, off);
    struct slice *s;
    if (!find(c, sh, off) && slice_new(c, sh, off, &s, NULL) == 0) {
        memcpy(s->data, data, c->slice_bytes);
        s->recent = true;
    }
    pthread_mutex_unlock(&sh->lock);
}

void cache_prefetch(struct cache *c, uint64_t off, uint64_t len)
{
    if (len <= c->slice_bytes || len / c->slice_bytes > c->max_slots || is_cached(c, off))
        return;
    CLEANUP_FREE uint8_t *buf = aligned_alloc(4096, round_up(len, 4096));
    io_event(c->file, c->load_event);
    if (!buf || io_read(c->file, off, buf, len, NULL) < 0)
        return;
    for (uint64_t at = 0; at < len; at += c->slice_bytes)
        insert_read(c, off + at, buf + at);
}

void cache_put(struct cache *c, struct slice *s)
{
    pthread_mutex_unlock(&shard_of(c, s->off)->lock);
}

void cache_mark_dirty(struct cache *c, struct slice *s)
{
    if (!s->dirty)
        cache_dirty_insert(c, shard_of(c, s->off), s);
}

void cache_forget(struct cache *c, uint64_t off, uint64_t len)
{
    for (uint64_t at = off; at < off + len; at += c->slice_bytes) {
        struct cache_shard *sh = shard_of(c, at);
        LOCK_SCOPE(&sh->lock);
        struct slice *s = find_loaded(c, sh, at);
        if (!s)
            continue;
        if (s->dirty)
            dirty_remove(c, sh, s);
        /* One that is being written keeps its slot until that write is done. */
        hash_remove(c, sh, s);
    }
}
