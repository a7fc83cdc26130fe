/*
 * session.c - opening and closing the image that the commands work on (io.h), with qemu-io's
 * messages. Relies on common/open.h for cache modes and warnings.
 */
#include "common/open.h"
#include "common/report.h"
#include "io/io.h"
#include "io/request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void image_spec_free(struct image_spec *spec)
{
    free(spec->name);
    free(spec->format);
    keyvals_free(&spec->options);
    *spec = (struct image_spec){0};
}

static int wrong_mode(const char *what, const char *mode)
{
    report_error("Invalid %s option: %s", what, mode);
    return -EINVAL;
}

int spec_set_cache(struct image_spec *spec, const char *mode)
{
    unsigned flags = 0;
    if (!cache_mode_flags(mode, &flags))
        return wrong_mode("cache", mode);
    spec->flags &= ~(unsigned)(QK_OPEN_DIRECT | QK_OPEN_WRITETHROUGH | QK_OPEN_NO_FLUSH);
    spec->flags |= flags;
    return 0;
}

static int set_discard(struct image_spec *spec, const char *mode)
{
    bool pass = !strcmp(mode, "on") || !strcmp(mode, "unmap");
    if (!pass && strcmp(mode, "off") != 0 && strcmp(mode, "ignore") != 0)
        return wrong_mode("discard", mode);
    spec->flags &= ~(unsigned)QK_OPEN_UNMAP;
    spec->flags |= pass ? QK_OPEN_UNMAP : 0u;
    keyvals_remove(&spec->options, "discard");
    keyvals_add(&spec->options, "discard", pass ? "unmap" : "ignore");
    return 0;
}

static int set_aio(struct image_spec *spec, const char *mode)
{
    spec->native_aio = !strcmp(mode, "native");
    if (!spec->native_aio && strcmp(mode, "threads") != 0 && strcmp(mode, "io_uring") != 0)
        return wrong_mode("aio", mode);
    return 0;
}

int spec_take_modes(struct image_spec *spec, const struct opts *opts)
{
    static const struct {
        char letter;
        unsigned flag;
    } flags[] = {
        {'s', QK_OPEN_SNAPSHOT},
        {'C', QK_OPEN_COPY_ON_READ},
        {'U', QK_OPEN_FORCE_SHARE},
    };
    for (size_t i = 0; i < sizeof(flags) / sizeof(*flags); i++)
        spec->flags |= opts_given(opts, flags[i].letter) ? flags[i].flag : 0u;
    if (!opts_given(opts, 'r'))
        spec->flags |= QK_OPEN_RDWR;
    const char *cache = opts_string(opts, 't'), *discard = opts_string(opts, 'd');
    const char *aio = opts_given(opts, 'k') ? "native" : opts_string(opts, 'i');
    int ret = cache ? spec_set_cache(spec, cache) : 0;
    if (!ret && opts_given(opts, 'n'))
        ret = spec_set_cache(spec, "none");
    if (!ret && discard)
        ret = set_discard(spec, discard);
    if (!ret && aio)
        ret = set_aio(spec, aio);
    return ret;
}

/* The mode of a way of doing I/O that this program need not use is checked all the same. */
static int check_aio(const struct image_spec *spec, struct qk_error *err)
{
    const char *direct = keyvals_get(&spec->options, "cache.direct");
    if (!spec->native_aio || (spec->flags & QK_OPEN_DIRECT) || (direct && !strcmp(direct, "on")))
        return 0;
    strcpy(err->text, "aio=native was specified, but it requires cache.direct=on, "
                      "which was not specified.");
    err->code = EINVAL;
    return -EINVAL;
}

static int open_disk(const struct session *session, const struct image_spec *spec,
                     struct qk_disk **disk)
{
    struct qk_error err = {0};
    struct qk_open_options options = QK_OPEN_OPTIONS_INIT;
    options.flags = spec->flags;
    options.format = spec->format;
    options.options = (const char *const *)spec->options.item;
    options.secrets = session->secrets;
    if (spec->snapshot) {
        options.snapshot = spec->snapshot->either;
        options.snapshot_id = spec->snapshot->id;
        options.snapshot_name = spec->snapshot->name;
    }
    int ret = check_aio(spec, &err);
    if (!ret)
        ret = qk_disk_open(spec->name, &options, disk, &err);
    if (!ret)
        return 0;
    if (spec->name)
        report_failure(&err, "can't open device %s", spec->name);
    else
        report_failure(&err, "can't open");
    return ret;
}

/* An option may make read-only what was to be written to: that is no way to open it. */
static int admit_writer(const struct image_spec *spec, bool read_only)
{
    if (!read_only || !(spec->flags & QK_OPEN_RDWR))
        return 0;
    report_error("can't open%s%s: Block node is read-only", spec->name ? " device " : "",
                 spec->name ? spec->name : "");
    return -EACCES;
}

int session_open(struct session *session, struct image_spec *spec)
{
    IMAGE_CLEANUP struct qk_disk *disk = NULL;
    struct qk_info info = QK_INFO_INIT;
    int ret = open_disk(session, spec, &disk);
    if (!ret && qk_disk_info(disk, &info, NULL))
        info.read_only = !(spec->flags & QK_OPEN_RDWR);
    if (!ret)
        ret = admit_writer(spec, info.read_only);
    if (ret) {
        image_spec_free(spec);
        return ret;
    }
    if (!info.read_only)
        warn_probed_raw(disk);
    session->disk = disk;
    session->read_only = info.read_only;
    session->spec = *spec;
    disk = NULL;
    *spec = (struct image_spec){0};
    return 0;
}

/* A request that nobody lets go on would keep the program from ending. */
static void remove_breaks(struct session *session)
{
    for (size_t i = 0; i < session->breaks.count; i++) {
        TEXT_CLEANUP char *tag = xstrdup(session->breaks.item[i]);
        tag[strcspn(tag, "=")] = '\0';
        qk_disk_remove_break(session->disk, tag, NULL);
    }
    keyvals_free(&session->breaks);
}

int session_close(struct session *session)
{
    remove_breaks(session);
    queue_reap(session->queue, true);
    int failed = session->disk ? close_image(session->disk) : 0;
    session->disk = NULL;
    image_spec_free(&session->spec);
    return failed ? -EIO : 0;
}
