/*
 * refcount.h - refcounts of every width inside a refcount block (Format, section "Refcounts"):
 * one small table of functions by width. Widths under 8 bits are packed from the least
 * significant bit of each byte; wider ones are big-endian. Pure.
 */
#ifndef QK_FORMAT_REFCOUNT_H
#define QK_FORMAT_REFCOUNT_H

#include "base/error.h"

#include <stdbool.h>

struct refcount_range {
    uint64_t lo, hi;
};

struct refcount_ops {
    uint64_t max;
    uint64_t (*get)(const void *block, uint64_t index);
    void (*set)(void *block, uint64_t index, uint64_t value); /* value <= max of the width */
    /* Bit i of out[i / 64] := refcount first+i is not 0, for count refcounts; out is zeroed by the
     * function and has room for count rounded up to 64. */
    void (*used_bits)(const void *block, uint64_t first, uint64_t count, uint64_t *out);
    /* The same for refcounts that are exactly 1. */
    void (*one_bits)(const void *block, uint64_t first, uint64_t count, uint64_t *out);
    /* How many refcounts from `first` on, at most count, are within [lo, hi]. */
    uint64_t (*in_range)(const void *block, uint64_t first, uint64_t count,
                         struct refcount_range range);
    /* Adds `delta` to count refcounts (its two's complement takes away); all results fit. */
    void (*add)(void *block, uint64_t first, uint64_t count, uint64_t delta);
};

/*
 * A change of many refcounts by the same amount: those that it allows (down: at least `amount`; up:
 * at least `least` and no more than fits) are changed, up to the first that it does not allow.
 */
struct refcount_step {
    uint64_t amount;
    bool down;
    uint64_t least; /* up: 1 for clusters that are in use, 0 for new ones */
};
/* Returns how many of `count` refcounts from `first` on were changed. */
uint64_t refcount_step(const struct refcount_ops *ops, void *block, uint64_t first, uint64_t count,
                       const struct refcount_step *step);

/* order: 0 (1 bit) to 6 (64 bits) */
const struct refcount_ops *refcount_ops(unsigned order);

#endif
