/*
 * range_lock.c - see range_lock.h. One list in order of arrival: requests in flight are few (one
 * per thread), and the common case, no exclusive request at all, looks at nothing.
 */
#include "image/range_lock.h"
#include "base/cleanup.h"

void range_lock_init(struct range_lock *rl)
{
    *rl = (struct range_lock){0};
    pthread_mutex_init(&rl->lock, NULL);
    pthread_cond_init(&rl->released, NULL);
}

void range_lock_destroy(struct range_lock *rl)
{
    pthread_cond_destroy(&rl->released);
    pthread_mutex_destroy(&rl->lock);
}

static bool conflict(const struct range_hold *a, const struct range_hold *b)
{
    return (a->exclusive || b->exclusive) && a->first < b->end && b->first < a->end;
}

static bool must_wait(const struct range_lock *rl, const struct range_hold *hold)
{
    if (!rl->exclusives)
        return false;
    for (const struct range_hold *h = rl->head; h != hold; h = h->next)
        if (conflict(h, hold))
            return true;
    return false;
}

void range_acquire(struct range_lock *rl, struct range_hold *hold)
{
    LOCK_SCOPE(&rl->lock);
    hold->next = NULL;
    hold->prev = rl->tail;
    *(rl->tail ? &rl->tail->next : &rl->head) = hold;
    rl->tail = hold;
    rl->exclusives += hold->exclusive;
    rl->waiters++;
    while (must_wait(rl, hold))
        pthread_cond_wait(&rl->released, &rl->lock);
    rl->waiters--;
}

void range_release(struct range_lock *rl, struct range_hold *hold)
{
    LOCK_SCOPE(&rl->lock);
    *(hold->prev ? &hold->prev->next : &rl->head) = hold->next;
    *(hold->next ? &hold->next->prev : &rl->tail) = hold->prev;
    rl->exclusives -= hold->exclusive;
    if (rl->waiters)
        pthread_cond_broadcast(&rl->released);
}
