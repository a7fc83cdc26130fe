/*
 * header_test.h - a sound header, for tests that spoil a field of it: version 3, 64 KiB clusters, a
 * disk of 1 GiB, in a file of 1 MiB.
 */
#ifndef QK_HEADER_TEST_H
#define QK_HEADER_TEST_H

#include "format/header.h"

static const struct header sound_header = {
    .version = 3,
    .cluster_bits = 16,
    .size_bytes = UINT64_C(1) << 30,
    .l1_entries = 2,
    .l1_off = 0x30000,
    .reftable_off = 0x10000,
    .reftable_clusters = 1,
    .refcount_order = 4,
    .header_bytes = 112,
};

#endif
