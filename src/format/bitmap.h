/*
 * bitmap.h - persistent bitmaps as bytes: the header extension, directory entries and table entries
 * (Format, sections "Bitmaps extension", "Bitmap directory", "Bitmap table"). Pure.
 */
#ifndef QK_FORMAT_BITMAP_H
#define QK_FORMAT_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BITMAPS_EXTENSION_BYTES 24
#define BITMAP_ENTRY_BYTES      24 /* before extra data and name */
#define BITMAP_NAME_MAX         1023
#define BITMAP_BITS_MIN         9 /* of the granularity; QEMU's limits, kept for interchange */
#define BITMAP_BITS_MAX         31
#define BITMAPS_MAX             65535u
#define BITMAP_DIRECTORY_MAX    (1024u * 65535u)
#define BITMAP_DATA_MAX         (UINT64_C(512) << 20) /* bytes of bits, whole clusters */
#define BITMAP_TYPE_DIRTY       1

enum bitmap_flag {
    BITMAP_IN_USE = 1u << 0,
    BITMAP_AUTO = 1u << 1,
    BITMAP_EXTRA_COMPATIBLE = 1u << 2,
    BITMAP_FLAGS_KNOWN = 7u,
};

struct bitmaps_extension {
    uint32_t count;
    uint64_t directory_bytes, directory_off;
};
void bitmaps_extension_decode(const uint8_t *bytes, struct bitmaps_extension *ext);
void bitmaps_extension_encode(const struct bitmaps_extension *ext, uint8_t *out);
/* What is wrong with it, in one line; NULL: nothing. */
const char *bitmaps_extension_fault(const struct bitmaps_extension *ext, uint32_t cluster_bytes,
                                    uint64_t file_bytes);

struct bitmap_entry {
    uint64_t table_off;
    uint32_t table_entries;
    uint32_t flags; /* of enum bitmap_flag */
    uint8_t type, granularity_bits;
    uint16_t name_bytes;
    uint32_t extra_bytes;
    const uint8_t *extra; /* borrowed; `name` is behind it */
    const char *name;     /* not terminated */
};
/* Length in the directory with the padding, a multiple of 8. */
uint64_t bitmap_entry_bytes(const struct bitmap_entry *entry);
/* 0 when it leaves the `left` bytes that are there, else its length. Judges nothing else. */
size_t bitmap_entry_decode(const uint8_t *bytes, size_t left, struct bitmap_entry *entry);
/* Writes bitmap_entry_bytes(entry) bytes. */
void bitmap_entry_encode(const struct bitmap_entry *entry, uint8_t *out);

struct bitmap_bounds {
    uint32_t cluster_bytes;
    uint64_t disk_bytes, file_bytes;
};
/* Why the entry is damaged, in one line; NULL: it is not. */
const char *bitmap_entry_fault(const struct bitmap_entry *entry,
                               const struct bitmap_bounds *bounds);
/* Sound, but nothing that we know how to use (nor does QEMU): it is carried along as it is. */
bool bitmap_entry_foreign(const struct bitmap_entry *entry);

/* Bits for a disk of that size, and entries of a table for them. granularity_bits < 64. */
uint64_t bitmap_bits_for(uint64_t disk_bytes, unsigned granularity_bits);
uint64_t bitmap_table_entries_for(uint64_t bits, uint32_t cluster_bytes);

/* ---- table entries ---- */

#define BITMAP_TABLE_OFFSET UINT64_C(0x00fffffffffffe00)
#define BITMAP_TABLE_ONES   UINT64_C(1) /* without an offset: all bits are set */

/* Reserved bits are zero, the cluster lies in the file. */
bool bitmap_table_entry_valid(uint64_t entry, uint32_t cluster_bytes, uint64_t file_bytes);

#endif
