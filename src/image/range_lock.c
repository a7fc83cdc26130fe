/*
 * range_lock.c - see range_lock.h. Shared holds are the hot path (every read), so they do without
 * a common lock as long as nobody wants exclusive ones: a request publishes its range in a slot and
 * then looks at `exclusives`; an exclusive one raises `exclusives` and then looks at the slots. All
 * four are sequentially consistent, so at least one of the two sees the other. Whoever saw an
 * exclusive one takes his range back and queues in the list.
 */
#include "image/range_lock.h"
#include "base/cleanup.h"

#include <stddef.h>

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

/* ---- slots ---- */

static bool slot_claim(struct range_slot *slot)
{
    uint32_t no = 0;
    return __atomic_load_n(&slot->busy, __ATOMIC_RELAXED) == 0 &&
           __atomic_compare_exchange_n(&slot->busy, &no, 1, false, __ATOMIC_SEQ_CST,
                                       __ATOMIC_RELAXED);
}

static void slot_free(struct range_slot *slot)
{
    __atomic_store_n(&slot->end, 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&slot->busy, 0, __ATOMIC_SEQ_CST);
}

static bool exclusive_wanted(const struct range_lock *rl)
{
    return __atomic_load_n(&rl->exclusives, __ATOMIC_SEQ_CST) != 0;
}

static void wake(struct range_lock *rl)
{
    LOCK_SCOPE(&rl->lock);
    if (rl->waiters)
        pthread_cond_broadcast(&rl->released);
}

static bool acquire_slot(struct range_lock *rl, struct range_hold *hold)
{
    if (exclusive_wanted(rl))
        return false;
    /* A thread finds the slot that it used before still in its cache. */
    size_t start = ((uintptr_t)pthread_self() >> 12) * 7;
    for (size_t i = 0; i < RANGE_SLOTS; i++) {
        struct range_slot *slot = &rl->slots[(start + i) % RANGE_SLOTS];
        if (!slot_claim(slot))
            continue;
        __atomic_store_n(&slot->first, hold->first, __ATOMIC_RELAXED);
        __atomic_store_n(&slot->end, hold->end, __ATOMIC_SEQ_CST);
        if (!exclusive_wanted(rl)) {
            hold->slot = slot;
            return true;
        }
        slot_free(slot);
        wake(rl);
        return false;
    }
    return false;
}

/* ---- the list ---- */

static bool overlap(const struct range_hold *a, uint64_t first, uint64_t end)
{
    return a->first < end && first < a->end;
}

static bool slot_in_the_way(const struct range_lock *rl, const struct range_hold *hold)
{
    for (size_t i = 0; i < RANGE_SLOTS; i++) {
        uint64_t end = __atomic_load_n(&rl->slots[i].end, __ATOMIC_SEQ_CST);
        uint64_t first = __atomic_load_n(&rl->slots[i].first, __ATOMIC_RELAXED);
        if (end && overlap(hold, first, end))
            return true;
    }
    return false;
}

static bool must_wait(const struct range_lock *rl, const struct range_hold *hold)
{
    if (rl->exclusives)
        for (const struct range_hold *h = rl->head; h != hold; h = h->next)
            if ((h->exclusive || hold->exclusive) && overlap(h, hold->first, hold->end))
                return true;
    return hold->exclusive && slot_in_the_way(rl, hold);
}

void range_acquire(struct range_lock *rl, struct range_hold *hold)
{
    hold->slot = NULL;
    if (!hold->exclusive && acquire_slot(rl, hold))
        return;
    LOCK_SCOPE(&rl->lock);
    hold->next = NULL;
    hold->prev = rl->tail;
    *(rl->tail ? &rl->tail->next : &rl->head) = hold;
    rl->tail = hold;
    __atomic_add_fetch(&rl->exclusives, hold->exclusive, __ATOMIC_SEQ_CST);
    rl->waiters++;
    while (must_wait(rl, hold))
        pthread_cond_wait(&rl->released, &rl->lock);
    rl->waiters--;
}

void range_release(struct range_lock *rl, struct range_hold *hold)
{
    if (hold->slot) {
        slot_free(hold->slot);
        if (exclusive_wanted(rl))
            wake(rl);
        return;
    }
    LOCK_SCOPE(&rl->lock);
    *(hold->prev ? &hold->prev->next : &rl->head) = hold->next;
    *(hold->next ? &hold->next->prev : &rl->tail) = hold->prev;
    __atomic_sub_fetch(&rl->exclusives, hold->exclusive, __ATOMIC_SEQ_CST);
    if (rl->waiters)
        pthread_cond_broadcast(&rl->released);
}
