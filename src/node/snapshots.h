/*
 * snapshots.h - the snapshots of an open disk, as the public calls show them; the list is read on
 * first demand, and again when one of these calls has changed it.
 */
#ifndef QK_NODE_SNAPSHOTS_H
#define QK_NODE_SNAPSHOTS_H

#include "image/snapshots.h"

/* NULL is allowed. */
void snapshots_release(struct snapshot_vec *list);

#endif
