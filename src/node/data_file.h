/*
 * data_file.h - the file that holds the guest data of a qcow2 image beside its tables.
 */
#ifndef QK_NODE_DATA_FILE_H
#define QK_NODE_DATA_FILE_H

#include "node/node.h"

/* Opens node->data when the image has one, unless only its description is asked for, and gives it
 * to the image. With QK_OPEN_CHECK it may stay closed. -EPERM: the policy; -ELOOP: the file is part
 * of the chain already. */
int data_file_open(struct node *node, struct open_request *req, struct qk_error *err);
/* After node->flags have changed; see reopen.c. */
int data_file_set_writable(struct node *node, bool writable, struct qk_error *err);

#endif
