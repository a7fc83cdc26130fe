/*
 * snapshots.c - part of phase 1: the snapshot table (Format, section "Snapshots"). Counts the table
 * itself and notes the L1 table of each snapshot. Promises that a table that contradicts the file
 * stops only its own rest, and that nothing is freed then (ACT_HOLD).
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"

#include <stdio.h>

#define ENTRY_HEAD_BYTES     40u
#define ENTRY_V3_EXTRA_BYTES 16u /* vmstate size and disk size: required in version 3 */
#define NAME_SHOWN           255u

struct snapshot_entry {
    uint64_t off, l1_off;
    uint32_t l1_entries, id_bytes, name_bytes, extra_bytes;
};

static void table_damaged(struct check *c, uint64_t off, const char *why)
{
    const struct finding f = {PROBLEM_SNAPSHOT_TABLE, off, QK_OFFSET_NONE, 0, 0};
    sink_found(&c->sink, &f, why);
}

/* Reads the entry at `off`; *next is where the following one starts. */
static const char *entry_read(struct check *c, uint64_t off, struct snapshot_entry *e,
                              uint64_t *next)
{
    uint8_t head[ENTRY_HEAD_BYTES];
    if (!range_within(off, sizeof(head), c->file_bytes))
        return "it reaches past the end of the file";
    if (io_read(c->file, off, head, sizeof(head), NULL) < 0)
        return "I/O error";
    *e = (struct snapshot_entry){
        .off = off,
        .l1_off = load_be64(head),
        .l1_entries = load_be32(head + 8),
        .id_bytes = load_be16(head + 12),
        .name_bytes = load_be16(head + 14),
        .extra_bytes = load_be32(head + 36),
    };
    uint64_t bytes = (uint64_t)sizeof(head) + e->extra_bytes + e->id_bytes + e->name_bytes;
    if (!range_within(off, bytes, c->file_bytes))
        return "an entry reaches past the end of the file";
    *next = round_up(off + bytes, 8);
    return NULL;
}

static void entry_damaged(struct check *c, const struct snapshot_entry *e, enum problem_id id)
{
    char label[NAME_SHOWN + 1] = "", name[NAME_SHOWN + 1] = "";
    uint64_t at = e->off + ENTRY_HEAD_BYTES + e->extra_bytes;
    io_read(c->file, at, label, min_u64(e->id_bytes, NAME_SHOWN), NULL);
    io_read(c->file, at + e->id_bytes, name, min_u64(e->name_bytes, NAME_SHOWN), NULL);
    uint64_t value = id == PROBLEM_SNAPSHOT_L1_LARGE ? e->l1_entries : e->l1_off;
    const struct finding f = {id, e->off, QK_OFFSET_NONE, 0, value};
    sink_found(&c->sink, &f, label, name, value);
}

static int entry_note(struct check *c, const struct snapshot_entry *e, struct qk_error *err)
{
    uint64_t bytes = (uint64_t)e->l1_entries * 8;
    struct refmap_span span;
    if (!is_aligned(e->l1_off, c->g->cluster_bytes)) {
        entry_damaged(c, e, PROBLEM_SNAPSHOT_L1_UNALIGNED);
        return 0;
    }
    if (bytes > QCOW2_MAX_L1_BYTES) {
        entry_damaged(c, e, PROBLEM_SNAPSHOT_L1_LARGE);
        return 0;
    }
    if (!range_span(c, e->l1_off, bytes, &span)) {
        const struct finding f = {PROBLEM_L1_TABLE_OUTSIDE, e->off, QK_OFFSET_NONE, 0, e->l1_off};
        sink_found(&c->sink, &f, e->l1_off, bytes);
    }
    if (u64_vec_append(&c->snapshot_l1, e->l1_off) < 0 ||
        u64_vec_append(&c->snapshot_l1, bytes) < 0)
        return qk_fail_nomem(err);
    return 0;
}

static int entries_collect(struct check *c, uint64_t *end, struct qk_error *err)
{
    for (uint32_t i = 0; i < c->h->snapshot_count; i++) {
        struct snapshot_entry e;
        if (i == QCOW2_MAX_SNAPSHOTS) {
            table_damaged(c, *end, "it has too many entries");
            return 0;
        }
        const char *why = entry_read(c, *end, &e, end);
        if (why) {
            table_damaged(c, *end, why);
            return 0;
        }
        if (c->h->version >= 3 && e.extra_bytes < ENTRY_V3_EXTRA_BYTES) {
            const struct finding f = {PROBLEM_SNAPSHOT_INCOMPLETE, e.off, QK_OFFSET_NONE,
                                      ENTRY_V3_EXTRA_BYTES, e.extra_bytes};
            sink_found(&c->sink, &f, (uint64_t)i);
        }
        int ret = entry_note(c, &e, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int snapshots_collect(struct check *c, struct qk_error *err)
{
    uint64_t start = c->h->snapshots_off, end = start;
    if (!is_aligned(start, c->g->cluster_bytes) || start > INT64_MAX ||
        (c->h->snapshot_count && start >= c->file_bytes)) {
        table_damaged(c, start, "its offset is unaligned or past the end of the file");
        return 0;
    }
    if (!c->h->snapshot_count)
        return 0;
    if (c->data_file) {
        const struct finding f = {PROBLEM_SNAPSHOT_DATA_FILE, start, QK_OFFSET_NONE, 0,
                                  c->h->snapshot_count};
        sink_found(&c->sink, &f, (uint64_t)c->h->snapshot_count);
    }
    int ret = entries_collect(c, &end, err);
    return ret < 0 ? ret : count_inside(c, start, end - start, err);
}
