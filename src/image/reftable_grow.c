/*
 * reftable_grow.c - new refcount blocks, and a larger refcount table when the old one is full
 * (INV-5). Blocks and table count themselves, so everything that is needed is placed first, in the
 * free map only: each block, and the table if it must grow, takes the lowest free place; each may
 * need another block, until nothing is missing. Then it is built in memory, where it cannot fail
 * half-way, and the next writeback writes it (ordering.md). Runs with alloc_lock held.
 */
#include "image/image_int.h"

struct new_block {
    uint64_t index;           /* in the refcount table */
    struct cluster_run place; /* count 0: not placed yet */
};
DEFINE_VECTOR(new_block_vec, struct new_block)

struct growth {
    struct new_block_vec blocks;
    struct cluster_run table; /* count 0: the table does not move */
    uint64_t max_index;
};

static bool planned(const struct growth *gr, uint64_t index)
{
    for (size_t i = gr->blocks.len; i; i--)
        if (gr->blocks.ptr[i - 1].index == index)
            return true;
    return false;
}

/* Adds the blocks that the run needs and that do not exist. */
static int need_blocks(struct image *img, struct growth *gr, struct cluster_run run,
                       struct qk_error *err)
{
    uint64_t last = (run.first + run.count - 1) >> img->g.refblock_bits;
    for (uint64_t i = run.first >> img->g.refblock_bits; i <= last; i++) {
        if ((i < img->reftable.count && img->reftable.entries[i]) || planned(gr, i))
            continue;
        if (new_block_vec_append(&gr->blocks, (struct new_block){.index = i}) < 0)
            return qk_fail_nomem(err);
        gr->max_index = max_u64(gr->max_index, i);
    }
    return 0;
}

static int place_blocks(struct image *img, struct growth *gr, struct qk_error *err)
{
    for (size_t i = 0; i < gr->blocks.len; i++) {
        struct cluster_run run;
        if (gr->blocks.ptr[i].place.count)
            continue;
        io_event(img->file, "refblock_alloc");
        int ret = alloc_reserve(img, 1, &run, err);
        if (ret < 0)
            return ret;
        gr->blocks.ptr[i].place = run;
        ret = overlap_check(img, 0, run.first << img->g.cluster_bits, img->g.cluster_bytes, err);
        if (ret == 0 && overlap_note(img, run, OVERLAP_REFCOUNT_BLOCK) < 0)
            ret = qk_fail_nomem(err);
        if (ret < 0)
            return ret;
        ret = need_blocks(img, gr, run, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* Half as large again as before, at least what is needed, at most what the format's readers take.
 */
int reftable_clusters(const struct image *img, uint64_t entries, uint64_t *clusters,
                      struct qk_error *err)
{
    uint64_t per_cluster = img->g.cluster_bytes / sizeof(uint64_t);
    uint64_t max = QCOW2_MAX_REFTABLE_BYTES >> img->g.cluster_bits;
    uint64_t needed = div_round_up(entries, per_cluster);
    uint64_t old = img->reftable.count / per_cluster;
    *clusters = min_u64(max_u64(needed, old + (old + 1) / 2), max);
    if (needed > max)
        return qk_fail_at(err, -EFBIG, WHERE(img->file->name, "refcount table", img->reftable.off),
                          "the refcount table would exceed %u bytes: the image cannot grow further "
                          "with this cluster size and refcount width",
                          QCOW2_MAX_REFTABLE_BYTES);
    return 0;
}

static int place_table(struct image *img, struct growth *gr, struct qk_error *err)
{
    uint64_t clusters;
    int ret = reftable_clusters(img, gr->max_index + 1, &clusters, err);
    if (ret < 0)
        return ret;
    if (gr->table.count >= clusters)
        return 0;
    if (gr->table.count)
        alloc_unreserve(img, gr->table);
    gr->table.count = 0;
    struct cluster_run run;
    io_event(img->file, "reftable_grow");
    ret = alloc_reserve(img, clusters, &run, err);
    if (ret < 0)
        return ret;
    gr->table = run;
    ret = overlap_check(img, 0, run.first << img->g.cluster_bits, run.count << img->g.cluster_bits,
                        err);
    return ret < 0 ? ret : need_blocks(img, gr, run, err);
}

static bool all_placed(const struct image *img, const struct growth *gr)
{
    for (size_t i = 0; i < gr->blocks.len; i++)
        if (!gr->blocks.ptr[i].place.count)
            return false;
    uint64_t entries = gr->table.count << img->g.cluster_bits >> 3;
    return gr->max_index < max_u64(img->reftable.count, entries);
}

static int place_all(struct image *img, struct growth *gr, struct qk_error *err)
{
    int ret = 0;
    while (ret == 0 && !all_placed(img, gr)) {
        ret = place_blocks(img, gr, err);
        if (ret == 0 && gr->max_index >= img->reftable.count)
            ret = place_table(img, gr, err);
    }
    return ret;
}

static void unplace_all(struct image *img, const struct growth *gr)
{
    for (size_t i = 0; i < gr->blocks.len; i++)
        if (gr->blocks.ptr[i].place.count) {
            overlap_forget(img, gr->blocks.ptr[i].place);
            alloc_unreserve(img, gr->blocks.ptr[i].place);
        }
    if (gr->table.count)
        alloc_unreserve(img, gr->table);
}

/* All counts 0, every slice dirty: the block is written whole. */
static int build_block(struct image *img, uint64_t off, struct qk_error *err)
{
    for (uint32_t at = 0; at < img->g.cluster_bytes; at += img->refcounts.slice_bytes) {
        struct slice *s;
        int ret = cache_get_zeroed(&img->refcounts, off + at, &s, err);
        if (ret < 0)
            return ret;
        cache_mark_dirty(&img->refcounts, s);
        cache_put(&img->refcounts, s);
    }
    return 0;
}

static int build_blocks(struct image *img, const struct growth *gr, struct qk_error *err)
{
    int ret = 0;
    size_t i;
    for (i = 0; i < gr->blocks.len && ret == 0; i++)
        ret = build_block(img, gr->blocks.ptr[i].place.first << img->g.cluster_bits, err);
    if (ret < 0)
        while (i--)
            cache_forget(&img->refcounts, gr->blocks.ptr[i].place.first << img->g.cluster_bits,
                         img->g.cluster_bytes);
    return ret;
}

/* Room for everything that commit() will need, so that it cannot fail. */
static int reserve_memory(struct image *img, const struct growth *gr, uint64_t **entries,
                          struct qk_error *err)
{
    struct reftable *t = &img->reftable;
    *entries = NULL;
    if (u32_vec_reserve(&t->dirty, t->dirty.len + gr->blocks.len) < 0)
        return qk_fail_nomem(err);
    if (!gr->table.count)
        return 0;
    if (cluster_run_vec_reserve(&img->queued_frees, img->queued_frees.len + 1) < 0)
        return qk_fail_nomem(err);
    *entries = calloc(gr->table.count, img->g.cluster_bytes);
    return *entries ? 0 : qk_fail_nomem(err);
}

/* Puts the new entries (and table) in place of the old, which `old` keeps for uninstall. */
static void install(struct image *img, const struct growth *gr, uint64_t *entries,
                    struct reftable *old)
{
    struct reftable *t = &img->reftable;
    *old = *t;
    if (entries) {
        memcpy(entries, t->entries, t->count * sizeof(uint64_t));
        t->entries = entries;
        t->count = gr->table.count << img->g.cluster_bits >> 3;
        t->off = gr->table.first << img->g.cluster_bits;
        t->moved = true;
    }
    for (size_t i = 0; i < gr->blocks.len; i++) {
        const struct new_block *b = &gr->blocks.ptr[i];
        t->entries[b->index] = b->place.first << img->g.cluster_bits;
        u32_vec_append(&t->dirty, (uint32_t)b->index);
    }
}

static void uninstall(struct image *img, const struct growth *gr, const struct reftable *old)
{
    struct reftable *t = &img->reftable;
    t->entries = old->entries;
    t->count = old->count;
    t->off = old->off;
    t->moved = old->moved;
    t->dirty.len = old->dirty.len;
    for (size_t i = 0; i < gr->blocks.len; i++) {
        const struct new_block *b = &gr->blocks.ptr[i];
        if (b->index < t->count)
            t->entries[b->index] = 0;
        cache_forget(&img->refcounts, b->place.first << img->g.cluster_bits, img->g.cluster_bytes);
    }
}

/* Blocks and table count themselves, in blocks that may have to be loaded. */
static int count_growth(struct image *img, const struct growth *gr, struct qk_error *err)
{
    int ret = gr->table.count ? refcount_add(img, gr->table, 1, err) : 0;
    if (ret < 0)
        return ret;
    for (size_t i = 0; i < gr->blocks.len; i++) {
        ret = refcount_add(img, gr->blocks.ptr[i].place, 1, err);
        if (ret < 0) {
            while (i--)
                refcount_add(img, gr->blocks.ptr[i].place, -1, NULL);
            if (gr->table.count)
                refcount_add(img, gr->table, -1, NULL);
            return ret;
        }
    }
    return 0;
}

static void note_end(struct image *img, struct cluster_run run)
{
    if (!run.count)
        return;
    image_note_end(img, run.first + run.count);
    if (img->fresh_from != UINT64_MAX)
        img->fresh_from = max_u64(img->fresh_from, run.first + run.count);
}

/* Everything is placed: builds blocks and table in memory, or changes nothing. */
static int grow(struct image *img, const struct growth *gr, struct qk_error *err)
{
    struct reftable old;
    uint64_t *entries;
    int ret = reserve_memory(img, gr, &entries, err);
    if (ret == 0)
        ret = build_blocks(img, gr, err);
    if (ret < 0) {
        free(entries);
        return ret;
    }
    for (size_t i = 0; i < gr->blocks.len; i++)
        note_end(img, gr->blocks.ptr[i].place);
    note_end(img, gr->table);
    install(img, gr, entries, &old);
    ret = count_growth(img, gr, err);
    if (ret < 0) {
        uninstall(img, gr, &old);
        free(entries);
    } else if (entries) {
        struct cluster_run old_place = {
            .first = image_cluster_of(img, old.off),
            .count = old.count * sizeof(uint64_t) >> img->g.cluster_bits,
        };
        free_queue_locked(img, old_place, NULL);
        free(old.entries);
    }
    return ret;
}

int refblocks_cover(struct image *img, struct cluster_run run, struct qk_error *err)
{
    struct growth gr = {0};
    int ret = need_blocks(img, &gr, run, err);
    if (ret == 0 && gr.blocks.len) {
        ret = place_all(img, &gr, err);
        if (ret == 0)
            ret = grow(img, &gr, err);
        if (ret < 0)
            unplace_all(img, &gr);
    }
    new_block_vec_free(&gr.blocks);
    return ret;
}
