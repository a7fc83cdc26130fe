/*
 * walk.c - phase 2: every distinct L2 table, read once, in the order of the file, by several
 * threads. Counts what the tables name and marks those with something to report; the report reads
 * them again (table_report.c). A run of entries that name consecutive clusters is counted as one.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"

#define BATCH_BYTES (UINT64_C(1) << 20)

/* ---- the list of tables ---- */

static int table_compare(const void *a, const void *b)
{
    const struct l2_table *x = a, *y = b;
    if (x->cluster != y->cluster)
        return x->cluster < y->cluster ? -1 : 1;
    return x->first_l1 < y->first_l1 ? -1 : x->first_l1 > y->first_l1;
}

void tables_compact(struct l2_vec *v)
{
    if (!v->len)
        return;
    qsort(v->ptr, v->len, sizeof(*v->ptr), table_compare);
    size_t kept = 0;
    for (size_t i = 1; i < v->len; i++) {
        struct l2_table *last = &v->ptr[kept], *t = &v->ptr[i];
        if (t->cluster != last->cluster) {
            v->ptr[++kept] = *t;
            continue;
        }
        last->active += t->active;
        if (!last->snapshot) {
            last->snapshot = t->snapshot;
            last->snapshot_l1 = t->snapshot_l1;
        }
        if (!try_add_u64(last->refs, t->refs, &last->refs))
            last->refs = UINT64_MAX;
    }
    v->len = kept + 1;
}

struct l2_table *table_find(const struct check *c, uint64_t cluster)
{
    size_t low = 0, high = c->tables.len;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (c->tables.ptr[mid].cluster < cluster)
            low = mid + 1;
        else
            high = mid;
    }
    if (low == c->tables.len || c->tables.ptr[low].cluster != cluster)
        return NULL;
    return &c->tables.ptr[low];
}

/* ---- judging one entry ---- */

static void add_problem(struct l2_verdict *v, enum problem_id id)
{
    v->problems[v->problem_count++] = id;
}

static void judge_range(const struct check *c, struct l2_verdict *v)
{
    struct refmap_span span;
    v->counted = range_span(c, v->off, v->bytes, &span);
    if (!v->counted)
        add_problem(v, PROBLEM_L2_OUTSIDE);
}

static void judge_compressed(const struct check *c, struct l2_entry e, struct l2_verdict *v)
{
    if (e.raw & ENTRY_COPIED)
        add_problem(v, PROBLEM_L2_COMPRESSED_COPIED);
    if (c->data_file) {
        add_problem(v, PROBLEM_L2_COMPRESSED_DATA_FILE);
        return;
    }
    /* It is read as a compressed cluster all the same, so its bytes stay counted. */
    if (e.bitmap)
        add_problem(v, PROBLEM_L2_COMPRESSED_BITMAP);
    struct compressed_extent ext = compressed_decode(c->g, e.raw & ~ENTRY_COPIED);
    v->allocated = v->compressed = true;
    v->off = ext.off;
    v->bytes = ext.bytes;
    judge_range(c, v);
    if (v->counted && cut_stream(c, v->off, v->bytes)) {
        add_problem(v, PROBLEM_L2_COMPRESSED_CUT);
        v->counted = !problem_fixable(c->opts, PROBLEM_L2_COMPRESSED_CUT);
    }
}

static void judge_unallocated(struct l2_entry e, struct l2_verdict *v)
{
    if (e.bitmap & UINT32_MAX)
        add_problem(v, PROBLEM_L2_BITMAP_UNALLOCATED);
}

static bool holds_data(const struct check *c, struct l2_entry e)
{
    return c->g->l2_entry_bytes == 16 ? (e.bitmap & UINT32_MAX) != 0 : !(e.raw & ENTRY_ZERO);
}

static void judge_allocated(const struct check *c, struct l2_entry e, struct l2_verdict *v)
{
    v->off = l2_entry_host(e).v;
    v->bytes = c->g->cluster_bytes;
    if (e.bitmap >> 32 & e.bitmap)
        add_problem(v, PROBLEM_L2_BITMAP_CONTRADICTS);
    if (!is_aligned(v->off, c->g->cluster_bytes)) {
        enum problem_id id = holds_data(c, e) ? PROBLEM_L2_UNALIGNED : PROBLEM_L2_ZERO_UNALIGNED;
        add_problem(v, id);
        if (problem_fixable(c->opts, id))
            return;
    }
    v->allocated = true;
    if (!c->data_file)
        judge_range(c, v);
}

/* A cluster in an external data file has one place only (Format, incompatible bit 2). */
static void judge_place(struct l2_entry e, uint64_t guest, struct l2_verdict *v)
{
    if (!v->problem_count && guest != QK_OFFSET_NONE && l2_entry_host(e).v != guest) {
        v->bytes = guest;
        add_problem(v, PROBLEM_L2_DATA_FILE_OFFSET);
    }
}

void l2_judge(const struct check *c, struct l2_entry e, uint64_t guest, struct l2_verdict *v)
{
    *v = (struct l2_verdict){0};
    if (e.raw & ENTRY_COMPRESSED) {
        judge_compressed(c, e, v);
        return;
    }
    bool zero = (e.raw & ENTRY_ZERO) && c->g->l2_entry_bytes == 8;
    if ((e.raw & L2_RESERVED_MASK) || (zero && c->h->version < 3))
        add_problem(v, PROBLEM_L2_RESERVED);
    bool at_zero = c->data_file && (e.raw & ENTRY_COPIED) && !zero;
    if (l2_entry_host(e).v || at_zero)
        judge_allocated(c, e, v);
    else
        judge_unallocated(e, v);
    if (c->data_file && v->allocated)
        judge_place(e, guest, v);
    if (c->data_file && v->allocated && !v->problem_count && holds_data(c, e) &&
        v->off >= c->data_bytes && guest < c->h->size_bytes)
        add_problem(v, PROBLEM_L2_DATA_FILE_CUT);
}

/* ---- one table ---- */

struct walk {
    struct check *c;
    struct l2_table *t;
    uint64_t allocated, fragmented, compressed;
    uint64_t
        expected_off; /* where the next cluster would be were it contiguous; 0: no cluster yet */
};

static unsigned copied_mark(const struct walk *w, uint64_t raw)
{
    if (!w->t->active)
        return 0;
    return raw & ENTRY_COPIED ? REF_COPIED : REF_PLAIN;
}

static void account(struct walk *w, uint64_t off, uint64_t clusters)
{
    w->allocated += clusters;
    if (w->expected_off && off != w->expected_off)
        w->fragmented++;
    w->expected_off = off + clusters * w->c->g->cluster_bytes;
}

static int walk_odd_entry(struct walk *w, uint32_t index, struct l2_entry e)
{
    struct check *c = w->c;
    struct l2_verdict v;
    l2_judge(c, e, table_guest_off(c, w->t, index), &v);
    for (unsigned i = 0; i < v.problem_count; i++)
        w->t->flags |= problems[v.problems[i]].repair == QK_REPAIR_SAFE ? L2_BAD : L2_BAD | L2_HURT;
    if (v.compressed) {
        w->allocated++;
        w->compressed++;
        w->fragmented++;
    } else if (v.allocated) {
        account(w, v.off, 1);
        if (c->data_file && w->t->active && !(e.raw & ENTRY_COPIED))
            w->t->flags |= L2_SUSPECT;
    }
    struct refmap_span span;
    if (v.allocated && cut_data(c, v.off))
        w->t->flags |= L2_TAIL;
    if (!v.counted || !range_span(c, v.off, v.bytes, &span))
        return 0;
    return refmap_add(&c->refs, span, w->t->refs, v.compressed ? 0 : copied_mark(w, e.raw));
}

/* Entries that are what nearly all are: an aligned cluster inside the file, without oddities.
 * Returns how many from `i` on follow each other in the file; 0: look at entry i closely. */
static uint32_t plain_run(const struct check *c, const uint8_t *table, uint32_t i)
{
    const uint32_t step = c->g->l2_entry_bytes, n = c->g->l2_entries;
    const uint64_t odd = ~(ENTRY_COPIED | (L2_OFFSET_MASK & ~(uint64_t)(c->g->cluster_bytes - 1)));
    uint64_t raw = load_be64(table + (size_t)i * step), off = raw & L2_OFFSET_MASK;
    if ((raw & odd) || !off || off >= c->file_bytes || c->data_file)
        return 0;
    uint64_t room = (c->file_bytes - off) >> c->g->cluster_bits;
    uint32_t limit = (uint32_t)min_u64(n - i, room), run = 0;
    while (run < limit) {
        const uint8_t *p = table + (size_t)(i + run) * step;
        if (load_be64(p) != raw + (uint64_t)run * c->g->cluster_bytes)
            break;
        if (step == 16 && (load_be32(p + 8) & load_be32(p + 12)))
            break;
        run++;
    }
    return run;
}

static int walk_table(struct walk *w, const uint8_t *table)
{
    struct check *c = w->c;
    for (uint32_t i = 0; i < c->g->l2_entries;) {
        struct l2_entry e = l2_entry_load(c->g, table, i);
        uint32_t run = 1;
        int ret = 0;
        if (e.raw | e.bitmap) {
            run = plain_run(c, table, i);
            if (run) {
                uint64_t off = l2_entry_host(e).v;
                struct refmap_span span = {off >> c->g->cluster_bits, run};
                account(w, off, run);
                ret = refmap_add(&c->refs, span, w->t->refs, copied_mark(w, e.raw));
            } else {
                run = 1;
                ret = walk_odd_entry(w, i, e);
            }
        }
        if (ret < 0)
            return ret;
        i += run;
    }
    return 0;
}

/* ---- many tables ---- */

static size_t batch_tables(const struct check *c)
{
    return (size_t)max_u64(1, BATCH_BYTES >> c->g->cluster_bits);
}

/* Tables that lie side by side in the file come with one read; false: read them one by one. */
static bool read_adjacent(struct check *c, const struct l2_table *t, size_t n, uint8_t *buf)
{
    return io_read(c->file, t->cluster << c->g->cluster_bits, buf, n << c->g->cluster_bits, NULL) ==
           0;
}

/* How many of n tables lie side by side. */
static size_t adjacent(const struct l2_table *t, size_t n)
{
    size_t run = 1;
    while (run < n && t[run].cluster == t->cluster + run)
        run++;
    return run;
}

static void announce_batch(struct check *c, uint64_t item)
{
    size_t i = item * batch_tables(c), end = min_u64(c->tables.len, i + batch_tables(c));
    while (i < end) {
        const struct l2_table *t = &c->tables.ptr[i];
        size_t n = adjacent(t, end - i);
        io_will_read(c->file, t->cluster << c->g->cluster_bits, n << c->g->cluster_bits);
        i += n;
    }
}

static int walk_one(struct check *c, struct l2_table *t, const uint8_t *bytes, struct walk *sum,
                    struct qk_error *err)
{
    struct walk w = {.c = c, .t = t};
    struct refmap_span self = {t->cluster, 1};
    if (refmap_add(&c->refs, self, t->refs, 0) < 0)
        return qk_fail_nomem(err);
    if (!bytes) {
        t->flags |= L2_BAD | L2_UNREAD;
        return 0;
    }
    if (cut_table(c, t->cluster))
        t->flags |= L2_BAD;
    if (walk_table(&w, bytes) < 0)
        return qk_fail_nomem(err);
    sum->allocated += w.allocated * t->active;
    sum->fragmented += w.fragmented * t->active;
    sum->compressed += w.compressed * t->active;
    return 0;
}

static int walk_adjacent(struct check *c, struct l2_table *t, size_t n, uint8_t *buf,
                         struct walk *sum, struct qk_error *err)
{
    bool all = read_adjacent(c, t, n, buf);
    for (size_t i = 0; i < n; i++) {
        uint8_t *bytes = buf + (i << c->g->cluster_bits);
        bool there = all || read_adjacent(c, &t[i], 1, bytes);
        cut_clean(c, t[i].cluster, bytes);
        int ret = walk_one(c, &t[i], there ? bytes : NULL, sum, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static void note_batch(struct check *c, const struct walk *sum, unsigned seen)
{
    LOCK_SCOPE(&c->lock);
    c->result->allocated_clusters += sum->allocated;
    c->result->fragmented_clusters += sum->fragmented;
    c->result->compressed_clusters += sum->compressed;
    c->tables_bad |= (seen & L2_BAD) != 0;
    c->copied_suspect |= (seen & L2_SUSPECT) != 0;
}

static int walk_batch(struct check *c, uint64_t item, void *scratch, struct qk_error *err)
{
    size_t i = item * batch_tables(c), end = min_u64(c->tables.len, i + batch_tables(c));
    struct l2_table *t = c->tables.ptr;
    struct walk sum = {0};
    uint8_t seen = 0;
    uint64_t done = end - i;
    while (i < end) {
        size_t n = adjacent(&t[i], end - i);
        int ret = walk_adjacent(c, &t[i], n, scratch, &sum, err);
        if (ret < 0)
            return ret;
        for (; n; n--)
            seen |= t[i++].flags;
    }
    note_batch(c, &sum, seen);
    return progress_add(c, done, err);
}

int walk_tables(struct check *c, struct qk_error *err)
{
    const struct parallel_job job = {
        .items = div_round_up(c->tables.len, batch_tables(c)),
        .scratch_bytes = batch_tables(c) << c->g->cluster_bits,
        .fn = walk_batch,
        .will_read = announce_batch,
    };
    return parallel_for(c, &job, err);
}
