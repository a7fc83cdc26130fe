/*
 * threads.c - crashes of an image that several threads write to at once. Each thread has its own
 * sectors, and its own model of them; the threads meet in clusters, tables and flushes. What the
 * threads do is seeded, how they interleave is not: a failed image is kept in a file.
 *
 *     threads [--states N]
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "stage.h"
#include "states.h"
#include "verify.h"

#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

enum { THREADS = 4, STEPS = 70, K = 1024 };

/* Small clusters: many tables. Large ones: threads share clusters. */
#define SETUP(name_, seed_, size_, version_, cluster_bits_, order_)                                \
    .name = (name_), .seed = (seed_), .create.size_bytes = (size_), .create.version = (version_),  \
    .create.cluster_bits = (cluster_bits_), .create.refcount_order = (order_),                     \
    .options = {.lazy_refcounts = -1, .overlap = OVERLAP_CACHED}

static const struct workload setups[] = {
    {SETUP("threads-512", 1, 512 * K, 3, 9, 4)},
    {SETUP("threads-8k", 2, 512 * K, 3, 13, 4)},
    {SETUP("threads-backing", 3, 256 * K, 3, 12, 3), .backing_bytes = 200 * K},
    {SETUP("threads-v2", 4, 256 * K, 2, 10, 4)},
    {SETUP("threads-lazy", 5, 256 * K, 3, 9, 4), .create.lazy_refcounts = true},
    {SETUP("threads-growth", 6, 2560 * K, 3, 9, 6)},
    {SETUP("threads-punch", 7, 512 * K, 3, 12, 4), .create.prealloc = QK_PREALLOC_FULL,
     .options.discard_to_file = true},
    {SETUP("threads-data", 9, 512 * K, 3, 12, 4), .create.data_file = "data", .max_bytes = 512 * K,
     .options.discard_to_file = true},
    {SETUP("threads-data-raw", 10, 256 * K, 3, 13, 4), .create.data_file = "data",
     .create.data_file_raw = true, .options.discard_to_file = true},
    {SETUP("threads-punch-512", 8, 256 * K, 3, 9, 4), .create.prealloc = QK_PREALLOC_METADATA,
     .options.discard_to_file = true},
};

/* One image, and the guest of each thread. They share the open image and the log. */
struct round {
    struct stage stage;
    struct recorder guests[THREADS];
};

/* The guests' log position: the log is that of the stage. */
static _Thread_local struct qk_io *thread_trace;

static size_t shared_position(struct recorder *rec)
{
    (void)rec;
    return trace_count(thread_trace);
}

/* Whole clusters only, and only those that belong to this thread alone. */
static void write_compressed(struct recorder *rec, uint64_t off)
{
    uint64_t cluster = UINT64_C(1) << rec->w->create.cluster_bits;
    off = round_up(off, cluster);
    if (off + cluster <= rec->model.end * SECTOR)
        rec_write_compressed(rec, off, cluster);
}

static void step(struct recorder *rec)
{
    uint32_t what = rec_random(rec, 22);
    uint64_t first = rec->model.first * SECTOR, end = rec->model.end * SECTOR;
    uint64_t off = first + round_down(rec_random(rec, (uint32_t)(end - first)), SECTOR);
    uint64_t len = SECTOR * (uint64_t)(1 + rec_random(rec, what == 0 ? 200 : 20));
    len = min_u64(len, end - off);
    if (what < 12)
        rec_write(rec, off, len);
    else if (what < 14)
        rec_zero(rec, off, len, what == 12 ? IO_ZERO_UNMAP : 0);
    else if (what < 17)
        rec_discard(rec, off, min_u64(8 * len, end - off));
    else if (what < 20)
        rec_flush(rec);
    else if (!rec->w->create.data_file)
        write_compressed(rec, off);
}

static void *guest(void *arg)
{
    struct recorder *rec = arg;
    thread_trace = rec->file;
    for (int i = 0; i < STEPS; i++)
        step(rec);
    return NULL;
}

static void make_guest(struct round *round, unsigned i, uint64_t seed)
{
    struct recorder *rec = &round->guests[i];
    uint64_t sectors = round->stage.rec.w->create.size_bytes / SECTOR;
    recorder_init(rec, round->stage.rec.w);
    rec->file = round->stage.trace;
    rec->img = round->stage.rec.img;
    rec->log_position = shared_position;
    rec->whole_sectors = true;
    rec->random = seed * THREADS + i;
    /* off the cluster boundaries on purpose */
    rec->model.first = i ? sectors * i / THREADS + 3 : 0;
    rec->model.end = i + 1 < THREADS ? sectors * (i + 1) / THREADS + 3 : sectors;
}

static bool record(struct round *round, const struct workload *w, uint64_t seed)
{
    pthread_t threads[THREADS];
    unsigned errors = 0;
    if (stage_set(&round->stage, w, false) < 0 || stage_begin(&round->stage) < 0)
        abort();
    for (unsigned i = 0; i < THREADS; i++)
        make_guest(round, i, seed);
    for (unsigned i = 0; i < THREADS; i++) {
        if (pthread_create(&threads[i], NULL, guest, &round->guests[i]) != 0)
            abort();
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        errors += round->guests[i].errors;
    }
    return recorder_close(&round->stage.rec) == 0 && errors == 0;
}

static void free_round(struct round *round)
{
    for (unsigned i = 0; i < THREADS; i++) {
        round->guests[i].img = NULL;
        recorder_free(&round->guests[i]);
    }
    stage_strike(&round->stage);
}

/* ---- looking ---- */

static void keep_image(struct qk_io *mem, const char *name, struct state state)
{
    char path[200];
    size_t len = 0;
    const uint8_t *bytes = io_mem_data(mem, &len);
    snprintf(path, sizeof(path), "failed-%s-%zu-%llu.qcow2", name, state.changes,
             (unsigned long long)state.seed);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd >= 0 && write(fd, bytes, len) == (ssize_t)len)
        printf("    the image is in %s\n", path);
    close(fd);
}

static bool look_at(struct round *round, const struct history *h, struct state state)
{
    struct builder b;
    struct qk_io *stores[STORES], *mem;
    char text[MODEL_TEXT];
    bool good = true;
    builder_init(&b, h);
    if (builder_make_both(&b, state, stores) < 0)
        abort();
    mem = stores[0];
    for (unsigned i = 0; i < THREADS && good; i++) {
        const struct model *model = &round->guests[i].model;
        const struct verify_options opts = {
            .at = model_moment(model, state.changes),
            .backing = round->guests[i].backing,
            .data = round->stage.initial_data.bytes ? stores[1] : NULL,
            .model = model,
            .go_on = i == THREADS - 1,
        };
        good = verify_image(mem, &opts, text);
    }
    if (!good) {
        printf("failed: %s: %s\n", round->stage.rec.w->name, text);
        keep_image(mem, round->stage.rec.w->name, state);
    }
    io_close(stores[0], NULL);
    io_close(stores[1], NULL);
    builder_free(&b);
    return good;
}

/* Random states of one round, the first of them complete. */
static size_t look_at_some(struct round *round, size_t count, uint64_t seed)
{
    struct history h;
    size_t good = 0;
    uint64_t random = seed;
    if (stage_history(&round->stage, &h) < 0)
        abort();
    for (size_t i = 0; i < count; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        struct state state = {(size_t)(random >> 33) % (h.changes.len + 1), i % 4 ? random | 1 : 0};
        if (i == 0)
            state = (struct state){.changes = h.changes.len};
        good += look_at(round, &h, state);
    }
    history_free(&h);
    return good;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"states", required_argument, NULL, 'n'},
                                            {NULL, 0, NULL, 0}};
    enum { PER_ROUND = 40 };
    size_t states = 4800 / SLOWER, passed = 0, failed = 0;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) >= 0;) {
        if (c != 'n')
            return 2;
        states = strtoul(optarg, NULL, 0);
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t n = 0; n * PER_ROUND < states; n++) {
        const struct workload *w = &setups[n % ARRAY_SIZE(setups)];
        struct round round = {0};
        bool recorded = record(&round, w, n);
        size_t good = recorded ? look_at_some(&round, PER_ROUND, n + 1) : 0;
        if (!recorded)
            printf("failed: %s: an operation failed without any fault\n", w->name);
        passed += good;
        failed += PER_ROUND - good;
        free_round(&round);
    }
    printf("%zu passed, %zu failed\n", passed, failed);
    return failed || !passed;
}
