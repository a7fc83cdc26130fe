/*
 * check.h - finding and repairing damage in one image. Phases find problems (problems.def) and
 * hand records to a sink; a plan is made of them; the repair applies the plan. Exclusive use of
 * the image; needs it open with for_check.
 */
#ifndef QK_CHECK_CHECK_H
#define QK_CHECK_CHECK_H

#include "image/image.h"

/* As qk_disk_check (qcowkit.h). After a repair the image has been reloaded. */
int check_image(struct image *img, const struct qk_check_options *opts,
                struct qk_check_result *result, struct qk_error *err);

/* The same with an empty store for the undo log in place of opts->undo_file. */
int check_image_saving(struct image *img, const struct qk_check_options *opts, struct qk_io *log,
                       struct qk_check_result *result, struct qk_error *err);

#endif
