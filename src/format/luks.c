/*
 * luks.c - LUKS version 1 header bytes <-> struct (see luks.h). Relies on nothing but bytes in
 * memory; promises that what luks_validate accepts lies inside the area (INV-4).
 */
#include "format/luks.h"

#include "base/bytes.h"
#include "base/checked.h"

#include <inttypes.h>

#define SLOT_ACTIVE   UINT32_C(0x00ac71f3)
#define SLOT_INACTIVE UINT32_C(0x0000dead)

/* where fields lie */
#define OFF_VERSION    6
#define OFF_CIPHER     8
#define OFF_MODE       40
#define OFF_HASH       72
#define OFF_PAYLOAD    104
#define OFF_KEY_BYTES  108
#define OFF_DIGEST     112
#define OFF_SALT       132
#define OFF_ITERATIONS 164
#define OFF_UUID       168
#define OFF_SLOTS      208
#define SLOT_BYTES     48

static const uint8_t magic[6] = {'L', 'U', 'K', 'S', 0xba, 0xbe};

/* ---- bytes <-> struct ---- */

static int take_text(const uint8_t *bytes, size_t len, char *out, const char *what,
                     struct qk_error *err)
{
    if (!memchr(bytes, 0, len))
        return qk_fail(err, -EINVAL, "LUKS header %s is not NUL terminated", what);
    memcpy(out, bytes, len);
    out[len] = 0;
    return 0;
}

static int decode_slot(const uint8_t *p, unsigned number, struct luks_slot *slot,
                       struct qk_error *err)
{
    uint32_t state = load_be32(p);
    if (state != SLOT_ACTIVE && state != SLOT_INACTIVE)
        return qk_fail(err, -EINVAL, "Keyslot %u state (active/disable) is corrupted", number);
    slot->active = state == SLOT_ACTIVE;
    slot->iterations = load_be32(p + 4);
    memcpy(slot->salt, p + 8, LUKS_SALT_BYTES);
    slot->first_sector = load_be32(p + 40);
    slot->stripes = load_be32(p + 44);
    return 0;
}

int luks_decode(const uint8_t bytes[LUKS_HEADER_BYTES], struct luks_header *h, struct qk_error *err)
{
    *h = (struct luks_header){0};
    if (memcmp(bytes, magic, sizeof(magic)))
        return qk_fail(err, -EINVAL, "Volume is not in LUKS format");
    if (load_be16(bytes + OFF_VERSION) != 1)
        return qk_fail(err, -ENOTSUP, "LUKS version %u is not supported",
                       load_be16(bytes + OFF_VERSION));
    int ret = take_text(bytes + OFF_CIPHER, LUKS_NAME_BYTES, h->cipher, "cipher name", err);
    if (ret == 0)
        ret = take_text(bytes + OFF_MODE, LUKS_NAME_BYTES, h->mode, "cipher mode", err);
    if (ret == 0)
        ret = take_text(bytes + OFF_HASH, LUKS_NAME_BYTES, h->hash, "hash spec", err);
    memcpy(h->uuid, bytes + OFF_UUID, LUKS_UUID_BYTES);
    h->payload_sector = load_be32(bytes + OFF_PAYLOAD);
    h->key_bytes = load_be32(bytes + OFF_KEY_BYTES);
    memcpy(h->digest, bytes + OFF_DIGEST, LUKS_DIGEST_BYTES);
    memcpy(h->salt, bytes + OFF_SALT, LUKS_SALT_BYTES);
    h->iterations = load_be32(bytes + OFF_ITERATIONS);
    for (unsigned i = 0; i < LUKS_SLOTS && ret == 0; i++)
        ret = decode_slot(bytes + OFF_SLOTS + i * SLOT_BYTES, i, &h->slots[i], err);
    return ret;
}

static void encode_slot(const struct luks_slot *slot, uint8_t *p)
{
    store_be32(p, slot->active ? SLOT_ACTIVE : SLOT_INACTIVE);
    store_be32(p + 4, slot->iterations);
    memcpy(p + 8, slot->salt, LUKS_SALT_BYTES);
    store_be32(p + 40, slot->first_sector);
    store_be32(p + 44, slot->stripes);
}

void luks_encode(const struct luks_header *h, uint8_t bytes[LUKS_HEADER_BYTES])
{
    memset(bytes, 0, LUKS_HEADER_BYTES);
    memcpy(bytes, magic, sizeof(magic));
    store_be16(bytes + OFF_VERSION, 1);
    memcpy(bytes + OFF_CIPHER, h->cipher, strlen(h->cipher));
    memcpy(bytes + OFF_MODE, h->mode, strlen(h->mode));
    memcpy(bytes + OFF_HASH, h->hash, strlen(h->hash));
    store_be32(bytes + OFF_PAYLOAD, h->payload_sector);
    store_be32(bytes + OFF_KEY_BYTES, h->key_bytes);
    memcpy(bytes + OFF_DIGEST, h->digest, LUKS_DIGEST_BYTES);
    memcpy(bytes + OFF_SALT, h->salt, LUKS_SALT_BYTES);
    store_be32(bytes + OFF_ITERATIONS, h->iterations);
    memcpy(bytes + OFF_UUID, h->uuid, LUKS_UUID_BYTES);
    for (unsigned i = 0; i < LUKS_SLOTS; i++)
        encode_slot(&h->slots[i], bytes + OFF_SLOTS + i * SLOT_BYTES);
}

unsigned luks_state_sector(unsigned slot)
{
    return (OFF_SLOTS + slot * SLOT_BYTES) / LUKS_SECTOR_BYTES;
}

/* ---- places ---- */

/* Sectors that a slot's material takes, with the alignment that cryptsetup gives it. */
static uint64_t material_sectors(const struct luks_header *h, unsigned slot)
{
    return round_up(div_round_up(luks_material_bytes(h, slot), LUKS_SECTOR_BYTES),
                    LUKS_ALIGN_SECTORS);
}

void luks_place(struct luks_header *h)
{
    uint64_t at = LUKS_ALIGN_SECTORS;
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        h->slots[i] = (struct luks_slot){.first_sector = (uint32_t)at, .stripes = LUKS_STRIPES};
        at += material_sectors(h, i);
    }
    h->payload_sector = (uint32_t)at;
}

static int judge_slot(const struct luks_header *h, unsigned i, struct qk_error *err)
{
    const struct luks_slot *slot = &h->slots[i];
    uint64_t first = slot->first_sector, count = material_sectors(h, i);
    if (!slot->stripes)
        return qk_fail(err, -EINVAL, "Keyslot %u is corrupted (stripes == 0)", i);
    if (slot->active && !slot->iterations)
        return qk_fail(err, -EINVAL, "Keyslot %u iteration count is zero", i);
    if (first < div_round_up(LUKS_HEADER_BYTES, LUKS_SECTOR_BYTES))
        return qk_fail(err, -EINVAL, "Keyslot %u is overlapping with the LUKS header", i);
    if (first + count > h->payload_sector)
        return qk_fail(err, -EINVAL, "Keyslot %u is overlapping with the encrypted payload", i);
    for (unsigned j = i + 1; j < LUKS_SLOTS; j++)
        if (ranges_overlap(first, count, h->slots[j].first_sector, material_sectors(h, j)))
            return qk_fail(err, -EINVAL, "Keyslots %u and %u are overlapping in the header", i, j);
    return 0;
}

int luks_validate(const struct luks_header *h, uint64_t area_bytes, struct qk_error *err)
{
    if (!h->key_bytes)
        return qk_fail(err, -EINVAL, "The LUKS master key has no bytes");
    if (!h->iterations)
        return qk_fail(err, -EINVAL, "LUKS key iteration count is zero");
    if ((uint64_t)h->payload_sector * LUKS_SECTOR_BYTES > area_bytes)
        return qk_fail(err, -EINVAL,
                       "The LUKS header reaches to %" PRIu64 ", but its area has %" PRIu64 " bytes",
                       (uint64_t)h->payload_sector * LUKS_SECTOR_BYTES, area_bytes);
    int ret = 0;
    for (unsigned i = 0; i < LUKS_SLOTS && ret == 0; i++)
        ret = judge_slot(h, i, err);
    return ret;
}

/* ---- the pointer ---- */

struct luks_pointer luks_pointer_decode(const uint8_t bytes[LUKS_POINTER_BYTES])
{
    return (struct luks_pointer){load_be64(bytes), load_be64(bytes + 8)};
}

void luks_pointer_encode(struct luks_pointer pointer, uint8_t bytes[LUKS_POINTER_BYTES])
{
    store_be64(bytes, pointer.off);
    store_be64(bytes + 8, pointer.bytes);
}
