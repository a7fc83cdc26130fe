/*
 * request.h - one transfer between an image and memory: what the command asked for, its buffer,
 * its outcome, and how that is printed. Synchronous commands and the aio_ ones share it.
 */
#ifndef TOOLS_IO_REQUEST_H
#define TOOLS_IO_REQUEST_H

#include "qcowkit.h"

#include <stdbool.h>
#include <stdint.h>

struct args;
struct session;

enum request_kind { REQUEST_READ, REQUEST_WRITE, REQUEST_ZEROES, REQUEST_DISCARD };

struct request {
    enum request_kind kind;
    const char *failed; /* what is said to have failed: "read", "aio_write" */
    uint64_t off, len;
    unsigned flags; /* of enum qk_write_flag */
    bool vm_state;  /* the range is of the VM state, not of the disk */

    uint8_t *memory; /* owned */
    struct iovec *iov;
    int iovcnt;

    bool quiet, machine, dump;
    bool verify;
    uint8_t pattern;
    uint64_t verify_off, verify_len; /* relative to off */

    int ret;
    uint64_t elapsed_ns;
    struct request *next; /* for queues */
};

/* An empty request with what all commands have in common: -q, -C, -v. To be freed. */
struct request *request_new(enum request_kind kind, const char *failed, const struct args *args);
void request_free(struct request *request);
void request_drop(struct request **request);
#define REQUEST_CLEANUP __attribute__((cleanup(request_drop)))

/* -P, when it is given. -EINVAL: reported. */
int request_take_pattern(struct request *request, const struct args *args);
/*
 * Offset and lengths from the operands, and memory when it will be used: a request outside the
 * image only fails. Negative errno: reported.
 */
int request_take_vector(struct request *request, const struct args *args,
                        const struct session *session);
/*
 * Memory for the request, as one buffer that is split into `count` parts of these lengths, or
 * whole with count 0; written to first when it is to be written. -ENOMEM: reported.
 */
int request_allocate(struct request *request, const struct session *session, const size_t *lengths,
                     int count);
/* Fills the memory from a file, over and over. Negative errno: reported. */
int request_fill_from(struct request *request, const char *file);

/* True when the image has that range: nothing else needs memory. */
bool request_fits(const struct request *request, struct qk_disk *disk);

/* Does the transfer and notes outcome and time. Prints nothing; runs in any thread. */
void request_execute(struct request *request, struct qk_disk *disk);

/* Prints the outcome. Returns ret, or -EINVAL when the data is not what was expected. */
int request_report(const struct request *request);

/* request_execute, request_report. */
int request_perform(struct request *request, struct session *session);

/* ---- requests under way ------------------------------------------------------------------- */

struct request_queue;
struct request_queue *queue_new(void);
/* All requests must have been reaped. */
void queue_free(struct request_queue *queue);
/* Takes the request over and starts it; waits when too many are under way. */
void queue_submit(struct request_queue *queue, struct request *request, struct qk_disk *disk);
/* Something has not finished yet. */
bool queue_is_busy(struct request_queue *queue);
/* Prints and frees what is finished; `all`: waits until everything is. */
void queue_reap(struct request_queue *queue, bool all);

#endif
