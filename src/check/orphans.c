/*
 * orphans.c - L2 tables among the leaked clusters. A cluster that is counted, that nothing names
 * and that reads as an active L2 table of such clusters was named by an L1 entry that is zero now,
 * as where a write was lost or a sector went bad; or an operation was cut off that had given it up.
 * Tables do not tell which, so nothing is freed until somebody says it (ACT_HOLD).
 *
 * Runs when all refcounts are compared. Of a leaked cluster one sector is read, and the rest of
 * those that begin as a table; holes are skipped; the search ends with the first table of the file.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "check/internal.h"

#define FIRST_LOOK_BYTES 512u
#define NOBODY           UINT64_MAX

/* Names nothing, or a cluster that nothing else names, as an active table does: one of a snapshot
 * has no COPIED flags, as little as a refcount table, which looks like one otherwise. */
static bool entry_fits(const struct check *c, struct l2_entry e, uint64_t *named)
{
    struct l2_verdict v;
    if (!(e.raw | e.bitmap))
        return true;
    l2_judge(c, e, QK_OFFSET_NONE, &v);
    if (v.problem_count || !v.allocated)
        return !v.problem_count;
    uint64_t cluster = v.off >> c->g->cluster_bits;
    if (!(e.raw & (ENTRY_COPIED | ENTRY_COMPRESSED)))
        return false;
    if (!c->data_file && (!v.counted || refmap_count(&c->refs, cluster)))
        return false;
    *named = min_u64(*named, cluster);
    return true;
}

static bool entries_fit(const struct check *c, const uint8_t *table, size_t bytes, uint64_t *named)
{
    uint32_t n = (uint32_t)(bytes / c->g->l2_entry_bytes);
    for (uint32_t i = 0; i < n; i++) {
        if (!entry_fits(c, l2_entry_load(c->g, table, i), named))
            return false;
    }
    return true;
}

static bool is_counted(const struct check *c, uint64_t cluster)
{
    uint64_t off = refcount_place(c, cluster), b = cluster >> c->g->refblock_bits;
    unsigned bits = c->g->refcount_bits, in_byte = bits < 8 ? 8 / bits : 1;
    uint8_t raw[8] = {0};
    return off != QK_OFFSET_NONE && block_state(c, b) == BLOCK_GOOD &&
           io_read(c->file, off, raw, bits < 8 ? 1 : bits / 8, NULL) == 0 &&
           c->ops->get(raw, cluster % in_byte);
}

static bool is_table(const struct check *c, uint64_t cluster, uint8_t *buf)
{
    uint64_t off = cluster << c->g->cluster_bits, named = NOBODY;
    const size_t first = FIRST_LOOK_BYTES, rest = c->g->cluster_bytes - first;
    return io_read(c->file, off, buf, first, NULL) == 0 && entries_fit(c, buf, first, &named) &&
           io_read(c->file, off + first, buf, rest, NULL) == 0 &&
           entries_fit(c, buf, rest, &named) && named != NOBODY &&
           (c->data_file || is_counted(c, named));
}

static void note_table(struct check *c, uint64_t cluster)
{
    uint64_t lowest = atomic_load(&c->orphan);
    while (cluster < lowest && !atomic_compare_exchange_weak(&c->orphan, &lowest, cluster))
        ;
}

/* Of leaked clusters side by side. */
static void look_run(struct check *c, uint64_t cluster, uint64_t n, uint8_t *buf)
{
    const unsigned bits = c->g->cluster_bits;
    uint64_t end = min_u64((cluster + n) << bits, c->file_bytes), known = 0;
    bool hole = false;
    for (; cluster << bits < end && cluster < atomic_load(&c->orphan); cluster++) {
        uint64_t off = cluster << bits;
        if (off >= known)
            known = extent_end(c, off, end, &hole);
        if (!(hole && known - off >= c->g->cluster_bytes) && is_table(c, cluster, buf))
            note_table(c, cluster);
    }
}

static int look_block(struct check *c, uint64_t b, void *scratch, struct qk_error *err)
{
    uint8_t *block = scratch, *table = block + c->g->cluster_bytes;
    const uint64_t first = b * block_clusters(c);
    struct refcount_run run = {.clusters = 0};
    if (!(c->blocks[b] & BLOCK_MISMATCH) || block_state(c, b) != BLOCK_GOOD ||
        first >= c->clusters || first >= atomic_load(&c->orphan) ||
        io_read(c->file, c->reftable.ptr[b], block, c->g->cluster_bytes, NULL) < 0)
        return 0;
    uint64_t n = min_u64(block_clusters(c), c->clusters - first);
    while (refcount_run_next(c, b, block, n, &run)) {
        if (run.stored && !run.count)
            look_run(c, first + run.first, run.clusters, table);
    }
    return progress_add(c, 0, err);
}

/* Not where it is known why tables are leaked: something that named some is damaged, an operation
 * was cut off in an image that says so, or the disk goes back to a snapshot. */
static bool unexplained(const struct check *c)
{
    for (unsigned id = 0; id < PROBLEM_COUNT; id++) {
        if (c->sink.seen[id] && (problems[id].actions & (ACT_HOLD | ACT_REFUSE)))
            return false;
    }
    return !(c->h->incompatible & INCOMPAT_DIRTY) && !c->rollback && !tables_wrong(c);
}

int orphans_find(struct check *c, struct qk_error *err)
{
    const struct parallel_job job = {
        .items = c->reftable.len,
        .scratch_bytes = (size_t)c->g->cluster_bytes * 2,
        .fn = look_block,
    };
    if (!c->sink.seen[PROBLEM_REFCOUNT_HIGH] || !unexplained(c))
        return 0;
    atomic_store(&c->orphan, NOBODY);
    int ret = parallel_for(c, &job, err);
    uint64_t cluster = atomic_load(&c->orphan);
    if (ret < 0 || cluster == NOBODY)
        return ret;
    const struct finding f = {PROBLEM_L2_ORPHAN, cluster << c->g->cluster_bits, QK_OFFSET_NONE, 0,
                              0};
    sink_found(&c->sink, &f, cluster << c->g->cluster_bits);
    sink_message(&c->sink, "There is an L2 table among the leaked clusters: an L1 entry may be "
                           "lost, and with it what looks leaked");
    return 0;
}
