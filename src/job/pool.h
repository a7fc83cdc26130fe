/*
 * pool.h - the one way in which long work over disks is spread over threads. A producer names
 * pieces of work in ascending order, many threads prepare them at once, and each is finished
 * either in the producer's order or as soon as it is ready.
 *
 *     take (one at a time, ascending) -> prepare (parallel) -> finish (ordered or parallel)
 *
 * Promises: the first failure stops all workers and is the one that the caller gets, once; with
 * `ordered` that is the failure with the lowest offset, whatever the timing. Progress is reported
 * by one thread at a time. No thread outlives job_run. Memory is threads x (buffer + one item).
 */
#ifndef QK_JOB_POOL_H
#define QK_JOB_POOL_H

#include "base/error.h"

/* Guest bytes that one item holds at most, and so the size of one buffer. */
#define JOB_CHUNK_BYTES (2u << 20)
#define JOB_ITEM_PIECES 64
#define JOB_MAX_THREADS 64

/* prepare and finish may return this: the work is done early, and it is no failure. */
#define JOB_STOP 1

struct job_piece {
    uint64_t off, len;
    unsigned kind; /* the job's own */
};

/* A guest range and what is to be done in its parts, in ascending order without holes. */
struct job_item {
    uint64_t seq;    /* set by the pool: 0, 1, 2, ... in the order of take */
    uint64_t weight; /* what it counts for in progress */
    size_t source;   /* the job's own */
    uint64_t chunk;  /* its buffer's size, set by take; 0: JOB_CHUNK_BYTES */
    unsigned count;
    struct job_piece piece[JOB_ITEM_PIECES];
};

/* What one worker has for itself. */
struct job_worker {
    uint8_t *buffer; /* of plan->buffer_bytes, aligned for O_DIRECT */
    int prepared;    /* what prepare returned */
    struct job_item item;
};

struct job_ops {
    /* 1: worker->item is filled; 0: no more; or a failure. */
    int (*take)(void *job, struct job_item *item, struct qk_error *err);
    int (*prepare)(void *job, struct job_worker *worker, struct qk_error *err);
    int (*finish)(void *job, struct job_worker *worker, struct qk_error *err);
};

struct job_plan {
    const struct job_ops *ops;
    void *job;
    unsigned threads; /* 0: as many as cores, at most 16 */
    size_t buffer_bytes;
    bool ordered;
    uint64_t total_weight;
    const struct qk_progress *progress; /* NULL: none */
};

/* 0 also after JOB_STOP; -ECANCELED when progress asked for it. */
int job_run(const struct job_plan *plan, struct qk_error *err);

/*
 * Adds [off, off + len) to the item, joined with the last piece when the kind is the same. False:
 * the item is full and unchanged.
 */
bool job_item_add(struct job_item *item, struct job_piece piece);

/* Where the item's range ends; `start` when it is empty. */
uint64_t job_item_end(const struct job_item *item, uint64_t start);

/*
 * The next piece of the range that `off` begins: how long it may be so that the item stays inside
 * its buffer. Parts that need no buffer may be long when the item has nothing else; 0: the item
 * has to end here.
 */
uint64_t job_item_room(const struct job_item *item, uint64_t off, bool needs_buffer);

/* "WHAT OFFSET: reason" in front of the reason in err; returns ret. */
int job_fail_at_byte(struct qk_error *err, int ret, const char *what, uint64_t off);

#endif
