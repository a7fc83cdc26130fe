/*
 * report.c - messages of the program and the memory helpers of the tools.
 * Relies on nothing but stdio; promises that results (stdout) and remarks (stderr) stay in the
 * order they were made, by flushing the first before the second is written.
 */
#include "common/report.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *called_name = "qcowkit";

void program_set_name(const char *name)
{
    called_name = name;
}

const char *program_name(void)
{
    return called_name;
}

void put_text(FILE *out, const char *text)
{
    if (!isatty(fileno(out))) {
        fputs(text, out);
        return;
    }
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        fputc(c != '\n' && (c < 0x20 || c == 0x7f) ? '?' : c, out);
    }
}

static void print_message(const char *kind, const char *format, va_list args)
{
    TEXT_CLEANUP char *text = NULL;
    if (vasprintf(&text, format, args) < 0)
        text = NULL;
    fflush(stdout);
    fprintf(stderr, "%s: %s", called_name, kind);
    put_text(stderr, text ? text : format);
    fputc('\n', stderr);
}

void report_error(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_message("", format, args);
    va_end(args);
}

void report_warning(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_message("warning: ", format, args);
    va_end(args);
}

const char *error_text(const struct qk_error *err)
{
    static _Thread_local char line[sizeof(err->text) + sizeof(err->file) + 128];
    const char *text = err->text[0] ? err->text : strerror(err->code);
    /* the start of the file is where any image begins: no news */
    if (err->structure[0] && err->offset && err->offset != QK_OFFSET_NONE)
        snprintf(line, sizeof(line), "%s (%s at offset %#llx%s%s)", text, err->structure,
                 (unsigned long long)err->offset, err->file[0] ? " of " : "", err->file);
    else
        snprintf(line, sizeof(line), "%s", text);
    return line;
}

void report_failure(const struct qk_error *err, const char *format, ...)
{
    TEXT_CLEANUP char *tried = NULL;
    va_list args;
    va_start(args, format);
    if (vasprintf(&tried, format, args) < 0)
        tried = NULL;
    va_end(args);
    report_error("%s: %s", tried ? tried : format, error_text(err));
}

void report_qk(const struct qk_error *err)
{
    report_error("%s", error_text(err));
}

int usage_error(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_message("", format, args);
    va_end(args);
    fprintf(stderr, "Try '%s --help' for more information\n", called_name);
    return 1;
}

void say(bool quiet, const char *format, ...)
{
    if (quiet)
        return;
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
}

static void *need(void *memory)
{
    if (!memory) {
        fprintf(stderr, "%s: %s\n", called_name, strerror(ENOMEM));
        exit(1);
    }
    return memory;
}

void *xmalloc(size_t bytes)
{
    return need(malloc(bytes ? bytes : 1));
}

void *xrealloc(void *old, size_t bytes)
{
    return need(realloc(old, bytes ? bytes : 1));
}

char *xstrdup(const char *text)
{
    return need(strdup(text));
}

char *xprintf(const char *format, ...)
{
    char *text = NULL;
    va_list args;
    va_start(args, format);
    int length = vasprintf(&text, format, args);
    va_end(args);
    return need(length < 0 ? NULL : text);
}

void text_free(char **text)
{
    free(*text);
}
