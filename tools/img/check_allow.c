/*
 * check_allow.c - the choices that `--allow` takes (check_allow.h).
 */
#include "img/check_allow.h"
#include "common/report.h"

#include <inttypes.h>
#include <string.h>

const struct check_choice check_choices[CHECK_CHOICES] = {
    {"header", QK_ALLOW_HEADER, "set header fields to what fits the rest of the file"},
    {"entries", QK_ALLOW_ENTRIES,
     "clear table entries that lead nowhere, and take impossible bits out of others"},
    {"snapshots", QK_ALLOW_SNAPSHOTS, "drop snapshots that cannot be used, take in uncounted ones"},
    {"bitmaps", QK_ALLOW_BITMAPS, "drop the bitmaps that cannot be used"},
    {"copies", QK_ALLOW_COPIES, "give guest clusters that share a cluster one each"},
    {"rollback", QK_ALLOW_ROLLBACK,
     "bring the disk back to the newest of them, which gives up what was written since"},
    {"l1", QK_ALLOW_L1,
     "give up what is lost of an L1 table: the disk is empty there, whatever it held"},
};

/* These two give up a disk, or most of it: each has to be asked for by its own name. */
#define LOSSY (~(unsigned)(QK_ALLOW_ROLLBACK | QK_ALLOW_L1))

const struct check_choice *check_choice_at(size_t i, unsigned needed)
{
    static const unsigned char few[CHECK_CHOICES] = {0, 1, 2, 3, 4, 5, 6};
    static const unsigned char lost[CHECK_CHOICES] = {0, 5, 6, 1, 2, 3, 4};
    return &check_choices[needed & QK_ALLOW_L1 ? lost[i] : few[i]];
}

static unsigned word_bits(const char *word)
{
    for (size_t i = 0; i < CHECK_CHOICES; i++) {
        if (!strcmp(check_choices[i].name, word))
            return check_choices[i].bit;
    }
    return !strcmp(word, "lossy") ? LOSSY : 0;
}

char *check_choice_count(const struct check_choice *choice, uint64_t n)
{
    const char *what = choice->bit == QK_ALLOW_ROLLBACK ? "sound snapshot" : "finding";
    return xprintf("%" PRIu64 " %s%s", n, what, n == 1 ? "" : "s");
}

/* "rollback=monday" */
static bool word_snapshot(const char *word, char **rollback)
{
    const size_t prefix = strlen("rollback=");
    if (strncmp(word, "rollback=", prefix) != 0 || !word[prefix])
        return false;
    text_free(rollback);
    *rollback = xstrdup(word + prefix);
    return true;
}

int check_allow_option(const struct opts *opts, int id, unsigned *allow, char **rollback)
{
    KEYVALS_CLEANUP struct keyvals words = {0};
    const char *list;
    for (size_t n = 0; (list = opts_nth(opts, id, n)); n++) {
        if (!keyvals_add_list(&words, list))
            return usage_error("Not a list of words for --allow: '%s'", list);
    }
    for (size_t i = 0; i < words.count; i++) {
        const char *word = words.item[i];
        unsigned bits = word_snapshot(word, rollback) ? QK_ALLOW_ROLLBACK : word_bits(word);
        if (!bits)
            return usage_error("Unknown word in --allow: %s", word);
        *allow |= bits;
    }
    return -1;
}

/* A comma ends a word, and stands for one in a word when it is doubled. */
static char *doubled_commas(const char *text)
{
    char *out = xmalloc(2 * strlen(text) + 1);
    size_t n = 0;
    for (; *text; text++) {
        out[n++] = *text;
        if (*text == ',')
            out[n++] = ',';
    }
    out[n] = '\0';
    return out;
}

char *check_allow_names(unsigned bits, const char *rollback)
{
    bool lossy = (bits & LOSSY) == LOSSY;
    TEXT_CLEANUP char *snapshot = rollback ? doubled_commas(rollback) : NULL;
    char *list = xstrdup(lossy ? "lossy" : "");
    for (size_t i = 0; i < CHECK_CHOICES; i++) {
        if (!(bits & check_choices[i].bit) || (lossy && (LOSSY & check_choices[i].bit)))
            continue;
        const char *to = check_choices[i].bit == QK_ALLOW_ROLLBACK ? snapshot : NULL;
        char *longer = xprintf("%s%s%s%s%s", list, *list ? "," : "", check_choices[i].name,
                               to ? "=" : "", to ? to : "");
        text_free(&list);
        list = longer;
    }
    return list;
}
