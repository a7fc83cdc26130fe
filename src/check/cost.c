/*
 * cost.c - what damage costs: for the disk and for each snapshot, the guest ranges that cannot be
 * read any more. While findings are reported, L2 entries that lead to nothing are noted, by table;
 * then one pass over the L1 tables puts them on each disk that has them. Upholds: an entry whose
 * table is lost counts whole, since nobody knows what it held; each loss is told with its first
 * ranges and the number of all; memory and work are bounded by the file, and what they leave out is
 * said (at_least).
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"

#include <string.h>

#define LOST_RUNS_MAX  131072u
#define L1_CHUNK_WORDS 4096u
#define WORDS_AT_LEAST (UINT64_C(1) << 22)

/* The ranges of one disk, as they come, ascending. */
struct ranges {
    struct qk_guest_range list[QK_LOSS_RANGES];
    struct qk_guest_range last;
    uint64_t total, count, disk_bytes;
    bool at_least;
};

struct cost {
    struct check *c;
    uint64_t each;        /* of the guest, behind one L1 entry */
    uint64_t words_left;  /* of snapshots' L1 tables that may be read yet */
    uint64_t runs_left;   /* a table's runs are gone through for each entry that names it */
    uint64_t *words;      /* L1_CHUNK_WORDS */
    struct ranges ranges; /* of the disk that is looked at */
};

/* ---- noting ---- */

void cost_note(struct check *c, struct lost_run run)
{
    struct lost_run *last = c->lost_runs.len ? &c->lost_runs.ptr[c->lost_runs.len - 1] : NULL;
    if (!c->opts->on_loss || !run.count)
        return;
    if (last && last->table == run.table && last->first + last->count == run.first && !run.skip) {
        last->count += run.count;
        return;
    }
    if (c->lost_runs.len == LOST_RUNS_MAX || lost_run_vec_append(&c->lost_runs, run) < 0)
        c->lost_more = true;
}

/* What of the last cluster is behind the end of the file, for who uses it. */
static void tail_note(struct check *c, const struct l2_table *t, uint32_t index, struct l2_entry e)
{
    uint64_t there = (c->data_file ? c->data_bytes : c->file_bytes) - l2_entry_host(e).v;
    if (c->g->l2_entry_bytes == 16) {
        uint32_t per = c->g->cluster_bytes / 32, first = (uint32_t)(there / per);
        if (!((uint32_t)e.bitmap >> first))
            return;
    } else if (e.raw & ENTRY_ZERO) {
        return;
    }
    cost_note(c, (struct lost_run){t->cluster, index, 1, (uint32_t)there});
}

static int tail_look(struct check *c, struct qk_error *err)
{
    CLEANUP_FREE uint8_t *buf = malloc(c->g->cluster_bytes);
    if (!buf)
        return qk_fail_nomem(err);
    for (size_t i = 0; i < c->tables.len; i++) {
        const struct l2_table *t = &c->tables.ptr[i];
        if (!(t->flags & L2_TAIL) ||
            io_read(c->file, t->cluster << c->g->cluster_bits, buf, c->g->cluster_bytes, NULL) < 0)
            continue;
        cut_clean(c, t->cluster, buf);
        for (uint32_t n = 0; n < c->g->l2_entries; n++) {
            struct l2_entry e = l2_entry_load(c->g, buf, n);
            bool stored = l2_entry_host(e).v || (c->data_file && (e.raw & ENTRY_COPIED));
            if (!(e.raw & ENTRY_COMPRESSED) && stored && cut_data(c, l2_entry_host(e).v))
                tail_note(c, t, n, e);
        }
    }
    return 0;
}

static int run_compare(const void *a, const void *b)
{
    const struct lost_run *x = a, *y = b;
    if (x->table != y->table)
        return x->table < y->table ? -1 : 1;
    return x->first < y->first ? -1 : x->first > y->first;
}

/* ---- ranges of one disk ---- */

static void flush_last(struct ranges *r)
{
    if (!r->last.bytes)
        return;
    if (r->count < QK_LOSS_RANGES)
        r->list[r->count] = r->last;
    r->count++;
    r->total += r->last.bytes;
    r->last = (struct qk_guest_range){0};
}

static void emit(struct ranges *r, uint64_t off, uint64_t bytes)
{
    if (off >= r->disk_bytes)
        return;
    bytes = min_u64(bytes, r->disk_bytes - off);
    if (r->last.bytes && r->last.off + r->last.bytes == off) {
        r->last.bytes += bytes;
        return;
    }
    flush_last(r);
    r->last = (struct qk_guest_range){off, bytes};
}

/* The lost entries of the table that L1 entry `index` names. */
static void emit_table(struct cost *k, uint64_t cluster, uint64_t index)
{
    const struct check *c = k->c;
    const struct lost_run *v = c->lost_runs.ptr;
    size_t low = 0, high = c->lost_runs.len;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (v[mid].table < cluster)
            low = mid + 1;
        else
            high = mid;
    }
    for (; low < c->lost_runs.len && v[low].table == cluster; low++) {
        if (!k->runs_left) {
            k->ranges.at_least = true;
            return;
        }
        k->runs_left--;
        uint64_t off = index * k->each + ((uint64_t)v[low].first << c->g->cluster_bits);
        emit(&k->ranges, off + v[low].skip,
             ((uint64_t)v[low].count << c->g->cluster_bits) - v[low].skip);
    }
}

/* With an external data file there are no snapshots, so all L1 entries are active ones. */
static void emit_word(struct cost *k, uint64_t raw, uint64_t index)
{
    uint64_t off = l1_entry_host(raw);
    if (!off)
        return;
    struct l1_verdict v = l1_judge_active(k->c, index, raw);
    bool another = v.problem_count && v.problems[v.problem_count - 1] == PROBLEM_L1_TABLE_TWICE;
    if (v.usable && !another)
        emit_table(k, off >> k->c->g->cluster_bits, index);
    else
        emit(&k->ranges, index * k->each, k->each);
}

static void tell(struct cost *k, const struct snapshot_text *name)
{
    struct ranges *r = &k->ranges;
    flush_last(r);
    const struct qk_check_loss loss = {
        .struct_size = sizeof(loss),
        .snapshot = name ? name->id : NULL,
        .snapshot_name = name ? name->name : NULL,
        .bytes = r->total,
        .disk_bytes = r->disk_bytes,
        .ranges = r->list,
        .range_count = (unsigned)min_u64(r->count, QK_LOSS_RANGES),
        .range_total = r->count,
        .at_least = r->at_least || k->c->lost_more,
    };
    if (!name)
        k->c->result->lost_bytes = r->total;
    else
        k->c->result->lossy_snapshots += r->total != 0;
    if (r->total)
        k->c->opts->on_loss(k->c->opts->opaque, &loss);
}

/* ---- the disks ---- */

/* Without its encryption header nothing of the image can be read. */
static bool all_lost(const struct check *c)
{
    return c->sink.seen[PROBLEM_CRYPTO_HEADER] || c->sink.seen[PROBLEM_CRYPTO_MISSING];
}

static void active_cost(struct cost *k)
{
    struct check *c = k->c;
    k->ranges = (struct ranges){.disk_bytes = c->h->size_bytes};
    if (all_lost(c))
        emit(&k->ranges, 0, c->h->size_bytes);
    for (uint32_t i = 0; i < c->l1_entries && !all_lost(c); i++)
        emit_word(k, c->l1[i], i);
    if (!all_lost(c))
        emit(&k->ranges, c->l1_entries * k->each, c->h->size_bytes);
    tell(k, NULL);
}

/* An L1 table of a snapshot, as far as it is there; the rest is lost. */
static void snapshot_l1_cost(struct cost *k, uint64_t off, uint64_t bytes)
{
    const struct check *c = k->c;
    uint64_t there = min_u64(bytes, c->file_bytes - min_u64(off, c->file_bytes)) / 8;
    if (there > k->words_left) {
        k->ranges.at_least = true;
        return;
    }
    k->words_left -= there;
    for (uint64_t at = 0; at < there; at += L1_CHUNK_WORDS) {
        uint64_t n = min_u64(L1_CHUNK_WORDS, there - at);
        if (io_read(c->file, off + at * 8, k->words, n * 8, NULL) < 0) {
            emit(&k->ranges, at * k->each, n * k->each);
            continue;
        }
        for (uint64_t i = 0; i < n; i++)
            emit_word(k, be64toh(k->words[i]), at + i);
    }
    if (there < bytes / 8)
        emit(&k->ranges, there * k->each, (bytes / 8 - there) * k->each);
}

/* `l1`: offset and bytes of its table; NULL: nobody knows where it is. */
static void snapshot_cost(struct cost *k, uint64_t entry_off, const uint64_t *l1)
{
    struct check *c = k->c;
    struct snapshot_text name;
    k->ranges = (struct ranges){.disk_bytes = snapshot_disk_bytes(c, entry_off)};
    if (all_lost(c) || !l1)
        emit(&k->ranges, 0, k->ranges.disk_bytes);
    else
        snapshot_l1_cost(k, l1[0], l1[1]);
    snapshot_entry_label(c, entry_off, &name);
    tell(k, &name);
}

static bool any(const struct check *c)
{
    const uint64_t *seen = c->sink.seen;
    return c->lost_runs.len || seen[PROBLEM_L1_UNALIGNED] || seen[PROBLEM_L1_OUTSIDE] ||
           seen[PROBLEM_L1_UNREADABLE] || seen[PROBLEM_L1_TABLE_OUTSIDE] ||
           seen[PROBLEM_L1_TABLE_LOST] || seen[PROBLEM_L1_TABLE_MISPLACED] ||
           seen[PROBLEM_L1_CUT] || seen[PROBLEM_L1_TABLE_TWICE] ||
           seen[PROBLEM_SNAPSHOT_L1_OUTSIDE] || c->snapshot_gone.len || all_lost(c);
}

int cost_tell(struct check *c, struct qk_error *err)
{
    if (!c->opts->on_loss)
        return 0;
    sink_flush(&c->sink);
    bool sure = c->data_file ? c->sink.seen[PROBLEM_L2_DATA_FILE_CUT] : c->cut.sure;
    int ret = sure ? tail_look(c, err) : 0;
    if (ret < 0 || !any(c))
        return ret;
    CLEANUP_FREE uint64_t *words = malloc(L1_CHUNK_WORDS * sizeof(*words));
    if (!words)
        return qk_fail_nomem(err);
    if (c->lost_runs.len)
        qsort(c->lost_runs.ptr, c->lost_runs.len, sizeof(*c->lost_runs.ptr), run_compare);
    struct cost k = {.c = c,
                     .each = (uint64_t)c->g->l2_entries << c->g->cluster_bits,
                     .words_left = max_u64(WORDS_AT_LEAST, c->file_bytes / 2),
                     .runs_left = max_u64(WORDS_AT_LEAST, c->file_bytes / 2),
                     .words = words};
    active_cost(&k);
    for (size_t i = 0; i + 1 < c->snapshot_kept.len; i += 2)
        snapshot_cost(&k, c->snapshot_kept.ptr[i], &c->snapshot_l1.ptr[i]);
    for (size_t i = 0; i < c->snapshot_gone.len; i++)
        snapshot_cost(&k, c->snapshot_gone.ptr[i], NULL);
    return 0;
}
