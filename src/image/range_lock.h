/*
 * range_lock.h - which guest clusters the requests in flight hold, shared or exclusive. A request
 * waits for every earlier one that overlaps it unless both are shared; while an exclusive one is
 * there it is first come, first served, so that nobody starves. A request holds one range at a
 * time, hence no deadlock.
 */
#ifndef QK_IMAGE_RANGE_LOCK_H
#define QK_IMAGE_RANGE_LOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define RANGE_SLOTS 64

struct range_hold {
    uint64_t first, end; /* guest clusters [first, end) */
    bool exclusive;
    struct range_slot *slot;        /* fast shared hold; NULL: in the list */
    struct range_hold *prev, *next; /* in order of arrival */
};

/* A shared hold that was taken while nobody wanted exclusive ones: a cache line of its own. */
struct range_slot {
    uint32_t busy;       /* atomic */
    uint64_t first, end; /* atomic; end 0: nothing held */
} __attribute__((aligned(64)));

struct range_lock {
    struct range_slot slots[RANGE_SLOTS];
    pthread_mutex_t lock;
    pthread_cond_t released;
    struct range_hold *head, *tail;
    unsigned exclusives; /* atomic; in the list, waiting or holding */
    unsigned waiters;
};

void range_lock_init(struct range_lock *rl);
void range_lock_destroy(struct range_lock *rl);

/* hold->first, end and exclusive are set by the caller, who keeps *hold until release. */
void range_acquire(struct range_lock *rl, struct range_hold *hold);
void range_release(struct range_lock *rl, struct range_hold *hold);

#endif
