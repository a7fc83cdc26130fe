/*
 * l2.c - from guest offsets to L2 entries and back: map (metadata only), tables that may be
 * written, and changing entries. Relies on the caller's range: an entry changes only under an
 * exclusive hold of its guest cluster. Each entry is validated before it is believed (INV-4).
 */
#include "image/image_int.h"

#define L2_NAME "L2 table"

static uint64_t known_end(struct image *img)
{
    /* The caller may hold a shard of the cache, which writers lock with alloc_lock held. */
    if (img->opts.writable)
        return __atomic_load_n(&img->end_clusters, __ATOMIC_RELAXED);
    LOCK_SCOPE(&img->alloc_lock);
    uint64_t size;
    /* Another program may write to an image that we share, so the file may have grown. */
    if (io_size(img->file, &size, NULL) == 0)
        image_note_end(img, div_round_up(size, img->g.cluster_bytes));
    return img->end_clusters;
}

static bool inside_file(struct image *img, uint64_t host)
{
    uint64_t cluster = image_cluster_of(img, host);
    return cluster < __atomic_load_n(&img->end_clusters, __ATOMIC_RELAXED) ||
           cluster < known_end(img);
}

/* Host offset of the L2 table for `off`; 0: none. */
static int table_of(struct image *img, guest_off_t off, uint64_t *table, bool *copied,
                    struct qk_error *err)
{
    uint64_t index = image_l1_index(img, off);
    uint64_t raw = index < img->l1_count ? l1_load(img, index) : 0;
    *table = l1_entry_host(raw);
    *copied = raw & ENTRY_COPIED;
    if (!*table)
        return 0;
    if (!is_aligned(*table, img->g.cluster_bytes) || !inside_file(img, *table))
        return qk_fail_at(err, -EIO, WHERE(img->file->name, "L1 table", img->h.l1_off + index * 8),
                          "L2 table offset 0x%" PRIx64 " is %s (L1 index: 0x%" PRIx64
                          "); run a check to see the damage",
                          *table,
                          is_aligned(*table, img->g.cluster_bytes) ? "beyond the end of the file"
                                                                   : "unaligned",
                          index);
    return 0;
}

/* The slice of the table in which the entry for `off` is, and its index there. */
struct entry_place {
    uint64_t guest; /* cluster of the entry */
    uint64_t slice_off;
    uint32_t index, per_slice;
};

static struct entry_place place_in(const struct image *img, guest_off_t off, uint64_t table)
{
    uint32_t index = image_l2_index(img, off);
    uint32_t per_slice = img->l2.slice_bytes / img->g.l2_entry_bytes;
    return (struct entry_place){
        .guest = round_down(off.v, img->g.cluster_bytes),
        .slice_off = table + (uint64_t)(index / per_slice) * img->l2.slice_bytes,
        .index = index % per_slice,
        .per_slice = per_slice,
    };
}

static int entry_fail(struct image *img, const struct entry_place *p, uint32_t i, const char *what,
                      struct qk_error *err)
{
    return qk_fail_at(err, -EIO,
                      WHERE(img->file->name, L2_NAME,
                            p->slice_off + (uint64_t)(p->index + i) * img->g.l2_entry_bytes),
                      "%s; run a check to see the damage", what);
}

static int validate(struct image *img, const struct entry_place *p, uint32_t i, struct l2_entry e,
                    struct qk_error *err)
{
    if (!l2_entry_offset_valid(&img->g, e))
        return entry_fail(img, p, i, "cluster offset is unaligned", err);
    if (img->g.data_file) {
        if (l2_entry_host(e).v == p->guest + (uint64_t)i * img->g.cluster_bytes)
            return 0;
        return entry_fail(
            img, p, i,
            "external data file host cluster offset does not match the guest cluster offset", err);
    }
    if (!inside_file(img, l2_entry_host(e).v))
        return entry_fail(img, p, i, "cluster offset is beyond the end of the file", err);
    return 0;
}

/* The next cluster continues ext: the same kind, and where that has one, the next host cluster. */
static bool continues(const struct image *img, const struct map_extent *ext, uint32_t i,
                      struct l2_entry e)
{
    uint64_t host = l2_entry_host(ext->entry).v + (uint64_t)i * img->g.cluster_bytes;
    return !cluster_kind_has_host(ext->kind) ||
           (l2_entry_host(e).v == host && l2_entry_copied(e) == ext->copied);
}

/* Extends ext, which has `have` bytes of the first entry and reaches its end, over the entries
 * behind it while they continue it. */
static int extend_run(struct image *img, const struct entry_place *p, const uint8_t *table,
                      struct map_extent *ext, uint64_t *have, struct qk_error *err)
{
    const uint32_t all = img->g.subclusters;
    uint32_t run = all;
    for (uint32_t i = 1; run == all && *have < ext->len && p->index + i < p->per_slice; i++) {
        struct l2_entry e = l2_entry_load(&img->g, table, p->index + i);
        enum cluster_kind kind;
        run = l2_entry_run(&img->g, e, 0, &kind);
        if (kind != ext->kind || !continues(img, ext, i, e))
            break;
        int ret = cluster_kind_has_host(kind) ? validate(img, p, i, e, err) : 0;
        if (ret < 0)
            return ret;
        *have += (uint64_t)run << img->g.subcluster_bits;
    }
    return 0;
}

/* What the first entry says of subcluster `sub`; *run: how many from there on are the same. */
static int decode_first(struct image *img, const struct entry_place *p, uint32_t sub,
                        struct map_extent *ext, uint32_t *run, struct qk_error *err)
{
    *run = l2_entry_run(&img->g, ext->entry, sub, &ext->kind);
    ext->copied = l2_entry_copied(ext->entry);
    if (ext->kind == CLUSTER_INVALID)
        return entry_fail(img, p, 0, "the entry contradicts itself", err);
    if (ext->kind == CLUSTER_COMPRESSED && img->g.data_file)
        return entry_fail(img, p, 0, "a compressed cluster, with an external data file", err);
    if (ext->kind == CLUSTER_COMPRESSED &&
        !inside_file(img, compressed_decode(&img->g, ext->entry.raw).off))
        return entry_fail(img, p, 0, "compressed bytes are beyond the end of the file", err);
    return cluster_kind_has_host(ext->kind) ? validate(img, p, 0, ext->entry, err) : 0;
}

static int decode_run(struct image *img, const struct entry_place *p, const uint8_t *table,
                      struct map_extent *ext, struct qk_error *err)
{
    uint64_t in_cluster = ext->host; /* set by the caller */
    uint32_t sub = (uint32_t)(in_cluster >> img->g.subcluster_bits), run;
    ext->entry = l2_entry_load(&img->g, table, p->index);
    int ret = decode_first(img, p, sub, ext, &run, err);
    uint64_t have = ((uint64_t)(sub + run) << img->g.subcluster_bits) - in_cluster;
    if (ret == 0 && sub + run == img->g.subclusters && ext->kind != CLUSTER_COMPRESSED)
        ret = extend_run(img, p, table, ext, &have, err);
    ext->len = min_u64(have, ext->len);
    ext->host = cluster_kind_has_host(ext->kind) ? l2_entry_host(ext->entry).v + in_cluster : 0;
    return ret;
}

int image_map(struct image *img, guest_off_t off, uint64_t len, struct map_extent *ext,
              struct qk_error *err)
{
    uint64_t table, table_bits = img->g.cluster_bits + img->g.l2_bits;
    bool copied;
    uint64_t in_table = off.v & ((UINT64_C(1) << table_bits) - 1);
    *ext = (struct map_extent){
        .kind = CLUSTER_UNALLOCATED,
        .len = min_u64(len, (UINT64_C(1) << table_bits) - in_table),
        .host = off.v & (img->g.cluster_bytes - 1),
    };
    int ret = table_of(img, off, &table, &copied, err);
    if (ret < 0 || !table)
        return ret;
    struct entry_place p = place_in(img, off, table);
    struct slice *s;
    ret = cache_get(&img->l2, p.slice_off, &s, err);
    if (ret < 0)
        return ret;
    ret = decode_run(img, &p, s->data, ext, err);
    cache_put(&img->l2, s);
    /* A table that a snapshot shares makes every cluster of it shared. */
    ext->copied &= copied;
    return ret;
}

/* ---- tables that may be written ---- */

void l1_set(struct image *img, uint64_t index, uint64_t raw)
{
    __atomic_store_n(&img->l1[index], raw, __ATOMIC_RELEASE);
    img->l1_dirty[index / 64 / 64] |= UINT64_C(1) << (index / 64 % 64);
    img->l1_any_dirty = true;
}

/* Copies a shared table to `to`, through the cache, which has the newest of each slice. */
static int copy_table(struct image *img, uint64_t from, uint64_t to, struct qk_error *err)
{
    CLEANUP_FREE uint8_t *buf = aligned_alloc(4096, round_up(img->g.cluster_bytes, 4096));
    if (!buf)
        return qk_fail_nomem(err);
    for (uint32_t at = 0; at < img->g.cluster_bytes; at += img->l2.slice_bytes) {
        struct slice *s;
        int ret = cache_get(&img->l2, from + at, &s, err);
        if (ret < 0)
            return ret;
        memcpy(buf + at, s->data, img->l2.slice_bytes);
        cache_put(&img->l2, s);
    }
    io_event(img->file, "l2_alloc_write");
    return io_write(img->file, to, buf, img->g.cluster_bytes, 0, err);
}

/* Gives the table its first content. Nothing refers to it yet; the barrier of stage 0 makes it
 * stable before the L1 entry is written. */
static int fill_table(struct image *img, struct cluster_run run, uint64_t old, struct qk_error *err)
{
    uint64_t off = run.first << img->g.cluster_bits;
    cache_forget(&img->l2, off, img->g.cluster_bytes);
    int ret = overlap_check(img, 0, off, img->g.cluster_bytes, err);
    if (ret < 0)
        return ret;
    io_event(img->file, old ? "l2_alloc_cow_read" : "l2_alloc_write");
    if (old)
        ret = copy_table(img, old, off, err);
    else if (!run.fresh)
        ret = io_zero_or_write(img->file, off, img->g.cluster_bytes, 0, err);
    image_note_unsynced(img);
    return ret;
}

static void undo_locked(struct image *img, struct cluster_run run)
{
    if (refcount_add(img, run, -1, NULL) == 0)
        alloc_unreserve(img, run);
}

static int new_table(struct image *img, uint64_t l1_index, uint64_t old, uint64_t *table,
                     struct qk_error *err)
{
    struct cluster_run run, old_run = {.first = image_cluster_of(img, old), .count = 1};
    int ret = alloc_exact(img, 1, &run, err);
    if (ret < 0)
        return ret;
    ret = fill_table(img, run, old, err);
    if (ret == 0 && overlap_note(img, run, OVERLAP_ACTIVE_L2) < 0)
        ret = qk_fail_nomem(err);
    if (ret == 0 && old)
        ret = free_queue_locked(img, old_run, err);
    if (ret < 0) {
        overlap_forget(img, run);
        undo_locked(img, run);
        return ret;
    }
    *table = run.first << img->g.cluster_bits;
    io_event(img->file, "l1_update");
    l1_set(img, l1_index, *table | ENTRY_COPIED);
    return 0;
}

int l2_table_writable(struct image *img, guest_off_t off, uint64_t *table, struct qk_error *err)
{
    bool copied;
    int ret = table_of(img, off, table, &copied, err);
    if (ret < 0 || (*table && copied))
        return ret;
    LOCK_SCOPE(&img->alloc_lock);
    uint64_t index = image_l1_index(img, off);
    uint64_t raw = l1_load(img, index);
    *table = l1_entry_host(raw);
    if (*table && (raw & ENTRY_COPIED))
        return 0;
    if (*table) {
        uint64_t refcount;
        ret = refcount_get(img, image_cluster_of(img, *table), &refcount, err);
        if (ret < 0)
            return ret;
        if (refcount == 1) {
            l1_set(img, index, raw | ENTRY_COPIED);
            return 0;
        }
    }
    return new_table(img, index, *table, table, err);
}

/* ---- changing entries ---- */

/* The host clusters that an entry refers to; count 0: none. */
static struct cluster_run referred(const struct image *img, struct l2_entry e)
{
    enum cluster_kind kind = l2_entry_kind(&img->g, e, 0);
    if (kind == CLUSTER_COMPRESSED) {
        struct compressed_extent c = compressed_decode(&img->g, e.raw);
        uint64_t first = image_cluster_of(img, c.off);
        return (struct cluster_run){first, image_cluster_of(img, c.off + c.bytes - 1) - first + 1,
                                    false};
    }
    uint64_t host = l2_entry_host(e).v;
    bool counted = host && !img->g.data_file;
    return (struct cluster_run){image_cluster_of(img, host), counted, false};
}

static bool same_reference(const struct image *img, struct l2_entry a, struct l2_entry b)
{
    /* Neighbouring streams share their host clusters, and each counts. */
    if ((a.raw | b.raw) & ENTRY_COMPRESSED)
        return a.raw == b.raw;
    struct cluster_run x = referred(img, a), y = referred(img, b);
    return x.first == y.first && x.count == y.count;
}

struct change {
    l2_change_fn fn; /* NULL: all entries become `fill` */
    void *opaque;
    struct l2_fill fill;
    uint64_t done;               /* guest clusters before the current slice */
    struct cluster_run_vec lost; /* reference runs to queue */
};

static int lose(struct change *ch, struct cluster_run run)
{
    struct cluster_run *last = ch->lost.len ? &ch->lost.ptr[ch->lost.len - 1] : NULL;
    if (last && last->first + last->count == run.first) {
        last->count += run.count;
        return 0;
    }
    return cluster_run_vec_append(&ch->lost, run);
}

static int lose_valid(struct image *img, struct l2_entry old, struct cluster_run run,
                      struct change *ch)
{
    bool valid =
        old.raw & ENTRY_COMPRESSED
            ? inside_file(img, (run.first + run.count - 1) << img->g.cluster_bits)
            : l2_entry_offset_valid(&img->g, old) && inside_file(img, l2_entry_host(old).v);
    return valid ? lose(ch, run) : -EIO;
}

/* As change_slice, for standard entries that all become the same. */
static int fill_slice(struct image *img, const struct entry_place *p, struct slice *s, uint64_t n,
                      struct change *ch)
{
    int ret = 0;
    const uint64_t raw = htobe64(ch->fill.raw), keep = ch->fill.keep_empty ? 0 : raw;
    uint64_t *entries = (uint64_t *)(void *)s->data + p->index;
    bool dirty = false;
    for (uint64_t i = 0; i < n; i++) {
        if (entries[i] == raw || entries[i] == keep)
            continue;
        struct l2_entry old = {be64toh(entries[i]), 0};
        struct cluster_run run = referred(img, old);
        if (run.count)
            ret = lose_valid(img, old, run, ch);
        if (ret < 0)
            break;
        entries[i] = raw;
        dirty = true;
    }
    if (dirty)
        cache_mark_dirty(&img->l2, s);
    return ret;
}

/* The next n clusters, whose entries stand together in the slice. */
static int change_slice(struct image *img, const struct entry_place *p, struct slice *s, uint64_t n,
                        struct change *ch)
{
    bool dirty = false;
    int ret = 0;
    for (uint32_t i = 0; i < n && ret == 0; i++) {
        struct l2_entry old = l2_entry_load(&img->g, s->data, p->index + i), e = old;
        if (!ch->fn(ch->opaque, ch->done + i, old, &e) ||
            (e.raw == old.raw && e.bitmap == old.bitmap))
            continue;
        struct cluster_run run = referred(img, old);
        if (run.count && !same_reference(img, old, e))
            ret = lose(ch, run);
        if (ret < 0)
            break;
        l2_entry_store(&img->g, s->data, p->index + i, e);
        dirty = true;
    }
    if (dirty)
        cache_mark_dirty(&img->l2, s);
    return ret;
}

static int queue_lost(struct image *img, struct change *ch, struct qk_error *err)
{
    LOCK_SCOPE(&img->alloc_lock);
    int ret = 0;
    for (size_t i = 0; i < ch->lost.len && ret == 0; i++)
        ret = free_queue_locked(img, ch->lost.ptr[i], err);
    return ret;
}

static int change_all(struct image *img, guest_off_t off, uint64_t clusters, struct change *ch,
                      struct qk_error *err)
{
    int ret = 0;
    while (ch->done < clusters && ret == 0) {
        guest_off_t at = guest_off(off.v + (ch->done << img->g.cluster_bits));
        uint64_t table;
        struct slice *s;
        ret = l2_table_writable(img, at, &table, err);
        if (ret < 0)
            break;
        struct entry_place p = place_in(img, at, table);
        uint64_t n = min_u64(clusters - ch->done, p.per_slice - p.index);
        /* A whole table is held by the caller: it is read whole. */
        if (image_l2_index(img, at) == 0 && clusters - ch->done >= img->g.l2_entries)
            cache_prefetch(&img->l2, table, img->g.cluster_bytes);
        ret = cache_get(&img->l2, p.slice_off, &s, err);
        if (ret < 0)
            break;
        io_event(img->file, "l2_update");
        ret = (ch->fn ? change_slice : fill_slice)(img, &p, s, n, ch);
        if (ret == -ENOMEM)
            qk_fail_nomem(err);
        else if (ret < 0)
            entry_fail(img, &p, 0, "an entry of the table names a cluster that cannot be", err);
        cache_put(&img->l2, s);
        ch->done += n;
    }
    int queued = queue_lost(img, ch, ret == 0 ? err : NULL);
    cluster_run_vec_free(&ch->lost);
    return ret < 0 ? ret : queued;
}

int l2_change(struct image *img, guest_off_t off, uint64_t clusters, l2_change_fn fn, void *opaque,
              struct qk_error *err)
{
    struct change ch = {.fn = fn, .opaque = opaque};
    return change_all(img, off, clusters, &ch, err);
}

int l2_fill(struct image *img, guest_off_t off, uint64_t clusters, struct l2_fill fill,
            struct qk_error *err)
{
    struct change ch = {.fill = fill};
    return change_all(img, off, clusters, &ch, err);
}
