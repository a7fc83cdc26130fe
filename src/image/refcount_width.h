/*
 * refcount_width.h - another width for an image's refcounts: a new refcount structure is written
 * beside the old one and one header write switches (doc/design/resize-amend.md). Relies on the
 * whole disk being held and on a frozen image (image_freeze).
 */
#ifndef QK_IMAGE_REFCOUNT_WIDTH_H
#define QK_IMAGE_REFCOUNT_WIDTH_H

#include "image/image_int.h"

/*
 * Rewrites the refcounts with `order` (0: 1 bit, to 6: 64 bits); stable on return. -EINVAL: a count
 * does not fit, the cluster is named; -EFBIG: the refcount table would be too large; -ENOSPC;
 * -ECANCELED by progress. After a failure the image is as before.
 */
int refcount_width_change(struct image *img, unsigned order, const struct qk_progress *progress,
                          struct qk_error *err);
/* Only the question whether all counts fit. */
int refcount_width_judge(struct image *img, unsigned order, struct qk_error *err);

#endif
