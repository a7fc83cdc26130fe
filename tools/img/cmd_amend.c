/*
 * cmd_amend.c - `amend`: other options for an image, in place. The work is qk_disk_amend's; here
 * are qemu-img's options and sentences. What would lose data needs --force.
 */
#include "common/open.h"
#include "common/progress.h"
#include "common/report.h"
#include "img/commands.h"
#include "img/create_options.h"

#include <string.h>

enum { OPT_FORCE = OPT_LOCAL };

static const struct opt_desc options[] = {
    OPT_FORMAT,
    OPT_ROW_('o', NULL, "OPTIONS", "what to change, as key=value,...; \"help\" lists the keys",
             OPT_KIND_TEXT),
    OPT_ROW_(OPT_FORCE, "force", NULL,
             "also what loses data: a smaller size, or the last key of an encrypted image",
             OPT_KIND_FLAG),
    OPT_CACHE,
    OPT_ROW_IMAGE_OPTS,
    OPT_ROW_OBJECT,
    OPT_PROGRESS,
    OPT_ROW_PROGRESS_FD,
    OPT_QUIET,
    OPT_END,
};

static const struct cmd_text examples[] = {
    {"amend -o compat=1.1 old.qcow2", "a version 3 image, which can say more"},
    {"amend -p -o refcount_bits=8 disk.qcow2", "half the space for refcounts"},
    {"amend -o help disk.qcow2", "what can be changed"},
    {NULL, NULL},
};

const struct cmd_desc desc_amend = {
    .name = "amend",
    .summary = "change the options of an image in place",
    .operands = "FILENAME",
    .options = options,
    .examples = examples,
};

static bool is_help(const char *item)
{
    return !strcmp(item, "help") || !strcmp(item, "?");
}

/* -1 to go on, or 1 with the error printed. */
static int collect(const struct opts *opts, struct keyvals *list, bool *help)
{
    const char *text;
    for (size_t i = 0; (text = opts_nth(opts, 'o', i)); i++) {
        if (!*text || !keyvals_add_list(list, text)) {
            report_error("Invalid option list: %s", text);
            return 1;
        }
    }
    for (size_t i = 0; i < list->count; i++)
        *help |= is_help(list->item[i]);
    return -1;
}

static int amend_disk(struct qk_disk *disk, const struct opts *opts, const struct keyvals *list,
                      const struct image_request *request)
{
    struct progress progress;
    struct qk_error err = {0};
    struct qk_amend_settings settings = QK_AMEND_SETTINGS_INIT;
    progress_begin(&progress, opts, 1.0);
    settings.flags = opts_given(opts, OPT_FORCE) ? QK_AMEND_FORCE : 0;
    settings.secrets = request->secrets;
    settings.progress = progress_hook(&progress);
    int ret = qk_disk_amend(disk, (const char *const *)list->item, &settings, &err);
    progress_end(&progress, ret == 0);
    if (ret < 0)
        report_qk(&err);
    return ret;
}

static int show_help(const char *name, const struct image_request *request)
{
    struct qk_info info = QK_INFO_INIT;
    struct qk_error err = {0};
    struct qk_disk *disk = NULL;
    if (!name)
        return amend_show_options(request->format);
    if (open_image(name, request, &disk))
        return 1;
    warn_probed_raw(disk);
    int ret = qk_disk_info(disk, &info, &err);
    if (ret < 0)
        report_qk(&err);
    else
        ret = amend_show_options(info.format);
    return close_image(disk) || ret ? 1 : 0;
}

static int run(const struct opts *opts, const struct keyvals *list, struct image_request *request)
{
    request->flags |= QK_OPEN_RDWR;
    if (cache_mode_option(opts, 't', "writeback", &request->flags) >= 0)
        return 1;
    struct qk_disk *disk = NULL;
    if (open_image(opts->operand[0], request, &disk))
        return 1;
    int ret = amend_disk(disk, opts, list, request);
    int status = close_image(disk);
    return ret || status ? 1 : 0;
}

int cmd_amend(int argc, char **argv)
{
    OPTS_CLEANUP struct opts opts;
    KEYVALS_CLEANUP struct keyvals list = {0};
    bool help = false;
    int status = opts_parse(&desc_amend, argc, argv, &opts);
    if (status >= 0)
        return status;
    struct image_request request = image_request_from(&opts);
    if (!opts_given(&opts, 'o'))
        return usage_error("Must specify options (-o)");
    if (collect(&opts, &list, &help) >= 0)
        return 1;
    bool no_file = help && request.format && opts.operand_count == 0;
    if (opts.operand_count != 1 && !no_file) {
        report_error("Expecting one image file name");
        return 1;
    }
    return help ? show_help(opts.operand[0], &request) : run(&opts, &list, &request);
}
