/*
 * overlay.c - QK_OPEN_SNAPSHOT: a qcow2 image in an unlinked temporary file on top of a disk that
 * was opened read-only. What is written there is gone when the disk is closed.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "node/driver.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

static int make_file(char **name, struct qk_error *err)
{
    const char *dir = getenv("TMPDIR");
    if (asprintf(name, "%s/qk.XXXXXX", dir && *dir ? dir : "/var/tmp") < 0) {
        *name = NULL;
        return qk_fail_nomem(err);
    }
    int fd = mkostemp(*name, O_CLOEXEC);
    if (fd < 0)
        return qk_fail_errno(err, -errno, "Could not get temporary filename '%s'", *name);
    close(fd);
    return 0;
}

static int format_file(const char *name, uint64_t size, struct qk_error *err)
{
    const struct io_file_options opts = {.writable = true, .no_flush = true};
    const struct create_params params = {
        .size_bytes = size, .version = 3, .cluster_bits = 16, .refcount_order = 4};
    struct qk_io *file;
    int ret = io_file_open(name, &opts, &file, err);
    if (ret < 0)
        return ret;
    ret = image_create(file, &params, err);
    int closed = io_close(file, ret < 0 ? NULL : err);
    return ret < 0 ? ret : closed;
}

int overlay_add(struct node **top, unsigned flags, struct qk_error *err)
{
    CLEANUP_FREE char *name = NULL;
    int ret = make_file(&name, err);
    if (ret < 0)
        return ret;
    ret = format_file(name, node_size(*top), err);
    struct open_request req = {
        .name = name,
        .format = "qcow2",
        .flags = QK_OPEN_RDWR | QK_OPEN_NO_FLUSH | QK_OPEN_NO_BACKING |
                 (flags & (QK_OPEN_UNMAP | QK_OPEN_COPY_ON_READ)),
        .role = ROLE_DISK,
        .policy = QK_POLICY_NONE,
    };
    struct node *overlay = NULL;
    if (ret == 0)
        ret = node_open(&req, &overlay, err);
    unlink(name);
    if (ret < 0)
        return ret;
    overlay->backing = *top;
    image_set_backing(overlay->image, &(*top)->io);
    *top = overlay;
    return 0;
}
