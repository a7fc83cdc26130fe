/*
 * trace.h - a filter that logs every change and flush of its inner store, with data, so that a
 * test can rebuild what a crash would have left: the content after any prefix of the log, or after
 * any subset of the changes that no flush has made stable.
 *
 * Changes run one at a time, so the log's order is the order in which the inner store saw them. A
 * change that failed is not in the log. MT-safe like every store; the entries that trace_get
 * returns stay valid until the store closes.
 *
 * Stores that are used together (an image and its data file) share a log, which says for each entry
 * of which store it is: what one of them has made stable says nothing of the other.
 */
#ifndef QK_IO_TRACE_H
#define QK_IO_TRACE_H

#include "io/io.h"

enum trace_kind { TRACE_WRITE, TRACE_ZERO, TRACE_DISCARD, TRACE_RESIZE, TRACE_FLUSH };

struct trace_entry {
    enum trace_kind kind;
    size_t seq;          /* place in the log, from 0 */
    unsigned store;      /* 0: the one that was opened first */
    uint64_t off, len;   /* resize: len is the new length */
    bool fua;            /* write: stable on return */
    size_t covers;       /* flush: entries of the store below this number are stable, later ones may
                            not be */
    const uint8_t *data; /* write only: len bytes */
};

/* Owns inner afterwards, also on failure. */
int io_trace_open(struct qk_io *inner, struct qk_io **out, struct qk_error *err);

/* Logs another store, as number `store`, in the log of `first`, which has to be closed last. */
int io_trace_open_beside(struct qk_io *inner, struct qk_io *first, unsigned store,
                         struct qk_io **out, struct qk_error *err);

size_t trace_count(struct qk_io *io);
const struct trace_entry *trace_get(struct qk_io *io, size_t seq);

/* The first entry that no flush among the entries below `end` covers: stable are those below it. */
size_t trace_stable_before(struct qk_io *io, size_t end);

/* Does the change once more, to another store. Flushes do nothing. */
int trace_replay(const struct trace_entry *entry, struct qk_io *target, struct qk_error *err);
/* As above, but of a write (or zero) only the bytes [skip, skip + len) of its range. */
int trace_replay_part(const struct trace_entry *entry, uint64_t skip, uint64_t len,
                      struct qk_io *target, struct qk_error *err);

#endif
