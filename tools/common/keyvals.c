/*
 * keyvals.c - lists of "key=value" as -o and --image-opts take them ("a=b,c=d", ",," is a comma
 * inside a value), held as the NULL-terminated array that the library wants.
 */
#include "common/options.h"
#include "common/report.h"

#include <stdlib.h>
#include <string.h>

static void append(struct keyvals *list, char *item)
{
    list->item = xrealloc(list->item, (list->count + 2) * sizeof(char *));
    list->item[list->count++] = item;
    list->item[list->count] = NULL;
}

/* Copies one item up to the comma that ends it, with ",," made one; *rest is what follows. */
static char *take_item(const char *text, const char **rest)
{
    char *item = xmalloc(strlen(text) + 1);
    size_t length = 0;
    for (; *text; text++) {
        if (*text == ',' && *++text != ',')
            break;
        item[length++] = *text;
    }
    item[length] = '\0';
    *rest = text;
    return item;
}

static bool well_formed(const char *text)
{
    size_t length = strlen(text), commas = 0;
    while (commas < length && text[length - 1 - commas] == ',')
        commas++;
    return length > 0 && text[0] != ',' && commas % 2 == 0;
}

bool keyvals_add_list(struct keyvals *list, const char *text)
{
    if (!well_formed(text))
        return false;
    while (*text)
        append(list, take_item(text, &text));
    return true;
}

void keyvals_add_item(struct keyvals *list, const char *item)
{
    append(list, xstrdup(item));
}

void keyvals_add(struct keyvals *list, const char *key, const char *value)
{
    append(list, xprintf("%s=%s", key, value));
}

static bool has_key(const char *item, const char *key)
{
    size_t length = strlen(key);
    return !strncmp(item, key, length) && (item[length] == '=' || !item[length]);
}

const char *keyvals_get(const struct keyvals *list, const char *key)
{
    for (size_t i = list->count; i-- > 0;) {
        if (has_key(list->item[i], key)) {
            const char *value = list->item[i] + strlen(key);
            return *value ? value + 1 : value;
        }
    }
    return NULL;
}

void keyvals_remove(struct keyvals *list, const char *key)
{
    size_t kept = 0;
    for (size_t i = 0; i < list->count; i++) {
        if (has_key(list->item[i], key))
            free(list->item[i]);
        else
            list->item[kept++] = list->item[i];
    }
    list->count = kept;
    if (list->item)
        list->item[kept] = NULL;
}

void keyvals_free(struct keyvals *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->item[i]);
    free(list->item);
    *list = (struct keyvals){0};
}

bool keyvals_wants_help(const char *text)
{
    KEYVALS_CLEANUP struct keyvals list = {0};
    if (!keyvals_add_list(&list, text))
        return false;
    for (size_t i = 0; i < list.count; i++) {
        if (!strcmp(list.item[i], "help") || !strcmp(list.item[i], "?"))
            return true;
    }
    return false;
}

/* As QEMU reads them: "flag" is flag=on, "noflag" is flag=off. */
static void complete_flags(struct keyvals *list)
{
    for (size_t i = 0; i < list->count; i++) {
        char *item = list->item[i];
        if (strchr(item, '='))
            continue;
        bool off = !strncmp(item, "no", 2);
        list->item[i] = xprintf("%s=%s", off ? item + 2 : item, off ? "off" : "on");
        free(item);
    }
}

int opts_keyvals(const struct opts *opts, int id, struct keyvals *list, bool *help)
{
    const char *text;
    *help = false;
    for (size_t i = 0; (text = opts_nth(opts, id, i)); i++) {
        if (!keyvals_add_list(list, text)) {
            report_error("Invalid option list: %s", text);
            return 1;
        }
        *help = *help || keyvals_wants_help(text);
    }
    if (!*help)
        complete_flags(list);
    return -1;
}
