/*
 * error.c - filling struct qk_error. Strings are cut to their fields, never allocated, so that
 * reporting a failure cannot fail.
 */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void copy_cut(char *dst, size_t size, const char *src)
{
    snprintf(dst, size, "%s", src ? src : "");
}

static void fill(struct qk_error *err, int code, const struct where *where, const char *fmt,
                 va_list args)
{
    err->code = -code;
    err->offset = where ? where->off : QK_OFFSET_NONE;
    copy_cut(err->file, sizeof(err->file), where ? where->file : NULL);
    copy_cut(err->structure, sizeof(err->structure), where ? where->structure : NULL);
    vsnprintf(err->text, sizeof(err->text), fmt, args);
}

int(qk_fail)(struct qk_error *err, int code, const char *fmt, ...)
{
    if (err) {
        va_list args;
        va_start(args, fmt);
        fill(err, code, NULL, fmt, args);
        va_end(args);
    }
    return code;
}

int(qk_fail_at)(struct qk_error *err, int code, const struct where *where, const char *fmt, ...)
{
    if (err) {
        va_list args;
        va_start(args, fmt);
        fill(err, code, where, fmt, args);
        va_end(args);
    }
    return code;
}

int(qk_fail_errno)(struct qk_error *err, int code, const char *fmt, ...)
{
    if (err) {
        va_list args;
        va_start(args, fmt);
        fill(err, code, NULL, fmt, args);
        va_end(args);
        size_t len = strlen(err->text);
        snprintf(err->text + len, sizeof(err->text) - len, ": %s", strerror(-code));
    }
    return code;
}

int qk_fail_nomem(struct qk_error *err)
{
    return qk_fail(err, -ENOMEM, "Cannot allocate memory");
}

int qk_error_prefix(struct qk_error *err, const char *fmt, ...)
{
    if (!err)
        return -EIO;
    char old[sizeof(err->text)];
    memcpy(old, err->text, sizeof(old));
    va_list args;
    va_start(args, fmt);
    vsnprintf(err->text, sizeof(err->text), fmt, args);
    va_end(args);
    size_t len = strlen(err->text);
    snprintf(err->text + len, sizeof(err->text) - len, ": %s", old);
    return -err->code;
}

void qk_error_locate(struct qk_error *err, const struct where *where)
{
    if (!err || err->file[0])
        return;
    copy_cut(err->file, sizeof(err->file), where->file);
    if (!err->structure[0])
        copy_cut(err->structure, sizeof(err->structure), where->structure);
    if (err->offset == QK_OFFSET_NONE)
        err->offset = where->off;
}
