/*
 * threads.h - starting the threads of one piece of work. The caller is usually one worker more, so
 * that the work goes on where no thread can be made, and waits for the others with pthread_join.
 */
#ifndef QK_BASE_THREADS_H
#define QK_BASE_THREADS_H

#include <pthread.h>

/* Starts `count` threads that run fn(opaque), or as many as can be made, and returns how many. They
 * take no signals: these are the business of the program's own threads. */
unsigned threads_start(pthread_t *threads, unsigned count, void *(*fn)(void *opaque), void *opaque);

#endif
