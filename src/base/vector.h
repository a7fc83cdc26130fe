/*
 * vector.h - a growing array of any element type, defined where it is used:
 *     DEFINE_VECTOR(u64_vector, uint64_t)
 *     struct u64_vector v = {0};  u64_vector_append(&v, 7);  v.ptr[0];  v.len; u64_vector_free(&v);
 * append and reserve return 0 or -ENOMEM (the vector is then unchanged). Not thread-safe.
 */
#ifndef QK_BASE_VECTOR_H
#define QK_BASE_VECTOR_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define DEFINE_VECTOR(name_, type_)                                                                \
    struct name_ {                                                                                 \
        type_ *ptr;                                                                                \
        size_t len, cap;                                                                           \
    };                                                                                             \
    static inline int __attribute__((unused)) name_##_reserve(struct name_ *v, size_t n)           \
    {                                                                                              \
        if (n <= v->cap)                                                                           \
            return 0;                                                                              \
        size_t cap = v->cap ? v->cap + v->cap / 2 : 8;                                             \
        if (cap < n)                                                                               \
            cap = n;                                                                               \
        if (cap > SIZE_MAX / sizeof(type_))                                                        \
            return -ENOMEM;                                                                        \
        type_ *p = realloc(v->ptr, cap * sizeof(type_));                                           \
        if (!p)                                                                                    \
            return -ENOMEM;                                                                        \
        v->ptr = p;                                                                                \
        v->cap = cap;                                                                              \
        return 0;                                                                                  \
    }                                                                                              \
    static inline int __attribute__((unused)) name_##_append(struct name_ *v, type_ item)          \
    {                                                                                              \
        int ret = name_##_reserve(v, v->len + 1);                                                  \
        if (ret < 0)                                                                               \
            return ret;                                                                            \
        v->ptr[v->len++] = item;                                                                   \
        return 0;                                                                                  \
    }                                                                                              \
    static inline void __attribute__((unused)) name_##_free(struct name_ *v)                       \
    {                                                                                              \
        free(v->ptr);                                                                              \
        *v = (struct name_){0};                                                                    \
    }

#endif
