/*
 * crc32c.c - the Castagnoli checksum: by the processor's instruction, else by half bytes.
 */
#include "base/crc32c.h"

#include <string.h>

/* Remainders of the sixteen half bytes, reflected polynomial 0x82f63b78. */
static const uint32_t half_byte[16] = {
    0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
    0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
};

static uint32_t by_table(uint32_t state, const uint8_t *p, size_t len)
{
    while (len--) {
        state ^= *p++;
        state = state >> 4 ^ half_byte[state & 15];
        state = state >> 4 ^ half_byte[state & 15];
    }
    return state;
}

#ifdef __x86_64__
__attribute__((target("sse4.2"))) static uint32_t by_instruction(uint32_t state, const uint8_t *p,
                                                                 size_t len)
{
    uint64_t wide = state;
    for (; len >= sizeof(uint64_t); len -= sizeof(uint64_t), p += sizeof(uint64_t)) {
        uint64_t word;
        memcpy(&word, p, sizeof(word));
        wide = __builtin_ia32_crc32di(wide, word);
    }
    return by_table((uint32_t)wide, p, len);
}
#endif

uint32_t crc32c(uint32_t crc, const void *bytes, size_t len)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("sse4.2"))
        return ~by_instruction(~crc, bytes, len);
#endif
    return ~by_table(~crc, bytes, len);
}
