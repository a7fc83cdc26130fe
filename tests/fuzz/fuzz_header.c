/*
 * fuzz_header.c - takes bytes as the first ones of a file, and reads them as a check does: as every
 * version, cluster size and set of features (header_mend.c), and with their extensions.
 *
 * Promises that are tested beside "no crash": what a reading gives is accepted by the check's own
 * judgement, and does not change when it is mended once more; a field that the check's judgement
 * accepts already stays as it is; extensions that are told apart lie in the bytes; and the header
 * that is chosen for a file of these bytes is one of these readings.
 */
#include "base/bytes.h"
#include "fuzz.h"
#include "image/header_evidence.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_INPUT = 1 << 18 };

static void promise(bool held, const char *what)
{
    if (held)
        return;
    fprintf(stderr, "promise broken: %s\n", what);
    abort();
}

/* Without what a reading decides itself. */
static bool was_sound(const uint8_t *data, size_t size, struct header *h)
{
    return header_decode(data, size, h, NULL) == 0 &&
           header_validate_for_check(h, NULL, NULL) == 0 && h->reftable_off &&
           h->reftable_clusters && h->l1_off && (uint64_t)h->l1_entries * 8 < 1 << 20 &&
           h->backing_name_off && h->backing_name_off < 512;
}

static void read_as(const uint8_t *data, size_t size, struct header_reading r)
{
    struct header h, again, own;
    if (!header_reading_possible(&r, load_be64(data + 72)))
        return;
    promise(header_read_as(data, size, &r, &h, NULL) == 0, "a possible reading reads");
    promise(header_validate_for_check(&h, NULL, NULL) == 0, "and gives what a check accepts");
    again = h;
    header_mend(&again, data, size);
    promise(memcmp(&again, &h, sizeof(h)) == 0, "what is mended stays");
    if (!r.flipped && was_sound(data, size, &own) && own.version == r.version &&
        own.cluster_bits == r.cluster_bits)
        promise(memcmp(&own, &h, sizeof(h)) == 0, "what is sound stays");
}

static void extensions(const uint8_t *data, size_t size)
{
    struct header_extensions exts;
    struct extension_fault_vec faults = {0};
    size_t start = 72 + load_be32(data + 100) % 64 / 8 * 8;
    if (header_extensions_decode_for_check(data, start, size, &exts, &faults, NULL) < 0)
        return;
    for (size_t i = 0; i < exts.list.len; i++) {
        const struct header_extension *e = &exts.list.ptr[i];
        promise(e->data >= data + start && e->data <= data + size &&
                    e->len <= (size_t)(data + size - e->data),
                "an extension lies in the bytes");
    }
    for (size_t i = 0; i < faults.len; i++)
        promise(faults.ptr[i].off >= start && faults.ptr[i].off < size,
                "and so does a damaged one");
    header_extensions_free(&exts);
    extension_fault_vec_free(&faults);
}

static void chosen(const uint8_t *data, size_t size)
{
    struct qk_io *file = NULL;
    struct header_stored stored = {0};
    struct header h;
    promise(io_mem_open(data, size, 0, &file, NULL) == 0, "memory store opens");
    int ret = header_choose(file, data, QCOW2_FULL_HEADER_BYTES, &h, &stored, NULL);
    promise(ret == 0 || load_be32(data) != QCOW2_MAGIC, "a check opens every image");
    if (ret == 0)
        promise(header_validate_for_check(&h, NULL, NULL) == 0, "what is chosen is acceptable");
    io_close(file, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < QCOW2_FULL_HEADER_BYTES || size > MAX_INPUT)
        return 0;
    for (uint32_t bits = QCOW2_MIN_CLUSTER_BITS; bits <= QCOW2_MAX_CLUSTER_BITS; bits++) {
        read_as(data, QCOW2_FULL_HEADER_BYTES, (struct header_reading){2, bits, 0});
        for (uint64_t flips = 0; flips < 32; flips += 4)
            read_as(data, QCOW2_FULL_HEADER_BYTES,
                    (struct header_reading){3, bits,
                                            flips & (INCOMPAT_EXTENDED_L2 | INCOMPAT_DATA_FILE)});
    }
    extensions(data, size);
    chosen(data, size);
    return 0;
}
