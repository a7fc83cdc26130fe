/*
 * test_concurrency.c - many threads on one image: allocating writes to neighbouring clusters and to
 * the same cluster, against discards, flushes and a growing disk, each thread with a model of the
 * bytes that it owns (for TSan, and at small caches so that slices come and go). And a promise that
 * is tested without timing: while an allocation is stuck, requests that touch only allocated
 * clusters finish.
 */
#include "base/cleanup.h"
#include "check/check.h"
#include "image/image.h"
#include "test.h"

#include <pthread.h>

#define THREADS      4
#define STRIPE       3000u
#define SHARED_BYTES (2u << 20) /* byte stripes of all threads, within the same clusters */
#define OWNED_BYTES  (2u << 20) /* clusters owned in turn */
#define DISK         (SHARED_BYTES + OWNED_BYTES)

struct world {
    struct qk_io *io;
    struct image *img;
    uint32_t cluster;
    uint8_t model[DISK];
    bool stop; /* atomic */
};

struct worker {
    struct world *w;
    unsigned number, seed;
    uint8_t buf[STRIPE > 65536 ? STRIPE : 65536];
};

static unsigned next(struct worker *k, unsigned below)
{
    return (unsigned)rand_r(&k->seed) % below;
}

static void write_random(struct worker *k, uint64_t off, size_t len)
{
    for (size_t i = 0; i < len; i++)
        k->buf[i] = (uint8_t)next(k, 256);
    CHECK_OK(image_writev(k->w->img, guest_off(off), &(struct iovec){k->buf, len}, 1, 0, NULL));
    memcpy(k->w->model + off, k->buf, len);
}

static void read_back(struct worker *k, uint64_t off, size_t len)
{
    CHECK_OK(image_readv(k->w->img, guest_off(off), &(struct iovec){k->buf, len}, 1, NULL));
    CHECK_MEM(k->buf, k->w->model + off, len);
}

/* Fields that are written together are seen together: the L1 table always covers the disk. */
static void look_at_header(struct worker *k)
{
    const struct geometry *g = image_geometry(k->w->img);
    const struct header h = image_header_copy(k->w->img);
    CHECK((uint64_t)h.l1_entries << (g->l2_bits + g->cluster_bits) >= h.size_bytes);
    CHECK_EQ(h.cluster_bits, g->cluster_bits);
}

static void step_shared(struct worker *k)
{
    uint64_t stripe = next(k, SHARED_BYTES / STRIPE / THREADS) * THREADS + k->number;
    uint64_t off = stripe * STRIPE + next(k, 1000);
    size_t len = 1 + next(k, STRIPE - 1000);
    unsigned what = next(k, 10);
    if (what < 4) {
        write_random(k, off, len);
    } else if (what < 5) {
        CHECK_OK(image_zero(k->w->img, guest_off(off), len, next(k, 2), NULL));
        memset(k->w->model + off, 0, len);
    } else if (what < 6) {
        look_at_header(k);
    } else {
        read_back(k, off, len);
    }
}

static void step_owned(struct worker *k)
{
    uint64_t clusters = OWNED_BYTES / k->w->cluster;
    uint64_t mine = next(k, (unsigned)(clusters / THREADS)) * THREADS + k->number;
    uint64_t off = SHARED_BYTES + mine * k->w->cluster;
    unsigned what = next(k, 10);
    if (what < 4) {
        write_random(k, off, k->w->cluster);
    } else if (what < 7) {
        CHECK_OK(image_discard(k->w->img, guest_off(off), k->w->cluster, NULL));
        memset(k->w->model + off, 0, k->w->cluster);
    } else {
        read_back(k, off, k->w->cluster);
    }
}

static void *work(void *opaque)
{
    struct worker *k = opaque;
    for (int i = 0; i < 700; i++)
        next(k, 2) ? step_shared(k) : step_owned(k);
    return NULL;
}

static void *flush_and_grow(void *opaque)
{
    struct world *w = opaque;
    for (uint64_t size = DISK; !__atomic_load_n(&w->stop, __ATOMIC_RELAXED); size += 1 << 16) {
        CHECK_OK(image_flush(w->img, NULL));
        if (size < 2 * DISK)
            CHECK_OK(image_resize(w->img, size, QK_PREALLOC_OFF, 0, NULL));
    }
    return NULL;
}

static void check_end(struct world *w)
{
    struct image_options o = {.for_check = true, .lazy_refcounts = -1};
    struct qk_check_options co = QK_CHECK_OPTIONS_INIT;
    struct qk_check_result result = QK_CHECK_RESULT_INIT;
    struct image *img;
    REQUIRE(image_open(w->io, &o, &img, NULL) == 0);
    CHECK_OK(check_image(img, &co, &result, NULL));
    CHECK_EQ(result.corruptions + result.leaks + result.check_errors, 0);
    CLEANUP_FREE uint8_t *all = malloc(DISK);
    CHECK_OK(image_readv(img, guest_off(0), &(struct iovec){all, DISK}, 1, NULL));
    CHECK_MEM(all, w->model, DISK);
    image_abandon(img);
}

static void make_image(struct world *w, uint32_t cluster_bits, bool lazy, struct image_options *o)
{
    struct create_params p = {.size_bytes = DISK,
                              .version = 3,
                              .cluster_bits = cluster_bits,
                              .refcount_order = 4,
                              .lazy_refcounts = lazy};
    w->cluster = 1u << cluster_bits;
    REQUIRE(io_mem_open(NULL, 0, 0, &w->io, NULL) == 0);
    REQUIRE(image_create(w->io, &p, NULL) == 0);
    REQUIRE(image_open(w->io, o, &w->img, NULL) == 0);
}

static void test_together(uint32_t cluster_bits, uint64_t l2_cache, bool lazy)
{
    struct world *w = calloc(1, sizeof(*w));
    struct worker *workers = calloc(THREADS, sizeof(*workers));
    struct image_options o = {.writable = true,
                              .lazy_refcounts = -1,
                              .overlap = OVERLAP_CACHED,
                              .l2_cache_bytes = l2_cache,
                              .refcount_cache_bytes = l2_cache};
    pthread_t threads[THREADS], helper;
    make_image(w, cluster_bits, lazy, &o);
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i].w = w;
        workers[i].number = i;
        workers[i].seed = cluster_bits * 100 + i;
        CHECK_OK(pthread_create(&threads[i], NULL, work, &workers[i]));
    }
    CHECK_OK(pthread_create(&helper, NULL, flush_and_grow, w));
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    __atomic_store_n(&w->stop, true, __ATOMIC_RELAXED);
    pthread_join(helper, NULL);
    CHECK_OK(image_close(w->img, NULL));
    check_end(w);
    io_close(w->io, NULL);
    free(workers);
    free(w);
}

/* ---- nobody waits for an allocation elsewhere ---- */

/* A mem store whose "cluster_alloc" event blocks until it is let go. */
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gate_changed = PTHREAD_COND_INITIALIZER;
static bool gate_closed, someone_stuck;

static void stop_at_gate(struct qk_io *io, const char *event)
{
    (void)io;
    if (strcmp(event, "cluster_alloc") != 0)
        return;
    LOCK_SCOPE(&gate);
    while (gate_closed) {
        someone_stuck = true;
        pthread_cond_broadcast(&gate_changed);
        pthread_cond_wait(&gate_changed, &gate);
    }
}

static void set_gate(bool closed)
{
    LOCK_SCOPE(&gate);
    gate_closed = closed;
    pthread_cond_broadcast(&gate_changed);
}

static void wait_until_stuck(void)
{
    LOCK_SCOPE(&gate);
    while (!someone_stuck)
        pthread_cond_wait(&gate_changed, &gate);
}

static void *write_beyond(void *opaque)
{
    struct world *w = opaque;
    static uint8_t buf[512];
    CHECK_OK(
        image_writev(w->img, guest_off(1 << 20), &(struct iovec){buf, sizeof(buf)}, 1, 0, NULL));
    return NULL;
}

static void test_nobody_waits(void)
{
    struct world *w = calloc(1, sizeof(*w));
    struct image_options o = {.writable = true, .lazy_refcounts = -1, .overlap = OVERLAP_CACHED};
    static uint8_t buf[4096];
    pthread_t stuck;
    make_image(w, 12, false, &o);
    struct qk_io_ops ops = *w->io->ops;
    ops.event = stop_at_gate;
    const struct qk_io_ops *plain = w->io->ops;
    w->io->ops = &ops;
    struct iovec iov = {buf, sizeof(buf)};
    CHECK_OK(image_writev(w->img, guest_off(0), &iov, 1, 0, NULL));
    set_gate(true);
    CHECK_OK(pthread_create(&stuck, NULL, write_beyond, w));
    wait_until_stuck();
    /* Would hang here if it waited; the test runner's limit would end it as a failure. */
    CHECK_OK(image_writev(w->img, guest_off(0), &iov, 1, 0, NULL));
    CHECK_OK(image_readv(w->img, guest_off(0), &iov, 1, NULL));
    CHECK_OK(image_readv(w->img, guest_off(2 << 20), &iov, 1, NULL));
    set_gate(false);
    pthread_join(stuck, NULL);
    w->io->ops = plain;
    CHECK_OK(image_close(w->img, NULL));
    check_end(w);
    io_close(w->io, NULL);
    free(w);
}

int main(void)
{
    test_together(9, 0, false);
    test_together(9, 2048, false);
    test_together(12, 0, true);
    test_together(16, 0, false);
    test_nobody_waits();
    return TEST_SUMMARY();
}
