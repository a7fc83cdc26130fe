/*
 * cmd_commit.c - `commit`: the data of an overlay into its backing file, or into one further down.
 * The work and its order are qk_commit's; here are qemu-img's options and sentences.
 */
#include "common/open.h"
#include "common/progress.h"
#include "common/report.h"
#include "img/commands.h"

static const struct opt_desc options[] = {
    OPT_FORMAT,
    OPT_CACHE,
    OPT_ROW_('b', NULL, "BASE", "commit into this image of the chain; FILENAME is not emptied",
             OPT_KIND_FILE),
    OPT_ROW_('d', NULL, NULL, "do not empty FILENAME afterwards", OPT_KIND_FLAG),
    {'r', NULL, "RATE", "at most this many bytes per second", OPT_KIND_SIZE, "rate limit", 0, 0,
     NULL},
    OPT_ROW_IMAGE_OPTS,
    OPT_ROW_OBJECT,
    OPT_PROGRESS,
    OPT_ROW_PROGRESS_FD,
    OPT_QUIET,
    OPT_END,
};

static const struct cmd_text examples[] = {
    {"commit overlay.qcow2", "write the overlay's data into its backing file, and empty it"},
    {"commit -p -d overlay.qcow2", "the same, with progress; the overlay stays as it is"},
    {"commit -b base.qcow2 overlay.qcow2", "into the image at the bottom of the chain"},
    {NULL, NULL},
};

const struct cmd_desc desc_commit = {
    .name = "commit",
    .summary = "write an overlay's data into its backing file",
    .operands = "FILENAME",
    .options = options,
    .examples = examples,
};

static int commit_disk(struct qk_disk *disk, const struct opts *opts)
{
    struct progress progress;
    struct qk_error err = {0};
    struct qk_commit_options how = QK_COMMIT_OPTIONS_INIT;
    progress_begin(&progress, opts, 1.0);
    how.base = opts_string(opts, 'b');
    how.flags = how.base || opts_given(opts, 'd') ? QK_COMMIT_KEEP : 0;
    how.rate_bytes_per_sec = opts_number(opts, 'r', 0);
    how.progress = progress_hook(&progress);
    int ret = qk_commit(disk, &how, &err);
    progress_end(&progress, ret == 0);
    if (ret < 0)
        report_qk(&err);
    return ret;
}

int cmd_commit(int argc, char **argv)
{
    OPTS_CLEANUP struct opts opts;
    struct image_request request;
    int status = one_image_from(&desc_commit, argc, argv, &opts, &request);
    if (status >= 0)
        return status;
    request.flags |= QK_OPEN_RDWR | QK_OPEN_UNMAP;
    if (cache_mode_option(&opts, 't', "writeback", &request.flags) >= 0)
        return 1;
    struct qk_disk *disk = NULL;
    if (open_image(opts.operand[0], &request, &disk))
        return 1;
    int ret = commit_disk(disk, &opts);
    status = close_image(disk);
    if (ret || status)
        return 1;
    say(request.quiet, "Image committed.\n");
    return 0;
}
