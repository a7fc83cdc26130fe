/*
 * queue.c - requests under way: each runs in a thread of its own and is printed by the thread of
 * the commands, so that lines never mix. They run in parallel, as an emulator's would; at most
 * MAX_RUNNING at a time.
 */
#include "common/report.h"
#include "io/request.h"

#include <pthread.h>
#include <stdlib.h>

enum { MAX_RUNNING = 128 };

struct request_queue {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned running;
    struct request *done, **done_end; /* in the order in which they finished */
};

struct job {
    struct request_queue *queue;
    struct request *request;
    struct qk_disk *disk;
};

struct request_queue *queue_new(void)
{
    struct request_queue *queue = xmalloc(sizeof(*queue));
    *queue = (struct request_queue){.running = 0};
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->changed, NULL);
    queue->done_end = &queue->done;
    return queue;
}

void queue_free(struct request_queue *queue)
{
    pthread_cond_destroy(&queue->changed);
    pthread_mutex_destroy(&queue->lock);
    free(queue);
}

static void finish(struct request_queue *queue, struct request *request)
{
    pthread_mutex_lock(&queue->lock);
    *queue->done_end = request;
    queue->done_end = &request->next;
    queue->running--;
    pthread_cond_broadcast(&queue->changed);
    pthread_mutex_unlock(&queue->lock);
}

static void *run(void *opaque)
{
    struct job *job = opaque;
    request_execute(job->request, job->disk);
    finish(job->queue, job->request);
    free(job);
    return NULL;
}

static void wait_below(struct request_queue *queue, unsigned limit)
{
    pthread_mutex_lock(&queue->lock);
    while (queue->running >= limit)
        pthread_cond_wait(&queue->changed, &queue->lock);
    pthread_mutex_unlock(&queue->lock);
}

void queue_submit(struct request_queue *queue, struct request *request, struct qk_disk *disk)
{
    wait_below(queue, MAX_RUNNING);
    pthread_mutex_lock(&queue->lock);
    queue->running++;
    pthread_mutex_unlock(&queue->lock);
    struct job *job = xmalloc(sizeof(*job));
    *job = (struct job){.queue = queue, .request = request, .disk = disk};
    pthread_attr_t attr;
    pthread_t thread;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    /* without a thread to spare the request is simply done at once */
    if (pthread_create(&thread, &attr, run, job))
        run(job);
    pthread_attr_destroy(&attr);
}

bool queue_is_busy(struct request_queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    bool busy = queue->running > 0;
    pthread_mutex_unlock(&queue->lock);
    return busy;
}

void queue_reap(struct request_queue *queue, bool all)
{
    if (all)
        wait_below(queue, 1);
    pthread_mutex_lock(&queue->lock);
    struct request *request = queue->done;
    queue->done = NULL;
    queue->done_end = &queue->done;
    pthread_mutex_unlock(&queue->lock);
    while (request) {
        struct request *next = request->next;
        request_report(request);
        request_free(request);
        request = next;
    }
}
