/*
 * fault_store.h - what fault.c (the store) and fault_limits.c (shaping requests) share.
 */
#ifndef QK_IO_FAULT_STORE_H
#define QK_IO_FAULT_STORE_H

#include "io/fault_rules.h"

#include <pthread.h>

struct fault_limits {
    uint64_t align, max_transfer;
    uint64_t opt_write_zero, max_write_zero;
    uint64_t opt_discard, max_discard;
};

struct fault_store {
    struct qk_io io;
    struct qk_io *inner;
    pthread_mutex_t lock; /* over all below, but what never changes after setting up */
    pthread_cond_t resumed;
    bool started; /* event "none" has happened */
    int64_t state;
    struct fault_rules rules;
    struct fault_rules suspended;
    struct fault_nth nth;
    uint64_t counted;
    uint64_t injected[FAULT_IOTYPES];
    fault_notify *notify;
    void *notify_opaque;
    struct fault_limits limits;
    pthread_rwlock_t edge_lock; /* exclusive: a write that rewrites its neighbours' bytes */
};

static inline struct fault_store *fault_store(struct qk_io *io)
{
    return (struct fault_store *)io;
}

/* A request against the rules: 0, or the error to fail with. */
struct fault_request {
    enum fault_iotype type;
    uint64_t off, len;
};
int fault_check(struct fault_store *f, const struct fault_request *req, struct qk_error *err);
void fault_event(struct qk_io *io, const char *event);

/* One piece, already shaped: rules first, then the inner store. */
int fault_read_piece(struct fault_store *f, uint64_t off, const struct iovec *iov, int iovcnt,
                     struct qk_error *err);
int fault_write_piece(struct fault_store *f, uint64_t off, const struct iovec *iov, int iovcnt,
                      unsigned flags, struct qk_error *err);
int fault_zero_piece(struct fault_store *f, uint64_t off, uint64_t len, unsigned flags,
                     struct qk_error *err);
int fault_discard_piece(struct fault_store *f, uint64_t off, uint64_t len, struct qk_error *err);

/* fault_limits.c: entries of the vtable, which cut requests to pieces. */
int fault_preadv(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                 struct qk_error *err);
int fault_pwritev(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                  unsigned flags, struct qk_error *err);
int fault_zero(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags, struct qk_error *err);
int fault_discard(struct qk_io *io, uint64_t off, uint64_t len, struct qk_error *err);

#endif
