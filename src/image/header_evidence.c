/*
 * header_evidence.c - what the tables say of a header: a few statements of the format that hold in
 * every sound image (a table is aligned, in the file and counted; an entry names such a place) are
 * tried on samples, spread evenly over the L1 table and a few L2 tables. With a wrong cluster size,
 * entry size or refcount layout at least half of them fail: offsets are not aligned, or the
 * refcount that they lead to belongs to another cluster.
 *
 * Relies on a mended header (format/header_mend.c). Promises (INV-4) work that is bounded by
 * constants and the size of the L1 table in the file.
 */
#include "image/header_evidence.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/entry.h"
#include "format/refcount.h"

#define L1_SAMPLES  32u
#define TABLE_EVERY 4u /* of the samples has its table looked at */
#define L2_SAMPLES  32u
#define ZSTD_MAGIC  UINT32_C(0x28b52ffd)

struct look {
    struct qk_io *file;
    uint64_t file_bytes;
    const struct header *h;
    struct geometry g;
    struct evidence *e;
    uint8_t *table; /* one cluster */
};

static bool fact(struct look *l, bool holds)
{
    l->e->facts++;
    l->e->broken += !holds;
    l->e->misfit += !holds;
    return holds;
}

/* Whether it has a refcount is another matter than whether it fits. */
static bool counted_fact(struct look *l, bool fits, bool counted)
{
    l->e->facts++;
    l->e->broken += !(fits && counted);
    l->e->misfit += !fits;
    return fits && counted;
}

static bool read_at(const struct look *l, uint64_t off, void *buf, size_t len)
{
    return io_read(l->file, off, buf, len, NULL) == 0;
}

/* A whole cluster of the file, which may end inside its last one. */
static bool is_cluster(const struct look *l, uint64_t off)
{
    return off && is_aligned(off, l->g.cluster_bytes) && off < l->file_bytes;
}

/* The same of what names nothing else. */
static bool is_place(const struct look *l, uint64_t off)
{
    l->e->unaligned += !off || !is_aligned(off, l->g.cluster_bytes);
    return is_cluster(l, off);
}

/* The cluster at `off` has a refcount that is not zero, or none is known. */
static bool counted(const struct look *l, uint64_t off)
{
    if (l->e->blind)
        return true;
    uint64_t cluster = off >> l->g.cluster_bits, block = cluster >> l->g.refblock_bits;
    uint64_t entries = (uint64_t)l->h->reftable_clusters << l->g.cluster_bits >> 3;
    uint64_t index = cluster & ((UINT64_C(1) << l->g.refblock_bits) - 1);
    unsigned per_word = 64 >> l->g.refcount_order;
    uint8_t word[8];
    if (block >= entries || !read_at(l, l->h->reftable_off + block * 8, word, sizeof(word)))
        return false;
    uint64_t at = load_be64(word);
    if (!is_cluster(l, at) || !read_at(l, at + index / per_word * 8, word, sizeof(word)))
        return false;
    return refcount_ops(l->g.refcount_order)->get(word, index % per_word) != 0;
}

static bool table_at(struct look *l, uint64_t off)
{
    return counted_fact(l, is_place(l, off), counted(l, off));
}

/* ---- L2 tables ---- */

static bool compressed_fits(const struct look *l, struct l2_entry e)
{
    struct compressed_extent ext = compressed_decode(&l->g, e.raw);
    return !e.bitmap && !l->g.data_file && ext.off && ext.off < l->file_bytes;
}

/* Where in this file an entry leads to; 0: nowhere. */
static uint64_t entry_place(const struct look *l, struct l2_entry e)
{
    if (e.raw & ENTRY_COMPRESSED)
        return compressed_decode(&l->g, e.raw).off;
    return l->g.data_file ? 0 : l2_entry_host(e).v;
}

/* What would be a bitmap of subclusters is the entry of a cluster in use, or of the next one. */
static bool bitmap_is_entry(const struct look *l, struct l2_entry e)
{
    uint64_t off = e.bitmap & L2_OFFSET_MASK;
    bool next = off == l2_entry_host(e).v + l->g.cluster_bytes;
    return (e.bitmap & ENTRY_COPIED || next) && !(e.bitmap & L2_RESERVED_MASK) &&
           is_cluster(l, off);
}

static bool bitmap_fits(const struct look *l, struct l2_entry e)
{
    uint32_t allocated = (uint32_t)e.bitmap, zero = (uint32_t)(e.bitmap >> 32);
    if (allocated & zero || (allocated && !(e.raw & (L2_OFFSET_MASK | ENTRY_COPIED))))
        return false;
    return !bitmap_is_entry(l, e);
}

static bool entry_fits(const struct look *l, struct l2_entry e, uint64_t guest)
{
    uint64_t off = l2_entry_host(e).v;
    if (e.raw & ENTRY_COMPRESSED)
        return compressed_fits(l, e);
    if ((e.raw & L2_RESERVED_MASK) || ((e.raw & ENTRY_ZERO) && !l->g.zero_flag) ||
        !bitmap_fits(l, e))
        return false;
    if (l->g.data_file)
        return !(off || (e.raw & ENTRY_COPIED)) || off == guest;
    return !off || is_place(l, off);
}

static bool entry_empty(struct l2_entry e)
{
    return !(e.raw | e.bitmap);
}

/* Samples of the table's entries; `guest` is where the first one is on the disk. */
static void l2_look(struct look *l, uint64_t off, uint64_t guest)
{
    uint32_t used = 0, seen = 0;
    uint64_t last = 0;
    if (io_read(l->file, off, l->table, l->g.cluster_bytes, NULL) < 0) {
        fact(l, false);
        return;
    }
    for (uint32_t i = 0; i < l->g.l2_entries; i++)
        used += !entry_empty(l2_entry_load(&l->g, l->table, i));
    for (uint32_t i = 0; i < l->g.l2_entries; i++) {
        struct l2_entry e = l2_entry_load(&l->g, l->table, i);
        uint64_t host = e.raw & ENTRY_COMPRESSED ? 0 : l2_entry_host(e).v,
                 place = entry_place(l, e);
        l->e->adjacent |= last && host == last + l->g.cluster_bytes;
        last = host;
        if (entry_empty(e) || ++seen % div_round_up(used, L2_SAMPLES))
            continue;
        counted_fact(l, entry_fits(l, e, guest + ((uint64_t)i << l->g.cluster_bits)),
                     !place || counted(l, place));
    }
}

/* ---- the header's tables ---- */

static void l1_look(struct look *l, const uint64_t *words, uint64_t n)
{
    uint64_t used = 0, seen = 0, sampled = 0;
    for (uint64_t i = 0; i < n; i++)
        used += words[i] != 0;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t raw = be64toh(words[i]), off = l1_entry_host(raw);
        if (!raw || ++seen % div_round_up(used, L1_SAMPLES))
            continue;
        bool fits = counted_fact(l, !(raw & L1_RESERVED_MASK) && is_place(l, off), counted(l, off));
        if (fits && sampled++ % TABLE_EVERY == 0)
            l2_look(l, off, i << (l->g.l2_bits + l->g.cluster_bits));
    }
}

/* The L1 table, as far as it is in the file. */
static int l1_load(struct look *l, struct qk_error *err)
{
    uint64_t off = l->h->l1_off, entries = l->h->l1_entries;
    if (!entries) /* no disk has that */
        entries = min_u64(geometry_l1_entries(&l->g, l->h->size_bytes), l->g.cluster_bytes / 8);
    uint64_t bytes = min_u64(entries * 8, QCOW2_MAX_L1_BYTES);
    if (!bytes || !fact(l, is_place(l, off)))
        return 0;
    counted_fact(l, true, counted(l, off));
    bytes = round_down(min_u64(bytes, l->file_bytes - off), 8);
    CLEANUP_FREE uint64_t *words = malloc(bytes + 1);
    if (!words)
        return qk_fail_nomem(err);
    if (fact(l, io_read(l->file, off, words, bytes, NULL) == 0))
        l1_look(l, words, bytes / 8);
    return 0;
}

int header_evidence(struct qk_io *file, const struct header *h, struct evidence *e,
                    struct qk_error *err)
{
    struct look l = {.file = file, .h = h, .g = geometry_of(h), .e = e};
    uint8_t first[8];
    *e = (struct evidence){0};
    int ret = io_size(file, &l.file_bytes, err);
    if (ret < 0)
        return ret;
    CLEANUP_FREE uint8_t *table = malloc(l.g.cluster_bytes);
    if (!table)
        return qk_fail_nomem(err);
    l.table = table;
    /* One damage, however many clusters it is about. */
    e->blind = !counted_fact(&l, true, counted(&l, 0));
    if (h->reftable_off)
        table_at(&l, h->reftable_off);
    e->unaligned += !h->reftable_off; /* an impossible place was read as none */
    if (!e->blind)
        table_at(&l, read_at(&l, h->reftable_off, first, sizeof(first)) ? load_be64(first) : 0);
    e->misfit = 0;
    if (h->snapshot_count)
        table_at(&l, h->snapshots_off);
    return l1_load(&l, err);
}
