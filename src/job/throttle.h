/*
 * throttle.h - a limit in bytes per second that many threads share. A request is let through when
 * all bytes granted before it fit the time that has passed.
 */
#ifndef QK_JOB_THROTTLE_H
#define QK_JOB_THROTTLE_H

#include "base/error.h"

#include <pthread.h>
#include <time.h>

struct throttle {
    uint64_t bytes_per_sec; /* 0: no limit */
    pthread_mutex_t lock;
    struct timespec start;
    double granted_bytes;
};

void throttle_init(struct throttle *throttle, uint64_t bytes_per_sec);
void throttle_free(struct throttle *throttle);
/* Waits until `bytes` may go. MT-safe. */
void throttle_wait(struct throttle *throttle, uint64_t bytes);

#endif
