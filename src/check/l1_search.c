/*
 * l1_search.c - the active L1 table when the header gives it no possible place: every cluster of
 * the file that is counted as used is held against what an L1 table is. Only when one place alone
 * fits is it believed.
 *
 * First, in parallel: which clusters hold nothing but words that could be L1 entries. What is not
 * counted, or is a hole, is not read; of most others the first 512 bytes tell. Then, in order: the
 * rows of such clusters that are as long as the table, and of each of their clusters whether the
 * first tables that it names are L2 tables without fault. Each cluster is read at most twice,
 * however many rows it is in (INV-4); the memory is a few bits for each cluster.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"
#include "image/header_evidence.h"

#define FIRST_LOOK_BYTES  512u
#define TABLES_LOOKED_AT  64u /* of those that one cluster names */
#define ITEM_CLUSTERS     4096u
#define SEARCHED_CLUSTERS (UINT64_C(1) << 30)
#define HELD_CLUSTERS     16u /* of a row, against the L2 tables */

enum mark {
    WHOLE,  /* all of the cluster could be L1 entries */
    HEAD,   /* as much of it as the table's last cluster has */
    ANY,    /* and they are not all zero */
    JUDGED, /* the L2 tables that it names were looked at, */
    FITS,   /* and some are such tables, and all others empty */
    TABLE,  /* it was looked at as an L2 table, */
    GOOD,   /* and is one, */
    EMPTY,  /* or has no entries */
    MARKS
};

struct l1_search {
    uint64_t bytes, clusters; /* of the table that is looked for */
    uint64_t tail;            /* bytes in its last cluster */
    uint64_t *marks[MARKS];   /* a bit for each cluster of the file */
    uint8_t *buf;             /* two clusters */
    uint64_t found, hits;
};

static bool has(const struct l1_search *s, enum mark m, uint64_t cluster)
{
    return s->marks[m][cluster / 64] >> cluster % 64 & 1;
}

static void set(struct l1_search *s, enum mark m, uint64_t cluster)
{
    s->marks[m][cluster / 64] |= UINT64_C(1) << cluster % 64;
}

/* ---- what could be L1 entries ---- */

/* Of n clusters from `first` on, a multiple of 64: which are counted. What cannot be told is. The
 * buffer has room for ITEM_CLUSTERS refcounts. */
static void load_used(const struct check *c, uint64_t first, uint64_t n, uint64_t *used,
                      uint8_t *buf)
{
    uint64_t entries = (uint64_t)c->h->reftable_clusters << c->g->cluster_bits >> 3;
    for (uint64_t at = first, part; at < first + n; at += part) {
        uint64_t b = at >> c->g->refblock_bits, in_block = at & (block_clusters(c) - 1);
        uint64_t *out = used + (at - first) / 64, off = 0;
        uint8_t raw[8];
        part = min_u64(first + n - at, block_clusters(c) - in_block);
        size_t bytes = (size_t)div_round_up(part << c->g->refcount_order, 8);
        bool known = b < entries &&
                     io_read(c->file, c->h->reftable_off + b * 8, raw, sizeof(raw), NULL) == 0;
        if (known)
            off = load_be64(raw);
        memset(out, 0, div_round_up(part, 64) * 8);
        if (known && !off)
            continue;
        known = known && is_aligned(off, c->g->cluster_bytes) && off < c->file_bytes;
        uint64_t skip = in_block << c->g->refcount_order >> 3;
        if (known && io_read(c->file, off + skip, buf, bytes, NULL) == 0)
            c->ops->used_bits(buf, 0, part, out);
        else
            memset(out, 0xff, div_round_up(part, 64) * 8);
    }
}

/* How many bytes from the beginning on could be entries; *any: they are not all zero. */
static size_t fitting(const struct check *c, const uint8_t *bytes, size_t len, bool *any)
{
    for (size_t at = 0; at + 8 <= len; at += 8) {
        uint64_t raw = load_be64(bytes + at);
        if (!raw)
            continue;
        struct l1_verdict v = l1_judge(c, raw);
        if (!v.usable || v.problem_count)
            return at;
        *any = true;
    }
    return len;
}

static void note_fit(struct l1_search *s, const struct check *c, uint64_t cluster, uint64_t fit,
                     bool any)
{
    if (fit >= c->g->cluster_bytes)
        set(s, WHOLE, cluster);
    if (fit >= s->tail)
        set(s, HEAD, cluster);
    if (any && fit >= s->tail)
        set(s, ANY, cluster);
}

static void cluster_look(struct check *c, uint64_t cluster, uint8_t *buf)
{
    struct l1_search *s = c->search;
    uint64_t off = cluster << c->g->cluster_bits;
    size_t most = (size_t)(s->clusters > 1 ? c->g->cluster_bytes : s->tail);
    size_t first = (size_t)min_u64(most, FIRST_LOOK_BYTES);
    bool any = false;
    if (io_read(c->file, off, buf, first, NULL) < 0 || fitting(c, buf, first, &any) < first)
        return;
    if (first < most && io_read(c->file, off + first, buf, most - first, NULL) < 0)
        return;
    size_t rest = first < most ? fitting(c, buf, most - first, &any) : 0;
    note_fit(s, c, cluster, first + rest, any);
}

static int item_look(struct check *c, uint64_t item, void *scratch, struct qk_error *err)
{
    uint64_t used[ITEM_CLUSTERS / 64], first = item * ITEM_CLUSTERS, known = 0;
    uint64_t n = min_u64(ITEM_CLUSTERS, c->clusters - first);
    uint64_t end = min_u64((first + n) << c->g->cluster_bits, c->file_bytes);
    bool hole = false;
    load_used(c, first, n, used, scratch);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t off = (first + i) << c->g->cluster_bits;
        if (!(used[i / 64] >> i % 64 & 1) || first + i == 0)
            continue;
        if (off >= known)
            known = extent_end(c, off, end, &hole);
        if (hole && known - off >= c->g->cluster_bytes)
            note_fit(c->search, c, first + i, c->g->cluster_bytes, false);
        else
            cluster_look(c, first + i, scratch);
    }
    return progress_add(c, 0, err);
}

/* ---- what they name ---- */

static void table_judge(struct check *c, uint64_t cluster)
{
    struct l1_search *s = c->search;
    uint8_t *table = s->buf + c->g->cluster_bytes;
    bool any = false;
    set(s, TABLE, cluster);
    if (has(s, WHOLE, cluster) && !has(s, ANY, cluster)) { /* it was seen to be zero, or a hole */
        set(s, EMPTY, cluster);
        return;
    }
    if (io_read(c->file, cluster << c->g->cluster_bits, table, c->g->cluster_bytes, NULL) < 0)
        return;
    for (uint32_t i = 0; i < c->g->l2_entries; i++) {
        struct l2_entry e = l2_entry_load(c->g, table, i);
        struct l2_verdict v;
        if (!(e.raw | e.bitmap))
            continue;
        l2_judge(c, e, QK_OFFSET_NONE, &v);
        if (v.problem_count)
            return;
        any = true;
    }
    set(s, any ? GOOD : EMPTY, cluster);
}

static void cluster_judge(struct check *c, uint64_t cluster)
{
    struct l1_search *s = c->search;
    size_t bytes = (size_t)(has(s, WHOLE, cluster) ? c->g->cluster_bytes : s->tail);
    unsigned looked = 0, good = 0;
    set(s, JUDGED, cluster);
    if (io_read(c->file, cluster << c->g->cluster_bits, s->buf, bytes, NULL) < 0)
        return;
    for (size_t at = 0; at + 8 <= bytes && looked < TABLES_LOOKED_AT; at += 8) {
        uint64_t table = l1_entry_host(load_be64(s->buf + at)) >> c->g->cluster_bits;
        if (!table)
            continue;
        if (!has(s, TABLE, table))
            table_judge(c, table);
        if (!has(s, GOOD, table) && !has(s, EMPTY, table))
            return;
        looked++;
        good += has(s, GOOD, table);
    }
    if (good)
        set(s, FITS, cluster);
}

/* Some of the row's clusters name tables, and no others. */
static bool row_fits(struct check *c, uint64_t first)
{
    struct l1_search *s = c->search;
    unsigned held = 0;
    for (uint64_t i = first; i < first + s->clusters && held < HELD_CLUSTERS; i++) {
        if (i % 64 == 0 && !s->marks[ANY][i / 64])
            i += 63;
        else if (has(s, ANY, i)) {
            if (!has(s, JUDGED, i))
                cluster_judge(c, i);
            if (!has(s, FITS, i))
                return false;
            held++;
        }
    }
    return held != 0;
}

static void exclude(struct l1_search *s, uint64_t cluster)
{
    s->marks[WHOLE][cluster / 64] &= ~(UINT64_C(1) << cluster % 64);
    s->marks[HEAD][cluster / 64] &= ~(UINT64_C(1) << cluster % 64);
}

/* No table of another kind lies there: all of them but the refcount table are counted by now. Its
 * blocks look like L2 tables where refcounts have 64 bits. */
static void exclude_roots(struct check *c)
{
    for (uint64_t at = 0; (at = refmap_next(&c->refs, at, c->clusters)) != UINT64_MAX; at++)
        exclude(c->search, at);
    uint64_t bytes = div_round_up(c->clusters, block_clusters(c)) * 8; /* that can be in use */
    uint64_t n = min_u64(div_round_up(bytes, c->g->cluster_bytes), c->h->reftable_clusters);
    uint64_t reftable = c->h->reftable_off >> c->g->cluster_bits;
    for (uint64_t i = reftable; i < c->clusters && i - reftable < n; i++)
        exclude(c->search, i);
}

static void rows_look(struct check *c)
{
    struct l1_search *s = c->search;
    uint64_t row = 0; /* clusters right before this one that are whole */
    for (uint64_t i = 1; i < c->clusters && s->hits < 2; i++) {
        if (i % 64 == 0 && !s->marks[HEAD][i / 64]) {
            row = 0;
            i += 63;
            continue;
        }
        uint64_t first = i + 1 - s->clusters;
        if (has(s, HEAD, i) && row + 1 >= s->clusters && row_fits(c, first)) {
            s->found = first << c->g->cluster_bits;
            s->hits++;
        }
        row = has(s, WHOLE, i) ? row + 1 : 0;
    }
}

/* ---- the search ---- */

static int search_run(struct check *c, struct qk_error *err)
{
    const struct parallel_job job = {
        .items = div_round_up(c->clusters, ITEM_CLUSTERS),
        .scratch_bytes = max_u64(c->g->cluster_bytes, ITEM_CLUSTERS * 8),
        .fn = item_look,
    };
    struct l1_search *s = c->search;
    size_t words = (size_t)div_round_up(c->clusters, 64);
    s->buf = malloc(2 * (size_t)c->g->cluster_bytes);
    for (unsigned m = 0; s->buf && m < MARKS; m++) {
        s->marks[m] = calloc(words + 1, sizeof(uint64_t));
        if (!s->marks[m])
            return qk_fail_nomem(err);
    }
    int ret = s->buf ? parallel_for(c, &job, err) : qk_fail_nomem(err);
    if (ret < 0)
        return ret;
    exclude_roots(c);
    rows_look(c);
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
    if (c->l1_found && !c->view.l1_off && !problem_fixable(c->opts, PROBLEM_L1_TABLE_MISPLACED))
        sink_refuse(&c->sink, PROBLEM_L1_TABLE_MISPLACED);
    if (c->l1_found)
        sink_found(&c->sink, &found, c->raw.l1_off, c->l1_found);
    else if (!c->view.l1_off) /* else it is said that the table lies behind the end */
        sink_found(&c->sink, &lost, c->raw.l1_off);
    /* A look tells what there is behind it; a repair that may not choose it leaves it alone. */
    bool look = !c->opts->fix && !c->view.l1_off;
    if (c->l1_found && (look || problem_fixable(c->opts, PROBLEM_L1_TABLE_MISPLACED)))
        c->view.l1_off = c->l1_found;
}

/* The header was believed without an L1 table: what was found may tell another story. */
static int found_judge(struct check *c, struct qk_error *err)
{
    struct header h = c->view;
    struct evidence e;
    h.l1_off = c->l1_found;
    int ret = c->l1_found ? header_evidence(c->file, &h, &e, err) : 0;
    c->header_only = ret == 0 && c->l1_found && (e.blind ? e.misfit : e.broken) * 16 > e.facts &&
                     problem_fixable(c->opts, PROBLEM_L1_TABLE_MISPLACED);
    return ret;
}

int l1_search(struct check *c, struct qk_error *err)
{
    if (!l1_misplaced(c))
        return 0;
    struct l1_search s = {.bytes = (uint64_t)c->view.l1_entries * 8};
    int ret = 0;
    s.clusters = div_round_up(s.bytes, c->g->cluster_bytes);
    s.tail = s.bytes - ((s.clusters - 1) << c->g->cluster_bits);
    if (s.bytes < c->file_bytes && c->clusters <= SEARCHED_CLUSTERS) {
        c->search = &s;
        ret = search_run(c, err);
        c->search = NULL;
    }
    for (unsigned m = 0; m < MARKS; m++)
        free(s.marks[m]);
    free(s.buf);
    c->l1_found = ret == 0 && s.hits == 1 ? s.found : 0;
    if (ret == 0)
        ret = found_judge(c, err);
    if (ret == 0)
        report(c);
    return ret;
}
