/*
 * entry.h - table entries as values: L1, L2 (standard, zero, compressed, extended) and refcount
 * table entries (Format, sections "L1 table entry", "L2 table entry", "Standard Cluster
 * Descriptor", "Compressed Clusters Descriptor", "Extended L2 Entries", "Refcounts"). Pure.
 */
#ifndef QK_FORMAT_ENTRY_H
#define QK_FORMAT_ENTRY_H

#include "base/offsets.h"
#include "format/header.h"

#include <stdbool.h>

#define ENTRY_COPIED           (UINT64_C(1) << 63)
#define ENTRY_COMPRESSED       (UINT64_C(1) << 62)
#define ENTRY_ZERO             UINT64_C(1)
#define L1_OFFSET_MASK         UINT64_C(0x00fffffffffffe00)
#define L1_RESERVED_MASK       UINT64_C(0x7f000000000001ff)
#define L2_OFFSET_MASK         UINT64_C(0x00fffffffffffe00)
#define L2_RESERVED_MASK       UINT64_C(0x3f000000000001fe)
#define REFTABLE_OFFSET_MASK   UINT64_C(0xfffffffffffffe00)
#define REFTABLE_RESERVED_MASK UINT64_C(0x1ff)

/* What a guest cluster (or subcluster) is. */
enum cluster_kind {
    CLUSTER_UNALLOCATED, /* the backing file decides, or zero */
    CLUSTER_ZERO_PLAIN,  /* reads as zero, no host cluster */
    CLUSTER_ZERO_ALLOC,  /* reads as zero, host cluster reserved */
    CLUSTER_NORMAL,
    CLUSTER_COMPRESSED,
    CLUSTER_UNALLOCATED_ALLOC, /* subcluster only: host cluster there, this part unallocated */
    CLUSTER_INVALID,           /* contradicts itself */
};

struct l2_entry {
    uint64_t raw;    /* first 8 bytes, host-endian */
    uint64_t bitmap; /* extended only: bits 0-31 allocated, 32-63 reads as zero */
};

/* Loads and stores entry `index` of a table (or slice) of big-endian entries. */
struct l2_entry l2_entry_load(const struct geometry *g, const void *table, uint32_t index);
void l2_entry_store(const struct geometry *g, void *table, uint32_t index, struct l2_entry e);

/* Kind of subcluster `sub` (0 for standard entries). version 2 has no zero flag: bit 0 is then
 * a reserved bit. Does not look at alignment: see l2_entry_offset_valid. */
enum cluster_kind l2_entry_kind(const struct geometry *g, struct l2_entry e, uint32_t sub);
/* From `sub` on, how many subclusters have the same kind (1 for standard entries). */
uint32_t l2_entry_run(const struct geometry *g, struct l2_entry e, uint32_t sub,
                      enum cluster_kind *kind);

static inline bool l2_entry_copied(struct l2_entry e)
{
    return e.raw & ENTRY_COPIED;
}

/* Host offset of a standard entry's cluster; 0: none. */
static inline host_off_t l2_entry_host(struct l2_entry e)
{
    return host_off(e.raw & L2_OFFSET_MASK);
}

/* What refers to a host cluster; the same for each subcluster of a cluster. */
static inline bool cluster_kind_has_host(enum cluster_kind kind)
{
    return kind == CLUSTER_NORMAL || kind == CLUSTER_ZERO_ALLOC ||
           kind == CLUSTER_UNALLOCATED_ALLOC;
}

/* ---- sets of subclusters: bit n is subcluster n; a standard entry has one ---- */

/* Those of guest cluster `cluster` in which a byte of [off, end) lies. */
uint32_t subclusters_touched(const struct geometry *g, uint64_t cluster, uint64_t off,
                             uint64_t end);
/* Those whose bytes the entry stores; all when it is compressed. */
uint32_t l2_entry_stored(const struct geometry *g, struct l2_entry e);
/* The entry of old's cluster at `host` once the subclusters of `filled` have data there. */
struct l2_entry l2_entry_filled(const struct geometry *g, struct l2_entry old, uint64_t host,
                                uint32_t filled);
/* The entry, which is not compressed, with the subclusters of `zeroed` reading as zero. Not for
 * version 2. */
struct l2_entry l2_entry_zeroed(const struct geometry *g, struct l2_entry old, uint32_t zeroed);

/* The host offset is a multiple of the cluster size. */
bool l2_entry_offset_valid(const struct geometry *g, struct l2_entry e);

/* A compressed cluster's bytes: [off, off + bytes) at the most; the stream may end earlier. */
struct compressed_extent {
    uint64_t off;
    uint32_t bytes;
};
struct compressed_extent compressed_decode(const struct geometry *g, uint64_t raw);
/* -EFBIG when off or bytes do not fit the descriptor at this cluster size. */
int compressed_encode(const struct geometry *g, struct compressed_extent ext, uint64_t *raw);

static inline uint64_t l1_entry_host(uint64_t raw)
{
    return raw & L1_OFFSET_MASK;
}

#endif
