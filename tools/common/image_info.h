/*
 * image_info.h - what several faces say about an image.
 */
#ifndef TOOLS_COMMON_IMAGE_INFO_H
#define TOOLS_COMMON_IMAGE_INFO_H

#include "common/rows.h"
#include "qcowkit.h"

/*
 * Adds "Format specific information", the features of a qcow2 image; nothing for other formats.
 * *info is that of *disk. Returns 0, or a negative errno with *err set.
 */
int image_info_specific(struct rows *rows, struct qk_disk *disk, const struct qk_info *info,
                        struct qk_error *err);

/* The child that holds the bytes, as QEMU 8 and later print it. */
void image_info_children(struct rows *rows, const struct qk_info *info);

#endif
