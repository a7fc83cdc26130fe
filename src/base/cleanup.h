/*
 * cleanup.h - scoped release of memory and locks with the compiler's cleanup attribute.
 *     CLEANUP_FREE char *name = strdup(x);
 *     LOCK_SCOPE(&image->lock);              // unlocked where the scope ends
 */
#ifndef QK_BASE_CLEANUP_H
#define QK_BASE_CLEANUP_H

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_free(void *p)
{
    free(*(void **)p);
}
#define CLEANUP_FREE __attribute__((cleanup(cleanup_free)))

static inline void cleanup_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}
#define CLEANUP_CLOSE __attribute__((cleanup(cleanup_close)))

static inline pthread_mutex_t *scope_lock(pthread_mutex_t *m)
{
    pthread_mutex_lock(m);
    return m;
}

static inline void scope_unlock(pthread_mutex_t **m)
{
    pthread_mutex_unlock(*m);
}

#define QK_PASTE2(a_, b_) a_##b_
#define QK_PASTE(a_, b_)  QK_PASTE2(a_, b_)
#define LOCK_SCOPE(m_)                                                                             \
    __attribute__((cleanup(scope_unlock), unused)) pthread_mutex_t *QK_PASTE(                      \
        scope_lock_, __LINE__) = scope_lock(m_)

/* Hands a CLEANUP_FREE pointer over to the caller: return TAKE(p). */
#define TAKE(p_)                                                                                   \
    __extension__({                                                                                \
        __typeof__(p_) taken_ = (p_);                                                              \
        (p_) = NULL;                                                                               \
        taken_;                                                                                    \
    })

#endif
