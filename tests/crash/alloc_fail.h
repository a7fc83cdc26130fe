/*
 * alloc_fail.h - makes the nth allocation of memory of this thread fail. Only what runs while armed
 * counts. The programs that use it are linked with --wrap for the allocating functions.
 */
#ifndef QK_CRASH_ALLOC_FAIL_H
#define QK_CRASH_ALLOC_FAIL_H

#include <stdbool.h>
#include <stdint.h>

/* Counting starts anew; nth counts from 1, 0 fails none; always: all from the nth on. */
void alloc_fail_at(uint64_t nth, bool always);
void alloc_arm(bool armed);
uint64_t alloc_counted(void);
uint64_t alloc_failed(void);

#endif
