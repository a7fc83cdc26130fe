/*
 * checked.h - arithmetic that cannot wrap silently (INV-4), rounding, and small helpers. Functions
 * named try_* return false when the result does not fit and leave *out unspecified.
 */
#ifndef QK_BASE_CHECKED_H
#define QK_BASE_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARRAY_SIZE(a_) (sizeof(a_) / sizeof((a_)[0]))

static inline bool try_add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

static inline bool try_mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

/* off + len <= end, without wrapping */
static inline bool range_within(uint64_t off, uint64_t len, uint64_t end)
{
    return off <= end && len <= end - off;
}

static inline bool ranges_overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
    return a_len && b_len && (a < b ? b - a < a_len : a - b < b_len);
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static inline bool is_power_of_2(uint64_t v)
{
    return v && !(v & (v - 1));
}

/* align is a power of two */
static inline bool is_aligned(uint64_t v, uint64_t align)
{
    return !(v & (align - 1));
}

static inline uint64_t round_down(uint64_t v, uint64_t align)
{
    return v & ~(align - 1);
}

/* The caller knows that v + align - 1 does not wrap; else try_round_up. */
static inline uint64_t round_up(uint64_t v, uint64_t align)
{
    return (v + align - 1) & ~(align - 1);
}

static inline bool try_round_up(uint64_t v, uint64_t align, uint64_t *out)
{
    if (!try_add_u64(v, align - 1, out))
        return false;
    *out &= ~(align - 1);
    return true;
}

/* Rounds up without wrapping. */
static inline uint64_t div_round_up(uint64_t v, uint64_t by)
{
    return v / by + (v % by != 0);
}

/* v > 0 */
static inline unsigned log2_floor(uint64_t v)
{
    return 63u - (unsigned)__builtin_clzll(v);
}

#endif
