/*
 * refcount.c - reading and writing refcounts of 1 to 64 bits, and the hot questions which of them
 * are not zero, or exactly one: 64 refcounts become 64 bytes of 0 or 1 in a loop that compilers
 * vectorise, then those bytes are packed into a word. Many refcounts change by the same amount in
 * two such loops: one looks whether all may, one adds. Pure.
 */
#include "format/refcount.h"

#include "base/bytes.h"
#include "base/checked.h"

/* ---- widths under a byte ---- */

#define DEFINE_PACKED(bits_)                                                                       \
    static uint64_t get_##bits_(const void *block, uint64_t index)                                 \
    {                                                                                              \
        uint64_t at = index * (bits_);                                                             \
        return (uint64_t)((const uint8_t *)block)[at / 8] >> (at % 8) & ((1u << (bits_)) - 1);     \
    }                                                                                              \
    static void set_##bits_(void *block, uint64_t index, uint64_t value)                           \
    {                                                                                              \
        uint64_t at = index * (bits_);                                                             \
        uint8_t *p = (uint8_t *)block + at / 8;                                                    \
        unsigned mask = ((1u << (bits_)) - 1) << (at % 8);                                         \
        *p = (uint8_t)((*p & ~mask) | ((unsigned)value << (at % 8) & mask));                       \
    }

DEFINE_PACKED(1)
DEFINE_PACKED(2)
DEFINE_PACKED(4)

/* ---- whole bytes ---- */

static uint64_t get_8(const void *block, uint64_t index)
{
    return ((const uint8_t *)block)[index];
}

static void set_8(void *block, uint64_t index, uint64_t value)
{
    ((uint8_t *)block)[index] = (uint8_t)value;
}

#define DEFINE_WIDE(bits_)                                                                         \
    static uint64_t get_##bits_(const void *block, uint64_t index)                                 \
    {                                                                                              \
        return load_be##bits_((const uint8_t *)block + index * ((bits_) / 8));                     \
    }                                                                                              \
    static void set_##bits_(void *block, uint64_t index, uint64_t value)                           \
    {                                                                                              \
        store_be##bits_((uint8_t *)block + index * ((bits_) / 8), (uint##bits_##_t)value);         \
    }

DEFINE_WIDE(16)
DEFINE_WIDE(32)
DEFINE_WIDE(64)

/* ---- which are used ---- */

static uint64_t load_le64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof(v));
    return le64toh(v);
}

/* 64 bytes of 0 or 1 become 64 bits: the multiplication collects the eight low bits of a word in
 * its top byte. */
static uint64_t pack_flags(const uint8_t flags[64])
{
    uint64_t out = 0;
    for (unsigned i = 0; i < 8; i++)
        out |= (load_le64(flags + 8 * i) * UINT64_C(0x0102040810204080) >> 56) << (8 * i);
    return out;
}

/* Of each pair of bits (v holds nothing in the odd ones) the even one, packed into 32 bits. */
static uint64_t squeeze_even(uint64_t v)
{
    static const uint64_t masks[] = {
        UINT64_C(0x3333333333333333), UINT64_C(0x0f0f0f0f0f0f0f0f), UINT64_C(0x00ff00ff00ff00ff),
        UINT64_C(0x0000ffff0000ffff), UINT64_C(0x00000000ffffffff),
    };
    for (unsigned i = 0; i < ARRAY_SIZE(masks); i++)
        v = (v | v >> (1u << i)) & masks[i];
    return v;
}

/* 32 two-bit refcounts to 32 bits */
static uint64_t used_pairs(uint64_t v)
{
    return squeeze_even((v | v >> 1) & UINT64_C(0x5555555555555555));
}

static uint64_t word_1(const uint8_t *p)
{
    return load_le64(p);
}

static uint64_t word_2(const uint8_t *p)
{
    return used_pairs(load_le64(p)) | used_pairs(load_le64(p + 8)) << 32;
}

/* 16 four-bit refcounts to 16 bits: a nibble folds to a pair, then a pair to a bit. */
static uint64_t used_nibbles(uint64_t v)
{
    v |= v >> 2;
    return squeeze_even(squeeze_even((v | v >> 1) & UINT64_C(0x1111111111111111)));
}

static uint64_t word_4(const uint8_t *p)
{
    uint64_t out = 0;
    for (unsigned i = 0; i < 4; i++)
        out |= used_nibbles(load_le64(p + 8 * i)) << (16 * i);
    return out;
}

static uint64_t one_1(const uint8_t *p)
{
    return load_le64(p);
}

/* 32 two-bit refcounts to 32 bits */
static uint64_t one_pairs(uint64_t v)
{
    return squeeze_even(v & ~(v >> 1) & UINT64_C(0x5555555555555555));
}

static uint64_t one_2(const uint8_t *p)
{
    return one_pairs(load_le64(p)) | one_pairs(load_le64(p + 8)) << 32;
}

/* Nibbles that are 1 become 0, which are the ones that are not used. */
static uint64_t one_4(const uint8_t *p)
{
    uint64_t out = 0;
    for (unsigned i = 0; i < 4; i++)
        out |= used_nibbles(load_le64(p + 8 * i) ^ UINT64_C(0x1111111111111111)) << (16 * i);
    return ~out;
}

#define DEFINE_WORD(name_, bits_, wanted_)                                                         \
    static uint64_t name_##_##bits_(const uint8_t *p)                                              \
    {                                                                                              \
        uint##bits_##_t v[64];                                                                     \
        uint8_t flags[64];                                                                         \
        memcpy(v, p, sizeof(v));                                                                   \
        for (unsigned i = 0; i < 64; i++)                                                          \
            flags[i] = wanted_;                                                                    \
        return pack_flags(flags);                                                                  \
    }

DEFINE_WORD(word, 8, v[i] != 0)
DEFINE_WORD(word, 16, v[i] != 0)
DEFINE_WORD(word, 32, v[i] != 0)
DEFINE_WORD(word, 64, v[i] != 0)
DEFINE_WORD(one, 8, v[i] == 1)
DEFINE_WORD(one, 16, v[i] == htobe16(1))
DEFINE_WORD(one, 32, v[i] == htobe32(1))
DEFINE_WORD(one, 64, v[i] == htobe64(1))

/* Whole words by `word_`, what is left (and a start inside a byte) one by one. */
#define DEFINE_BITS(out_name_, word_name_, bits_, wanted_)                                         \
    static void out_name_##_##bits_(const void *block, uint64_t first, uint64_t count,             \
                                    uint64_t *out)                                                 \
    {                                                                                              \
        bool whole_bytes = first * (bits_) % 8 == 0;                                               \
        for (uint64_t i = 0; i < count; i += 64, out++) {                                          \
            if (whole_bytes && count - i >= 64) {                                                  \
                *out = word_name_##_##bits_((const uint8_t *)block + (first + i) * (bits_) / 8);   \
                continue;                                                                          \
            }                                                                                      \
            *out = 0;                                                                              \
            for (uint64_t k = 0; k < 64 && i + k < count; k++) {                                   \
                uint64_t v = get_##bits_(block, first + i + k);                                    \
                *out |= (uint64_t)(wanted_) << k;                                                  \
            }                                                                                      \
        }                                                                                          \
    }
#define DEFINE_ALL_BITS(bits_)                                                                     \
    DEFINE_BITS(used, word, bits_, v != 0)                                                         \
    DEFINE_BITS(ones, one, bits_, v == 1)

DEFINE_ALL_BITS(1)
DEFINE_ALL_BITS(2)
DEFINE_ALL_BITS(4)
DEFINE_ALL_BITS(8)
DEFINE_ALL_BITS(16)
DEFINE_ALL_BITS(32)
DEFINE_ALL_BITS(64)

/* ---- many at a time: widths under a byte ---- */

#define PACKED_TABLE_FROM 512u /* bytes: fewer are looked at one refcount at a time */

/* Which bytes hold nothing but refcounts in the range. */
#define DEFINE_PACKED_RANGE(bits_)                                                                 \
    static uint64_t bytes_in_range_##bits_(const uint8_t *p, uint64_t bytes,                       \
                                           struct refcount_range range)                            \
    {                                                                                              \
        bool good[256];                                                                            \
        for (unsigned b = 0; b < 256; b++) {                                                       \
            uint8_t byte = (uint8_t)b;                                                             \
            good[b] = true;                                                                        \
            for (unsigned i = 0; i < 8 / (bits_); i++) {                                           \
                uint64_t v = get_##bits_(&byte, i);                                                \
                good[b] &= v >= range.lo && v <= range.hi;                                         \
            }                                                                                      \
        }                                                                                          \
        uint64_t n = 0;                                                                            \
        while (n < bytes && good[p[n]])                                                            \
            n++;                                                                                   \
        return n;                                                                                  \
    }                                                                                              \
    static uint64_t in_range_##bits_(const void *block, uint64_t first, uint64_t count,            \
                                     struct refcount_range range)                                  \
    {                                                                                              \
        const uint64_t per_byte = 8 / (bits_);                                                     \
        uint64_t n = 0;                                                                            \
        while (n < count) {                                                                        \
            if ((first + n) % per_byte == 0 && count - n >= PACKED_TABLE_FROM * per_byte) {        \
                const uint8_t *p = (const uint8_t *)block + (first + n) / per_byte;                \
                uint64_t bytes = (count - n) / per_byte;                                           \
                uint64_t good = bytes_in_range_##bits_(p, bytes, range);                           \
                n += good * per_byte;                                                              \
                count = good < bytes ? n + per_byte : count;                                       \
                continue;                                                                          \
            }                                                                                      \
            uint64_t v = get_##bits_(block, first + n);                                            \
            if (v < range.lo || v > range.hi)                                                      \
                break;                                                                             \
            n++;                                                                                   \
        }                                                                                          \
        return n;                                                                                  \
    }                                                                                              \
    /* No result leaves its field, so the fields of a byte add without carries between them. */    \
    static void add_##bits_(void *block, uint64_t first, uint64_t count, uint64_t delta)           \
    {                                                                                              \
        const uint64_t per_byte = 8 / (bits_);                                                     \
        const uint64_t mask = (1u << (bits_)) - 1;                                                 \
        bool down = delta >> 63;                                                                   \
        uint64_t amount = (down ? -delta : delta) & mask;                                          \
        uint8_t all = (uint8_t)(amount * (255 / mask)), *p = block;                                \
        uint64_t i = first, end = first + count;                                                   \
        for (; i < end && i % per_byte; i++)                                                       \
            set_##bits_(block, i, (get_##bits_(block, i) + delta) & mask);                         \
        uint64_t last = i < end ? end / per_byte : 0;                                              \
        for (uint64_t b = i / per_byte; b < last; b++)                                             \
            p[b] = (uint8_t)(down ? p[b] - all : p[b] + all);                                      \
        for (i = max_u64(i, last * per_byte); i < end; i++)                                        \
            set_##bits_(block, i, (get_##bits_(block, i) + delta) & mask);                         \
    }

DEFINE_PACKED_RANGE(1)
DEFINE_PACKED_RANGE(2)
DEFINE_PACKED_RANGE(4)

/* ---- many at a time: whole bytes ---- */

#define RANGE_STRIDE 128u /* refcounts that are looked at before it is asked whether all fit */

#define DEFINE_WIDE_RANGE(bits_)                                                                   \
    static bool stride_in_range_##bits_(const uint8_t *p, struct refcount_range range)             \
    {                                                                                              \
        uint##bits_##_t v[RANGE_STRIDE], lo = (uint##bits_##_t)range.lo,                           \
                                         hi = (uint##bits_##_t)range.hi, bad = 0;                  \
        memcpy(v, p, sizeof(v));                                                                   \
        for (unsigned i = 0; i < RANGE_STRIDE; i++) {                                              \
            uint##bits_##_t x = swap_##bits_(v[i]);                                                \
            bad |= (uint##bits_##_t)((x < lo) | (x > hi));                                         \
        }                                                                                          \
        return !bad;                                                                               \
    }                                                                                              \
    static uint64_t in_range_##bits_(const void *block, uint64_t first, uint64_t count,            \
                                     struct refcount_range range)                                  \
    {                                                                                              \
        const uint8_t *p = (const uint8_t *)block + first * ((bits_) / 8);                         \
        uint64_t n = 0;                                                                            \
        while (count - n >= RANGE_STRIDE && stride_in_range_##bits_(p + n * ((bits_) / 8), range)) \
            n += RANGE_STRIDE;                                                                     \
        for (; n < count; n++) {                                                                   \
            uint64_t v = get_##bits_(block, first + n);                                            \
            if (v < range.lo || v > range.hi)                                                      \
                break;                                                                             \
        }                                                                                          \
        return n;                                                                                  \
    }                                                                                              \
    static void add_##bits_(void *block, uint64_t first, uint64_t count, uint64_t delta)           \
    {                                                                                              \
        uint8_t *p = (uint8_t *)block + first * ((bits_) / 8);                                     \
        for (uint64_t i = 0; i < count; i++, p += (bits_) / 8) {                                   \
            uint##bits_##_t v;                                                                     \
            memcpy(&v, p, sizeof(v));                                                              \
            v = swap_##bits_((uint##bits_##_t)(swap_##bits_(v) + (uint##bits_##_t)delta));         \
            memcpy(p, &v, sizeof(v));                                                              \
        }                                                                                          \
    }

#define swap_8(v_)  (v_)
#define swap_16(v_) be16toh(v_)
#define swap_32(v_) be32toh(v_)
#define swap_64(v_) be64toh(v_)
DEFINE_WIDE_RANGE(8)
DEFINE_WIDE_RANGE(16)
DEFINE_WIDE_RANGE(32)
DEFINE_WIDE_RANGE(64)

uint64_t refcount_step(const struct refcount_ops *ops, void *block, uint64_t first, uint64_t count,
                       const struct refcount_step *step)
{
    const uint64_t max = ops->max;
    struct refcount_range range = {step->least, max - min_u64(step->amount, max)};
    if (step->down)
        range = (struct refcount_range){step->amount, max};
    if (step->amount > max)
        return 0;
    uint64_t n = ops->in_range(block, first, count, range);
    ops->add(block, first, n, step->down ? -step->amount : step->amount);
    return n;
}

#define OPS(bits_)                                                                                 \
    {                                                                                              \
        UINT64_MAX >> (64 - (bits_)), get_##bits_, set_##bits_, used_##bits_, ones_##bits_,        \
            in_range_##bits_, add_##bits_                                                          \
    }

const struct refcount_ops *refcount_ops(unsigned order)
{
    static const struct refcount_ops ops[] = {OPS(1),  OPS(2),  OPS(4), OPS(8),
                                              OPS(16), OPS(32), OPS(64)};
    return &ops[order];
}
