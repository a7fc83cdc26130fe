/*
 * cmd_compare.c - `compare`: do two images show a guest the same bytes? The work is qk_compare;
 * here are qemu-img's sentences and exit statuses.
 */
#include "common/open.h"
#include "common/progress.h"
#include "common/report.h"
#include "common/snapshot.h"
#include "img/commands.h"

enum status { SAME = 0, DIFFERENT = 1, NOT_OPENED = 2, NO_STATUS = 3, NOT_READ = 4 };

static const struct opt_desc options[] = {
    OPT_ROW_('f', NULL, "FMT", "format of the first image (default: probe)", OPT_KIND_FORMAT),
    OPT_ROW_('F', NULL, "FMT", "format of the second image (default: probe)", OPT_KIND_FORMAT),
    OPT_ROW_('s', NULL, NULL, "strict: sizes and allocation have to be the same too",
             OPT_KIND_FLAG),
    OPT_ROW_('l', NULL, "SNAPSHOT", "compare an internal snapshot of the first image",
             OPT_KIND_TEXT),
    OPT_ROW_('L', NULL, "SNAPSHOT", "compare an internal snapshot of the second image",
             OPT_KIND_TEXT),
    OPT_SRC_CACHE,
    OPT_SHARE,
    OPT_ROW_IMAGE_OPTS,
    OPT_ROW_OBJECT,
    OPT_PROGRESS,
    OPT_ROW_PROGRESS_FD,
    OPT_QUIET,
    OPT_END,
};

static const struct cmd_text examples[] = {
    {"compare disk.qcow2 disk.raw", "is the content the same?"},
    {"compare -s -f qcow2 -F qcow2 a.qcow2 b.qcow2", "and the size, and what is allocated"},
    {"compare -l monday disk.qcow2 disk.qcow2", "has anything changed since the snapshot?"},
    {"compare -q a.qcow2 b.qcow2", "say it by the exit status only"},
    {NULL, NULL},
};

static const struct cmd_text statuses[] = {
    {"0", "the images are identical"},
    {"1", "the images differ, or the command line is wrong"},
    {"2", "an image could not be opened"},
    {"3", "it could not be found out which parts of an image are allocated"},
    {"4", "an image could not be read"},
    {NULL, NULL},
};

const struct cmd_desc desc_compare = {
    .name = "compare",
    .summary = "check whether two images have the same content",
    .operands = "FILENAME1 FILENAME2",
    .options = options,
    .examples = examples,
    .statuses = statuses,
};

/* The line that says what was found, and the exit status that goes with it. */
static enum status print_result(const struct qk_compare_result *result, uint64_t common_bytes,
                                bool quiet)
{
    unsigned long long off = result->off;
    bool in_common = !result->equal && result->off < common_bytes;
    if (result->why == QK_COMPARE_SIZE) {
        say(quiet, "Strict mode: Image size mismatch!\n");
        return DIFFERENT;
    }
    if (result->size_differs && !in_common)
        say(quiet, "Warning: Image size mismatch!\n");
    if (result->equal)
        say(quiet, "Images are identical.\n");
    else if (result->why == QK_COMPARE_ALLOCATION)
        say(quiet, "Strict mode: Offset %llu block status mismatch!\n", off);
    else
        say(quiet, "Content mismatch at offset %llu!\n", off);
    return result->equal ? SAME : DIFFERENT;
}

static enum status compare(struct qk_disk *const disk[2], const struct opts *opts)
{
    struct progress progress;
    struct qk_compare_result result = QK_COMPARE_RESULT_INIT;
    struct qk_error err = {0};
    progress_begin(&progress, opts, 2.0);
    struct qk_progress hook = progress_hook(&progress);
    int ret = qk_compare(disk[0], disk[1], opts_given(opts, 's'), &hook, &result, &err);
    enum status status;
    if (ret < 0) {
        report_qk(&err);
        status = result.why == QK_COMPARE_NO_STATUS ? NO_STATUS : NOT_READ;
    } else {
        uint64_t a = qk_disk_size(disk[0]), b = qk_disk_size(disk[1]);
        status = print_result(&result, a < b ? a : b, opts_given(opts, 'q'));
    }
    progress_end(&progress, false);
    return status;
}

static enum status run(const struct opts *opts)
{
    struct image_request request = image_request_from(opts);
    struct qk_disk *disk[2] = {NULL, NULL};
    SNAPSHOT_CLEANUP struct snapshot_choice first = {0};
    SNAPSHOT_CLEANUP struct snapshot_choice second = {0};
    if (snapshot_choice_parse(opts_string(opts, 'l'), &first) >= 0 ||
        snapshot_choice_parse(opts_string(opts, 'L'), &second) >= 0)
        return DIFFERENT;
    if (cache_mode_option(opts, 'T', "writeback", &request.flags) >= 0)
        return NOT_OPENED;
    enum status status = NOT_OPENED;
    snapshot_choice_request(&first, &request);
    if (open_image(opts->operand[0], &request, &disk[0]) == 0) {
        request.format = opts_string(opts, 'F');
        snapshot_choice_request(&second, &request);
        if (open_image(opts->operand[1], &request, &disk[1]) == 0)
            status = compare(disk, opts);
    }
    drop_image(&disk[1]);
    drop_image(&disk[0]);
    return status;
}

int cmd_compare(int argc, char **argv)
{
    OPTS_CLEANUP struct opts opts;
    int status = opts_parse(&desc_compare, argc, argv, &opts);
    if (status >= 0)
        return status;
    if (opts.operand_count != 2)
        return usage_error("Expecting two image file names");
    return (int)run(&opts);
}
