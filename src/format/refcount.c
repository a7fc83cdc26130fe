/*
 * refcount.c - reading and writing refcounts of 1 to 64 bits, and the hot question which of them
 * are not zero. used_bits first turns 64 refcounts into 64 bytes of 0 or 1 in a loop that
 * compilers vectorise, then packs those bytes into a word. Pure.
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

#define DEFINE_WORD(bits_)                                                                         \
    static uint64_t word_##bits_(const uint8_t *p)                                                 \
    {                                                                                              \
        uint##bits_##_t v[64];                                                                     \
        uint8_t flags[64];                                                                         \
        memcpy(v, p, sizeof(v));                                                                   \
        for (unsigned i = 0; i < 64; i++)                                                          \
            flags[i] = v[i] != 0;                                                                  \
        return pack_flags(flags);                                                                  \
    }

DEFINE_WORD(8)
DEFINE_WORD(16)
DEFINE_WORD(32)
DEFINE_WORD(64)

/* Whole words by `word_`, what is left (and a start inside a byte) one by one. */
#define DEFINE_USED(bits_)                                                                         \
    static void used_##bits_(const void *block, uint64_t first, uint64_t count, uint64_t *out)     \
    {                                                                                              \
        bool whole_bytes = first * (bits_) % 8 == 0;                                               \
        for (uint64_t i = 0; i < count; i += 64, out++) {                                          \
            if (whole_bytes && count - i >= 64) {                                                  \
                *out = word_##bits_((const uint8_t *)block + (first + i) * (bits_) / 8);           \
                continue;                                                                          \
            }                                                                                      \
            *out = 0;                                                                              \
            for (uint64_t k = 0; k < 64 && i + k < count; k++)                                     \
                *out |= (uint64_t)(get_##bits_(block, first + i + k) != 0) << k;                   \
        }                                                                                          \
    }

DEFINE_USED(1)
DEFINE_USED(2)
DEFINE_USED(4)
DEFINE_USED(8)
DEFINE_USED(16)
DEFINE_USED(32)
DEFINE_USED(64)

const struct refcount_ops *refcount_ops(unsigned order)
{
    static const struct refcount_ops ops[] = {
        {get_1, set_1, used_1},    {get_2, set_2, used_2},    {get_4, set_4, used_4},
        {get_8, set_8, used_8},    {get_16, set_16, used_16}, {get_32, set_32, used_32},
        {get_64, set_64, used_64},
    };
    return &ops[order];
}
