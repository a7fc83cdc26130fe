/*
 * sink.c - the words of findings, and the way to the caller. Damage often repeats itself: one flag
 * wrong in every entry of a table, one refcount in every cluster. Findings of one kind whose places
 * and numbers differ by equal steps wait until one comes that does not continue them, and go out as
 * one run; fewer than QK_RUN_LEAST go out one by one. So a run costs what one finding costs,
 * however long it is, and nothing is kept of it but its first, its last and the step. Whatever else
 * is told (another kind, a message, a loss, a step of the plan) comes after what waits
 * (sink_flush).
 */
#include "base/checked.h"
#include "check/problem.h"

#include <stdio.h>
#include <string.h>

#define RUN_MOST     (UINT64_C(1) << 30)
#define RUN_GAP_BITS (UINT64_C(1) << 30) /* between two of a run: no product of these overflows */
#define TEXT_BYTES   1600u

static const char *first_word(const struct told *t)
{
    const struct problem_info *p = &problems[t->id];
    if (t->repaired)
        return "Repairing";
    if (p->severity == QK_SEVERITY_NONE)
        return "Note:";
    return p->severity == QK_SEVERITY_LEAK ? "Leaked" : "ERROR";
}

/* How much of the disk lies behind what is damaged. */
static uint64_t guest_bytes(const struct sink *s, enum problem_id id, uint64_t guest_off)
{
    bool table = !strcmp(problems[id].structure, "L1 table") || id == PROBLEM_L2_UNREADABLE;
    if (guest_off >= s->disk_bytes)
        return 0;
    if (s->range_bytes)
        return s->range_bytes;
    return min_u64(table ? s->table_bytes : s->cluster_bytes, s->disk_bytes - guest_off);
}

/* ---- one finding ---- */

static struct qk_problem problem_of(const struct sink *s, const struct told *t, const char *text)
{
    const struct problem_info *p = &problems[t->id];
    return (struct qk_problem){
        .struct_size = sizeof(struct qk_problem),
        .number = p->number,
        .name = p->name,
        .structure = p->structure,
        .text = text,
        .explanation = p->explanation,
        .severity = p->severity,
        .repair = t->repair,
        .repaired = t->repaired,
        .file_off = t->file_off,
        .guest_off = t->guest_off,
        .expected = t->expected,
        .found = t->found,
        .snapshot = t->snapshot,
        .snapshot_name = t->snapshot_name,
        .guest_bytes = t->guest_bytes,
        .users = s->user_count ? s->users : NULL,
        .user_count = s->user_count,
        .user_total = s->user_count ? s->user_total : 0,
        .allow = t->allow,
        .bitmap = t->bitmap,
    };
}

/* The conversion behind a '%', if it is one of uint64_t; NULL: it is not. */
static const char *number_conversion(const char *at)
{
    while (*at == 'l')
        at++;
    return *at == 'u' || *at == 'x' ? at : NULL;
}

/* Numbers in a format; -1: it has other arguments, or too many. */
static int numbers_in(const char *format)
{
    int n = 0;
    while ((format = strchr(format, '%'))) {
        if (!number_conversion(++format) || ++n > QK_RUN_NUMBERS)
            return -1;
    }
    return n;
}

static size_t put_number(char *out, uint64_t value, unsigned base)
{
    char digits[20];
    size_t n = 0;
    do
        digits[n++] = "0123456789abcdef"[value % base];
    while (value /= base);
    for (size_t i = 0; i < n; i++)
        out[i] = digits[n - 1 - i];
    return n;
}

/* The text of a format with numbers only, and where in it they are. */
static void word(const struct told *t, char text[TEXT_BYTES], struct qk_run_number *number)
{
    const char *from = problems[t->id].format, *percent;
    size_t n = strlen(first_word(t));
    memcpy(text, first_word(t), n);
    for (unsigned i = 0; (percent = strchr(from, '%')); i++) {
        const char *conversion = number_conversion(percent + 1);
        memcpy(text + n, from, (size_t)(percent - from));
        n += (size_t)(percent - from);
        number[i] = (struct qk_run_number){
            .at = (unsigned)n, .base = *conversion == 'x' ? 16 : 10, .value = t->args[i]};
        number[i].width = (unsigned)put_number(text + n, t->args[i], number[i].base);
        n += number[i].width;
        from = conversion + 1;
    }
    memcpy(text + n, from, strlen(from) + 1);
}

static void tell_one(const struct sink *s, const struct told *t)
{
    char text[TEXT_BYTES];
    struct qk_run_number numbers[QK_RUN_NUMBERS] = {0};
    word(t, text, numbers);
    const struct qk_problem problem = problem_of(s, t, text);
    s->opts->on_problem(s->opts->opaque, &problem);
}

static void tell_in_words(struct sink *s, const struct told *t, va_list args)
{
    char text[TEXT_BYTES];
    int n = snprintf(text, sizeof(text), "%s", first_word(t));
    vsnprintf(text + n, sizeof(text) - (size_t)n, problems[t->id].format, args);
    const struct qk_problem problem = problem_of(s, t, text);
    s->opts->on_problem(s->opts->opaque, &problem);
}

/* ---- runs ---- */

/* The finding `n` steps behind this one. */
static struct told advance(struct told t, const struct told_step *step, uint64_t n)
{
    const uint64_t bits = t.file_bit + n * step->file_bits;
    if (t.file_off != QK_OFFSET_NONE) {
        t.file_off += bits / 8;
        t.file_bit = bits % 8;
    }
    t.guest_off += n * step->guest;
    t.found += n * step->found;
    for (unsigned i = 0; i < QK_RUN_NUMBERS; i++)
        t.args[i] += n * step->args[i];
    return t;
}

/* False: one of them cannot follow the other in a run. */
static bool gap(const struct told *a, const struct told *b, struct told_step *step)
{
    bool placed = a->file_off != QK_OFFSET_NONE, guest = a->guest_off != QK_OFFSET_NONE;
    if (a->snapshot != b->snapshot || a->bitmap != b->bitmap || a->repair != b->repair ||
        a->allow != b->allow)
        return false;
    if (a->id != b->id || a->repaired != b->repaired || a->guest_bytes != b->guest_bytes ||
        a->expected != b->expected || placed != (b->file_off != QK_OFFSET_NONE) ||
        guest != (b->guest_off != QK_OFFSET_NONE) ||
        (placed && (b->file_off < a->file_off || b->file_off - a->file_off > RUN_GAP_BITS / 16)))
        return false;
    *step = (struct told_step){
        .file_bits = placed ? (b->file_off - a->file_off) * 8 + b->file_bit - a->file_bit : 0,
        .guest = b->guest_off - a->guest_off,
        .found = b->found - a->found,
    };
    for (unsigned i = 0; i < QK_RUN_NUMBERS; i++)
        step->args[i] = b->args[i] - a->args[i];
    return step->file_bits <= RUN_GAP_BITS;
}

static bool same_step(const struct told_step *a, const struct told_step *b)
{
    return !memcmp(a, b, sizeof(*a));
}

/* Adds a run behind what waits, if it continues that. */
static bool continues(struct told_run *have, const struct told_run *more)
{
    struct told_step step;
    if (!have->count || have->count + more->count > RUN_MOST ||
        !gap(&have->last, &more->first, &step) ||
        (have->count > 1 && !same_step(&step, &have->step)) ||
        (more->count > 1 && !same_step(&step, &more->step)))
        return false;
    have->step = step;
    have->last = more->last;
    have->count += more->count;
    return true;
}

/* Which numbers differ, of those of the text. */
static void describe(const struct told_run *r, struct qk_problem_run *run,
                     const struct qk_run_number *numbers)
{
    *run = (struct qk_problem_run){
        .struct_size = sizeof(*run),
        .count = r->count,
        .file_bits_step = r->step.file_bits,
        .file_bit = r->first.file_bit,
        .guest_step = r->step.guest,
        .found_step = r->step.found,
    };
    for (unsigned i = 0; i < QK_RUN_NUMBERS; i++) {
        if (!r->step.args[i])
            continue;
        run->numbers[run->number_count] = numbers[i];
        run->numbers[run->number_count++].step = r->step.args[i];
    }
}

static bool tell_as_run(const struct sink *s, const struct told_run *r)
{
    char text[TEXT_BYTES];
    struct qk_run_number numbers[QK_RUN_NUMBERS] = {0};
    struct qk_problem_run run;
    if (r->count < QK_RUN_LEAST || !s->opts->on_run)
        return false;
    word(&r->first, text, numbers);
    describe(r, &run, numbers);
    const struct qk_problem first = problem_of(s, &r->first, text);
    return s->opts->on_run(s->opts->opaque, &first, &run);
}

static void tell_all(const struct sink *s, const struct told_run *r)
{
    if (tell_as_run(s, r))
        return;
    for (uint64_t i = 0; i < r->count; i++) {
        const struct told t = advance(r->first, &r->step, i);
        tell_one(s, &t);
    }
}

/* What waits has no users, whoever uses the cluster that is looked at by now. */
void sink_flush(struct sink *s)
{
    const unsigned users = s->user_count;
    s->user_count = 0;
    if (s->waiting.count)
        tell_all(s, &s->waiting);
    s->waiting.count = 0;
    s->user_count = users;
}

void sink_tell(struct sink *s, const struct finding *f, bool repaired, const struct sink_run *run,
               va_list args)
{
    if (!s->opts->on_problem)
        return;
    const int numbers = numbers_in(problems[f->id].format);
    uint64_t guest_off = f->guest_off == QK_OFFSET_NONE ? s->guest_off : f->guest_off;
    struct told_run r = {.count = run ? run->clusters : 1,
                         .first = {.id = f->id,
                                   .repaired = repaired,
                                   .file_off = f->file_off,
                                   .guest_off = guest_off,
                                   .guest_bytes = guest_bytes(s, f->id, guest_off),
                                   .expected = f->expected,
                                   .found = f->found,
                                   .snapshot = s->snapshot,
                                   .snapshot_name = s->snapshot_name,
                                   .bitmap = s->bitmap}};
    r.first.allow = problem_choices(s, f->id, &r.first.repair);
    if (numbers < 0) {
        sink_flush(s);
        tell_in_words(s, &r.first, args);
        return;
    }
    for (int i = 0; i < numbers; i++)
        r.first.args[i] = va_arg(args, uint64_t);
    if (run && f->file_off != QK_OFFSET_NONE) {
        r.first.file_bit = run->cluster * s->refcount_bits % 8;
        r.step.file_bits = s->refcount_bits;
    }
    r.step.args[0] = run != NULL;
    r.last = advance(r.first, &r.step, r.count - 1);
    if (!s->user_count && continues(&s->waiting, &r))
        return;
    sink_flush(s);
    if (s->user_count)
        tell_all(s, &r);
    else
        s->waiting = r;
}
