/*
 * fault.h - the blkdebug store beyond io_fault_open: rules and limits from an option tree,
 * breakpoints, and failing the nth request, for those who build option trees and for tests.
 *
 * How it works: whoever does I/O names what it is about to do (io_event). A rule of that event
 * whose state fits becomes active, in place of those of earlier events; each request that an
 * active rule covers then fails with the rule's errno, until another event's rules replace it or,
 * with `once`, until it has failed one request. The state starts as 1; a set-state rule changes it
 * after all rules of its event were looked at. Event "none" happens before the first request.
 * `immediately` is accepted and makes no difference here: it tells QEMU to fail before rather
 * than after a turn of its event loop.
 *
 * All functions are MT-safe. `io` must be a store made by io_fault_open.
 */
#ifndef QK_IO_FAULT_H
#define QK_IO_FAULT_H

#include "io/io.h"

struct fault_option {
    const char *key, *value;
};

/*
 * Adds one rule of group "inject-error" (event, state, errno, sector, once, immediately, iotype) or
 * "set-state" (event, state, new_state). Numbers as in C, switches on/off. -EINVAL says which key
 * or value is wrong.
 */
int fault_add_rule(struct qk_io *io, const char *group, const struct fault_option *options,
                   size_t count, struct qk_error *err);

/* True for the keys of fault_set_limits. */
bool fault_is_limit(const char *key);

/*
 * Sizes that shape requests: align, max-transfer, opt-write-zero, max-write-zero, opt-discard,
 * max-discard. Before the first request. -EINVAL when a value does not fit the others.
 */
int fault_set_limits(struct qk_io *io, const struct fault_option *options, size_t count,
                     struct qk_error *err);

/* The events' names, in the order of their numbers; NULL behind the last. */
const char *fault_event_name(size_t index);

/*
 * Breakpoints: the next request that names `event` waits until its tag is resumed. break: -ENOENT
 * for an unknown event. resume and remove: -ENOENT when nothing has the tag; remove also resumes.
 */
int fault_break(struct qk_io *io, const char *event, const char *tag);
int fault_remove_break(struct qk_io *io, const char *tag);
int fault_resume(struct qk_io *io, const char *tag);
bool fault_is_suspended(struct qk_io *io, const char *tag);

/* Tells when requests stop (suspended) and go on. Called with no lock held; set before use. */
typedef void fault_notify(void *opaque, const char *tag, bool suspended);
void fault_set_notify(struct qk_io *io, fault_notify *notify, void *opaque);

/* ---- for tests ---- */

enum fault_iotype {
    FAULT_READ,
    FAULT_WRITE,
    FAULT_WRITE_ZEROES,
    FAULT_DISCARD,
    FAULT_FLUSH,
    FAULT_BLOCK_STATUS,
    FAULT_RESIZE, /* not reached by rules: QEMU's rules have no such type */
    FAULT_IOTYPES,
};

struct fault_nth {
    uint64_t nth;     /* counting from 1 at the call; 0: count only */
    int error;        /* positive errno */
    unsigned iotypes; /* bits 1 << enum fault_iotype that are counted; 0: all that change or read */
    bool always;      /* all requests from the nth on fail, not only that one */
    bool torn;        /* a failing write has stored its first half, cut to 512 bytes */
};
void fault_fail_nth(struct qk_io *io, const struct fault_nth *nth);
/* Requests counted since fault_fail_nth. */
uint64_t fault_counted(struct qk_io *io);
/* Requests of these types (bits) that have failed by a rule or by their number, since opening. */
uint64_t fault_injected(struct qk_io *io, unsigned iotypes);
/* Forgets all rules and the nth request: from now on nothing is injected. */
void fault_clear(struct qk_io *io);

#endif
