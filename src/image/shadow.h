/*
 * shadow.h - a new refcount structure beside the old one, for operations that change references by
 * whole tables and become valid with one write of the header (doc/design/snapshots.md): count, ask,
 * place, write, switch. Until the switch no byte changes that the old structure or anything it
 * counts names. Relies on alloc_lock and the whole disk being held, and on a writeback that left
 * nothing in memory. Memory: a window of SHADOW_WINDOW_BYTES of refcount blocks; two bits for each
 * cluster of the file; the refcount table twice.
 */
#ifndef QK_IMAGE_SHADOW_H
#define QK_IMAGE_SHADOW_H

#include "image/l2_walk.h"

#define SHADOW_WINDOW_BYTES (64u << 20) /* at least a cluster */

/* The references of some L1 entries come (sign 1) or go (-1): to each table, and to what it names.
 */
struct shadow_tree {
    const struct l2_table_vec *tables; /* borrowed */
    int sign;
    struct l2_table_vec *flagged; /* gets those that have COPIED flags; NULL: nobody asks */
};

/* References to clusters of metadata, beside those of trees. */
struct shadow_extra {
    struct cluster_run run;
    uint32_t amount;
    bool down;
};
DEFINE_VECTOR(shadow_extra_vec, struct shadow_extra)

struct shadow_block {
    uint64_t place; /* cluster of the new block; 0: none yet */
    bool changed;
};
DEFINE_VECTOR(shadow_block_vec, struct shadow_block)

struct shadow {
    struct image *img;
    const struct shadow_tree *trees; /* those that go come first */
    size_t tree_count;
    uint64_t window_blocks, window; /* blocks in one; number of the loaded one, or NONE */
    uint8_t *counts;                /* of the loaded window */
    uint64_t *ones, *freed;         /* a bit for each cluster below `clusters` */
    uint64_t clusters;
    struct shadow_block_vec blocks; /* by index in the refcount table */
    struct shadow_extra_vec extras;
    struct cluster_run_vec placed; /* marked in the free map; given back unless adopted */
    struct cluster_run table;      /* the new refcount table */
    uint64_t freed_clusters;
    unsigned needed_order; /* after -ERANGE: the refcount width that would do, as order */
    struct freemap *free;  /* these two: for after the switch */
    uint64_t *entries;
};

/* Counts all trees. -ERANGE: a count does not fit (needed_order says what would do); -EIO: counts
 * and references contradict each other. Nothing is written. */
int shadow_begin(struct shadow *sh, struct qk_error *err);
/* Gives back what was reserved and not adopted. */
void shadow_unplace(struct shadow *sh);
/* After shadow_adopt or shadow_unplace: needs no lock. */
void shadow_end(struct shadow *sh);

/* The cluster will have exactly one reference (trees counted, extras not). */
static inline bool shadow_is_one(const struct shadow *sh, uint64_t cluster)
{
    return cluster < sh->clusters && sh->ones[cluster / 64] >> (cluster % 64) & 1;
}

/* The cluster loses its last reference (trees counted, extras not). */
static inline bool shadow_is_freed(const struct shadow *sh, uint64_t cluster)
{
    return cluster < sh->clusters && sh->freed[cluster / 64] >> (cluster % 64) & 1;
}

/* `count` free clusters in few runs, appended to `out`, each with `amount` references. */
int shadow_reserve(struct shadow *sh, uint64_t count, uint32_t amount, struct cluster_run_vec *out,
                   struct qk_error *err);
/* The same for one run with one reference, -ENOSPC when there is none as long. */
int shadow_reserve_one(struct shadow *sh, uint64_t count, struct cluster_run *run,
                       struct qk_error *err);
/* `amount` references to each cluster of the run come, or go. */
int shadow_retain(struct shadow *sh, struct cluster_run run, uint32_t amount, struct qk_error *err);
int shadow_release(struct shadow *sh, struct cluster_run run, uint32_t amount,
                   struct qk_error *err);
/* All extras are known: finds places for the blocks that change, and for the table. */
int shadow_place(struct shadow *sh, struct qk_error *err);
/* Writes blocks and table to their places. The caller brings the barrier, and the switch. */
int shadow_write(struct shadow *sh, struct qk_error *err);
/* Where the header will find the new table. */
void shadow_header(const struct shadow *sh, struct header *h);
/* After the switch: the allocator goes on with the new structure. Cannot fail. */
void shadow_adopt(struct shadow *sh);
/* After that: holes for the clusters that became free, where wanted, and the file's end, when they
 * were more than metadata. */
void shadow_discard(struct shadow *sh);

/* ---- between the files of this module ---- */

#define SHADOW_NO_WINDOW UINT64_MAX

static inline uint64_t shadow_per_window(const struct shadow *sh)
{
    return sh->window_blocks << sh->img->g.refblock_bits;
}
/* Loads the window and counts the trees in it, unless it is there already. */
int shadow_load(struct shadow *sh, uint64_t window, struct qk_error *err);
/* Changes the part of the run that lies in the loaded window. */
int shadow_count(struct shadow *sh, struct cluster_run run, const struct refcount_step *step,
                 struct qk_error *err);
/* The blocks of these clusters change. */
int shadow_mark(struct shadow *sh, struct cluster_run run, struct qk_error *err);

#endif
