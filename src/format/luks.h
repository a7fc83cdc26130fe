/*
 * luks.h - the header of LUKS version 1 (LUKS On-Disk Format Specification 1.2.3, "The PHDR"), as
 * it begins the area that the extension "Full disk encryption header pointer" names, and that
 * pointer itself. Pure: bytes in, struct out, and back. Sectors are 512 bytes and count from the
 * start of the area.
 */
#ifndef QK_FORMAT_LUKS_H
#define QK_FORMAT_LUKS_H

#include "base/error.h"

#include <stdbool.h>

#define LUKS_HEADER_BYTES  592
#define LUKS_SLOTS         8
#define LUKS_STRIPES       4000
#define LUKS_DIGEST_BYTES  20
#define LUKS_SALT_BYTES    32
#define LUKS_NAME_BYTES    32
#define LUKS_UUID_BYTES    40
#define LUKS_SECTOR_BYTES  512
#define LUKS_ALIGN_SECTORS 8 /* header and key material begin at multiples of this */
#define LUKS_POINTER_BYTES 16

struct luks_slot {
    bool active;
    uint32_t iterations;
    uint8_t salt[LUKS_SALT_BYTES];
    uint32_t first_sector; /* of the key material */
    uint32_t stripes;
};

struct luks_header {
    char cipher[LUKS_NAME_BYTES + 1], mode[LUKS_NAME_BYTES + 1], hash[LUKS_NAME_BYTES + 1];
    uint32_t payload_sector;
    uint32_t key_bytes;
    uint8_t digest[LUKS_DIGEST_BYTES], salt[LUKS_SALT_BYTES]; /* of the master key */
    uint32_t iterations;
    char uuid[LUKS_UUID_BYTES + 1];
    struct luks_slot slots[LUKS_SLOTS];
};

/* Magic, version, names that end, slots that are one or the other; nothing else is judged. */
int luks_decode(const uint8_t bytes[LUKS_HEADER_BYTES], struct luks_header *h,
                struct qk_error *err);
void luks_encode(const struct luks_header *h, uint8_t bytes[LUKS_HEADER_BYTES]);

/* The area has room for everything, nothing in it overlaps, and there is something to derive keys
 * from: afterwards luks_material_bytes of each slot can be read (INV-4). */
int luks_validate(const struct luks_header *h, uint64_t area_bytes, struct qk_error *err);

/* Places the key material of all slots with LUKS_STRIPES, all inactive; the payload begins
 * behind. key_bytes must be set. */
void luks_place(struct luks_header *h);

/* Bytes of a slot's key material, without what fills its last sector. */
static inline uint64_t luks_material_bytes(const struct luks_header *h, unsigned slot)
{
    return (uint64_t)h->key_bytes * h->slots[slot].stripes;
}

/* The sector of the header that holds the word which says whether the slot is active. */
unsigned luks_state_sector(unsigned slot);

/* ---- the pointer in the qcow2 header ---- */

struct luks_pointer {
    uint64_t off, bytes;
};
struct luks_pointer luks_pointer_decode(const uint8_t bytes[LUKS_POINTER_BYTES]);
void luks_pointer_encode(struct luks_pointer pointer, uint8_t bytes[LUKS_POINTER_BYTES]);

#endif
