/*
 * bitmaps.c - the list of persistent bitmaps, as the directory on disk has it: read at once, and
 * judged entry by entry. A damaged entry is kept with its fault, so that what is there can be
 * listed; an image that is opened for writing has to be free of faults. Tables and bits are read
 * when they are needed. Memory is bounded by the length of the file (INV-4).
 */
#include "image/bitmaps.h"

#define SECTOR 512u

void bitmap_free(struct bitmap *b)
{
    if (!b)
        return;
    for (uint64_t i = 0; b->fresh && i < b->chunks; i++)
        free(b->fresh[i]);
    free(b->fresh);
    free(b->table);
    free(b->new_table);
    free(b->cache);
    free(b->name);
    free(b->extra);
    cluster_run_vec_free(&b->dropped);
    free(b);
}

int bitmaps_init(struct image *img, struct qk_error *err)
{
    img->bitmaps = calloc(1, sizeof(*img->bitmaps));
    if (!img->bitmaps)
        return qk_fail_nomem(err);
    pthread_mutex_init(&img->bitmaps->lock, NULL);
    return 0;
}

static void forget_list(struct bitmap_set *set)
{
    for (size_t i = 0; i < set->list.len; i++)
        bitmap_free(set->list.ptr[i]);
    bitmap_vec_free(&set->list);
    free(set->dir);
    set->dir = NULL;
    set->dir_off = set->dir_bytes = 0;
    set->loaded = set->tracking = false;
}

void bitmaps_destroy(struct image *img)
{
    if (!img->bitmaps)
        return;
    forget_list(img->bitmaps);
    pthread_mutex_destroy(&img->bitmaps->lock);
    free(img->bitmaps);
    img->bitmaps = NULL;
}

/* ---- loading ---- */

static int bad_directory(const struct image *img, uint64_t off, const char *what,
                         struct qk_error *err)
{
    return qk_fail_at(err, -EINVAL, WHERE(img->file->name, "bitmap directory", off),
                      "The bitmap directory is malformed: %s", what);
}

static int add_entry(struct image *img, const struct bitmap_entry *e, size_t at,
                     const struct bitmap_bounds *bounds)
{
    struct bitmap_set *set = img->bitmaps;
    struct bitmap *b = calloc(1, sizeof(*b));
    if (!b || bitmap_vec_append(&set->list, b) < 0) {
        free(b);
        return -ENOMEM;
    }
    b->name = strndup(e->name, e->name_bytes);
    b->extra = malloc(e->extra_bytes ? e->extra_bytes : 1);
    if (!b->name || !b->extra)
        return -ENOMEM;
    memcpy(b->extra, e->extra, e->extra_bytes);
    b->extra_bytes = e->extra_bytes;
    b->extra_flag = e->flags & BITMAP_EXTRA_COMPATIBLE;
    b->granularity_bits = e->granularity_bits;
    b->enabled = e->flags & BITMAP_AUTO;
    b->inconsistent = e->flags & BITMAP_IN_USE;
    b->fault = bitmap_entry_fault(e, bounds);
    b->foreign = bitmap_entry_foreign(e);
    b->entry_at = at;
    b->disk_table = e->table_off;
    b->disk_entries = e->table_entries;
    b->bits =
        e->granularity_bits < 64 ? bitmap_bits_for(bounds->disk_bytes, e->granularity_bits) : 0;
    b->chunks = e->table_entries;
    b->cached = BITMAP_NO_CHUNK;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(struct bitmap *const *)a)->name, (*(struct bitmap *const *)b)->name);
}

/* Two of one name: neither can be told from the other. */
static int judge_names(struct image *img, struct qk_error *err)
{
    const struct bitmap_vec *list = &img->bitmaps->list;
    CLEANUP_FREE struct bitmap **sorted = calloc(list->len + 1, sizeof(struct bitmap *));
    if (!sorted)
        return qk_fail_nomem(err);
    for (size_t i = 0; i < list->len; i++)
        sorted[i] = list->ptr[i];
    qsort(sorted, list->len, sizeof(struct bitmap *), by_name);
    for (size_t i = 1; i < list->len; i++)
        if (!strcmp(sorted[i - 1]->name, sorted[i]->name))
            return bad_directory(img, img->bitmaps->dir_off, "two bitmaps have one name", err);
    return 0;
}

static int decode_directory(struct image *img, uint32_t count, uint64_t file_bytes,
                            struct qk_error *err)
{
    struct bitmap_set *set = img->bitmaps;
    const struct bitmap_bounds bounds = {img->g.cluster_bytes, image_size(img), file_bytes};
    size_t at = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct bitmap_entry entry;
        size_t bytes = bitmap_entry_decode(set->dir + at, set->dir_bytes - at, &entry);
        if (!bytes)
            return bad_directory(img, set->dir_off + at, "an entry reaches past its end", err);
        if (add_entry(img, &entry, at, &bounds) < 0)
            return qk_fail_nomem(err);
        at += bytes;
    }
    if (at != set->dir_bytes)
        return bad_directory(img, set->dir_off + at, "there is more than its entries", err);
    return judge_names(img, err);
}

static const struct header_extension *extension(const struct image *img)
{
    return img->h.autoclear & AUTOCLEAR_BITMAPS ? header_extensions_find(&img->exts, HEXT_BITMAPS)
                                                : NULL;
}

bool bitmaps_stale(const struct image *img)
{
    return !(img->h.autoclear & AUTOCLEAR_BITMAPS) &&
           header_extensions_find(&img->exts, HEXT_BITMAPS);
}

static int load_directory(struct image *img, const struct header_extension *had,
                          struct qk_error *err)
{
    struct bitmap_set *set = img->bitmaps;
    struct bitmaps_extension ext;
    uint64_t file_bytes;
    int ret = io_size(img->file, &file_bytes, err);
    if (ret < 0)
        return ret;
    bitmaps_extension_decode(had->data, &ext);
    const char *fault = bitmaps_extension_fault(&ext, img->g.cluster_bytes, file_bytes);
    if (fault)
        return bad_directory(img, ext.directory_off, fault, err);
    set->dir_off = ext.directory_off;
    set->dir_bytes = ext.directory_bytes;
    set->dir = calloc(1, round_up(ext.directory_bytes, SECTOR));
    if (!set->dir)
        return qk_fail_nomem(err);
    ret = io_read(img->file, set->dir_off, set->dir, set->dir_bytes, err);
    return ret < 0 ? ret : decode_directory(img, ext.count, file_bytes, err);
}

int bitmaps_load(struct image *img, struct qk_error *err)
{
    const struct header_extension *ext = extension(img);
    if (img->bitmaps->loaded)
        return 0;
    int ret = ext ? load_directory(img, ext, err) : 0;
    if (ret < 0)
        forget_list(img->bitmaps);
    else
        img->bitmaps->loaded = true;
    return ret;
}

static int judge_entries(const struct image *img, struct qk_error *err)
{
    const struct bitmap_set *set = img->bitmaps;
    for (size_t i = 0; i < set->list.len; i++) {
        const struct bitmap *b = set->list.ptr[i];
        if (b->fault)
            return bitmap_judge_usable(img, b, err);
    }
    return 0;
}

/* INV-6: the directory's place, as far as it is one. */
static int note_place(struct image *img, struct qk_error *err)
{
    const struct header_extension *had = extension(img);
    struct bitmaps_extension ext;
    if (!had)
        return 0;
    bitmaps_extension_decode(had->data, &ext);
    if (bitmaps_extension_fault(&ext, img->g.cluster_bytes,
                                img->end_clusters << img->g.cluster_bits))
        return 0;
    struct cluster_run run = {image_cluster_of(img, ext.directory_off),
                              div_round_up(ext.directory_bytes, img->g.cluster_bytes), false};
    return overlap_note(img, run, OVERLAP_BITMAP_DIRECTORY) < 0 ? qk_fail_nomem(err) : 0;
}

int bitmaps_open(struct image *img, struct qk_error *err)
{
    LOCK_SCOPE(&img->bitmaps->lock);
    forget_list(img->bitmaps);
    int ret = note_place(img, err);
    /* A check describes what is damaged. */
    if (ret < 0 || !img->opts.writable || img->opts.for_check)
        return ret;
    ret = bitmaps_load(img, err);
    return ret < 0 ? ret : judge_entries(img, err);
}

/* ---- looking things up ---- */

struct bitmap *bitmaps_find(const struct image *img, const char *name)
{
    const struct bitmap_vec *list = &img->bitmaps->list;
    for (size_t i = 0; i < list->len; i++)
        if (!strcmp(list->ptr[i]->name, name))
            return list->ptr[i];
    return NULL;
}

int bitmap_judge_usable(const struct image *img, const struct bitmap *b, struct qk_error *err)
{
    const struct where where = {img->file->name, "bitmap directory", QK_OFFSET_NONE};
    if (b->inconsistent)
        return qk_fail_at(err, -ESTALE, &where, "Bitmap '%s' is inconsistent and cannot be used",
                          b->name);
    if (b->fault)
        return qk_fail_at(err, -EINVAL, &where, "Bitmap '%s' doesn't satisfy the constraints: %s",
                          b->name, b->fault);
    if (b->foreign)
        return qk_fail_at(err, -ENOTSUP, &where,
                          "Bitmap '%s' has extra data or a granularity that this version does not "
                          "know",
                          b->name);
    return 0;
}

int bitmaps_find_usable(const struct image *img, const char *name, struct bitmap **out,
                        struct qk_error *err)
{
    struct bitmap *b = bitmaps_find(img, name);
    if (!b)
        return qk_fail(err, -ENOENT, "Dirty bitmap '%s' not found", name);
    *out = b;
    return bitmap_judge_usable(img, b, err);
}

uint32_t image_bitmap_count(const struct image *img)
{
    struct bitmaps_extension ext;
    LOCK_SCOPE(&img->bitmaps->lock);
    if (img->bitmaps->loaded)
        return (uint32_t)img->bitmaps->list.len;
    const struct header_extension *had = extension(img);
    if (!had)
        return 0;
    bitmaps_extension_decode(had->data, &ext);
    return ext.count;
}

int image_bitmap_info(struct image *img, uint32_t index, struct image_bitmap *info,
                      struct qk_error *err)
{
    LOCK_SCOPE(&img->bitmaps->lock);
    int ret = bitmaps_load(img, err);
    if (ret == 0 && index >= img->bitmaps->list.len)
        ret = qk_fail(err, -EINVAL, "There is no bitmap number %u", index);
    if (ret < 0)
        return ret;
    const struct bitmap *b = img->bitmaps->list.ptr[index];
    if (b->fault)
        return bitmap_judge_usable(img, b, err);
    *info = (struct image_bitmap){
        .name = b->name,
        .granularity_bits = b->granularity_bits,
        .in_use = b->inconsistent,
        .enabled = b->enabled,
    };
    return 0;
}

int image_bitmaps_measure(struct image *img, uint32_t cluster_bits, uint64_t *bytes,
                          struct qk_error *err)
{
    const uint32_t cluster = 1u << cluster_bits;
    const struct bitmap_vec *list = &img->bitmaps->list;
    uint64_t directory = 0;
    *bytes = 0;
    LOCK_SCOPE(&img->bitmaps->lock);
    int ret = bitmaps_load(img, err);
    for (size_t i = 0; i < list->len && ret == 0; i++) {
        const struct bitmap *b = list->ptr[i];
        const struct bitmap_entry entry = {.name_bytes = (uint16_t)strlen(b->name)};
        uint64_t chunks = bitmap_table_entries_for(b->bits, cluster);
        *bytes += (chunks << cluster_bits) + round_up(chunks * 8, cluster);
        directory += bitmap_entry_bytes(&entry);
    }
    *bytes += round_up(directory, cluster);
    return ret;
}
