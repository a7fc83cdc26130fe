/*
 * shadow.c - counting: refcount blocks as they will be, window by window; see shadow.h. Upholds
 * INV-1 by refusing to go on where counts and references contradict each other.
 */
#include "image/shadow.h"

#include "base/bytes.h"

static uint64_t per_block(const struct shadow *sh)
{
    return UINT64_C(1) << sh->img->g.refblock_bits;
}

/* ---- marking ---- */

static int cover(struct shadow *sh, uint64_t index, struct qk_error *err)
{
    if (index < sh->blocks.len)
        return 0;
    if (shadow_block_vec_reserve(&sh->blocks, index + 1) < 0)
        return qk_fail_nomem(err);
    memset(sh->blocks.ptr + sh->blocks.len, 0,
           (index + 1 - sh->blocks.len) * sizeof(*sh->blocks.ptr));
    sh->blocks.len = index + 1;
    return 0;
}

int shadow_mark(struct shadow *sh, struct cluster_run run, struct qk_error *err)
{
    uint64_t last = (run.first + run.count - 1) >> sh->img->g.refblock_bits;
    int ret = cover(sh, last, err);
    for (uint64_t i = run.first >> sh->img->g.refblock_bits; i <= last && ret == 0; i++)
        sh->blocks.ptr[i].changed = true;
    return ret;
}

/* ---- counting ---- */

static int contradiction(struct shadow *sh, uint64_t cluster, const struct refcount_step *step,
                         struct qk_error *err)
{
    const struct image *img = sh->img;
    uint64_t base = sh->window * shadow_per_window(sh);
    uint64_t value = img->rc->get(sh->counts, cluster - base);
    struct where where = {img->file->name, "refcount block", QK_OFFSET_NONE};
    if (step->down || value < step->least)
        return qk_fail_at(err, -EIO, &where,
                          "refcount of cluster %" PRIu64 " is %" PRIu64
                          ", which is less than its references; run a check with repair",
                          cluster, value);
    sh->needed_order = img->g.refcount_order + 1;
    return qk_fail_at(err, -ERANGE, &where,
                      "refcounts of %" PRIu32 " bits cannot express how often cluster %" PRIu64
                      " would be shared; an image with refcount_bits=%u can",
                      img->g.refcount_bits, cluster, 1u << sh->needed_order);
}

int shadow_count(struct shadow *sh, struct cluster_run run, const struct refcount_step *step,
                 struct qk_error *err)
{
    uint64_t base = sh->window * shadow_per_window(sh);
    uint64_t lo = max_u64(run.first, base);
    uint64_t hi = min_u64(run.first + run.count, base + shadow_per_window(sh));
    if (lo >= hi)
        return 0;
    uint64_t n = refcount_step(sh->img->rc, sh->counts, lo - base, hi - lo, step);
    if (n < hi - lo)
        return contradiction(sh, lo + n, step, err);
    return shadow_mark(sh, (struct cluster_run){lo, hi - lo, false}, err);
}

struct feed {
    struct shadow *sh;
    struct refcount_step step;
    struct l2_table_vec *flagged; /* NULL: not wanted */
};

static int feed_run(void *opaque, struct cluster_run run, struct qk_error *err)
{
    struct feed *f = opaque;
    return shadow_count(f->sh, run, &f->step, err);
}

/* Normal entries only: a compressed one has no such flag. */
static bool has_flags(const struct geometry *g, const uint8_t *bytes)
{
    uint64_t any = 0;
    for (uint32_t i = 0; i < g->l2_entries; i++) {
        uint64_t raw = load_be64(bytes + (size_t)i * g->l2_entry_bytes);
        any |= raw & ~(raw << 1) & -(uint64_t)((raw & L2_OFFSET_MASK) != 0);
    }
    return any & ENTRY_COPIED;
}

static int feed_table(void *opaque, const struct l2_table *t, uint8_t *bytes, struct qk_error *err)
{
    struct feed *f = opaque;
    struct image *img = f->sh->img;
    f->step.amount = t->uses;
    if (f->flagged && has_flags(&img->g, bytes) && l2_table_vec_append(f->flagged, *t) < 0)
        return qk_fail_nomem(err);
    int ret = feed_run(f, (struct cluster_run){image_cluster_of(img, t->off), 1, false}, err);
    return ret < 0 ? ret : l2_table_runs(img, t, bytes, feed_run, f, err);
}

/* ---- windows ---- */

/* Reads the old blocks of the window, neighbours together. */
static int read_window(struct shadow *sh, struct qk_error *err)
{
    const size_t cluster = sh->img->g.cluster_bytes;
    uint64_t first = sh->window * sh->window_blocks;
    for (uint64_t i = 0; i < sh->window_blocks;) {
        uint64_t off, next, n = 1;
        int ret = refblock_offset(sh->img, first + i, &off, err);
        while (ret == 0 && off && i + n < sh->window_blocks &&
               (ret = refblock_offset(sh->img, first + i + n, &next, err)) == 0 &&
               next == off + n * cluster)
            n++;
        if (ret == 0 && off)
            ret = io_read(sh->img->file, off, sh->counts + i * cluster, n * cluster, err);
        else if (ret == 0)
            memset(sh->counts + i * cluster, 0, cluster);
        if (ret < 0)
            return ret;
        i += n;
    }
    return 0;
}

/* How many of the window's clusters the bitmaps know; *words: where they begin there. */
static uint64_t known(const struct shadow *sh, uint64_t *word)
{
    uint64_t base = sh->window * shadow_per_window(sh);
    *word = base / 64;
    return base < sh->clusters ? min_u64(shadow_per_window(sh), sh->clusters - base) : 0;
}

/* What the trees have left: which counts are 1, and which have become 0. */
static int note_bits(struct shadow *sh, struct qk_error *err)
{
    uint64_t word, count = known(sh, &word);
    CLEANUP_FREE uint64_t *used = malloc((size_t)round_up(count, 64) / 8 + 8);
    if (!used)
        return qk_fail_nomem(err);
    sh->img->rc->one_bits(sh->counts, 0, count, sh->ones + word);
    sh->img->rc->used_bits(sh->counts, 0, count, used);
    for (uint64_t i = 0; i < div_round_up(count, 64); i++) {
        sh->freed[word + i] &= ~used[i];
        sh->freed_clusters += (uint64_t)__builtin_popcountll(sh->freed[word + i]);
    }
    return 0;
}

static int count_trees(struct shadow *sh, bool look, struct qk_error *err)
{
    int ret = 0;
    for (size_t i = 0; i < sh->tree_count && ret == 0; i++) {
        const struct shadow_tree *t = &sh->trees[i];
        struct feed f = {sh, {.down = t->sign < 0, .least = 1}, look ? t->flagged : NULL};
        ret = l2_tables_visit(sh->img, t->tables, feed_table, &f, err);
    }
    return ret;
}

int shadow_load(struct shadow *sh, uint64_t window, struct qk_error *err)
{
    if (sh->window == window)
        return 0;
    sh->window = window;
    int ret = read_window(sh, err);
    if (ret == 0)
        ret = count_trees(sh, false, err);
    if (ret < 0)
        sh->window = SHADOW_NO_WINDOW;
    return ret;
}

/* The first time, with a look at what was used before. */
static int judge_window(struct shadow *sh, uint64_t window, struct qk_error *err)
{
    uint64_t word, count;
    sh->window = window;
    int ret = read_window(sh, err);
    if (ret < 0)
        return ret;
    count = known(sh, &word);
    sh->img->rc->used_bits(sh->counts, 0, count, sh->freed + word);
    ret = count_trees(sh, window == 0, err);
    return ret < 0 ? ret : note_bits(sh, err);
}

int shadow_begin(struct shadow *sh, struct qk_error *err)
{
    struct image *img = sh->img;
    uint64_t blocks = div_round_up(img->end_clusters, per_block(sh));
    uint64_t bytes = img->opts.refcount_window_bytes;
    uint64_t limit = max_u64((bytes ? bytes : SHADOW_WINDOW_BYTES) / img->g.cluster_bytes, 1);
    /* Some more, so that a file which grows by what is placed stays in one window. */
    sh->window_blocks = min_u64(blocks + blocks / 16 + 8, limit);
    sh->clusters = blocks << img->g.refblock_bits;
    sh->counts = aligned_alloc(4096, round_up(sh->window_blocks * img->g.cluster_bytes, 4096));
    sh->ones = malloc((size_t)sh->clusters / 8);
    sh->freed = malloc((size_t)sh->clusters / 8);
    if (!sh->counts || !sh->ones || !sh->freed)
        return qk_fail_nomem(err);
    int ret = 0;
    for (uint64_t w = 0; w * sh->window_blocks < blocks && ret == 0; w++)
        ret = judge_window(sh, w, err);
    return ret;
}

void shadow_unplace(struct shadow *sh)
{
    for (size_t i = 0; i < sh->placed.len; i++)
        alloc_unreserve(sh->img, sh->placed.ptr[i]);
    if (sh->placed.len)
        alloc_trim_end(sh->img, sh->img->end_clusters);
    sh->placed.len = 0;
}

void shadow_end(struct shadow *sh)
{
    cluster_run_vec_free(&sh->placed);
    shadow_extra_vec_free(&sh->extras);
    shadow_block_vec_free(&sh->blocks);
    freemap_free(sh->free);
    free(sh->entries);
    free(sh->counts);
    free(sh->ones);
    free(sh->freed);
}
