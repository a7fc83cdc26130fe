/*
 * zero.h - zero bytes in buffers: the test itself, and the cut of a buffer into runs that are
 * written and runs that stay holes. Pure.
 */
#ifndef QK_JOB_ZERO_H
#define QK_JOB_ZERO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* All len bytes at p are zero. */
bool bytes_are_zero(const void *p, size_t len);

/* Offset of the first difference of a and b; len when they are the same. */
size_t bytes_first_difference(const uint8_t *a, const uint8_t *b, size_t len);

/* How fine zeroes are looked for. */
struct sparse_rule {
    size_t min_bytes; /* zero runs between data that are shorter are written with it */
    size_t unit;      /* power of two: runs begin and end at guest offsets that are multiples */
};
struct sparse_rule sparse_rule_of(uint64_t sparse_bytes);

/*
 * Length of the run that buf begins with; *zero says what it is. `off` is the guest offset of
 * buf[0]. len > 0; the result is too.
 */
size_t sparse_run(const struct sparse_rule *rule, const uint8_t *buf, size_t len, uint64_t off,
                  bool *zero);

#endif
