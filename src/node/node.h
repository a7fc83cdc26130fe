/*
 * node.h - the block graph. A node is a byte store (struct qk_io) that stands for a driver with
 * its children: the qcow2 driver over an image, raw over a file, null, blkdebug. Opening takes a
 * name or an option tree, probes the format, follows backing files as the policy allows (INV-7).
 */
#ifndef QK_NODE_NODE_H
#define QK_NODE_NODE_H

#include "image/image.h"
#include "io/io.h"

#include <jansson.h>

/* What every node is beside a store. `io` first, so that a node can be used as one. */
struct node {
    struct qk_io io;
    struct node *file;      /* child that holds the bytes, NULL for a protocol node */
    struct node *backing;   /* NULL: none */
    struct qk_io *store;    /* protocol node: the store it wraps */
    struct image *image;    /* qcow2 driver only */
    uint32_t header_writes_denied; /* raw by probing: bytes at the start that may not be written */
    char *format;           /* driver name */
    char *full_name;        /* as shown to people: file name or json: */
};

struct node_options {
    unsigned flags;         /* QK_OPEN_* */
    enum qk_policy policy;
    json_t *tree;           /* options as a nested or flat dictionary; borrowed; or NULL */
    const char *format;     /* NULL: probe, or the tree's "driver" */
};

int node_open(const char *name, const struct node_options *opts, struct node **out,
              struct qk_error *err);
int node_close(struct node *node, struct qk_error *err);

/* The public handle. */
struct qk_disk {
    struct node *top;
};

#endif
