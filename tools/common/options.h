/*
 * options.h - one table per command describes its options; everything else follows from it:
 * parsing (getopt_long with qemu-img's messages), `--help`, shell completion, the manual page
 * check.
 *
 * Use, in one cmd_<verb>.c:
 *
 *     static const struct opt_desc options[] = {
 *         OPT_FORMAT,                                   (a shared row, see below)
 *         { 's', "start-offset", "OFFSET", "first byte to show", OPT_KIND_SIZE,
 *           .noun = "start offset" },
 *         { OPT_LOCAL + 0, "salvage", NULL, "turn read errors into zeroes", OPT_KIND_FLAG },
 *         OPT_END
 *     };
 *     const struct cmd_desc desc_map = { "map", "show where ...", "FILENAME", options, ... };
 *
 *     int cmd_map(int argc, char **argv)
 *     {
 *         OPTS_CLEANUP struct opts opts;
 *         int status = opts_parse(&desc_map, argc, argv, &opts);
 *         if (status >= 0)
 *             return status;           (--help was shown: 0; a bad option was reported: 1)
 *         ... opts_given(&opts, 'U'), opts_string(&opts, 'f'), opts.operand[0] ...
 *
 * Promises: nothing of a command's work happens before all its options are known to be good;
 * errors are printed once, in qemu-img's words.
 */
#ifndef TOOLS_COMMON_OPTIONS_H
#define TOOLS_COMMON_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Ids of options: a short option is its letter; one with only a long name has one of these. */
enum opt_id {
    OPT_OBJECT = 256,
    OPT_IMAGE_OPTS,
    OPT_TARGET_IMAGE_OPTS,
    OPT_OUTPUT,
    OPT_PROGRESS_FD,
    OPT_LOCAL = 512, /* first id that a command may use for its own long-only options */
};

enum opt_kind {
    OPT_KIND_FLAG,   /* takes no argument */
    OPT_KIND_TEXT,   /* any text */
    OPT_KIND_SIZE,   /* bytes with optional suffix; needs noun */
    OPT_KIND_NUMBER, /* unsigned integer without suffix; needs noun */
    OPT_KIND_OBJECT, /* --object: checked and remembered */
    OPT_KIND_OUTPUT, /* --output: human or json */
    OPT_KIND_FORMAT, /* text; completed as a format name */
    OPT_KIND_CACHE,  /* text; completed as a cache mode */
    OPT_KIND_FILE,   /* text; completed as a file name */
    OPT_KIND_OUTFD,  /* number of a descriptor that is open for writing; needs noun */
};

struct opt_desc {
    int id;           /* letter, enum opt_id or OPT_LOCAL + n; 0 ends the table */
    const char *name; /* long name without dashes, or NULL */
    const char *arg;  /* the argument's name in help, or NULL when it takes none */
    const char *help; /* one line, lower case, no full stop */
    enum opt_kind kind;
    const char *noun;   /* "Invalid NOUN specified": for the kinds SIZE and NUMBER */
    uint64_t min, max;  /* allowed range, max 0: INT64_MAX */
    const char *values; /* space-separated fixed values for completion, or NULL */
};

#define OPT_END                                                                                    \
    {                                                                                              \
        0, NULL, NULL, NULL, OPT_KIND_FLAG, NULL, 0, 0, NULL                                       \
    }
#define OPT_ROW_(id_, name_, arg_, help_, kind_)                                                   \
    {                                                                                              \
        id_, name_, arg_, help_, kind_, NULL, 0, 0, NULL                                           \
    }

/* Rows that many commands share. image_request_from() in open.h understands them. */
#define OPT_FORMAT                                                                                 \
    OPT_ROW_('f', "format", "FMT", "format of the image (default: probe)", OPT_KIND_FORMAT)
#define OPT_ROW_OBJECT                                                                             \
    OPT_ROW_(OPT_OBJECT, "object", "OBJDEF", "define an object, such as a secret", OPT_KIND_OBJECT)
#define OPT_ROW_IMAGE_OPTS                                                                         \
    OPT_ROW_(OPT_IMAGE_OPTS, "image-opts", NULL, "FILENAME is a list of options key=value,...",    \
             OPT_KIND_FLAG)
#define OPT_CACHE                                                                                  \
    OPT_ROW_('t', NULL, "CACHE", "cache mode of the image that is written", OPT_KIND_CACHE)
#define OPT_SRC_CACHE                                                                              \
    OPT_ROW_('T', NULL, "CACHE", "cache mode of the images that are read", OPT_KIND_CACHE)
#define OPT_SHARE                                                                                  \
    OPT_ROW_('U', "force-share", NULL, "read even while another program writes", OPT_KIND_FLAG)
#define OPT_QUIET    OPT_ROW_('q', NULL, NULL, "print errors only", OPT_KIND_FLAG)
#define OPT_PROGRESS OPT_ROW_('p', NULL, NULL, "show progress", OPT_KIND_FLAG)
#define OPT_ROW_PROGRESS_FD                                                                        \
    {                                                                                              \
        OPT_PROGRESS_FD, "progress-fd", "N", "write progress as JSON lines to descriptor N",       \
            OPT_KIND_OUTFD, "progress descriptor", 0, 65535, NULL                                  \
    }
#define OPT_ROW_OUTPUT                                                                             \
    {                                                                                              \
        OPT_OUTPUT, "output", "FORM", "human (default) or json", OPT_KIND_OUTPUT, NULL, 0, 0,      \
            "human json"                                                                           \
    }

struct cmd_text {
    const char *what; /* a command line without the program's name; an exit status */
    const char *why;
};

struct cmd_desc {
    const char *name;                /* "map"; NULL: the program itself */
    const char *summary;             /* one line, for the list of commands */
    const char *operands;            /* "FILENAME", "FILENAME [SIZE]" */
    const struct opt_desc *options;  /* ended by OPT_END */
    const struct cmd_text *examples; /* ended by a NULL `what`; at least one */
    const struct cmd_text *statuses; /* ended by a NULL `what`; NULL: 0 success, 1 failure */
};

/* ---- the result of parsing --------------------------------------------------------------- */

struct qk_secrets;

struct opt_value {
    int id;
    const char *text; /* points into argv; NULL for a flag */
    uint64_t number;  /* for SIZE and NUMBER */
};

struct opts {
    const struct cmd_desc *desc;
    struct opt_value *value; /* in the order given */
    size_t value_count;
    struct qk_secrets *secrets; /* of --object; NULL: none */
    char **operand;             /* what is left of argv, NULL-terminated */
    int operand_count;
};

/*
 * Parses argv[1..] (argv[0] is the verb). Returns -1 to go on, else the exit status of the
 * command, everything having been printed. *opts is set up in each case.
 */
int opts_parse(const struct cmd_desc *desc, int argc, char **argv, struct opts *opts);
void opts_free(struct opts *opts);
#define OPTS_CLEANUP __attribute__((cleanup(opts_free)))

bool opts_given(const struct opts *opts, int id);
/* The last value given wins, as with qemu-img; NULL / fallback when the option is not there. */
const char *opts_string(const struct opts *opts, int id);
uint64_t opts_number(const struct opts *opts, int id, uint64_t fallback);
/* The nth value of an option that may be repeated (-o, --object), from 0; NULL past the end. */
const char *opts_nth(const struct opts *opts, int id, size_t n);
/* --output=json was given. */
bool opts_json(const struct opts *opts);

/* Prints the help of one command on stdout: usage, options, examples, exit statuses. */
void opts_help(const struct cmd_desc *desc);

/* One line per spelling of each option, "VERB OPTION KIND [VALUE...]": for programs. */
void opts_list(const struct cmd_desc *desc);

/* ---- key=value lists --------------------------------------------------------------------- */

/*
 * Texts of the form "a=b,c=d", where ",," stands for one comma, taken apart into what qk_create
 * and struct qk_open_options want: a NULL-terminated array of "key=value".
 */
struct keyvals {
    char **item; /* NULL-terminated; NULL while empty */
    size_t count;
};
#define KEYVALS_CLEANUP __attribute__((cleanup(keyvals_free)))

/* Adds all items of `text`. A key without value stays as it is ("key"). False: malformed list
 * (an empty item), nothing added. */
bool keyvals_add_list(struct keyvals *list, const char *text);
/* Adds "key=value" without any escape. */
void keyvals_add_item(struct keyvals *list, const char *item);
void keyvals_add(struct keyvals *list, const char *key, const char *value);
/* Value of the last item with that key; "" for a bare key; NULL when not there. */
const char *keyvals_get(const struct keyvals *list, const char *key);
void keyvals_remove(struct keyvals *list, const char *key);
void keyvals_free(struct keyvals *list);
/* `text` asks for help: an item is "help" or "?". */
bool keyvals_wants_help(const char *text);

/*
 * Gathers each `-o` of a command, with flags completed ("x" becomes "x=on", "nox" "x=off").
 * Returns -1 to go on, or the exit status 1 after "Invalid option list: ..." was printed. *help
 * is set when one asks for help.
 */
int opts_keyvals(const struct opts *opts, int id, struct keyvals *list, bool *help);

#endif
