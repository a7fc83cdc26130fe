/*
 * bitmaps.h - the list of persistent bitmaps of an image, for display (Format, sections "Bitmaps
 * extension", "Bitmap directory"). Relies on the header having been validated.
 */
#ifndef QK_NODE_BITMAPS_H
#define QK_NODE_BITMAPS_H

#include "image/image.h"

struct bitmap_row {
    char *name; /* owned */
    uint32_t flags;
    uint8_t granularity_bits;
};

struct bitmap_list {
    struct bitmap_row *row;
    uint32_t count;
};

/* 0 when there are none, or when they are stale (the autoclear bit is not set). */
uint32_t bitmaps_count(const struct image *img);
/* Reads the directory; memory is bounded by the file's length (INV-4). */
int bitmaps_read(const struct image *img, struct bitmap_list **out, struct qk_error *err);
void bitmaps_free(struct bitmap_list *list);

#endif
