/*
 * check_json.c - findings and plan as JSON (check_json.h).
 */
#include "img/check_json.h"
#include "common/report.h"
#include "img/check_allow.h"
#include "img/check_runs.h"

#include <stdlib.h>
#include <string.h>

void check_json_begin(struct check_json *j, bool details, bool explain)
{
    *j = (struct check_json){.json = JSON_PRETTY(stdout), .details = details, .explain = explain};
    if (details)
        json_open(&j->json, NULL, '{');
}

struct check_json_held {
    struct check_json_held *next;
    struct qk_check_loss loss;
    char *snapshot, *snapshot_name;
    struct qk_guest_range ranges[];
};

static void write_loss(struct json *json, const struct qk_check_loss *l)
{
    json_open(json, NULL, '{');
    if (l->snapshot)
        json_text(json, "snapshot", l->snapshot);
    if (l->snapshot_name)
        json_text(json, "snapshot-name", l->snapshot_name);
    json_uint(json, "bytes", l->bytes);
    json_uint(json, "disk-size", l->disk_bytes);
    json_bool(json, "at-least", l->at_least);
    json_uint(json, "ranges-total", l->range_total);
    json_open(json, "ranges", '[');
    for (unsigned i = 0; i < l->range_count; i++) {
        json_open(json, NULL, '{');
        json_uint(json, "guest-offset", l->ranges[i].off);
        json_uint(json, "guest-length", l->ranges[i].bytes);
        json_close(json, '}');
    }
    json_close(json, ']');
    json_close(json, '}');
}

static void write_losses(struct check_json *j)
{
    for (struct check_json_held *next, *held = j->losses; held; held = next) {
        next = held->next;
        write_loss(&j->json, &held->loss);
        free(held->snapshot);
        free(held->snapshot_name);
        free(held);
    }
    j->losses = NULL;
}

/* Begins list number `list` (1: findings, 2: losses, 3: plan), after the ones before it. */
static void open_list(struct check_json *j, unsigned list)
{
    static const char *const names[] = {"findings", "losses", "plan"};
    while (j->open < list) {
        if (j->open)
            json_close(&j->json, ']');
        json_open(&j->json, names[j->open++], '[');
        if (j->open == 2)
            write_losses(j);
    }
}

static const char *severity_name(enum qk_severity severity)
{
    static const char *const names[] = {"note", "leak", "corruption", "error"};
    return names[severity];
}

static const char *repair_name(const struct qk_problem *p)
{
    static const char *const names[] = {"none", "safe", "lossy", "ask"};
    return names[p->repair];
}

static void maybe_uint(struct json *json, const char *key, uint64_t value)
{
    if (value != QK_OFFSET_NONE)
        json_uint(json, key, value);
}

static void write_users(struct json *json, const struct qk_problem *p)
{
    json_uint(json, "users-total", p->user_total);
    json_open(json, "users", '[');
    for (unsigned i = 0; i < p->user_count; i++) {
        const struct qk_cluster_user *u = &p->users[i];
        json_open(json, NULL, '{');
        json_text(json, "structure", u->structure);
        json_uint(json, "offset", u->file_off);
        maybe_uint(json, "guest-offset", u->guest_off);
        if (u->snapshot)
            json_text(json, "snapshot", u->snapshot);
        json_close(json, '}');
    }
    json_close(json, ']');
}

static void write_choices(struct json *json, unsigned allow)
{
    json_open(json, "allow", '[');
    for (size_t i = 0; i < CHECK_CHOICES; i++) {
        if (allow & check_choices[i].bit)
            json_text(json, NULL, check_choices[i].name);
    }
    json_close(json, ']');
}

/* What the findings between the first and this one have grows by equal steps. */
static void write_run(struct json *json, const struct qk_problem *first,
                      const struct qk_problem_run *run)
{
    struct run_part last;
    run_part(first, run, run->count - 1, 1, &last);
    json_uint(json, "count", run->count);
    json_open(json, "last", '{');
    json_text(json, "text", last.text);
    maybe_uint(json, "offset", last.first.file_off);
    maybe_uint(json, "guest-offset", last.first.guest_off);
    json_uint(json, "found", last.first.found);
    json_close(json, '}');
}

static void write_problem(struct json *json, const struct qk_problem *p,
                          const struct qk_problem_run *run, bool explain)
{
    json_open(json, NULL, '{');
    json_uint(json, "number", p->number);
    json_text(json, "name", p->name);
    json_text(json, "structure", p->structure);
    json_text(json, "text", p->text);
    if (explain)
        json_text(json, "explanation", p->explanation);
    json_text(json, "severity", severity_name(p->severity));
    json_text(json, "repair", repair_name(p));
    json_bool(json, "repaired", p->repaired);
    maybe_uint(json, "offset", p->file_off);
    maybe_uint(json, "guest-offset", p->guest_off);
    if (p->snapshot)
        json_text(json, "snapshot", p->snapshot);
    if (p->snapshot_name)
        json_text(json, "snapshot-name", p->snapshot_name);
    if (p->guest_bytes)
        json_uint(json, "guest-length", p->guest_bytes);
    if (p->bitmap)
        json_text(json, "bitmap", p->bitmap);
    if (p->user_count)
        write_users(json, p);
    if (p->allow)
        write_choices(json, p->allow);
    json_uint(json, "expected", p->expected);
    json_uint(json, "found", p->found);
    if (run)
        write_run(json, p, run);
    json_close(json, '}');
}

void check_json_problem(struct check_json *j, const struct qk_problem *p,
                        const struct qk_problem_run *run)
{
    if (!j->details || j->open > 1)
        return;
    open_list(j, 1);
    write_problem(&j->json, p, run, j->explain);
}

static char *copied(const char *text)
{
    return text ? xstrdup(text) : NULL;
}

void check_json_loss(struct check_json *j, const struct qk_check_loss *l)
{
    if (!j->details || j->open > 1)
        return;
    const size_t bytes = l->range_count * sizeof(*l->ranges);
    struct check_json_held *held = xmalloc(sizeof(*held) + bytes);
    *held = (struct check_json_held){
        .loss = *l, .snapshot = copied(l->snapshot), .snapshot_name = copied(l->snapshot_name)};
    if (bytes)
        memcpy(held->ranges, l->ranges, bytes);
    held->loss.ranges = held->ranges;
    held->loss.snapshot = held->snapshot;
    held->loss.snapshot_name = held->snapshot_name;
    if (!j->losses)
        j->losses_end = &j->losses;
    *j->losses_end = held;
    j->losses_end = &held->next;
}

void check_json_step(struct check_json *j, const struct qk_plan_step *s)
{
    if (!j->details)
        return;
    open_list(j, 3);
    json_open(&j->json, NULL, '{');
    json_text(&j->json, "action", s->action);
    json_text(&j->json, "structure", s->structure);
    json_uint(&j->json, "offset", s->file_off);
    json_uint(&j->json, "length", s->bytes);
    json_uint(&j->json, "values", s->count);
    if (s->has_values) {
        json_uint(&j->json, "from", s->from);
        json_uint(&j->json, "to", s->to);
    }
    if (s->lost_bytes) {
        maybe_uint(&j->json, "lost-guest-offset", s->lost_off);
        json_uint(&j->json, "lost-guest-length", s->lost_bytes);
    }
    if (s->lost)
        json_text(&j->json, "lost", s->lost);
    json_uint(&j->json, "epoch", s->epoch);
    json_close(&j->json, '}');
}

void check_json_end_lists(struct check_json *j)
{
    if (!j->details) {
        json_open(&j->json, NULL, '{');
        return;
    }
    open_list(j, 3);
    json_close(&j->json, ']');
}

void check_json_end(struct check_json *j)
{
    json_close(&j->json, '}');
    putchar('\n');
}

void check_json_failed(struct check_json *j, const char *why)
{
    if (!j->details)
        return;
    check_json_end_lists(j);
    json_text(&j->json, "error", why);
    check_json_end(j);
    fflush(stdout);
}
