/*
 * options.c - parsing a command line from its table (options.h). The table is turned into what
 * getopt_long wants; values are checked by kind as they come, so that the first wrong one is the
 * one that is reported.
 */
#include "common/options.h"
#include "common/objects.h"
#include "common/report.h"
#include "common/units.h"

#include <fcntl.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

static size_t table_size(const struct opt_desc *table)
{
    size_t count = 0;
    while (table[count].id)
        count++;
    return count;
}

static bool takes_argument(const struct opt_desc *desc)
{
    return desc->arg != NULL;
}

/* ":hf:q": the leading colon asks getopt to tell a missing argument from an unknown option. */
static char *short_options(const struct opt_desc *table)
{
    char *text = xmalloc(2 * table_size(table) + 3);
    char *at = stpcpy(text, ":h");
    for (; table->id; table++) {
        if (table->id >= OPT_OBJECT)
            continue;
        *at++ = (char)table->id;
        if (takes_argument(table))
            *at++ = ':';
    }
    *at = '\0';
    return text;
}

static struct option *long_options(const struct opt_desc *table)
{
    struct option *list = xmalloc((table_size(table) + 2) * sizeof(*list));
    size_t count = 0;
    list[count++] = (struct option){"help", no_argument, NULL, 'h'};
    for (; table->id; table++) {
        if (table->name)
            list[count++] = (struct option){table->name,
                                            takes_argument(table) ? required_argument : no_argument,
                                            NULL, table->id};
    }
    list[count] = (struct option){0};
    return list;
}

static const struct opt_desc *find(const struct opt_desc *table, int id)
{
    while (table->id && table->id != id)
        table++;
    return table;
}

/*
 * This comes before any image is opened: a number that is free now would be that of an image
 * later, and what is meant for the caller would be written into it.
 */
static bool check_descriptor(uint64_t fd)
{
    int mode = fcntl((int)fd, F_GETFL);
    if (mode >= 0 && (mode & O_ACCMODE) != O_RDONLY)
        return true;
    report_error("Descriptor %d is not open for writing", (int)fd);
    return false;
}

/* Checks one value by its kind. False: reported. */
static bool check_value(const struct opt_desc *desc, struct opt_value *value,
                        struct qk_secrets **secrets)
{
    switch (desc->kind) {
    case OPT_KIND_SIZE:
        return !size_parse(desc->noun, value->text, desc->min, desc->max, &value->number);
    case OPT_KIND_NUMBER:
        return !number_parse(desc->noun, value->text, desc->min, desc->max, &value->number);
    case OPT_KIND_OUTFD:
        return !number_parse(desc->noun, value->text, desc->min, desc->max, &value->number) &&
               check_descriptor(value->number);
    case OPT_KIND_OBJECT:
        return object_accept(value->text, secrets);
    case OPT_KIND_OUTPUT:
        if (!strcmp(value->text, "human") || !strcmp(value->text, "json"))
            return true;
        report_error("--output must be used with human or json as argument.");
        return false;
    default:
        return true;
    }
}

/* The word that getopt stumbled over. It stays on a word while letters of it are left. */
static int bad_option(int result, char **argv, int before)
{
    const char *word = argv[optind > before ? optind - 1 : before];
    if (result == ':')
        return usage_error("missing argument for option '%s'", word);
    return usage_error("unrecognized option '%s'", word);
}

/* Handles what getopt returned. -1: go on; else the exit status. */
static int take(struct opts *opts, int result, char **argv, int before)
{
    if (result == 'h') {
        opts_help(opts->desc);
        return 0;
    }
    if (result == ':' || result == '?')
        return bad_option(result, argv, before);
    struct opt_value *value = &opts->value[opts->value_count++];
    *value = (struct opt_value){.id = result, .text = optarg};
    return check_value(find(opts->desc->options, result), value, &opts->secrets) ? -1 : 1;
}

static int parse_all(struct opts *opts, int argc, char **argv, const char *shorts,
                     const struct option *longs)
{
    int status = -1;
    opterr = 0;
    optind = 0; /* GNU: start afresh, also after the face's own options were parsed */
    while (status < 0) {
        int before = optind ? optind : 1;
        int result = getopt_long(argc, argv, shorts, longs, NULL);
        if (result == -1)
            break;
        status = take(opts, result, argv, before);
    }
    opts->operand = argv + optind;
    opts->operand_count = argc - optind;
    return status;
}

int opts_parse(const struct cmd_desc *desc, int argc, char **argv, struct opts *opts)
{
    /* A word like "-pq" holds several options: no more than it has letters. */
    size_t most = 0;
    for (int i = 1; i < argc; i++)
        most += strlen(argv[i]);
    *opts = (struct opts){.desc = desc, .value = xmalloc((most + 1) * sizeof(*opts->value))};
    TEXT_CLEANUP char *shorts = short_options(desc->options);
    struct option *longs = long_options(desc->options);
    int status = parse_all(opts, argc, argv, shorts, longs);
    free(longs);
    return status;
}

void opts_free(struct opts *opts)
{
    free(opts->value);
    qk_secrets_free(opts->secrets);
    opts->secrets = NULL;
    opts->value = NULL;
    opts->value_count = 0;
}

static const struct opt_value *last(const struct opts *opts, int id)
{
    for (size_t i = opts->value_count; i-- > 0;) {
        if (opts->value[i].id == id)
            return &opts->value[i];
    }
    return NULL;
}

bool opts_given(const struct opts *opts, int id)
{
    return last(opts, id) != NULL;
}

const char *opts_string(const struct opts *opts, int id)
{
    const struct opt_value *value = last(opts, id);
    return value ? value->text : NULL;
}

uint64_t opts_number(const struct opts *opts, int id, uint64_t fallback)
{
    const struct opt_value *value = last(opts, id);
    return value ? value->number : fallback;
}

const char *opts_nth(const struct opts *opts, int id, size_t n)
{
    for (size_t i = 0; i < opts->value_count; i++) {
        if (opts->value[i].id == id && n-- == 0)
            return opts->value[i].text;
    }
    return NULL;
}

bool opts_json(const struct opts *opts)
{
    const char *form = opts_string(opts, OPT_OUTPUT);
    return form && !strcmp(form, "json");
}
