/*
 * undo.c - taking a repair back, by names: locks the image as a writer does, whatever its format
 * has become, and lets src/io put back what the undo file holds.
 */
#include "io/undo.h"
#include "base/checked.h"
#include "base/error.h"
#include "node/name.h"
#include "node/node.h"

#include <string.h>

/* Where the log cannot be written to, it can still be told what it says. */
static int log_open(const char *name, struct qk_io **log, struct qk_error *err)
{
    const struct io_file_options both = {.writable = true}, read_only = {0};
    name = name_strip_file(name);
    return io_file_open(name, &both, log, NULL) == 0 ? 0 : io_file_open(name, &read_only, log, err);
}

/* What is put back: a file, or with a json: name what such a one makes of a file, as a window. */
struct target {
    struct qk_io *file;
    struct node *node;
    struct qk_io *store; /* of the two above */
};

/* Opened as a check does, so that a damaged image opens as well; what holds the image's bytes lies
 * below it, and below what was found by probing, which would guard them. */
static int target_node(const char *name, struct target *t, struct qk_error *err)
{
    struct open_request req = {.name = name,
                               .role = ROLE_DISK,
                               .flags = QK_OPEN_RDWR | QK_OPEN_CHECK | QK_OPEN_NO_BACKING |
                                        QK_OPEN_NO_IO | QK_OPEN_NO_SHARE};
    int ret = node_open(&req, &t->node, err);
    if (ret < 0)
        return ret;
    bool below = t->node->file && (t->node->image || t->node->probed);
    t->store = below ? &t->node->file->io : &t->node->io;
    return node_lock_also(t->node, ROLE_DISK, IO_PERM_READ | IO_PERM_WRITE | IO_PERM_RESIZE, err);
}

static int target_open(const char *name, struct target *t, struct qk_error *err)
{
    const struct io_file_options opts = {
        .writable = true,
        .locking = true,
        .used = IO_PERM_READ | IO_PERM_WRITE | IO_PERM_RESIZE,
    };
    if (name_is_json(name))
        return target_node(name, t, err);
    int ret = io_file_open(name_strip_file(name), &opts, &t->file, err);
    t->store = t->file;
    return ret;
}

static int target_close(struct target *t, struct qk_error *err)
{
    return t->node ? node_close(t->node, err) : io_close(t->file, err);
}

int qk_undo(const char *name, const char *undo_file, struct qk_undo_result *result,
            struct qk_error *err)
{
    struct target image = {0};
    struct qk_io *log = NULL;
    struct undo_result r;
    const size_t size = result->struct_size;
    if (size < sizeof(size))
        return qk_fail(err, -EINVAL, "struct_size of the result is not set");
    int ret = log_open(undo_file, &log, err);
    if (ret == 0)
        ret = target_open(name, &image, err);
    if (ret == 0)
        ret = undo_restore(log, image.store, &r, err);
    int closed = target_close(&image, ret < 0 ? NULL : err);
    io_close(log, NULL);
    if (ret < 0 || closed < 0)
        return ret < 0 ? ret : closed;
    const struct qk_undo_result full = {
        .struct_size = size,
        .bytes = r.sectors * UNDO_SECTOR,
        .length = r.length,
        .never_begun = r.never_begun,
    };
    memcpy(result, &full, (size_t)min_u64(size, sizeof(full)));
    return 0;
}
