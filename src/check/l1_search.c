/*
 * l1_search.c - the active L1 table when the header gives it no possible place: every cluster of
 * the file that is counted as used is held against what an L1 table is. Only when one alone fits
 * is it believed. Reads a little of each cluster, and the L2 tables that a likely one names; needs
 * the memory of one table.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"

#define FIRST_LOOK_BYTES 4096u
#define TABLES_LOOKED_AT 64u
#define CANCEL_EVERY     1024u

struct search {
    struct check *c;
    uint64_t bytes;  /* of the table that is looked for */
    uint64_t *words; /* room for it */
    uint8_t *table;  /* one cluster */
    uint64_t found, hits;
};

static bool is_other_root(const struct check *c, uint64_t off)
{
    for (size_t i = 0; i + 1 < c->snapshot_l1.len; i += 2) {
        if (c->snapshot_l1.ptr[i] == off)
            return true;
    }
    return off == c->h->reftable_off || (c->h->snapshot_count && off == c->h->snapshots_off);
}

/* What cannot be told counts as used. */
static bool in_use(const struct check *c, uint64_t off, uint8_t *block)
{
    uint64_t cluster = off >> c->g->cluster_bits, b = cluster >> c->g->refblock_bits;
    uint64_t entries = (uint64_t)c->h->reftable_clusters << c->g->cluster_bits >> 3;
    uint8_t raw[8];
    if (b >= entries || io_read(c->file, c->h->reftable_off + b * 8, raw, sizeof(raw), NULL) < 0)
        return true;
    uint64_t at = load_be64(raw);
    if (!at || !is_aligned(at, c->g->cluster_bytes) ||
        !range_within(at, c->g->cluster_bytes, c->file_bytes) ||
        io_read(c->file, at, block, c->g->cluster_bytes, NULL) < 0)
        return true;
    return c->ops->get(block, cluster & (block_clusters(c) - 1)) != 0;
}

/* All entries are possible; *any: and not all are zero. */
static bool words_fit(const struct check *c, const uint64_t *words, uint64_t n, bool *any)
{
    for (uint64_t i = 0; i < n; i++) {
        uint64_t raw = be64toh(words[i]);
        if (!raw)
            continue;
        struct l1_verdict v = l1_judge(c, raw);
        if (!v.usable || v.problem_count)
            return false;
        *any = true;
    }
    return true;
}

static bool table_fits(const struct search *s, uint64_t off)
{
    const struct check *c = s->c;
    bool any = false;
    if (io_read(c->file, off, s->table, c->g->cluster_bytes, NULL) < 0)
        return false;
    for (uint32_t i = 0; i < c->g->l2_entries; i++) {
        struct l2_entry e = l2_entry_load(c->g, s->table, i);
        struct l2_verdict v;
        if (!(e.raw | e.bitmap))
            continue;
        l2_judge(c, e, QK_OFFSET_NONE, &v);
        if (v.problem_count)
            return false;
        any = true;
    }
    return any;
}

static bool tables_fit(const struct search *s)
{
    uint64_t looked = 0;
    for (uint64_t i = 0; i < s->bytes / 8 && looked < TABLES_LOOKED_AT; i++) {
        uint64_t raw = be64toh(s->words[i]);
        if (raw && (looked++, !table_fits(s, l1_entry_host(raw))))
            return false;
    }
    return true;
}

static bool candidate(const struct search *s, uint64_t off)
{
    struct check *c = s->c;
    uint64_t look = min_u64(s->bytes, FIRST_LOOK_BYTES);
    bool any = false;
    if (!range_within(off, s->bytes, c->file_bytes) ||
        io_read(c->file, off, s->words, look, NULL) < 0 || !words_fit(c, s->words, look / 8, &any))
        return false;
    if (look < s->bytes && (io_read(c->file, off, s->words, s->bytes, NULL) < 0 ||
                            !words_fit(c, s->words, s->bytes / 8, &any)))
        return false;
    return any && !is_other_root(c, off) && tables_fit(s) && in_use(c, off, s->table);
}

static int scan(struct search *s, struct qk_error *err)
{
    struct check *c = s->c;
    for (uint64_t cluster = 1; cluster < c->clusters && s->hits < 2; cluster++) {
        uint64_t off = cluster << c->g->cluster_bits;
        int ret = cluster % CANCEL_EVERY ? 0 : progress_add(c, 0, err);
        if (ret < 0)
            return ret;
        if (candidate(s, off)) {
            s->found = off;
            s->hits++;
        }
    }
    return 0;
}

bool l1_misplaced(const struct check *c)
{
    return c->view.l1_entries && (!c->view.l1_off || c->raw.l1_off >= c->file_bytes);
}

static void report(struct check *c)
{
    const struct finding found = {PROBLEM_L1_TABLE_MISPLACED, HEADER_L1_OFF, QK_OFFSET_NONE,
                                  c->l1_found, c->raw.l1_off};
    const struct finding lost = {PROBLEM_L1_TABLE_LOST, HEADER_L1_OFF, QK_OFFSET_NONE, 0,
                                 c->raw.l1_off};
    if (c->l1_found)
        sink_found(&c->sink, &found, c->raw.l1_off, c->l1_found);
    else if (!c->view.l1_off) /* else it is said that the table lies behind the end */
        sink_found(&c->sink, &lost, c->raw.l1_off);
    if (c->l1_found && problem_fixable(c->opts, PROBLEM_L1_TABLE_MISPLACED)) {
        c->view.l1_off = c->l1_found;
        c->guest_changes = true;
    }
}

int l1_search(struct check *c, struct qk_error *err)
{
    if (!l1_misplaced(c))
        return 0;
    struct search s = {.c = c, .bytes = (uint64_t)c->view.l1_entries * 8};
    if (s.bytes < c->file_bytes) {
        CLEANUP_FREE uint64_t *words = malloc(s.bytes);
        CLEANUP_FREE uint8_t *table = malloc(c->g->cluster_bytes);
        if (!words || !table)
            return qk_fail_nomem(err);
        s.words = words;
        s.table = table;
        int ret = scan(&s, err);
        if (ret < 0)
            return ret;
    }
    c->l1_found = s.hits == 1 ? s.found : 0;
    report(c);
    return 0;
}
