/*
 * create_options.c - see create_options.h. The options themselves are the library's
 * (qk_create_options).
 */
#include "img/create_options.h"
#include "common/report.h"
#include "qcowkit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Options of the file itself, which any format that lives in a file takes too. */
static const struct qk_option_desc file_options[] = {
    {"extent_size_hint", "size", "Extent size hint for the image file, 0 to disable", NULL, false},
    {"nocow", "bool (on/off)", "Turn off copy-on-write (valid only on btrfs)", NULL, false},
    {"preallocation", "str", "Preallocation mode (allowed values: off, falloc, full)", NULL, false},
};

static const struct qk_option_desc *find_option(const struct qk_option_desc *list, size_t count,
                                                const char *name, size_t length)
{
    for (size_t i = 0; i < count; i++) {
        if (strlen(list[i].name) == length && !strncmp(list[i].name, name, length))
            return &list[i];
    }
    return NULL;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct qk_option_desc *)a)->name,
                  ((const struct qk_option_desc *)b)->name);
}

static void print_options(struct qk_option_desc *list, size_t count)
{
    qsort(list, count, sizeof(*list), by_name);
    for (size_t i = 0; i < count; i++) {
        TEXT_CLEANUP char *left = xprintf("  %s=<%s>", list[i].name, list[i].type);
        printf("%-24s - %s", left, list[i].help);
        if (list[i].default_text)
            printf(" (default: %s)", list[i].default_text);
        putchar('\n');
    }
}

/* With a file name the options of the file come in, as they could be given too. */
int create_show_options(const char *filename, const char *format)
{
    size_t count, extra = sizeof(file_options) / sizeof(*file_options);
    const struct qk_option_desc *own = qk_create_options(format, &count);
    if (!own) {
        report_error("Unknown file format '%s'", format);
        return 1;
    }
    struct qk_option_desc *list = xmalloc((count + extra) * sizeof(*list));
    memcpy(list, own, count * sizeof(*list));
    size_t total = count;
    for (size_t i = 0; filename && i < extra; i++) {
        if (!find_option(own, count, file_options[i].name, strlen(file_options[i].name)))
            list[total++] = file_options[i];
    }
    if (filename)
        printf("Supported options:\n");
    else
        printf("Supported %s options:\n", format);
    print_options(list, total);
    free(list);
    if (!filename)
        printf("\nThe protocol level may support further options.\n"
               "Specify the target filename to include those options.\n");
    return 0;
}

int amend_show_options(const char *format)
{
    size_t count;
    const struct qk_option_desc *own = qk_amend_options(format, &count);
    if (!own) {
        size_t unused;
        report_error(qk_create_options(format, &unused)
                         ? "Format driver '%s' does not support option amendment"
                         : "Unknown file format '%s'",
                     format);
        return 1;
    }
    struct qk_option_desc *list = xmalloc(count * sizeof(*list));
    memcpy(list, own, count * sizeof(*list));
    printf("Amend options for '%s':\n", format);
    print_options(list, count);
    free(list);
    return 0;
}

static bool format_takes(const char *format, const char *option)
{
    size_t count;
    const struct qk_option_desc *own = qk_create_options(format, &count);
    return own && find_option(own, count, option, strlen(option));
}

int create_add_backing(struct keyvals *list, const struct create_backing *backing)
{
    static const struct {
        const char *key, *noun;
    } option[] = {{"backing_file", "file"}, {"backing_fmt", "file format"}};
    const char *value[] = {backing->file, backing->file_format};
    for (size_t i = 0; i < 2; i++) {
        if (!value[i])
            continue;
        if (qk_create_options(backing->format, &(size_t){0}) &&
            !format_takes(backing->format, option[i].key)) {
            report_error("%sBacking %s not supported for file format '%s'", backing->prefix,
                         option[i].noun, backing->format);
            return 1;
        }
        keyvals_remove(list, option[i].key);
        keyvals_add(list, option[i].key, value[i]);
    }
    return -1;
}
