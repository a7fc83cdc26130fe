/*
 * snapshots_judge.c - whether what stands in the snapshot table can be true. An entry that lies in
 * the file is not yet one: after a damaged length or count, bytes of something else are read as
 * one. And behind the last entry there may be more, when the header's count is too low: an entry
 * with all the marks of one, whose L1 table is counted in the refcounts and named by nothing, and
 * names L2 tables that are counted once more than is known. (Bytes of a table that was there before
 * look the same, but their L1 tables are free or used by others, or leaked, as a crash leaves what
 * was allocated in their place.) Where refcounts are lost, its tables and the COPIED flags of the
 * active ones have to tell, and what they leave open is not decided: see check.c.
 *
 * Relies on nothing for the first; for the second on all references and refcounts. Promises that
 * while one of both is found, and not decided, nothing is freed (ACT_HOLD).
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"
#include "format/snapshot.h"

#include <string.h>

#define NANOSECONDS     1000000000u
#define LOOKED_AT_BYTES (UINT64_C(16) << 20) /* of L1 tables, at least */

static bool has_disk_bytes(const struct snapshot_fixed *f)
{
    return f->extra_bytes >= SNAPSHOT_V3_EXTRA_BYTES;
}

/* L1 entries that the snapshot's disk takes at least; without its size, as many as any disk. */
static uint64_t l1_needed(const struct check *c, uint64_t off, const struct snapshot_fixed *f)
{
    uint8_t field[8];
    uint64_t disk = c->h->version < 3 ? c->h->size_bytes : min_u64(c->h->size_bytes, 1);
    if (has_disk_bytes(f) &&
        io_read(c->file, off + SNAPSHOT_FIXED_BYTES + 8, field, sizeof(field), NULL) == 0)
        disk = load_be64(field);
    return disk > INT64_MAX ? UINT64_MAX : geometry_l1_entries(c->g, disk);
}

/* Id and name are texts without an end mark. */
static bool is_text(const struct check *c, uint64_t off, uint64_t bytes)
{
    uint8_t part[512];
    for (uint64_t at = 0; at < bytes; at += sizeof(part)) {
        size_t len = (size_t)min_u64(sizeof(part), bytes - at);
        if (io_read(c->file, off + at, part, len, NULL) == 0 && memchr(part, 0, len))
            return false;
    }
    return true;
}

const char *snapshot_nonsense(const struct check *c, uint64_t off, const struct snapshot_fixed *f)
{
    if (!f->l1_entries && !f->id_bytes)
        return "it is empty";
    if (!f->l1_off && f->l1_entries)
        return "its L1 table would be where the header is";
    if (f->l1_entries < l1_needed(c, off, f))
        return "its L1 table is too small for its disk";
    return NULL;
}

bool snapshot_of_this_disk(const struct check *c, const struct snapshot_fixed *f)
{
    return f->l1_off && f->l1_entries &&
           f->l1_entries >= geometry_l1_entries(c->g, c->h->size_bytes);
}

/* ---- entries behind the last one ---- */

/* The entry at `off`, when nothing speaks against it; its length, or 0. */
static uint64_t entry_behind(const struct check *c, uint64_t off, struct snapshot_fixed *f)
{
    uint8_t head[SNAPSHOT_FIXED_BYTES];
    struct refmap_span span;
    if (!range_within(off, sizeof(head), c->file_bytes) ||
        io_read(c->file, off, head, sizeof(head), NULL) < 0)
        return 0;
    *f = snapshot_fixed_decode(head);
    /* The last one may lack its padding. */
    uint64_t names = (uint64_t)SNAPSHOT_FIXED_BYTES + f->extra_bytes;
    uint64_t texts = (uint64_t)f->id_bytes + f->name_bytes;
    if (!f->l1_off || !f->l1_entries || !is_aligned(f->l1_off, c->g->cluster_bytes) ||
        f->extra_bytes > SNAPSHOT_EXTRA_BYTES_MAX || f->date_nsec >= NANOSECONDS ||
        (c->h->version >= 3 && !has_disk_bytes(f)) ||
        !range_within(off, names + texts, c->file_bytes) ||
        !range_span(c, f->l1_off, (uint64_t)f->l1_entries * 8, &span))
        return 0;
    if (!f->id_bytes || !is_text(c, off + names, texts) || snapshot_nonsense(c, off, f))
        return 0;
    return snapshot_entry_bytes(f);
}

int snapshots_behind_note(struct check *c, uint64_t off, struct qk_error *err)
{
    struct snapshot_fixed f;
    uint64_t bytes, most = QCOW2_MAX_SNAPSHOTS - min_u64(c->h->snapshot_count, QCOW2_MAX_SNAPSHOTS);
    c->snapshot_behind.len = 0;
    for (; c->snapshot_behind.len / 2 < most && (bytes = entry_behind(c, off, &f)); off += bytes) {
        if (u64_vec_append(&c->snapshot_behind, f.l1_off) < 0 ||
            u64_vec_append(&c->snapshot_behind, f.l1_entries) < 0)
            return qk_fail_nomem(err);
    }
    return 0;
}

/* How an L1 table is looked at. */
struct l1_look {
    uint64_t left;  /* bytes that all of them together are looked at */
    bool lost;      /* the refcounts tell nothing */
    bool named;     /* it has entries */
    bool plain;     /* an active entry shares something with it, and says so by its COPIED flag, */
    bool copied;    /* or says that it does not */
    uint8_t *table; /* one cluster */
};

/* More references are counted than are known. What cannot be read is. */
static bool counted_for_more(struct check *c, uint64_t cluster)
{
    uint64_t stored;
    int ret = stored_refcount(c, cluster, &stored, NULL);
    return ret < 0 || stored > refmap_count(&c->refs, cluster);
}

static bool entry_fits(const struct check *c, struct l2_entry e, struct l1_look *look)
{
    struct l2_verdict v;
    l2_judge(c, e, QK_OFFSET_NONE, &v);
    uint64_t cluster = v.off >> c->g->cluster_bits;
    if (v.problem_count || !v.counted || v.compressed)
        return !v.problem_count;
    unsigned marks = refmap_marks(&c->refs, cluster);
    look->copied |= (marks & REF_COPIED) != 0;
    look->plain |= (marks & REF_PLAIN) && refmap_count(&c->refs, cluster) == 1;
    return !is_metadata(c, cluster);
}

/* The cluster is an L2 table, or reads as one and is nothing else. */
static bool table_fits(const struct check *c, uint64_t cluster, struct l1_look *look)
{
    const struct l2_table *t = table_find(c, cluster);
    bool copied = t && t->active && (c->l1[t->first_l1] & ENTRY_COPIED);
    look->copied |= copied;
    look->plain |= t && t->active && !copied && t->refs == 1;
    if (t || refmap_count(&c->refs, cluster))
        return t;
    look->left -= min_u64(look->left, c->g->cluster_bytes);
    if (io_read(c->file, cluster << c->g->cluster_bits, look->table, c->g->cluster_bytes, NULL) < 0)
        return true;
    for (uint32_t i = 0; i < c->g->l2_entries; i++) {
        struct l2_entry e = l2_entry_load(c->g, look->table, i);
        if ((e.raw | e.bitmap) && !entry_fits(c, e, look))
            return false;
    }
    return true;
}

/* False: an entry names no table, or one that nobody else has. */
static bool piece_alive(struct check *c, const uint8_t *words, size_t bytes, struct l1_look *look)
{
    for (size_t at = 0; at < bytes && (look->left || !look->lost); at += 8) {
        uint64_t raw = load_be64(words + at), cluster = l1_entry_host(raw) >> c->g->cluster_bits;
        if (!raw)
            continue;
        if (!l1_judge(c, raw).usable ||
            !(look->lost ? table_fits(c, cluster, look) : counted_for_more(c, cluster)))
            return false;
        look->named = true;
    }
    return true;
}

/* With refcounts the first entries of an L1 table tell: those of a snapshot that is gone name
 * tables that are free, or have no user but those that are known. Without, COPIED flags tell, if
 * any: they are not set on what the disk shares with a snapshot, and set again when that is
 * deleted. */
static bool l1_alive(struct check *c, uint64_t off, uint64_t entries, struct l1_look *look)
{
    uint8_t piece[4096];
    bool alive = true;
    look->named = look->plain = look->copied = false;
    for (uint64_t at = 0, len; alive && at < entries * 8 && look->left; at += len) {
        if (look->named && !look->lost)
            break;
        len = min_u64(sizeof(piece), entries * 8 - at);
        look->left -= min_u64(look->left, len);
        if (io_read(c->file, off + at, piece, len, NULL) < 0)
            return true;
        alive = piece_alive(c, piece, len, look);
    }
    return alive && (look->named || !look->left) && (look->plain || !look->copied);
}

/* The snapshot whose L1 table this is. Where refcounts are lost, or one of zero shows that they
 * tell nothing, the tables have to speak for it; in the second case not only by nothing against it.
 */
static int behind_alive(struct check *c, uint64_t off, uint64_t entries, struct l1_look *look,
                        struct qk_error *err)
{
    uint64_t stored, cluster = off >> c->g->cluster_bits;
    int ret = stored_refcount(c, cluster, &stored, err);
    if (ret < 0 && ret != -ENOENT)
        return ret;
    bool unknown = ret < 0 || block_unknown(c, cluster >> c->g->refblock_bits);
    look->lost = unknown || !stored;
    if ((!unknown && !stored && !c->sink.seen[PROBLEM_REFCOUNT_ZERO]) ||
        (look->lost && c->data_file) || refmap_count(&c->refs, cluster) ||
        !l1_alive(c, off, entries, look))
        return 0;
    return !look->lost || unknown || look->plain;
}

/* How many of them, from the first on, are alive. In a dirty image the last one may be on its way
 * out: without room for a new table the header drops it first (doc/design/snapshots.md). */
int snapshots_behind_judge(struct check *c, struct qk_error *err)
{
    const struct u64_vec *behind = &c->snapshot_behind;
    struct l1_look look = {.left = max_u64(c->file_bytes / 2, LOOKED_AT_BYTES)};
    uint64_t alive = 0;
    int ret = 1;
    if (!behind->len || (c->h->incompatible & INCOMPAT_DIRTY))
        return 0;
    CLEANUP_FREE uint8_t *table = look.table = malloc(c->g->cluster_bytes);
    if (!table)
        return qk_fail_nomem(err);
    for (; ret == 1 && alive < behind->len / 2; alive += ret == 1) {
        const uint64_t *at = &behind->ptr[2 * alive];
        ret = behind_alive(c, at[0], at[1], &look, err);
        c->snapshots_guessed |= ret == 1 && look.lost;
    }
    if (alive)
        snapshots_behind_found(c, (uint32_t)alive);
    return ret < 0 ? ret : 0;
}

void snapshots_behind_found(struct check *c, uint32_t count)
{
    const struct finding f = {PROBLEM_SNAPSHOT_COUNT, HEADER_SNAPSHOTS_OFF, QK_OFFSET_NONE,
                              c->h->snapshot_count + (uint64_t)count, c->h->snapshot_count};
    sink_found(&c->sink, &f, (uint64_t)c->h->snapshot_count, f.expected);
    c->snapshots_found = count;
}
