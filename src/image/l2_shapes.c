/*
 * l2_shapes.c - the runs of L2 tables that several L1 entries name (l2_shapes.h). A table's runs
 * are found when a second entry asks for it, with image_map, which validates each entry; a table
 * with an entry that cannot be, or with about as many runs as entries, is left to image_map for
 * good.
 */
#include "image/l2_shapes.h"
#include "image/image_int.h"

/* From guest byte `first` of the table on. */
struct shape_run {
    uint64_t first, host;
    enum cluster_kind kind;
};
DEFINE_VECTOR(shape_run_vec, struct shape_run)

struct l2_shape {
    uint64_t table;     /* 0: the slot is empty */
    uint32_t l1_index;  /* of who asked first */
    uint32_t run_count; /* SHAPE_UNKNOWN, SHAPE_ODD */
    struct shape_run *runs;
};
enum { SHAPE_UNKNOWN = 0 };
#define SHAPE_ODD UINT32_MAX

void l2_shapes_init(struct l2_shapes *shapes)
{
    *shapes = (struct l2_shapes){.slots = NULL};
    pthread_mutex_init(&shapes->lock, NULL);
}

void l2_shapes_forget(struct l2_shapes *shapes)
{
    LOCK_SCOPE(&shapes->lock);
    for (size_t i = 0; shapes->slots && i <= shapes->mask; i++)
        free(shapes->slots[i].runs);
    free(shapes->slots);
    shapes->slots = NULL;
    shapes->count = shapes->mask = 0;
}

void l2_shapes_destroy(struct l2_shapes *shapes)
{
    l2_shapes_forget(shapes);
    pthread_mutex_destroy(&shapes->lock);
}

/* ---- which tables ---- */

static struct l2_shape *slot_of(const struct l2_shapes *shapes, uint64_t table)
{
    size_t i = (size_t)((table >> 9) * UINT64_C(0x9e3779b97f4a7c15) >> 20) & shapes->mask;
    while (shapes->slots[i].table && shapes->slots[i].table != table)
        i = (i + 1) & shapes->mask;
    return &shapes->slots[i];
}

static int slots_grow(struct l2_shapes *shapes)
{
    if (shapes->slots && (shapes->count + 1) * 2 <= shapes->mask + 1)
        return 0;
    const struct l2_shapes old = *shapes;
    size_t size = old.slots ? (old.mask + 1) * 2 : 64;
    struct l2_shape *slots = calloc(size, sizeof(*slots));
    if (!slots)
        return -ENOMEM;
    shapes->slots = slots;
    shapes->mask = size - 1;
    for (size_t i = 0; old.slots && i <= old.mask; i++) {
        if (old.slots[i].table)
            *slot_of(shapes, old.slots[i].table) = old.slots[i];
    }
    free(old.slots);
    return 0;
}

/* NULL: there is no memory for it, and it goes without. */
static struct l2_shape *shape_of(struct l2_shapes *shapes, uint64_t table, uint32_t l1_index)
{
    if (slots_grow(shapes) < 0)
        return NULL;
    struct l2_shape *shape = slot_of(shapes, table);
    if (!shape->table) {
        *shape = (struct l2_shape){.table = table, .l1_index = l1_index};
        shapes->count++;
    }
    return shape;
}

/* ---- their runs ---- */

static bool continues(const struct shape_run *last, const struct map_extent *ext, uint64_t at)
{
    return last->kind == ext->kind &&
           (!cluster_kind_has_host(ext->kind) || last->host + (at - last->first) == ext->host);
}

static int runs_find(struct image *img, guest_off_t begin, struct shape_run_vec *runs)
{
    const uint64_t bytes = (uint64_t)img->g.l2_entries << img->g.cluster_bits;
    const size_t most = max_u64(16, img->g.l2_entries / 32);
    struct map_extent ext;
    for (uint64_t at = 0; at < bytes; at += ext.len) {
        if (image_map(img, guest_off(begin.v + at), bytes - at, &ext, NULL) < 0 || !ext.len)
            return -EIO;
        if (runs->len && continues(&runs->ptr[runs->len - 1], &ext, at))
            continue;
        const struct shape_run run = {at, ext.host, ext.kind};
        if (runs->len == most || shape_run_vec_append(runs, run) < 0)
            return -EFBIG;
    }
    return 0;
}

static void shape_learn(struct image *img, guest_off_t begin, struct l2_shape *shape)
{
    struct shape_run_vec runs = {0};
    shape->run_count = SHAPE_ODD;
    if (runs_find(img, begin, &runs) < 0) {
        shape_run_vec_free(&runs);
        return;
    }
    shape->runs = runs.ptr;
    shape->run_count = (uint32_t)runs.len;
}

/* The extent at byte `at` of the table, ext->len at most. */
static void shape_tell(const struct l2_shape *shape, uint64_t at, uint64_t bytes,
                       struct map_extent *ext)
{
    size_t low = 0, high = shape->run_count;
    while (high - low > 1) {
        size_t mid = low + (high - low) / 2;
        if (shape->runs[mid].first <= at)
            low = mid;
        else
            high = mid;
    }
    const struct shape_run *run = &shape->runs[low];
    uint64_t end = low + 1 < shape->run_count ? run[1].first : bytes;
    ext->kind = run->kind;
    ext->len = min_u64(ext->len, end - at);
    ext->host = cluster_kind_has_host(run->kind) ? run->host + (at - run->first) : 0;
}

/* False: image_map has to say it. */
static bool map_known(struct image *img, guest_off_t off, struct map_extent *ext)
{
    const uint64_t bytes = (uint64_t)img->g.l2_entries << img->g.cluster_bits;
    uint64_t index = image_l1_index(img, off);
    uint64_t table = index < img->l1_count ? l1_entry_host(l1_load(img, index)) : 0;
    if (!table || img->opts.writable || img->g.data_file)
        return false;
    LOCK_SCOPE(&img->shapes.lock);
    struct l2_shape *shape = shape_of(&img->shapes, table, (uint32_t)index);
    if (!shape || shape->l1_index == index)
        return false;
    if (shape->run_count == SHAPE_UNKNOWN)
        shape_learn(img, guest_off(round_down(off.v, bytes)), shape);
    if (shape->run_count == SHAPE_ODD)
        return false;
    shape_tell(shape, off.v % bytes, bytes, ext);
    return true;
}

int l2_shapes_map(struct image *img, guest_off_t off, uint64_t len, struct map_extent *ext,
                  struct qk_error *err)
{
    *ext = (struct map_extent){.len = len};
    return map_known(img, off, ext) ? 0 : image_map(img, off, len, ext, err);
}
