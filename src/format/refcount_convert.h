/*
 * refcount_convert.h - refcounts between their width on disk and plain numbers, many at a time
 * (Format, section "Refcounts"). Both ways are loops that compilers vectorise. Pure.
 */
#ifndef QK_FORMAT_REFCOUNT_CONVERT_H
#define QK_FORMAT_REFCOUNT_CONVERT_H

#include <stdint.h>

/* Refcounts first to first + count of a block; both are multiples of 8. order as refcount_ops. */
void refcount_unpack(unsigned order, const void *block, uint64_t first, uint64_t count,
                     uint64_t *out);
/* The other way; bits that the width does not have are cut off. */
void refcount_pack(unsigned order, void *block, uint64_t first, uint64_t count, const uint64_t *in);

#endif
