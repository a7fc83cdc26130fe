/*
 * cmd_undo.c - `undo`: takes a repair back that check has made, byte for byte, with the undo file
 * that it wrote. Ours: qemu-img has no such command.
 */
#include "common/report.h"
#include "img/commands.h"

#include <inttypes.h>

static const struct opt_desc options[] = {
    OPT_QUIET,
    OPT_END,
};

static const struct cmd_text examples[] = {
    {"undo disk.qcow2 disk.qcow2.undo-1", "the image is as it was before the repair"},
    {NULL, NULL},
};

static const struct cmd_text statuses[] = {
    {"0", "the image is as it was before the repair (where that had changed nothing yet, too)"},
    {"1", "it is not: nothing was changed (another image, one used since, a damaged undo file), "
          "or an error cut the undo off, which can be run again"},
    {NULL, NULL},
};

const struct cmd_desc desc_undo = {
    .name = "undo",
    .summary = "take back a repair with the file that check has saved",
    .operands = "FILENAME UNDOFILE",
    .options = options,
    .examples = examples,
    .statuses = statuses,
};

int cmd_undo(int argc, char **argv)
{
    OPTS_CLEANUP struct opts opts;
    int status = opts_parse(&desc_undo, argc, argv, &opts);
    if (status >= 0)
        return status;
    if (opts.operand_count != 2)
        return usage_error("Expecting the names of an image and of its undo file");
    struct qk_undo_result result = QK_UNDO_RESULT_INIT;
    struct qk_error err = {0};
    if (qk_undo(opts.operand[0], opts.operand[1], &result, &err) < 0) {
        report_failure(&err, "Could not undo the repair of '%s' with '%s'", opts.operand[0],
                       opts.operand[1]);
        return 1;
    }
    if (result.never_begun)
        say(opts_given(&opts, 'q'),
            "The undo file is incomplete: it was still being written, and until it is complete a "
            "repair changes nothing.\nThe image has what was saved so far; there is nothing to "
            "undo.\n");
    else
        say(opts_given(&opts, 'q'),
            "The image is as it was before the repair: %" PRIu64 " bytes were put back, and the "
            "file has %" PRIu64 " bytes again.\n",
            result.bytes, result.length);
    return 0;
}
