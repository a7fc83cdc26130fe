/*
 * cmd_rebase.c - `rebase`: another backing file for an image. The work is qk_rebase's; here are
 * qemu-img's options and sentences, and how the images are opened.
 */
#include "common/open.h"
#include "common/progress.h"
#include "common/report.h"
#include "img/commands.h"

static const struct opt_desc options[] = {
    OPT_FORMAT,
    OPT_ROW_('b', NULL, "BACKING", "the new backing file; \"\": none", OPT_KIND_FILE),
    OPT_ROW_('F', NULL, "FMT", "format of the new backing file", OPT_KIND_FORMAT),
    OPT_ROW_('u', NULL, NULL, "change the name only: the content is known to be the same",
             OPT_KIND_FLAG),
    OPT_ROW_('c', "compress", NULL, "compress what has to be copied into FILENAME", OPT_KIND_FLAG),
    OPT_CACHE,
    OPT_SRC_CACHE,
    OPT_ROW_('U', "force-share", NULL,
             "open the new backing file even while another program writes", OPT_KIND_FLAG),
    OPT_ROW_IMAGE_OPTS,
    OPT_ROW_OBJECT,
    OPT_PROGRESS,
    OPT_ROW_PROGRESS_FD,
    OPT_QUIET,
    OPT_END,
};

static const struct cmd_text examples[] = {
    {"rebase -b new-base.qcow2 -F qcow2 overlay.qcow2",
     "copy into the overlay what the new base has not; its content stays the same"},
    {"rebase -b \"\" overlay.qcow2",
     "copy all of the base into the overlay, which then stands alone"},
    {"rebase -u -b moved/base.qcow2 -F qcow2 overlay.qcow2",
     "the base was moved: a new name for it"},
    {NULL, NULL},
};

const struct cmd_desc desc_rebase = {
    .name = "rebase",
    .summary = "give an image another backing file",
    .operands = "FILENAME",
    .options = options,
    .examples = examples,
};

static int rebase_disk(struct qk_disk *disk, const struct opts *opts, unsigned open_flags)
{
    struct progress progress;
    struct qk_error err = {0};
    struct qk_rebase_options how = QK_REBASE_OPTIONS_INIT;
    progress_begin(&progress, opts, 1.0);
    how.flags = (opts_given(opts, 'u') ? QK_REBASE_HEADER_ONLY : 0u) |
                (opts_given(opts, 'c') ? QK_REBASE_COMPRESS : 0u);
    how.backing_file = opts_string(opts, 'b');
    how.backing_format = opts_string(opts, 'F');
    how.open_flags = open_flags;
    how.progress = progress_hook(&progress);
    int ret = qk_rebase(disk, &how, &err);
    progress_end(&progress, ret == 0);
    if (ret < 0)
        report_qk(&err);
    return ret;
}

/* The new backing file is the user's word; -U concerns it alone. */
static int run(const struct opts *opts, const char *name, struct image_request *request)
{
    unsigned source_flags = request->flags & QK_OPEN_FORCE_SHARE;
    request->flags = QK_OPEN_RDWR | (opts_given(opts, 'u') ? QK_OPEN_NO_BACKING : 0u);
    if (cache_mode_option(opts, 't', "writeback", &request->flags) >= 0 ||
        cache_mode_option(opts, 'T', "writeback", &source_flags) >= 0)
        return 1;
    struct qk_disk *disk = NULL;
    if (open_image(name, request, &disk))
        return 1;
    int ret = rebase_disk(disk, opts, source_flags & ~(unsigned)QK_OPEN_WRITETHROUGH);
    int status = close_image(disk);
    return ret || status ? 1 : 0;
}

int cmd_rebase(int argc, char **argv)
{
    OPTS_CLEANUP struct opts opts;
    struct image_request request;
    int status = one_image_from(&desc_rebase, argc, argv, &opts, &request);
    if (status >= 0)
        return status;
    if (!opts_given(&opts, 'u') && !opts_given(&opts, 'b'))
        return usage_error("Must specify backing file (-b) or use unsafe mode (-u)");
    return run(&opts, opts.operand[0], &request);
}
