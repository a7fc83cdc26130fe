/*
 * nomem_text.h - nomem.h for programs whose linker also sends the allocations of strdup and its kin
 * here.
 */
#ifndef QK_NOMEM_TEXT_H
#define QK_NOMEM_TEXT_H

#include "nomem.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

char *__real_strdup(const char *text);
char *__real_strndup(const char *text, size_t n);
int __real_posix_memalign(void **out, size_t align, size_t n);
char *__wrap_strdup(const char *text);
char *__wrap_strndup(const char *text, size_t n);
int __wrap_posix_memalign(void **out, size_t align, size_t n);
int __wrap_asprintf(char **out, const char *format, ...) __attribute__((format(printf, 2, 3)));

char *__wrap_strdup(const char *text)
{
    return allocation_fails() ? NULL : __real_strdup(text);
}

char *__wrap_strndup(const char *text, size_t n)
{
    return allocation_fails() ? NULL : __real_strndup(text, n);
}

int __wrap_posix_memalign(void **out, size_t align, size_t n)
{
    return allocation_fails() ? ENOMEM : __real_posix_memalign(out, align, n);
}

int __wrap_asprintf(char **out, const char *format, ...)
{
    if (allocation_fails())
        return -1;
    va_list args;
    va_start(args, format);
    int ret = vasprintf(out, format, args);
    va_end(args);
    return ret;
}

#endif
