/*
 * faults.c - runs each workload again and again with injected errors: every blkdebug event, with
 * EIO and ENOSPC, once and from then on always; the nth request, for each n; and the nth allocation
 * of memory. After each run the error must have reached the caller, the guest's content must be as
 * the model allows, leaks are the worst that may be found, and once the fault is gone the image
 * must work again: half of the runs go on and flush, half crash there. Crashes on the way are tried
 * as well (states.h).
 *
 *     faults [--jobs N] [--every N] [--states N] [--workload NAME [--run INDEX]]
 *            [--salt N]
 *
 * --every takes only each Nth request (default 10, or 1 when QCOWKIT_MATRIX is "full"); --states
 * is the number of crashes per run (default 1).
 */
#include "alloc_fail.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "io/fault.h"
#include "stage.h"
#include "states.h"
#include "verify.h"

#include <getopt.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { SHOWN_FAILURES = 4, EVENT_VARIANTS = 4, NTH_VARIANTS = 2, MEMORY_VARIANTS = 2 };

/* What is injected in one run: a rule for an event, the nth request, or the nth allocation. */
struct plan {
    const char *event; /* NULL: by number */
    uint64_t nth;
    uint64_t nth_allocation;
    int error;
    bool always, torn;
};

struct settings {
    unsigned jobs, every, states;
    const char *only;
    long one_run; /* -1: all */
};

struct tally {
    const struct workload *w;
    const struct settings *settings;
    size_t events, runs;     /* the first events * EVENT_VARIANTS runs are by event, */
    uint64_t requests;       /* then come those by request, then those by allocation */
    uint64_t image_requests; /* of these; the others go to the data file */
    uint64_t allocations;
    atomic_size_t next, hit, passed, failed;
    atomic_bool *event_hit; /* shared by all workloads */
};

struct run {
    struct tally *tally;
    size_t index;
    struct plan plan;
    struct stage stage;
    char text[MODEL_TEXT];
};

/* ---- plans ---- */

static size_t requests_tried(const struct tally *t)
{
    return (size_t)div_round_up(t->requests, t->settings->every);
}

/* There are many more allocations than requests: as many are tried as requests. */
static uint64_t allocation_step(const struct tally *t)
{
    return max_u64(1, t->allocations / max_u64(1, requests_tried(t)));
}

static struct plan make_plan(const struct tally *t, size_t index)
{
    static const struct plan event_variants[EVENT_VARIANTS] = {{.error = EIO},
                                                               {.error = ENOSPC},
                                                               {.error = EIO, .always = true},
                                                               {.error = ENOSPC, .always = true}};
    static const struct plan nth_variants[NTH_VARIANTS] = {{.error = EIO, .torn = true},
                                                           {.error = ENOSPC, .always = true}};
    if (index < t->events * EVENT_VARIANTS) {
        struct plan plan = event_variants[index % EVENT_VARIANTS];
        plan.event = fault_event_name(index / EVENT_VARIANTS);
        return plan;
    }
    index -= t->events * EVENT_VARIANTS;
    size_t by_request = requests_tried(t) * NTH_VARIANTS;
    if (index >= by_request) {
        index -= by_request;
        return (struct plan){.nth_allocation = 1 + index / MEMORY_VARIANTS * allocation_step(t),
                             .error = ENOMEM,
                             .always = index % MEMORY_VARIANTS};
    }
    struct plan plan = nth_variants[index % NTH_VARIANTS];
    plan.nth = 1 + index / NTH_VARIANTS * t->settings->every;
    return plan;
}

static void describe(const struct plan *plan, char *text, size_t size)
{
    const char *error = plan->error == EIO ? "EIO" : "ENOSPC";
    if (plan->nth_allocation)
        snprintf(text, size, "no memory at allocation %llu%s",
                 (unsigned long long)plan->nth_allocation, plan->always ? " and all after it" : "");
    else if (plan->event)
        snprintf(text, size, "%s at %s%s", error, plan->event, plan->always ? ", always" : "");
    else
        snprintf(text, size, "%s at request %llu%s", error, (unsigned long long)plan->nth,
                 plan->always ? " and all after it" : "");
}

/* Requests are counted through the image first, then through its data file. */
static int inject(const struct run *run, const struct plan *plan)
{
    struct qk_io *fault = run->stage.fault;
    uint64_t nth = plan->nth;
    alloc_fail_at(plan->nth_allocation, plan->always);
    if (plan->nth_allocation)
        return 0;
    if (!plan->event) {
        if (nth > run->tally->image_requests) {
            nth -= run->tally->image_requests;
            fault = run->stage.data_fault;
        }
        fault_fail_nth(fault, &(struct fault_nth){.nth = nth,
                                                  .error = plan->error,
                                                  .always = plan->always,
                                                  .torn = plan->torn});
        return 0;
    }
    const struct fault_option options[] = {
        {"event", plan->event},
        {"errno", plan->error == EIO ? "5" : "28"},
        {"once", plan->always ? "off" : "on"},
    };
    return fault_add_rule(fault, "inject-error", options, ARRAY_SIZE(options), NULL);
}

/* ---- one run ---- */

static bool bad(struct run *run, const char *what, const char *why)
{
    char plan[100], why_copy[MODEL_TEXT];
    describe(&run->plan, plan, sizeof(plan));
    snprintf(why_copy, sizeof(why_copy), "%s", why);
    if (atomic_fetch_add(&run->tally->failed, 1) < SHOWN_FAILURES)
        printf("failed: --salt %u --workload %s --run %zu (%s): %s%s\n", workload_salt,
               run->tally->w->name, run->index, plan, what, why_copy);
    return false;
}

static struct verify_options judge(struct run *run, struct moment at)
{
    struct verify_options opts = {.go_on = true};
    stage_judge(&run->stage, at, &opts);
    return opts;
}

static uint64_t injected(const struct stage *stage, unsigned kinds)
{
    return fault_injected(stage->fault, kinds) +
           (stage->data_fault ? fault_injected(stage->data_fault, kinds) : 0);
}

static uint64_t loud_faults(struct run *run)
{
    return injected(&run->stage, 1u << FAULT_WRITE | 1u << FAULT_FLUSH);
}

/* A failed write or flush must show; not during a repair, which may find another way and is looked
 * at as a whole. A failed read may stay unnoticed where the engine can do
 * without it (learning which clusters are free again); a wrong use of it shows in the content. */
static bool was_reported(struct run *run, uint64_t during_repair)
{
    return run->stage.rec.errors > 0 || loud_faults(run) == during_repair;
}

/* The fault is gone: everything works, and all that was acknowledged is there. */
static bool recovers(struct run *run)
{
    struct recorder *rec = &run->stage.rec;
    if (!rec->img && recorder_open(rec) < 0)
        return bad(run, "does not open again: ", rec->error.text);
    if (recorder_verify(rec->img, &rec->model, model_now(&rec->model), run->text))
        return bad(run, "still open: ", run->text);
    if (rec_flush(rec) < 0)
        return bad(run, "cannot be flushed any more: ", rec->error.text);
    if (recorder_close(rec) < 0)
        return bad(run, "cannot be closed: ", rec->error.text);
    const struct verify_options opts = judge(run, model_now(&rec->model));
    return verify_image(rec->mem, &opts, run->text) || bad(run, "after recovering: ", run->text);
}

/* The program dies right there. */
static bool dies(struct run *run)
{
    struct recorder *rec = &run->stage.rec;
    if (rec->img)
        image_abandon(rec->img);
    rec->img = NULL;
    const struct verify_options opts =
        judge(run, model_moment(&rec->model, trace_count(run->stage.trace)));
    return verify_image(rec->mem, &opts, run->text) || bad(run, "after dying: ", run->text);
}

/* Power cuts at random moments of the run. */
static bool survives_crashes(struct run *run)
{
    struct history history;
    struct builder b;
    bool good = true;
    uint64_t random = run->index * 2654435761u + run->tally->w->seed;
    if (stage_history(&run->stage, &history) < 0)
        abort();
    for (unsigned i = 0; i < run->tally->settings->states && good; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        struct state state = {(size_t)(random >> 33) % (history.changes.len + 1), random | 1};
        struct verify_options opts = judge(run, model_moment(&run->stage.rec.model, state.changes));
        struct qk_io *stores[STORES];
        builder_init(&b, &history);
        if (builder_make_both(&b, state, stores) < 0)
            abort();
        if (opts.data)
            opts.data = stores[1];
        good = verify_image(stores[0], &opts, run->text) ||
               bad(run, "after a crash on the way: ", run->text);
        io_close(stores[0], NULL);
        io_close(stores[1], NULL);
        builder_free(&b);
    }
    history_free(&history);
    return good;
}

static bool drive(struct run *run)
{
    struct stage *stage = &run->stage;
    if (inject(run, &run->plan) < 0)
        abort();
    int begun = stage_begin(stage);
    uint64_t during_repair = stage->rec.w->damage ? loud_faults(run) : 0;
    if (begun == 0)
        run->tally->w->run(&stage->rec);
    else
        stage->rec.errors++;
    bool reported = was_reported(run, during_repair);
    if (injected(stage, ~0u) || alloc_failed()) {
        atomic_fetch_add(&run->tally->hit, 1);
        if (run->plan.event)
            run->tally->event_hit[run->index / EVENT_VARIANTS] = true;
    }
    fault_clear(stage->fault);
    if (stage->data_fault)
        fault_clear(stage->data_fault);
    alloc_fail_at(0, false);
    if (!reported)
        return bad(run, "the error did not reach the caller", "");
    bool unborn = begun < 0 && stage->rec.w->logs_creation;
    return ((run->index + run->index / 2) % 2 && !unborn ? recovers(run) : dies(run)) &&
           survives_crashes(run);
}

static void *work(void *arg)
{
    struct tally *t = arg;
    for (;;) {
        size_t index = atomic_fetch_add(&t->next, 1);
        if (index >= t->runs)
            return NULL;
        if (t->settings->one_run >= 0 && index != (size_t)t->settings->one_run)
            continue;
        struct run run = {.tally = t, .index = index, .plan = make_plan(t, index)};
        if (stage_set(&run.stage, t->w, true) < 0)
            abort();
        run.stage.rec.whole_sectors = true;
        run.stage.rec.guard = alloc_arm;
        if (drive(&run))
            atomic_fetch_add(&t->passed, 1);
        stage_strike(&run.stage);
    }
}

/* ---- one workload after the other ---- */

/* Requests and allocations of a run without faults. */
static void count_all(struct tally *t)
{
    struct stage stage;
    if (stage_set(&stage, t->w, true) < 0)
        abort();
    stage.rec.whole_sectors = true;
    stage.rec.guard = alloc_arm;
    fault_fail_nth(stage.fault, &(struct fault_nth){0});
    if (stage.data_fault)
        fault_fail_nth(stage.data_fault, &(struct fault_nth){0});
    alloc_fail_at(0, false);
    if (stage_begin(&stage) < 0)
        printf("%s: does not begin: %s\n", t->w->name, stage.rec.error.text);
    t->w->run(&stage.rec);
    recorder_close(&stage.rec);
    t->image_requests = fault_counted(stage.fault);
    t->requests = t->image_requests + (stage.data_fault ? fault_counted(stage.data_fault) : 0);
    t->allocations = alloc_counted();
    if (stage.rec.errors)
        printf("%s: %u errors without faults: %s\n", t->w->name, stage.rec.errors,
               stage.rec.error.text);
    stage_strike(&stage);
}

static void run_workload(struct tally *t)
{
    unsigned jobs = t->settings->jobs;
    CLEANUP_FREE pthread_t *threads = calloc(jobs, sizeof(*threads));
    count_all(t);
    while (fault_event_name(t->events))
        t->events++;
    t->runs = t->events * EVENT_VARIANTS + requests_tried(t) * NTH_VARIANTS +
              (size_t)div_round_up(t->allocations, allocation_step(t)) * MEMORY_VARIANTS;
    for (unsigned i = 0; i < jobs; i++) {
        if (pthread_create(&threads[i], NULL, work, t) != 0)
            abort();
    }
    for (unsigned i = 0; i < jobs; i++)
        pthread_join(threads[i], NULL);
    printf("%-20s %5llu requests %6llu allocations %5zu runs %5zu with faults %4zu failed\n",
           t->w->name, (unsigned long long)t->requests, (unsigned long long)t->allocations,
           t->passed + t->failed, (size_t)t->hit, (size_t)t->failed);
}

static void parse(struct settings *s, int argc, char **argv)
{
    static const struct option options[] = {
        {"jobs", required_argument, NULL, 'j'},
        {"every", required_argument, NULL, 'e'},
        {"states", required_argument, NULL, 'n'},
        {"workload", required_argument, NULL, 'w'},
        {"run", required_argument, NULL, 'r'},
        {"salt", required_argument, NULL, 'x'},
        {NULL, 0, NULL, 0},
    };
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) >= 0;) {
        if (c == 'j')
            s->jobs = (unsigned)strtoul(optarg, NULL, 0);
        else if (c == 'e')
            s->every = (unsigned)strtoul(optarg, NULL, 0);
        else if (c == 'n')
            s->states = (unsigned)strtoul(optarg, NULL, 0);
        else if (c == 'w')
            s->only = optarg;
        else if (c == 'x')
            workload_salt = (uint32_t)strtoul(optarg, NULL, 0);
        else if (c == 'r')
            s->one_run = strtol(optarg, NULL, 0);
        else
            exit(2);
    }
}

static void report_events(const atomic_bool *event_hit)
{
    printf("events that no workload met:");
    for (size_t i = 0; fault_event_name(i); i++) {
        if (!event_hit[i])
            printf(" %s", fault_event_name(i));
    }
    printf("\n");
}

int main(int argc, char **argv)
{
    struct settings settings = {
        .jobs = (unsigned)sysconf(_SC_NPROCESSORS_ONLN), .every = 1, .states = 1, .one_run = -1};
    static atomic_bool event_hit[100];
    size_t passed = 0, failed = 0;
    const char *matrix = getenv("QCOWKIT_MATRIX");
    if (!matrix || strcmp(matrix, "full") != 0)
        settings.every = 10 * SLOWER;
    parse(&settings, argc, argv);
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; i < workload_count; i++) {
        if (settings.only && strcmp(settings.only, workloads[i].name) != 0)
            continue;
        struct tally t = {.w = &workloads[i], .settings = &settings, .event_hit = event_hit};
        run_workload(&t);
        passed += t.passed;
        failed += t.failed;
    }
    report_events(event_hit);
    printf("%zu passed, %zu failed\n", passed, failed);
    return failed || !passed;
}
