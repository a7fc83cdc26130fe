/*
 * cmd_measure.c - `measure`: how large a file a new image would need. The answer is qk_measure's;
 * here is which questions make sense, and the two ways to print it.
 */
#include "common/open.h"
#include "common/report.h"
#include "common/rows.h"
#include "common/snapshot.h"
#include "img/commands.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { OPT_SIZE = OPT_LOCAL };

static const struct opt_desc options[] = {
    OPT_FORMAT,
    {'O', NULL, "FMT", "format of the image to measure (default: raw)", OPT_KIND_FORMAT, NULL, 0, 0,
     NULL},
    {'o', NULL, "OPTIONS", "its options, key=value,...", OPT_KIND_TEXT, NULL, 0, 0, NULL},
    {OPT_SIZE, "size", "SIZE", "measure an empty image of this size", OPT_KIND_SIZE, "image size",
     0, 0, NULL},
    OPT_SNAPSHOT_ROW,
    OPT_ROW_OUTPUT,
    OPT_SHARE,
    OPT_ROW_IMAGE_OPTS,
    OPT_ROW_OBJECT,
    OPT_END,
};

static const struct cmd_text examples[] = {
    {"measure -O qcow2 disk.raw", "the size that `convert -O qcow2 disk.raw` will need"},
    {"measure -O qcow2 -o cluster_size=2M --size 1T", "an empty disk, now and when it is full"},
    {"measure --output=json -O raw disk.qcow2", "for programs"},
    {NULL, NULL},
};

const struct cmd_desc desc_measure = {
    .name = "measure",
    .summary = "tell how large a file an image would need",
    .operands = "[FILENAME]",
    .options = options,
    .examples = examples,
};

/* Which of the ways to say what is measured were used, in qemu-img's order. */
static int check_combination(const struct opts *opts)
{
    bool sized = opts_given(opts, OPT_SIZE);
    const char *text = NULL;
    if (opts->operand_count > 1)
        text = "At most one filename argument is allowed.";
    else if (!opts->operand_count &&
             (opts_given(opts, OPT_IMAGE_OPTS) || opts_given(opts, 'f') || opts_given(opts, 'l')))
        text = "--image-opts, -f, and -l require a filename argument.";
    else if (!opts->operand_count && !sized)
        text = "Either --size N or one filename must be specified.";
    else if (opts->operand_count && sized)
        text = "--size N cannot be used together with a filename.";
    if (text)
        report_error("%s", text);
    return text ? 1 : -1;
}

static void print(const struct qk_measure_result *result, bool json)
{
    ROWS_CLEANUP struct rows rows = {0};
    static const char *const order[] = {"bitmaps", "required", "fully-allocated", NULL};
    rows_uint(&rows, "required", "required size", result->required);
    rows_uint(&rows, "fully-allocated", "fully allocated size", result->fully_allocated);
    if (result->bitmaps != QK_OFFSET_NONE)
        rows_uint(&rows, "bitmaps", "bitmaps size", result->bitmaps);
    if (json)
        rows_print_json(&rows, stdout, order);
    else
        rows_print(&rows, stdout, 0);
}

static int measure(const struct opts *opts, struct qk_disk *source, struct keyvals *list)
{
    const char *format = opts_given(opts, 'O') ? opts_string(opts, 'O') : "raw";
    struct qk_measure_result result = QK_MEASURE_RESULT_INIT;
    struct qk_error err = {0};
    if (opts_given(opts, OPT_SIZE)) {
        TEXT_CLEANUP char *size =
            xprintf("%llu", (unsigned long long)opts_number(opts, OPT_SIZE, 0));
        keyvals_remove(list, "size");
        keyvals_add(list, "size", size);
    }
    int ret = qk_measure(source, format, (const char *const *)list->item, &result, &err);
    if (ret < 0) {
        report_qk(&err);
        if (!strcmp(err.structure, "creation options"))
            report_error("Invalid options for file format '%s'", format);
        return 1;
    }
    print(&result, opts_json(opts));
    return 0;
}

static int run(const struct opts *opts)
{
    KEYVALS_CLEANUP struct keyvals list = {0};
    IMAGE_CLEANUP struct qk_disk *source = NULL;
    struct image_request request = image_request_from(opts);
    bool help;
    int status = opts_keyvals(opts, 'o', &list, &help);
    if (status < 0)
        status = check_combination(opts);
    if (status >= 0)
        return status;
    SNAPSHOT_CLEANUP struct snapshot_choice snapshot;
    status = snapshot_choice_parse(opts_string(opts, 'l'), &snapshot);
    if (status >= 0)
        return status;
    snapshot_choice_request(&snapshot, &request);
    if (opts->operand_count && open_image(opts->operand[0], &request, &source) < 0)
        return 1;
    return measure(opts, source, &list);
}

int cmd_measure(int argc, char **argv)
{
    OPTS_CLEANUP struct opts opts;
    int status = opts_parse(&desc_measure, argc, argv, &opts);
    return status >= 0 ? status : run(&opts);
}
