/*
 * refcount_width.c - see refcount_width.h. Judge, place, write, switch, adopt. The new structure
 * counts itself and no longer the old one, so the counts are exact on either side of the switch
 * (INV-1), and what the old one occupied is handed out only after it is stable (INV-2). Memory: the
 * new table, PIECE_BYTES of blocks twice, and the places of both structures as runs.
 */
#include "image/refcount_width.h"

#include "base/bytes.h"
#include "format/refcount_convert.h"

#define PIECE_BYTES (2u << 20) /* at least a cluster */
#define STEP        4096u      /* counts that are converted at once */
#define TABLE_MAX   (QCOW2_MAX_REFTABLE_BYTES / sizeof(uint64_t))
#define WANTED      UINT64_C(1) /* in the new table: a block that has no place yet */

/* Clusters that are looked for in ascending order. */
struct run_list {
    struct cluster_run_vec v;
    size_t at; /* the first run that may matter for what comes next */
};

struct rewidth {
    struct image *img;
    struct geometry g;            /* the new one */
    uint64_t *table;              /* of TABLE_MAX entries, host-endian: 0, WANTED or a place */
    uint64_t wanted, blocks;      /* blocks without a place; all */
    uint64_t end;                 /* one past the last block's index */
    struct cluster_run table_run; /* count 0: none yet */
    struct cluster_run spare;     /* reserved for blocks, among `own` */
    struct run_list own;          /* clusters of new blocks; at last with the table, and sorted */
    struct run_list old;          /* of the old structure, sorted */
    uint8_t *in;                  /* old blocks from in_first on */
    uint64_t in_first, in_count;  /* in blocks */
    uint8_t *out;                 /* new blocks that will stand together at out_off */
    uint64_t out_off, out_bytes;
    const struct qk_progress *progress;
    uint64_t done, total;
};

static uint64_t piece_blocks(const struct image *img)
{
    return max_u64(PIECE_BYTES / img->g.cluster_bytes, 1);
}

static int by_first(const void *a, const void *b)
{
    const struct cluster_run *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

static void sort_runs(struct cluster_run_vec *v)
{
    if (v->len)
        qsort(v->ptr, v->len, sizeof(*v->ptr), by_first);
}

static int add_run(struct cluster_run_vec *v, struct cluster_run run, struct qk_error *err)
{
    struct cluster_run *last = v->len ? &v->ptr[v->len - 1] : NULL;
    if (last && last->first + last->count == run.first) {
        last->count += run.count;
        return 0;
    }
    return cluster_run_vec_append(v, run) < 0 ? qk_fail_nomem(err) : 0;
}

/* ---- counts of the old structure ---- */

static int find_old(struct rewidth *w, struct qk_error *err)
{
    const struct reftable *t = &w->img->reftable;
    const unsigned bits = w->img->g.cluster_bits;
    int ret = 0;
    for (uint64_t i = 0; i < t->count && ret == 0; i++) {
        uint64_t off;
        ret = refblock_offset(w->img, i, &off, err);
        if (ret == 0 && off)
            ret = add_run(&w->old.v, (struct cluster_run){off >> bits, 1, false}, err);
    }
    if (ret == 0)
        ret = add_run(&w->old.v, (struct cluster_run){t->off >> bits, t->count * 8 >> bits, false},
                      err);
    sort_runs(&w->old.v);
    return ret;
}

/* Loads the piece with old block `block`: neighbours in the file with one read. */
static int load_piece(struct rewidth *w, uint64_t block, struct qk_error *err)
{
    struct image *img = w->img;
    const uint64_t cluster = img->g.cluster_bytes;
    if (block >= w->in_first && block < w->in_first + w->in_count)
        return 0;
    const uint64_t *entries = img->reftable.entries;
    uint64_t max = min_u64(piece_blocks(img), img->reftable.count - block), n = 1;
    while (n < max && entries[block + n] == entries[block] + n * cluster)
        n++;
    w->in_first = block;
    w->in_count = 0;
    io_event(img->file, "refblock_load");
    int ret = io_read(img->file, entries[block], w->in, n * cluster, err);
    w->in_count = ret == 0 ? n : 0;
    return ret;
}

/* Adds `delta` to the counts of clusters [first, first + n) that are in the runs; a count of 0 is
 * not lowered (in a damaged image). */
static void add_runs(struct run_list *l, uint64_t first, uint64_t n, int delta, uint64_t *counts)
{
    const struct cluster_run *runs = l->v.ptr;
    while (l->at < l->v.len && runs[l->at].first + runs[l->at].count <= first)
        l->at++;
    for (size_t i = l->at; i < l->v.len && runs[i].first < first + n; i++) {
        uint64_t lo = max_u64(runs[i].first, first);
        uint64_t hi = min_u64(runs[i].first + runs[i].count, first + n);
        for (uint64_t c = lo; c < hi; c++)
            if (delta > 0 || counts[c - first])
                counts[c - first] += (uint64_t)(int64_t)delta;
    }
}

/* What the old structure counts for n clusters (in one old block), but for itself. */
static int load_counts(struct rewidth *w, uint64_t first, uint64_t n, uint64_t *counts,
                       struct qk_error *err)
{
    const struct image *img = w->img;
    uint64_t block = first >> img->g.refblock_bits;
    if (block >= img->reftable.count || !img->reftable.entries[block]) {
        memset(counts, 0, n * sizeof(*counts));
        return 0;
    }
    int ret = load_piece(w, block, err);
    if (ret < 0)
        return ret;
    const uint8_t *bytes = w->in + (block - w->in_first) * img->g.cluster_bytes;
    uint64_t index = first & ((UINT64_C(1) << img->g.refblock_bits) - 1);
    refcount_unpack(img->g.refcount_order, bytes, index, n, counts);
    add_runs(&w->old, first, n, -1, counts);
    return 0;
}

/* How many counts a step takes: never across the border of a block, old or new. */
static uint64_t step_of(const struct rewidth *w)
{
    unsigned bits =
        w->g.refblock_bits < w->img->g.refblock_bits ? w->g.refblock_bits : w->img->g.refblock_bits;
    return min_u64(STEP, UINT64_C(1) << bits);
}

static int report(struct rewidth *w, struct qk_error *err)
{
    if (w->progress && w->progress->report &&
        w->progress->report(w->progress->opaque, min_u64(w->done, w->total), w->total))
        return qk_fail(err, -ECANCELED, "canceled");
    return 0;
}

/* ---- judge ---- */

static int want_block(struct rewidth *w, uint64_t index, struct qk_error *err)
{
    if (index >= TABLE_MAX)
        return qk_fail_at(err, -EFBIG, WHERE(w->img->file->name, "refcount table", QK_OFFSET_NONE),
                          "the refcount table would exceed %u bytes: the image is too large for "
                          "refcounts of %" PRIu32 " bits with this cluster size",
                          QCOW2_MAX_REFTABLE_BYTES, w->g.refcount_bits);
    if (w->table[index])
        return 0;
    w->table[index] = WANTED;
    w->wanted++;
    w->blocks++;
    w->end = max_u64(w->end, index + 1);
    return 0;
}

static int does_not_fit(const struct rewidth *w, uint64_t first, const uint64_t *counts,
                        struct qk_error *err)
{
    uint64_t i = 0;
    while (counts[i] <= w->g.refcount_max)
        i++;
    uint64_t off = (first + i) << w->img->g.cluster_bits;
    return qk_fail_at(err, -EINVAL, WHERE(w->img->file->name, "refcount block", QK_OFFSET_NONE),
                      "Cannot decrease refcount entry width to %" PRIu32
                      " bits: Cluster at offset %#" PRIx64 " has a refcount of %" PRIu64,
                      w->g.refcount_bits, off, counts[i]);
}

static int judge_block(struct rewidth *w, uint64_t block, struct qk_error *err)
{
    const uint64_t per_block = UINT64_C(1) << w->img->g.refblock_bits, step = step_of(w);
    uint64_t counts[STEP];
    int ret = 0;
    for (uint64_t i = 0; i < per_block && ret == 0; i += step) {
        uint64_t first = block * per_block + i, all = 0;
        ret = load_counts(w, first, step, counts, err);
        for (uint64_t k = 0; ret == 0 && k < step; k++)
            all |= counts[k];
        if (ret == 0 && all & ~w->g.refcount_max)
            ret = does_not_fit(w, first, counts, err);
        if (ret == 0 && all)
            ret = want_block(w, first >> w->g.refblock_bits, err);
    }
    return ret;
}

static int judge(struct rewidth *w, struct qk_error *err)
{
    const struct reftable *t = &w->img->reftable;
    int ret = find_old(w, err);
    w->total = 0;
    for (uint64_t i = 0; i < t->count; i++)
        w->total += t->entries[i] != 0;
    w->total *= 2;
    for (uint64_t i = 0; i < t->count && ret == 0; i++) {
        if (!t->entries[i])
            continue;
        ret = judge_block(w, i, err);
        w->done++;
        if (ret == 0 && w->done % 16 == 0)
            ret = report(w, err);
    }
    return ret;
}

/* ---- place ---- */

/* Clusters of the run are marked in the free map; the new structure will count them. */
static int want_counts(struct rewidth *w, struct cluster_run run, struct qk_error *err)
{
    int ret = overlap_check(w->img, 0, run.first << w->img->g.cluster_bits,
                            run.count << w->img->g.cluster_bits, err);
    uint64_t last = (run.first + run.count - 1) >> w->g.refblock_bits;
    for (uint64_t i = run.first >> w->g.refblock_bits; i <= last && ret == 0; i++)
        ret = want_block(w, i, err);
    return ret;
}

static int reserve_spare(struct rewidth *w, struct qk_error *err)
{
    int ret = alloc_reserve_lowest(w->img, w->wanted, &w->spare, err);
    if (ret < 0)
        return ret;
    ret = add_run(&w->own.v, w->spare, err);
    if (ret == 0)
        return want_counts(w, w->spare, err);
    alloc_unreserve(w->img, w->spare);
    return ret;
}

/* What is reserved is never more than what is wanted: in the end nothing is left over. */
static int place_blocks(struct rewidth *w, struct qk_error *err)
{
    for (uint64_t i = 0; i < w->end && w->wanted; i++) {
        if (w->table[i] != WANTED)
            continue;
        int ret = w->spare.count ? 0 : reserve_spare(w, err);
        if (ret < 0)
            return ret;
        w->table[i] = w->spare.first++ << w->img->g.cluster_bits;
        w->spare.count--;
        w->wanted--;
    }
    return 0;
}

static uint64_t table_clusters(const struct rewidth *w)
{
    return div_round_up(w->end * sizeof(uint64_t), w->img->g.cluster_bytes);
}

/* In one run. One that has become too small is given back: nothing has been written yet. */
static int place_table(struct rewidth *w, struct qk_error *err)
{
    uint64_t clusters = table_clusters(w);
    if (w->table_run.count >= clusters)
        return 0;
    if (w->table_run.count)
        alloc_unreserve(w->img, w->table_run);
    w->table_run.count = 0;
    struct cluster_run run;
    int ret = alloc_reserve(w->img, clusters, &run, err);
    if (ret < 0)
        return ret;
    w->table_run = run;
    return want_counts(w, run, err);
}

static int place(struct rewidth *w, struct qk_error *err)
{
    int ret = 0;
    while (ret == 0 && (w->wanted || w->table_run.count < table_clusters(w))) {
        ret = place_blocks(w, err);
        if (ret == 0)
            ret = place_table(w, err);
    }
    return ret;
}

static void unplace(struct rewidth *w)
{
    for (size_t i = 0; i < w->own.v.len; i++) {
        overlap_forget(w->img, w->own.v.ptr[i]);
        alloc_unreserve(w->img, w->own.v.ptr[i]);
    }
    if (w->table_run.count)
        alloc_unreserve(w->img, w->table_run);
    alloc_trim_end(w->img, w->img->end_clusters);
}

/* ---- write ---- */

static int flush_out(struct rewidth *w, struct qk_error *err)
{
    if (!w->out_bytes)
        return 0;
    io_event(w->img->file, "refblock_alloc_write_blocks");
    int ret = io_write(w->img->file, w->out_off, w->out, w->out_bytes, 0, err);
    image_note_unsynced(w->img);
    w->out_bytes = 0;
    return ret;
}

static int build_block(struct rewidth *w, uint64_t index, uint8_t *block, struct qk_error *err)
{
    const uint64_t per_block = UINT64_C(1) << w->g.refblock_bits, step = step_of(w);
    uint64_t counts[STEP];
    int ret = 0;
    for (uint64_t i = 0; i < per_block && ret == 0; i += step) {
        uint64_t first = index * per_block + i;
        ret = load_counts(w, first, step, counts, err);
        add_runs(&w->own, first, step, 1, counts);
        refcount_pack(w->g.refcount_order, block, i, step, counts);
    }
    return ret;
}

static int write_block(struct rewidth *w, uint64_t index, struct qk_error *err)
{
    const uint64_t cluster = w->img->g.cluster_bytes, off = w->table[index];
    bool joins = w->out_bytes && off == w->out_off + w->out_bytes &&
                 w->out_bytes < piece_blocks(w->img) * cluster;
    int ret = joins ? 0 : flush_out(w, err);
    if (ret < 0)
        return ret;
    if (!joins)
        w->out_off = off;
    ret = build_block(w, index, w->out + w->out_bytes, err);
    w->out_bytes += cluster;
    return ret;
}

static int write_blocks(struct rewidth *w, struct qk_error *err)
{
    const uint64_t half = w->total / 2;
    uint64_t written = 0;
    int ret = add_run(&w->own.v, w->table_run, err);
    sort_runs(&w->own.v);
    w->old.at = 0;
    for (uint64_t i = 0; i < w->end && ret == 0; i++) {
        if (!w->table[i])
            continue;
        ret = write_block(w, i, err);
        w->done = half + half * ++written / w->blocks;
        if (ret == 0 && written % 16 == 0)
            ret = report(w, err);
    }
    return ret < 0 ? ret : flush_out(w, err);
}

static int write_table(struct rewidth *w, struct qk_error *err)
{
    uint64_t bytes = w->table_run.count << w->img->g.cluster_bits;
    CLEANUP_FREE uint8_t *buf = aligned_alloc(4096, round_up(bytes, 4096));
    if (!buf)
        return qk_fail_nomem(err);
    memset(buf, 0, bytes);
    for (uint64_t i = 0; i < w->end; i++)
        store_be64(buf + i * 8, w->table[i]);
    io_event(w->img->file, "refblock_alloc_write_table");
    int ret =
        io_write(w->img->file, w->table_run.first << w->img->g.cluster_bits, buf, bytes, 0, err);
    image_note_unsynced(w->img);
    return ret;
}

/* ---- switch ---- */

static int switch_header(struct rewidth *w, struct qk_error *err)
{
    struct image *img = w->img;
    int ret = io_flush(img->file, err);
    if (ret < 0)
        return ret;
    LOCK_SCOPE(&img->header_lock);
    const struct header old = img->h;
    struct header h = old;
    h.reftable_off = w->table_run.first << img->g.cluster_bits;
    h.reftable_clusters = (uint32_t)w->table_run.count;
    h.refcount_order = w->g.refcount_order;
    header_adopt(img, &h);
    io_event(img->file, "refblock_alloc_switch_table");
    ret = header_io_write(img, err);
    if (ret == 0)
        ret = io_flush(img->file, err);
    if (ret < 0) {
        header_adopt(img, &old);
        header_io_restore(img, 0);
    }
    return ret;
}

/* ---- adopt ---- */

/* What memory needs for the new structure; made before the switch, so that nothing fails behind
 * it. */
struct adoption {
    struct freemap *free;
    uint64_t *entries;
    uint64_t count;
};

static int prepare(struct rewidth *w, struct adoption *a, struct qk_error *err)
{
    a->count = (w->table_run.count << w->img->g.cluster_bits) / sizeof(uint64_t);
    a->entries = calloc(a->count, sizeof(uint64_t));
    if (!a->entries)
        return qk_fail_nomem(err);
    memcpy(a->entries, w->table, w->end * sizeof(uint64_t));
    for (uint64_t i = 0; i < w->end; i++) {
        struct cluster_run block = {w->table[i] >> w->img->g.cluster_bits, 1, false};
        if (block.first && overlap_note(w->img, block, OVERLAP_REFCOUNT_BLOCK) < 0)
            return qk_fail_nomem(err);
    }
    return freemap_new(a->count << w->g.refblock_bits, refcount_load_leaf, w->img, &a->free, err);
}

static void give_back_old(struct rewidth *w)
{
    struct image *img = w->img;
    for (size_t i = 0; i < w->old.v.len; i++) {
        const struct cluster_run *run = &w->old.v.ptr[i];
        overlap_forget(img, *run);
        if (img->opts.discard_to_file)
            io_discard(img->file, run->first << img->g.cluster_bits,
                       run->count << img->g.cluster_bits, NULL);
    }
    alloc_trim_end(img, img->end_clusters);
}

static void adopt(struct rewidth *w, struct adoption *a)
{
    struct image *img = w->img;
    struct reftable *t = &img->reftable;
    const struct cluster_run *last = &w->own.v.ptr[w->own.v.len - 1];
    cache_drop(&img->refcounts);
    free(t->entries);
    t->entries = TAKE(a->entries);
    t->count = a->count;
    t->off = img->h.reftable_off;
    freemap_free(img->free);
    img->free = TAKE(a->free);
    img->rc = refcount_ops(w->g.refcount_order);
    img->g.refcount_order = w->g.refcount_order;
    img->g.refcount_bits = w->g.refcount_bits;
    img->g.refblock_bits = w->g.refblock_bits;
    img->g.refcount_max = w->g.refcount_max;
    image_note_end(img, last->first + last->count);
    if (img->fresh_from != UINT64_MAX)
        img->fresh_from = max_u64(img->fresh_from, img->end_clusters);
    give_back_old(w);
}

/* ---- all of it ---- */

static int begin(struct rewidth *w, struct image *img, unsigned order, struct qk_error *err)
{
    struct header h = img->h;
    h.refcount_order = order;
    *w = (struct rewidth){.img = img, .g = geometry_of(&h)};
    uint64_t bytes = round_up(piece_blocks(img) * img->g.cluster_bytes, 4096);
    w->table = calloc(TABLE_MAX, sizeof(uint64_t)); /* untouched pages of it take no memory */
    w->in = aligned_alloc(4096, bytes);
    w->out = aligned_alloc(4096, bytes);
    return w->table && w->in && w->out ? 0 : qk_fail_nomem(err);
}

static void end(struct rewidth *w)
{
    cluster_run_vec_free(&w->own.v);
    cluster_run_vec_free(&w->old.v);
    free(w->table);
    free(w->in);
    free(w->out);
}

static int write_all(struct rewidth *w, struct adoption *a, struct qk_error *err)
{
    int ret = write_blocks(w, err);
    if (ret == 0)
        ret = write_table(w, err);
    if (ret == 0)
        ret = prepare(w, a, err);
    return ret < 0 ? ret : switch_header(w, err);
}

static int change(struct rewidth *w, struct qk_error *err)
{
    struct adoption a = {0};
    int ret = judge(w, err);
    if (ret == 0)
        ret = place(w, err);
    if (ret == 0)
        ret = write_all(w, &a, err);
    if (ret == 0)
        adopt(w, &a);
    else if (!__atomic_load_n(&w->img->header_uncertain, __ATOMIC_ACQUIRE))
        /* Where the file may name the new structure, nobody else gets its clusters. */
        unplace(w);
    freemap_free(a.free);
    free(a.entries);
    return ret;
}

int refcount_width_judge(struct image *img, unsigned order, struct qk_error *err)
{
    struct rewidth w;
    int ret = begin(&w, img, order, err);
    if (ret == 0)
        ret = judge(&w, err);
    end(&w);
    return ret;
}

int refcount_width_change(struct image *img, unsigned order, const struct qk_progress *progress,
                          struct qk_error *err)
{
    struct rewidth w;
    int ret = begin(&w, img, order, err);
    w.progress = progress;
    if (ret == 0)
        ret = change(&w, err);
    end(&w);
    return ret;
}
