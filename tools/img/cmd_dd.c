/*
 * cmd_dd.c - `dd`: a part of one image into a new image, named in the words of dd(1). Each byte is
 * written, zeroes too. Blocks are only units of count and skip: the copying uses larger pieces.
 */
#include "common/open.h"
#include "common/report.h"
#include "common/snapshot.h"
#include "common/units.h"
#include "img/commands.h"
#include "img/source.h"

#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR        512
#define DEFAULT_BLOCK 512
#define PIECE_BYTES   (UINT64_C(2) << 20)

static const struct opt_desc options[] = {
    OPT_FORMAT,
    {'O', NULL, "FMT", "format of the new image (default: raw)", OPT_KIND_FORMAT, NULL, 0, 0, NULL},
    OPT_SNAPSHOT_ROW,
    OPT_SHARE,
    OPT_ROW_IMAGE_OPTS,
    OPT_ROW_OBJECT,
    OPT_END,
};

static const struct cmd_text examples[] = {
    {"dd if=disk.raw of=first.raw bs=1M count=10", "the first 10 MiB of a disk"},
    {"dd -f qcow2 -O raw bs=4k skip=16 if=disk.qcow2 of=rest.raw", "all but its first 64 KiB"},
    {NULL, NULL},
};

const struct cmd_desc desc_dd = {
    .name = "dd",
    .summary = "copy a part of an image into a new image",
    .operands = "[bs=SIZE] [count=BLOCKS] [skip=BLOCKS] if=INPUT of=OUTPUT",
    .options = options,
    .examples = examples,
};

struct dd {
    const char *input, *output, *format;
    uint64_t block, count, skip;
    bool counted;
    uint64_t from, length; /* guest bytes to copy */
};

/* ---- operands ---------------------------------------------------------------------------- */

static int take_bs(struct dd *dd, const char *value)
{
    return size_parse("bs", value, 1, INT_MAX, &dd->block) ? 1 : -1;
}

static int take_count(struct dd *dd, const char *value)
{
    dd->counted = true;
    return size_parse("count", value, 0, 0, &dd->count) ? 1 : -1;
}

static int take_skip(struct dd *dd, const char *value)
{
    return size_parse("skip", value, 0, 0, &dd->skip) ? 1 : -1;
}

static int take_input(struct dd *dd, const char *value)
{
    dd->input = value;
    return -1;
}

static int take_output(struct dd *dd, const char *value)
{
    dd->output = value;
    return -1;
}

static int take_operand(struct dd *dd, const char *word)
{
    static const struct {
        const char *name;
        int (*take)(struct dd *dd, const char *value);
    } table[] = {{"bs", take_bs},
                 {"count", take_count},
                 {"skip", take_skip},
                 {"if", take_input},
                 {"of", take_output}};
    const char *equals = strchr(word, '=');
    size_t len = equals ? (size_t)(equals - word) : strlen(word);
    for (size_t i = 0; equals && i < sizeof(table) / sizeof(*table); i++)
        if (strlen(table[i].name) == len && !strncmp(word, table[i].name, len))
            return table[i].take(dd, equals + 1);
    report_error("unrecognized operand %.*s", (int)len, word);
    return 1;
}

static int parse(struct dd *dd, const struct opts *opts)
{
    dd->block = DEFAULT_BLOCK;
    dd->format = opts_given(opts, 'O') ? opts_string(opts, 'O') : "raw";
    for (int i = 0; i < opts->operand_count; i++) {
        int status = take_operand(dd, opts->operand[i]);
        if (status >= 0)
            return status;
    }
    if (!dd->input || !dd->output) {
        report_error("Must specify both input and output files");
        return 1;
    }
    return -1;
}

/* ---- copying ----------------------------------------------------------------------------- */

/* Products beyond 64 bits are beyond any disk. */
static uint64_t times(uint64_t a, uint64_t b)
{
    uint64_t product;
    return __builtin_mul_overflow(a, b, &product) ? UINT64_MAX : product;
}

static void choose_range(struct dd *dd, uint64_t size)
{
    uint64_t end = size;
    dd->from = times(dd->skip, dd->block);
    if (dd->counted) {
        uint64_t bytes = times(dd->count, dd->block);
        end = dd->from < size && bytes < size - dd->from ? dd->from + bytes : size;
    }
    dd->length = dd->from < end ? end - dd->from : 0;
}

static int create_output(const struct dd *dd)
{
    struct qk_error err = {0};
    TEXT_CLEANUP char *size = xprintf("size=%" PRIu64, (dd->length + SECTOR - 1) / SECTOR * SECTOR);
    const char *const list[] = {size, NULL};
    if (!qk_create_options(dd->format, &(size_t){0})) {
        report_error("Unknown file format");
        return 1;
    }
    if (qk_create(dd->output, dd->format, list, &err) == 0)
        return -1;
    report_failure(&err, "%s: error while creating output image", dd->output);
    return 1;
}

static int copy(const struct dd *dd, struct qk_disk *input, struct qk_disk *output)
{
    uint8_t *piece = xmalloc(PIECE_BYTES);
    const char *failed = NULL;
    struct qk_error err = {0};
    for (uint64_t done = 0; !failed && done < dd->length;) {
        uint64_t left = dd->length - done;
        size_t take = (size_t)(left < PIECE_BYTES ? left : PIECE_BYTES);
        if (qk_disk_read(input, dd->from + done, piece, take, &err) < 0)
            failed = "error while reading from input image file";
        else if (qk_disk_write(output, done, piece, take, 0, &err) < 0)
            failed = "error while writing to output image file";
        done += take;
    }
    if (failed)
        report_failure(&err, "%s", failed);
    free(piece);
    return failed ? 1 : 0;
}

static int copy_to_output(const struct dd *dd, struct qk_disk *input)
{
    struct image_request request = {.format = dd->format, .flags = QK_OPEN_RDWR};
    struct qk_disk *output = NULL;
    if (dd->from > qk_disk_size(input)) /* with qemu-img no failure: the output is empty */
        report_error("%s: cannot skip to specified offset", dd->input);
    if (create_output(dd) >= 0 || open_image(dd->output, &request, &output) < 0)
        return 1;
    int status = copy(dd, input, output);
    return close_image(output) | status;
}

int cmd_dd(int argc, char **argv)
{
    OPTS_CLEANUP struct opts opts;
    int status = opts_parse(&desc_dd, argc, argv, &opts);
    if (status >= 0)
        return status;
    struct dd dd = {0};
    struct image_request request = image_request_from(&opts);
    SNAPSHOT_CLEANUP struct snapshot_choice snapshot;
    status = snapshot_choice_parse(opts_string(&opts, 'l'), &snapshot);
    if (status < 0)
        status = parse(&dd, &opts);
    if (status >= 0)
        return status;
    snapshot_choice_request(&snapshot, &request);
    IMAGE_CLEANUP struct qk_disk *input = NULL;
    if (open_image(dd.input, &request, &input) < 0)
        return 1;
    if (source_is_target(input, dd.output))
        return 1;
    choose_range(&dd, qk_disk_size(input));
    return copy_to_output(&dd, input);
}
