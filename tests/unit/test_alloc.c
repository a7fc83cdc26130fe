/*
 * test_alloc.c - the allocator against its promises (INV-5), at small cluster sizes and all
 * refcount widths: each allocation takes the lowest run that fits, the refcount blocks and tables
 * that it needs take the lowest places that are left, and after a writeback the file ends with its
 * highest used cluster. What is free is found out independently, by reading every refcount.
 */
#include "image/image_int.h"
#include "test.h"

#define MAX_CLUSTERS 60000u

struct world {
    struct qk_io *io;
    struct image *img;
    uint8_t before[MAX_CLUSTERS], after[MAX_CLUSTERS]; /* refcount is not 0 */
    struct cluster_run owned[4096];
    size_t owned_count;
    unsigned seed;
};

static unsigned next(struct world *w, unsigned below)
{
    w->seed = w->seed * 1103515245u + 12345u;
    return (w->seed >> 8) % below;
}

static void read_used(struct image *img, uint8_t *used)
{
    pthread_mutex_lock(&img->alloc_lock);
    for (uint64_t c = 0; c < MAX_CLUSTERS; c++) {
        uint64_t value = 1;
        CHECK(refcount_get(img, c, &value, NULL) == 0 || c == 0);
        used[c] = value != 0;
    }
    pthread_mutex_unlock(&img->alloc_lock);
}

static uint64_t lowest_fit(const uint8_t *used, uint64_t n)
{
    uint64_t run = 0;
    for (uint64_t c = 0; c < MAX_CLUSTERS; c++) {
        run = used[c] ? 0 : run + 1;
        if (run == n)
            return c + 1 - n;
    }
    return UINT64_MAX;
}

/* What else became used must be refcount metadata at the lowest places. */
static void check_metadata(struct world *w, struct cluster_run run, uint64_t old_table)
{
    uint64_t table = w->img->reftable.off >> w->img->g.cluster_bits;
    uint64_t table_n = w->img->reftable.count * 8 >> w->img->g.cluster_bits;
    uint64_t lowest_free = lowest_fit(w->after, 1), blocks = 0;
    for (uint64_t c = 0; c < MAX_CLUSTERS; c++) {
        bool mine = c >= run.first && c < run.first + run.count;
        bool in_table = table != old_table && c >= table && c < table + table_n;
        if (w->after[c] == w->before[c] || mine || in_table)
            continue;
        CHECK(w->after[c]);
        CHECK(c < lowest_free);
        blocks++;
    }
    /* A new table may leave holes below it only that are too small for it. */
    if (table != old_table)
        CHECK(lowest_fit(w->after, table_n) > table);
    CHECK(blocks < 400);
}

static void allocate(struct world *w, uint64_t n)
{
    struct cluster_run run;
    uint64_t old_table = w->img->reftable.off >> w->img->g.cluster_bits;
    read_used(w->img, w->before);
    uint64_t expected = lowest_fit(w->before, n);
    REQUIRE(alloc_clusters(w->img, n, &run, NULL) == 0);
    CHECK_EQ(run.count, n);
    CHECK_EQ(run.first, expected);
    read_used(w->img, w->after);
    check_metadata(w, run, old_table);
    if (w->owned_count < ARRAY_SIZE(w->owned))
        w->owned[w->owned_count++] = run;
}

static void release(struct world *w)
{
    if (!w->owned_count)
        return;
    size_t i = next(w, (unsigned)w->owned_count);
    CHECK_OK(free_queue(w->img, w->owned[i], NULL));
    read_used(w->img, w->before);
    /* Not reusable before the removal is stable (INV-2). */
    CHECK(w->before[w->owned[i].first]);
    w->owned[i] = w->owned[--w->owned_count];
}

static void check_length(struct world *w)
{
    uint64_t size, end = 0;
    CHECK_OK(image_begin_writing(w->img, NULL));
    CHECK_OK(image_flush(w->img, NULL));
    CHECK_OK(image_flush(w->img, NULL));
    read_used(w->img, w->after);
    for (uint64_t c = 0; c < MAX_CLUSTERS; c++)
        if (w->after[c])
            end = c + 1;
    CHECK_OK(io_size(w->io, &size, NULL));
    CHECK_EQ(size, end << w->img->g.cluster_bits);
}

static void open_world(struct world *w, uint32_t cluster_bits, uint32_t order)
{
    struct create_params p = {
        .size_bytes = 1 << 20,
        .version = 3,
        .cluster_bits = cluster_bits,
        .refcount_order = order,
    };
    struct image_options o = {.writable = true, .lazy_refcounts = -1, .overlap = OVERLAP_CACHED};
    REQUIRE(io_mem_open(NULL, 0, 0, &w->io, NULL) == 0);
    REQUIRE(image_create(w->io, &p, NULL) == 0);
    REQUIRE(image_open(w->io, &o, &w->img, NULL) == 0);
}

static void test_random(uint32_t cluster_bits, uint32_t order)
{
    struct world *w = calloc(1, sizeof(*w));
    w->seed = cluster_bits * 64 + order;
    open_world(w, cluster_bits, order);
    for (int i = 0; i < 60 && w->img; i++) {
        unsigned what = next(w, 10);
        if (what < 6)
            allocate(w, 1 + next(w, what == 0 ? 900 : 30));
        else if (what < 9)
            release(w);
        else
            check_length(w);
    }
    check_length(w);
    CHECK_OK(image_close(w->img, NULL));
    CHECK_OK(io_close(w->io, NULL));
    free(w);
}

/* ---- a cluster on its way to be free belongs to nobody yet ---- */

static struct image *discarding;
static struct cluster_run taken_meanwhile;

static int allocate_in_discard(struct qk_io *io, uint64_t off, uint64_t len, struct qk_error *err)
{
    (void)io;
    (void)off;
    (void)len;
    (void)err;
    CHECK_OK(alloc_clusters(discarding, 1, &taken_meanwhile, NULL));
    return 0;
}

/* The free map has not looked at the cluster before, so it knows its refcount only. */
static void test_taken_in_discard(void)
{
    struct create_params p = {.size_bytes = 1 << 20,
                              .version = 3,
                              .cluster_bits = 9,
                              .refcount_order = 4,
                              .prealloc = QK_PREALLOC_METADATA};
    struct image_options o = {
        .writable = true, .lazy_refcounts = -1, .overlap = OVERLAP_CACHED, .discard_to_file = true};
    struct qk_io *io;
    REQUIRE(io_mem_open(NULL, 0, 0, &io, NULL) == 0);
    REQUIRE(image_create(io, &p, NULL) == 0);
    REQUIRE(image_open(io, &o, &discarding, NULL) == 0);
    struct qk_io_ops ops = *io->ops;
    const struct qk_io_ops *plain = io->ops;
    ops.discard = allocate_in_discard;
    io->ops = &ops;
    struct map_extent ext;
    CHECK_OK(image_map(discarding, guest_off(4096), 512, &ext, NULL));
    CHECK_OK(image_discard(discarding, guest_off(4096), 512, NULL));
    CHECK_OK(image_flush(discarding, NULL));
    CHECK_EQ(taken_meanwhile.count, 1);
    CHECK(taken_meanwhile.first != ext.host >> 9);
    io->ops = plain;
    CHECK_OK(image_close(discarding, NULL));
    io_close(io, NULL);
}

int main(void)
{
    for (uint32_t order = 0; order <= 6; order++) {
        test_random(9, order);
        test_random(10, order);
    }
    test_taken_in_discard();
    return TEST_SUMMARY();
}
