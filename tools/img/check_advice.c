/*
 * check_advice.c - what comes next after a check (check_advice.h).
 */
#include "img/check_advice.h"
#include "common/report.h"
#include "img/check_allow.h"

#include <inttypes.h>
#include <string.h>

char *shell_word(const char *text)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "_-./+:@%=,";
    size_t len = strlen(text), n = 0;
    if (len && strspn(text, plain) == len && *text != '-')
        return xstrdup(text);
    char *word = xmalloc(4 * len + 5);
    if (*text == '-') {
        word[n++] = '.';
        word[n++] = '/';
    }
    word[n++] = '\'';
    for (; *text; text++) {
        if (*text == '\'') {
            memcpy(word + n, "'\\'", 3);
            n += 3;
        }
        word[n++] = *text;
    }
    word[n++] = '\'';
    word[n] = '\0';
    return word;
}

/* One command and what it is for, under a heading that is printed once. */
static void offer(const struct check_advice *a, bool *begun, const char *options, const char *why)
{
    TEXT_CLEANUP char *name = shell_word(a->name);
    TEXT_CLEANUP char *line = xprintf("  %s check %s%s%s%s %s\n      %s\n", program_name(), options,
                                      a->image_opts ? " --image-opts" : "", a->format ? " -f " : "",
                                      a->format ? a->format : "", name, why);
    if (!*begun)
        printf("\nWhat you can do next:\n");
    *begun = true;
    put_text(stdout, line);
}

static void offer_repair(const struct check_advice *a, bool *begun, bool all)
{
    TEXT_CLEANUP char *names = check_allow_names(a->allow, a->rollback);
    TEXT_CLEANUP char *word = shell_word(names);
    TEXT_CLEANUP char *options =
        xprintf("-r %s%s%s%s", all ? "all" : "leaks", a->allow ? " --allow " : "",
                a->allow ? word : "", a->undo_beside ? "" : " --undo FILE");
    bool part = a->findings->needed || a->findings->stuck;
    const char *why = a->plan ? "do this; `undo` can take it back"
                      : !all  ? "free what is leaked; `undo` can take that back"
                      : part  ? "repair what needs no choice; `undo` can take that back"
                              : "repair it; `undo` can take that back";
    offer(a, begun, options, why);
}

static void offer_choices(const struct check_advice *a, bool *begun)
{
    const struct check_findings *f = a->findings;
    unsigned offered = a->allow;
    for (size_t i = 0; i < CHECK_CHOICES; i++) {
        const struct check_choice *c = check_choice_at(i, f->needed);
        const uint64_t n = f->needing[c - check_choices];
        const unsigned bits = f->together[c - check_choices];
        if (!(f->needed & c->bit) || !(bits & ~offered))
            continue;
        offered |= bits;
        TEXT_CLEANUP char *names = check_allow_names(bits, NULL);
        TEXT_CLEANUP char *options = xprintf("--plan --allow %s", names);
        TEXT_CLEANUP char *count = check_choice_count(c, n);
        TEXT_CLEANUP char *why =
            xprintf("%s need%s your leave: %s; this tells what would be given up", count,
                    n == 1 ? "s" : "", c->does);
        offer(a, begun, options, why);
    }
}

static void print_notes(const struct check_advice *a)
{
    const struct check_findings *f = a->findings;
    if (a->plan && f->lost_bytes)
        printf("\nIn all, %" PRIu64 " bytes of the guest would be given up.\n", f->lost_bytes);
    else if (a->plan && f->steps && !f->lost_things)
        printf("\nNothing would be given up.\n");
    if (a->result->leaks && a->result->leaks_kept)
        printf("\nLeaked clusters may belong to what is damaged: a repair keeps them until that is "
               "repaired.\n");
    if (f->unreadable)
        printf(
            "\nWhat cannot be read cannot be repaired; `%s convert --salvage` copies the rest.\n",
            program_name());
}

void check_advice_print(const struct check_advice *a)
{
    const struct check_findings *f = a->findings;
    bool begun = false, leaks = f->safe_leaks && !a->result->leaks_kept;
    bool look = !a->fix, safe = f->safe_errors || leaks;
    print_notes(a);
    if (look && !f->explain && (safe || f->needed))
        offer(a, &begun, "--explain", "what each finding means, and what it costs");
    if (look && safe)
        offer(a, &begun, "--plan", "what a repair would do, step by step; nothing is written");
    if (a->plan ? f->steps != 0 : look && safe)
        offer_repair(a, &begun, a->plan ? a->fix & QK_FIX_ERRORS : f->safe_errors != 0);
    offer_choices(a, &begun);
    if (begun && a->objects)
        printf("\nEach of these takes the same --object, too, which is not repeated here.\n");
}
