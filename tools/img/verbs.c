/*
 * verbs.c - the table of the qemu-img face's verbs, and the verbs that are refused because the
 * engine does not do their work yet. A refusal opens nothing and changes nothing.
 */
#include "common/report.h"
#include "img/commands.h"

#include <string.h>

const struct verb img_verbs[] = {
    {&desc_amend, cmd_amend},
    {&desc_bench, cmd_bench},
    {&desc_bitmap, cmd_bitmap},
    {&desc_check, cmd_check},
    {&desc_commit, cmd_commit},
    {&desc_compare, cmd_compare},
    {&desc_convert, cmd_convert},
    {&desc_create, cmd_create},
    {&desc_dd, cmd_dd},
    {&desc_info, cmd_info},
    {&desc_map, cmd_map},
    {&desc_measure, cmd_measure},
    {&desc_rebase, cmd_rebase},
    {&desc_resize, cmd_resize},
    {&desc_snapshot, cmd_snapshot},
    {NULL, NULL},
};

static const struct opt_desc no_options[] = {OPT_END};

#define REFUSED(verb_, summary_, operands_, instead_)                                              \
    const struct cmd_desc desc_##verb_ = {                                                         \
        .name = #verb_,                                                                            \
        .summary = summary_,                                                                       \
        .operands = operands_,                                                                     \
        .options = no_options,                                                                     \
        .refusal = instead_,                                                                       \
    };                                                                                             \
    int cmd_##verb_(int argc, char **argv)                                                         \
    {                                                                                              \
        return refuse(&desc_##verb_, argc, argv);                                                  \
    }

/* Takes any options: a script shall see the refusal, not a complaint about an option. */
static int refuse(const struct cmd_desc *desc, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            opts_help(desc);
            return 0;
        }
    }
    report_error("'%s' is not available in qcowkit %s; nothing was changed (%s)", desc->name,
                 qk_version(), desc->refusal);
    return 1;
}

REFUSED(amend, "change the options of an image in place", "-o OPTIONS FILENAME",
        "convert into a new image with the options wanted")
