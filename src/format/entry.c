/*
 * entry.c - what the entries of L1, L2 and refcount tables mean, and back. Pure; judges an entry
 * by itself, never against a file.
 */
#include "format/entry.h"

#include "base/bytes.h"
#include "base/checked.h"

#define ALLOCATED_BITS UINT64_C(0xffffffff)
#define SECTOR_BITS    9

struct l2_entry l2_entry_load(const struct geometry *g, const void *table, uint32_t index)
{
    const uint8_t *p = (const uint8_t *)table + (size_t)index * g->l2_entry_bytes;
    return (struct l2_entry){load_be64(p), g->l2_entry_bytes == 16 ? load_be64(p + 8) : 0};
}

void l2_entry_store(const struct geometry *g, void *table, uint32_t index, struct l2_entry e)
{
    uint8_t *p = (uint8_t *)table + (size_t)index * g->l2_entry_bytes;
    store_be64(p, e.raw);
    if (g->l2_entry_bytes == 16)
        store_be64(p + 8, e.bitmap);
}

/* With an external data file, guest cluster 0 is at host offset 0, and COPIED says so. */
static bool has_cluster(const struct geometry *g, struct l2_entry e)
{
    return (e.raw & L2_OFFSET_MASK) || (g->data_file && (e.raw & ENTRY_COPIED));
}

static enum cluster_kind standard_kind(const struct geometry *g, struct l2_entry e)
{
    bool has = has_cluster(g, e);
    if (e.raw & ENTRY_ZERO) {
        if (!g->zero_flag)
            return CLUSTER_INVALID;
        return has ? CLUSTER_ZERO_ALLOC : CLUSTER_ZERO_PLAIN;
    }
    return has ? CLUSTER_NORMAL : CLUSTER_UNALLOCATED;
}

/* The entry as a whole contradicts itself: a subcluster both allocated and zero, or allocated
 * without a host cluster. */
static bool extended_invalid(const struct geometry *g, struct l2_entry e)
{
    uint64_t allocated = e.bitmap & ALLOCATED_BITS;
    return has_cluster(g, e) ? (e.bitmap >> 32 & allocated) != 0 : allocated != 0;
}

static enum cluster_kind extended_kind(const struct geometry *g, struct l2_entry e, uint32_t sub)
{
    bool has = has_cluster(g, e);
    if (extended_invalid(g, e))
        return CLUSTER_INVALID;
    if (e.bitmap >> (32 + sub) & 1)
        return has ? CLUSTER_ZERO_ALLOC : CLUSTER_ZERO_PLAIN;
    if (e.bitmap >> sub & 1)
        return CLUSTER_NORMAL;
    return has ? CLUSTER_UNALLOCATED_ALLOC : CLUSTER_UNALLOCATED;
}

enum cluster_kind l2_entry_kind(const struct geometry *g, struct l2_entry e, uint32_t sub)
{
    if (e.raw & ENTRY_COMPRESSED)
        return CLUSTER_COMPRESSED;
    return g->subclusters == 1 ? standard_kind(g, e) : extended_kind(g, e, sub);
}

uint32_t l2_entry_run(const struct geometry *g, struct l2_entry e, uint32_t sub,
                      enum cluster_kind *kind)
{
    *kind = l2_entry_kind(g, e, sub);
    if (*kind == CLUSTER_COMPRESSED || *kind == CLUSTER_INVALID)
        return g->subclusters - sub;
    if (g->subclusters == 1)
        return 1;
    uint32_t zero = (uint32_t)(e.bitmap >> 32), allocated = (uint32_t)e.bitmap;
    uint32_t differ =
        (zero >> sub & 1 ? ~zero : zero) | (allocated >> sub & 1 ? ~allocated : allocated);
    differ >>= sub;
    return differ ? (uint32_t)__builtin_ctz(differ) : g->subclusters - sub;
}

uint32_t subclusters_touched(const struct geometry *g, uint64_t cluster, uint64_t off, uint64_t end)
{
    uint64_t start = cluster << g->cluster_bits;
    uint64_t from = max_u64(off, start) - start;
    uint64_t to = min_u64(end, start + g->cluster_bytes);
    if (to <= start + from)
        return 0;
    uint32_t first = (uint32_t)(from >> g->subcluster_bits);
    uint32_t last = (uint32_t)((to - 1 - start) >> g->subcluster_bits);
    return UINT32_MAX >> (31 - last) & UINT32_MAX << first;
}

uint32_t l2_entry_stored(const struct geometry *g, struct l2_entry e)
{
    const uint32_t all = UINT32_MAX >> (32 - g->subclusters);
    if (e.raw & ENTRY_COMPRESSED)
        return all;
    if (g->subclusters > 1)
        return (uint32_t)(e.bitmap & ALLOCATED_BITS);
    return standard_kind(g, e) == CLUSTER_NORMAL;
}

struct l2_entry l2_entry_filled(const struct geometry *g, struct l2_entry old, uint64_t host,
                                uint32_t filled)
{
    struct l2_entry e = {.raw = host | ENTRY_COPIED};
    if (g->subclusters > 1) {
        uint64_t before = old.raw & ENTRY_COMPRESSED ? 0 : old.bitmap;
        e.bitmap = (before & ~((uint64_t)filled << 32)) | filled;
    }
    return e;
}

struct l2_entry l2_entry_zeroed(const struct geometry *g, struct l2_entry old, uint32_t zeroed)
{
    if (g->subclusters == 1)
        return (struct l2_entry){.raw = old.raw | (zeroed ? ENTRY_ZERO : 0)};
    return (struct l2_entry){
        .raw = old.raw,
        .bitmap = (old.bitmap & ~(uint64_t)zeroed) | (uint64_t)zeroed << 32,
    };
}

bool l2_entry_offset_valid(const struct geometry *g, struct l2_entry e)
{
    return is_aligned(e.raw & L2_OFFSET_MASK, g->cluster_bytes);
}

struct compressed_extent compressed_decode(const struct geometry *g, uint64_t raw)
{
    uint64_t off = raw & g->coffset_mask;
    uint64_t sectors = (raw >> g->csize_shift & g->csize_mask) + 1;
    uint64_t into = off & ((1u << SECTOR_BITS) - 1);
    return (struct compressed_extent){off, (uint32_t)((sectors << SECTOR_BITS) - into)};
}

int compressed_encode(const struct geometry *g, struct compressed_extent ext, uint64_t *raw)
{
    if (!ext.bytes || ext.off > g->coffset_mask)
        return -EFBIG;
    uint64_t last = ext.off + ext.bytes - 1;
    uint64_t more_sectors = (last >> SECTOR_BITS) - (ext.off >> SECTOR_BITS);
    if (more_sectors > g->csize_mask)
        return -EFBIG;
    *raw = ENTRY_COMPRESSED | more_sectors << g->csize_shift | ext.off;
    return 0;
}
