/*
 * help.c - `VERB --help`, printed from the command's table: usage, options, examples, statuses.
 */
#include "common/options.h"
#include "common/report.h"

#include <stdio.h>

#define HELP_COLUMN 26

static void print_option(int id, const char *name, const char *arg, const char *help)
{
    char left[64] = "  ";
    int n = id < 256 ? snprintf(left, sizeof(left), "  -%c%s%s%s%s", id, name ? ", --" : "",
                                name ? name : "", arg ? (name ? "=" : " ") : "", arg ? arg : "")
                     : snprintf(left, sizeof(left), "      --%s%s%s", name, arg ? "=" : "",
                                arg ? arg : "");
    if (n < HELP_COLUMN)
        printf("%-*s%s\n", HELP_COLUMN, left, help);
    else
        printf("%s\n%*s%s\n", left, HELP_COLUMN, "", help);
}

static void print_pairs(const char *title, const struct cmd_text *pairs, const char *prefix)
{
    printf("\n%s:\n", title);
    for (; pairs->what; pairs++) {
        if (prefix)
            printf("  %s %s\n      %s\n", prefix, pairs->what, pairs->why);
        else
            printf("  %s  %s\n", pairs->what, pairs->why);
    }
}

void opts_help(const struct cmd_desc *desc)
{
    static const struct cmd_text usual[] = {{"0", "success"}, {"1", "failure"}, {NULL, NULL}};
    printf("usage: %s %s [OPTION]... %s\n", program_name(), desc->name, desc->operands);
    printf("%s: %s\n", desc->name, desc->summary);
    if (desc->refusal)
        printf("\nNot available in this version: %s\n", desc->refusal);
    printf("\nOptions:\n");
    print_option('h', "help", NULL, "print this help and end");
    for (const struct opt_desc *row = desc->options; row->id; row++)
        print_option(row->id, row->name, row->arg, row->help);
    if (desc->examples)
        print_pairs("Examples", desc->examples, program_name());
    print_pairs("Exit status", desc->statuses ? desc->statuses : usual, NULL);
}
