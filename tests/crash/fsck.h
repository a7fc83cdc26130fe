/*
 * fsck.h - a second opinion on an image: counts references from header, L1 and L2 tables and
 * compares them with the refcounts, in a few lines that share no code with the engine or its
 * check. Knows version 2 and 3, every refcount width, zero and compressed clusters, and snapshots,
 * whose tables and clusters may be shared with each other and with the active ones.
 */
#ifndef QK_CRASH_FSCK_H
#define QK_CRASH_FSCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct fsck {
    uint64_t corruptions, leaks;
    bool dirty;     /* refcounts are not to be trusted: nothing is counted */
    char text[160]; /* the first corruption */
};

/* False when this is no qcow2 image at all. */
bool fsck_run(const uint8_t *bytes, size_t len, struct fsck *out);

#endif
