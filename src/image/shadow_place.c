/*
 * shadow_place.c - places for a new refcount structure, writing it, and going over to it; see
 * shadow.h. Blocks and table count themselves, and so do the old ones that become free: each place
 * may concern one more block, until nothing is missing (INV-5: the lowest free clusters that fit).
 */
#include "image/shadow.h"

#include "base/bytes.h"

#define WRITE_MAX (4u << 20) /* blocks in one call, at least a cluster */

static int extra(struct shadow *sh, struct cluster_run run, uint32_t amount, bool down,
                 struct qk_error *err)
{
    struct shadow_extra *last = sh->extras.len ? &sh->extras.ptr[sh->extras.len - 1] : NULL;
    if (!run.count)
        return 0;
    if (last && last->down == down && last->amount == amount &&
        last->run.first + last->run.count == run.first)
        last->run.count += run.count;
    else if (shadow_extra_vec_append(&sh->extras, (struct shadow_extra){run, amount, down}) < 0)
        return qk_fail_nomem(err);
    return shadow_mark(sh, run, err);
}

int shadow_release(struct shadow *sh, struct cluster_run run, uint32_t amount, struct qk_error *err)
{
    return extra(sh, run, amount, true, err);
}

int shadow_retain(struct shadow *sh, struct cluster_run run, uint32_t amount, struct qk_error *err)
{
    return extra(sh, run, amount, false, err);
}

static int reserve_run(struct shadow *sh, uint64_t count, struct cluster_run *run,
                       struct qk_error *err)
{
    if (cluster_run_vec_reserve(&sh->placed, sh->placed.len + 1) < 0)
        return qk_fail_nomem(err);
    int ret = alloc_reserve_some(sh->img, count, run, err);
    if (ret < 0)
        return ret;
    cluster_run_vec_append(&sh->placed, *run);
    return overlap_check(sh->img, 0, run->first << sh->img->g.cluster_bits,
                         run->count << sh->img->g.cluster_bits, err);
}

int shadow_reserve(struct shadow *sh, uint64_t count, uint32_t amount, struct cluster_run_vec *out,
                   struct qk_error *err)
{
    while (count) {
        struct cluster_run run;
        int ret = reserve_run(sh, count, &run, err);
        if (ret == 0)
            ret = extra(sh, run, amount, false, err);
        if (ret == 0 && cluster_run_vec_append(out, run) < 0)
            ret = qk_fail_nomem(err);
        if (ret < 0)
            return ret;
        count -= run.count;
    }
    return 0;
}

int shadow_reserve_one(struct shadow *sh, uint64_t count, struct cluster_run *run,
                       struct qk_error *err)
{
    int ret = reserve_run(sh, count, run, err);
    if (ret == 0 && run->count < count)
        ret = qk_fail_at(err, -ENOSPC, WHERE(sh->img->file->name, NULL, QK_OFFSET_NONE),
                         "No space left on device: no room for a table of %" PRIu64
                         " clusters, and the file cannot grow",
                         count);
    return ret < 0 ? ret : extra(sh, *run, 1, false, err);
}

/* ---- blocks ---- */

static uint64_t unplaced(const struct shadow *sh)
{
    uint64_t n = 0;
    for (size_t i = 0; i < sh->blocks.len; i++)
        n += sh->blocks.ptr[i].changed && !sh->blocks.ptr[i].place;
    return n;
}

static int move_block(struct shadow *sh, uint64_t index, uint64_t place, struct qk_error *err)
{
    uint64_t old;
    int ret = refblock_offset(sh->img, index, &old, err);
    sh->blocks.ptr[index].place = place;
    if (ret < 0 || !old)
        return ret;
    return shadow_release(sh, (struct cluster_run){image_cluster_of(sh->img, old), 1, false}, 1,
                          err);
}

/* Gives the blocks that change and have no place the clusters of the runs. */
static int hand_out(struct shadow *sh, const struct cluster_run_vec *runs, struct qk_error *err)
{
    size_t r = 0;
    uint64_t in_run = 0;
    int ret = 0;
    for (size_t i = 0; i < sh->blocks.len && r < runs->len && ret == 0; i++) {
        if (!sh->blocks.ptr[i].changed || sh->blocks.ptr[i].place)
            continue;
        ret = move_block(sh, i, runs->ptr[r].first + in_run++, err);
        if (in_run == runs->ptr[r].count) {
            in_run = 0;
            r++;
        }
    }
    return ret;
}

static int place_blocks(struct shadow *sh, struct qk_error *err)
{
    uint64_t n;
    int ret = 0;
    while (ret == 0 && (n = unplaced(sh))) {
        struct cluster_run_vec runs = {0};
        io_event(sh->img->file, "refblock_alloc");
        ret = shadow_reserve(sh, n, 1, &runs, err);
        if (ret == 0)
            ret = hand_out(sh, &runs, err);
        cluster_run_vec_free(&runs);
    }
    return ret;
}

/* ---- the table ---- */

static uint64_t table_room(const struct shadow *sh)
{
    return sh->table.count << sh->img->g.cluster_bits >> 3;
}

static int place_table(struct shadow *sh, struct qk_error *err)
{
    struct image *img = sh->img;
    uint64_t clusters = img->reftable.count * 8 >> img->g.cluster_bits;
    struct cluster_run run;
    int ret = 0;
    if (sh->blocks.len > img->reftable.count)
        ret = reftable_clusters(img, sh->blocks.len, &clusters, err);
    if (ret == 0 && sh->table.count) /* the former one is too small */
        ret = shadow_release(sh, sh->table, 1, err);
    if (ret == 0)
        ret = shadow_reserve_one(sh, clusters, &run, err);
    if (ret == 0)
        sh->table = run;
    return ret;
}

int shadow_place(struct shadow *sh, struct qk_error *err)
{
    struct image *img = sh->img;
    struct cluster_run old_table = {image_cluster_of(img, img->reftable.off),
                                    img->reftable.count * 8 >> img->g.cluster_bits, false};
    int ret = shadow_release(sh, old_table, 1, err);
    while (ret == 0) {
        ret = place_blocks(sh, err);
        if (ret < 0 || sh->blocks.len <= table_room(sh))
            break;
        ret = place_table(sh, err);
    }
    if (ret < 0)
        return ret;
    for (size_t i = 0; i < sh->placed.len; i++)
        alloc_note_used(img, sh->placed.ptr[i]);
    uint64_t end = table_room(sh) << img->g.refblock_bits;
    return freemap_new(end, refcount_load_leaf, img, &sh->free, err);
}

/* ---- writing ---- */

static int count_extras(struct shadow *sh, struct qk_error *err)
{
    int ret = 0;
    for (size_t i = 0; i < sh->extras.len && ret == 0; i++) {
        const struct shadow_extra *x = &sh->extras.ptr[i];
        struct refcount_step step = {.amount = x->amount, .down = x->down};
        ret = shadow_count(sh, x->run, &step, err);
    }
    return ret;
}

static bool to_write(const struct shadow *sh, uint64_t index)
{
    return index < sh->blocks.len && sh->blocks.ptr[index].place;
}

/* Blocks of the loaded window from `i` on that stand together in the window and in the file. */
static uint64_t together(const struct shadow *sh, uint64_t i, uint64_t end)
{
    uint64_t n = 1, max = max_u64(WRITE_MAX / sh->img->g.cluster_bytes, 1);
    while (n < max && i + n < end && to_write(sh, i + n) &&
           sh->blocks.ptr[i + n].place == sh->blocks.ptr[i].place + n)
        n++;
    return n;
}

static int write_window(struct shadow *sh, struct qk_error *err)
{
    struct image *img = sh->img;
    const size_t cluster = img->g.cluster_bytes;
    uint64_t first = sh->window * sh->window_blocks, end = first + sh->window_blocks;
    int ret = 0;
    for (uint64_t i = first, n; i < end && ret == 0; i += n) {
        n = 1;
        if (!to_write(sh, i))
            continue;
        n = together(sh, i, end);
        io_event(img->file, "refblock_update");
        ret = io_write(img->file, sh->blocks.ptr[i].place << img->g.cluster_bits,
                       sh->counts + (i - first) * cluster, n * cluster, 0, err);
    }
    return ret;
}

static bool window_changes(const struct shadow *sh, uint64_t window)
{
    uint64_t first = window * sh->window_blocks;
    for (uint64_t i = first; i < first + sh->window_blocks; i++)
        if (to_write(sh, i))
            return true;
    return false;
}

/* The table as it will be, host-endian. */
static void fill_entries(const struct shadow *sh, uint64_t *entries)
{
    const struct image *img = sh->img;
    memset(entries, 0, sh->table.count << img->g.cluster_bits);
    memcpy(entries, img->reftable.entries, img->reftable.count * sizeof(*entries));
    for (size_t i = 0; i < sh->blocks.len; i++)
        if (sh->blocks.ptr[i].place)
            entries[i] = sh->blocks.ptr[i].place << img->g.cluster_bits;
}

static int write_table(struct shadow *sh, struct qk_error *err)
{
    struct image *img = sh->img;
    size_t bytes = (size_t)sh->table.count << img->g.cluster_bits;
    CLEANUP_FREE uint64_t *out = aligned_alloc(4096, round_up(bytes, 4096));
    sh->entries = malloc(bytes);
    if (!out || !sh->entries)
        return qk_fail_nomem(err);
    fill_entries(sh, sh->entries);
    for (uint64_t i = 0; i < bytes / 8; i++)
        store_be64(&out[i], sh->entries[i]);
    io_event(img->file, "refblock_alloc_write_table");
    return io_write(img->file, sh->table.first << img->g.cluster_bits, out, bytes, 0, err);
}

int shadow_write(struct shadow *sh, struct qk_error *err)
{
    int ret = 0;
    image_note_unsynced(sh->img);
    for (uint64_t w = 0; w * sh->window_blocks < sh->blocks.len && ret == 0; w++) {
        if (!window_changes(sh, w))
            continue;
        ret = shadow_load(sh, w, err);
        if (ret == 0)
            ret = count_extras(sh, err);
        if (ret == 0)
            ret = write_window(sh, err);
        sh->window = SHADOW_NO_WINDOW; /* it has the extras */
    }
    return ret < 0 ? ret : write_table(sh, err);
}

/* ---- going over to it ---- */

void shadow_header(const struct shadow *sh, struct header *h)
{
    h->reftable_off = sh->table.first << sh->img->g.cluster_bits;
    h->reftable_clusters = (uint32_t)sh->table.count;
}

void shadow_adopt(struct shadow *sh)
{
    struct image *img = sh->img;
    struct reftable *t = &img->reftable;
    free(t->entries);
    t->entries = TAKE(sh->entries);
    t->count = table_room(sh);
    t->off = sh->table.first << img->g.cluster_bits;
    t->moved = false;
    t->dirty.len = 0;
    freemap_free(img->free);
    img->free = TAKE(sh->free);
    cache_drop(&img->refcounts);
    memset(img->tails, 0, sizeof(img->tails));
    sh->placed.len = 0;
}

/* Clusters that trees have made free. */
static void punch_freed(struct shadow *sh)
{
    struct cluster_run run = {0};
    for (uint64_t c = 0; c < sh->clusters; c++) {
        if (!sh->freed[c / 64] && c % 64 == 0) {
            c += 63;
            continue;
        }
        if (!shadow_is_freed(sh, c))
            continue;
        if (run.count && run.first + run.count != c) {
            alloc_punch(sh->img, run);
            run.count = 0;
        }
        run = (struct cluster_run){run.count ? run.first : c, run.count + 1, false};
    }
    if (run.count)
        alloc_punch(sh->img, run);
}

void shadow_discard(struct shadow *sh)
{
    /* What only metadata gave up keeps its space in the file: the next operation wants as much
     * again, and a file that does not change its blocks is flushed faster. */
    if (!sh->freed_clusters)
        return;
    if (sh->img->opts.discard_to_file)
        punch_freed(sh);
    alloc_trim_end(sh->img, sh->img->end_clusters);
}
