/*
 * report.h - what the program says besides its results: errors and warnings on stderr with the
 * name it was called by in front, in the words of qemu-img, and quiet-able remarks on stdout.
 */
#ifndef TOOLS_COMMON_REPORT_H
#define TOOLS_COMMON_REPORT_H

#include "qcowkit.h"

#include <stdio.h>

/* The name in front of messages: "qemu-img", "qemu-io", "qcowkit". */
void program_set_name(const char *name);
const char *program_name(void);

/* "qemu-img: TEXT\n" on stderr. */
void report_error(const char *format, ...) QK_PRINTF(1, 2);
/* "qemu-img: warning: TEXT\n" on stderr. */
void report_warning(const char *format, ...) QK_PRINTF(1, 2);
/* "qemu-img: TEXT: <the error>\n": what was tried and why it failed. */
void report_failure(const struct qk_error *err, const char *format, ...) QK_PRINTF(2, 3);
/* "qemu-img: <the error>\n", nothing in front. */
void report_qk(const struct qk_error *err);
/* The error as one line, in qemu's words. Valid until the next call in this thread. */
const char *error_text(const struct qk_error *err);

/*
 * Prints a text that may hold names from an image. On a terminal, control characters other than
 * newlines come out as '?': a name must not steer the terminal.
 */
void put_text(FILE *out, const char *text);

/* A wrong command line: the text and "Try 'qemu-img --help' for more information". Returns 1. */
int usage_error(const char *format, ...) QK_PRINTF(1, 2);

/* printf on stdout unless quiet. */
void say(bool quiet, const char *format, ...) QK_PRINTF(2, 3);

/* Memory for the tools: these end the program with a message when there is none. */
void *xmalloc(size_t bytes);
void *xrealloc(void *old, size_t bytes);
char *xstrdup(const char *text);
char *xprintf(const char *format, ...) QK_PRINTF(1, 2);

/* free() for a char * with the cleanup attribute. */
void text_free(char **text);
#define TEXT_CLEANUP __attribute__((cleanup(text_free)))

#endif
