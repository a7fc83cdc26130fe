/*
 * reshape.c - counting, judging, placing, writing, switching and adopting a new shape: see
 * reshape.h. Upholds INV-1 to INV-3: clusters that the old shape counts are not written to, and
 * what replaces them becomes valid in one sector.
 */
#include "image/reshape.h"

#include "base/bytes.h"

#define WRITE_BYTES (2u << 20) /* moved L2 tables in one call, at least a cluster */

/* ---- frozen ---- */

static bool anything_waits(struct image *img)
{
    return img->queued_frees.len || img->l1_any_dirty || img->reftable.moved ||
           img->reftable.dirty.len || cache_dirty_bytes(&img->l2) ||
           cache_dirty_bytes(&img->refcounts);
}

int image_freeze(struct image *img, struct qk_error *err)
{
    int ret = image_begin_writing(img, err);
    /* Frees that one releases are refcounts for the next. */
    for (int round = 0; ret == 0 && round < 8; round++) {
        ret = image_writeback(img, true, err);
        if (ret < 0)
            break;
        writeback_pause(img);
        pthread_mutex_lock(&img->alloc_lock);
        if (!anything_waits(img))
            return 0;
        image_thaw(img);
    }
    return ret < 0 ? ret : qk_fail(err, -EBUSY, "the image does not come to rest");
}

void image_thaw(struct image *img)
{
    pthread_mutex_unlock(&img->alloc_lock);
    writeback_resume(img);
}

/* ---- which tables get new flags ---- */

static int referred_freed(struct reshape *r, const struct l2_table *t, uint32_t index,
                          struct qk_error *err)
{
    return qk_fail_at(
        err, -EIO,
        WHERE(r->img->file->name, "L2 table", t->off + (uint64_t)index * r->img->g.l2_entry_bytes),
        "the refcount of a cluster is less than its references; run a check with repair");
}

/* Tables of the new active L1 that other L1 tables may name, too. */
struct sharing {
    bool *shared; /* for each of `active`: a snapshot names it */
    size_t in_doubt;
};

/* Marks those that the snapshot names. One that cannot be read says nothing. */
static void ask_snapshot(const struct reshape *r, const struct snapshot *s, struct sharing *sharing)
{
    struct image *img = r->img;
    struct l2_table_vec named = {0};
    CLEANUP_FREE uint64_t *l1 = NULL;
    if (snapshot_read_l1(img, s, 0, &l1, NULL) == 0 &&
        l2_tables_of(img, l1, s->fixed.l1_entries, &named, NULL) == 0)
        for (size_t i = 0; i < r->active.len; i++)
            if (!sharing->shared[i] && l2_tables_find(&named, r->active.ptr[i].off)) {
                sharing->shared[i] = true;
                sharing->in_doubt--;
            }
    l2_table_vec_free(&named);
}

/* Below a table that another L1 names, too, no count is 1, and no flag was set. The table's own
 * count does not tell: a crash may have left it too high. */
static int keep_own_tables(struct reshape *r, struct qk_error *err)
{
    struct l2_table_vec *v = &r->active;
    CLEANUP_FREE bool *shared = calloc(v->len + 1, sizeof(*shared));
    struct sharing sharing = {shared, 0};
    if (!shared)
        return qk_fail_nomem(err);
    for (size_t i = 0; i < v->len; i++)
        sharing.in_doubt += !shadow_is_one(&r->sh, image_cluster_of(r->img, v->ptr[i].off));
    for (size_t i = r->snapshots->len; i-- && sharing.in_doubt;)
        ask_snapshot(r, &r->snapshots->ptr[i], &sharing);
    size_t n = 0;
    for (size_t i = 0; i < v->len; i++)
        if (!shared[i])
            v->ptr[n++] = v->ptr[i];
    v->len = n;
    return 0;
}

static int judge_table(void *opaque, const struct l2_table *t, uint8_t *bytes, struct qk_error *err)
{
    struct reshape *r = opaque;
    const struct geometry *g = &r->img->g;
    for (uint32_t i = 0; i < g->l2_entries; i++) {
        uint64_t raw = load_be64(bytes + (size_t)i * g->l2_entry_bytes);
        uint64_t cluster = (raw & L2_OFFSET_MASK) >> g->cluster_bits;
        if (!cluster || raw & ENTRY_COMPRESSED)
            continue;
        bool one = shadow_is_one(&r->sh, cluster);
        if (!one && shadow_is_freed(&r->sh, cluster))
            return referred_freed(r, t, i, err);
        if (one != ((raw & ENTRY_COPIED) != 0))
            return l2_table_vec_append(&r->moved, *t) < 0 ? qk_fail_nomem(err) : 0;
    }
    return 0;
}

/* ---- places ---- */

static uint64_t clusters_of(const struct image *img, uint64_t bytes)
{
    return div_round_up(bytes, img->g.cluster_bytes);
}

/* The new place of moved table i. */
static uint64_t moved_cluster(const struct reshape *r, uint64_t i)
{
    const struct cluster_run *run = r->moved_to.ptr;
    for (; i >= run->count; run++)
        i -= run->count;
    return run->first + i;
}

/* A moved table takes the references of the active L1 and, when one is made, of the snapshot. */
static int place_moved(struct reshape *r, struct qk_error *err)
{
    const uint32_t users = r->fresh ? 2 : 1;
    int ret = 0;
    if (r->moved.len)
        ret = shadow_reserve(&r->sh, r->moved.len, users, &r->moved_to, err);
    for (size_t i = 0; i < r->moved.len && ret == 0; i++) {
        const struct l2_table *t = &r->moved.ptr[i];
        struct cluster_run old = {image_cluster_of(r->img, t->off), 1, false};
        struct cluster_run new = {moved_cluster(r, i), 1, false};
        ret = shadow_release(&r->sh, old, users * t->uses, err);
        if (ret == 0 && t->uses > 1)
            ret = shadow_retain(&r->sh, new, users * (t->uses - 1), err);
    }
    return ret;
}

static int place_l1(struct reshape *r, struct qk_error *err)
{
    struct image *img = r->img;
    struct cluster_run old = {image_cluster_of(img, img->h.l1_off),
                              clusters_of(img, img->h.l1_entries * UINT64_C(8)), false};
    int ret = shadow_release(&r->sh, old, 1, err);
    if (ret == 0 && r->l1_entries)
        ret = shadow_reserve_one(&r->sh, clusters_of(img, r->l1_entries * 8), &r->l1_at, err);
    if (ret == 0 && r->fresh && r->fresh->fixed.l1_entries)
        ret = shadow_reserve_one(&r->sh, clusters_of(img, r->fresh->fixed.l1_entries * UINT64_C(8)),
                                 &r->fresh_at, err);
    if (ret == 0 && r->fresh)
        r->fresh->fixed.l1_off = r->fresh_at.first << img->g.cluster_bits;
    return ret < 0 ? ret : shadow_release(&r->sh, r->gone_l1, 1, err);
}

static int place_snapshots(struct reshape *r, struct qk_error *err)
{
    struct image *img = r->img;
    uint64_t bytes;
    struct cluster_run old = {image_cluster_of(img, img->h.snapshots_off), r->snapshot_clusters,
                              false};
    int ret = shadow_release(&r->sh, old, 1, err);
    if (ret == 0)
        ret = snapshots_encode(img, r->snapshots, &r->snapshot_bytes, &bytes, err);
    if (ret == 0 && bytes)
        ret = shadow_reserve_one(&r->sh, bytes >> img->g.cluster_bits, &r->snapshots_at, err);
    return ret;
}

static int place(struct reshape *r, struct qk_error *err)
{
    int ret = place_moved(r, err);
    if (ret == 0)
        ret = place_l1(r, err);
    if (ret == 0)
        ret = place_snapshots(r, err);
    return ret < 0 ? ret : shadow_place(&r->sh, err);
}

/* ---- writing ---- */

/* Tables with their new flags, gathered while their places are neighbours. */
struct mover {
    struct reshape *r;
    uint8_t *buf;
    size_t room, fill; /* clusters */
    uint64_t to;       /* cluster of buf[0] */
    size_t run;        /* in moved_to */
    uint64_t in_run;
};

static int mover_flush(struct mover *m, struct qk_error *err)
{
    struct image *img = m->r->img;
    if (!m->fill)
        return 0;
    size_t bytes = m->fill << img->g.cluster_bits;
    m->fill = 0;
    io_event(img->file, "l2_update");
    return io_write(img->file, m->to << img->g.cluster_bits, m->buf, bytes, 0, err);
}

bool reshape_set_flags(const struct reshape *r, uint8_t *bytes, size_t len)
{
    const struct geometry *g = &r->img->g;
    bool changed = false;
    for (uint8_t *entry = bytes; entry < bytes + len; entry += g->l2_entry_bytes) {
        uint64_t raw = load_be64(entry);
        uint64_t cluster = (raw & L2_OFFSET_MASK) >> g->cluster_bits;
        if (!cluster || raw & ENTRY_COMPRESSED)
            continue;
        bool one = shadow_is_one(&r->sh, cluster);
        changed |= one != ((raw & ENTRY_COPIED) != 0);
        store_be64(entry, one ? raw | ENTRY_COPIED : raw & ~ENTRY_COPIED);
    }
    return changed;
}

static int move_table(void *opaque, const struct l2_table *t, uint8_t *bytes, struct qk_error *err)
{
    struct mover *m = opaque;
    const size_t cluster = m->r->img->g.cluster_bytes;
    const struct cluster_run *run = &m->r->moved_to.ptr[m->run];
    uint64_t to = run->first + m->in_run;
    int ret = 0;
    (void)t;
    if (m->fill == m->room || (m->fill && m->to + m->fill != to))
        ret = mover_flush(m, err);
    if (!m->fill)
        m->to = to;
    reshape_set_flags(m->r, bytes, cluster);
    memcpy(m->buf + m->fill++ * cluster, bytes, cluster);
    if (++m->in_run == run->count) {
        m->run++;
        m->in_run = 0;
    }
    return ret;
}

static int write_moved(struct reshape *r, struct qk_error *err)
{
    const size_t cluster = r->img->g.cluster_bytes;
    struct mover m = {.r = r, .room = (size_t)max_u64(WRITE_BYTES / cluster, 1)};
    if (!r->moved.len)
        return 0;
    CLEANUP_FREE uint8_t *buf = aligned_alloc(4096, round_up(m.room * cluster, 4096));
    if (!buf)
        return qk_fail_nomem(err);
    m.buf = buf;
    int ret = l2_tables_visit(r->img, &r->moved, move_table, &m, err);
    return ret < 0 ? ret : mover_flush(&m, err);
}

/* An entry of the active L1 as it will be: its place, and the flag that fits. */
static uint64_t settled(const struct reshape *r, uint64_t off)
{
    const struct l2_table *t = l2_tables_find(&r->moved, off);
    bool one = shadow_is_one(&r->sh, image_cluster_of(r->img, off));
    if (t) {
        off = moved_cluster(r, (uint64_t)(t - r->moved.ptr)) << r->img->g.cluster_bits;
        one = !r->fresh && t->uses == 1;
    }
    return off | (one ? ENTRY_COPIED : 0);
}

static void settle_l1(struct reshape *r)
{
    for (uint64_t i = 0; i < r->l1_entries; i++)
        r->l1[i] = l1_entry_host(r->l1[i]) ? settled(r, l1_entry_host(r->l1[i])) : 0;
}

static int write_l1(struct image *img, struct cluster_run at, const uint64_t *l1, uint64_t entries,
                    struct qk_error *err)
{
    size_t bytes = (size_t)at.count << img->g.cluster_bits;
    CLEANUP_FREE uint8_t *buf = aligned_alloc(4096, round_up(bytes, 4096));
    if (!buf)
        return qk_fail_nomem(err);
    memset(buf, 0, bytes);
    for (uint64_t i = 0; i < entries; i++)
        store_be64(buf + i * 8, l1[i]);
    io_event(img->file, "l1_update");
    return io_write(img->file, at.first << img->g.cluster_bits, buf, bytes, 0, err);
}

static int write_fresh_l1(struct reshape *r, struct qk_error *err)
{
    uint64_t entries = r->fresh->fixed.l1_entries;
    CLEANUP_FREE uint64_t *l1 = calloc(entries, sizeof(*l1));
    if (!l1)
        return qk_fail_nomem(err);
    for (uint64_t i = 0; i < entries; i++)
        l1[i] = l1_entry_host(i < r->l1_entries && r->l1[i] ? r->l1[i] : r->fresh_l1[i]);
    return write_l1(r->img, r->fresh_at, l1, entries, err);
}

static int write_all(struct reshape *r, struct qk_error *err)
{
    struct image *img = r->img;
    image_note_unsynced(img);
    int ret = write_moved(r, err);
    settle_l1(r);
    if (ret == 0 && r->l1_at.count)
        ret = write_l1(img, r->l1_at, r->l1, r->l1_entries, err);
    if (ret == 0 && r->fresh_at.count)
        ret = write_fresh_l1(r, err);
    if (ret == 0 && r->snapshots_at.count)
        ret = io_write(img->file, r->snapshots_at.first << img->g.cluster_bits, r->snapshot_bytes,
                       r->snapshots_at.count << img->g.cluster_bits, 0, err);
    if (ret == 0)
        ret = shadow_write(&r->sh, err);
    io_event(img->file, "flush_to_disk");
    return ret < 0 ? ret : io_flush(img->file, err);
}

/* ---- the switch ---- */

static struct header new_header(const struct reshape *r)
{
    struct header h = r->img->h;
    h.l1_off = r->l1_at.first << r->img->g.cluster_bits;
    h.l1_entries = (uint32_t)r->l1_entries;
    h.size_bytes = r->disk_bytes;
    h.snapshots_off = r->snapshots_at.first << r->img->g.cluster_bits;
    h.snapshot_count = (uint32_t)r->snapshots->len;
    shadow_header(&r->sh, &h);
    return h;
}

static int write_header(struct image *img, struct qk_error *err)
{
    int ret = header_io_write(img, err);
    return ret < 0 ? ret : io_flush(img->file, err);
}

/* After a failure the disk may have either header: the old one is put back, and when that cannot be
 * made sure of, this process writes nothing more to the image. */
int reshape_switch_header(struct image *img, const struct header *h, struct qk_error *err)
{
    LOCK_SCOPE(&img->header_lock);
    const struct header old = img->h;
    header_adopt(img, h);
    io_event(img->file, "refblock_alloc_switch_table");
    int ret = write_header(img, err);
    if (ret == 0)
        return 0;
    header_adopt(img, &old);
    header_io_restore(img, 0);
    return ret;
}

/* ---- memory follows ---- */

static void adopt(struct reshape *r, uint64_t *l1_dirty)
{
    struct image *img = r->img;
    free(img->l1);
    free(img->l1_dirty);
    img->l1 = TAKE(r->l1);
    img->l1_count = (uint32_t)r->l1_entries;
    img->l1_dirty = l1_dirty;
    img->l1_any_dirty = false;
    cache_drop(&img->l2);
    shadow_adopt(&r->sh);
    /* Without memory for it the overlap check is off. */
    if (overlap_load(img, NULL) < 0)
        overlap_destroy(img);
    shadow_discard(&r->sh);
}

/* ---- all of it ---- */

static int count_and_judge(struct reshape *r, struct qk_error *err)
{
    struct image *img = r->img;
    r->trees[0] = (struct shadow_tree){&r->go, -1, NULL};
    r->trees[1] = (struct shadow_tree){&r->come, 1, &r->moved};
    r->sh = (struct shadow){.img = img, .trees = r->trees, .tree_count = 2};
    int ret = shadow_begin(&r->sh, err);
    /* What comes is what somebody has already: its counts are 2 at least, its flags all wrong. */
    if (ret < 0 || r->come.len)
        return ret;
    ret = l2_tables_of(img, r->l1, r->l1_entries, &r->active, err);
    if (ret == 0)
        ret = keep_own_tables(r, err);
    return ret < 0 ? ret : l2_tables_visit(img, &r->active, judge_table, r, err);
}

static int go_over(struct reshape *r, struct qk_error *err)
{
    CLEANUP_FREE uint64_t *l1_dirty =
        calloc(round_up(r->l1_entries, 64) / 64 / 64 + 1, sizeof(*l1_dirty));
    if (!l1_dirty)
        return qk_fail_nomem(err);
    int ret = count_and_judge(r, err);
    r->judged = ret == 0;
    if (ret == 0)
        ret = place(r, err);
    if (ret == 0)
        ret = write_all(r, err);
    if (ret < 0)
        return ret;
    struct header h = new_header(r);
    ret = reshape_switch_header(r->img, &h, err);
    if (ret == 0)
        adopt(r, TAKE(l1_dirty));
    else if (__atomic_load_n(&r->img->header_uncertain, __ATOMIC_ACQUIRE))
        r->sh.placed.len = 0; /* the header on disk may name these */
    return ret;
}

int reshape_run(struct reshape *r, struct qk_error *err)
{
    int ret = go_over(r, err);
    if (ret < 0)
        shadow_unplace(&r->sh);
    return ret;
}

void reshape_end(struct reshape *r)
{
    shadow_end(&r->sh);
    l2_table_vec_free(&r->come);
    l2_table_vec_free(&r->go);
    l2_table_vec_free(&r->active);
    l2_table_vec_free(&r->moved);
    cluster_run_vec_free(&r->moved_to);
    free(r->snapshot_bytes);
    free(r->l1);
}
