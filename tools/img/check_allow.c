/*
 * check_allow.c - the choices that `--allow` takes (check_allow.h).
 */
#include "img/check_allow.h"
#include "common/report.h"

#include <string.h>

const struct check_choice check_choices[CHECK_CHOICES] = {
    {"header", QK_ALLOW_HEADER, "set header fields to what fits the rest of the file"},
    {"entries", QK_ALLOW_ENTRIES,
     "clear table entries that lead nowhere, and take impossible bits out of others"},
    {"snapshots", QK_ALLOW_SNAPSHOTS, "drop the snapshots that cannot be used"},
    {"bitmaps", QK_ALLOW_BITMAPS, "drop the bitmaps that cannot be used"},
    {"copies", QK_ALLOW_COPIES, "give guest clusters that share a cluster one each"},
};

static unsigned word_bits(const char *word, size_t len)
{
    for (size_t i = 0; i < CHECK_CHOICES; i++) {
        if (strlen(check_choices[i].name) == len && !strncmp(check_choices[i].name, word, len))
            return check_choices[i].bit;
    }
    return len == strlen("lossy") && !strncmp(word, "lossy", len) ? ~0u : 0;
}

int check_allow_option(const struct opts *opts, int id, unsigned *allow)
{
    const char *at;
    for (size_t n = 0; (at = opts_nth(opts, id, n)); n++) {
        for (size_t len; *at; at += len + (at[len] == ',')) {
            len = strcspn(at, ",");
            unsigned bits = word_bits(at, len);
            if (!bits)
                return usage_error("Unknown word in --allow: %.*s", (int)len, at);
            *allow |= bits;
        }
    }
    return -1;
}

char *check_allow_names(unsigned bits)
{
    char *list = xstrdup(bits == ~0u ? "lossy" : "");
    for (size_t i = 0; i < CHECK_CHOICES; i++) {
        if (bits == ~0u || !(bits & check_choices[i].bit))
            continue;
        char *longer = xprintf("%s%s%s", list, *list ? "," : "", check_choices[i].name);
        text_free(&list);
        list = longer;
    }
    return list;
}
