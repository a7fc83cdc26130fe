/*
 * create.c - qk_create and qk_create_resolve: making an image file of a format. Everything that
 * can be known to be wrong is refused before a file is made or an existing one is touched; the
 * locks of an existing file are taken before its content changes; a file that we made goes away
 * again when its creation fails.
 */
#include "node/create.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "node/driver.h"
#include "node/name.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

/* ---- the target's name ------------------------------------------------------------------- */

/* Images are made in files and on block devices. */
static int check_target(const char *name, struct qk_error *err)
{
    const struct node_driver *driver;
    int ret = driver_by_protocol(name, &driver, err);
    if (ret == 0)
        ret = driver_check_supported(driver, err);
    if (ret < 0 || driver == &file_driver || driver == &host_device_driver)
        return ret;
    return qk_fail(err, -ENOTSUP, "Protocol driver '%s' does not support image creation",
                   driver->name);
}

static const char *target_file(const char *name)
{
    return strncmp(name, "host_device:", 12) ? name_strip_file(name) : name + 12;
}

static const char *data_file_of(const struct create_plan *plan)
{
    const struct option *opt = options_find(&plan->opts, "data_file");
    return opt ? name_strip_file(opt->value) : NULL;
}

/* ---- the backing file -------------------------------------------------------------------- */

/* Opens the backing file, with its chain, without locks that would disturb its users. */
static int open_backing(const char *name, const struct create_plan *plan, struct node **out,
                        struct qk_error *err)
{
    const struct option *format = options_find(&plan->opts, "backing_fmt");
    CLEANUP_FREE char *full =
        name_resolve(target_file(name), options_find(&plan->opts, "backing_file")->value);
    if (!full)
        return qk_fail_nomem(err);
    struct chain_link target = {.name = target_file(name)};
    struct chain_link data = {.above = &target, .name = data_file_of(plan), .is_data = true};
    chain_identify(&target);
    chain_identify(&data);
    struct open_request req = {
        .name = full,
        .format = format ? format->value : NULL,
        .flags = QK_OPEN_FORCE_SHARE,
        .role = ROLE_BACKING,
        .above = &data,
    };
    int ret = node_open(&req, out, err);
    if (ret < 0 && err) {
        size_t len = strlen(err->text);
        snprintf(err->text + len, sizeof(err->text) - len, "\nCould not open backing image.");
    }
    return ret;
}

static int set_size(struct create_plan *plan, uint64_t size, struct qk_error *err)
{
    char text[24];
    snprintf(text, sizeof(text), "%" PRIu64, size);
    plan->has_size = true;
    plan->params.size_bytes = size;
    return options_set(&plan->opts, "size", text, OPTION_TEXT, err);
}

/* Takes the size from the backing file when none is given, and insists on its format. */
static int consult_backing(const char *name, struct create_plan *plan, struct qk_error *err)
{
    struct node *backing;
    int ret = open_backing(name, plan, &backing, err);
    if (ret < 0)
        return ret;
    if (!options_find(&plan->opts, "backing_fmt"))
        ret = qk_fail(err, -EINVAL,
                      "Backing file specified without backing format\nDetected format of %s.",
                      backing->driver->name);
    else if (!plan->has_size)
        ret = set_size(plan, node_size(backing), err);
    node_close(backing, NULL);
    return ret;
}

/* By whatever name: the new image would replace its own data. */
static int refuse_own_backing(const struct create_plan *plan, const char *name, const char *backing,
                              struct qk_error *err)
{
    struct chain_link data = {.name = data_file_of(plan), .is_data = true};
    struct chain_link target = {.name = target_file(name), .above = &data};
    chain_identify(&data);
    CLEANUP_FREE char *full = name_resolve(target.name, backing);
    if (!full)
        return qk_fail_nomem(err);
    chain_identify(&target);
    return chain_refuse_loop(&target, name_strip_file(full), err);
}

/* What both public calls check first. */
static int begin(struct create_plan *plan, const char *name, const char *format,
                 const char *const *options, struct qk_error *err)
{
    *plan = (struct create_plan){0};
    const struct create_format *known;
    int ret = create_find_format(format, &known, err);
    if (ret == 0)
        ret = check_target(name, err);
    if (ret == 0)
        ret = create_plan_parse(plan, format, options, err);
    const struct option *backing = options_find(&plan->opts, "backing_file");
    if (ret < 0 || !backing)
        return ret;
    if (!*backing->value)
        return qk_fail(err, -EINVAL, "Expected backing file name, got empty string");
    if (!strcmp(backing->value, name))
        return qk_fail(err, -EINVAL,
                       "Error: Trying to create an image with the same filename as "
                       "the backing file");
    return refuse_own_backing(plan, name, backing->value, err);
}

static int need_size(const struct create_plan *plan, struct qk_error *err)
{
    return plan->has_size ? 0 : qk_fail(err, -EINVAL, "Image creation needs a size parameter");
}

/* ---- resolving --------------------------------------------------------------------------- */

void qk_options_free(char **list)
{
    for (char **item = list; item && *item; item++)
        free(*item);
    free(list);
}

static int add_implied(struct create_plan *plan, struct qk_error *err)
{
    for (const char *const *implied = plan->format->implied; *implied; implied++) {
        const char *equals = strchr(*implied, '=');
        CLEANUP_FREE char *key = strndup(*implied, (size_t)(equals - *implied));
        if (!key)
            return qk_fail_nomem(err);
        if (options_find(&plan->opts, key))
            continue;
        int ret = options_set(&plan->opts, key, equals + 1, OPTION_TEXT, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* "key=value" of each option that is set, in the table's order. */
static int list_options(const struct create_plan *plan, char ***out, struct qk_error *err)
{
    char **list = calloc(plan->opts.list.len + 1, sizeof(*list));
    if (!list)
        return qk_fail_nomem(err);
    const struct qk_option_desc *desc;
    size_t count = 0;
    for (size_t i = 0; (desc = create_option_at(plan->format, i)); i++) {
        const struct option *opt = options_find(&plan->opts, desc->name);
        if (!opt)
            continue;
        if (asprintf(&list[count], "%s=%s", opt->key, opt->value) < 0) {
            list[count] = NULL;
            qk_options_free(list);
            return qk_fail_nomem(err);
        }
        count++;
    }
    *out = list;
    return 0;
}

int qk_create_resolve(const char *name, const char *format, const char *const *options,
                      unsigned flags, char ***resolved, struct qk_error *err)
{
    CREATE_PLAN_CLEANUP struct create_plan plan;
    int ret = begin(&plan, name, format, options, err);
    if (ret < 0)
        return ret;
    bool backing = options_find(&plan.opts, "backing_file");
    if (backing && !(flags & QK_CREATE_UNCHECKED_BACKING))
        ret = consult_backing(name, &plan, err);
    else if (backing && !options_find(&plan.opts, "backing_fmt"))
        ret = qk_fail(err, -EINVAL, "Backing file specified without backing format");
    if (ret == 0)
        ret = need_size(&plan, err);
    if (ret == 0)
        ret = add_implied(&plan, err);
    return ret == 0 ? list_options(&plan, resolved, err) : ret;
}

/* ---- the file ---------------------------------------------------------------------------- */

struct target {
    const char *name;
    struct qk_io *file;
    bool made; /* the file was not there before */
};

/* What QEMU's file creation holds: a writer that lets others write, but not change the length. */
#define CREATE_USED   (IO_PERM_WRITE | IO_PERM_RESIZE)
#define CREATE_SHARED (IO_PERM_ALL & ~(unsigned)IO_PERM_RESIZE)

static int open_target(struct target *t, struct qk_error *err)
{
    const struct io_file_options opts = {
        .writable = true,
        .create = true,
        .locking = true,
        .used = CREATE_USED,
        .shared = CREATE_SHARED,
    };
    struct stat st;
    struct qk_error why = {0};
    int found = stat(t->name, &st);
    t->made = found < 0 && errno == ENOENT;
    if (found == 0 && S_ISDIR(st.st_mode))
        return qk_fail_errno(err, -EISDIR, "Could not create '%s'", t->name);
    int ret = io_file_open(t->name, &opts, &t->file, &why);
    if (ret == 0)
        return 0;
    /* a lock that another program holds or a file of the wrong kind has its own text */
    if (ret != -EAGAIN && ret != -EINVAL)
        return qk_fail_errno(err, ret, "Could not create '%s'", t->name);
    if (err)
        *err = why;
    return ret;
}

static int close_target(struct target *t, int ret, struct qk_error *err)
{
    if (ret < 0 && t->made)
        unlink(t->name);
    int closed = io_close(t->file, ret < 0 ? NULL : err);
    return ret < 0 ? ret : closed;
}

/* Wishes to the file system, which most do not know: what it refuses is left at its default. */
static void tune_file(const struct create_plan *plan, const char *name)
{
    if (!plan->nocow && !plan->extent_size_hint)
        return;
    CLEANUP_CLOSE int fd = open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return;
    int attr;
    if (plan->nocow && ioctl(fd, FS_IOC_GETFLAGS, &attr) == 0) {
        attr |= FS_NOCOW_FL;
        (void)ioctl(fd, FS_IOC_SETFLAGS, &attr);
    }
    struct fsxattr fsx;
    if (plan->extent_size_hint && plan->extent_size_hint <= UINT32_MAX &&
        ioctl(fd, FS_IOC_FSGETXATTR, &fsx) == 0) {
        fsx.fsx_xflags |= FS_XFLAG_EXTSIZE;
        fsx.fsx_extsize = (uint32_t)plan->extent_size_hint;
        (void)ioctl(fd, FS_IOC_FSSETXATTR, &fsx);
    }
}

/* A file that exists keeps its content when it cannot become so long: what is to come behind its
 * end is made there first, and taken away again. */
static int rehearse_raw(struct qk_io *file, const struct create_params *params,
                        struct qk_error *err)
{
    uint64_t old;
    enum qk_prealloc mode =
        params->prealloc == QK_PREALLOC_FULL ? QK_PREALLOC_FALLOC : params->prealloc;
    int ret = io_size(file, &old, err);
    if (ret < 0 || !old || params->size_bytes <= old)
        return ret;
    ret = io_resize(file, params->size_bytes, mode, err);
    int back = io_resize(file, old, QK_PREALLOC_OFF, ret < 0 ? NULL : err);
    return ret < 0 ? ret : back;
}

static int make_raw(struct qk_io *file, const struct create_params *params, struct qk_error *err)
{
    uint64_t size;
    if (file->can_grow) {
        int ret = rehearse_raw(file, params, err);
        if (ret == 0)
            ret = io_resize(file, 0, QK_PREALLOC_OFF, err);
        return ret < 0 ? ret : io_resize(file, params->size_bytes, params->prealloc, err);
    }
    int ret = io_size(file, &size, err);
    if (ret == 0 && size < params->size_bytes)
        ret = qk_fail(err, -ENOSPC, "Cannot grow device files");
    return ret;
}

static bool same_file(const char *a, const char *b)
{
    struct chain_link x = {.name = a}, y = {.name = b};
    chain_identify(&x);
    chain_identify(&y);
    return x.ino && x.ino == y.ino && x.dev == y.dev;
}

/* What QEMU holds of a data file: nobody else may change its length. */
#define DATA_USED   (CREATE_USED | IO_PERM_READ)
#define DATA_SHARED CREATE_SHARED

/* An existing file loses what it holds, unless that is to be kept. Nothing has been written yet. */
static int open_data(const struct create_plan *plan, const char *image, struct target *data,
                     struct qk_error *err)
{
    struct stat st;
    data->name = plan->params.data_file;
    const struct node_driver *driver;
    int ret = driver_by_protocol(data->name, &driver, err);
    if (ret == 0 && driver != &file_driver && driver != &host_device_driver)
        ret = qk_fail(err, -ENOTSUP, "Driver '%s' does not support image creation", driver->name);
    if (ret == 0 && plan->keep_data_file && stat(data->name, &st) < 0)
        ret = qk_fail_errno(err, -errno, "Could not open '%s'", data->name);
    if (ret == 0 && same_file(data->name, image))
        ret = qk_fail(err, -EINVAL, "'%s' cannot hold an image and be its data file", image);
    if (ret == 0)
        ret = open_target(data, err);
    return ret == 0 ? io_set_perm(data->file, DATA_USED, DATA_SHARED, err) : ret;
}

/* As long as the disk at least. */
static int extend_kept(struct qk_io *file, uint64_t size, struct qk_error *err)
{
    uint64_t length;
    int ret = io_size(file, &length, err);
    if (ret < 0 || length >= size)
        return ret;
    return file->can_grow ? io_resize(file, size, QK_PREALLOC_OFF, err)
                          : qk_fail(err, -ENOSPC, "Cannot grow device files");
}

/* It is stable before an image names it. */
static int fill_data(const struct create_plan *plan, struct target *data, bool *stale,
                     struct qk_error *err)
{
    struct create_params params = plan->params;
    bool reserve = params.prealloc > QK_PREALLOC_METADATA;
    params.prealloc = reserve ? params.prealloc : QK_PREALLOC_OFF;
    int ret = plan->keep_data_file ? extend_kept(data->file, params.size_bytes, err)
                                   : make_raw(data->file, &params, err);
    if (ret == 0 && reserve && !data->file->can_grow)
        ret = io_zero_or_write(data->file, 0, params.size_bytes, 0, err);
    *stale = !plan->keep_data_file && !reserve && !data->file->can_grow;
    return ret < 0 ? ret : io_flush(data->file, err);
}

static int make_qcow2(const struct create_plan *plan, const struct target *image,
                      struct qk_error *err)
{
    struct create_params params = plan->params;
    struct target data = {0};
    /* from here on as a writer of the format, who excludes readers too */
    int ret = io_set_perm(image->file, CREATE_USED | IO_PERM_READ,
                          IO_PERM_READ | IO_PERM_WRITE_UNCHANGED, err);
    if (ret == 0 && params.data_file)
        ret = open_data(plan, image->name, &data, err);
    if (ret == 0 && params.data_file)
        ret = fill_data(plan, &data, &params.data_file_stale, err);
    if (ret == 0)
        ret = image_create(image->file, &params, err);
    return data.file ? close_target(&data, ret, err) : ret;
}

static int make_image(const struct create_plan *plan, const char *name, struct qk_error *err)
{
    struct target t = {.name = target_file(name)};
    int ret = open_target(&t, err);
    if (ret < 0)
        return ret;
    tune_file(plan, t.name);
    if (!strcmp(plan->format->name, "qcow2"))
        ret = make_qcow2(plan, &t, err);
    else
        ret = make_raw(t.file, &plan->params, err);
    return close_target(&t, ret, err);
}

int qk_create_with(const char *name, const char *format, const char *const *options,
                   const struct qk_create_context *context, struct qk_error *err)
{
    struct qk_create_context c = QK_CREATE_CONTEXT_INIT;
    if (context)
        memcpy(&c, context, (size_t)min_u64(context->struct_size, sizeof(c)));
    CREATE_PLAN_CLEANUP struct create_plan plan;
    int ret = begin(&plan, name, format, options, err);
    plan.secrets = c.secrets;
    if (ret == 0 && !plan.has_size && options_find(&plan.opts, "backing_file"))
        ret = consult_backing(name, &plan, err);
    if (ret == 0)
        ret = need_size(&plan, err);
    if (ret == 0)
        ret = create_plan_judge(&plan, err);
    return ret == 0 ? make_image(&plan, name, err) : ret;
}

int qk_create(const char *name, const char *format, const char *const *options,
              struct qk_error *err)
{
    return qk_create_with(name, format, options, NULL, err);
}
