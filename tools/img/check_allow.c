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

static unsigned word_bits(const char *word, size_t len)
{
    for (size_t i = 0; i < CHECK_CHOICES; i++) {
        if (strlen(check_choices[i].name) == len && !strncmp(check_choices[i].name, word, len))
            return check_choices[i].bit;
    }
    return len == strlen("lossy") && !strncmp(word, "lossy", len) ? LOSSY : 0;
}

char *check_choice_count(const struct check_choice *choice, uint64_t n)
{
    const char *what = choice->bit == QK_ALLOW_ROLLBACK ? "sound snapshot" : "finding";
    return xprintf("%" PRIu64 " %s%s", n, what, n == 1 ? "" : "s");
}

/* "rollback=monday" */
static bool word_snapshot(const char *word, size_t len, char **rollback)
{
    const size_t prefix = strlen("rollback=");
    if (len <= prefix || strncmp(word, "rollback=", prefix) != 0)
        return false;
    text_free(rollback);
    *rollback = xprintf("%.*s", (int)(len - prefix), word + prefix);
    return true;
}

int check_allow_option(const struct opts *opts, int id, unsigned *allow, char **rollback)
{
    const char *at;
    for (size_t n = 0; (at = opts_nth(opts, id, n)); n++) {
        for (size_t len; *at; at += len + (at[len] == ',')) {
            len = strcspn(at, ",");
            unsigned bits =
                word_snapshot(at, len, rollback) ? QK_ALLOW_ROLLBACK : word_bits(at, len);
            if (!bits)
                return usage_error("Unknown word in --allow: %.*s", (int)len, at);
            *allow |= bits;
        }
    }
    return -1;
}

char *check_allow_names(unsigned bits, const char *rollback)
{
    bool lossy = (bits & LOSSY) == LOSSY;
    char *list = xstrdup(lossy ? "lossy" : "");
    for (size_t i = 0; i < CHECK_CHOICES; i++) {
        if (!(bits & check_choices[i].bit) || (lossy && (LOSSY & check_choices[i].bit)))
            continue;
        const char *to = check_choices[i].bit == QK_ALLOW_ROLLBACK ? rollback : NULL;
        char *longer = xprintf("%s%s%s%s%s", list, *list ? "," : "", check_choices[i].name,
                               to ? "=" : "", to ? to : "");
        text_free(&list);
        list = longer;
    }
    return list;
}
