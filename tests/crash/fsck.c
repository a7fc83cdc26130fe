/*
 * fsck.c - see fsck.h. Reads the format by the offsets of its specification (Format, sections
 * "Header", "Refcounts", "L2 table entry").
 */
#include "fsck.h"
#include "base/bytes.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

struct walk {
    const uint8_t *bytes;
    size_t len;
    uint64_t cluster, clusters;
    unsigned refcount_bits, cluster_bits;
    unsigned entry_bytes; /* of L2 tables: 16 with subclusters */
    bool data_file;       /* guest clusters are in another file, at their guest offset */
    uint64_t reftable_off, reftable_entries;
    uint16_t *refs;   /* per cluster: references */
    uint16_t *tree;   /* of these, those below the L1 that is walked, */
    uint16_t *packed; /* and of these, those by compressed clusters, which may share */
    bool active;      /* that L1 is the active one: its flags count */
    struct fsck *out;
};

static const uint64_t offset_mask = 0x00fffffffffffe00u;
#define COPIED     (UINT64_C(1) << 63)
#define COMPRESSED (UINT64_C(1) << 62)

static void __attribute__((format(printf, 2, 3))) corrupt(struct walk *w, const char *fmt, ...)
{
    va_list args;
    if (w->out->corruptions++)
        return;
    va_start(args, fmt);
    vsnprintf(w->out->text, sizeof(w->out->text), fmt, args);
    va_end(args);
}

static uint64_t read_u64(struct walk *w, uint64_t off)
{
    return off <= w->len && w->len - off >= 8 ? load_be64(w->bytes + off) : 0;
}

static uint64_t refcount_in(const uint8_t *block, uint64_t index, unsigned bits)
{
    if (bits >= 8) {
        uint64_t value = 0;
        for (unsigned i = 0; i < bits / 8; i++)
            value = value << 8 | block[index * bits / 8 + i];
        return value;
    }
    unsigned shift = (unsigned)(index * bits % 8);
    return (uint64_t)block[index * bits / 8] >> shift & ((UINT64_C(1) << bits) - 1);
}

static uint64_t refcount_of(struct walk *w, uint64_t cluster)
{
    uint64_t per_block = w->cluster * 8 / w->refcount_bits;
    if (cluster / per_block >= w->reftable_entries)
        return 0;
    uint64_t block = read_u64(w, w->reftable_off + cluster / per_block * 8) & offset_mask;
    if (!block || block + w->cluster > w->len)
        return 0;
    return refcount_in(w->bytes + block, cluster % per_block, w->refcount_bits);
}

/* A structure of `len` bytes at off is in use. The last cluster of the file may be cut short. */
static bool use(struct walk *w, uint64_t off, uint64_t len, const char *what)
{
    uint64_t first = off / w->cluster, last = (off + len + w->cluster - 1) / w->cluster;
    if (off % w->cluster || last > w->clusters) {
        corrupt(w, "%s at %#llx is unaligned or outside the file", what, (unsigned long long)off);
        return false;
    }
    for (uint64_t i = first; i < last; i++) {
        w->refs[i]++;
        w->tree[i]++;
    }
    return true;
}

static void check_copied(struct walk *w, uint64_t entry, const char *what)
{
    uint64_t off = entry & offset_mask;
    if (w->active && off && !(entry & COPIED) != (refcount_of(w, off / w->cluster) != 1))
        corrupt(w, "%s for %#llx: COPIED is wrong, refcount %llu", what, (unsigned long long)off,
                (unsigned long long)refcount_of(w, off / w->cluster));
}

/* Format, "Compressed Clusters Descriptor": offset in the low bits, then sectors beyond the first.
 */
static void use_compressed(struct walk *w, uint64_t entry)
{
    unsigned bits = 62 - (w->cluster_bits - 8);
    uint64_t off = entry & ((UINT64_C(1) << bits) - 1);
    uint64_t sectors = (entry & (COPIED - 1) & ~COMPRESSED) >> bits;
    uint64_t end = (off / 512 + sectors + 1) * 512;
    if (entry & COPIED || !off || end > w->clusters * w->cluster) {
        corrupt(w, "compressed cluster at %#llx: COPIED, or outside the file",
                (unsigned long long)off);
        return;
    }
    for (uint64_t i = off / w->cluster; i <= (end - 1) / w->cluster; i++) {
        w->refs[i]++;
        w->tree[i]++;
        w->packed[i]++;
    }
}

/* COPIED is what says that there is a cluster. */
static void check_elsewhere(struct walk *w, uint64_t entry, uint64_t guest)
{
    if (!(entry & (COPIED | COMPRESSED | offset_mask)))
        return;
    if ((entry & COMPRESSED) || !(entry & COPIED) || (entry & offset_mask) != guest)
        corrupt(w, "L2 entry %#llx for %#llx in a data file", (unsigned long long)entry,
                (unsigned long long)guest);
}

/* Format, "Extended L2 Entries": a subcluster has data or is zero, and data needs a cluster. */
static void check_bitmap(struct walk *w, uint64_t entry, uint64_t bitmap)
{
    bool has_cluster = w->data_file ? (entry & COPIED) != 0 : (entry & offset_mask) != 0;
    uint64_t data = bitmap & UINT32_MAX;
    if (entry & COMPRESSED ? bitmap != 0 : (bitmap >> 32 & data) || (data && !has_cluster))
        corrupt(w, "L2 entry %#llx has a contradictory bitmap %#llx", (unsigned long long)entry,
                (unsigned long long)bitmap);
    if (!(entry & COMPRESSED) && (entry & 1))
        corrupt(w, "extended L2 entry %#llx has a zero flag", (unsigned long long)entry);
}

static void walk_l2(struct walk *w, uint64_t table, uint64_t guest)
{
    for (uint64_t i = 0; i < w->cluster / w->entry_bytes; i++) {
        uint64_t entry = read_u64(w, table + i * w->entry_bytes);
        if (w->entry_bytes == 16)
            check_bitmap(w, entry, read_u64(w, table + i * 16 + 8));
        if (w->data_file) {
            check_elsewhere(w, entry, guest + i * w->cluster);
            continue;
        }
        if (entry & COMPRESSED)
            use_compressed(w, entry);
        if (entry & COMPRESSED || !(entry & offset_mask))
            continue;
        check_copied(w, entry, "L2 entry");
        use(w, entry & offset_mask, w->cluster, "data cluster");
    }
}

/* Inside one tree (or among the tables of the file) only compressed clusters may meet. */
static void end_tree(struct walk *w)
{
    for (uint64_t i = 0; i < w->clusters; i++) {
        if (w->tree[i] > 1 && w->packed[i] != w->tree[i])
            corrupt(w, "cluster %llu is used %u times", (unsigned long long)i, w->tree[i]);
        w->tree[i] = w->packed[i] = 0;
    }
}

static void walk_l1(struct walk *w, uint64_t l1_off, uint32_t entries)
{
    if (entries && !use(w, l1_off, (uint64_t)entries * 8, "L1 table"))
        return;
    for (uint32_t i = 0; i < entries; i++) {
        uint64_t entry = read_u64(w, l1_off + (uint64_t)i * 8);
        check_copied(w, entry, "L1 entry");
        if ((entry & offset_mask) && use(w, entry & offset_mask, w->cluster, "L2 table"))
            walk_l2(w, entry & offset_mask, i * (w->cluster / w->entry_bytes) * w->cluster);
    }
    end_tree(w);
}

/* The table and the trees below it (Format, "Snapshots"). */
static void walk_snapshots(struct walk *w, uint64_t off, uint32_t count)
{
    uint64_t at = off;
    for (uint32_t i = 0; i < count; i++) {
        if (at + 40 > w->len) {
            corrupt(w, "snapshot table at %#llx is outside the file", (unsigned long long)off);
            return;
        }
        const uint8_t *e = w->bytes + at;
        walk_l1(w, load_be64(e), load_be32(e + 8));
        at += (UINT64_C(47) + load_be16(e + 12) + load_be16(e + 14) + load_be32(e + 36)) / 8 * 8;
    }
    if (count)
        use(w, off, at - off, "snapshot table");
}

static void walk_refcounts(struct walk *w)
{
    use(w, w->reftable_off, w->reftable_entries * 8, "refcount table");
    for (uint64_t i = 0; i < w->reftable_entries; i++) {
        uint64_t block = read_u64(w, w->reftable_off + i * 8) & offset_mask;
        if (block)
            use(w, block, w->cluster, "refcount block");
    }
}

static void compare(struct walk *w)
{
    for (uint64_t i = 0; i < w->clusters; i++) {
        uint64_t refcount = refcount_of(w, i);
        if (refcount < w->refs[i])
            corrupt(w, "cluster %llu: refcount %llu, %u references", (unsigned long long)i,
                    (unsigned long long)refcount, w->refs[i]);
        else if (refcount > w->refs[i])
            w->out->leaks++;
    }
}

bool fsck_run(const uint8_t *bytes, size_t len, struct fsck *out)
{
    *out = (struct fsck){0};
    if (len < 104 || load_be32(bytes) != 0x514649fb)
        return false;
    struct walk w = {.bytes = bytes, .len = len, .out = out, .refcount_bits = 16, .entry_bytes = 8};
    w.cluster_bits = load_be32(bytes + 20);
    w.cluster = UINT64_C(1) << w.cluster_bits;
    w.clusters = (len + w.cluster - 1) / w.cluster;
    w.reftable_off = load_be64(bytes + 48);
    w.reftable_entries = load_be32(bytes + 56) * w.cluster / 8;
    if (load_be32(bytes + 4) >= 3) {
        w.refcount_bits = 1u << load_be32(bytes + 96);
        out->dirty = load_be64(bytes + 72) & 1;
        w.data_file = load_be64(bytes + 72) & 4;
        w.entry_bytes = load_be64(bytes + 72) & 16 ? 16 : 8;
    }
    if (out->dirty)
        return true;
    w.refs = calloc(w.clusters, sizeof(*w.refs));
    w.tree = calloc(w.clusters, sizeof(*w.tree));
    w.packed = calloc(w.clusters, sizeof(*w.packed));
    if (!w.refs || !w.tree || !w.packed)
        abort();
    w.active = true;
    walk_l1(&w, load_be64(bytes + 40), load_be32(bytes + 36));
    w.active = false;
    walk_snapshots(&w, load_be64(bytes + 64), load_be32(bytes + 60));
    use(&w, 0, 1, "header");
    walk_refcounts(&w);
    end_tree(&w);
    compare(&w);
    free(w.refs);
    free(w.tree);
    free(w.packed);
    return true;
}
