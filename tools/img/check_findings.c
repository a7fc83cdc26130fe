/*
 * check_findings.c - findings as lines on stderr, each by itself or many at once
 * (check_findings.h).
 */
#include "img/check_findings.h"
#include "common/report.h"
#include "img/check_runs.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What a repair does about it, and what it is called. A note of what no repair can change has said
 * all. */
static void write_repair(FILE *out, const struct qk_problem *p)
{
    TEXT_CLEANUP char *names = check_allow_names(p->allow, NULL);
    if (p->severity == QK_SEVERITY_NONE && p->repair == QK_REPAIR_NONE)
        return;
    fputs("    Repair: ", out);
    switch (p->repair) {
    case QK_REPAIR_SAFE:
        fputs(p->severity == QK_SEVERITY_LEAK
                  ? "`-r leaks` or `-r all` corrects it without loss, once nothing is damaged that "
                    "may own the cluster"
                  : "`-r all` repairs it without loss",
              out);
        if (p->allow && p->user_count > 1)
            fprintf(out, "; with `--allow %s` guest clusters that share it get one each", names);
        break;
    case QK_REPAIR_LOSSY:
        fprintf(out, "only `-r all --allow %s`, which gives up what is damaged", names);
        break;
    case QK_REPAIR_ASK:
        if (p->allow)
            fprintf(out, "only `-r all --allow %s`: it is a choice, which `-r` alone never makes",
                    names);
        else
            fputs("nothing that `-r` can do or choose settles it as things are", out);
        break;
    case QK_REPAIR_NONE:
        fputs("it cannot be repaired in the image", out);
        break;
    }
    fputs(".\n", out);
}

static void write_user(FILE *out, const struct qk_cluster_user *u)
{
    fprintf(out, "      used by: %s at offset 0x%" PRIx64, u->structure, u->file_off);
    if (u->guest_off != QK_OFFSET_NONE)
        fprintf(out, ", guest offset 0x%" PRIx64, u->guest_off);
    if (u->snapshot)
        fprintf(out, ", snapshot %s", u->snapshot);
    fputc('\n', out);
}

/* Of a run, the place of its last finding too. */
static void write_offsets(FILE *out, const char *what, uint64_t first, uint64_t last)
{
    if (first == QK_OFFSET_NONE)
        return;
    fprintf(out, "%s%s 0x%" PRIx64, what, first == last ? "" : "s", first);
    if (first != last)
        fprintf(out, " to 0x%" PRIx64, last);
}

static void write_place(FILE *out, const struct qk_problem *p, const struct qk_problem *last,
                        uint64_t findings)
{
    fprintf(out, "    [%" PRIu32 "] %s in the %s", p->number, p->name, p->structure);
    write_offsets(out, " at offset", p->file_off, last->file_off);
    write_offsets(out, ", guest offset", p->guest_off, last->guest_off);
    if (p->snapshot)
        fprintf(out, ", snapshot %s (%s)", p->snapshot, p->snapshot_name ? p->snapshot_name : "");
    if (p->bitmap)
        fprintf(out, ", bitmap %s", p->bitmap);
    if (findings > 1)
        fprintf(out, ", %" PRIu64 " times", findings);
    fputc('\n', out);
    for (unsigned i = 0; i < p->user_count; i++)
        write_user(out, &p->users[i]);
    if (p->user_total > p->user_count && p->user_count)
        fprintf(out, "      %" PRIu64 " references in all\n", p->user_total);
    bool lossy = p->repair == QK_REPAIR_LOSSY || p->repair == QK_REPAIR_NONE;
    if (!lossy || !p->guest_bytes)
        return;
    fprintf(out, "      at stake: ");
    if (findings > 1)
        fprintf(out, "%" PRIu64 " times %" PRIu64 " of the ", findings, p->guest_bytes);
    fprintf(out, "guest bytes 0x%" PRIx64 " to 0x%" PRIx64 "\n", p->guest_off,
            last->guest_off + last->guest_bytes - 1);
}

static void write_explained(struct check_findings *f, FILE *out, const struct qk_problem *p,
                            const struct qk_problem_run *run)
{
    struct run_part last = {.first = *p};
    if (run)
        run_part(p, run, run->count - 1, 1, &last);
    write_place(out, p, &last.first, run ? run->count : 1);
    if (p->number >= MAX_EXPLAINED || f->explained[p->number])
        return;
    f->explained[p->number] = true;
    fprintf(out, "    %s\n", p->explanation);
    write_repair(out, p);
}

void findings_recount(struct check_findings *f)
{
    f->safe_leaks = f->safe_errors = f->unreadable = f->stuck = f->lost_bytes = 0;
    f->needed = f->steps = f->last_epoch = f->losses = 0;
    f->lost_things = false;
    memset(f->needing, 0, sizeof(f->needing));
}

/* A snapshot that the disk could go back to: no damage, but a choice. */
#define SNAPSHOT_SOUND 82u

static void count(struct check_findings *f, const struct qk_problem *p, uint64_t n)
{
    bool choice = p->number == SNAPSHOT_SOUND || p->repair == QK_REPAIR_LOSSY;
    if (p->repaired || (p->severity == QK_SEVERITY_NONE && !choice))
        return;
    if (p->repair == QK_REPAIR_SAFE && p->severity == QK_SEVERITY_LEAK)
        f->safe_leaks += n;
    else if (p->repair == QK_REPAIR_SAFE)
        f->safe_errors += n;
    else if (p->repair == QK_REPAIR_NONE)
        f->unreadable += p->severity == QK_SEVERITY_ERROR ? n : 0;
    else
        f->needed |= p->allow;
    f->stuck += p->repair != QK_REPAIR_SAFE && !p->allow ? n : 0;
    for (size_t i = 0; i < CHECK_CHOICES && p->repair != QK_REPAIR_SAFE; i++) {
        if (!(p->allow & check_choices[i].bit))
            continue;
        f->together[i] = f->needing[i] ? f->together[i] & p->allow : p->allow;
        f->needing[i] += n;
    }
}

/* ---- telling ---- */

#define BUFFER_BYTES ((size_t)2 << 20)

void findings_begin(struct check_findings *findings)
{
    findings->terminal = isatty(STDERR_FILENO);
    findings->buffer = findings->terminal ? NULL : malloc(BUFFER_BYTES);
    if (findings->buffer)
        setvbuf(stderr, findings->buffer, _IOFBF, BUFFER_BYTES);
}

void findings_end(struct check_findings *findings)
{
    fflush(stderr);
    if (findings->buffer)
        setvbuf(stderr, NULL, _IONBF, 0);
    free(findings->buffer);
    findings->buffer = NULL;
}

/* A name from the image must not steer a terminal; nothing else needs a look at each byte. */
static void explain(struct check_findings *f, const struct qk_problem *p,
                    const struct qk_problem_run *run)
{
    TEXT_CLEANUP char *text = NULL;
    size_t size;
    FILE *out = f->terminal ? open_memstream(&text, &size) : stderr;
    if (!out)
        return;
    write_explained(f, out, p, run);
    if (out == stderr)
        return;
    fclose(out);
    if (text)
        put_text(stderr, text);
}

/* One finding, or a run (which has no name in its lines). */
static void print(struct check_findings *f, const struct qk_problem *p,
                  const struct qk_problem_run *run)
{
    progress_clear(f->progress);
    if (run) {
        run_write_lines(p, run, stderr);
    } else {
        if (f->terminal)
            put_text(stderr, p->text);
        else
            fputs_unlocked(p->text, stderr);
        putc_unlocked('\n', stderr);
    }
    if (f->explain)
        explain(f, p, run);
}

static bool unwanted(const struct check_findings *f, const struct qk_problem *p)
{
    return f->mute || (p->severity == QK_SEVERITY_NONE && !f->explain);
}

static void tell(struct check_findings *f, const struct qk_problem *p,
                 const struct qk_problem_run *run)
{
    if (f->json)
        check_json_problem(f->json, p, run);
    if (!unwanted(f, p))
        print(f, p, run);
}

void findings_on_problem(void *findings, const struct qk_problem *problem)
{
    struct check_findings *f = findings;
    count(f, problem, 1);
    if (f->lasting && (unwanted(f, problem) ||
                       !lasting_found(f->lasting, problem, problem->text, strlen(problem->text))))
        return;
    if (!f->hold)
        tell(f, problem, NULL);
}

/* Findings [i, i + n) of a run, of which the rest did not last. */
static void tell_part(struct check_findings *f, const struct qk_problem *first,
                      const struct qk_problem_run *run, uint64_t i, uint64_t n)
{
    struct run_part part;
    if (f->hold)
        return;
    if (n >= QK_RUN_LEAST) {
        run_part(first, run, i, n, &part);
        tell(f, &part.first, &part.run);
        return;
    }
    for (uint64_t end = i + n; i < end; i++) {
        run_part(first, run, i, 1, &part);
        tell(f, &part.first, NULL);
    }
}

/* Between two looks a run may become shorter, or part: each finding lasts by itself. */
static void tell_lasting(struct check_findings *f, const struct qk_problem *first,
                         const struct qk_problem_run *run)
{
    struct run_part one;
    uint64_t from = 0;
    for (uint64_t i = 0; i < run->count; i++) {
        run_part(first, run, i, 1, &one);
        if (lasting_found(f->lasting, &one.first, one.text, strlen(one.text)))
            continue;
        tell_part(f, first, run, from, i - from);
        from = i + 1;
    }
    tell_part(f, first, run, from, run->count - from);
}

bool findings_on_run(void *findings, const struct qk_problem *first,
                     const struct qk_problem_run *run)
{
    struct check_findings *f = findings;
    if (run_too_long(first, run))
        return false;
    count(f, first, run->count);
    if (!f->lasting)
        tell(f, first, run);
    else if (!unwanted(f, first))
        tell_lasting(f, first, run);
    return true;
}

static void print_step(struct check_findings *f, const struct qk_plan_step *s)
{
    if (!f->steps)
        printf("A repair would, in this order:\n");
    else if (s->epoch != f->last_epoch)
        printf("  and when that is stable:\n");
    printf("  %u. %s in the %s", f->steps + 1, s->action, s->structure);
    if (s->bytes)
        printf(": %" PRIu64 " value%s, %" PRIu64 " byte%s at offset 0x%" PRIx64, s->count,
               s->count == 1 ? "" : "s", s->bytes, s->bytes == 1 ? "" : "s", s->file_off);
    if (s->has_values && s->count == 1 && s->from != s->to)
        printf(", from 0x%" PRIx64 " to 0x%" PRIx64, s->from, s->to);
    putchar('\n');
    if (s->lost_bytes && s->lost_off != QK_OFFSET_NONE)
        printf("     given up: %" PRIu64 " bytes of the guest from offset 0x%" PRIx64 " on\n",
               s->lost_bytes, s->lost_off);
    else if (s->lost_bytes)
        printf("     given up: up to %" PRIu64 " bytes of a snapshot\n", s->lost_bytes);
    if (s->lost) {
        printf("     given up: ");
        put_text(stdout, s->lost);
        putchar('\n');
    }
}

void findings_on_step(void *findings, const struct qk_plan_step *step)
{
    struct check_findings *f = findings;
    if (f->json)
        check_json_step(f->json, step);
    else if (f->plan)
        print_step(f, step);
    f->last_epoch = step->epoch;
    f->lost_bytes += step->lost_off != QK_OFFSET_NONE ? step->lost_bytes : 0;
    f->lost_things |= step->lost || step->lost_bytes;
    f->steps++;
}

void findings_on_message(void *findings, const char *line)
{
    struct check_findings *f = findings;
    if (f->lasting || f->mute)
        return;
    progress_clear(f->progress);
    fprintf(stderr, "%s\n", line);
}
