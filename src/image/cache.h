/*
 * cache.h - metadata in memory, in slices of one size, keyed by their offset in the file. Used for
 * L2 tables and for refcount blocks. A slice is looked at or changed while its shard is locked,
 * between cache_get and cache_put; so lookups of different slices rarely meet. Changed slices stay
 * until a writeback has collected them and their write is stable; clean ones are replaced, second
 * chance. Memory: max_bytes, and what is dirty beyond it (the writer keeps that bounded by
 * asking for a writeback when cache_dirty_bytes is over its limit).
 */
#ifndef QK_IMAGE_CACHE_H
#define QK_IMAGE_CACHE_H

#include "base/vector.h"
#include "io/io.h"

#include <pthread.h>

#define CACHE_SHARDS_MAX 16

struct slice {
    uint64_t off; /* in the file; QK_OFFSET_NONE: slot is empty */
    uint8_t *data;
    bool loading, dirty, writing, recent;
    struct slice *hash_next;
    struct slice *dirty_prev, *dirty_next;
};
DEFINE_VECTOR(slice_vec, struct slice *)

/* Slices are made some at a time: one allocation, and their pages in one go. */
struct slab {
    struct slice *slices;
    uint8_t *data;
    size_t count;
};
DEFINE_VECTOR(slab_vec, struct slab)

struct cache_shard {
    pthread_mutex_t lock;
    pthread_cond_t loaded;
    struct slice **buckets;
    size_t bucket_mask;
    struct slice_vec slots; /* in use, of the slabs' slices */
    struct slab_vec slabs;
    size_t spare;        /* slices of the last slab that are not in use yet */
    size_t hand;         /* of the second-chance clock */
    struct slice *dirty; /* list */
};

struct cache {
    struct qk_io *file;
    const char *structure;  /* for errors: "L2 table", "refcount block" */
    const char *load_event; /* blkdebug event before a load */
    uint32_t slice_bytes, table_bytes;
    size_t max_slots; /* per shard */
    unsigned shard_count;
    size_t dirty_slices; /* atomic */
    struct cache_shard shards[CACHE_SHARDS_MAX];
};

struct cache_config {
    struct qk_io *file;
    const char *structure, *load_event;
    uint32_t slice_bytes;
    uint32_t table_bytes; /* slices of one table stand in this many bytes, aligned */
    uint64_t max_bytes;
    unsigned shards; /* power of two */
};
int cache_init(struct cache *c, const struct cache_config *config, struct qk_error *err);
void cache_destroy(struct cache *c);
/* Forgets everything, dirty or not. Exclusive. */
void cache_drop(struct cache *c);

/* The slice at off (a multiple of slice_bytes), loaded when missing, its shard locked until
 * cache_put. At most one slice is held by a thread at a time. */
int cache_get(struct cache *c, uint64_t off, struct slice **out, struct qk_error *err);
/* The same for a slice known to be all zero on the medium: no read. */
int cache_get_zeroed(struct cache *c, uint64_t off, struct slice **out, struct qk_error *err);
/* Best effort: the slices of [off, off + len), which nobody else changes meanwhile, are read with
 * one call when the first of them is missing. */
void cache_prefetch(struct cache *c, uint64_t off, uint64_t len);
void cache_put(struct cache *c, struct slice *s);
/* The slice, held, was changed. */
void cache_mark_dirty(struct cache *c, struct slice *s);
/* Forgets what is cached of [off, off + len), dirty or not: the cluster has another use now. */
void cache_forget(struct cache *c, uint64_t off, uint64_t len);

static inline size_t cache_dirty_bytes(struct cache *c)
{
    return __atomic_load_n(&c->dirty_slices, __ATOMIC_RELAXED) * c->slice_bytes;
}

/* ---- writeback ---- */

struct slice_copy {
    uint64_t off;
    uint8_t *data;       /* owned */
    struct slice *slice; /* NULL: a clean one that bridges a gap */
};
DEFINE_VECTOR(slice_copy_vec, struct slice_copy)

/* Copies of dirty slices, sorted by offset once collected. */
struct cache_batch {
    struct cache *cache;
    struct slice_copy_vec copies;
};

/* Locks the shard that holds, or would hold, off. */
struct cache_shard *cache_lock_shard(struct cache *c, uint64_t off);
/* The slice at off when it is cached and loaded, else NULL; its shard is locked. */
struct slice *cache_peek(struct cache *c, struct cache_shard *sh, uint64_t off);
/* The slice, whose shard is locked, joins the dirty ones. */
void cache_dirty_insert(struct cache *c, struct cache_shard *sh, struct slice *s);

/* Copies all dirty slices; they count as clean, and stay cached until cache_batch_done. On
 * -ENOMEM nothing has changed. */
int cache_collect(struct cache *c, struct cache_batch *batch, struct qk_error *err);
/* Writes the copies in as few calls as possible. `check` (nullable) may refuse an offset. */
typedef int (*cache_write_check)(void *opaque, uint64_t off, uint64_t len, struct qk_error *err);
int cache_batch_write(struct cache_batch *batch, cache_write_check check, void *opaque,
                      struct qk_error *err);
/* Releases the batch; with failed, the slices become dirty again. */
void cache_batch_done(struct cache_batch *batch, bool failed);

#endif
