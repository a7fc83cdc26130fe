/*
 * test_freemap.c - the free map against a plain byte array: random operations with fixed seeds,
 * leaves that are loaded when first needed, the lowest fit asserted for each search; then far
 * offsets, failing loads and memory.
 */
#include "image/freemap.h"
#include "nomem.h"
#include "test.h"

#include <malloc.h>

#define MODEL_LEAVES   40u
#define MODEL_CLUSTERS (MODEL_LEAVES * FREEMAP_LEAF)

struct model {
    uint8_t on_disk[MODEL_CLUSTERS]; /* what load() reports */
    uint8_t used[MODEL_CLUSTERS];    /* what the map must say */
    unsigned loads[MODEL_LEAVES];
    uint64_t end;
    int fail; /* what load() returns */
};

static uint64_t rng_state;

static uint64_t rng(uint64_t below)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state % below;
}

static int model_load(void *opaque, uint64_t leaf, uint64_t used[FREEMAP_LEAF / 64],
                      struct qk_error *err)
{
    struct model *m = opaque;
    if (m->fail)
        return qk_fail(err, m->fail, "load fails");
    CHECK(leaf < MODEL_LEAVES && leaf * FREEMAP_LEAF < m->end);
    m->loads[leaf]++;
    for (unsigned i = 0; i < FREEMAP_LEAF; i++)
        used[i / 64] |= (uint64_t)m->on_disk[leaf * FREEMAP_LEAF + i] << (i % 64);
    return 0;
}

/* Runs of used clusters of mixed length, some leaves full, some empty. */
static struct model *model_new(uint64_t end)
{
    struct model *m = calloc(1, sizeof(*m));
    m->end = end;
    for (uint64_t at = 0; at < end;) {
        uint64_t n = rng(4) ? 1 + rng(40) : 1 + rng(3 * FREEMAP_LEAF);
        uint8_t used = rng(2) != 0;
        for (uint64_t i = 0; i < n && at < end; i++)
            m->on_disk[at++] = used;
    }
    memcpy(m->used, m->on_disk, sizeof(m->used));
    return m;
}

static uint64_t model_run_at(const struct model *m, uint64_t at, uint64_t n)
{
    uint64_t len = 0;
    while (len < n && (at + len >= MODEL_CLUSTERS || !m->used[at + len]))
        len++;
    return len;
}

static uint64_t model_find(const struct model *m, uint64_t n)
{
    for (uint64_t at = 0;;) {
        uint64_t len = model_run_at(m, at, n);
        if (len == n)
            return at;
        at += len + 1;
    }
}

static void step_set(struct freemap *map, struct model *m)
{
    uint64_t start = rng(MODEL_CLUSTERS);
    uint64_t most = rng(8) ? 64 : MODEL_CLUSTERS;
    uint64_t n = 1 + rng(most);
    bool used = rng(2) != 0;
    if (n > MODEL_CLUSTERS - start)
        n = MODEL_CLUSTERS - start;
    CHECK_OK(freemap_set(map, start, n, used, NULL));
    memset(m->used + start, used, n);
}

static void step_find(struct freemap *map, struct model *m)
{
    uint64_t start, len, n = rng(3) ? 1 + rng(20) : 1 + rng(3 * FREEMAP_LEAF);
    CHECK_OK(freemap_find(map, n, &start, NULL));
    CHECK_EQ(start, model_find(m, n));
    CHECK_OK(freemap_find_any(map, n, &start, &len, NULL));
    CHECK_EQ(start, model_find(m, 1));
    CHECK_EQ(len, model_run_at(m, start, n));
}

static void step_allocate(struct freemap *map, struct model *m)
{
    uint64_t start, n = 1 + rng(5);
    CHECK_OK(freemap_find(map, n, &start, NULL));
    CHECK_EQ(start, model_find(m, n));
    if (start + n > MODEL_CLUSTERS)
        return;
    CHECK_OK(freemap_set(map, start, n, true, NULL));
    memset(m->used + start, 1, n);
}

static void step_end(struct freemap *map, struct model *m)
{
    uint64_t end = rng(MODEL_CLUSTERS + 1), expected = end;
    while (expected && !m->used[expected - 1])
        expected--;
    CHECK_OK(freemap_used_end(map, &end, NULL));
    CHECK_EQ(end, expected);
}

static void step_is_used(struct freemap *map, struct model *m)
{
    uint64_t at = rng(MODEL_CLUSTERS);
    bool used;
    CHECK_OK(freemap_is_used(map, at, &used, NULL));
    CHECK_EQ(used, m->used[at]);
}

static void random_run(uint64_t seed, unsigned steps)
{
    static void (*const step[])(struct freemap *, struct model *) = {
        step_set, step_find, step_allocate, step_is_used, step_allocate, step_find, step_end,
    };
    rng_state = seed;
    struct model *m = model_new(rng(MODEL_CLUSTERS));
    struct freemap *map;
    CHECK_OK(freemap_new(m->end, model_load, m, &map, NULL));
    for (unsigned i = 0; i < steps; i++) /* the end rarely, as it loads much */
        step[rng(40) ? rng(6) : 6](map, m);
    for (unsigned i = 0; i < MODEL_LEAVES; i++)
        CHECK(m->loads[i] <= 1);
    freemap_free(map);
    free(m);
}

/* A search touches no leaf behind its answer. */
static void lazy_loading(void)
{
    struct model *m = calloc(1, sizeof(*m));
    struct freemap *map;
    uint64_t start;
    m->end = MODEL_CLUSTERS;
    memset(m->on_disk, 1, 2 * FREEMAP_LEAF);
    CHECK_OK(freemap_new(m->end, model_load, m, &map, NULL));
    CHECK_OK(freemap_find(map, 10, &start, NULL));
    CHECK_EQ(start, 2 * FREEMAP_LEAF);
    for (unsigned i = 0; i < MODEL_LEAVES; i++)
        CHECK_EQ(m->loads[i], i < 3);
    CHECK_OK(freemap_set(map, 5 * FREEMAP_LEAF, 2 * FREEMAP_LEAF, true, NULL));
    CHECK_EQ(m->loads[5] + m->loads[6], 0); /* whole leaves need no load */
    freemap_free(map);
    free(m);
}

static void failing_load(void)
{
    struct model *m = calloc(1, sizeof(*m));
    struct freemap *map;
    struct qk_error err;
    uint64_t start;
    bool used;
    m->end = MODEL_CLUSTERS;
    m->fail = -EIO;
    m->on_disk[0] = 1;
    CHECK_OK(freemap_new(m->end, model_load, m, &map, NULL));
    CHECK_ERR(freemap_find(map, 1, &start, &err), -EIO);
    CHECK_STR(err.text, "load fails");
    CHECK_ERR(freemap_set(map, 7, 1, true, NULL), -EIO);
    start = MODEL_CLUSTERS;
    CHECK_ERR(freemap_used_end(map, &start, NULL), -EIO);
    m->fail = 0;
    CHECK_OK(freemap_is_used(map, 7, &used, NULL));
    CHECK(!used);
    CHECK_OK(freemap_find(map, 1, &start, NULL));
    CHECK_EQ(start, 1);
    freemap_free(map);
    free(m);
}

static int load_full(void *opaque, uint64_t leaf, uint64_t used[FREEMAP_LEAF / 64],
                     struct qk_error *err)
{
    (void)leaf;
    (void)err;
    memset(used, 0xff, FREEMAP_LEAF / 8);
    ++*(uint64_t *)opaque;
    return 0;
}

static void far_offsets(void)
{
    const uint64_t far = (UINT64_C(1) << 47) - 1;
    uint64_t loads = 0, start, len, end = far;
    struct freemap *map;
    bool used;
    CHECK_OK(freemap_new(0, load_full, &loads, &map, NULL));
    CHECK_OK(freemap_used_end(map, &end, NULL));
    CHECK_EQ(end, 0);
    CHECK_OK(freemap_set(map, far, 1, true, NULL));
    end = far + 1;
    CHECK_OK(freemap_used_end(map, &end, NULL));
    CHECK_EQ(end, far + 1);
    CHECK_OK(freemap_find(map, far, &start, NULL));
    CHECK_EQ(start, 0);
    CHECK_OK(freemap_find(map, far + 1, &start, NULL));
    CHECK_EQ(start, far + 1);
    CHECK_OK(freemap_find_any(map, UINT64_MAX, &start, &len, NULL));
    CHECK_EQ(start, 0);
    CHECK_EQ(len, far);
    CHECK_OK(freemap_set(map, 0, far, true, NULL));
    CHECK_OK(freemap_find(map, 1, &start, NULL));
    CHECK_EQ(start, far + 1);
    CHECK_OK(freemap_is_used(map, far / 2, &used, NULL));
    CHECK(used);
    CHECK_ERR(freemap_set(map, UINT64_MAX, 2, true, NULL), -EFBIG);
    CHECK_ERR(freemap_set(map, 2, UINT64_MAX, true, NULL), -EFBIG);
    CHECK_ERR(freemap_is_used(map, UINT64_MAX, &used, NULL), -EFBIG);
    CHECK_ERR(freemap_find(map, UINT64_MAX, &start, NULL), -EFBIG);
    CHECK_OK(freemap_set(map, 123, 0, true, NULL));
    CHECK_EQ(loads, 0);
    freemap_free(map);
}

/* 16 TiB of 64 KiB clusters, one free cluster in each leaf: the worst for memory. */
static void memory_bound(void)
{
    const uint64_t leaves = (UINT64_C(16) << 40 >> 16) / FREEMAP_LEAF;
    uint64_t loads = 0, start;
    struct freemap *map;
    size_t before = mallinfo2().uordblks;
    CHECK_OK(freemap_new(leaves * FREEMAP_LEAF, load_full, &loads, &map, NULL));
    CHECK_OK(freemap_set(map, 0, leaves * FREEMAP_LEAF, true, NULL));
    CHECK(mallinfo2().uordblks - before < (64u << 10));
    for (uint64_t i = leaves; i-- > 0;)
        CHECK_OK(freemap_set(map, i * FREEMAP_LEAF + i % FREEMAP_LEAF, 1, false, NULL));
    CHECK(mallinfo2().uordblks - before <= (40u << 20));
    for (uint64_t i = 0; i < leaves; i++) {
        CHECK_OK(freemap_find(map, 1, &start, NULL));
        CHECK_EQ(start, i * FREEMAP_LEAF + i % FREEMAP_LEAF);
        CHECK_OK(freemap_set(map, start, 1, true, NULL));
    }
    CHECK_OK(freemap_find(map, 1, &start, NULL));
    CHECK_EQ(start, leaves * FREEMAP_LEAF);
    CHECK_EQ(loads, 0);
    CHECK(mallinfo2().uordblks - before < (64u << 10)); /* full leaves give their bits back */
    freemap_free(map);
}

/* Each change first runs out of memory at some allocation; then nothing has changed, and the same
 * change goes through. */
static void out_of_memory_run(uint64_t seed)
{
    rng_state = seed;
    struct model *m = model_new(MODEL_CLUSTERS);
    struct freemap *map;
    unsigned failed = 0;
    countdown = 0;
    CHECK_ERR(freemap_new(m->end, model_load, m, &map, NULL), -ENOMEM);
    countdown = -1;
    CHECK_OK(freemap_new(m->end, model_load, m, &map, NULL));
    for (unsigned i = 0; i < 400; i++) {
        uint64_t start = rng(MODEL_CLUSTERS), n = 1 + rng(rng(2) ? 100 : 5 * FREEMAP_LEAF), at;
        bool used = rng(2) != 0;
        if (n > MODEL_CLUSTERS - start)
            n = MODEL_CLUSTERS - start;
        countdown = (long)rng(4);
        int ret = freemap_set(map, start, n, used, NULL);
        countdown = -1;
        failed += ret < 0;
        CHECK(ret == 0 || ret == -ENOMEM);
        if (ret == 0)
            memset(m->used + start, used, n);
        CHECK_OK(freemap_find(map, n, &at, NULL));
        CHECK_EQ(at, model_find(m, n));
        for (uint64_t c = start > 3 ? start - 3 : 0; c < start + n && c < MODEL_CLUSTERS; c += 3) {
            CHECK_OK(freemap_is_used(map, c, &used, NULL));
            CHECK_EQ(used, m->used[c]);
        }
    }
    CHECK(failed > 10);
    step_end(map, m);
    freemap_free(map);
    free(m);
}

int main(void)
{
    out_of_memory_run(UINT64_C(0x853c49e6748fea9b));
    for (uint64_t seed = 1; seed <= 12; seed++)
        random_run(seed * UINT64_C(0x9e3779b97f4a7c15), 1200);
    lazy_loading();
    failing_load();
    far_offsets();
    memory_bound();
    return TEST_SUMMARY();
}
