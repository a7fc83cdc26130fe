/*
 * error.h - how a failure travels: a negative errno as the return value, and a struct qk_error
 * (public, caller-owned, nullable) that says what and where. One line each:
 *     return qk_fail(err, -EINVAL, "cluster size %u is not a power of two", n);
 *     return qk_fail_at(err, -EIO, WHERE(name, "L2 table", off), "cannot read: %s", ...);
 */
#ifndef QK_BASE_ERROR_H
#define QK_BASE_ERROR_H

#include "qcowkit.h"

#include <errno.h>

struct where {
    const char *file;
    const char *structure;
    uint64_t off;
};
#define WHERE(file_, structure_, off_)                                                             \
    (&(const struct where){.file = (file_), .structure = (structure_), .off = (off_)})

/* Fills err (when not NULL) and returns code, a negative errno. */
int qk_fail(struct qk_error *err, int code, const char *fmt, ...) QK_PRINTF(3, 4);
int qk_fail_at(struct qk_error *err, int code, const struct where *where, const char *fmt, ...)
    QK_PRINTF(4, 5);

/* As qk_fail, with ": strerror(-code)" behind the text. */
int qk_fail_errno(struct qk_error *err, int code, const char *fmt, ...) QK_PRINTF(3, 4);

/* The same functions; the compiler sees that what is returned is `code`, so that it can tell that
 * a caller's early return leaves nothing uninitialized behind. */
#define QK_RETURNS_CODE(call_, err_, code_, ...)                                                   \
    __extension__({                                                                                \
        const int returned_code_ = (code_);                                                        \
        (void)call_((err_), returned_code_, __VA_ARGS__);                                          \
        returned_code_;                                                                            \
    })
#define qk_fail(err_, code_, ...)       QK_RETURNS_CODE((qk_fail), err_, code_, __VA_ARGS__)
#define qk_fail_at(err_, code_, ...)    QK_RETURNS_CODE((qk_fail_at), err_, code_, __VA_ARGS__)
#define qk_fail_errno(err_, code_, ...) QK_RETURNS_CODE((qk_fail_errno), err_, code_, __VA_ARGS__)

/* -ENOMEM with its text. */
int qk_fail_nomem(struct qk_error *err);

/* Puts "fmt: " in front of the text already there (context on the way up). Returns -err->code. */
int qk_error_prefix(struct qk_error *err, const char *fmt, ...) QK_PRINTF(2, 3);

/* Adds where to an error that has no file yet. */
void qk_error_locate(struct qk_error *err, const struct where *where);

#endif
