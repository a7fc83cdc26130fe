/*
 * crash.c - the crash simulator: runs each workload on an image that logs its changes, rebuilds
 * what a power cut could have left at each moment (states.h), and verifies each of these images.
 *
 *     crash [--states N] [--jobs N] [--workload NAME] [--at CHANGES [--seed SEED]]
 *           [--salt N]
 *
 * --at shows one state again, as a failure names it. Seeds are fixed: every run with the same
 * --salt (default 0) sees the same.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "stage.h"
#include "states.h"
#include "verify.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

enum { SHOWN_FAILURES = 3, GO_ON_EVERY = 8, ORACLE_EVERY = 100 };

struct settings {
    size_t states; /* in all */
    unsigned jobs;
    const char *only;
    struct state one;
    bool has_one;
    char oracle[4096]; /* qemu-img, "" when there is none */
};

/* One workload that has run, and the states to look at. */
struct run {
    const struct workload *w;
    const struct settings *settings;
    struct stage stage;
    struct history history;
    struct state *states;
    uint64_t *hashes;
    size_t count;
    pthread_mutex_t lock; /* over the counters, and printing */
    size_t passed, failed;
};

/* ---- recording ---- */

/* The live image, too, must show the model at the end. */
static int finish_recording(struct recorder *rec)
{
    char text[MODEL_TEXT];
    unsigned wrong =
        rec->img ? recorder_verify(rec->img, &rec->model, model_now(&rec->model), text) : 1;
    if (wrong)
        printf("%s: without any crash: %s\n", rec->w->name, rec->img ? text : "not open");
    int ret = recorder_close(rec);
    return ret < 0 || wrong || rec->errors ? -EIO : 0;
}

static int record(struct run *run)
{
    struct stage *stage = &run->stage;
    int ret = stage_set(stage, run->w, false);
    if (ret == 0)
        ret = stage_begin(stage);
    if (ret < 0)
        return ret;
    run->w->run(&stage->rec);
    ret = finish_recording(&stage->rec);
    if (ret < 0)
        return ret;
    return stage_history(stage, &run->history);
}

/* ---- choosing states ---- */

static int by_changes(const void *a, const void *b)
{
    const struct state *x = a, *y = b;
    return x->changes < y->changes ? -1 : x->changes > y->changes;
}

/* Half of the states, at most, are prefixes, spread evenly; the others are random choices at random
 * moments when something was not stable. */
static void choose_states(struct run *run, size_t count)
{
    size_t moments = run->history.changes.len + 1;
    size_t prefixes = min_u64(moments, count / 2 + 1);
    uint64_t random = (run->w->seed + workload_salt) * UINT64_C(1000003);
    run->states = calloc(count + 1, sizeof(*run->states));
    run->hashes = calloc(count + 1, sizeof(*run->hashes));
    if (!run->states || !run->hashes)
        abort();
    for (size_t i = 0; i < prefixes; i++)
        run->states[run->count++].changes = (moments - 1) * i / (prefixes - 1 + (prefixes == 1));
    for (size_t tries = 0; run->count < count && tries < 100 * count; tries++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        size_t at = (size_t)(random >> 33) % moments;
        if (run->history.stable[at] < at)
            run->states[run->count++] = (struct state){at, random | 1};
    }
    qsort(run->states, run->count, sizeof(*run->states), by_changes);
}

/* ---- looking at them ---- */

static uint64_t hash_store(struct qk_io *mem)
{
    size_t len = 0;
    const uint8_t *bytes = io_mem_data(mem, &len);
    uint64_t hash = len, word;
    for (size_t i = 0; i + 8 <= len; i += 8) {
        memcpy(&word, bytes + i, 8);
        hash = (hash ^ word) * 0x9fb21c651e98df25u;
        hash ^= hash >> 32;
    }
    return hash;
}

static void count_state(struct run *run, struct state state, bool good, const char *text)
{
    LOCK_SCOPE(&run->lock);
    if (good) {
        run->passed++;
        return;
    }
    if (run->failed++ < SHOWN_FAILURES)
        printf("failed: --salt %u --workload %s --at %zu --seed %llu: %s\n", workload_salt,
               run->w->name, state.changes, (unsigned long long)state.seed, text);
}

static void look_at(struct run *run, struct builder *b, size_t i)
{
    struct state state = run->states[i];
    struct qk_io *stores[STORES];
    char text[MODEL_TEXT] = "";
    struct verify_options opts = {
        .go_on = i % GO_ON_EVERY == 0 || run->settings->has_one,
        .oracle = i % ORACLE_EVERY == 0 && run->settings->oracle[0] ? run->settings->oracle : NULL,
    };
    stage_judge(&run->stage, model_moment(&run->stage.rec.model, state.changes), &opts);
    if (builder_make_both(b, state, stores) < 0)
        abort();
    if (opts.data)
        opts.data = stores[1];
    run->hashes[i] = hash_store(stores[0]) ^ hash_store(stores[1]) << 1;
    count_state(run, state, verify_image(stores[0], &opts, text), text);
    for (unsigned s = 0; s < STORES; s++)
        io_close(stores[s], NULL);
}

struct share {
    struct run *run;
    size_t from, to;
};

static void *look_at_share(void *arg)
{
    const struct share *share = arg;
    struct builder b;
    builder_init(&b, &share->run->history);
    for (size_t i = share->from; i < share->to; i++)
        look_at(share->run, &b, i);
    builder_free(&b);
    return NULL;
}

static void look_at_all(struct run *run)
{
    unsigned jobs = run->settings->jobs;
    CLEANUP_FREE pthread_t *threads = calloc(jobs, sizeof(*threads));
    CLEANUP_FREE struct share *shares = calloc(jobs, sizeof(*shares));
    if (!threads || !shares)
        abort();
    for (unsigned i = 0; i < jobs; i++) {
        shares[i] = (struct share){run, run->count * i / jobs, run->count * (i + 1) / jobs};
        if (pthread_create(&threads[i], NULL, look_at_share, &shares[i]) != 0)
            abort();
    }
    for (unsigned i = 0; i < jobs; i++)
        pthread_join(threads[i], NULL);
}

/* ---- one workload after the other ---- */

static int by_hash(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static size_t count_distinct(struct run *run)
{
    size_t distinct = 0;
    qsort(run->hashes, run->count, sizeof(*run->hashes), by_hash);
    for (size_t i = 0; i < run->count; i++)
        distinct += i == 0 || run->hashes[i] != run->hashes[i - 1];
    return distinct;
}

static void report(struct run *run)
{
    size_t flushes = 0;
    for (size_t i = 0; i < run->history.changes.len; i++)
        flushes += run->history.changes.ptr[i].kind == TRACE_FLUSH;
    printf("%-20s %6zu changes %5zu flushes %6zu states %6zu distinct %4zu failed\n", run->w->name,
           run->history.changes.len - flushes, flushes, run->count, count_distinct(run),
           run->failed);
}

static void run_workload(struct run *run, size_t count)
{
    int ret = record(run);
    if (ret < 0) {
        printf("failed: %s: the workload itself ends with %s, %u operations failed\n", run->w->name,
               strerror(-ret), run->stage.rec.errors);
        run->failed++;
        return;
    }
    if (run->settings->has_one) {
        run->states = calloc(1, sizeof(*run->states));
        run->hashes = calloc(1, sizeof(*run->hashes));
        run->states[run->count++] = run->settings->one;
    } else {
        choose_states(run, count);
    }
    look_at_all(run);
    report(run);
}

static void free_run(struct run *run)
{
    history_free(&run->history);
    stage_strike(&run->stage);
    free(run->states);
    free(run->hashes);
}

static void parse(struct settings *s, int argc, char **argv)
{
    static const struct option options[] = {
        {"states", required_argument, NULL, 'n'},
        {"jobs", required_argument, NULL, 'j'},
        {"workload", required_argument, NULL, 'w'},
        {"at", required_argument, NULL, 'a'},
        {"seed", required_argument, NULL, 's'},
        {"salt", required_argument, NULL, 'x'},
        {NULL, 0, NULL, 0},
    };
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) >= 0;) {
        if (c == 'n')
            s->states = strtoul(optarg, NULL, 0);
        else if (c == 'j')
            s->jobs = (unsigned)strtoul(optarg, NULL, 0);
        else if (c == 'w')
            s->only = optarg;
        else if (c == 'a')
            s->has_one = true, s->one.changes = strtoul(optarg, NULL, 0);
        else if (c == 'x')
            workload_salt = (uint32_t)strtoul(optarg, NULL, 0);
        else if (c == 's')
            s->one.seed = strtoull(optarg, NULL, 0);
        else
            exit(2);
    }
    const char *dir = getenv("QCOWKIT_ORACLE");
    snprintf(s->oracle, sizeof(s->oracle), "%s/qemu-img", dir ? dir : "/usr/bin");
    if (access(s->oracle, X_OK) != 0)
        s->oracle[0] = '\0';
}

int main(int argc, char **argv)
{
    struct settings settings = {.states = 20000 / SLOWER,
                                .jobs = (unsigned)sysconf(_SC_NPROCESSORS_ONLN)};
    size_t passed = 0, failed = 0;
    parse(&settings, argc, argv);
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; i < workload_count; i++) {
        if (settings.only && strcmp(settings.only, workloads[i].name) != 0)
            continue;
        struct run run = {.w = &workloads[i], .settings = &settings};
        pthread_mutex_init(&run.lock, NULL);
        run_workload(&run, settings.states / (settings.only ? 1 : workload_count) + 1);
        passed += run.passed;
        failed += run.failed;
        free_run(&run);
    }
    if (!settings.oracle[0])
        printf("no qemu-img to ask: our check and fsck.c only\n");
    printf("%zu passed, %zu failed\n", passed, failed);
    return failed || !passed;
}
