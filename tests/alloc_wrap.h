/*
 * alloc_wrap.h - malloc and its kin for programs whose linker sends every call of them here
 * (--wrap). Included once in a program, behind the definition of allocation_fails(), which says
 * whether this call gets no memory.
 */
#ifndef QK_ALLOC_WRAP_H
#define QK_ALLOC_WRAP_H

#include <stdbool.h>
#include <stdlib.h>

static bool allocation_fails(void);

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
    return allocation_fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return allocation_fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *p, size_t size)
{
    return allocation_fails() ? NULL : __real_realloc(p, size);
}

void *__wrap_aligned_alloc(size_t align, size_t size)
{
    return allocation_fails() ? NULL : __real_aligned_alloc(align, size);
}

#endif
