/*
 * undo.c - taking a repair back, by file names: locks the image as a writer does, whatever its
 * format has become, and lets src/io put back what the undo file holds.
 */
#include "io/undo.h"
#include "base/error.h"

int qk_undo(const char *name, const char *undo_file, struct qk_undo_result *result,
            struct qk_error *err)
{
    const struct io_file_options image_opts = {
        .writable = true,
        .locking = true,
        .used = IO_PERM_READ | IO_PERM_WRITE | IO_PERM_RESIZE,
    };
    const struct io_file_options log_opts = {0};
    struct qk_io *image = NULL, *log = NULL;
    struct undo_result r;
    int ret = io_file_open(undo_file, &log_opts, &log, err);
    if (ret == 0)
        ret = io_file_open(name, &image_opts, &image, err);
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
