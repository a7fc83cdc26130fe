/*
 * overlap.c - INV-6: before each write, does it hit metadata that it has no business with? The
 * single tables (header, L1, refcount table) are compared as ranges; L2 tables and refcount blocks
 * are in a hash set of host clusters, one 16-byte place for each, so that a look costs the same at
 * every size. A hit marks the image corrupt, on disk and in memory, and nothing is written.
 */
#include "image/overlap.h"

static size_t slot_of(const struct table_set *set, uint64_t cluster)
{
    size_t i = (size_t)((cluster * UINT64_C(0x9e3779b97f4a7c15)) >> 20) & set->mask;
    while (set->places[i].cluster && set->places[i].cluster != cluster)
        i = (i + 1) & set->mask;
    return i;
}

static int set_grow(struct table_set *set)
{
    struct table_set old = *set;
    size_t n = old.mask ? 2 * (old.mask + 1) : 64;
    set->places = calloc(n, sizeof(*set->places));
    if (!set->places) {
        *set = old;
        return -ENOMEM;
    }
    set->mask = n - 1;
    for (size_t i = 0; old.places && i <= old.mask; i++)
        if (old.places[i].cluster)
            set->places[slot_of(set, old.places[i].cluster)] = old.places[i];
    free(old.places);
    return 0;
}

static int set_add(struct table_set *set, uint64_t cluster, unsigned kind)
{
    if ((set->count + 1) * 2 > set->mask && set_grow(set) < 0)
        return -ENOMEM;
    struct table_place *p = &set->places[slot_of(set, cluster)];
    set->count += !p->cluster;
    p->cluster = cluster;
    p->kinds |= kind;
    return 0;
}

/* Open addressing: what stood behind the removed place is put anew. */
static void set_remove(struct table_set *set, uint64_t cluster)
{
    size_t i = set->mask ? slot_of(set, cluster) : 0;
    if (!set->mask || !set->places[i].cluster)
        return;
    set->places[i] = (struct table_place){0};
    set->count--;
    for (i = (i + 1) & set->mask; set->places[i].cluster; i = (i + 1) & set->mask) {
        struct table_place p = set->places[i];
        set->places[i] = (struct table_place){0};
        set->places[slot_of(set, p.cluster)] = p;
    }
}

int overlap_note(struct image *img, struct cluster_run run, unsigned kind)
{
    if (!img->tables)
        return 0;
    int ret = 0;
    pthread_rwlock_wrlock(&img->tables_lock);
    for (uint64_t i = 0; i < run.count && ret == 0; i++)
        if (run.first + i)
            ret = set_add(img->tables, run.first + i, kind);
    pthread_rwlock_unlock(&img->tables_lock);
    return ret;
}

void overlap_forget(struct image *img, struct cluster_run run)
{
    if (!img->tables)
        return;
    pthread_rwlock_wrlock(&img->tables_lock);
    for (uint64_t i = 0; i < run.count; i++)
        set_remove(img->tables, run.first + i);
    pthread_rwlock_unlock(&img->tables_lock);
}

void overlap_destroy(struct image *img)
{
    if (img->tables) {
        free(img->tables->places);
        byte_range_vec_free(&img->tables->ranges);
    }
    free(img->tables);
    img->tables = NULL;
}

static const struct {
    unsigned kind;
    const char *name;
} kinds[] = {
    {OVERLAP_MAIN_HEADER, "qcow2_header"},          {OVERLAP_ACTIVE_L1, "active L1 table"},
    {OVERLAP_ACTIVE_L2, "active L2 table"},         {OVERLAP_REFCOUNT_BLOCK, "refcount block"},
    {OVERLAP_REFCOUNT_TABLE, "refcount table"},     {OVERLAP_SNAPSHOT_TABLE, "snapshot table"},
    {OVERLAP_INACTIVE_L1, "inactive L1 table"},     {OVERLAP_INACTIVE_L2, "inactive L2 table"},
    {OVERLAP_BITMAP_DIRECTORY, "bitmap directory"},
};

static const char *kind_name(unsigned kind)
{
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
        if (kinds[i].kind & kind)
            return kinds[i].name;
    return "metadata";
}

/* The kind of metadata in [off, off + len), 0: none. */
static unsigned find_single(const struct image *img, unsigned kinds_wanted, uint64_t off,
                            uint64_t len)
{
    const struct {
        unsigned kind;
        uint64_t off, len;
    } ranges[] = {
        {OVERLAP_MAIN_HEADER, 0, img->g.cluster_bytes},
        {OVERLAP_ACTIVE_L1, img->h.l1_off, (uint64_t)img->l1_count * 8},
        {OVERLAP_REFCOUNT_TABLE, img->h.reftable_off,
         (uint64_t)img->h.reftable_clusters << img->g.cluster_bits},
    };
    for (size_t i = 0; i < ARRAY_SIZE(ranges); i++)
        if (kinds_wanted & ranges[i].kind && ranges_overlap(off, len, ranges[i].off, ranges[i].len))
            return ranges[i].kind;
    const struct byte_range_vec *more = &img->tables->ranges;
    for (size_t i = 0; i < more->len; i++)
        if (kinds_wanted & more->ptr[i].kind &&
            ranges_overlap(off, len, more->ptr[i].off, more->ptr[i].len))
            return more->ptr[i].kind;
    return 0;
}

/* tables_lock held, as for find_single */
static unsigned find_table(const struct image *img, unsigned kinds_wanted, uint64_t off,
                           uint64_t len)
{
    unsigned hit = 0;
    uint64_t last = image_cluster_of(img, off + len - 1);
    const struct table_set *set = img->tables;
    for (uint64_t c = image_cluster_of(img, off); set->mask && c <= last && !hit; c++) {
        const struct table_place *p = &set->places[slot_of(set, c)];
        if (p->cluster && p->kinds & kinds_wanted)
            hit = p->kinds & kinds_wanted;
    }
    return hit;
}

int overlap_check(struct image *img, unsigned own, uint64_t off, uint64_t len, struct qk_error *err)
{
    unsigned wanted = img->opts.overlap & ~own;
    if (!wanted || !img->tables || !len)
        return 0;
    pthread_rwlock_rdlock(&img->tables_lock);
    unsigned hit = find_single(img, wanted, off, len);
    if (!hit && wanted & (OVERLAP_ACTIVE_L2 | OVERLAP_REFCOUNT_BLOCK | OVERLAP_INACTIVE_L2 |
                          OVERLAP_BITMAP_DIRECTORY))
        hit = find_table(img, wanted, off, len);
    pthread_rwlock_unlock(&img->tables_lock);
    if (!hit)
        return 0;
    bool first = !__atomic_exchange_n(&img->corrupt, true, __ATOMIC_RELAXED);
    if (first && img->h.version >= 3)
        image_set_incompatible(img, INCOMPAT_CORRUPT, 0, NULL);
    return qk_fail_at(err, -EIO, WHERE(img->file->name, kind_name(hit), off),
                      "Preventing invalid write on metadata (overlaps with %s); image marked as "
                      "corrupt: nothing more will be written to it. Run a check with repair",
                      kind_name(hit));
}
