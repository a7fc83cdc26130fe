/*
 * fuzz_luks.c - takes bytes as the LUKS area of an image: header, key material. It is decoded,
 * judged and understood, and a passphrase is tried on its slots.
 *
 * Promises that are tested beside "no crash": what is refused says why; what is accepted has its
 * key material inside the area, takes no more memory than that, and is written back as it was read.
 */
#include "fuzz.h"
#include "image/luks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_INPUT = 1 << 20, MAX_ITERATIONS = 3000 };

static void promise(bool held, const char *what)
{
    if (held)
        return;
    fprintf(stderr, "promise broken: %s\n", what);
    abort();
}

/* The header's own bytes come back, but for what lies behind the end of a name. */
static void encode_again(const struct luks_header *h)
{
    uint8_t bytes[LUKS_HEADER_BYTES], again[LUKS_HEADER_BYTES];
    struct luks_header back;

    luks_encode(h, bytes);
    promise(luks_decode(bytes, &back, NULL) == 0, "what was encoded can be decoded");
    luks_encode(&back, again);
    promise(memcmp(bytes, again, sizeof(bytes)) == 0, "encoding is stable");
}

static void try_slots(const struct image_luks *l, const uint8_t *data, size_t size)
{
    const struct passphrase pass = {(const uint8_t *)"abc", 3};
    uint8_t key[CIPHER_KEY_MAX_BYTES];
    struct qk_io *mem;

    promise(io_mem_open(data, size, size, &mem, NULL) == 0, "memory store opens");
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        const struct luks_slot *s = &l->header.slots[i];
        uint64_t end =
            (uint64_t)s->first_sector * LUKS_SECTOR_BYTES + luks_material_bytes(&l->header, i);
        promise(end <= l->area.bytes, "key material lies inside the area");
        if (s->iterations <= MAX_ITERATIONS && l->header.iterations <= MAX_ITERATIONS)
            luks_open_slot(mem, l, i, pass, key, NULL);
    }
    io_close(mem, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct image_luks l = {.area = {0, size}};
    struct qk_error err = {0};

    if (size < LUKS_HEADER_BYTES || size > MAX_INPUT)
        return 0;
    int ret = luks_decode(data, &l.header, &err);
    if (ret == 0) {
        encode_again(&l.header);
        ret = luks_understand(&l, size, &err);
    }
    if (ret < 0)
        promise(err.code > 0 && err.text[0], "a refusal has a code and a text");
    else
        try_slots(&l, data, size);
    return 0;
}
