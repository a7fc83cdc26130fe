/*
 * create_options.h - what the verbs that make an image (create, convert) share: `-o help`, and the
 * backing file's options among those of -o.
 */
#ifndef TOOLS_IMG_CREATE_OPTIONS_H
#define TOOLS_IMG_CREATE_OPTIONS_H

#include "common/options.h"

/* Prints what `-o` takes for a format; with a file name also what the file takes. 0 or 1. */
int create_show_options(const char *filename, const char *format);

/* Prints what `amend -o` takes for a format. 0 or 1. */
int amend_show_options(const char *format);

struct create_backing {
    const char *format;             /* of the new image */
    const char *file, *file_format; /* -b/-B and -F; NULL: not given */
    const char *prefix;             /* of messages */
};

/* Puts a backing file among the options, when the format knows such a thing. -1 to go on, or 1
 * with the error printed. */
int create_add_backing(struct keyvals *list, const struct create_backing *backing);

#endif
