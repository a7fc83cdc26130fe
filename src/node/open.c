/*
 * open.c - from a request to a node: json: names, which driver, the child that holds the bytes,
 * probing, locks, generic options, and the check that every option was understood. The steps and
 * the texts of failures follow what qemu-img shows; the drivers do the rest.
 *
 * Locks: the file is opened without, its first bytes are probed, then the locks that the driver
 * needs are taken, and only then is anything believed that was read.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "node/driver.h"
#include "node/name.h"
#include "node/probe.h"

#include <string.h>

/* Graphs given as options may nest; each level is one recursion. */
enum { FILE_DEPTH_MAX = 64 };

/* What one opening finds out on its way. */
struct opening {
    struct open_request *req;
    const struct node_driver *driver;
    struct node *file;
    bool probed;
};

/* ---- generic options --------------------------------------------------------------------- */

/* Options that every node takes, with the flag they change; flag 0: understood and without effect
 * here (there is no graph to name nodes in, and I/O is synchronous). */
static const struct generic_option {
    const char *key;
    unsigned flag;
    bool inverted;
} generic_bools[] = {
    {"cache.direct", QK_OPEN_DIRECT, false},
    {"cache.no-flush", QK_OPEN_NO_FLUSH, false},
    {"cache.writeback", QK_OPEN_WRITETHROUGH, true},
    {"force-share", QK_OPEN_FORCE_SHARE, false},
    {"read-only", QK_OPEN_RDWR, true},
    {"copy-on-read", QK_OPEN_COPY_ON_READ, false},
    {"auto-read-only", 0, false},
};

static int take_flags(struct open_request *req, struct qk_error *err)
{
    for (size_t i = 0; i < ARRAY_SIZE(generic_bools); i++) {
        const struct generic_option *g = &generic_bools[i];
        if (!options_find(&req->opts, g->key))
            continue;
        bool on = false;
        int ret = options_take_bool(&req->opts, g->key, &on, err);
        if (ret < 0)
            return ret;
        /* read-only=off asks for nothing that the caller's flags did not */
        if (g->flag == QK_OPEN_RDWR && !on)
            continue;
        if (on != g->inverted)
            req->flags |= g->flag;
        else
            req->flags &= ~g->flag;
    }
    options_take(&req->opts, "node-name");
    if ((req->flags & QK_OPEN_FORCE_SHARE) && (req->flags & QK_OPEN_RDWR))
        return qk_fail(err, -EINVAL, "force-share=on can only be used with read-only images");
    if ((req->flags & QK_OPEN_COPY_ON_READ) && !(req->flags & QK_OPEN_RDWR))
        return qk_fail(err, -EINVAL, "Can't use copy-on-read on read-only device");
    return 0;
}

static int take_discard(struct node *node, struct open_request *req, struct qk_error *err)
{
    node->discard = node->flags & QK_OPEN_UNMAP ? DISCARD_UNMAP : DISCARD_FREE;
    const char *text = options_take(&req->opts, "discard");
    if (!text)
        return 0;
    if (!strcmp(text, "unmap") || !strcmp(text, "on"))
        node->discard = DISCARD_UNMAP;
    else if (!strcmp(text, "ignore") || !strcmp(text, "off"))
        node->discard = DISCARD_IGNORE;
    else
        return qk_fail(err, -EINVAL, "Invalid discard option");
    return 0;
}

static int take_detect_zeroes(struct node *node, struct open_request *req, struct qk_error *err)
{
    const char *text = options_take(&req->opts, "detect-zeroes");
    if (!text || !strcmp(text, "off"))
        return 0;
    if (!strcmp(text, "on")) {
        node->detect_zeroes = DETECT_ON;
        return 0;
    }
    if (strcmp(text, "unmap"))
        return option_bad_value(err, text);
    if (node->discard != DISCARD_UNMAP)
        return qk_fail(err, -EINVAL,
                       "setting detect-zeroes to unmap is not allowed without setting "
                       "discard operation to unmap");
    node->detect_zeroes = DETECT_UNMAP;
    return 0;
}

/* ---- which driver ------------------------------------------------------------------------ */

static int find_driver(const char *name, const struct node_driver **out, struct qk_error *err)
{
    *out = driver_by_name(name);
    if (!*out)
        return qk_fail(err, -EINVAL, "Unknown driver '%s'", name);
    return driver_check_supported(*out, err);
}

/* A json: name is a way to write options. */
static int expand_json(struct open_request *req, struct qk_error *err)
{
    if (!req->name || !name_is_json(req->name))
        return 0;
    int ret = options_add_json(&req->opts, req->name + strlen("json:"), err);
    req->name = NULL;
    return ret;
}

static int driver_from_request(struct opening *o, struct qk_error *err)
{
    const char *driver = options_take(&o->req->opts, "driver");
    if (o->req->format) /* wins over the driver that a json: name gives */
        driver = o->req->format;
    return driver ? find_driver(driver, &o->driver, err) : 0;
}

/* The bytes of a file node come from a protocol; its name or "filename" says from which. */
static int protocol_from_name(struct opening *o, struct qk_error *err)
{
    struct open_request *req = o->req;
    struct option *filename = options_find(&req->opts, "filename");
    if (!o->driver) {
        if (!req->name && !filename)
            return qk_fail(err, -EINVAL, "Must specify either driver or file");
        if (!req->name) {
            o->driver = driver_for_file(filename->value); /* no prefix is looked for in an option */
            return 0;
        }
        int ret = driver_by_protocol(req->name, &o->driver, err);
        if (ret == 0)
            ret = driver_check_supported(o->driver, err);
        if (ret < 0)
            return ret;
    }
    if (!req->name || o->driver->kind != DRIVER_PROTOCOL)
        return 0;
    if (filename)
        return qk_fail(err, -EINVAL,
                       "Can't specify 'file' and 'filename' options at the same time");
    return o->driver->parse_name(req->name, &req->opts, err);
}

/* ---- the child --------------------------------------------------------------------------- */

/* Passes the name, or "file" and "file.*", on to the node that holds the bytes. */
static int open_file_child(struct opening *o, struct qk_error *err)
{
    struct open_request *req = o->req;
    struct open_request child = {
        .name = req->name,
        .flags = req->flags & ~(unsigned)(QK_OPEN_COPY_ON_READ | QK_OPEN_SNAPSHOT),
        .role = ROLE_FILE,
        .policy = req->policy,
        .secrets = req->secrets,
        .above = req->above,
    };
    struct option *reference = options_find(&req->opts, "file");
    if (reference)
        return qk_fail(err, -EINVAL, "Cannot find device='%s' nor node-name='%s'", reference->value,
                       reference->value);
    if (!req->name && !options_has_prefix(&req->opts, "file."))
        return o->driver ? qk_fail(err, -EINVAL, "A block device must be specified for \"file\"")
                         : qk_fail(err, -EINVAL, "Must specify either driver or file");
    int ret = options_split(&req->opts, "file.", &child.opts, err);
    if (ret == 0)
        return node_open(&child, &o->file, err);
    options_free(&child.opts);
    return ret;
}

/* What the first bytes of the child look like; the name is static. */
static int probe_child(struct node *file, const char **format, struct qk_error *err)
{
    uint8_t bytes[PROBE_BYTES];
    uint64_t size;
    int ret = io_size(&file->io, &size, err);
    if (ret < 0)
        return ret;
    size_t len = (size_t)min_u64(size, sizeof(bytes));
    ret = len ? io_read(&file->io, 0, bytes, len, err) : 0;
    if (ret < 0)
        return qk_error_prefix(err, "Could not read image for determining its format");
    *format = probe_format(bytes, len);
    return 0;
}

static int probe_driver(struct opening *o, struct qk_error *err)
{
    const char *format;
    int ret = probe_child(o->file, &format, err);
    if (ret < 0)
        return ret;
    o->driver = driver_by_name(format);
    if (o->driver->kind == DRIVER_KNOWN_FORMAT)
        return qk_fail(err, -ENOTSUP,
                       "Image is in %s format, which is not supported by this version (give format "
                       "raw to use its bytes as they are)",
                       format);
    o->probed = true;
    return 0;
}

/* Another program may have made something else of the file before our locks were taken. */
static int confirm_probe(const struct node *node, struct qk_error *err)
{
    const char *format;
    if (!node->probed)
        return 0;
    int ret = probe_child(node->file, &format, err);
    if (ret == 0 && strcmp(format, node->driver->name))
        ret = qk_fail(err, -EAGAIN, "The image became a %s image while it was opened", format);
    return ret;
}

/* ---- putting a node together ------------------------------------------------------------- */

static struct node *node_new(const struct opening *o)
{
    struct node *node = calloc(1, sizeof(*node));
    if (!node)
        return NULL;
    node->io.ops = o->driver->ops;
    node->handle.node = node;
    node->driver = o->driver;
    node->file = o->file;
    node->flags = o->req->flags;
    node->probed = o->probed;
    pthread_mutex_init(&node->guard, NULL);
    pthread_mutex_init(&node->shape_lock, NULL);
    pthread_rwlock_init(&node->cor, NULL);
    return node;
}

static bool key_is_strong(const struct node_driver *driver, const char *key)
{
    for (const char *const *strong = driver->strong; strong && *strong; strong++) {
        size_t len = strlen(*strong);
        if (!strcmp(*strong, key) || ((*strong)[len - 1] == '.' && !strncmp(*strong, key, len)))
            return true;
    }
    return false;
}

static int keep_strong(struct node *node, const struct options *opts, struct qk_error *err)
{
    int ret = 0;
    for (size_t i = 0; i < opts->list.len && ret == 0; i++) {
        const struct option *opt = &opts->list.ptr[i];
        if (key_is_strong(node->driver, opt->key))
            ret = options_set(&node->strong, opt->key, opt->value, opt->kind, err);
    }
    return ret;
}

static int refuse_unused(const struct node *node, const struct options *opts, struct qk_error *err)
{
    const char *key = options_unused(opts);
    if (!key)
        return 0;
    if (driver_is_protocol(node->driver))
        return qk_fail(err, -EINVAL, "Block protocol '%s' doesn't support the option '%s'",
                       node->driver->name, key);
    return qk_fail(err, -EINVAL, "Block format '%s' does not support the option '%s'",
                   node->driver->name, key);
}

static int update_size(struct node *node, struct qk_error *err)
{
    uint64_t size;
    int ret = io_size(&node->io, &size, err);
    if (ret == 0 && !try_round_up(size, 512, &size))
        ret = qk_fail(err, -EFBIG, "Image is too large");
    if (ret == 0)
        atomic_store(&node->size, size);
    return ret;
}

static int fill_node(struct node *node, struct open_request *req, struct qk_error *err)
{
    int ret = take_discard(node, req, err);
    if (ret == 0)
        ret = take_detect_zeroes(node, req, err);
    if (ret == 0)
        ret = keep_strong(node, &req->opts, err);
    if (ret == 0 && node->file && req->role != ROLE_FILE)
        ret = node_lock(node, req->role, err);
    if (ret == 0)
        ret = confirm_probe(node, err);
    node->io.writable = node->flags & QK_OPEN_RDWR;
    node->io.alignment = 1;
    node->io.zero_init = true;
    if (ret == 0)
        ret = node->driver->open(node, req, err);
    if (ret == 0)
        ret = refuse_unused(node, &req->opts, err);
    if (ret == 0 && !node->file && req->role != ROLE_FILE)
        ret = node_lock(node, req->role, err);
    if (ret == 0)
        ret = update_size(node, err);
    return ret == 0 ? node_set_names(node, err) : ret;
}

static int build(struct opening *o, struct node **out, struct qk_error *err)
{
    struct node *node = node_new(o);
    if (!node) {
        node_close(o->file, NULL);
        return qk_fail_nomem(err);
    }
    int ret = fill_node(node, o->req, err);
    if (ret < 0) {
        node->flags &= ~(unsigned)QK_OPEN_RDWR; /* nothing was written: leave without a trace */
        node_close(node, NULL);
        return ret;
    }
    *out = node;
    return 0;
}

static int open_driver(struct opening *o, struct node **out, struct qk_error *err)
{
    struct open_request *req = o->req;
    int ret = expand_json(req, err);
    if (ret == 0)
        ret = take_flags(req, err);
    if (ret == 0)
        ret = driver_from_request(o, err);
    if (ret < 0)
        return ret;
    if (req->role == ROLE_FILE || (o->driver && driver_is_protocol(o->driver)))
        ret = protocol_from_name(o, err);
    if (ret == 0 && !(o->driver && driver_is_protocol(o->driver)))
        ret = open_file_child(o, err);
    if (ret < 0)
        return ret;
    if (!o->driver)
        ret = probe_driver(o, err);
    if (ret < 0) {
        node_close(o->file, NULL);
        return ret;
    }
    return build(o, out, err);
}

static unsigned file_depth(const struct options *opts)
{
    unsigned depth = 0;
    for (size_t i = 0; i < opts->list.len; i++) {
        unsigned dots = 0;
        for (const char *p = opts->list.ptr[i].key; *p; p++)
            dots += *p == '.';
        if (dots > depth)
            depth = dots;
    }
    return depth;
}

int node_open(struct open_request *req, struct node **out, struct qk_error *err)
{
    struct opening o = {.req = req};
    int ret;
    if (file_depth(&req->opts) > FILE_DEPTH_MAX)
        ret = qk_fail(err, -EINVAL, "Block options are nested too deeply");
    else
        ret = open_driver(&o, out, err);
    options_free(&req->opts);
    return ret;
}

/* ---- closing ----------------------------------------------------------------------------- */

/* Keeps the first failure. */
static void note(int *ret, int next)
{
    if (*ret == 0)
        *ret = next;
}

int node_close(struct node *node, struct qk_error *err)
{
    if (!node)
        return 0;
    int ret = 0;
    if (node->driver->release)
        ret = node->driver->release(node, err);
    note(&ret, io_close(node->store, ret < 0 ? NULL : err));
    note(&ret, node_close(node->file, ret < 0 ? NULL : err));
    note(&ret, node_close(node->data, ret < 0 ? NULL : err));
    note(&ret, node_close(node->backing, ret < 0 ? NULL : err));
    note(&ret, node_close(node->blank, ret < 0 ? NULL : err));
    pthread_mutex_destroy(&node->guard);
    pthread_mutex_destroy(&node->shape_lock);
    pthread_rwlock_destroy(&node->cor);
    options_free(&node->strong);
    free(node->exact_name);
    free(node->shown_name);
    free(node->base_name);
    free(node->backing_full);
    free(node->data_file);
    free(node);
    return ret;
}

/* ---- locks ------------------------------------------------------------------------------- */

int node_lock_also(struct node *node, enum node_role role, unsigned more, struct qk_error *err)
{
    bool exclusive =
        node->driver->metadata || role == ROLE_BACKING || (node->flags & QK_OPEN_NO_SHARE) != 0;
    unsigned used = more;
    unsigned shared = exclusive ? IO_PERM_READ | IO_PERM_WRITE_UNCHANGED : IO_PERM_ALL;
    if (!(node->flags & QK_OPEN_NO_IO))
        used |= IO_PERM_READ;
    if (node->flags & QK_OPEN_RDWR)
        used |= node->driver->metadata ? IO_PERM_WRITE | IO_PERM_RESIZE : IO_PERM_WRITE;
    if (node->flags & QK_OPEN_FORCE_SHARE)
        shared = IO_PERM_ALL;
    return io_set_perm(node->store ? node->store : &node->file->io, used, shared, err);
}

int node_lock(struct node *node, enum node_role role, struct qk_error *err)
{
    if (!node->store && !node->file)
        return 0;
    return node_lock_also(node, role, 0, err);
}
