/*
 * refmap.c - reference counts in cells of adaptive width. Relies on nothing but memory; promises
 * that adding is safe from many threads: one of 64 locks covers each region, and a run of clusters
 * takes it once per region, so that sequential images hardly ever wait.
 */
#include "check/refmap.h"
#include "base/checked.h"
#include "base/cleanup.h"

int refmap_init(struct refmap *map, uint64_t clusters, struct qk_error *err)
{
    *map = (struct refmap){.clusters = clusters};
    for (unsigned i = 0; i < REFMAP_STRIPES; i++)
        pthread_mutex_init(&map->stripes[i], NULL);
    map->region_count = div_round_up(clusters, REFMAP_REGION);
    map->regions = calloc(map->region_count + 1, sizeof(*map->regions));
    return map->regions ? 0 : qk_fail_nomem(err);
}

void refmap_free(struct refmap *map)
{
    for (uint64_t i = 0; map->regions && i < map->region_count; i++)
        free(map->regions[i].words);
    free(map->regions);
    for (unsigned i = 0; i < REFMAP_STRIPES; i++)
        pthread_mutex_destroy(&map->stripes[i]);
    *map = (struct refmap){0};
}

int refmap_grow(struct refmap *map, uint64_t clusters, struct qk_error *err)
{
    uint64_t count = div_round_up(clusters, REFMAP_REGION);
    if (count > map->region_count) {
        struct refmap_region *p = realloc(map->regions, (count + 1) * sizeof(*p));
        if (!p)
            return qk_fail_nomem(err);
        for (uint64_t i = map->region_count; i < count; i++)
            p[i] = (struct refmap_region){0};
        map->regions = p;
        map->region_count = count;
    }
    if (clusters > map->clusters)
        map->clusters = clusters;
    return 0;
}

static uint64_t cell_mask(unsigned order)
{
    return order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << order)) - 1;
}

/* A word of cells that all hold one. */
static uint64_t cell_ones(unsigned order)
{
    return UINT64_MAX / cell_mask(order);
}

static uint64_t cell_get(const struct refmap_region *r, uint64_t i)
{
    unsigned per_word = 6u - r->width_order;
    unsigned shift = (unsigned)(i & ((1u << per_word) - 1)) << r->width_order;
    return (r->words[i >> per_word] >> shift) & cell_mask(r->width_order);
}

static void cell_set(struct refmap_region *r, uint64_t i, uint64_t value)
{
    unsigned per_word = 6u - r->width_order;
    unsigned shift = (unsigned)(i & ((1u << per_word) - 1)) << r->width_order;
    uint64_t *word = &r->words[i >> per_word];
    *word = (*word & ~(cell_mask(r->width_order) << shift)) | value << shift;
}

static uint64_t *cells_new(unsigned order)
{
    return calloc(REFMAP_REGION >> (6u - order), sizeof(uint64_t));
}

/* Makes the region's cells wide enough for `count`. */
static int widen(struct refmap_region *r, uint64_t count)
{
    static const uint8_t orders[] = {2, 3, 4, 6};
    struct refmap_region wide = {0};
    for (unsigned i = 0; i < ARRAY_SIZE(orders); i++) {
        wide.width_order = orders[i];
        if (count <= cell_mask(orders[i]) >> REF_MARK_BITS)
            break;
    }
    wide.words = cells_new(wide.width_order);
    if (!wide.words)
        return -ENOMEM;
    for (uint64_t i = 0; r->words && i < REFMAP_REGION; i++)
        cell_set(&wide, i, cell_get(r, i));
    free(r->words);
    *r = wide;
    return 0;
}

static int cell_add(struct refmap_region *r, uint64_t i, uint64_t times, unsigned marks)
{
    uint64_t cell = cell_get(r, i);
    uint64_t count = cell >> REF_MARK_BITS, most = UINT64_MAX >> REF_MARK_BITS;
    count = times > most - count ? most : count + times;
    if (count > cell_mask(r->width_order) >> REF_MARK_BITS) {
        int ret = widen(r, count);
        if (ret < 0)
            return ret;
    }
    cell_set(r, i, count << REF_MARK_BITS | (cell & (REF_COPIED | REF_PLAIN)) | marks);
    return 0;
}

/* Clusters [i, end) of one region, whose lock is held. */
static int region_add(struct refmap_region *r, uint64_t i, uint64_t end, uint64_t times,
                      unsigned marks)
{
    if (!r->words && widen(r, times) < 0)
        return -ENOMEM;
    unsigned order = r->width_order;
    uint64_t per_word = UINT64_C(64) >> order;
    uint64_t fresh = times > cell_mask(order) >> REF_MARK_BITS
                         ? 0
                         : cell_ones(order) * (times << REF_MARK_BITS | marks);
    while (i < end) {
        /* The common case: clusters that nothing else has named yet, a word of them. */
        if (fresh && r->width_order == order && !(i % per_word) && end - i >= per_word &&
            !r->words[i / per_word]) {
            r->words[i / per_word] = fresh;
            i += per_word;
            continue;
        }
        int ret = cell_add(r, i++, times, marks);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int refmap_add(struct refmap *map, struct refmap_span span, uint64_t times, unsigned marks)
{
    uint64_t at = span.first, end = span.first + span.count;
    while (at < end) {
        uint64_t region = at >> REFMAP_REGION_BITS;
        uint64_t stop = min_u64(end, (region + 1) << REFMAP_REGION_BITS);
        uint64_t base = region << REFMAP_REGION_BITS;
        LOCK_SCOPE(&map->stripes[region % REFMAP_STRIPES]);
        int ret = region_add(&map->regions[region], at - base, stop - base, times, marks);
        if (ret < 0)
            return ret;
        at = stop;
    }
    return 0;
}

static uint64_t cell_of(const struct refmap *map, uint64_t cluster)
{
    if (cluster >= map->clusters)
        return 0;
    const struct refmap_region *r = &map->regions[cluster >> REFMAP_REGION_BITS];
    return !r->words ? 0 : cell_get(r, cluster & (REFMAP_REGION - 1));
}

uint64_t refmap_count(const struct refmap *map, uint64_t cluster)
{
    return cell_of(map, cluster) >> REF_MARK_BITS;
}

unsigned refmap_marks(const struct refmap *map, uint64_t cluster)
{
    return (unsigned)cell_of(map, cluster) & (REF_COPIED | REF_PLAIN);
}

bool refmap_uniform(const struct refmap *map, uint64_t first, uint64_t *count, unsigned *marks)
{
    const struct refmap_region *r = &map->regions[first >> REFMAP_REGION_BITS];
    uint64_t i = first & (REFMAP_REGION - 1), cell = r->words ? cell_get(r, i) : 0;
    *count = cell >> REF_MARK_BITS;
    *marks = (unsigned)cell & (REF_COPIED | REF_PLAIN);
    if (!r->words)
        return true;
    const uint64_t *words = &r->words[i >> (6u - r->width_order)];
    uint64_t same = cell * cell_ones(r->width_order);
    for (size_t w = 0; w < REFMAP_GROUP >> (6u - r->width_order); w++) {
        if (words[w] != same)
            return false;
    }
    return true;
}

uint64_t refmap_next(const struct refmap *map, uint64_t at, uint64_t end)
{
    end = min_u64(end, map->clusters);
    while (at < end) {
        const struct refmap_region *r = &map->regions[at >> REFMAP_REGION_BITS];
        if (!r->words)
            at = ((at >> REFMAP_REGION_BITS) + 1) << REFMAP_REGION_BITS;
        else if (cell_get(r, at & (REFMAP_REGION - 1)) >> REF_MARK_BITS)
            return at;
        else
            at++;
    }
    return UINT64_MAX;
}

uint64_t refmap_end(const struct refmap *map)
{
    uint64_t end = map->clusters;
    while (end) {
        const struct refmap_region *r = &map->regions[(end - 1) >> REFMAP_REGION_BITS];
        if (!r->words)
            end = (end - 1) >> REFMAP_REGION_BITS << REFMAP_REGION_BITS;
        else if (cell_get(r, (end - 1) & (REFMAP_REGION - 1)) >> REF_MARK_BITS)
            break;
        else
            end--;
    }
    return end;
}

void refmap_drop(struct refmap *map, struct refmap_span span)
{
    for (uint64_t i = span.first; i < span.first + span.count; i++) {
        uint64_t cell = cell_of(map, i);
        if (cell >> REF_MARK_BITS)
            cell_set(&map->regions[i >> REFMAP_REGION_BITS], i & (REFMAP_REGION - 1),
                     cell - (UINT64_C(1) << REF_MARK_BITS));
    }
}

void refmap_drop_times(struct refmap *map, uint64_t cluster, uint64_t times)
{
    uint64_t cell = cell_of(map, cluster);
    if (cell >> REF_MARK_BITS)
        cell_set(&map->regions[cluster >> REFMAP_REGION_BITS], cluster & (REFMAP_REGION - 1),
                 cell - (min_u64(times, cell >> REF_MARK_BITS) << REF_MARK_BITS));
}
