/* refcount_convert.c - see refcount_convert.h. */
#include "format/refcount_convert.h"

#include "base/bytes.h"

#include <string.h>

/* ---- widths under a byte: eight refcounts are `bits_` bytes ---- */

#define DEFINE_PACKED(bits_)                                                                       \
    static void unpack_##bits_(const uint8_t *p, uint64_t count, uint64_t *out)                    \
    {                                                                                              \
        const unsigned per_byte = 8 / (bits_), mask = (1u << (bits_)) - 1;                         \
        for (uint64_t i = 0; i < count; i += per_byte, p++)                                        \
            for (unsigned k = 0; k < per_byte; k++)                                                \
                out[i + k] = (unsigned)*p >> (k * (bits_)) & mask;                                 \
    }                                                                                              \
    static void pack_##bits_(uint8_t *p, uint64_t count, const uint64_t *in)                       \
    {                                                                                              \
        const unsigned per_byte = 8 / (bits_), mask = (1u << (bits_)) - 1;                         \
        for (uint64_t i = 0; i < count; i += per_byte, p++) {                                      \
            unsigned byte = 0;                                                                     \
            for (unsigned k = 0; k < per_byte; k++)                                                \
                byte |= ((unsigned)in[i + k] & mask) << (k * (bits_));                             \
            *p = (uint8_t)byte;                                                                    \
        }                                                                                          \
    }

DEFINE_PACKED(1)
DEFINE_PACKED(2)
DEFINE_PACKED(4)

/* ---- whole bytes ---- */

#define swap_8(v_)  (v_)
#define swap_16(v_) be16toh(v_)
#define swap_32(v_) be32toh(v_)
#define swap_64(v_) be64toh(v_)

#define DEFINE_WIDE(bits_)                                                                         \
    static void unpack_##bits_(const uint8_t *p, uint64_t count, uint64_t *out)                    \
    {                                                                                              \
        for (uint64_t i = 0; i < count; i++) {                                                     \
            uint##bits_##_t v;                                                                     \
            memcpy(&v, p + i * sizeof(v), sizeof(v));                                              \
            out[i] = swap_##bits_(v);                                                              \
        }                                                                                          \
    }                                                                                              \
    static void pack_##bits_(uint8_t *p, uint64_t count, const uint64_t *in)                       \
    {                                                                                              \
        for (uint64_t i = 0; i < count; i++) {                                                     \
            uint##bits_##_t v = (uint##bits_##_t)in[i];                                            \
            v = swap_##bits_(v);                                                                   \
            memcpy(p + i * sizeof(v), &v, sizeof(v));                                              \
        }                                                                                          \
    }

DEFINE_WIDE(8)
DEFINE_WIDE(16)
DEFINE_WIDE(32)
DEFINE_WIDE(64)

void refcount_unpack(unsigned order, const void *block, uint64_t first, uint64_t count,
                     uint64_t *out)
{
    static void (*const by_order[])(const uint8_t *, uint64_t, uint64_t *) = {
        unpack_1, unpack_2, unpack_4, unpack_8, unpack_16, unpack_32, unpack_64,
    };
    by_order[order]((const uint8_t *)block + (first << order) / 8, count, out);
}

void refcount_pack(unsigned order, void *block, uint64_t first, uint64_t count, const uint64_t *in)
{
    static void (*const by_order[])(uint8_t *, uint64_t, const uint64_t *) = {
        pack_1, pack_2, pack_4, pack_8, pack_16, pack_32, pack_64,
    };
    by_order[order]((uint8_t *)block + (first << order) / 8, count, in);
}
