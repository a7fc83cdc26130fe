/*
 * driver.h - what a driver is to the block graph, and the table of all of them. A driver is
 * either a protocol (it opens bytes by itself) or a format (it sits on a child "file").
 */
#ifndef QK_NODE_DRIVER_H
#define QK_NODE_DRIVER_H

#include "node/node.h"

enum driver_kind {
    DRIVER_FORMAT,
    DRIVER_PROTOCOL,
    DRIVER_KNOWN_FORMAT, /* QEMU has it and we do not */
    DRIVER_KNOWN_PROTOCOL,
};

struct node_driver {
    const char *name;
    enum driver_kind kind;
    bool metadata;             /* a format with tables of its own: writers need resize and exclude
                                  each other */
    const char *prefix;        /* names that start with "PREFIX:", NULL: none */
    const char *const *strong; /* keys (or "prefix.") that make another disk of it; NULL-ended */
    /* Turns the name into options, e.g. "filename"; protocols only. */
    int (*parse_name)(const char *name, struct options *opts, struct qk_error *err);
    /* Fills the node; node->file is there for formats. Marks the options that it knows. */
    int (*open)(struct node *node, struct open_request *req, struct qk_error *err);
    /* Before the children are closed. NULL: nothing to do. */
    int (*release)(struct node *node, struct qk_error *err);
    const struct qk_io_ops *ops;
};

extern const struct node_driver file_driver, host_device_driver, raw_driver, qcow2_driver,
    null_co_driver, null_aio_driver, blkdebug_driver;

/* NULL: no such name. */
const struct node_driver *driver_by_name(const char *name);
/* "host_device" when the name is that of a block device, else "file". */
const struct node_driver *driver_for_file(const char *name);
/* The protocol for a name with a prefix, else driver_for_file. Fails with QEMU's text. */
int driver_by_protocol(const char *name, const struct node_driver **out, struct qk_error *err);
/* -ENOTSUP with a clear text for one of the DRIVER_KNOWN_* kinds, else 0. */
int driver_check_supported(const struct node_driver *driver, struct qk_error *err);
static inline bool driver_is_protocol(const struct node_driver *driver)
{
    return driver->kind == DRIVER_PROTOCOL || driver->kind == DRIVER_KNOWN_PROTOCOL;
}

/* Calls of the vtable that only pass on to the child (node->store or node->file). */
int pass_preadv(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                struct qk_error *err);
int pass_pwritev(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                 unsigned flags, struct qk_error *err);
int pass_zero(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags, struct qk_error *err);
int pass_discard(struct qk_io *io, uint64_t off, uint64_t len, struct qk_error *err);
int pass_flush(struct qk_io *io, struct qk_error *err);
int pass_size(struct qk_io *io, uint64_t *size, struct qk_error *err);
int pass_resize(struct qk_io *io, uint64_t size, enum qk_prealloc prealloc, struct qk_error *err);
int pass_status(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                struct qk_extent *extent, struct qk_error *err);
int pass_allocated(struct qk_io *io, uint64_t *bytes, struct qk_error *err);
void pass_event(struct qk_io *io, const char *event);
int pass_set_perm(struct qk_io *io, unsigned used, unsigned shared, struct qk_error *err);
int pass_set_writable(struct qk_io *io, bool writable, struct qk_error *err);
int node_io_close(struct qk_io *io, struct qk_error *err);
/* All of these in one table, for drivers that change nothing. */
extern const struct qk_io_ops node_pass_ops;
/* Name, alignment and what the store can do become the node's own. */
void node_take_limits(struct node *node);

/* The store below a node. */
static inline struct qk_io *node_below(const struct node *node)
{
    return node->store ? node->store : node->file ? &node->file->io : NULL;
}

#endif
