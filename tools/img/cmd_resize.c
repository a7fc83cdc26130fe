/*
 * cmd_resize.c - `resize FILENAME [+|-]SIZE`. Relies on qk_disk_resize for the work; what must not
 * happen by accident (shrinking, a size of zero) is refused here, before anything is written.
 */
#include "common/open.h"
#include "common/report.h"
#include "common/units.h"
#include "img/commands.h"

#include <errno.h>
#include <string.h>

enum { OPT_PREALLOCATION = OPT_LOCAL, OPT_SHRINK };

static const struct opt_desc options[] = {
    OPT_FORMAT,
    OPT_ROW_IMAGE_OPTS,
    OPT_ROW_OBJECT,
    {OPT_PREALLOCATION, "preallocation", "MODE",
     "off (default), metadata, falloc or full, for the part that is added", OPT_KIND_TEXT, NULL, 0,
     0, "off metadata falloc full"},
    {OPT_SHRINK, "shrink", NULL, "allow a smaller size; what lies beyond it is lost", OPT_KIND_FLAG,
     NULL, 0, 0, NULL},
    OPT_QUIET,
    OPT_END,
};

static const struct cmd_text examples[] = {
    {"resize disk.qcow2 20G", "make the disk 20 GiB"},
    {"resize disk.qcow2 +5G", "make the disk 5 GiB larger than it is"},
    {"resize --shrink disk.qcow2 -1G", "cut off the last GiB; its content is gone"},
    {NULL, NULL},
};

const struct cmd_desc desc_resize = {
    .name = "resize",
    .summary = "change the size that a guest sees",
    .operands = "FILENAME [+|-]SIZE",
    .options = options,
    .examples = examples,
};

struct resize {
    const char *size_text; /* without its sign */
    int sign;              /* +1, -1: relative; 0: absolute */
    uint64_t size;
    enum qk_prealloc prealloc;
    bool shrink, quiet;
};

static int parse_prealloc(const struct opts *opts, enum qk_prealloc *mode)
{
    static const char *const names[] = {"off", "metadata", "falloc", "full"};
    const char *text = opts_string(opts, OPT_PREALLOCATION);
    *mode = QK_PREALLOC_OFF;
    for (size_t i = 0; text && i < sizeof(names) / sizeof(*names); i++) {
        if (!strcmp(names[i], text)) {
            *mode = (enum qk_prealloc)i;
            return 0;
        }
    }
    if (text)
        report_error("Invalid preallocation mode '%s'", text);
    return text ? -EINVAL : 0;
}

static int parse_size(struct resize *resize, const char *text)
{
    resize->sign = text[0] == '+' ? 1 : text[0] == '-' ? -1 : 0;
    resize->size_text = resize->sign ? text + 1 : text;
    int ret = size_value(resize->size_text, &resize->size);
    if (ret == -ERANGE)
        report_error("Value '%s' is out of range for parameter 'size'", resize->size_text);
    else if (ret)
        report_error("Parameter 'size' expects a non-negative number below 2^64\n"
                     "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
                     "and exabytes, respectively.");
    return ret;
}

/* The new size in *total, or an error when there is none that makes sense. */
static int new_size(const struct resize *resize, uint64_t current, uint64_t *total)
{
    bool positive = resize->sign < 0 ? current > resize->size : current + resize->size > 0;
    if (!positive || (!resize->sign && !resize->size)) {
        report_error("New image size must be positive");
        return -EINVAL;
    }
    if (resize->sign > 0 && resize->size > INT64_MAX - current) {
        report_error("Value '%s' is out of range for parameter 'size'", resize->size_text);
        return -ERANGE;
    }
    *total = resize->sign > 0   ? current + resize->size
             : resize->sign < 0 ? current - resize->size
                                : resize->size;
    return 0;
}

static int refuse_unwanted(const struct resize *resize, uint64_t current, uint64_t total)
{
    if (total <= current && resize->prealloc != QK_PREALLOC_OFF) {
        report_error("Preallocation can only be used for growing images");
        return -EINVAL;
    }
    if (total < current && !resize->shrink) {
        report_error("Use the --shrink option to perform a shrink operation.");
        report_warning("Shrinking an image will delete all data beyond the shrunken image's end. "
                       "Before performing such an operation, make sure there is no important data "
                       "there.");
        return -EINVAL;
    }
    return 0;
}

/* QEMU counts a qcow2 disk in sectors: it would not show the end of one that is no whole sector. */
static int refuse_part_sector(struct qk_disk *disk, uint64_t total)
{
    struct qk_info info = QK_INFO_INIT;
    if (total % 512 == 0 || qk_disk_info(disk, &info, NULL) || strcmp(info.format, "qcow2"))
        return 0;
    report_error("The new size must be a multiple of 512");
    return -EINVAL;
}

static int resize_disk(const struct resize *resize, struct qk_disk *disk)
{
    uint64_t current = qk_disk_size(disk), total;
    int ret = new_size(resize, current, &total);
    if (!ret)
        ret = refuse_unwanted(resize, current, total);
    if (!ret)
        ret = refuse_part_sector(disk, total);
    if (ret)
        return ret;
    struct qk_error err = {0};
    ret =
        qk_disk_resize(disk, total, resize->prealloc, resize->shrink ? QK_RESIZE_SHRINK : 0, &err);
    if (ret)
        report_qk(&err);
    return ret;
}

/* The size is the last word; it is taken away first, so that "-1G" is no option. */
int cmd_resize(int argc, char **argv)
{
    bool help = argc == 2 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"));
    if (argc < 3 && !help)
        return usage_error("Not enough arguments");
    const char *size = help ? NULL : argv[--argc];
    OPTS_CLEANUP struct opts opts;
    int status = opts_parse(&desc_resize, argc, argv, &opts);
    if (status >= 0)
        return status;
    struct resize resize = {.shrink = opts_given(&opts, OPT_SHRINK)};
    if (parse_prealloc(&opts, &resize.prealloc))
        return 1;
    struct image_request request = image_request_from(&opts);
    if (opts.operand_count != 1)
        return usage_error("Expecting image file name and size");
    if (parse_size(&resize, size))
        return 1;
    request.flags |= QK_OPEN_RDWR;
    struct qk_disk *disk = NULL;
    if (open_image(opts.operand[0], &request, &disk))
        return 1;
    int ret = resize_disk(&resize, disk);
    status = close_image(disk);
    if (ret || status)
        return 1;
    say(request.quiet, "Image resized.\n");
    return 0;
}
