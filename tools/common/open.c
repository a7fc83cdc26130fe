/*
 * open.c - opening images as the command line describes them (open.h). All rules about names and
 * formats are the library's; here options become its flags and failures become messages.
 */
#include "common/open.h"
#include "common/report.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    unsigned flags;
} cache_modes[] = {
    {"none", QK_OPEN_DIRECT},
    {"off", QK_OPEN_DIRECT},
    {"writeback", 0},
    {"writethrough", QK_OPEN_WRITETHROUGH},
    {"directsync", QK_OPEN_DIRECT | QK_OPEN_WRITETHROUGH},
    {"unsafe", QK_OPEN_NO_FLUSH},
};

bool cache_mode_flags(const char *mode, unsigned *flags)
{
    for (size_t i = 0; i < sizeof(cache_modes) / sizeof(*cache_modes); i++) {
        if (!strcmp(cache_modes[i].name, mode)) {
            *flags |= cache_modes[i].flags;
            return true;
        }
    }
    return false;
}

struct image_request image_request_from(const struct opts *opts)
{
    return (struct image_request){
        .format = opts_string(opts, 'f'),
        .image_opts = opts_given(opts, OPT_IMAGE_OPTS),
        .flags = opts_given(opts, 'U') ? QK_OPEN_FORCE_SHARE : 0,
        .quiet = opts_given(opts, 'q'),
        .secrets = opts->secrets,
    };
}

int one_image_from(const struct cmd_desc *desc, int argc, char **argv, struct opts *opts,
                   struct image_request *request)
{
    int status = opts_parse(desc, argc, argv, opts);
    if (status >= 0)
        return status;
    *request = image_request_from(opts);
    return opts->operand_count == 1 ? -1 : usage_error("Expecting one image file name");
}

int cache_mode_option(const struct opts *opts, int id, const char *fallback, unsigned *flags)
{
    const char *mode = opts_string(opts, id);
    if (cache_mode_flags(mode ? mode : fallback, flags))
        return -1;
    report_error("Invalid %scache option: %s", id == 'T' ? "source " : "", mode ? mode : fallback);
    return 1;
}

/* A bare key stands for key=on; "nokey" for key=off is not offered. qemu warns the same way. */
void keyvals_complete(struct keyvals *list)
{
    for (size_t i = 0; i < list->count; i++) {
        char *item = list->item[i];
        if (strchr(item, '='))
            continue;
        report_warning("short-form boolean option '%s' deprecated", item);
        fprintf(stderr, "Please use %s=on instead\n", item);
        list->item[i] = xprintf("%s=on", item);
        free(item);
    }
}

/* A first item without a key names an open node in qemu; a program of its own has none. */
static int parse_image_options(const char *name, struct keyvals *list)
{
    if (!*name)
        return 0;
    int length = (int)strcspn(name, ",");
    bool reference = !memchr(name, '=', (size_t)length);
    const char *rest = name + length + (name[length] == ',');
    bool malformed = !keyvals_add_list(list, reference ? rest : name);
    keyvals_complete(list);
    if (!reference && !malformed)
        return 0;
    report_error("Could not open '%s': Cannot find device='%.*s' nor node-name='%.*s'", name,
                 length, name, length, name);
    return -EINVAL;
}

/* A raw image that is only taken for one: a guest could make it look like something else. */
void warn_probed_raw(struct qk_disk *disk)
{
    struct qk_info info = QK_INFO_INIT;
    if (qk_disk_info(disk, &info, NULL) || !info.probed || strcmp(info.format, "raw"))
        return;
    fflush(stdout);
    fprintf(stderr,
            "WARNING: Image format was not specified for '%s' and probing guessed raw.\n"
            "         Automatically detecting the format is dangerous for raw images, write "
            "operations on block 0 will be restricted.\n"
            "         Specify the 'raw' format explicitly to remove the restrictions.\n",
            info.name);
}

/* What --image-opts and the command itself give as options. */
static int gather_options(const char *name, const struct image_request *request,
                          struct keyvals *list)
{
    if (request->image_opts && request->format) {
        report_error("--image-opts and --format are mutually exclusive");
        return -EINVAL;
    }
    int ret = request->image_opts ? parse_image_options(name, list) : 0;
    if (ret)
        return ret;
    for (size_t i = 0; request->options && request->options[i]; i++)
        keyvals_add_item(list, request->options[i]);
    return 0;
}

int open_image(const char *name, const struct image_request *request, struct qk_disk **out)
{
    KEYVALS_CLEANUP struct keyvals list = {0};
    int ret = gather_options(name, request, &list);
    if (ret)
        return ret;
    struct qk_error err = {0};
    struct qk_open_options options = QK_OPEN_OPTIONS_INIT;
    options.flags = request->flags;
    options.format = request->format;
    options.options = (const char *const *)list.item;
    options.snapshot = request->snapshot;
    options.snapshot_id = request->snapshot_id;
    options.snapshot_name = request->snapshot_name;
    options.secrets = request->secrets;
    ret = qk_disk_open(request->image_opts ? NULL : name, &options, out, &err);
    if (ret && !strcmp(err.structure, "snapshot table"))
        report_error("Failed to load snapshot: %s", error_text(&err));
    else if (ret)
        report_failure(&err, "Could not open '%s'", name);
    else if (request->flags & QK_OPEN_RDWR)
        warn_probed_raw(*out);
    return ret;
}

int close_image(struct qk_disk *disk)
{
    struct qk_error err = {0};
    if (!qk_disk_close(disk, &err))
        return 0;
    report_failure(&err, "Could not close the image cleanly, the last writes may be lost");
    return 1;
}

void drop_image(struct qk_disk **disk)
{
    qk_disk_close(*disk, NULL);
    *disk = NULL;
}
