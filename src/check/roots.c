/*
 * roots.c - phase 1: everything that is found from the header without looking at L2 tables. Counts
 * the clusters of the header, the L1 tables, the snapshot table, the bitmaps and the encryption
 * header, and collects the distinct L2 tables with the number of L1 entries that name them. Later
 * it reports damaged L1 entries, and L2 tables in the order of the L1. Memory: the active L1, and
 * 32 bytes for each distinct L2 table.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "check/internal.h"

#define COMPACT_AFTER 65536u

/* ---- L1 entries ---- */

struct l1_verdict l1_judge(const struct check *c, uint64_t raw)
{
    struct l1_verdict v = {0};
    uint64_t off = l1_entry_host(raw);
    struct refmap_span span;
    if (!off) {
        if (raw)
            v.problems[v.problem_count++] = PROBLEM_L1_STRAY;
        return v;
    }
    if (raw & L1_RESERVED_MASK)
        v.problems[v.problem_count++] = PROBLEM_L1_RESERVED;
    if (!is_aligned(off, c->g->cluster_bytes))
        v.problems[v.problem_count++] = PROBLEM_L1_UNALIGNED;
    else if (!range_span(c, off, c->g->cluster_bytes, &span))
        v.problems[v.problem_count++] = PROBLEM_L1_OUTSIDE;
    else
        v.usable = true;
    return v;
}

struct l1_verdict l1_judge_active(const struct check *c, uint64_t index, uint64_t raw)
{
    struct l1_verdict v = l1_judge(c, raw);
    const struct l2_table *t =
        v.usable && c->data_file ? table_find(c, l1_entry_host(raw) >> c->g->cluster_bits) : NULL;
    if (t && (t->flags & L2_ONE_PLACE) && t->first_l1 != index)
        v.problems[v.problem_count++] = PROBLEM_L1_TABLE_TWICE;
    return v;
}

static void l1_report(struct check *c, uint64_t raw, uint64_t index, uint64_t file_off)
{
    uint64_t guest = QK_OFFSET_NONE;
    bool active = range_within(file_off - c->h->l1_off, 8, (uint64_t)c->l1_entries * 8);
    struct l1_verdict v = active ? l1_judge_active(c, index, raw) : l1_judge(c, raw);
    if (index != QK_OFFSET_NONE)
        guest = index << (c->g->l2_bits + c->g->cluster_bits);
    for (unsigned i = 0; i < v.problem_count; i++) {
        const struct finding f = {v.problems[i], file_off, guest, 0, raw};
        uint64_t off = l1_entry_host(raw);
        if (f.id == PROBLEM_L1_RESERVED)
            sink_found(&c->sink, &f, raw);
        else if (f.id == PROBLEM_L1_STRAY)
            sink_found(&c->sink, &f, index == QK_OFFSET_NONE ? 0 : index, raw);
        else if (f.id == PROBLEM_L1_TABLE_TWICE)
            sink_found(&c->sink, &f, index, off);
        else
            sink_found(&c->sink, &f, off, (uint64_t)c->g->cluster_bytes);
        c->guest_changes |= active && problem_chosen(c->opts, f.id);
        if (f.id == PROBLEM_L1_OUTSIDE)
            cut_named(c, f.id, off, c->g->cluster_bytes);
    }
}

static int table_add(struct check *c, const struct l2_table *t, struct qk_error *err)
{
    struct l2_vec *v = &c->tables;
    if (v->len == v->cap && v->len >= COMPACT_AFTER)
        tables_compact(v);
    return l2_vec_append(v, *t) < 0 ? qk_fail_nomem(err) : 0;
}

/* ---- the active L1 ---- */

/* Entries past the end of the file read as zero, and so does half of one; that the table reaches
 * there is reported. */
static int active_l1_load(struct check *c, struct qk_error *err)
{
    uint64_t off = min_u64(c->h->l1_off, c->file_bytes);
    uint64_t bytes = min_u64((uint64_t)c->h->l1_entries * 8, QCOW2_MAX_L1_BYTES);
    bytes = off ? bytes : 0; /* there is none */
    bytes = min_u64(bytes, round_down(c->file_bytes - off, 8));
    c->l1_entries = (uint32_t)(bytes / 8);
    c->l1 = calloc(c->l1_entries + 1u, sizeof(*c->l1));
    if (!c->l1)
        return qk_fail_nomem(err);
    if (c->l1_entries && io_read(c->file, off, c->l1, (size_t)c->l1_entries * 8, NULL) < 0) {
        const struct finding f = {PROBLEM_L1_UNREADABLE, off, QK_OFFSET_NONE, 0, 0};
        sink_found(&c->sink, &f, off);
        c->l1_entries = 0;
    }
    for (uint32_t i = 0; i < c->l1_entries; i++)
        c->l1[i] = be64toh(c->l1[i]);
    return 0;
}

static int active_l1_count(struct check *c, struct qk_error *err)
{
    const struct root root = {c->h->l1_off, (uint64_t)c->h->l1_entries * 8, 1,
                              PROBLEM_L1_TABLE_OUTSIDE};
    if (!root.off || c->rollback)
        return 0;
    int ret = count_root(c, &root, err);
    if (ret == 0 && c->sink.seen[PROBLEM_L1_TABLE_OUTSIDE])
        return cut_l1_count(c, err);
    const struct cut_off_table cut = {PROBLEM_L1_CUT,
                                      root.off,
                                      root.bytes,
                                      (uint64_t)cut_first_lost(c, root.off, 8)
                                          << (c->g->l2_bits + c->g->cluster_bits),
                                      8,
                                      true,
                                      true};
    if (ret == 0 && cut_through(c, root.off, root.bytes))
        cut_found(c, &cut);
    return ret;
}

/* No program writes such an entry, and no single bit that flips makes it. */
static bool l1_wild(uint64_t raw, const struct l1_verdict *v)
{
    for (unsigned i = 0; i < v->problem_count; i++) {
        if (v->problems[i] == PROBLEM_L1_RESERVED || v->problems[i] == PROBLEM_L1_UNALIGNED ||
            (v->problems[i] == PROBLEM_L1_STRAY && raw != ENTRY_COPIED))
            return true;
    }
    return false;
}

/* Most entries are impossible, two at least: that is no damage of entries, and is given up by no
 * word that is about entries. */
static void active_l1_judge(struct check *c)
{
    uint64_t used = 0, wild = 0;
    for (uint32_t i = 0; i < c->l1_entries; i++) {
        struct l1_verdict v = l1_judge(c, c->l1[i]);
        used += c->l1[i] != 0;
        wild += l1_wild(c->l1[i], &v);
    }
    if (wild < 2 || wild <= used / 2)
        return;
    const struct finding f = {PROBLEM_L1_RUIN, c->h->l1_off, 0, 0, wild};
    c->sink.range_bytes = c->h->size_bytes;
    sink_found(&c->sink, &f, used, wild);
    c->sink.range_bytes = 0;
    if (c->opts->allow & QK_ALLOW_L1)
        return;
    c->fewer_choices = *c->opts;
    c->fewer_choices.allow &= ~(unsigned)QK_ALLOW_ENTRIES;
    c->opts = c->sink.opts = &c->fewer_choices;
}

static int active_l1_collect(struct check *c, struct qk_error *err)
{
    int ret = active_l1_count(c, err);
    if (ret == 0)
        ret = active_l1_load(c, err);
    if (ret == 0)
        rollback_trim_l1(c);
    if (ret == 0)
        active_l1_judge(c);
    for (uint32_t i = 0; ret == 0 && i < c->l1_entries; i++) {
        if (!c->l1[i])
            continue;
        struct l1_verdict v = l1_judge(c, c->l1[i]);
        c->l1_bad |= v.problem_count != 0;
        const struct l2_table t = {.cluster = l1_entry_host(c->l1[i]) >> c->g->cluster_bits,
                                   .refs = 1,
                                   .active = 1,
                                   .first_l1 = i};
        if (v.usable)
            ret = table_add(c, &t, err);
    }
    return ret;
}

/* ---- the snapshots' L1 tables ---- */

static int snapshot_l1_words(struct check *c, const uint64_t *words, size_t n,
                             const struct root *piece, struct qk_error *err)
{
    int ret = 0;
    struct owner owner = snapshot_at(c, piece->off);
    for (size_t i = 0; ret == 0 && i < n; i++) {
        if (!words[i])
            continue;
        struct l1_verdict v = l1_judge(c, words[i]);
        c->snapshot_l1_bad |= v.problem_count != 0;
        const struct l2_table t = {.cluster = l1_entry_host(words[i]) >> c->g->cluster_bits,
                                   .refs = piece->times,
                                   .first_l1 = UINT32_MAX,
                                   .snapshot = owner.snapshot,
                                   .snapshot_l1 = owner.l1_index + (uint32_t)i};
        if (v.usable)
            ret = table_add(c, &t, err);
    }
    return ret;
}

static int snapshot_l1_report(struct check *c, const uint64_t *words, size_t n,
                              const struct root *piece, struct qk_error *err)
{
    (void)err;
    struct owner owner = snapshot_at(c, piece->off);
    sink_of_snapshot(c, owner.snapshot);
    for (size_t i = 0; i < n; i++) {
        if (words[i])
            l1_report(c, words[i], owner.snapshot ? owner.l1_index + i : QK_OFFSET_NONE,
                      piece->off + i * 8);
    }
    sink_of_nothing(c);
    return 0;
}

static int snapshot_l1_sweep(struct check *c, bool report, struct qk_error *err)
{
    const struct sweep sweep = {.ranges = &c->snapshot_l1,
                                .unreadable = PROBLEM_L1_UNREADABLE,
                                .fn = report ? snapshot_l1_report : snapshot_l1_words};
    return sweep_ranges(c, &sweep, err);
}

/* ---- the phase ---- */

static int crypto_collect(struct check *c, struct qk_error *err)
{
    const struct header_extension *ext =
        header_extensions_find(image_extensions(c->img), HEXT_CRYPTO);
    if (!ext || ext->len < 16) {
        const struct finding f = {PROBLEM_CRYPTO_MISSING, 0, QK_OFFSET_NONE, CRYPT_LUKS,
                                  c->h->crypt_method};
        if (c->h->crypt_method == CRYPT_LUKS)
            sink_found(&c->sink, &f);
        return 0;
    }
    const struct root root = {load_be64(ext->data), load_be64(ext->data + 8), 1,
                              PROBLEM_CRYPTO_HEADER};
    int ret = count_root(c, &root, err);
    bool bad = !root.bytes || cut_through(c, root.off, root.bytes);
    if (ret == 0 && bad && !c->sink.seen[root.outside]) {
        const struct finding f = {root.outside, root.off, QK_OFFSET_NONE, root.bytes,
                                  c->file_bytes - min_u64(root.off, c->file_bytes)};
        sink_found(&c->sink, &f, root.off, root.bytes);
        cut_named(c, root.outside, root.off, root.bytes);
        c->cut.torn |= root.bytes != 0;
    }
    return ret;
}

static int snapshot_l1_collect(struct check *c, struct qk_error *err)
{
    int ret = cover_ranges(c, &c->snapshot_l1, err);
    if (ret == 0)
        ret = snapshot_ranges_init(c, err);
    return ret < 0 ? ret : snapshot_l1_sweep(c, false, err);
}

int roots_collect(struct check *c, struct qk_error *err)
{
    static int (*const steps[])(struct check *, struct qk_error *) = {
        header_collect,  snapshots_collect, snapshot_l1_collect, crypto_collect,
        bitmaps_collect, l1_search,         active_l1_collect,
    };
    for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
        int ret = steps[i](c, err);
        if (ret < 0 || image_header_stored(c->img)->unreadable)
            return ret;
    }
    tables_compact(&c->tables);
    return twice_named(c, err);
}

static int report_table_of(struct check *c, uint64_t raw, struct qk_error *err)
{
    struct l2_table *t = table_find(c, l1_entry_host(raw) >> c->g->cluster_bits);
    return t ? table_report(c, t, err) : 0;
}

int roots_report(struct check *c, struct qk_error *err)
{
    int ret = 0;
    for (uint32_t i = 0; ret == 0 && (c->l1_bad || c->tables_bad) && i < c->l1_entries; i++) {
        if (!c->l1[i])
            continue;
        l1_report(c, c->l1[i], i, c->h->l1_off + 8u * (uint64_t)i);
        if (c->tables_bad)
            ret = report_table_of(c, c->l1[i], err);
    }
    if (ret == 0 && c->snapshot_l1_bad)
        ret = snapshot_l1_sweep(c, true, err);
    for (size_t i = 0; ret == 0 && c->tables_bad && i < c->tables.len; i++)
        ret = table_report(c, &c->tables.ptr[i], err);
    return ret;
}
