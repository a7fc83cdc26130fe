/*
 * open.h - opening an image the way the options of a command describe it: format, --image-opts,
 * cache mode, -U, secrets; with qemu-img's messages on failure.
 */
#ifndef TOOLS_COMMON_OPEN_H
#define TOOLS_COMMON_OPEN_H

#include "common/options.h"
#include "qcowkit.h"

struct image_request {
    const char *format;                      /* -f; NULL: probe */
    const char *snapshot;                    /* -l: id or name; NULL: the active state */
    const char *snapshot_id, *snapshot_name; /* the same, both at once */
    const char *const *options;              /* further "key=value", NULL-terminated; or NULL */
    unsigned flags;                          /* of enum qk_open_flag */
    bool image_opts;                         /* the name is a list of options */
    bool quiet;
    const struct qk_secrets *secrets; /* of --object; or NULL */
};

/* The modes of -t and -T -> QK_OPEN_* flags. False: unknown mode (nothing printed). */
bool cache_mode_flags(const char *mode, unsigned *flags);

/* What the shared rows -f, --image-opts, -U and -q say (open_image judges it). Cache modes are the
 * command's business, see cache_mode_option(). */
struct image_request image_request_from(const struct opts *opts);

/*
 * The beginning of a command that takes one image: parses its line, with the image's name as the
 * only operand. Returns -1 to go on, or the exit status (the error printed).
 */
int one_image_from(const struct cmd_desc *desc, int argc, char **argv, struct opts *opts,
                   struct image_request *request);

/*
 * Adds the flags of cache option `id` ('t' or 'T', `fallback` when it is not given) to *flags.
 * Returns -1 to go on, or 1 after printing "Invalid source cache option: ..." ('T') or
 * "Invalid cache option: ..." ('t').
 */
int cache_mode_option(const struct opts *opts, int id, const char *fallback, unsigned *flags);

/*
 * Opens `name` (a file name or, with image_opts, options). On failure prints
 * "Could not open 'NAME': ..." and returns a negative errno.
 */
int open_image(const char *name, const struct image_request *request, struct qk_disk **out);

/* "key" becomes "key=on", with a warning. */
void keyvals_complete(struct keyvals *list);
/* For an image opened for writing: warns when it is only taken for raw by probing. */
void warn_probed_raw(struct qk_disk *disk);

/* Closes for programs that end: a failure to make the last writes stable is printed. 0 or 1. */
int close_image(struct qk_disk *disk);
/* For the cleanup attribute, on paths where nothing was written or the error is known. */
void drop_image(struct qk_disk **disk);
#define IMAGE_CLEANUP __attribute__((cleanup(drop_image)))

#endif
