/*
 * chain.c - following an image to its backing file. What an image says is not trusted (INV-7):
 * by default only plain names of local files are opened, relative to the image's own directory;
 * what the caller says in options ("backing.file.filename=...") is his own word and is followed.
 *
 * A chain that meets one of its own files again is refused with -ELOOP and the chain's names, and
 * so is one deeper than CHAIN_DEPTH_MAX, which bounds the recursion of opening and reading.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "node/driver.h"
#include "node/name.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { CHAIN_DEPTH_MAX = 200 };

/* ---- loops ------------------------------------------------------------------------------- */

void chain_identify(struct chain_link *link)
{
    struct stat st;
    if (link->name && stat(link->name, &st) == 0) {
        link->dev = st.st_dev;
        link->ino = st.st_ino;
    }
}

/* "'a' -> 'b' -> 'a'" from the topmost of the loop's images on. */
static void describe_loop(const struct chain_link *link, const struct chain_link *again, char *buf,
                          size_t size)
{
    if (link != again)
        describe_loop(link->above, again, buf, size);
    size_t len = strlen(buf);
    if (!link->is_data)
        snprintf(buf + len, size - len, "'%s' -> ", link->name);
}

int chain_refuse_loop(const struct chain_link *link, const char *below, struct qk_error *err)
{
    struct chain_link next = {.name = below};
    if (link->depth >= CHAIN_DEPTH_MAX)
        return qk_fail(err, -ELOOP, "The backing chain is deeper than %d images at '%s'",
                       CHAIN_DEPTH_MAX, below);
    chain_identify(&next);
    for (const struct chain_link *l = link; l; l = l->above) {
        if (!next.ino || l->ino != next.ino || l->dev != next.dev)
            continue;
        if (l->is_data)
            return qk_fail(err, -ELOOP, "Backing file '%s' is the data file of an image above it",
                           below);
        char text[768] = "";
        describe_loop(link, l, text, sizeof(text));
        return qk_fail(err, -ELOOP, "The backing chain is a loop: %s'%s'", text, below);
    }
    return 0;
}

/* ---- names ------------------------------------------------------------------------------- */

int chain_backing_name(const struct node *node, const char *name, char **full, struct qk_error *err)
{
    const char *base = node->file ? node->file->base_name : node->base_name;
    bool relative = name[0] != '/' && !name_has_protocol(name);
    *full = NULL;
    if (relative && !base)
        return qk_fail(err, -EINVAL, "Cannot use relative backing file names for '%s'",
                       node->io.name);
    *full = base ? name_resolve(base, name) : strdup(name);
    return *full ? 0 : qk_fail_nomem(err);
}

/* What an image may make us open (INV-7). */
static int check_policy(enum qk_policy policy, const char *name, const char *format,
                        struct qk_error *err)
{
    static const char *const formats[] = {"raw", "qcow2", "file", "host_device"};
    if (policy == QK_POLICY_ALL)
        return 0;
    if (policy == QK_POLICY_NONE)
        return qk_fail(err, -EPERM,
                       "The image names '%s', and no name inside an image may be "
                       "followed here",
                       name);
    if (!name_is_local(name))
        return qk_fail(err, -EPERM,
                       "The image names '%s', which is not a plain file name, and "
                       "other names inside an image are not followed",
                       name);
    for (size_t i = 0; format && driver_by_name(format) && i < ARRAY_SIZE(formats); i++) {
        if (!strcmp(format, formats[i]))
            return 0;
    }
    if (!format || !driver_by_name(format))
        return 0; /* probed, or refused as unknown later */
    if (driver_by_name(format)->kind == DRIVER_KNOWN_FORMAT)
        return 0; /* refused as not supported later */
    return qk_fail(err, -EPERM,
                   "The image asks for driver '%s', which names inside an image may "
                   "not do",
                   format);
}

/* ---- opening ----------------------------------------------------------------------------- */

struct backing {
    struct open_request req;
    struct chain_link data; /* the data file of that image */
    struct chain_link link; /* the image that names it */
};

/* Whether the options say that there is no backing file: "backing": null, or "backing=". */
static bool backing_disabled(struct options *opts)
{
    struct option *backing = options_find(opts, "backing");
    if (!backing || *backing->value)
        return false;
    backing->used = true;
    return true;
}

static int name_backing(struct node *node, struct backing *b, enum qk_policy policy,
                        struct qk_error *err)
{
    const char *name = image_backing_name(node->image);
    const char *format = image_backing_format(node->image);
    if (format && !options_find(&b->req.opts, "driver"))
        b->req.format = format;
    if (!name || options_find(&b->req.opts, "file.filename"))
        return 0;
    int ret = check_policy(policy, name, format, err);
    if (ret == 0)
        ret = chain_backing_name(node, name, &node->backing_full, err);
    if (ret == 0)
        ret = chain_refuse_loop(&b->link, name_strip_file(node->backing_full), err);
    if (ret < 0)
        return ret;
    b->req.name = node->backing_full;
    return 0;
}

/* Long chains of prefixes must not push the reason out of the text. */
static int prefix_failure(struct qk_error *err, int ret)
{
    if (err && ret != -ELOOP && strlen(err->text) < 512)
        qk_error_prefix(err, "Could not open backing file");
    return ret;
}

static unsigned backing_flags(unsigned flags)
{
    return flags & (QK_OPEN_FORCE_SHARE | QK_OPEN_DIRECT | QK_OPEN_NO_FLUSH | QK_OPEN_CHECK);
}

/* A check leaves the backing file closed, where qemu-img opens it: what is said about it, such as
 * its key, is no mistake. */
static int drop_backing_options(struct open_request *req, struct qk_error *err)
{
    struct options dropped = {0};
    int ret = options_split(&req->opts, "backing.", &dropped, err);
    options_free(&dropped);
    return ret;
}

int chain_open_backing(struct node *node, struct open_request *req, struct qk_error *err)
{
    if (backing_disabled(&req->opts))
        return 0;
    if (node->flags & (QK_OPEN_NO_BACKING | QK_OPEN_NO_IO | QK_OPEN_ZERO_TARGET))
        return node->flags & QK_OPEN_CHECK ? drop_backing_options(req, err) : 0;
    struct backing b = {
        .req = {.flags = backing_flags(node->flags),
                .role = ROLE_BACKING,
                .policy = req->policy,
                .secrets = req->secrets},
        .link = {.above = req->above, .name = node->file->base_name},
    };
    if (!b.link.name)
        b.link.name = node->io.name;
    b.link.depth = req->above ? req->above->depth + 1 : 1;
    chain_identify(&b.link);
    if (node->data) {
        b.data = (struct chain_link){
            .above = req->above, .name = node->data->base_name, .is_data = true};
        chain_identify(&b.data);
        b.link.above = &b.data;
    }
    b.req.above = &b.link;
    int ret = options_split(&req->opts, "backing.", &b.req.opts, err);
    if (ret == 0)
        ret = name_backing(node, &b, req->policy, err);
    if (ret < 0 || (!b.req.name && !b.req.opts.list.len)) {
        options_free(&b.req.opts);
        return prefix_failure(err, ret);
    }
    ret = node_open(&b.req, &node->backing, err);
    return ret < 0 ? prefix_failure(err, ret) : 0;
}

/* ---- layers by name ---------------------------------------------------------------------- */

static bool same_file(const char *a, const char *b)
{
    struct chain_link x = {.name = a}, y = {.name = b};
    chain_identify(&x);
    chain_identify(&y);
    return x.ino && x.ino == y.ino && x.dev == y.dev;
}

static bool is_named(const struct node *upper, const char *name)
{
    const struct node *below = upper->backing;
    CLEANUP_FREE char *full = NULL;
    if (name_has_protocol(name))
        return !strcmp(name, below->shown_name) ||
               (below->exact_name && !strcmp(name, below->exact_name));
    if (chain_backing_name(upper, name, &full, NULL) < 0)
        return false;
    return below->base_name && same_file(full, below->base_name);
}

struct node *chain_find_layer(struct node *top, const char *name)
{
    for (; top->backing; top = top->backing)
        if (is_named(top, name))
            return top->backing;
    return NULL;
}

/* One step of the search: *next is what `name` rests on, NULL at the end or where it is lost. */
static void look_below(const char *name, const char *format, char **next, char **next_format)
{
    struct open_request req = {
        .name = name,
        .format = format,
        .flags = QK_OPEN_NO_IO | QK_OPEN_FORCE_SHARE,
        .role = ROLE_DISK,
    };
    struct node *node;
    *next = *next_format = NULL;
    if (node_open(&req, &node, NULL) < 0)
        return;
    const char *below = node->image ? image_backing_name(node->image) : NULL;
    const char *below_format = node->image ? image_backing_format(node->image) : NULL;
    if (below && chain_backing_name(node, below, next, NULL) == 0 && below_format)
        *next_format = strdup(below_format);
    node_close(node, NULL);
}

int chain_refuse_below(const struct node *node, const char *name, const char *format,
                       struct qk_error *err)
{
    const char *own = node->base_name ? node->base_name : node->io.name;
    CLEANUP_FREE char *at = strdup(name), *at_format = format ? strdup(format) : NULL;
    for (unsigned depth = 0; at && depth < CHAIN_DEPTH_MAX; depth++) {
        const char *plain = name_strip_file(at);
        if (name_has_protocol(plain))
            return 0;
        if (same_file(plain, own))
            return qk_fail(err, -ELOOP, "The backing chain would be a loop: '%s' rests on '%s'%s",
                           name, own, depth ? "" : ", which is the same file");
        char *next, *next_format;
        look_below(at, at_format, &next, &next_format);
        free(at);
        free(at_format);
        at = next;
        at_format = next_format;
    }
    return 0;
}
