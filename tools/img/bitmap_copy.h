/*
 * bitmap_copy.h - `convert --bitmaps`: the persistent bitmaps of the source, in the target.
 */
#ifndef TOOLS_IMG_BITMAP_COPY_H
#define TOOLS_IMG_BITMAP_COPY_H

#include "qcowkit.h"

/* Before the target is touched: -1 to go on, or 1 after printing why not. */
int bitmaps_judge_source(struct qk_disk *source, bool skip_broken);
/* The target, before anything is copied into it. */
int bitmaps_judge_target(struct qk_disk *target);
/* After the data: 0, or 1 after printing what failed. Broken ones are left out, with a warning. */
int bitmaps_copy(struct qk_disk *source, struct qk_disk *target);

#endif
