/*
 * cmd_create.c - `create`: a new image. What the options mean, and what they become when they are
 * left out, is the library's (qk_create_resolve); the "Formatting" line is here, `-o help` in
 * create_options.c.
 */
#include "common/report.h"
#include "common/units.h"
#include "img/commands.h"
#include "img/create_options.h"
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

/* ---- creating ---------------------------------------------------------------------------- */

struct create {
    const char *filename, *format, *backing, *backing_format;
    struct keyvals list;
    bool unchecked, quiet;
    const struct qk_secrets *secrets;
};

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
    struct qk_create_context context = QK_CREATE_CONTEXT_INIT;
    context.secrets = create->secrets;
    if (!ret)
        ret = qk_create_with(create->filename, create->format, (const char *const *)resolved,
                             &context, &err);
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
    create->secrets = opts->secrets;
    create->filename = opts->operand_count ? opts->operand[0] : NULL;
    int status = opts_keyvals(opts, 'o', &create->list, &help);
    if (status >= 0)
        return status;
    if (help)
        return create_show_options(create->filename, create->format);
    if (!create->filename)
        return usage_error("Expecting image file name");
    if (opts->operand_count > 1 && add_size(create, opts->operand[1]))
        return 1;
    if (opts->operand_count > 2)
        return usage_error("Unexpected argument: %s", opts->operand[2]);
    TEXT_CLEANUP char *prefix = xprintf("%s: ", create->filename);
    return create_add_backing(
        &create->list,
        &(struct create_backing){create->format, create->backing, create->backing_format, prefix});
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
