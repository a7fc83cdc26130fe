/*
 * parallel.c - one loop over independent items on a few threads. The caller's thread is one of
 * them, so that a check works, only slower, where no thread can be started.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/threads.h"
#include "check/internal.h"

#include <stdatomic.h>

#define MAX_THREADS 16u
#define ITEMS_AHEAD 16u /* a medium is fastest when it always has a few dozen requests */

struct pool {
    struct check *c;
    const struct parallel_job *job;
    atomic_uint_fast64_t next, announced;
    atomic_int failed;
    pthread_mutex_t lock; /* of error */
    struct qk_error error;
};

static void pool_fail(struct pool *p, int ret, const struct qk_error *err)
{
    LOCK_SCOPE(&p->lock);
    if (atomic_load(&p->failed))
        return;
    p->error = *err;
    atomic_store(&p->failed, ret);
}

static void announce(struct pool *p, uint64_t item)
{
    uint64_t end = min_u64(item + ITEMS_AHEAD, p->job->items);
    uint64_t next = atomic_load(&p->announced);
    while (p->job->will_read && next < end) {
        if (atomic_compare_exchange_weak(&p->announced, &next, next + 1))
            p->job->will_read(p->c, next++);
    }
}

static void *worker(void *opaque)
{
    struct pool *p = opaque;
    struct qk_error err = {0};
    CLEANUP_FREE void *scratch = aligned_alloc(4096, round_up(p->job->scratch_bytes, 4096));
    if (!scratch) {
        pool_fail(p, qk_fail_nomem(&err), &err);
        return NULL;
    }
    while (!atomic_load(&p->failed)) {
        uint64_t item = atomic_fetch_add(&p->next, 1);
        if (item >= p->job->items)
            break;
        announce(p, item);
        int ret = p->job->fn(p->c, item, scratch, &err);
        if (ret < 0)
            pool_fail(p, ret, &err);
    }
    return NULL;
}

int parallel_for(struct check *c, const struct parallel_job *job, struct qk_error *err)
{
    if (!job->items)
        return 0;
    struct pool pool = {.c = c, .job = job};
    pthread_mutex_init(&pool.lock, NULL);
    pthread_t threads[MAX_THREADS];
    unsigned wanted = (unsigned)min_u64(min_u64(c->threads, MAX_THREADS), job->items);
    unsigned started = threads_start(threads, wanted - 1, worker, &pool);
    worker(&pool);
    for (unsigned i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&pool.lock);
    int ret = atomic_load(&pool.failed);
    if (ret < 0 && err)
        *err = pool.error;
    return ret;
}

static int report(const struct check *c, uint64_t done)
{
    const struct qk_progress *p = &c->opts->progress;
    uint64_t rounds = max_u64(c->rounds, 1);
    return p->report ? p->report(p->opaque, c->round * c->work_total + done, rounds * c->work_total)
                     : 0;
}

int progress_add(struct check *c, uint64_t done, struct qk_error *err)
{
    LOCK_SCOPE(&c->lock);
    c->work_done = min_u64(c->work_done + done, c->work_total);
    if (!c->cancelled) /* who has cancelled is not asked again */
        c->cancelled = report(c, c->work_done);
    return c->cancelled ? qk_fail(err, -ECANCELED, "the check was cancelled") : 0;
}

void progress_write(struct check *c, uint64_t done, uint64_t total)
{
    c->round = c->rounds - 1;
    double part = total ? (double)done / (double)total : 1;
    report(c, min_u64((uint64_t)(part * (double)c->work_total), c->work_total));
}
