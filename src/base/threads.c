/*
 * threads.c - see threads.h. A thread inherits the signals that its maker holds back.
 */
#include "base/threads.h"

#include <signal.h>

unsigned threads_start(pthread_t *threads, unsigned count, void *(*fn)(void *opaque), void *opaque)
{
    sigset_t all, old;
    unsigned made = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (made < count && pthread_create(&threads[made], NULL, fn, opaque) == 0)
        made++;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return made;
}
