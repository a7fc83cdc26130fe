/*
 * refmap.h - how often each host cluster is referenced, counted by many threads at once. Four bits
 * per cluster to begin with; a region of clusters gets wider cells when a count does not fit.
 * Memory: half a byte per cluster of the regions that are touched at all, so it is bounded by the
 * file's size (8 MiB per TiB of 64 KiB clusters); images whose clusters are shared more than three
 * times take one or two bytes per cluster.
 *
 * A cell also remembers two marks, which let the COPIED flags be judged without reading the L2
 * tables again: some active entry that names the cluster has COPIED set (REF_COPIED), or some has
 * it clear (REF_PLAIN).
 */
#ifndef QK_CHECK_REFMAP_H
#define QK_CHECK_REFMAP_H

#include "base/error.h"

#include <pthread.h>
#include <stdbool.h>

#define REF_COPIED    1u
#define REF_PLAIN     2u
#define REF_MARK_BITS 2u

#define REFMAP_REGION_BITS  15u
#define REFMAP_REGION       (UINT64_C(1) << REFMAP_REGION_BITS)
#define REFMAP_MAX_CLUSTERS (UINT64_C(1) << 36)
#define REFMAP_GROUP        16u /* clusters in one word of the narrowest cells */

struct refmap_region {
    uint64_t *words;     /* NULL: every count is zero */
    uint8_t width_order; /* log2 of a cell's bits: 2, 3, 4 or 6 */
};

#define REFMAP_STRIPES 64u
struct refmap {
    struct refmap_region *regions;
    uint64_t region_count;
    uint64_t clusters;
    pthread_mutex_t stripes[REFMAP_STRIPES];
};

/* clusters <= REFMAP_MAX_CLUSTERS */
int refmap_init(struct refmap *map, uint64_t clusters, struct qk_error *err);
void refmap_free(struct refmap *map);

/* Adds `times` references with `marks` to each of `count` clusters from `first` on, all of which
 * exist. MT-safe. -ENOMEM. Counts stop at 2^62 - 1. */
struct refmap_span {
    uint64_t first, count;
};
int refmap_add(struct refmap *map, struct refmap_span span, uint64_t times, unsigned marks);

/* The rest is for one thread, or for many that only read. */
uint64_t refmap_count(const struct refmap *map, uint64_t cluster);
unsigned refmap_marks(const struct refmap *map, uint64_t cluster);
/* The 16 clusters from `first` (a multiple of 16) on are counted and marked alike. */
bool refmap_uniform(const struct refmap *map, uint64_t first, uint64_t *count, unsigned *marks);
/* The first referenced cluster in [at, end); UINT64_MAX: none. */
uint64_t refmap_next(const struct refmap *map, uint64_t at, uint64_t end);
/* One more than the last referenced cluster; 0: none. */
uint64_t refmap_end(const struct refmap *map);
/* Takes one reference away from each cluster that has one. */
void refmap_drop(struct refmap *map, struct refmap_span span);
/* Takes `times` references away, as far as there are any. */
void refmap_drop_times(struct refmap *map, uint64_t cluster, uint64_t times);
/* Grows the map to that many clusters, all new ones unreferenced. */
int refmap_grow(struct refmap *map, uint64_t clusters, struct qk_error *err);

/*
 * The 16 clusters from `first` (a multiple of 16) on, when their cells are of the narrowest kind:
 * true and the raw word (0 when untouched); false: look at each with refmap_count.
 */
static inline bool refmap_group(const struct refmap *map, uint64_t first, uint64_t *word)
{
    const struct refmap_region *r = &map->regions[first >> REFMAP_REGION_BITS];
    *word = 0;
    if (!r->words)
        return true;
    if (r->width_order != 2)
        return false;
    *word = r->words[(first & (REFMAP_REGION - 1)) / REFMAP_GROUP];
    return true;
}

#endif
