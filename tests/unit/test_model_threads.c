/*
 * test_model_threads.c - one image, many threads. Each thread owns stripes of bytes, so that the
 * model stays exact, and the stripes are cut so that neighbours meet inside one cluster: the
 * threads allocate, copy and zero the same clusters at the same time. One more thread flushes,
 * grows the disk and asks for the block status all the while. Meant for the thread sanitizer too.
 */
#include "model.h"

#include <pthread.h>

enum { WORKERS = 4 };

static const struct {
    struct shape shape;
    uint32_t stripe_bytes;
} cases[] = {
    {{"cluster_size=4096", 4096, 240, BACKING_NONE, NULL, false}, 1024 + 136},
    {{"cluster_size=512", 512, 700, BACKING_RAW, "l2-cache-size=2048", false}, 3 * 512},
    {{"cluster_size=65536", 65536, 40, BACKING_QCOW2, NULL, false}, 20000},
    {{"cluster_size=65536", 65536, 60, BACKING_NONE, NULL, false}, 65536},
    {{"cluster_size=4096,refcount_bits=1", 4096, 240, BACKING_SHORTER, NULL, false},
     2 * 4096 + 700},
    {{"cluster_size=1024,lazy_refcounts=on", 1024, 500, BACKING_LONGER, NULL, false}, 4096},
    {{"cluster_size=2097152", 2097152, 4, BACKING_NONE, NULL, false}, 100001},
    {{"extended_l2=on,cluster_size=16384", 16384, 80, BACKING_QCOW2, NULL, false}, 7 * 512 + 100},
    {{"extended_l2=on,cluster_size=65536,preallocation=metadata", 65536, 40, BACKING_SHORTER, NULL,
      false},
     12288},
};

struct worker {
    struct subject *s;
    uint64_t first_size; /* before any growing */
    uint32_t stripe_bytes;
    unsigned index, operations;
    struct rng rng;
    uint8_t *scratch;
    pthread_t thread;
};

struct range {
    uint64_t off, len;
};

/* A range inside one stripe of the worker; some at the stripe's edges, some all of it. */
static struct range own_range(struct worker *w)
{
    uint64_t stripes = w->first_size / w->stripe_bytes;
    uint64_t stripe = rng_below(&w->rng, stripes / WORKERS) * WORKERS + w->index;
    struct range r = {rng_below(&w->rng, w->stripe_bytes), 0};

    if (rng_below(&w->rng, 3) == 0)
        r.off = 0;
    r.len = 1 + rng_below(&w->rng, w->stripe_bytes - r.off);
    if (rng_below(&w->rng, 2))
        r.len = w->stripe_bytes - r.off;
    r.off += stripe * w->stripe_bytes;
    return r;
}

static void work_write(struct worker *w, struct range r)
{
    struct qk_error err = {0};

    rng_fill(&w->rng, w->s->model + r.off, r.len);
    int ret = qk_disk_write(w->s->disk, r.off, w->s->model + r.off, r.len, 0, &err);
    subject_ok(w->s, ret == 0, "write", &err);
}

static void work_zero(struct worker *w, struct range r)
{
    struct qk_error err = {0};

    memset(w->s->model + r.off, 0, r.len);
    int ret = qk_disk_write_zeroes(w->s->disk, r.off, r.len, QK_WRITE_UNMAP, &err);
    subject_ok(w->s, ret == 0, "write zeroes", &err);
}

/* Whole clusters of the range become zero, the rest stays. With subclusters, whole subclusters: no
 * stripe is large enough for a compressed cluster then. */
static void work_discard(struct worker *w, struct range r)
{
    uint64_t c = shape_unit(w->s->shape);
    uint64_t from = (r.off + c - 1) / c * c, to = (r.off + r.len) / c * c;
    struct qk_error err = {0};

    if (to > from)
        memset(w->s->model + from, 0, to - from);
    subject_ok(w->s, qk_disk_discard(w->s->disk, r.off, r.len, &err) == 0, "discard", &err);
}

/* The first whole cluster of the range, compressed. */
static void work_compress(struct worker *w, struct range r)
{
    uint64_t c = w->s->shape->cluster_bytes, from = (r.off + c - 1) / c * c;

    if (from + c <= r.off + r.len)
        subject_compress(w->s, &w->rng, from, c);
}

static void work_read(struct worker *w, struct range r)
{
    struct qk_error err = {0};

    if (!subject_ok(w->s, qk_disk_read(w->s->disk, r.off, w->scratch, r.len, &err) == 0, "read",
                    &err))
        return;
    subject_ok(w->s, memcmp(w->scratch, w->s->model + r.off, r.len) == 0,
               "a thread reads what it wrote", NULL);
}

static void *worker_main(void *arg)
{
    static void (*const work[])(struct worker *, struct range) = {
        work_write, work_write,   work_write,    work_zero,
        work_read,  work_discard, work_compress, work_read,
    };
    struct worker *w = arg;

    for (unsigned i = 0; i < w->operations; i++)
        work[rng_below(&w->rng, 8)](w, own_range(w));
    return NULL;
}

/* Flush, status and growing while the others work. */
static void *keeper_main(void *arg)
{
    struct worker *w = arg;
    struct subject *s = w->s;

    for (unsigned i = 0; i < w->operations / 4; i++) {
        struct qk_error err = {0};
        struct qk_extent e;
        uint64_t off = rng_below(&w->rng, w->first_size);
        subject_ok(s, qk_disk_flush(s->disk, &err) == 0, "flush", &err);
        subject_ok(s, qk_disk_status(s->disk, off, w->first_size - off, 0, &e, &err) == 0, "status",
                   &err);
        if (i % 8 == 0 && s->size + 4096 < 2 * w->first_size) {
            s->size += 4096;
            subject_ok(s, qk_disk_resize(s->disk, s->size, QK_PREALLOC_OFF, 0, &err) == 0, "grow",
                       &err);
        }
    }
    return NULL;
}

static void run_threads(struct subject *s, uint32_t stripe_bytes, unsigned operations)
{
    struct worker workers[WORKERS + 1];

    for (unsigned i = 0; i <= WORKERS; i++) {
        struct worker *w = &workers[i];
        *w = (struct worker){.s = s,
                             .first_size = s->size,
                             .stripe_bytes = stripe_bytes,
                             .index = i,
                             .operations = operations};
        w->rng.state = s->seed * 7919 + i;
        w->scratch = malloc(stripe_bytes);
    }
    for (unsigned i = 0; i <= WORKERS; i++)
        pthread_create(&workers[i].thread, NULL, i < WORKERS ? worker_main : keeper_main,
                       &workers[i]);
    for (unsigned i = 0; i <= WORKERS; i++) {
        pthread_join(workers[i].thread, NULL);
        free(workers[i].scratch);
    }
}

static void run_case(size_t index, unsigned operations, uint64_t seed)
{
    struct subject s = {.seed = seed};
    char tag[64];

    snprintf(tag, sizeof(tag), "threads-%d-%zu", (int)getpid(), index);
    if (subject_start(&s, &cases[index].shape, tag)) {
        run_threads(&s, cases[index].stripe_bytes, operations);
        if (subject_compare(&s) && subject_close(&s) && subject_check(&s) && subject_open(&s))
            subject_compare(&s);
    }
    subject_end(&s);
}

int main(int argc, char **argv)
{
    unsigned operations = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 1000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        run_case(i, operations, seed);
    return TEST_SUMMARY();
}
