/*
 * bitmaps_store.c - bringing bitmaps to the disk: new clusters of bits, tables and directory beside
 * the old ones, all of it stable, then one switch of the header, then the old ones are given back
 * (INV-1, INV-2; the argument is in doc/design/bitmaps.md). Relies on the caller holding the whole
 * disk. Until the switch the old state holds, and a failure gives back what was taken.
 */
#include "image/bitmaps.h"

#include "base/bytes.h"

#define SECTOR 512u

struct store {
    struct image *img;
    bool last;                     /* nothing stays in use */
    struct cluster_run_vec taken;  /* by the new state alone */
    struct cluster_run_vec unused; /* by the old state alone */
    uint8_t *buf;                  /* a cluster */
    struct bitmaps_extension ext;
    uint8_t *dir;
    bool *marked; /* of each bitmap: in the new directory it is in use */
};

/* ---- clusters ---- */

static int take(struct store *s, uint64_t count, struct cluster_run *run, struct qk_error *err)
{
    if (cluster_run_vec_reserve(&s->taken, s->taken.len + 1) < 0)
        return qk_fail_nomem(err);
    pthread_mutex_lock(&s->img->alloc_lock);
    int ret = alloc_exact(s->img, count, run, err);
    pthread_mutex_unlock(&s->img->alloc_lock);
    return ret < 0 ? ret : cluster_run_vec_append(&s->taken, *run);
}

static int give_back(struct store *s, uint64_t off, uint64_t bytes, struct qk_error *err)
{
    struct cluster_run run = {image_cluster_of(s->img, off),
                              div_round_up(bytes, s->img->g.cluster_bytes), false};
    if (!off || !bytes)
        return 0;
    return cluster_run_vec_append(&s->unused, run) < 0 ? qk_fail_nomem(err) : 0;
}

/* Writes `bytes` into new clusters, padded with zeroes. *off is where. */
static int put(struct store *s, const void *data, uint64_t bytes, uint64_t *off,
               struct qk_error *err)
{
    struct image *img = s->img;
    struct cluster_run run;
    uint64_t clusters = div_round_up(bytes, img->g.cluster_bytes);
    uint64_t whole = round_down(bytes, img->g.cluster_bytes);
    int ret = take(s, clusters, &run, err);
    if (ret < 0)
        return ret;
    *off = run.first << img->g.cluster_bits;
    ret = overlap_check(img, 0, *off, clusters << img->g.cluster_bits, err);
    if (ret == 0 && whole)
        ret = io_write(img->file, *off, data, whole, 0, err);
    if (ret == 0 && whole < bytes) {
        memset(s->buf, 0, img->g.cluster_bytes);
        memcpy(s->buf, (const uint8_t *)data + whole, bytes - whole);
        ret = io_write(img->file, *off + whole, s->buf, img->g.cluster_bytes, 0, err);
    }
    image_note_unsynced(img);
    return ret;
}

/* ---- one bitmap ---- */

static bool all_bytes(const uint8_t *data, size_t len, uint8_t value)
{
    return data[0] == value && !memcmp(data, data + 1, len - 1);
}

/* The chunk as it is now: its new entry. */
static int store_chunk(struct store *s, struct bitmap *b, uint64_t index, struct qk_error *err)
{
    struct image *img = s->img;
    CLEANUP_FREE uint8_t *bits = aligned_alloc(512, img->g.cluster_bytes);
    uint64_t off = 0;
    int ret = bits ? bitmap_read_chunk(img, b, index, bits, err) : qk_fail_nomem(err);
    if (ret < 0)
        return ret;
    bool whole = bitmap_bits_in_chunk(img, b, index) == bitmap_chunk_bits(img);
    if (whole && all_bytes(bits, img->g.cluster_bytes, 0xff))
        off = BITMAP_TABLE_ONES;
    else if (!all_bytes(bits, img->g.cluster_bytes, 0))
        ret = put(s, bits, img->g.cluster_bytes, &off, err);
    b->new_table[index] = off;
    uint64_t old = b->table[index] & BITMAP_TABLE_OFFSET;
    return ret < 0 ? ret : give_back(s, old, img->g.cluster_bytes, err);
}

static int put_table(struct store *s, struct bitmap *b, struct qk_error *err)
{
    CLEANUP_FREE uint8_t *table = malloc((size_t)b->chunks * 8);
    if (!table)
        return qk_fail_nomem(err);
    for (uint32_t i = 0; i < b->chunks; i++)
        store_be64(table + (size_t)i * 8, b->new_table[i]);
    return put(s, table, (uint64_t)b->chunks * 8, &b->new_table_off, err);
}

static int store_bitmap(struct store *s, struct bitmap *b, struct qk_error *err)
{
    bool changed = b->changed;
    int ret = bitmap_need_table(s->img, b, err);
    if (ret < 0)
        return ret;
    b->new_table = malloc((size_t)b->chunks * sizeof(*b->new_table));
    if (!b->new_table)
        return qk_fail_nomem(err);
    memcpy(b->new_table, b->table, (size_t)b->chunks * sizeof(*b->new_table));
    for (uint32_t i = 0; i < b->chunks && ret == 0; i++) {
        if (!b->fresh[i])
            continue;
        ret = store_chunk(s, b, i, err);
        changed = true;
    }
    b->new_table_off = b->disk_table;
    if (ret < 0 || !changed)
        return ret;
    ret = put_table(s, b, err);
    if (ret == 0)
        ret = give_back(s, b->disk_table, (uint64_t)b->disk_entries * 8, err);
    for (size_t i = 0; i < b->dropped.len && ret == 0; i++)
        ret = give_back(s, b->dropped.ptr[i].first << s->img->g.cluster_bits,
                        b->dropped.ptr[i].count << s->img->g.cluster_bits, err);
    return ret;
}

/* It goes on being changed: its bits in memory are not for the disk yet. */
static bool stays_marked(const struct store *s, const struct bitmap *b)
{
    return !s->last && b->enabled && s->img->bitmaps->tracking;
}

static int store_bitmaps(struct store *s, struct qk_error *err)
{
    const struct bitmap_vec *list = &s->img->bitmaps->list;
    int ret = 0;
    for (size_t i = 0; i < list->len && ret == 0; i++) {
        struct bitmap *b = list->ptr[i];
        s->marked[i] = bitmap_usable(b) && stays_marked(s, b);
        if (bitmap_usable(b) && (!s->marked[i] || b->entry_at == BITMAP_NOT_ON_DISK))
            ret = store_bitmap(s, b, err);
    }
    return ret;
}

/* ---- the directory ---- */

static struct bitmap_entry entry_of(const struct bitmap *b, bool marked)
{
    return (struct bitmap_entry){
        .table_off = b->new_table ? b->new_table_off : b->disk_table,
        .table_entries = b->new_table ? b->chunks : b->disk_entries,
        .flags = (marked || b->inconsistent ? BITMAP_IN_USE : 0) | (b->enabled ? BITMAP_AUTO : 0) |
                 b->extra_flag,
        .type = BITMAP_TYPE_DIRTY,
        .granularity_bits = b->granularity_bits,
        .name_bytes = (uint16_t)strlen(b->name),
        .extra_bytes = b->extra_bytes,
        .extra = b->extra,
        .name = b->name,
    };
}

static struct cluster_run directory_run(const struct image *img, uint64_t off, uint64_t bytes)
{
    return (struct cluster_run){image_cluster_of(img, off),
                                div_round_up(bytes, img->g.cluster_bytes), false};
}

/* Its place is protected before the header names it: afterwards nothing may fail. */
static int store_directory(struct store *s, struct qk_error *err)
{
    const struct bitmap_vec *list = &s->img->bitmaps->list;
    uint64_t bytes = 0, at = 0;
    for (size_t i = 0; i < list->len; i++) {
        struct bitmap_entry entry = entry_of(list->ptr[i], s->marked[i]);
        bytes += bitmap_entry_bytes(&entry);
    }
    s->ext = (struct bitmaps_extension){.count = (uint32_t)list->len, .directory_bytes = bytes};
    int ret = give_back(s, s->img->bitmaps->dir_off, s->img->bitmaps->dir_bytes, err);
    if (ret < 0 || !bytes)
        return ret;
    if (bytes > BITMAP_DIRECTORY_MAX)
        return qk_fail(err, -EFBIG, "Not enough space in the bitmap directory");
    s->dir = calloc(1, round_up(bytes, SECTOR));
    if (!s->dir)
        return qk_fail_nomem(err);
    for (size_t i = 0; i < list->len; i++) {
        struct bitmap_entry entry = entry_of(list->ptr[i], s->marked[i]);
        bitmap_entry_encode(&entry, s->dir + at);
        at += bitmap_entry_bytes(&entry);
    }
    ret = put(s, s->dir, bytes, &s->ext.directory_off, err);
    if (ret == 0 && overlap_note(s->img, directory_run(s->img, s->ext.directory_off, bytes),
                                 OVERLAP_BITMAP_DIRECTORY) < 0)
        ret = qk_fail_nomem(err);
    return ret;
}

/* ---- the switch ---- */

static int switch_header(struct store *s, struct qk_error *err)
{
    uint8_t bytes[BITMAPS_EXTENSION_BYTES];
    struct header_extension ext = {.type = HEXT_BITMAPS};
    bitmaps_extension_encode(&s->ext, bytes);
    if (s->ext.count) {
        ext.data = bytes;
        ext.len = sizeof(bytes);
    }
    const struct header_change change = {
        .exts = &ext,
        .ext_count = 1,
        .autoclear_set = s->ext.count ? AUTOCLEAR_BITMAPS : 0,
        .autoclear_clear = AUTOCLEAR_BITMAPS,
    };
    return header_io_switch(s->img, &change, err);
}

static void adopt_bitmap(struct bitmap *b, bool marked)
{
    b->marked = marked;
    if (!b->new_table)
        return;
    for (uint32_t i = 0; i < b->chunks; i++)
        free(TAKE(b->fresh[i]));
    free(b->table);
    b->table = TAKE(b->new_table);
    b->disk_table = b->new_table_off;
    b->disk_entries = b->chunks;
    b->changed = false;
    b->cached = BITMAP_NO_CHUNK;
    cluster_run_vec_free(&b->dropped);
}

/* The disk names the new state, so that this cannot fail. What the old one alone used waits for the
 * next writeback; what there is no memory to remember is leaked. */
static void adopt(struct store *s)
{
    struct bitmap_set *set = s->img->bitmaps;
    uint64_t at = 0;
    if (set->dir_off)
        overlap_forget(s->img, directory_run(s->img, set->dir_off, set->dir_bytes));
    for (size_t i = 0; i < set->list.len; i++) {
        struct bitmap *b = set->list.ptr[i];
        adopt_bitmap(b, s->marked[i]);
        struct bitmap_entry entry = entry_of(b, b->marked);
        b->entry_at = at;
        at += bitmap_entry_bytes(&entry);
    }
    free(set->dir);
    set->dir = TAKE(s->dir);
    set->dir_off = s->ext.directory_off;
    set->dir_bytes = s->ext.directory_bytes;
    for (size_t i = 0; i < s->unused.len; i++)
        free_queue(s->img, s->unused.ptr[i], NULL);
}

static void revert(struct store *s)
{
    const struct bitmap_vec *list = &s->img->bitmaps->list;
    for (size_t i = 0; i < list->len; i++)
        free(TAKE(list->ptr[i]->new_table));
}

/* Where the header on disk may name the new state, both stay. */
static void drop_new(struct store *s)
{
    if (__atomic_load_n(&s->img->header_uncertain, __ATOMIC_ACQUIRE))
        return;
    if (s->ext.directory_off)
        overlap_forget(s->img, directory_run(s->img, s->ext.directory_off, s->ext.directory_bytes));
    for (size_t i = 0; i < s->taken.len; i++)
        alloc_undo(s->img, s->taken.ptr[i]);
}

static int build(struct store *s, struct qk_error *err)
{
    s->buf = aligned_alloc(512, s->img->g.cluster_bytes);
    s->marked = calloc(s->img->bitmaps->list.len + 1, sizeof(*s->marked));
    if (!s->buf || !s->marked)
        return qk_fail_nomem(err);
    int ret = store_bitmaps(s, err);
    if (ret == 0)
        ret = store_directory(s, err);
    /* All that the new state says is stable before anything names it. */
    return ret < 0 ? ret : image_writeback(s->img, true, err);
}

static void store_free(struct store *s)
{
    cluster_run_vec_free(&s->taken);
    cluster_run_vec_free(&s->unused);
    free(s->buf);
    free(s->dir);
    free(s->marked);
}

int bitmaps_store(struct image *img, bool last, struct cluster_run_vec *removed,
                  struct qk_error *err)
{
    struct store s = {.img = img, .last = last};
    int ret = 0;
    for (size_t i = 0; removed && i < removed->len && ret == 0; i++)
        ret = give_back(&s, removed->ptr[i].first << img->g.cluster_bits,
                        removed->ptr[i].count << img->g.cluster_bits, err);
    if (ret == 0)
        ret = build(&s, err);
    if (ret == 0)
        ret = switch_header(&s, err);
    if (ret == 0)
        adopt(&s);
    else
        drop_new(&s);
    revert(&s);
    store_free(&s);
    return ret;
}

/* ---- closing ---- */

static bool anything_to_store(const struct bitmap_set *set)
{
    for (size_t i = 0; i < set->list.len; i++)
        if (set->list.ptr[i]->marked || set->list.ptr[i]->changed)
            return true;
    return false;
}

int bitmaps_close(struct image *img, struct qk_error *err)
{
    struct bitmap_set *set = img->bitmaps;
    LOCK_SCOPE(&set->lock);
    if (!set->loaded || !anything_to_store(set))
        return 0;
    int ret = bitmaps_store(img, true, NULL, err);
    if (ret < 0)
        qk_error_prefix(err, "Lost persistent bitmaps: they stay marked as in use");
    return ret;
}
