/*
 * img_main.c - the qemu-img face: its standard options, its list of verbs, and the call of one.
 */
#include "common/faces.h"
#include "common/report.h"
#include "img/commands.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

static const char standard_options[] =
    "Standard options:\n"
    "  -h, --help              print this help and end\n"
    "  -V, --version           print the version and end\n"
    "  -T, --trace=SPEC        accepted for scripts' sake, no effect\n"
    "      --list-options      print all commands and options, for programs\n";

static void print_verbs(void)
{
    printf("\nCommands:\n");
    for (const struct verb *verb = img_verbs; verb->desc; verb++)
        printf("  %-10s  %s\n", verb->desc->name, verb->desc->summary);
}

static int show_help(void)
{
    bool own = !strcmp(program_name(), "qcowkit");
    printf("usage: %s [STANDARD OPTION]... COMMAND [OPTION]...\n", program_name());
    printf("Disk images in the qcow2 format and raw ones: create, look into, check, convert.\n\n");
    fputs(standard_options, stdout);
    print_verbs();
    if (own)
        printf("  %-10s  %s\n", "io", "run read, write and other commands on an image (qemu-io)");
    printf("\nSizes are bytes, or have a suffix k, M, G, T, P, E (powers of 1024).\n"
           "`%s COMMAND --help` explains one command, with examples.\n"
           "\nSupported formats: blkdebug file host_device null-co qcow2 raw\n",
           program_name());
    return 0;
}

/* Scripts read the word after "version" (doc/divergences.md). */
static int show_version(void)
{
    if (!strcmp(program_name(), "qemu-img"))
        printf("qemu-img version 7.2.0 (qcowkit %s)\n", qk_version());
    else
        printf("%s version %s\n", program_name(), qk_version());
    return 0;
}

/* Every verb with each spelling of its options: what the shell completion is made from. */
static int list_options(void)
{
    for (const struct verb *verb = img_verbs; verb->desc; verb++)
        opts_list(verb->desc);
    opts_list(&desc_io);
    return 0;
}

/* The options in front of the verb. -1: go on at argv[optind]; else the exit status. */
static int standard(int argc, char **argv)
{
    static const struct option longs[] = {
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'V'},
        {"trace", required_argument, NULL, 'T'},
        {"list-options", no_argument, NULL, 'L'},
        {0},
    };
    opterr = 0;
    optind = 0;
    for (;;) {
        int before = optind ? optind : 1;
        int result = getopt_long(argc, argv, "+:hVT:", longs, NULL);
        const char *word = argv[optind > before ? optind - 1 : before];
        switch (result) {
        case -1:
            return -1;
        case 'h':
            return show_help();
        case 'V':
            return show_version();
        case 'L':
            return list_options();
        case 'T':
            break;
        case ':':
            return usage_error("missing argument for option '%s'", word);
        default:
            return usage_error("unrecognized option '%s'", word);
        }
    }
}

int img_main(int argc, char **argv)
{
    int status = standard(argc, argv);
    if (status >= 0)
        return status;
    if (optind >= argc)
        return usage_error("Not enough arguments");
    argc -= optind;
    argv += optind;
    for (const struct verb *verb = img_verbs; verb->desc; verb++) {
        if (!strcmp(verb->desc->name, argv[0]))
            return verb->run(argc, argv);
    }
    return usage_error("Command not found: %s", argv[0]);
}
