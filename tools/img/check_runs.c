/*
 * check_runs.c - the findings of a run, one by one (check_runs.h). Millions of lines take no longer
 * than it takes to write them.
 */
#include "img/check_runs.h"
#include "common/report.h"
#include "common/units.h"

#include <stdlib.h>
#include <string.h>

#define LINES_MOST 1000u

bool run_too_long(const struct qk_problem *first, const struct qk_problem_run *run)
{
    return strlen(first->text) + (size_t)run->number_count * DIGITS_MOST + 2 > RUN_TEXT_BYTES;
}

size_t run_text(const struct qk_problem *first, const struct qk_problem_run *run, uint64_t i,
                char text[RUN_TEXT_BYTES])
{
    size_t n = 0, from = 0;
    for (unsigned k = 0; k < run->number_count; k++) {
        const struct qk_run_number *number = &run->numbers[k];
        memcpy(text + n, first->text + from, number->at - from);
        n += number->at - from;
        n += put_digits(text + n, number->value + i * number->step, number->base);
        from = number->at + number->width;
    }
    size_t rest = strlen(first->text + from);
    memcpy(text + n, first->text + from, rest + 1);
    return n + rest;
}

/* Numbers have become longer, and so moved what is behind them. */
static void move_numbers(struct qk_problem_run *run, uint64_t i)
{
    char digits[DIGITS_MOST];
    unsigned moved = 0;
    for (unsigned k = 0; k < run->number_count; k++) {
        struct qk_run_number *number = &run->numbers[k];
        unsigned old = number->width;
        number->at += moved;
        number->value += i * number->step;
        number->width = (unsigned)put_digits(digits, number->value, number->base);
        moved += number->width - old;
    }
}

void run_part(const struct qk_problem *first, const struct qk_problem_run *run, uint64_t i,
              uint64_t count, struct run_part *part)
{
    const uint64_t bits = run->file_bit + i * run->file_bits_step;
    run_text(first, run, i, part->text);
    part->first = *first;
    part->first.text = part->text;
    part->run = *run;
    part->run.count = count;
    move_numbers(&part->run, i);
    if (first->file_off != QK_OFFSET_NONE) {
        part->first.file_off += bits / 8;
        part->run.file_bit = bits % 8;
    }
    if (first->guest_off != QK_OFFSET_NONE)
        part->first.guest_off += i * run->guest_step;
    part->first.found += i * run->found_step;
}

/* Adds to a number in its digits. False: it has too few of them. */
static bool add_digits(char *digits, unsigned width, uint64_t step, bool hex)
{
    for (unsigned i = width; i-- && step;) {
        step += (uint64_t)(digits[i] <= '9' ? digits[i] - '0' : digits[i] - 'a' + 10);
        digits[i] = "0123456789abcdef"[hex ? step % 16 : step % 10];
        step = hex ? step / 16 : step / 10;
    }
    return !step;
}

/* False: a number has too few digits for that, and the line is to be made anew. */
static bool count_up(const struct qk_problem_run *run, char *line)
{
    for (unsigned k = 0; k < run->number_count; k++) {
        const struct qk_run_number *n = &run->numbers[k];
        if (n->step > UINT32_MAX || !add_digits(line + n->at, n->width, n->step, n->base == 16))
            return false;
    }
    return true;
}

/* Lines of one length, each counted up from the one before. */
struct lines {
    char *bytes; /* room for LINES_MOST */
    size_t length;
    uint64_t count;
    struct qk_problem_run leap; /* from each of them to the one that is LINES_MOST behind it */
};

/* The last digits of a number, which LINES_MOST steps leave as they are, need not be looked at. */
static void make_leap(struct lines *l, const struct qk_problem_run *now)
{
    l->leap = *now;
    for (unsigned k = 0; k < now->number_count; k++) {
        struct qk_run_number *n = &l->leap.numbers[k];
        n->step *= LINES_MOST;
        for (; n->width && n->step && n->step % n->base == 0; n->width--)
            n->step /= n->base;
    }
}

static void make_lines(struct lines *l, const struct qk_problem *first,
                       const struct qk_problem_run *run, uint64_t i)
{
    struct qk_problem_run now = *run;
    char *line = l->bytes;
    move_numbers(&now, i);
    l->length = run_text(first, run, i, line) + 1;
    line[l->length - 1] = '\n';
    for (l->count = 1; l->count < LINES_MOST && l->count < run->count - i; l->count++) {
        memcpy(line + l->length, line, l->length);
        line += l->length;
        if (!count_up(&now, line))
            break;
    }
    make_leap(l, &now);
}

/* The lines behind them, in their place. False: those have to be made. */
static bool leap_lines(struct lines *l, uint64_t left)
{
    if (l->count < LINES_MOST || left < LINES_MOST)
        return false;
    for (uint64_t i = 0; i < l->count; i++) {
        if (!count_up(&l->leap, l->bytes + i * l->length))
            return false;
    }
    return true;
}

void run_write_lines(const struct qk_problem *first, const struct qk_problem_run *run, FILE *out)
{
    struct lines l = {.bytes = xmalloc(LINES_MOST * RUN_TEXT_BYTES)};
    for (uint64_t i = 0; i < run->count; i += l.count) {
        if (!leap_lines(&l, run->count - i))
            make_lines(&l, first, run, i);
        fwrite(l.bytes, l.length, l.count, out);
    }
    free(l.bytes);
}
