/*
 * command.c - from a line of words to the call of a command: looking it up, counting and parsing
 * its words by the table (io.h), and saying what is wrong with them in qemu-io's words.
 */
#include "common/report.h"
#include "io/io.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const struct command *command_find(const char *name)
{
    for (const struct command *command = io_commands; command->name; command++) {
        if (!strcmp(command->name, name) || (command->alias && !strcmp(command->alias, name)))
            return command;
    }
    return NULL;
}

void command_print(const struct command *command, const char *name)
{
    printf("%s %s%s-- %s\n", name, command->synopsis ? command->synopsis : "",
           command->synopsis ? " " : "", command->summary);
}

int command_usage(const struct command *command)
{
    command_print(command, command->name);
    return -EINVAL;
}

/* On stderr, behind the results printed so far. */
static int complain(const char *text)
{
    fflush(stdout);
    fprintf(stderr, "%s\n", text);
    return -EINVAL;
}

static int wrong_count(const struct command *command, const char *name, int count)
{
    TEXT_CLEANUP char *expected = command->min == command->max ? xprintf("%d", command->min)
                                  : command->max < 0
                                      ? xprintf("at least %d", command->min)
                                      : xprintf("between %d and %d", command->min, command->max);
    TEXT_CLEANUP char *text =
        xprintf("bad argument count %d to %s, expected %s arguments", count, name, expected);
    return complain(text);
}

/* What can be said before looking at the options. */
static int admit(const struct session *session, const struct command *command, const char *name,
                 int count)
{
    if (!session->disk && !(command->flags & COMMAND_NO_FILE))
        return complain("no file open, try 'help open'");
    if (count < command->min || (command->max >= 0 && count > command->max))
        return wrong_count(command, name, count);
    if ((command->flags & COMMAND_WRITES) && session->read_only) {
        report_error("Block node is read-only");
        return -EACCES;
    }
    return 0;
}

/* "CP:q": what getopt wants to know of the options. */
static char *letters(const struct arg_desc *options)
{
    char *text = xstrdup("");
    for (; options->letter; options++) {
        char *longer = xprintf("%s%c%s", text, options->letter, options->has_value ? ":" : "");
        free(text);
        text = longer;
    }
    return text;
}

static int parse(const struct command *command, int argc, char **argv, struct args *args)
{
    /* a word like "-qv" holds several options: no more than it has letters */
    size_t most = 0;
    for (int i = 1; i < argc; i++)
        most += strlen(argv[i]);
    *args = (struct args){.command = command, .operand = argv + 1, .count = argc - 1};
    args->opts.value = xmalloc((most + 1) * sizeof(*args->opts.value));
    if (!command->options)
        return 0;
    TEXT_CLEANUP char *known = letters(command->options);
    int letter;
    optind = 0; /* GNU: forget the words of the command before */
    opterr = 1;
    fflush(stdout);
    while ((letter = getopt(argc, argv, known)) != -1) {
        if (letter == '?')
            return command_usage(command);
        args->opts.value[args->opts.value_count++] =
            (struct opt_value){.id = letter, .text = optarg};
    }
    args->operand = argv + optind;
    args->count = argc - optind;
    return 0;
}

static int call(struct session *session, int argc, char **argv)
{
    const struct command *command = command_find(argv[0]);
    if (!command) {
        TEXT_CLEANUP char *text = xprintf("command \"%s\" not found", argv[0]);
        return complain(text);
    }
    int ret = admit(session, command, argv[0], argc - 1);
    if (ret)
        return ret;
    struct args args;
    ret = parse(command, argc, argv, &args);
    if (!ret)
        ret = command->run(session, &args);
    opts_free(&args.opts);
    return ret;
}

int command_run(struct session *session, const char *line)
{
    TEXT_CLEANUP char *words = xstrdup(line);
    char **argv = xmalloc((strlen(line) + 2) * sizeof(*argv)), *rest = words, *word;
    int argc = 0;
    while ((word = strsep(&rest, " "))) {
        if (*word)
            argv[argc++] = word;
    }
    argv[argc] = NULL;
    int ret = argc ? call(session, argc, argv) : 0;
    free(argv);
    return ret;
}
