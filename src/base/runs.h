/*
 * runs.h - a sorted map from numbers to values that keeps what follows a pattern as one run: values
 * that stay the same (step 0) or grow by `step` with each number. Memory: 24 to 48 bytes for each
 * run, whatever its length. Not thread-safe.
 */
#ifndef QK_BASE_RUNS_H
#define QK_BASE_RUNS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct run {
    uint64_t first;
    uint32_t count, step;
    uint64_t value; /* of `first` */
};

static inline uint64_t run_end(const struct run *run)
{
    return run->first + run->count;
}

struct run_chunk;
struct runs {
    struct run_chunk **chunk;
    size_t chunks, room;
};

/* Where a run is; good until the next runs_put. */
struct run_at {
    size_t chunk, index;
};

/* The first run that ends behind `number`; NULL: none. */
struct run *runs_from(const struct runs *runs, uint64_t number, struct run_at *at);
/* The run behind that one; NULL: none. */
struct run *runs_next(const struct runs *runs, struct run_at *at);
/* What `number` maps to; NULL: nothing. */
const struct run *runs_find(const struct runs *runs, uint64_t number);
/* Adds a run whose numbers are not there yet. -ENOMEM. */
int runs_put(struct runs *runs, struct run run);
/* Takes `count` numbers from `first` on out, all of which are in one run. -ENOMEM. */
int runs_cut(struct runs *runs, uint64_t first, uint32_t count);
void runs_free(struct runs *runs);

#endif
