/*
 * qcow2_options.h - the runtime options of the qcow2 driver ("l2-cache-size=4M"), as one table.
 */
#ifndef QK_NODE_QCOW2_OPTIONS_H
#define QK_NODE_QCOW2_OPTIONS_H

#include "node/node.h"

/* Takes all keys of the driver out of opts into *out, whose other members are left alone. */
int qcow2_take_options(struct node *node, struct options *opts, struct image_options *out,
                       struct qk_error *err);

/* encrypt.*: which secret opens the image (id NULL: none given). Strings belong to req. */
struct qcow2_encryption {
    struct image_secret secret;
    const char *format; /* NULL: as the image says */
};
void qcow2_take_encryption(struct open_request *req, struct qcow2_encryption *out);
/* The format that was given is the image's. */
int qcow2_judge_encryption(const struct node *node, const struct qcow2_encryption *wish,
                           struct qk_error *err);

/* Puts something below the image that reads as zero. */
int qcow2_stand_in(struct node *node, struct qk_error *err);
/* The image of a node whose file has become writable is opened anew for writing. */
int qcow2_make_writable(struct node *node, struct qk_error *err);

#endif
