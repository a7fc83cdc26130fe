/*
 * qcow2_options.h - the runtime options of the qcow2 driver ("l2-cache-size=4M"), as one table.
 */
#ifndef QK_NODE_QCOW2_OPTIONS_H
#define QK_NODE_QCOW2_OPTIONS_H

#include "node/node.h"

/* Takes all keys of the driver out of opts into *out, whose other members are left alone. */
int qcow2_take_options(struct node *node, struct options *opts, struct image_options *out,
                       struct qk_error *err);

/* The image of a node whose file has become writable is opened anew for writing. */
int qcow2_make_writable(struct node *node, struct qk_error *err);

#endif
