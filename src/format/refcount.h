/*
 * refcount.h - refcounts of every width inside a refcount block (Format, section "Refcounts"):
 * one small table of functions by width. Widths under 8 bits are packed from the least
 * significant bit of each byte; wider ones are big-endian. Pure.
 */
#ifndef QK_FORMAT_REFCOUNT_H
#define QK_FORMAT_REFCOUNT_H

#include "base/error.h"

#include <stdbool.h>

struct refcount_ops {
    uint64_t (*get)(const void *block, uint64_t index);
    void (*set)(void *block, uint64_t index, uint64_t value); /* value <= max of the width */
    /* Bit i of out[i / 64] := refcount first+i is not 0, for count refcounts; out is zeroed by the
     * function and has room for count rounded up to 64. */
    void (*used_bits)(const void *block, uint64_t first, uint64_t count, uint64_t *out);
};

/* order: 0 (1 bit) to 6 (64 bits) */
const struct refcount_ops *refcount_ops(unsigned order);

#endif
