/*
 * nomem.h - lets the Nth allocation of memory fail. For tests in wrapped_tests of meson.build,
 * whose linker sends every call of malloc and its kin here.
 */
#ifndef QK_NOMEM_H
#define QK_NOMEM_H

#include <stdbool.h>
#include <stdlib.h>

static _Atomic long countdown = -1; /* allocations until one fails; < 0: none does */

/* Several threads may ask: one of them gets the failure. */
static bool out_of_memory(void)
{
    return countdown >= 0 && countdown-- == 0;
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t align, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n);

void *__wrap_malloc(size_t n)
{
    return out_of_memory() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return out_of_memory() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    return out_of_memory() ? NULL : __real_realloc(p, n);
}

void *__wrap_aligned_alloc(size_t align, size_t n)
{
    return out_of_memory() ? NULL : __real_aligned_alloc(align, n);
}

#endif
