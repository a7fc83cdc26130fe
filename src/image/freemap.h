/*
 * freemap.h - which host clusters are free, in memory (INV-5). One bit per cluster, kept only for
 * leaves (runs of FREEMAP_LEAF clusters) that are neither all free nor all used, and a segment
 * tree over the leaves with the longest free run, so that the lowest run of n free clusters is
 * found in O(log n). Leaves are filled on first need by a callback; everything beyond the last
 * leaf known to exist is free. Memory: at most 2 MiB per TiB of 64 KiB clusters, when scattered.
 *
 * Not thread-safe; pure but for the callback.
 */
#ifndef QK_IMAGE_FREEMAP_H
#define QK_IMAGE_FREEMAP_H

#include "base/error.h"

#define FREEMAP_LEAF 4096u

struct freemap;

/* Sets bit i of used[i / 64] when cluster leaf * FREEMAP_LEAF + i is used; `used` comes zeroed. */
typedef int (*freemap_load_fn)(void *opaque, uint64_t leaf, uint64_t used[FREEMAP_LEAF / 64],
                               struct qk_error *err);

/* `end`: first cluster that can have no refcount; leaves at or after it are free without a load. */
int freemap_new(uint64_t end, freemap_load_fn load, void *opaque, struct freemap **out,
                struct qk_error *err);
void freemap_free(struct freemap *map);

/* The lowest start of n >= 1 free clusters in one run; always exists (the map has no upper end).
 * Loads leaves as needed. */
int freemap_find(struct freemap *map, uint64_t n, uint64_t *start, struct qk_error *err);
/* The lowest free run, of at most n clusters: *start, *len. */
int freemap_find_any(struct freemap *map, uint64_t n, uint64_t *start, uint64_t *len,
                     struct qk_error *err);

/* Marks clusters. May grow the map; -ENOMEM leaves it unchanged. Loads leaves partly covered. */
int freemap_set(struct freemap *map, uint64_t start, uint64_t n, bool used, struct qk_error *err);
int freemap_is_used(struct freemap *map, uint64_t cluster, bool *used, struct qk_error *err);

/* Lowers *end to one more than the highest used cluster below it; 0 when all below are free. */
int freemap_used_end(struct freemap *map, uint64_t *end, struct qk_error *err);

#endif
