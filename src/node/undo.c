/*
 * undo.c - taking a repair back, by file names: locks the image as a writer does, whatever its
 * format has become, and lets src/io put back what the undo file holds.
 */
#include "io/undo.h"
#include "base/error.h"
#include "node/name.h"

/* Where the log cannot be written to, it can still be told what it says. */
static int log_open(const char *name, struct qk_io **log, struct qk_error *err)
{
    const struct io_file_options both = {.writable = true}, read_only = {0};
    name = name_strip_file(name);
    return io_file_open(name, &both, log, NULL) == 0 ? 0 : io_file_open(name, &read_only, log, err);
}

int qk_undo(const char *name, const char *undo_file, struct qk_undo_result *result,
            struct qk_error *err)
{
    const struct io_file_options image_opts = {
        .writable = true,
        .locking = true,
        .used = IO_PERM_READ | IO_PERM_WRITE | IO_PERM_RESIZE,
    };
    struct qk_io *image = NULL, *log = NULL;
    struct undo_result r;
    int ret = log_open(undo_file, &log, err);
    if (ret == 0)
        ret = io_file_open(name_strip_file(name), &image_opts, &image, err);
    if (ret == 0)
        ret = undo_restore(log, image, &r, err);
    int closed = io_close(image, ret < 0 ? NULL : err);
    io_close(log, NULL);
    if (ret < 0 || closed < 0)
        return ret < 0 ? ret : closed;
    result->bytes = r.sectors * UNDO_SECTOR;
    result->length = r.length;
    result->never_begun = r.never_begun;
    return 0;
}
