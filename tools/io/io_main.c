/*
 * io_main.c - the qemu-io face: its own options, the image they name, and the commands, from -c
 * or else one per line from standard input behind a prompt.
 */
#include "common/faces.h"
#include "common/open.h"
#include "common/report.h"
#include "common/snapshot.h"
#include "io/io.h"
#include "io/request.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PROMPT "qemu-io> "

static const struct opt_desc options[] = {
    OPT_ROW_OBJECT,
    OPT_ROW_IMAGE_OPTS,
    OPT_ROW_('c', "cmd", "COMMAND", "run this command; may be repeated", OPT_KIND_TEXT),
    OPT_ROW_('f', "format", "FMT", "format of the image (default: probe)", OPT_KIND_FORMAT),
    OPT_ROW_('r', "read-only", NULL, "open the image read-only", OPT_KIND_FLAG),
    OPT_ROW_('s', "snapshot", NULL, "write to a temporary overlay", OPT_KIND_FLAG),
    OPT_ROW_('n', "nocache", NULL, "bypass the host's page cache, as -t none", OPT_KIND_FLAG),
    OPT_ROW_('C', "copy-on-read", NULL, "keep what is read from the backing file", OPT_KIND_FLAG),
    OPT_ROW_('m', "misalign", NULL, "use odd memory addresses", OPT_KIND_FLAG),
    OPT_ROW_('k', "native-aio", NULL, "as -i native", OPT_KIND_FLAG),
    OPT_ROW_('i', "aio", "MODE", "threads, native or io_uring", OPT_KIND_TEXT),
    OPT_ROW_('t', "cache", "MODE", "cache mode (default: writethrough)", OPT_KIND_CACHE),
    OPT_ROW_('d', "discard", "MODE", "ignore or unmap (default: unmap)", OPT_KIND_TEXT),
    OPT_ROW_('T', "trace", "SPEC", "accepted for scripts' sake, no effect", OPT_KIND_TEXT),
    OPT_SNAPSHOT_ROW,
    OPT_SHARE,
    OPT_ROW_('V', "version", NULL, "print the version and end", OPT_KIND_FLAG),
    OPT_END,
};

static const struct cmd_text examples[] = {
    {"-c 'write -P 7 0 64k' -c 'read -P 7 0 64k' disk.qcow2", "write, and check what was written"},
    {"-r -c map disk.qcow2", "which ranges the image holds itself"},
    {"-f raw disk.img", "ask for commands"},
    {NULL, NULL},
};

static const struct cmd_text statuses[] = {
    {"0", "all commands succeeded"},
    {"1", "the image could not be opened, or a command failed"},
    {NULL, NULL},
};

const struct cmd_desc desc_io = {
    .name = "io",
    .summary = "run read, write and other commands on an image; `-c help` lists them",
    .operands = "[FILE]",
    .options = options,
    .examples = examples,
    .statuses = statuses,
};

/* The operand: a file name, or with --image-opts all there is to say. */
static int take_operand(struct image_spec *spec, const struct opts *opts)
{
    const char *format = opts_string(opts, 'f');
    if (!opts_given(opts, OPT_IMAGE_OPTS)) {
        spec->name = xstrdup(opts->operand[0]);
        spec->format = format ? xstrdup(format) : NULL;
        return 0;
    }
    if (format) {
        report_error("--image-opts and -f are mutually exclusive");
        return -EINVAL;
    }
    if (!keyvals_add_list(&spec->options, opts->operand[0])) {
        report_error("Invalid option list: %s", opts->operand[0]);
        return -EINVAL;
    }
    keyvals_complete(&spec->options);
    return 0;
}

/* A snapshot can only be read. */
static int take_snapshot(struct image_spec *spec, const struct opts *opts,
                         struct snapshot_choice *snapshot)
{
    if (snapshot_choice_parse(opts_string(opts, 'l'), snapshot) >= 0)
        return -EINVAL;
    spec->snapshot = snapshot;
    if (snapshot->text)
        spec->flags &= ~(unsigned)QK_OPEN_RDWR;
    return 0;
}

static int open_operand(struct session *session, const struct opts *opts)
{
    struct image_spec spec = {.flags = SPEC_DEFAULT_FLAGS};
    int ret = spec_take_modes(&spec, opts);
    if (!ret)
        ret = take_snapshot(&spec, opts, &session->snapshot);
    if (!ret && opts->operand_count)
        ret = take_operand(&spec, opts);
    if (!ret && opts->operand_count)
        ret = session_open(session, &spec);
    image_spec_free(&spec);
    return ret;
}

static int run_given(struct session *session, const struct opts *opts)
{
    int failed = 0;
    const char *line;
    for (size_t i = 0; !session->quit && (line = opts_nth(opts, 'c', i)); i++) {
        if (command_run(session, line))
            failed = 1;
        queue_reap(session->queue, false);
    }
    return failed;
}

static int run_interactive(struct session *session)
{
    int failed = 0;
    char *line = NULL;
    size_t room = 0;
    while (!session->quit) {
        queue_reap(session->queue, false);
        fputs(PROMPT, stdout);
        fflush(stdout);
        ssize_t length = getline(&line, &room, stdin);
        if (length < 0)
            break;
        if (line[length - 1] == '\n')
            line[length - 1] = '\0';
        if (command_run(session, line))
            failed = 1;
    }
    if (!session->quit && isatty(STDIN_FILENO))
        putchar('\n');
    free(line);
    return failed;
}

static int run(const struct opts *opts)
{
    struct session session = {
        .queue = queue_new(), .misalign = opts_given(opts, 'm'), .secrets = opts->secrets};
    int failed = open_operand(&session, opts) != 0;
    if (!failed)
        failed = opts_given(opts, 'c') ? run_given(&session, opts) : run_interactive(&session);
    if (session_close(&session))
        failed = 1;
    queue_free(session.queue);
    snapshot_choice_free(&session.snapshot);
    return failed;
}

/* Scripts read the word after "version" (doc/divergences.md). */
static int show_version(void)
{
    if (!strcmp(program_name(), "qemu-io"))
        printf("qemu-io version 7.2.0 (qcowkit %s)\n", qk_version());
    else
        printf("%s version %s\n", program_name(), qk_version());
    return 0;
}

int io_main(int argc, char **argv)
{
    struct cmd_desc desc = desc_io;
    if (!strcmp(program_name(), "qemu-io"))
        desc.name = NULL;
    OPTS_CLEANUP struct opts opts;
    int status = opts_parse(&desc, argc, argv, &opts);
    if (status >= 0)
        return status;
    if (opts_given(&opts, 'V'))
        return show_version();
    if (opts.operand_count > 1)
        return usage_error("Expecting at most one image file name");
    return run(&opts);
}
