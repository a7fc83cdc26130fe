/*
 * check_findings.c - findings as lines on stderr, at once or held back (check_findings.h).
 */
#include "img/check_findings.h"
#include "common/report.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What a repair does about it, and what it is called. */
static void write_repair(FILE *out, const struct qk_problem *p)
{
    TEXT_CLEANUP char *names = check_allow_names(p->allow, NULL);
    fputs("    Repair: ", out);
    switch (p->repair) {
    case QK_REPAIR_SAFE:
        fprintf(out, "`-r %s` repairs it without loss",
                p->severity == QK_SEVERITY_LEAK ? "leaks` or `-r all" : "all");
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
            fputs("it needs a decision that `-r` cannot make", out);
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

static void write_place(FILE *out, const struct qk_problem *p)
{
    fprintf(out, "    [%" PRIu32 "] %s in the %s", p->number, p->name, p->structure);
    if (p->file_off != QK_OFFSET_NONE)
        fprintf(out, " at offset 0x%" PRIx64, p->file_off);
    if (p->guest_off != QK_OFFSET_NONE)
        fprintf(out, ", guest offset 0x%" PRIx64, p->guest_off);
    if (p->snapshot)
        fprintf(out, ", snapshot %s (%s)", p->snapshot, p->snapshot_name ? p->snapshot_name : "");
    if (p->bitmap)
        fprintf(out, ", bitmap %s", p->bitmap);
    fputc('\n', out);
    for (unsigned i = 0; i < p->user_count; i++)
        write_user(out, &p->users[i]);
    if (p->user_total > p->user_count && p->user_count)
        fprintf(out, "      %" PRIu64 " references in all\n", p->user_total);
    bool lossy = p->repair == QK_REPAIR_LOSSY || p->repair == QK_REPAIR_NONE;
    if (lossy && p->guest_bytes)
        fprintf(out, "      at stake: guest bytes 0x%" PRIx64 " to 0x%" PRIx64 "\n", p->guest_off,
                p->guest_off + p->guest_bytes - 1);
}

static void write_problem(struct check_findings *f, FILE *out, const struct qk_problem *p)
{
    fprintf(out, "%s\n", p->text);
    if (!f->explain)
        return;
    write_place(out, p);
    if (p->number >= MAX_EXPLAINED || f->explained[p->number])
        return;
    f->explained[p->number] = true;
    fprintf(out, "    %s\n", p->explanation);
    write_repair(out, p);
}

static void keep(struct check_findings *f, char *text, const struct qk_problem *p)
{
    if (f->count == f->room) {
        f->room = f->room ? 2 * f->room : 64;
        f->item = xrealloc(f->item, f->room * sizeof(*f->item));
    }
    f->item[f->count++] =
        (struct check_finding){text, f->json ? check_json_held(f->json, p) : NULL, p->severity};
}

void findings_recount(struct check_findings *f)
{
    f->safe_leaks = f->safe_errors = f->unreadable = f->lost_bytes = 0;
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
    for (size_t i = 0; i < CHECK_CHOICES && p->repair != QK_REPAIR_SAFE; i++) {
        if (!(p->allow & check_choices[i].bit))
            continue;
        f->together[i] = f->needing[i] ? f->together[i] & p->allow : p->allow;
        f->needing[i] += n;
    }
}

void findings_on_problem(void *findings, const struct qk_problem *problem)
{
    struct check_findings *f = findings;
    count(f, problem, 1);
    if (f->json && !f->hold)
        check_json_problem(f->json, problem);
    if (f->mute || (problem->severity == QK_SEVERITY_NONE && !f->explain))
        return;
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        return;
    write_problem(f, out, problem);
    fclose(out);
    if (text && f->hold) {
        keep(f, text, problem);
        return;
    }
    progress_clear(f->progress);
    put_text(stderr, text ? text : problem->text);
    free(text);
}

/* ---- many lines ---- */

#define LINES_BYTES  ((size_t)64 << 10)
#define BUFFER_BYTES ((size_t)2 << 20)

void findings_begin(struct check_findings *findings)
{
    findings->buffer = isatty(STDERR_FILENO) ? NULL : malloc(BUFFER_BYTES);
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

/* The number behind `digits`, one higher; it keeps its length but for 99 to 100, which is false. */
static bool count_up(char *digits, size_t width)
{
    for (size_t i = width; i > 0; i--) {
        if (digits[i - 1] != '9') {
            digits[i - 1]++;
            return true;
        }
        digits[i - 1] = '0';
    }
    return false;
}

/* Millions of lines take no longer than it takes to write them. */
bool findings_on_run(void *findings, const struct qk_problem *first, uint64_t clusters)
{
    struct check_findings *f = findings;
    size_t head = strcspn(first->text, "0123456789"), length = strlen(first->text);
    size_t width = strspn(first->text + head, "0123456789");
    char line[256], *lines = malloc(LINES_BYTES);
    if (f->json || f->hold || f->explain || !lines || length + 2 > sizeof(line)) {
        free(lines);
        return false;
    }
    count(f, first, clusters);
    progress_clear(f->progress);
    size_t have = 0;
    memcpy(line, first->text, length);
    line[length++] = '\n';
    for (uint64_t i = 0; i < clusters && !f->mute; i++) {
        if (have + sizeof(line) > LINES_BYTES) {
            fwrite(lines, 1, have, stderr);
            have = 0;
        }
        memcpy(lines + have, line, length);
        have += length;
        if (!count_up(line + head, width) && length < sizeof(line)) {
            memmove(line + head + 1, line + head, length++ - head);
            line[head] = '1';
            width++;
        }
    }
    fwrite(lines, 1, have, stderr);
    free(lines);
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
        printf(": %" PRIu64 " value%s, %" PRIu64 " bytes at offset 0x%" PRIx64, s->count,
               s->count == 1 ? "" : "s", s->bytes, s->file_off);
    if (s->has_values && s->count == 1)
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
    if (f->hold || f->mute)
        return;
    progress_clear(f->progress);
    fprintf(stderr, "%s\n", line);
}

static int compare_texts(const void *a, const void *b)
{
    const struct check_finding *x = a, *y = b;
    return strcmp(x->text, y->text);
}

void findings_keep_common(struct check_findings *now, struct check_findings *before,
                          struct qk_check_result *result)
{
    size_t kept = 0;
    result->corruptions = result->leaks = result->check_errors = 0;
    if (before->count)
        qsort(before->item, before->count, sizeof(*before->item), compare_texts);
    for (size_t i = 0; i < now->count; i++) {
        struct check_finding item = now->item[i];
        if (!before->count ||
            !bsearch(&item, before->item, before->count, sizeof(item), compare_texts)) {
            free(item.text);
            free(item.json);
            continue;
        }
        now->item[kept++] = item;
        result->corruptions += item.severity == QK_SEVERITY_CORRUPTION;
        result->leaks += item.severity == QK_SEVERITY_LEAK;
        result->check_errors += item.severity == QK_SEVERITY_ERROR;
    }
    now->count = kept;
}

void findings_print(const struct check_findings *findings)
{
    for (size_t i = 0; i < findings->count; i++) {
        put_text(stderr, findings->item[i].text);
        if (findings->item[i].json)
            check_json_released(findings->json, findings->item[i].json);
    }
}

static void free_item(struct check_finding *item)
{
    free(item->text);
    free(item->json);
}

void findings_free(struct check_findings *findings)
{
    for (size_t i = 0; i < findings->count; i++)
        free_item(&findings->item[i]);
    free(findings->item);
    findings->item = NULL;
    findings->count = findings->room = 0;
}
