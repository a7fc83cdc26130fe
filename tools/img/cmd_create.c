/*
 * cmd_create.c - `create`: a new image. What the options mean, and what they become when they are
 * left out, is the library's (qk_create_resolve); the "Formatting" line and `-o help` are here.
 */
#include "common/report.h"
#include "common/units.h"
#include "img/commands.h"
#include "qcowkit.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct opt_desc options[] = {
    {'f', NULL, "FMT", "format of the new image (default: raw)", OPT_KIND_FORMAT, NULL, 0, 0, NULL},
    {'o', NULL, "OPTIONS", "options of the format, key=value,...; `-o help` lists them",
     OPT_KIND_TEXT, NULL, 0, 0, NULL},
    {'b', NULL, "BACKING", "the new image is an overlay over this image", OPT_KIND_FILE, NULL, 0, 0,
     NULL},
    {'F', NULL, "FMT", "format of the backing image", OPT_KIND_FORMAT, NULL, 0, 0, NULL},
    {'u', NULL, NULL, "do not look at the backing image, which need not exist", OPT_KIND_FLAG, NULL,
     0, 0, NULL},
    OPT_ROW_OBJECT,
    OPT_QUIET,
    OPT_END,
};

static const struct cmd_text examples[] = {
    {"create -f qcow2 disk.qcow2 20G", "an empty disk of 20 GiB that grows as it is written"},
    {"create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2",
     "an overlay that keeps what is written apart from base.qcow2"},
    {"create -f qcow2 -o cluster_size=2M,preallocation=metadata disk.qcow2 1T",
     "large clusters, with all tables written in advance"},
    {"create -f qcow2 -o help", "the options of the qcow2 format"},
    {NULL, NULL},
};

const struct cmd_desc desc_create = {
    .name = "create",
    .summary = "make a new image",
    .operands = "FILENAME [SIZE]",
    .options = options,
    .examples = examples,
};

/* ---- -o help ----------------------------------------------------------------------------- */

/* Options of the file itself, which any format that lives in a file takes too. */
static const struct qk_option_desc file_options[] = {
    {"extent_size_hint", "size", "Extent size hint for the image file, 0 to disable", NULL, false},
    {"nocow", "bool (on/off)", "Turn off copy-on-write (valid only on btrfs)", NULL, false},
    {"preallocation", "str", "Preallocation mode (allowed values: off, falloc, full)", NULL, false},
};

static const struct qk_option_desc *find_option(const struct qk_option_desc *list, size_t count,
                                                const char *name, size_t length)
{
    for (size_t i = 0; i < count; i++) {
        if (strlen(list[i].name) == length && !strncmp(list[i].name, name, length))
            return &list[i];
    }
    return NULL;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct qk_option_desc *)a)->name,
                  ((const struct qk_option_desc *)b)->name);
}

static void print_options(struct qk_option_desc *list, size_t count)
{
    qsort(list, count, sizeof(*list), by_name);
    for (size_t i = 0; i < count; i++) {
        TEXT_CLEANUP char *left = xprintf("  %s=<%s>", list[i].name, list[i].type);
        printf("%-24s - %s", left, list[i].help);
        if (list[i].default_text)
            printf(" (default: %s)", list[i].default_text);
        putchar('\n');
    }
}

/* With a file name the options of the file come in, as they could be given too. */
static int show_options(const char *filename, const char *format)
{
    size_t count, extra = sizeof(file_options) / sizeof(*file_options);
    const struct qk_option_desc *own = qk_create_options(format, &count);
    if (!own) {
        report_error("Unknown file format '%s'", format);
        return 1;
    }
    struct qk_option_desc *list = xmalloc((count + extra) * sizeof(*list));
    memcpy(list, own, count * sizeof(*list));
    size_t total = count;
    for (size_t i = 0; filename && i < extra; i++) {
        if (!find_option(own, count, file_options[i].name, strlen(file_options[i].name)))
            list[total++] = file_options[i];
    }
    if (filename)
        printf("Supported options:\n");
    else
        printf("Supported %s options:\n", format);
    print_options(list, total);
    free(list);
    if (!filename)
        printf("\nThe protocol level may support further options.\n"
               "Specify the target filename to include those options.\n");
    return 0;
}

/* ---- creating ---------------------------------------------------------------------------- */

struct create {
    const char *filename, *format, *backing, *backing_format;
    struct keyvals list;
    bool unchecked, quiet;
};

static bool format_takes(const char *format, const char *option)
{
    size_t count;
    const struct qk_option_desc *own = qk_create_options(format, &count);
    return own && find_option(own, count, option, strlen(option));
}

/* Puts -b and -F among the options, when the format knows such a thing. */
static int add_backing(struct create *create)
{
    static const struct {
        const char *key, *noun;
    } option[] = {{"backing_file", "file"}, {"backing_fmt", "file format"}};
    const char *value[] = {create->backing, create->backing_format};
    for (size_t i = 0; i < 2; i++) {
        if (!value[i])
            continue;
        if (qk_create_options(create->format, &(size_t){0}) &&
            !format_takes(create->format, option[i].key)) {
            report_error("%s: Backing %s not supported for file format '%s'", create->filename,
                         option[i].noun, create->format);
            return 1;
        }
        keyvals_remove(&create->list, option[i].key);
        keyvals_add(&create->list, option[i].key, value[i]);
    }
    return 0;
}

static int add_size(struct create *create, const char *text)
{
    uint64_t size;
    if (size_parse("image size", text, 0, 0, &size))
        return 1;
    if (keyvals_get(&create->list, "size")) {
        report_error("%s: The image size must be specified only once", create->filename);
        return 1;
    }
    TEXT_CLEANUP char *digits = xprintf("%" PRIu64, size);
    keyvals_add(&create->list, "size", digits);
    return 0;
}

/* A comma in a value is doubled, so that the line can be given back as -o. */
static void print_formatting(const struct create *create, char *const *resolved)
{
    printf("Formatting '%s', fmt=%s", create->filename, create->format);
    for (; *resolved; resolved++) {
        putchar(' ');
        for (const char *at = *resolved; *at; at++)
            fputs(*at == ',' ? ",," : (const char[]){*at, '\0'}, stdout);
    }
    putchar('\n');
}

static int run(const struct create *create)
{
    struct qk_error err = {0};
    char **resolved = NULL;
    int ret =
        qk_create_resolve(create->filename, create->format, (const char *const *)create->list.item,
                          create->unchecked ? QK_CREATE_UNCHECKED_BACKING : 0, &resolved, &err);
    if (!ret && !create->quiet)
        print_formatting(create, resolved);
    if (!ret)
        ret = qk_create(create->filename, create->format, (const char *const *)resolved, &err);
    qk_options_free(resolved);
    if (ret)
        report_failure(&err, "%s", create->filename);
    return ret ? 1 : 0;
}

/* The operands and options in the order in which qemu-img looks at them. */
static int gather(const struct opts *opts, struct create *create)
{
    bool help;
    create->format = opts_given(opts, 'f') ? opts_string(opts, 'f') : "raw";
    create->backing = opts_string(opts, 'b');
    create->backing_format = opts_string(opts, 'F');
    create->unchecked = opts_given(opts, 'u');
    create->quiet = opts_given(opts, 'q');
    create->filename = opts->operand_count ? opts->operand[0] : NULL;
    int status = opts_keyvals(opts, 'o', &create->list, &help);
    if (status >= 0)
        return status;
    if (help)
        return show_options(create->filename, create->format);
    if (!create->filename)
        return usage_error("Expecting image file name");
    if (opts->operand_count > 1 && add_size(create, opts->operand[1]))
        return 1;
    if (opts->operand_count > 2)
        return usage_error("Unexpected argument: %s", opts->operand[2]);
    return add_backing(create) ? 1 : -1;
}

int cmd_create(int argc, char **argv)
{
    OPTS_CLEANUP struct opts opts;
    int status = opts_parse(&desc_create, argc, argv, &opts);
    if (status >= 0)
        return status;
    struct create create = {0};
    status = gather(&opts, &create);
    if (status < 0)
        status = run(&create);
    keyvals_free(&create.list);
    return status;
}
