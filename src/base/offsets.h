/*
 * offsets.h - guest and host offsets as types that cannot be swapped. A guest offset is a byte
 * position on the virtual disk, a host offset one in an image (or data) file.
 */
#ifndef QK_BASE_OFFSETS_H
#define QK_BASE_OFFSETS_H

#include <stdint.h>

typedef struct {
    uint64_t v;
} guest_off_t;

typedef struct {
    uint64_t v;
} host_off_t;

static inline guest_off_t guest_off(uint64_t v)
{
    return (guest_off_t){v};
}

static inline host_off_t host_off(uint64_t v)
{
    return (host_off_t){v};
}

#endif
