/*
 * pool.c - worker threads for long work, see pool.h. The caller's thread is one of the workers, so
 * that the work goes on when no thread can be made.
 *
 * Two locks, never held together: `take_lock` while the producer runs (it may do I/O), `lock` for
 * everything else. With `ordered` each worker waits until `turn` is its item's number; the lowest
 * unfinished number is always in the hands of a worker, so the wait ends.
 */
#include "job/pool.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/threads.h"

#include <pthread.h>
#include <string.h>

#define DEFAULT_MAX_THREADS 16
#define BUFFER_ALIGNMENT    4096
#define LONG_PIECE_BYTES    (UINT64_C(1) << 36)

struct pool {
    const struct job_plan *plan;
    pthread_mutex_t take_lock;
    uint64_t taken; /* under take_lock */

    pthread_mutex_t lock;
    pthread_cond_t turn_changed;
    uint64_t turn; /* number of the item that may finish */
    uint64_t done_weight;
    bool stopped;
    int ret;
    struct qk_error *err;
};

/* The first one to stop decides the result. Called with the lock held. */
static void stop_locked(struct pool *pool, int ret, const struct qk_error *why)
{
    if (!pool->stopped) {
        pool->ret = ret < 0 ? ret : 0;
        if (ret < 0 && pool->err)
            *pool->err = *why;
        pool->stopped = true;
    }
    pthread_cond_broadcast(&pool->turn_changed);
}

static void stop(struct pool *pool, int ret, const struct qk_error *why)
{
    LOCK_SCOPE(&pool->lock);
    stop_locked(pool, ret, why);
}

static bool stopped(struct pool *pool)
{
    LOCK_SCOPE(&pool->lock);
    return pool->stopped;
}

static int take(struct pool *pool, struct job_item *item, struct qk_error *err)
{
    LOCK_SCOPE(&pool->take_lock);
    if (stopped(pool))
        return 0;
    *item = (struct job_item){.seq = pool->taken};
    int ret = pool->plan->ops->take(pool->plan->job, item, err);
    if (ret > 0)
        pool->taken++;
    return ret;
}

/* False: the work was stopped by somebody else. */
static bool wait_for_turn(struct pool *pool, uint64_t seq)
{
    LOCK_SCOPE(&pool->lock);
    while (!pool->stopped && pool->turn != seq)
        pthread_cond_wait(&pool->turn_changed, &pool->lock);
    return !pool->stopped;
}

/* Counts a finished item, reports, and lets the next one finish. */
static void account(struct pool *pool, const struct job_item *item)
{
    const struct qk_progress *progress = pool->plan->progress;
    LOCK_SCOPE(&pool->lock);
    pool->done_weight += item->weight;
    if (progress && progress->report && !pool->stopped) {
        uint64_t total = max_u64(pool->plan->total_weight, 1);
        uint64_t done = min_u64(pool->done_weight, total);
        struct qk_error why;
        if (progress->report(progress->opaque, done, total))
            stop_locked(pool, qk_fail(&why, -ECANCELED, "canceled"), &why);
    }
    if (pool->plan->ordered) {
        pool->turn++;
        pthread_cond_broadcast(&pool->turn_changed);
    }
}

/* One item from take to finish: 1 to go on, 0 at the end, JOB_STOP and failures are recorded. */
static bool work_once(struct pool *pool, struct job_worker *worker)
{
    const struct job_ops *ops = pool->plan->ops;
    void *job = pool->plan->job;
    struct qk_error err = {.offset = QK_OFFSET_NONE};
    int ret = take(pool, &worker->item, &err);
    if (ret <= 0 && !pool->plan->ordered) {
        if (ret < 0)
            stop(pool, ret, &err);
        return false;
    }
    if (ret < 0) {
        /* items that were taken before come first, also when they find an earlier reason */
        if (wait_for_turn(pool, worker->item.seq))
            stop(pool, ret, &err);
        return false;
    }
    if (ret == 0)
        return false;

    worker->prepared = ops->prepare(job, worker, &err);
    if (pool->plan->ordered && !wait_for_turn(pool, worker->item.seq))
        return false;
    ret = worker->prepared < 0 ? worker->prepared : ops->finish(job, worker, &err);
    if (ret != 0) {
        stop(pool, ret, &err);
        return false;
    }
    account(pool, &worker->item);
    return true;
}

static void *work(void *opaque)
{
    struct pool *pool = opaque;
    struct qk_error why;
    CLEANUP_FREE struct job_worker *worker = calloc(1, sizeof(*worker));
    CLEANUP_FREE void *buffer = NULL;
    size_t bytes = max_u64(pool->plan->buffer_bytes, 1);
    if (!worker || posix_memalign(&buffer, BUFFER_ALIGNMENT, bytes) != 0) {
        stop(pool, qk_fail_nomem(&why), &why);
        return NULL;
    }
    worker->buffer = buffer;
    while (!stopped(pool) && work_once(pool, worker))
        continue;
    return NULL;
}

static unsigned thread_count(unsigned wanted)
{
    if (wanted)
        return (unsigned)min_u64(wanted, JOB_MAX_THREADS);
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores < 1 ? 1 : (unsigned)min_u64((uint64_t)cores, DEFAULT_MAX_THREADS);
}

int job_run(const struct job_plan *plan, struct qk_error *err)
{
    struct pool pool = {
        .plan = plan,
        .take_lock = PTHREAD_MUTEX_INITIALIZER,
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .turn_changed = PTHREAD_COND_INITIALIZER,
        .err = err,
    };
    pthread_t threads[JOB_MAX_THREADS];
    unsigned made = threads_start(threads, thread_count(plan->threads) - 1, work, &pool);
    work(&pool);
    for (unsigned i = 0; i < made; i++)
        pthread_join(threads[i], NULL);
    pthread_cond_destroy(&pool.turn_changed);
    pthread_mutex_destroy(&pool.lock);
    pthread_mutex_destroy(&pool.take_lock);
    return pool.ret;
}

bool job_item_add(struct job_item *item, struct job_piece piece)
{
    struct job_piece *last = item->count ? &item->piece[item->count - 1] : NULL;
    if (last && last->kind == piece.kind) {
        last->len += piece.len;
        return true;
    }
    if (item->count == JOB_ITEM_PIECES)
        return false;
    item->piece[item->count++] = piece;
    return true;
}

uint64_t job_item_end(const struct job_item *item, uint64_t start)
{
    if (!item->count)
        return start;
    const struct job_piece *last = &item->piece[item->count - 1];
    return last->off + last->len;
}

uint64_t job_item_room(const struct job_item *item, uint64_t off, bool needs_buffer)
{
    uint64_t start = item->count ? item->piece[0].off : off;
    uint64_t chunk = item->chunk ? item->chunk : JOB_CHUNK_BYTES;
    uint64_t limit = round_down(start, chunk) + chunk;
    if (!needs_buffer && item->count <= 1 && (!item->count || off >= limit))
        return LONG_PIECE_BYTES;
    return off < limit ? limit - off : 0;
}

int job_fail_at_byte(struct qk_error *err, int ret, const char *what, uint64_t off)
{
    qk_error_prefix(err, "%s %llu", what, (unsigned long long)off);
    return ret;
}
