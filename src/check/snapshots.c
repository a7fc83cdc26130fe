/*
 * snapshots.c - part of phase 1: the snapshot table (Format, section "Snapshots"). Counts the table
 * itself and notes the L1 table of each snapshot. Promises that a table that contradicts the file
 * stops only its own rest, and that nothing is freed then (ACT_HOLD).
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"
#include "format/snapshot.h"

#include <stdio.h>

#define ENTRY_EXTRA_OFF 36u
#define NAME_SHOWN      255u

struct snapshot_entry {
    uint64_t off;
    struct snapshot_fixed fixed;
};

static void table_damaged(struct check *c, uint64_t off, const char *why)
{
    const struct finding f = {PROBLEM_SNAPSHOT_TABLE, off, QK_OFFSET_NONE, 0, 0};
    sink_found(&c->sink, &f, why);
}

/* Without the padding, which the last one may lack. */
static uint64_t entry_bytes(const struct snapshot_entry *e)
{
    const struct snapshot_fixed *f = &e->fixed;
    return (uint64_t)SNAPSHOT_FIXED_BYTES + f->extra_bytes + f->id_bytes + f->name_bytes;
}

/* Reads the entry at `off`; *next is where the following one starts. */
static const char *entry_read(struct check *c, uint64_t off, struct snapshot_entry *e,
                              uint64_t *next)
{
    uint8_t head[SNAPSHOT_FIXED_BYTES];
    if (!range_within(off, sizeof(head), c->file_bytes))
        return "it reaches past the end of the file";
    if (io_read(c->file, off, head, sizeof(head), NULL) < 0)
        return "I/O error";
    *e = (struct snapshot_entry){off, snapshot_fixed_decode(head)};
    if (!range_within(off, entry_bytes(e), c->file_bytes))
        return "an entry reaches past the end of the file";
    *next = off + snapshot_entry_bytes(&e->fixed);
    return NULL;
}

/* What a snapshot is called in the file, cut off where it is long. */
struct entry_names {
    char id[NAME_SHOWN + 1], name[NAME_SHOWN + 1];
};

static struct entry_names entry_names(struct check *c, const struct snapshot_entry *e)
{
    struct entry_names n = {0};
    uint64_t at = e->off + SNAPSHOT_FIXED_BYTES + e->fixed.extra_bytes;
    io_read(c->file, at, n.id, min_u64(e->fixed.id_bytes, NAME_SHOWN), NULL);
    io_read(c->file, at + e->fixed.id_bytes, n.name, min_u64(e->fixed.name_bytes, NAME_SHOWN),
            NULL);
    return n;
}

/* The entry will not be in a new table. */
static void entry_lost(struct check *c, const struct entry_names *n)
{
    char text[64];
    snprintf(text, sizeof(text), "%.20s (%.40s)", n->id, n->name);
    lost_note(&c->lost_snapshots, n->id[0] || n->name[0] ? text : "without id or name");
}

static void entry_damaged(struct check *c, const struct snapshot_entry *e, enum problem_id id)
{
    const struct entry_names n = entry_names(c, e);
    uint64_t value = id == PROBLEM_SNAPSHOT_L1_LARGE ? e->fixed.l1_entries : e->fixed.l1_off;
    const struct finding f = {id, e->off, QK_OFFSET_NONE, 0, value};
    c->sink.snapshot = n.id;
    c->sink.snapshot_name = n.name;
    if (id == PROBLEM_SNAPSHOT_L1_OUTSIDE)
        sink_found(&c->sink, &f, e->fixed.l1_off, (uint64_t)e->fixed.l1_entries * 8);
    else
        sink_found(&c->sink, &f, n.id, n.name, value);
    sink_of_nothing(c);
    if (problem_fixable(c->opts, id))
        entry_lost(c, &n);
    bool kept = id == PROBLEM_SNAPSHOT_L1_OUTSIDE && !problem_fixable(c->opts, id);
    if (!kept && u64_vec_append(&c->snapshot_gone, e->off) < 0)
        c->lost_more = true;
}

/* The last cluster of its L1 table is there in part. */
static void entry_cut(struct check *c, const struct snapshot_entry *e)
{
    const struct entry_names n = entry_names(c, e);
    const struct cut_off_table cut = {PROBLEM_L1_CUT,
                                      e->fixed.l1_off,
                                      (uint64_t)e->fixed.l1_entries * 8,
                                      (uint64_t)cut_first_lost(c, e->fixed.l1_off, 8)
                                          << (c->g->l2_bits + c->g->cluster_bits),
                                      8,
                                      false,
                                      true};
    c->sink.snapshot = n.id;
    c->sink.snapshot_name = n.name;
    cut_found(c, &cut);
    sink_of_nothing(c);
}

static int entry_note(struct check *c, const struct snapshot_entry *e, struct qk_error *err)
{
    uint64_t bytes = (uint64_t)e->fixed.l1_entries * 8;
    struct refmap_span span;
    if (c->data_file && problem_fixable(c->opts, PROBLEM_SNAPSHOT_DATA_FILE)) {
        const struct entry_names n = entry_names(c, e);
        entry_lost(c, &n);
        return 0;
    }
    if (!is_aligned(e->fixed.l1_off, c->g->cluster_bytes)) {
        entry_damaged(c, e, PROBLEM_SNAPSHOT_L1_UNALIGNED);
        return 0;
    }
    if (bytes > QCOW2_MAX_L1_BYTES) {
        entry_damaged(c, e, PROBLEM_SNAPSHOT_L1_LARGE);
        return 0;
    }
    if (!range_span(c, e->fixed.l1_off, bytes, &span)) {
        entry_damaged(c, e, PROBLEM_SNAPSHOT_L1_OUTSIDE);
        cut_named(c, PROBLEM_SNAPSHOT_L1_OUTSIDE, e->fixed.l1_off, bytes);
        if (problem_fixable(c->opts, PROBLEM_SNAPSHOT_L1_OUTSIDE))
            return 0;
    } else if (cut_through(c, e->fixed.l1_off, bytes)) {
        entry_cut(c, e);
    }
    if (u64_vec_append(&c->snapshot_l1, e->fixed.l1_off) < 0 ||
        u64_vec_append(&c->snapshot_l1, bytes) < 0 ||
        u64_vec_append(&c->snapshot_kept, e->off) < 0 ||
        u64_vec_append(&c->snapshot_kept, entry_bytes(e)) < 0)
        return qk_fail_nomem(err);
    return 0;
}

/* What version 3 asks for, and what no program reads. */
static void extra_report(struct check *c, const struct snapshot_entry *e, uint64_t index)
{
    uint64_t extra = e->fixed.extra_bytes;
    if (c->h->version >= 3 && extra < SNAPSHOT_V3_EXTRA_BYTES) {
        const struct finding f = {PROBLEM_SNAPSHOT_INCOMPLETE, e->off, QK_OFFSET_NONE,
                                  SNAPSHOT_V3_EXTRA_BYTES, extra};
        sink_found(&c->sink, &f, index);
    }
    if (extra > SNAPSHOT_EXTRA_BYTES_MAX) {
        const struct finding f = {PROBLEM_SNAPSHOT_EXTRA, e->off, QK_OFFSET_NONE,
                                  SNAPSHOT_EXTRA_BYTES_MAX, extra};
        sink_found(&c->sink, &f, index, extra);
    }
}

/* Returns whether the entry is dropped. */
static bool entry_impossible(struct check *c, const struct snapshot_entry *e, uint64_t index)
{
    const char *why = snapshot_nonsense(c, e->off, &e->fixed);
    const struct finding f = {PROBLEM_SNAPSHOT_ENTRY, e->off, QK_OFFSET_NONE, 0, 0};
    if (!why) {
        extra_report(c, e, index);
        return false;
    }
    sink_found(&c->sink, &f, index, why);
    if (!problem_fixable(c->opts, f.id) || snapshot_of_this_disk(c, &e->fixed))
        return false;
    const struct entry_names n = entry_names(c, e);
    entry_lost(c, &n);
    return true;
}

static int entries_collect(struct check *c, uint64_t *end, struct qk_error *err)
{
    for (uint32_t i = 0; i < c->h->snapshot_count + c->snapshots_more; i++) {
        struct snapshot_entry e;
        if (i == QCOW2_MAX_SNAPSHOTS) {
            table_damaged(c, *end, "it has too many entries");
            return 0;
        }
        const char *why = entry_read(c, *end, &e, end);
        if (why) {
            table_damaged(c, *end, why);
            cut_named(c, PROBLEM_SNAPSHOT_TABLE, *end, SNAPSHOT_FIXED_BYTES);
            return 0;
        }
        int ret = entry_impossible(c, &e, i) ? 0 : entry_note(c, &e, err);
        if (ret < 0)
            return ret;
    }
    return c->snapshots_more ? 0 : snapshots_behind_note(c, *end, err);
}

int snapshots_collect(struct check *c, struct qk_error *err)
{
    uint64_t start = c->h->snapshots_off, end = start;
    if (!is_aligned(start, c->g->cluster_bytes) || start > INT64_MAX ||
        (c->h->snapshot_count && (!start || start >= c->file_bytes))) {
        table_damaged(c, start, "its offset is unaligned or past the end of the file");
        if (start >= c->file_bytes)
            cut_named(c, PROBLEM_SNAPSHOT_TABLE, start, SNAPSHOT_FIXED_BYTES);
        return 0;
    }
    if (c->snapshots_more)
        snapshots_behind_found(c, c->snapshots_more);
    if (!start)
        return 0;
    if (c->data_file && c->h->snapshot_count) {
        const struct finding f = {PROBLEM_SNAPSHOT_DATA_FILE, start, QK_OFFSET_NONE, 0,
                                  c->h->snapshot_count};
        sink_found(&c->sink, &f, (uint64_t)c->h->snapshot_count);
    }
    int ret = entries_collect(c, &end, err);
    if (ret == 0 && !range_span(c, start, end - start, &c->snapshot_old))
        c->snapshot_old = (struct refmap_span){0};
    return ret < 0 ? ret : count_inside(c, start, end - start, err);
}

/* ---- a table without what cannot be used ---- */

static uint32_t kept_extra(const struct check *c, const struct snapshot_entry *e)
{
    uint32_t least = c->h->version >= 3 ? SNAPSHOT_V3_EXTRA_BYTES : 0;
    return (uint32_t)min_u64(max_u64(e->fixed.extra_bytes, least), SNAPSHOT_EXTRA_BYTES_MAX);
}

/* The disk's size as it is now, as far as the snapshot's L1 table has it. */
static uint64_t disk_bytes_of(const struct check *c, const struct snapshot_entry *e)
{
    unsigned bits = c->g->l2_bits + c->g->cluster_bits;
    uint64_t entries = min_u64(e->fixed.l1_entries, INT64_MAX >> bits);
    return min_u64(c->h->size_bytes, entries << bits);
}

/* The entry as it is, or with what version 3 requires: the size of the VM state from the older
 * field, and the disk's, also where the entry's is impossible; or without what is too much. Returns
 * its length. */
static uint64_t kept_entry(const struct check *c, const struct snapshot_entry *e, uint8_t *out)
{
    uint32_t extra = kept_extra(c, e);
    uint8_t *fields = out + SNAPSHOT_FIXED_BYTES;
    uint64_t names = (uint64_t)e->fixed.id_bytes + e->fixed.name_bytes,
             at = e->off + SNAPSHOT_FIXED_BYTES;
    size_t there = (size_t)min_u64(e->fixed.extra_bytes, extra);
    if (io_read(c->file, e->off, out, SNAPSHOT_FIXED_BYTES + there, NULL) < 0 ||
        io_read(c->file, at + e->fixed.extra_bytes, fields + extra, names, NULL) < 0)
        return 0;
    store_be32(out + ENTRY_EXTRA_OFF, extra);
    if (extra > e->fixed.extra_bytes && e->fixed.extra_bytes < 8)
        store_be64(fields, e->fixed.vm_state_bytes);
    if (extra > e->fixed.extra_bytes ||
        (extra && snapshot_nonsense(c, e->off, &e->fixed) && snapshot_of_this_disk(c, &e->fixed)))
        store_be64(fields + 8, disk_bytes_of(c, e));
    return round_up(SNAPSHOT_FIXED_BYTES + extra + names, 8);
}

static uint8_t *kept_entries(struct check *c, uint64_t *bytes, struct qk_error *err)
{
    const struct u64_vec *kept = &c->snapshot_kept;
    uint64_t room = 1, next;
    *bytes = 0;
    for (size_t i = 0; i + 1 < kept->len; i += 2)
        room += round_up(kept->ptr[i + 1], 8) + SNAPSHOT_V3_EXTRA_BYTES;
    uint8_t *table = calloc(1, room);
    if (!table)
        qk_fail_nomem(err);
    for (size_t i = 0; table && i + 1 < kept->len; i += 2) {
        struct snapshot_entry e;
        uint64_t len =
            entry_read(c, kept->ptr[i], &e, &next) ? 0 : kept_entry(c, &e, table + *bytes);
        if (!len) {
            qk_fail_at(err, -EIO, WHERE(c->file->name, "snapshot table", kept->ptr[i]),
                       "cannot read an entry that is kept");
            free(table);
            return NULL;
        }
        *bytes += len;
    }
    return table;
}

static int new_table(struct check *c, const uint8_t *table, uint64_t bytes, struct qk_error *err)
{
    int ret = clusters_place(c, bytes, &c->snapshot_new, err);
    const struct step what = {.action = "write the entries that can be used",
                              .structure = "snapshot table",
                              .count = c->snapshot_kept.len / 2};
    const struct plan_bytes w = {c->snapshot_new.first << c->g->cluster_bits, table, (size_t)bytes};
    if (ret == 0)
        ret = plan_write(c, &what, &w, err);
    return ret < 0 ? ret : plan_barrier(c, err);
}

/* The new table lies behind the end of the file: what looks free may belong to a lost snapshot. */
int snapshots_place(struct check *c, struct qk_error *err)
{
    if (!(c->actions & ACT_WRITE_SNAPSHOTS))
        return 0;
    bool no_room = c->snapshot_kept.len && (!c->file->can_grow || c->no_growth);
    if ((c->actions & ACT_HOLD) || no_room) {
        snapshots_forget(c);
        return 0;
    }
    uint64_t bytes;
    CLEANUP_FREE uint8_t *table = kept_entries(c, &bytes, err);
    if (!table)
        return -EIO;
    c->actions |= ACT_LOWER;
    return bytes ? new_table(c, table, bytes, err) : 0;
}

/* Then what the lost snapshots named must stay as it is. */
void snapshots_forget(struct check *c)
{
    if (!(c->actions & ACT_WRITE_SNAPSHOTS))
        return;
    refmap_drop(&c->refs, c->snapshot_new);
    c->snapshot_new = (struct refmap_span){0};
    c->actions &= ~(unsigned)(ACT_WRITE_SNAPSHOTS | ACT_LOWER);
    c->actions |= ACT_HOLD;
}

int snapshots_link(struct check *c, struct qk_error *err)
{
    struct step what = {"name the new table", "header", .count = 2};
    uint8_t fields[12];
    uint64_t all = (uint64_t)c->h->snapshot_count + c->snapshots_more;
    if (!(c->actions & ACT_WRITE_SNAPSHOTS))
        return 0;
    what.lost = lost_text(&c->lost_snapshots, "snapshot", all - c->snapshot_kept.len / 2);
    store_be32(fields, (uint32_t)(c->snapshot_kept.len / 2));
    store_be64(fields + 4, c->snapshot_new.first << c->g->cluster_bits);
    const struct plan_bytes w = {HEADER_SNAPSHOTS_OFF, fields, sizeof(fields)};
    int ret = plan_write(c, &what, &w, err);
    if (ret == 0)
        ret = plan_barrier(c, err);
    if (ret < 0)
        return ret;
    sink_message(&c->sink, c->snapshot_kept.len / 2 < all
                               ? "Dropping the snapshots that cannot be used"
                               : "Writing a new snapshot table");
    for (unsigned id = 0; id < PROBLEM_COUNT; id++) {
        if ((problems[id].actions & ACT_WRITE_SNAPSHOTS) &&
            problem_fixable(c->opts, (enum problem_id)id))
            sink_settle(&c->sink, (enum problem_id)id);
    }
    references_drop(c, c->snapshot_old, 1);
    return refcounts_lower(c, err);
}
