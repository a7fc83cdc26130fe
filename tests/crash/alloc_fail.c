/* alloc_fail.c - see alloc_fail.h. */
#include "alloc_fail.h"

#include <errno.h>
#include <stdlib.h>

static _Thread_local struct {
    bool armed, always;
    uint64_t nth, counted, failed;
} state;

void alloc_fail_at(uint64_t nth, bool always)
{
    state.nth = nth;
    state.always = always;
    state.counted = state.failed = 0;
}

void alloc_arm(bool armed)
{
    state.armed = armed;
}

uint64_t alloc_counted(void)
{
    return state.counted;
}

uint64_t alloc_failed(void)
{
    return state.failed;
}

static bool fails(void)
{
    if (!state.armed)
        return false;
    state.counted++;
    if (!state.nth || state.counted < state.nth || (state.counted > state.nth && !state.always))
        return false;
    state.failed++;
    errno = ENOMEM;
    return true;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *p, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *p, size_t size)
{
    return fails() ? NULL : __real_realloc(p, size);
}

void *__wrap_aligned_alloc(size_t align, size_t size)
{
    return fails() ? NULL : __real_aligned_alloc(align, size);
}
