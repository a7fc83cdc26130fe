/*
 * expand_zero.h - an image without zero flags, as version 2 wants it: each entry with the flag is
 * exchanged for one that reads the same, in the tables of the disk and of all snapshots
 * (doc/design/resize-amend.md). Relies on the whole disk being held.
 */
#ifndef QK_IMAGE_EXPAND_ZERO_H
#define QK_IMAGE_EXPAND_ZERO_H

#include "image/image_int.h"

/* Stable on return, also of what was done before a failure. -ECANCELED by progress. */
int expand_zero(struct image *img, const struct qk_progress *progress, struct qk_error *err);

#endif
