/*
 * io.h - the qemu-io face: one table of commands drives dispatch, option parsing and help; a
 * session is what they work on (an image and the requests that are under way on it).
 *
 * Results go to stdout, and so do complaints about a request's own arguments and its failure;
 * complaints about the command line as such go to stderr. That is qemu-io's division, which
 * scripts rely on. A command returns 0, or a negative errno with everything printed.
 */
#ifndef TOOLS_IO_IO_H
#define TOOLS_IO_IO_H

#include "common/options.h"
#include "common/snapshot.h"
#include "qcowkit.h"

#include <stdbool.h>
#include <stdint.h>

/* ---- commands ---------------------------------------------------------------------------- */

struct session;
struct args;

enum command_flag {
    COMMAND_NO_FILE = 1u << 0, /* works while no file is open */
    COMMAND_WRITES = 1u << 1,  /* refused on a read-only image */
};

struct arg_desc {
    char letter; /* 0 ends the list */
    bool has_value;
    const char *help;
};

struct command {
    const char *name;
    const char *alias; /* NULL: none */
    int (*run)(struct session *session, const struct args *args);
    int min, max; /* number of words behind the name; max -1: any */
    unsigned flags;
    const char *synopsis;           /* "[-q] off len"; NULL: takes nothing */
    const char *summary;            /* one line */
    const struct arg_desc *options; /* NULL: words that start with '-' are operands */
    const char *text;               /* what `help NAME` says beyond the line; NULL: nothing */
};

/* Ended by a NULL name, sorted by name. */
extern const struct command io_commands[];

const struct command *command_find(const char *name);
/* "NAME SYNOPSIS -- SUMMARY" on stdout; `name` as the user knows it. */
void command_print(const struct command *command, const char *name);
/* The same for wrong usage. Returns -EINVAL. */
int command_usage(const struct command *command);

/* The words of one command, taken apart by its table. */
struct args {
    const struct command *command;
    struct opts opts; /* the options in the order given */
    char **operand;   /* NULL-terminated */
    int count;        /* of operands */
};

static inline bool args_given(const struct args *args, char letter)
{
    return opts_given(&args->opts, letter);
}

/* The last value wins; NULL: not given. */
static inline const char *args_value(const struct args *args, char letter)
{
    return opts_string(&args->opts, letter);
}

/* Runs one line of words that are separated by spaces. 0, or a negative errno (all printed). */
int command_run(struct session *session, const char *line);

/* ---- the session ------------------------------------------------------------------------- */

/* How an image is opened; kept for `reopen`. */
struct image_spec {
    char *name;                             /* NULL: the options say everything */
    char *format;                           /* NULL: probe */
    struct keyvals options;                 /* "key=value" */
    unsigned flags;                         /* of enum qk_open_flag */
    bool native_aio;                        /* needs direct I/O */
    const struct snapshot_choice *snapshot; /* -l, the session's; NULL: none */
};

struct session {
    struct qk_disk *disk; /* NULL: no file open */
    struct image_spec spec;
    const struct qk_secrets *secrets; /* of --object; or NULL */
    struct request_queue *queue;
    struct keyvals breaks;           /* tags of the breakpoints that were set */
    struct snapshot_choice snapshot; /* -l */
    bool read_only;
    bool misalign; /* -m: odd memory addresses, for testing direct I/O */
    bool quit;
};

/* Opens as *spec says and takes it over; it is emptied in each case. */
int session_open(struct session *session, struct image_spec *spec);
/* Waits for what is under way, then closes. Nothing open: 0. */
int session_close(struct session *session);
void image_spec_free(struct image_spec *spec);

/* What the program and `open` say with -r, -s, -C, -U, -t, -n, -d, -i and -k. -EINVAL: reported. */
int spec_take_modes(struct image_spec *spec, const struct opts *opts);
/* A cache mode in place of the one before. -EINVAL: reported. */
int spec_set_cache(struct image_spec *spec, const char *mode);
/* What qemu-io opens with when nothing else is said: each write stable, discards passed on. */
#define SPEC_DEFAULT_FLAGS (QK_OPEN_WRITETHROUGH | QK_OPEN_UNMAP)

/* ---- the commands, one concept per file --------------------------------------------------- */

int do_read(struct session *session, const struct args *args);
int do_readv(struct session *session, const struct args *args);
int do_write(struct session *session, const struct args *args);
int do_writev(struct session *session, const struct args *args);
int do_aio_read(struct session *session, const struct args *args);
int do_aio_write(struct session *session, const struct args *args);
int do_aio_flush(struct session *session, const struct args *args);
int do_alloc(struct session *session, const struct args *args);
int do_discard(struct session *session, const struct args *args);
int do_length(struct session *session, const struct args *args);
int do_map(struct session *session, const struct args *args);
int do_truncate(struct session *session, const struct args *args);
int do_open(struct session *session, const struct args *args);
int do_reopen(struct session *session, const struct args *args);
int do_close(struct session *session, const struct args *args);
int do_flush(struct session *session, const struct args *args);
int do_info(struct session *session, const struct args *args);
int do_break(struct session *session, const struct args *args);
int do_remove_break(struct session *session, const struct args *args);
int do_resume(struct session *session, const struct args *args);
int do_wait_break(struct session *session, const struct args *args);
int do_abort(struct session *session, const struct args *args);
int do_help(struct session *session, const struct args *args);
int do_quit(struct session *session, const struct args *args);
int do_sigraise(struct session *session, const struct args *args);
int do_sleep(struct session *session, const struct args *args);

#endif
