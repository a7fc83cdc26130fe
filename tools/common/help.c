/*
 * help.c - what a command's table says, for people (`VERB --help`: usage, options, examples, exit
 * statuses) and for the shell completion and the tests (`--list-options`).
 */
#include "common/options.h"
#include "common/report.h"

#include <stdio.h>

#define HELP_COLUMN 26

static void print_option(int id, const char *name, const char *arg, const char *help)
{
    char left[64] = "  ";
    int n =
        id < OPT_OBJECT
            ? snprintf(left, sizeof(left), "  -%c%s%s%s%s", id, name ? ", --" : "",
                       name ? name : "", arg ? (name ? "=" : " ") : "", arg ? arg : "")
            : snprintf(left, sizeof(left), "      --%s%s%s", name, arg ? "=" : "", arg ? arg : "");
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
            printf("  %-2s  %s\n", pairs->what, pairs->why);
    }
}

void opts_help(const struct cmd_desc *desc)
{
    static const struct cmd_text usual[] = {{"0", "success"}, {"1", "failure"}, {NULL, NULL}};
    printf("usage: %s%s%s [OPTION]... %s\n", program_name(), desc->name ? " " : "",
           desc->name ? desc->name : "", desc->operands);
    printf("%s: %s\n", desc->name ? desc->name : program_name(), desc->summary);
    printf("\nOptions:\n");
    print_option('h', "help", NULL, "print this help and end");
    for (const struct opt_desc *row = desc->options; row->id; row++)
        print_option(row->id, row->name, row->arg, row->help);
    if (desc->examples)
        print_pairs("Examples", desc->examples, program_name());
    print_pairs("Exit status", desc->statuses ? desc->statuses : usual, NULL);
}

static const char *const kind_names[] = {
    [OPT_KIND_FLAG] = "flag",        [OPT_KIND_TEXT] = "text",     [OPT_KIND_SIZE] = "size",
    [OPT_KIND_NUMBER] = "number",    [OPT_KIND_OBJECT] = "object", [OPT_KIND_OUTPUT] = "output",
    [OPT_KIND_OUTFD] = "descriptor", [OPT_KIND_FORMAT] = "format", [OPT_KIND_CACHE] = "cache",
    [OPT_KIND_FILE] = "file",
};

static void list_spelling(const struct cmd_desc *desc, const char *spelling,
                          const struct opt_desc *row)
{
    printf("%s %s %s", desc->name, spelling, kind_names[row->kind]);
    if (row->values)
        printf(" %s", row->values);
    putchar('\n');
}

void opts_list(const struct cmd_desc *desc)
{
    static const struct opt_desc help = OPT_ROW_('h', "help", NULL, NULL, OPT_KIND_FLAG);
    list_spelling(desc, "-h", &help);
    list_spelling(desc, "--help", &help);
    for (const struct opt_desc *row = desc->options; row->id; row++) {
        if (row->id < OPT_OBJECT)
            list_spelling(desc, (const char[]){'-', (char)row->id, '\0'}, row);
        if (row->name) {
            TEXT_CLEANUP char *spelling = xprintf("--%s", row->name);
            list_spelling(desc, spelling, row);
        }
    }
}
