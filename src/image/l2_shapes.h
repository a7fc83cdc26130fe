/*
 * l2_shapes.h - what an image holds where, when many L1 entries name the same L2 table: the runs of
 * such a table are kept, so that it is walked once and not for each of them. For images that nobody
 * changes; sound ones have no such tables, and pay with 24 bytes for each table that was asked for.
 * Memory: at most an eighth of the tables' own size more.
 */
#ifndef QK_IMAGE_L2_SHAPES_H
#define QK_IMAGE_L2_SHAPES_H

#include "base/error.h"
#include "format/entry.h"

#include <pthread.h>

struct image;
struct map_extent;

struct l2_shape;
struct l2_shapes {
    pthread_mutex_t lock;
    struct l2_shape *slots; /* hash table by the tables' places */
    size_t count, mask;
};

void l2_shapes_init(struct l2_shapes *shapes);
/* The tables may have changed. */
void l2_shapes_forget(struct l2_shapes *shapes);
void l2_shapes_destroy(struct l2_shapes *shapes);

/* image_map without `copied` and `entry`. Extents may be longer: up to the whole table. */
int l2_shapes_map(struct image *img, guest_off_t off, uint64_t len, struct map_extent *ext,
                  struct qk_error *err);

#endif
