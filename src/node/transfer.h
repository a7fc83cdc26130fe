/*
 * transfer.h - what a disk does with requests before they reach its top node: copy-on-read,
 * detect-zeroes, and what discard= makes of space that is given back.
 */
#ifndef QK_NODE_TRANSFER_H
#define QK_NODE_TRANSFER_H

#include "node/node.h"

/* Ranges are inside the disk, which is writable. All are MT-safe. */
int transfer_write(struct node *node, uint64_t off, const struct iovec *iov, int iovcnt,
                   unsigned flags, struct qk_error *err);
int transfer_zero(struct node *node, uint64_t off, uint64_t len, unsigned flags,
                  struct qk_error *err);
int transfer_discard(struct node *node, uint64_t off, uint64_t len, struct qk_error *err);
/* Reads, and keeps in the top layer what came from the layers below. */
int transfer_copy_on_read(struct node *node, uint64_t off, const struct iovec *iov, int iovcnt,
                          struct qk_error *err);

#endif
