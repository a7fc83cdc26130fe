/*
 * data_file.c - the child "data-file" of a qcow2 node: which file it is, and its locks. The
 * caller's options ("data-file.filename=...") decide; else the name in the header, as far as the
 * policy lets an image name files (INV-7).
 *
 * A relative name in the header is looked for beside the image, and in the current directory, where
 * QEMU looks and creates it. When both are there and are not the same file, neither is taken: the
 * wrong one would be overwritten.
 */
#include "node/data_file.h"
#include "base/cleanup.h"
#include "node/driver.h"
#include "node/name.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* ---- which file -------------------------------------------------------------------------- */

static int check_policy(enum qk_policy policy, const char *name, struct qk_error *err)
{
    if (policy == QK_POLICY_ALL)
        return 0;
    if (policy == QK_POLICY_NONE)
        return qk_fail(err, -EPERM,
                       "The image names data file '%s', and no name inside an image may be "
                       "followed here",
                       name);
    if (!name_is_local(name))
        return qk_fail(err, -EPERM,
                       "The image names data file '%s', which is not a plain file name, and other "
                       "names inside an image are not followed",
                       name);
    return 0;
}

static bool is_same(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* *full: what to open, malloc'ed. */
static int find_relative(const char *image, const char *name, char **full, struct qk_error *err)
{
    struct stat here, beside;
    CLEANUP_FREE char *path = name_resolve(image, name);
    if (!path)
        return qk_fail_nomem(err);
    bool is_here = stat(name, &here) == 0, is_beside = stat(path, &beside) == 0;
    if (is_here && is_beside && !is_same(&here, &beside))
        return qk_fail(err, -EINVAL,
                       "The image names data file '%s', and there are two: '%s' beside the image "
                       "and one in the current directory. Say which with data-file.filename=...",
                       name, path);
    *full = is_beside && !is_here ? TAKE(path) : strdup(name);
    return *full ? 0 : qk_fail_nomem(err);
}

static int resolve(const struct node *node, const char *name, char **full, struct qk_error *err)
{
    const char *image = node->file->base_name;
    name = name_strip_file(name);
    if (*name != '/' && !name_has_protocol(name) && image)
        return find_relative(image, name, full, err);
    *full = strdup(name);
    return *full ? 0 : qk_fail_nomem(err);
}

/* The name in the header. */
static int name_from_image(const struct node *node, enum qk_policy policy, char **full,
                           struct qk_error *err)
{
    const struct header_extension *ext =
        header_extensions_find(image_extensions(node->image), HEXT_DATA_FILE);
    if (!ext || !ext->len)
        return qk_fail(err, -EINVAL, "'data-file' is required for this image");
    CLEANUP_FREE char *name = strndup((const char *)ext->data, ext->len);
    if (!name)
        return qk_fail_nomem(err);
    int ret = check_policy(policy, name, err);
    return ret < 0 ? ret : resolve(node, name, full, err);
}

/* Its bytes are the guest's: they must not be taken for an image of the chain, nor be one. */
static int refuse_shared(const struct node *node, const struct open_request *req,
                         struct qk_error *err)
{
    struct chain_link data = {.name = node->data->base_name}, own = {.above = req->above};
    own.name = node->file->base_name;
    chain_identify(&data);
    chain_identify(&own);
    for (const struct chain_link *l = &own; data.ino && l; l = l->above) {
        if (l->ino == data.ino && l->dev == data.dev)
            return qk_fail(err, -ELOOP, "Data file '%s' of '%s' is in use in the same chain, as %s",
                           data.name, node->io.name,
                           l == &own ? "the image itself" : "an image or data file above");
    }
    return 0;
}

/* ---- locks ------------------------------------------------------------------------------- */

/* As QEMU: others may write to the file, but not change its length. */
static int lock(struct node *node, struct qk_error *err)
{
    unsigned used = IO_PERM_READ, shared = IO_PERM_ALL & ~(unsigned)IO_PERM_RESIZE;
    if (node->flags & QK_OPEN_RDWR)
        used |= IO_PERM_WRITE | IO_PERM_RESIZE;
    if (node->flags & QK_OPEN_FORCE_SHARE)
        shared = IO_PERM_ALL;
    /* In QEMU's order, which decides what is said of a conflict. */
    int ret = node->flags & QK_OPEN_FORCE_SHARE ? 0 : io_set_perm(&node->data->io, 0, shared, err);
    return ret < 0 ? ret : io_set_perm(&node->data->io, used, shared, err);
}

/* ---- opening ----------------------------------------------------------------------------- */

static int open_child(struct node *node, struct open_request *req, struct options *opts,
                      struct qk_error *err)
{
    CLEANUP_FREE char *name = NULL;
    int ret = opts->list.len ? 0 : name_from_image(node, req->policy, &name, err);
    if (ret < 0)
        return ret;
    struct open_request child = {
        .name = name,
        .flags = node->flags & ~(unsigned)(QK_OPEN_COPY_ON_READ | QK_OPEN_SNAPSHOT),
        .role = ROLE_FILE,
        .policy = req->policy,
        .above = req->above,
        .opts = *opts,
    };
    *opts = (struct options){0};
    ret = node_open(&child, &node->data, err);
    if (ret == 0)
        ret = refuse_shared(node, req, err);
    return ret < 0 ? ret : lock(node, err);
}

/* A check needs no guest data: what is missing must not keep it from looking at the tables. A file
 * that somebody else uses still does. */
static bool is_dispensable(const struct node *node, int ret)
{
    return node->flags & QK_OPEN_CHECK && ret != -EAGAIN && ret != -ENOMEM;
}

int data_file_open(struct node *node, struct open_request *req, struct qk_error *err)
{
    struct options opts = {0};
    struct qk_error why = {0};
    const struct option *reference = options_find(&req->opts, "data-file");
    bool given = reference || options_has_prefix(&req->opts, "data-file.");
    if (given && !image_has_data_file(node->image))
        return qk_fail(err, -EINVAL,
                       "'data-file' can only be set for images with an external data file");
    if (reference)
        return qk_fail(err, -EINVAL, "Cannot find device='%s' nor node-name='%s'", reference->value,
                       reference->value);
    if (!image_has_data_file(node->image))
        return 0;
    int ret = options_split(&req->opts, "data-file.", &opts, err);
    if (ret == 0 && !node_only_described(node)) {
        ret = open_child(node, req, &opts, &why);
        if (ret < 0 && err)
            *err = why;
    }
    options_free(&opts);
    if (ret == 0 && node->data) {
        image_set_data(node->image, &node->data->io);
        if (image_data_file_is_raw(node->image))
            node->io.zero_init = node->data->io.zero_init;
    }
    if (ret == 0 || !is_dispensable(node, ret))
        return ret;
    node_close(TAKE(node->data), NULL);
    return 0;
}

int data_file_set_writable(struct node *node, bool writable, struct qk_error *err)
{
    if (!node->data)
        return 0;
    int ret = io_set_writable(&node->data->io, writable, err);
    return ret < 0 ? ret : lock(node, err);
}
