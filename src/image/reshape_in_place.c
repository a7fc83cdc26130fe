/*
 * reshape_in_place.c - an image less one of its snapshots where there is no space for new tables
 * beside the old ones: a full device or file system, which is just where somebody deletes a
 * snapshot to get space. See reshape.h, and doc/design/snapshots.md for why each state on disk is
 * safe. Relies on reshape_run having counted and judged everything, and on the whole disk being
 * held. Upholds INV-1 to INV-3: counts fall after the header that drops the snapshot is stable, and
 * flags are set after the counts are.
 */
#include "image/reshape.h"

/* ---- before anything changes ---- */

/* Trees were counted and found sound; this is the rest. */
static int judge_counts(struct image *img, struct cluster_run run, struct qk_error *err)
{
    LOCK_SCOPE(&img->alloc_lock);
    int ret = 0;
    for (uint64_t i = 0; i < run.count && ret == 0; i++) {
        uint64_t value;
        ret = refcount_get(img, run.first + i, &value, err);
        if (ret == 0 && !value)
            ret = qk_fail_at(err, -EIO, WHERE(img->file->name, "refcount block", QK_OFFSET_NONE),
                             "refcount of cluster %" PRIu64 " is 0, which is less than its "
                             "references; run a check with repair",
                             run.first + i);
    }
    return ret;
}

/* The clusters that the old list of snapshots has and the new one has no use for. */
static struct cluster_run old_list(const struct reshape *r)
{
    const struct image *img = r->img;
    uint64_t kept = 0;
    for (size_t i = 0; r->drops_last && i < r->snapshots->len; i++)
        kept += snapshot_entry_bytes(&r->snapshots->ptr[i].fixed);
    kept = div_round_up(kept, img->g.cluster_bytes);
    return (struct cluster_run){image_cluster_of(img, img->h.snapshots_off) + kept,
                                r->snapshot_clusters - kept, false};
}

static int judge(const struct reshape *r, struct cluster_run list, struct qk_error *err)
{
    struct image *img = r->img;
    if (img->h.version < 3)
        return qk_fail_at(err, -ENOSPC, WHERE(img->file->name, NULL, QK_OFFSET_NONE),
                          "No space left on device: no room for new tables; an image of version 2 "
                          "cannot do without, so make some room, or amend it to compat=1.1 first");
    int ret = image_begin_writing(img, err);
    if (ret == 0)
        ret = judge_counts(img, r->gone_l1, err);
    return ret < 0 ? ret : judge_counts(img, list, err);
}

/* ---- the new list of snapshots ---- */

static int no_place(const struct reshape *r, struct qk_error *err)
{
    return qk_fail_at(err, -ENOSPC, WHERE(r->img->file->name, NULL, QK_OFFSET_NONE),
                      "No space left on device: no room for the list of the other snapshots; the "
                      "last one in it ('%s') can be deleted without",
                      r->snapshots->ptr[r->snapshots->len - 1].name);
}

/* Inside the file, where refcount blocks exist. alloc_lock held */
static bool is_inside(struct image *img, struct cluster_run run)
{
    uint64_t last = run.first + run.count - 1, off = 1;
    if (last >= img->end_clusters)
        return false;
    for (uint64_t i = run.first >> img->g.refblock_bits; i <= last >> img->g.refblock_bits; i++)
        if (refblock_offset(img, i, &off, NULL) < 0 || !off)
            return false;
    return true;
}

static int take_place(const struct reshape *r, uint64_t count, struct cluster_run *run,
                      struct qk_error *err)
{
    struct image *img = r->img;
    LOCK_SCOPE(&img->alloc_lock);
    int ret = alloc_reserve(img, count, run, err);
    if (ret < 0)
        return ret;
    ret = is_inside(img, *run) ? refcount_add(img, *run, 1, err) : -ENOSPC;
    if (ret < 0)
        alloc_unreserve(img, *run);
    else
        alloc_note_used(img, *run);
    return ret;
}

static int write_list(const struct reshape *r, struct cluster_run run, const uint8_t *bytes,
                      struct qk_error *err)
{
    struct image *img = r->img;
    uint64_t off = run.first << img->g.cluster_bits, len = run.count << img->g.cluster_bits;
    int ret = overlap_check(img, 0, off, len, err);
    if (ret == 0)
        ret = io_write(img->file, off, bytes, len, 0, err);
    image_note_unsynced(img);
    return ret < 0 ? ret : image_writeback(img, true, err);
}

/* Stable, with its refcounts, before the header names it. run->count 0: the old place serves. */
static int place_list(struct reshape *r, struct cluster_run *run, struct qk_error *err)
{
    CLEANUP_FREE uint8_t *bytes = NULL;
    uint64_t len;
    *run = (struct cluster_run){0};
    if (r->drops_last)
        return 0;
    int ret = snapshots_encode(r->img, r->snapshots, &bytes, &len, err);
    if (ret < 0)
        return ret;
    ret = take_place(r, len >> r->img->g.cluster_bits, run, err);
    if (ret == 0 && (ret = write_list(r, *run, bytes, err)) < 0)
        alloc_undo(r->img, *run);
    return ret == -ENOSPC ? no_place(r, err) : ret;
}

/* ---- the switch ---- */

static int drop_snapshot(struct reshape *r, struct cluster_run list, struct qk_error *err)
{
    struct image *img = r->img;
    struct header h = img->h;
    h.incompatible |= INCOMPAT_DIRTY;
    h.snapshot_count = (uint32_t)r->snapshots->len;
    if (!h.snapshot_count)
        h.snapshots_off = 0;
    else if (list.count)
        h.snapshots_off = list.first << img->g.cluster_bits;
    int ret = reshape_switch_header(img, &h, err);
    /* Where the header on disk may name it, nobody else gets the place. */
    if (ret < 0 && list.count && !__atomic_load_n(&img->header_uncertain, __ATOMIC_ACQUIRE))
        alloc_undo(img, list);
    return ret;
}

/* ---- behind it ---- */

/* The tables that go may be active ones, too: the overlap check learns anew what there is. */
static void learn_tables(struct image *img)
{
    writeback_pause(img);
    pthread_mutex_lock(&img->alloc_lock);
    if (overlap_load(img, NULL) < 0)
        overlap_destroy(img);
    image_thaw(img);
}

static int lower_counts(struct reshape *r, struct cluster_run list, struct qk_error *err)
{
    struct cluster_run runs[] = {list, r->gone_l1};
    int ret = 0;
    for (size_t i = 0; i < ARRAY_SIZE(runs) && ret == 0; i++) {
        const struct cluster_run_vec one = {.ptr = &runs[i], .len = 1};
        ret = runs[i].count ? free_release(r->img, &one, err) : 0;
    }
    if (ret == 0)
        ret = l2_tables_drop(r->img, &r->go, err);
    learn_tables(r->img);
    return ret < 0 ? ret : image_writeback(r->img, true, err);
}

static int flag_table(struct reshape *r, const struct l2_table *t, struct qk_error *err)
{
    struct image *img = r->img;
    cache_prefetch(&img->l2, t->off, img->g.cluster_bytes);
    io_event(img->file, "l2_update");
    for (uint32_t at = 0; at < img->g.cluster_bytes; at += img->l2.slice_bytes) {
        struct slice *s;
        int ret = cache_get(&img->l2, t->off + at, &s, err);
        if (ret < 0)
            return ret;
        if (reshape_set_flags(r, s->data, img->l2.slice_bytes))
            cache_mark_dirty(&img->l2, s);
        cache_put(&img->l2, s);
    }
    return image_throttle(img, err);
}

static void flag_l1(struct reshape *r)
{
    struct image *img = r->img;
    LOCK_SCOPE(&img->alloc_lock);
    for (uint32_t i = 0; i < img->l1_count; i++) {
        uint64_t off = l1_entry_host(img->l1[i]);
        bool one = off && shadow_is_one(&r->sh, image_cluster_of(img, off));
        if (off && one != ((img->l1[i] & ENTRY_COPIED) != 0))
            l1_set(img, i, off | (one ? ENTRY_COPIED : 0));
    }
}

static int set_flags(struct reshape *r, struct qk_error *err)
{
    int ret = 0;
    for (size_t i = 0; i < r->moved.len && ret == 0; i++)
        ret = flag_table(r, &r->moved.ptr[i], err);
    flag_l1(r);
    return ret < 0 ? ret : image_writeback(r->img, true, err);
}

/* -ENOSPC would say that nothing has changed. */
static int unfinished(int ret, struct qk_error *err)
{
    ret = ret == -ENOSPC ? -EIO : ret;
    qk_error_prefix(err, "The snapshot is deleted, but its space is not free: the image is marked "
                         "dirty, and is repaired when it is next opened for writing");
    if (err)
        err->code = -ret;
    return ret;
}

int reshape_in_place(struct reshape *r, struct qk_error *err)
{
    struct image *img = r->img;
    const struct cluster_run old = old_list(r);
    struct cluster_run list;
    int ret = judge(r, old, err);
    if (ret == 0)
        ret = place_list(r, &list, err);
    if (ret == 0)
        ret = drop_snapshot(r, list, err);
    if (ret < 0)
        return ret;
    ret = lower_counts(r, old, err);
    if (ret == 0)
        ret = set_flags(r, err);
    /* A lazy image stays dirty until it is closed. */
    if (ret == 0 && !img->lazy)
        ret = image_set_incompatible(img, 0, INCOMPAT_DIRTY, err);
    return ret < 0 ? unfinished(ret, err) : 0;
}
