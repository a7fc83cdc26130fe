/*
 * bitmap.c - decoding, encoding and judging the parts of persistent bitmaps. A judgement names the
 * first thing that is wrong in words for a person. Pure; trusts nothing that it decodes (INV-4).
 */
#include "format/bitmap.h"

#include "base/bytes.h"
#include "base/checked.h"

#define TABLE_RESERVED UINT64_C(0xff000000000001fe)

/* ---- extension ---- */

void bitmaps_extension_decode(const uint8_t *bytes, struct bitmaps_extension *ext)
{
    ext->count = load_be32(bytes);
    ext->directory_bytes = load_be64(bytes + 8);
    ext->directory_off = load_be64(bytes + 16);
}

void bitmaps_extension_encode(const struct bitmaps_extension *ext, uint8_t *out)
{
    store_be32(out, ext->count);
    store_be32(out + 4, 0);
    store_be64(out + 8, ext->directory_bytes);
    store_be64(out + 16, ext->directory_off);
}

const char *bitmaps_extension_fault(const struct bitmaps_extension *ext, uint32_t cluster_bytes,
                                    uint64_t file_bytes)
{
    if (!ext->count)
        return "it has no bitmaps";
    if (ext->count > BITMAPS_MAX || ext->count > ext->directory_bytes / BITMAP_ENTRY_BYTES)
        return "it has too many bitmaps";
    if (ext->directory_bytes > BITMAP_DIRECTORY_MAX)
        return "the directory is too large";
    if (!ext->directory_off || !is_aligned(ext->directory_off, cluster_bytes) ||
        !range_within(ext->directory_off, ext->directory_bytes, file_bytes))
        return "the directory's place is impossible";
    return NULL;
}

/* ---- directory entries ---- */

uint64_t bitmap_entry_bytes(const struct bitmap_entry *entry)
{
    return round_up((uint64_t)BITMAP_ENTRY_BYTES + entry->extra_bytes + entry->name_bytes, 8);
}

size_t bitmap_entry_decode(const uint8_t *bytes, size_t left, struct bitmap_entry *entry)
{
    if (left < BITMAP_ENTRY_BYTES)
        return 0;
    *entry = (struct bitmap_entry){
        .table_off = load_be64(bytes),
        .table_entries = load_be32(bytes + 8),
        .flags = load_be32(bytes + 12),
        .type = bytes[16],
        .granularity_bits = bytes[17],
        .name_bytes = load_be16(bytes + 18),
        .extra_bytes = load_be32(bytes + 20),
    };
    uint64_t all = bitmap_entry_bytes(entry);
    if (all > left)
        return 0;
    entry->extra = bytes + BITMAP_ENTRY_BYTES;
    entry->name = (const char *)entry->extra + entry->extra_bytes;
    return (size_t)all;
}

void bitmap_entry_encode(const struct bitmap_entry *entry, uint8_t *out)
{
    memset(out, 0, bitmap_entry_bytes(entry));
    store_be64(out, entry->table_off);
    store_be32(out + 8, entry->table_entries);
    store_be32(out + 12, entry->flags);
    out[16] = entry->type;
    out[17] = entry->granularity_bits;
    store_be16(out + 18, entry->name_bytes);
    store_be32(out + 20, entry->extra_bytes);
    if (entry->extra_bytes)
        memcpy(out + BITMAP_ENTRY_BYTES, entry->extra, entry->extra_bytes);
    memcpy(out + BITMAP_ENTRY_BYTES + entry->extra_bytes, entry->name, entry->name_bytes);
}

uint64_t bitmap_bits_for(uint64_t disk_bytes, unsigned granularity_bits)
{
    return (disk_bytes >> granularity_bits) +
           ((disk_bytes & ((UINT64_C(1) << granularity_bits) - 1)) != 0);
}

uint64_t bitmap_table_entries_for(uint64_t bits, uint32_t cluster_bytes)
{
    return div_round_up(div_round_up(bits, 8), cluster_bytes);
}

static bool name_is_sound(const struct bitmap_entry *entry)
{
    return entry->name_bytes && entry->name_bytes <= BITMAP_NAME_MAX &&
           !memchr(entry->name, 0, entry->name_bytes);
}

bool bitmap_entry_foreign(const struct bitmap_entry *entry)
{
    return (entry->extra_bytes && !(entry->flags & BITMAP_EXTRA_COMPATIBLE)) ||
           entry->granularity_bits < BITMAP_BITS_MIN || entry->granularity_bits > BITMAP_BITS_MAX;
}

const char *bitmap_entry_fault(const struct bitmap_entry *entry, const struct bitmap_bounds *bounds)
{
    const uint64_t table_bytes = (uint64_t)entry->table_entries * 8;
    if (!name_is_sound(entry))
        return "its name is empty, too long or has a zero byte";
    if (entry->type != BITMAP_TYPE_DIRTY || entry->flags & ~(uint32_t)BITMAP_FLAGS_KNOWN)
        return "its type or flags are unknown";
    if (entry->granularity_bits > 63)
        return "its granularity is impossible";
    if (!entry->table_off || !is_aligned(entry->table_off, bounds->cluster_bytes) ||
        !entry->table_entries || !range_within(entry->table_off, table_bytes, bounds->file_bytes))
        return "its table's place is impossible";
    if (entry->table_entries > BITMAP_DATA_MAX / bounds->cluster_bytes)
        return "its table is too large";
    if (entry->flags & BITMAP_IN_USE)
        return NULL; /* it may be of a time when the disk had another size */
    uint64_t bits = bitmap_bits_for(bounds->disk_bytes, entry->granularity_bits);
    if (entry->table_entries != bitmap_table_entries_for(bits, bounds->cluster_bytes))
        return "its table does not fit the disk's size";
    return NULL;
}

/* ---- table entries ---- */

bool bitmap_table_entry_valid(uint64_t entry, uint32_t cluster_bytes, uint64_t file_bytes)
{
    uint64_t off = entry & BITMAP_TABLE_OFFSET;
    if (entry & TABLE_RESERVED)
        return false;
    if (!off)
        return true;
    return !(entry & BITMAP_TABLE_ONES) && is_aligned(off, cluster_bytes) && off < file_bytes;
}
