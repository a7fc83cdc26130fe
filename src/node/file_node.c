/*
 * file_node.c - the protocols "file" and "host_device": a node over the file store, opened without
 * locks (node_lock takes them once the driver above is known).
 */
#include "base/cleanup.h"
#include "node/driver.h"
#include "node/name.h"

#include <string.h>
#include <sys/stat.h>

static int parse_name(const char *name, struct options *opts, struct qk_error *err)
{
    if (!strncmp(name, "host_device:", 12))
        name += 12;
    return options_set(opts, "filename", name_strip_file(name), OPTION_TEXT, err);
}

/* locking=auto takes locks wherever the system has them, which is what "on" does too. */
static int take_locking(struct open_request *req, bool *locking, struct qk_error *err)
{
    const char *text = options_take(&req->opts, "locking");
    *locking = true;
    if (!text || !strcmp(text, "auto"))
        return 0;
    int on = option_parse_bool(text);
    if (on < 0)
        return option_bad_value(err, text);
    *locking = on;
    return 0;
}

/* Choices between ways of doing the same I/O: checked, then left to the store. */
static int take_ignored(struct open_request *req, struct qk_error *err)
{
    const char *aio = options_take(&req->opts, "aio");
    if (aio && strcmp(aio, "threads") && strcmp(aio, "native") && strcmp(aio, "io_uring"))
        return option_bad_value(err, aio);
    bool unused = false;
    uint64_t number = 0;
    int ret = options_take_bool(&req->opts, "drop-cache", &unused, err);
    if (ret == 0)
        ret = options_take_bool(&req->opts, "x-check-cache-dropped", &unused, err);
    if (ret == 0)
        ret = options_take_size(&req->opts, "aio-max-batch", &number, err);
    return ret;
}

/* Before anything is opened: what the driver is for. The store refuses FIFOs and the like. */
static int check_kind(const struct node *node, const char *filename, struct qk_error *err)
{
    struct stat st;
    if (stat(filename, &st) < 0)
        return 0;
    if (node->driver == &host_device_driver && !S_ISBLK(st.st_mode))
        return qk_fail(
            err, -EINVAL,
            "'host_device' driver requires '%s' to be either a character or block device",
            filename);
    if (S_ISDIR(st.st_mode) && (node->flags & QK_OPEN_RDWR))
        return qk_fail_errno(err, -EISDIR, "Could not open '%s'", filename);
    return 0;
}

static int file_node_open(struct node *node, struct open_request *req, struct qk_error *err)
{
    const char *filename = options_take(&req->opts, "filename");
    if (!filename || !*filename)
        return qk_fail(err, -EINVAL, "The '%s' block driver requires a file name",
                       node->driver->name);
    struct io_file_options file = {
        .writable = node->flags & QK_OPEN_RDWR,
        .direct = node->flags & QK_OPEN_DIRECT,
        .no_flush = node->flags & QK_OPEN_NO_FLUSH,
        .shared = IO_PERM_ALL,
    };
    int ret = take_locking(req, &file.locking, err);
    if (ret == 0)
        ret = take_ignored(req, err);
    if (ret == 0)
        ret = check_kind(node, filename, err);
    if (ret == 0)
        ret = io_file_open(filename, &file, &node->store, err);
    if (ret < 0)
        return ret;
    node_take_limits(node);
    return 0;
}

static const char *const file_strong[] = {"filename", NULL};

const struct node_driver file_driver = {
    .name = "file",
    .kind = DRIVER_PROTOCOL,
    .prefix = "file",
    .strong = file_strong,
    .parse_name = parse_name,
    .open = file_node_open,
    .ops = &node_pass_ops,
};

const struct node_driver host_device_driver = {
    .name = "host_device",
    .kind = DRIVER_PROTOCOL,
    .prefix = "host_device",
    .strong = file_strong,
    .parse_name = parse_name,
    .open = file_node_open,
    .ops = &node_pass_ops,
};
