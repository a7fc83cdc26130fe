/* throttle.c - see throttle.h. Time is the monotonic clock; the sleep ends at an absolute time, so
 * that signals do not shorten it. */
#include "job/throttle.h"
#include "base/cleanup.h"

#define NSEC_PER_SEC 1000000000L

void throttle_init(struct throttle *throttle, uint64_t bytes_per_sec)
{
    *throttle = (struct throttle){.bytes_per_sec = bytes_per_sec};
    pthread_mutex_init(&throttle->lock, NULL);
    clock_gettime(CLOCK_MONOTONIC, &throttle->start);
}

void throttle_free(struct throttle *throttle)
{
    pthread_mutex_destroy(&throttle->lock);
}

/* When the bytes granted so far are paid for; then grants these. */
static struct timespec grant(struct throttle *throttle, uint64_t bytes)
{
    LOCK_SCOPE(&throttle->lock);
    double seconds = throttle->granted_bytes / (double)throttle->bytes_per_sec;
    throttle->granted_bytes += (double)bytes;
    struct timespec until = throttle->start;
    long whole = (long)seconds;
    until.tv_sec += whole;
    until.tv_nsec += (long)((seconds - (double)whole) * (double)NSEC_PER_SEC);
    if (until.tv_nsec >= NSEC_PER_SEC) {
        until.tv_nsec -= NSEC_PER_SEC;
        until.tv_sec++;
    }
    return until;
}

void throttle_wait(struct throttle *throttle, uint64_t bytes)
{
    if (!throttle->bytes_per_sec)
        return;
    struct timespec until = grant(throttle, bytes);
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        continue;
}
