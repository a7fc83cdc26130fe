/*
 * cmd_bench.c - `bench`: the time that a number of equal requests takes. As many requests are in
 * flight as the depth says; each is one blocking call of its own thread. Threads are started, and
 * their memory touched, before the clock.
 *
 * Beyond qemu-img's options: --random, --threads and --output.
 */
#include "common/open.h"
#include "common/report.h"
#include "common/rows.h"
#include "img/commands.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OPT_FLUSH_INTERVAL = OPT_LOCAL, OPT_NO_DRAIN, OPT_PATTERN, OPT_RANDOM, OPT_THREADS };

#define DEFAULT_COUNT  75000
#define DEFAULT_DEPTH  64
#define DEFAULT_BUFFER 4096
#define THREADS_MAX    1024

static const struct opt_desc options[] = {
    OPT_ROW_('c', NULL, "COUNT", "how many requests (default 75000)", OPT_KIND_TEXT),
    OPT_ROW_('d', NULL, "DEPTH", "how many of them at once (default 64)", OPT_KIND_TEXT),
    OPT_FORMAT,
    OPT_ROW_(OPT_FLUSH_INTERVAL, "flush-interval", "N", "with -w: a flush after every N requests",
             OPT_KIND_TEXT),
    {'i', "aio", "AIO", "threads, native or io_uring; here each is done by threads", OPT_KIND_TEXT,
     NULL, 0, 0, "threads native io_uring"},
    OPT_ROW_('n', "native", NULL, "the same as -i native", OPT_KIND_FLAG),
    OPT_ROW_(OPT_NO_DRAIN, "no-drain", NULL, "do not wait for requests in flight before a flush",
             OPT_KIND_FLAG),
    {'o', NULL, "OFFSET", "guest byte of the first request (default 0)", OPT_KIND_SIZE, "offset", 0,
     0, NULL},
    OPT_ROW_(OPT_PATTERN, "pattern", "BYTE", "byte that is written (default 0)", OPT_KIND_TEXT),
    {'s', NULL, "SIZE", "bytes in one request (default 4096)", OPT_KIND_SIZE, "buffer size", 0,
     INT_MAX, NULL},
    {'S', NULL, "STEP", "bytes from one request to the next (default: SIZE)", OPT_KIND_SIZE,
     "step_size", 0, INT_MAX, NULL},
    OPT_ROW_(OPT_RANDOM, "random", NULL, "requests anywhere on the disk, at multiples of STEP",
             OPT_KIND_FLAG),
    OPT_ROW_(OPT_THREADS, "threads", "N", "how many threads (default: DEPTH)", OPT_KIND_TEXT),
    OPT_ROW_('w', NULL, NULL, "write; the content of the image is lost", OPT_KIND_FLAG),
    OPT_CACHE,
    OPT_SHARE,
    OPT_ROW_IMAGE_OPTS,
    OPT_ROW_OBJECT,
    OPT_ROW_OUTPUT,
    OPT_QUIET,
    OPT_END,
};

static const struct cmd_text examples[] = {
    {"bench -f qcow2 disk.qcow2", "75000 sequential reads of 4 KiB, 64 at once"},
    {"bench --random -c 200000 -d 1 disk.qcow2", "the latency of random reads"},
    {"bench -w -s 64k -d 16 --flush-interval=64 -t none disk.qcow2",
     "writes; destroys the content"},
    {NULL, NULL},
};

const struct cmd_desc desc_bench = {
    .name = "bench",
    .summary = "measure how fast requests are",
    .operands = "FILENAME",
    .options = options,
    .examples = examples,
};

struct bench {
    struct qk_disk *disk;
    uint64_t count, depth, threads, flush_interval, pattern;
    uint64_t offset, buffer_bytes, step, size;
    bool write, drain, random;

    atomic_uint_fast64_t next; /* number of the next request */
    atomic_bool failed;
    pthread_rwlock_t in_flight; /* read: a request; write: a flush that waits for all */
    pthread_barrier_t start;
    pthread_mutex_t lock;  /* for the rest */
    struct qk_error error; /* the first one */
    double began, ended;   /* of the first and the last thread */
};

/* ---- options ----------------------------------------------------------------------------- */

static int parse_number(const struct opts *opts, int id, const char *noun, uint64_t max,
                        uint64_t *value)
{
    const char *text = opts_string(opts, id);
    if (!text)
        return -1;
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 0);
    if (errno || end == text || *end || number > max) {
        report_error("Invalid %s specified", noun);
        return 1;
    }
    *value = number;
    return -1;
}

static int parse_numbers(struct bench *b, const struct opts *opts)
{
    const struct {
        int id;
        const char *noun;
        uint64_t max, *value;
    } table[] = {
        {'c', "request count", INT_MAX, &b->count},
        {'d', "queue depth", INT_MAX, &b->depth},
        {OPT_FLUSH_INTERVAL, "flush interval", INT_MAX, &b->flush_interval},
        {OPT_PATTERN, "pattern byte", 255, &b->pattern},
        {OPT_THREADS, "number of threads", THREADS_MAX, &b->threads},
    };
    b->count = DEFAULT_COUNT;
    b->depth = DEFAULT_DEPTH;
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        int status = parse_number(opts, table[i].id, table[i].noun, table[i].max, table[i].value);
        if (status >= 0)
            return status;
    }
    if (b->depth)
        return -1;
    report_error("Invalid queue depth specified");
    return 1;
}

static int check_aio(const struct opts *opts, const char *name, unsigned flags)
{
    const char *aio = opts_string(opts, 'i');
    if (aio && strcmp(aio, "threads") && strcmp(aio, "native") && strcmp(aio, "io_uring")) {
        report_error("Invalid aio option: %s", aio);
        return 1;
    }
    bool native = opts_given(opts, 'n') || (aio && !strcmp(aio, "native"));
    if (native && !(flags & QK_OPEN_DIRECT)) {
        report_error("Could not open '%s': aio=native was specified, but it requires "
                     "cache.direct=on, which was not specified.",
                     name);
        return 1;
    }
    return -1;
}

static int parse(struct bench *b, const struct opts *opts, struct image_request *request)
{
    int status = parse_numbers(b, opts);
    if (status >= 0)
        return status;
    b->write = opts_given(opts, 'w');
    b->drain = !opts_given(opts, OPT_NO_DRAIN);
    b->random = opts_given(opts, OPT_RANDOM);
    b->offset = opts_number(opts, 'o', 0);
    b->buffer_bytes = opts_number(opts, 's', DEFAULT_BUFFER);
    b->step = opts_number(opts, 'S', 0);
    b->step = b->step ? b->step : b->buffer_bytes;
    if (!b->threads)
        b->threads = b->depth < THREADS_MAX ? b->depth : THREADS_MAX;
    *request = image_request_from(opts);
    const char *cache = opts_string(opts, 't');
    if (cache && !cache_mode_flags(cache, &request->flags)) {
        report_error("Invalid cache mode");
        return 1;
    }
    if (opts->operand_count != 1)
        return usage_error("Expecting one image file name");
    if (b->write)
        request->flags |= QK_OPEN_RDWR;
    return status < 0 ? check_aio(opts, opts->operand[0], request->flags) : status;
}

static int check_flushes(const struct bench *b)
{
    const char *text = NULL;
    if (b->flush_interval && !b->write)
        text = "--flush-interval is only available in write tests";
    else if (b->flush_interval && b->flush_interval < b->depth)
        text = "Flush interval can't be smaller than depth";
    if (text)
        report_error("%s", text);
    return text ? 1 : -1;
}

/* ---- requests ---------------------------------------------------------------------------- */

/* A number that looks random and depends on the request only, so that runs can be repeated. */
static uint64_t scatter(uint64_t index)
{
    uint64_t z = (index + 1) * UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static uint64_t offset_of(const struct bench *b, uint64_t index)
{
    if (!b->size)
        return 0;
    if (b->random && b->step) {
        uint64_t room = b->size > b->buffer_bytes ? b->size - b->buffer_bytes : 0;
        return scatter(index) % (room / b->step + 1) * b->step;
    }
    /* as in qemu-img, the first request is where it was asked for, on the disk or not */
    return index ? (b->offset + index * b->step) % b->size : b->offset;
}

static int transfer(struct bench *b, uint64_t index, void *buffer, struct qk_error *err)
{
    uint64_t off = offset_of(b, index);
    size_t len = (size_t)b->buffer_bytes;
    if (b->write)
        return qk_disk_write(b->disk, off, buffer, len, 0, err);
    return qk_disk_read(b->disk, off, buffer, len, err);
}

static int flush(struct bench *b, struct qk_error *err)
{
    if (b->drain)
        pthread_rwlock_wrlock(&b->in_flight);
    int ret = qk_disk_flush(b->disk, err);
    if (b->drain)
        pthread_rwlock_unlock(&b->in_flight);
    return ret;
}

static int request(struct bench *b, uint64_t index, void *buffer, struct qk_error *err)
{
    if (!b->flush_interval)
        return transfer(b, index, buffer, err);
    pthread_rwlock_rdlock(&b->in_flight);
    int ret = transfer(b, index, buffer, err);
    pthread_rwlock_unlock(&b->in_flight);
    if (ret >= 0 && (index + 1) % b->flush_interval == 0)
        ret = flush(b, err);
    return ret;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Each thread looks at the clock: the one that waits for them may be woken late. */
static void note_times(struct bench *b, double began, double ended)
{
    pthread_mutex_lock(&b->lock);
    if (b->ended == 0 || began < b->began)
        b->began = began;
    if (ended > b->ended)
        b->ended = ended;
    pthread_mutex_unlock(&b->lock);
}

static void note_failure(struct bench *b, const struct qk_error *err)
{
    pthread_mutex_lock(&b->lock);
    if (!atomic_load(&b->failed))
        b->error = *err;
    atomic_store(&b->failed, true);
    pthread_mutex_unlock(&b->lock);
}

static void *work(void *opaque)
{
    struct bench *b = opaque;
    void *buffer = NULL;
    struct qk_error err = {.code = ENOMEM};
    size_t bytes = b->buffer_bytes ? (size_t)b->buffer_bytes : 1;
    if (posix_memalign(&buffer, 4096, bytes) == 0)
        memset(buffer, (int)b->pattern, bytes);
    else
        note_failure(b, &err);
    pthread_barrier_wait(&b->start);
    double began = now();
    while (!atomic_load_explicit(&b->failed, memory_order_relaxed)) {
        uint64_t index = atomic_fetch_add_explicit(&b->next, 1, memory_order_relaxed);
        if (index >= b->count)
            break;
        if (request(b, index, buffer, &err) < 0)
            note_failure(b, &err);
    }
    note_times(b, began, now());
    free(buffer);
    return NULL;
}

/* Starts the threads, lets them go together and waits for them. */
static void run_threads(struct bench *b)
{
    pthread_t *thread = xmalloc((size_t)b->threads * sizeof(*thread));
    pthread_barrier_init(&b->start, NULL, (unsigned)b->threads);
    for (uint64_t i = 0; i < b->threads; i++) {
        if (pthread_create(&thread[i], NULL, work, b) != 0) {
            report_error("Could not start %llu threads", (unsigned long long)b->threads);
            exit(1); /* the threads that exist wait for ever */
        }
    }
    for (uint64_t i = 0; i < b->threads; i++)
        pthread_join(thread[i], NULL);
    pthread_barrier_destroy(&b->start);
    free(thread);
}

/* ---- output ------------------------------------------------------------------------------ */

static void print_plan(const struct bench *b)
{
    printf("Sending %llu %s requests, %llu bytes each, %llu in parallel (starting at offset %llu, "
           "step size %llu)\n",
           (unsigned long long)b->count, b->write ? "write" : "read",
           (unsigned long long)b->buffer_bytes, (unsigned long long)b->depth,
           (unsigned long long)b->offset, (unsigned long long)b->step);
    if (b->flush_interval)
        printf("Sending flush every %llu requests\n", (unsigned long long)b->flush_interval);
}

static void json_double(struct json *json, const char *key, double value)
{
    TEXT_CLEANUP char *text = xprintf("%.6f", value);
    json_raw(json, key, text);
}

static void print_json(const struct bench *b, double seconds)
{
    struct json json = JSON_PRETTY(stdout);
    double per_second = seconds > 0 ? (double)b->count / seconds : 0;
    json_open(&json, NULL, '{');
    json_text(&json, "operation", b->write ? "write" : "read");
    json_uint(&json, "count", b->count);
    json_uint(&json, "buffer-size", b->buffer_bytes);
    json_uint(&json, "depth", b->depth);
    json_uint(&json, "threads", b->threads);
    json_uint(&json, "offset", b->offset);
    json_uint(&json, "step-size", b->step);
    json_bool(&json, "random", b->random);
    json_uint(&json, "flush-interval", b->flush_interval);
    json_double(&json, "seconds", seconds);
    json_double(&json, "requests-per-second", per_second);
    json_double(&json, "bytes-per-second", per_second * (double)b->buffer_bytes);
    json_close(&json, '}');
    putchar('\n');
}

static int run(struct bench *b, bool as_json)
{
    b->size = qk_disk_size(b->disk);
    if (!as_json)
        print_plan(b);
    pthread_rwlock_init(&b->in_flight, NULL);
    pthread_mutex_init(&b->lock, NULL);
    run_threads(b);
    pthread_mutex_destroy(&b->lock);
    pthread_rwlock_destroy(&b->in_flight);
    double seconds = b->ended - b->began;
    if (b->failed) {
        report_failure(&b->error, "Failed request");
        return 1;
    }
    if (as_json)
        print_json(b, seconds);
    else
        printf("Run completed in %3.3f seconds.\n", seconds);
    return 0;
}

int cmd_bench(int argc, char **argv)
{
    OPTS_CLEANUP struct opts opts;
    int status = opts_parse(&desc_bench, argc, argv, &opts);
    if (status >= 0)
        return status;
    struct bench b = {0};
    struct image_request request;
    status = parse(&b, &opts, &request);
    if (status < 0)
        status = check_flushes(&b);
    if (status >= 0)
        return status;
    if (open_image(opts.operand[0], &request, &b.disk) < 0)
        return 1;
    status = run(&b, opts_json(&opts));
    return close_image(b.disk) | status;
}
