/*
 * cmd_check.c - `check`: look for damage in an image and repair it. Output and exit statuses are
 * qemu-img's: findings one per line on stderr as they come, the summary on stdout. With --explain
 * each kind of finding is followed by what it means. The backing file is not opened: a check is
 * about one image.
 */
#include "common/open.h"
#include "common/progress.h"
#include "common/report.h"
#include "common/rows.h"
#include "img/check_advice.h"
#include "img/check_findings.h"
#include "img/commands.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { OPT_EXPLAIN = OPT_LOCAL, OPT_PLAN, OPT_UNDO, OPT_NO_UNDO, OPT_ALLOW };
#define UNDO_NAMES        10000
#define LOOKS_WHEN_SHARED 4
enum { STATUS_OK = 0, STATUS_FAILED = 1, STATUS_CORRUPT = 2, STATUS_LEAKS = 3, STATUS_NONE = 63 };

static const struct opt_desc options[] = {
    OPT_FORMAT,
    OPT_ROW_IMAGE_OPTS,
    OPT_ROW_OBJECT,
    OPT_ROW_OUTPUT,
    {'r', "repair", "WHAT", "repair \"leaks\" only, or \"all\"", OPT_KIND_TEXT, NULL, 0, 0,
     "leaks all"},
    {OPT_EXPLAIN, "explain", NULL, "say what each kind of finding means, and its repair",
     OPT_KIND_FLAG, NULL, 0, 0, NULL},
    {OPT_PLAN, "plan", NULL, "tell what a repair would do (-r all, or as -r says); write nothing",
     OPT_KIND_FLAG, NULL, 0, 0, NULL},
    {OPT_ALLOW, "allow", "LIST",
     "what -r may choose: copies, entries, snapshots, bitmaps, header, or lossy for these five; "
     "and, only by name, rollback[=SNAPSHOT] and l1",
     OPT_KIND_TEXT, NULL, 0, 0, "copies entries snapshots bitmaps header lossy rollback l1"},
    {OPT_UNDO, "undo", "FILE", "save what -r overwrites in FILE (default: FILENAME.undo-N)",
     OPT_KIND_FILE, NULL, 0, 0, NULL},
    {OPT_NO_UNDO, "no-undo", NULL, "save nothing of what -r overwrites", OPT_KIND_FLAG, NULL, 0, 0,
     NULL},
    OPT_PROGRESS,
    OPT_ROW_PROGRESS_FD,
    OPT_SRC_CACHE,
    OPT_SHARE,
    OPT_QUIET,
    OPT_END,
};

static const struct cmd_text examples[] = {
    {"check disk.qcow2", "look only; nothing is written"},
    {"check -r leaks disk.qcow2", "give back space that nothing uses"},
    {"check -r all disk.qcow2", "repair refcounts and flags as well"},
    {"check --plan disk.qcow2", "what -r all would do and what would be lost; nothing is written"},
    {"check -r all --allow entries disk.qcow2", "clear entries that lead nowhere, as well"},
    {"check -r all --allow rollback=monday disk.qcow2",
     "where the active tables are damaged, bring the disk back to that snapshot"},
    {"check -r all --undo before.undo disk.qcow2", "keep what the repair overwrites, for `undo`"},
    {"check --explain disk.qcow2", "the same look, with the meaning of what is found"},
    {"check --output=json -U disk.qcow2", "for programs; also while a guest uses the image"},
    {NULL, NULL},
};

static const struct cmd_text statuses[] = {
    {"0", "the image is sound (after -r: is sound now)"},
    {"1", "the check could not be completed"},
    {"2", "the image is damaged"},
    {"3", "the image has leaked clusters, but no damage"},
    {"63", "images of this format cannot be checked"},
    {NULL, NULL},
};

const struct cmd_desc desc_check = {
    .name = "check",
    .summary = "look for damage in an image, and repair it",
    .operands = "FILENAME",
    .options = options,
    .examples = examples,
    .statuses = statuses,
};

/* ---- results ---- */

static void print_text(const struct qk_check_result *r, bool quiet)
{
    if (!r->corruptions && !r->leaks && !r->check_errors)
        say(quiet, "No errors were found on the image.\n");
    if (r->corruptions)
        say(quiet,
            "\n%" PRIu64 " errors were found on the image.\n"
            "Data may be corrupted, or further writes to the image may corrupt it.\n",
            r->corruptions);
    if (r->leaks)
        say(quiet,
            "\n%" PRIu64 " leaked clusters were found on the image.\n"
            "This means waste of disk space, but no harm to data.\n",
            r->leaks);
    if (r->check_errors)
        say(quiet, "\n%" PRIu64 " internal errors have occurred during the check.\n",
            r->check_errors);
    double allocated = (double)r->allocated_clusters, total = (double)r->total_clusters;
    if (r->total_clusters && r->allocated_clusters)
        say(quiet,
            "%" PRIu64 "/%" PRIu64 " = %0.2f%% allocated, %0.2f%% fragmented, "
            "%0.2f%% compressed clusters\n",
            r->allocated_clusters, r->total_clusters, allocated * 100.0 / total,
            (double)r->fragmented_clusters * 100.0 / allocated,
            (double)r->compressed_clusters * 100.0 / allocated);
    if (r->image_end_off)
        say(quiet, "Image end offset: %" PRIu64 "\n", r->image_end_off);
}

static void print_json(struct check_json *out, const struct qk_check_result *r,
                       struct qk_disk *disk, const char *name)
{
    struct qk_info info = QK_INFO_INIT;
    qk_disk_info(disk, &info, NULL);
    /* In qemu's order of keys; those of `optional` are left out when they are zero. */
    const struct {
        const char *key;
        uint64_t value;
        bool optional;
    } head[] = {
        {"image-end-offset", r->image_end_off, true},
        {"compressed-clusters", r->compressed_clusters, true},
        {"total-clusters", r->total_clusters, true},
        {"corruptions", r->corruptions, true},
        {"corruptions-fixed", r->corruptions_fixed, true},
        {"check-errors", r->check_errors, false},
        {"leaks", r->leaks, true},
        {"leaks-fixed", r->leaks_fixed, true},
        {"allocated-clusters", r->allocated_clusters, true},
    };
    struct json *json = &out->json;
    for (size_t i = 0; i < sizeof(head) / sizeof(*head); i++) {
        if (head[i].value || !head[i].optional)
            json_uint(json, head[i].key, head[i].value);
    }
    json_text(json, "filename", name);
    json_text(json, "format", info.format ? info.format : "");
    if (r->fragmented_clusters)
        json_uint(json, "fragmented-clusters", r->fragmented_clusters);
}

/* ---- the command ---- */

struct check_run {
    struct image_request request;
    struct qk_disk *disk;
    const char *name;
    unsigned fix;
    unsigned allow;
    bool quiet, json, plan, no_undo;
    const char *undo_given; /* --undo */
    char *undo;             /* the undo file of a repair; NULL: none */
    char *rollback;         /* to which snapshot the disk may go back; NULL: the newest sound one */
    bool undo_saved, own;   /* own: called as qcowkit */
    struct check_findings findings;
    struct check_json out;
    struct progress progress;
    struct qk_check_result result;
};

static int check_once(struct check_run *run, unsigned fix, struct qk_error *err)
{
    struct qk_check_options check = QK_CHECK_OPTIONS_INIT;
    check.fix = fix;
    check.on_problem = findings_on_problem;
    check.on_run = findings_on_run;
    check.on_message = findings_on_message;
    check.on_step = findings_on_step;
    bool words_in_json = run->json && !run->findings.json; /* the second look: that is told */
    if ((run->own || run->findings.explain || run->plan) && !run->quiet && !run->findings.lasting &&
        !words_in_json)
        check.on_loss = findings_on_loss;
    check.opaque = &run->findings;
    check.allow = run->allow;
    check.rollback = run->rollback;
    check.plan_only = run->plan;
    check.undo_file = run->undo;
    check.progress = progress_hook(&run->progress);
    run->result = (struct qk_check_result)QK_CHECK_RESULT_INIT;
    findings_begin(&run->findings);
    int ret = qk_disk_check(run->disk, &check, &run->result, err);
    findings_end(&run->findings);
    return ret;
}

/* After a repair the image is checked once more, and that is what counts. */
static int check_again(struct check_run *run, struct qk_error *err)
{
    const struct qk_check_result first = run->result;
    if (!first.corruptions_fixed && !first.leaks_fixed)
        return 0;
    if (!run->json)
        say(run->quiet,
            "The following inconsistencies were found and repaired:\n\n"
            "    %" PRIu64 " leaked clusters\n"
            "    %" PRIu64 " corruptions\n\n"
            "Double checking the fixed image now...\n",
            first.leaks_fixed, first.corruptions_fixed);
    fflush(stdout);
    findings_recount(&run->findings);
    progress_part(&run->progress, 1, 2);
    struct check_json *json = run->findings.json;
    run->findings.json = NULL; /* the findings that count are there */
    int ret = check_once(run, 0, err);
    run->findings.json = json;
    run->result.leaks_fixed = first.leaks_fixed;
    run->result.corruptions_fixed = first.corruptions_fixed;
    return ret;
}

/* The same look once more, from the header on. */
static int look_again(struct check_run *run, struct qk_error *err)
{
    const struct timespec pause = {0, 50 * 1000 * 1000};
    nanosleep(&pause, NULL);
    lasting_next(run->findings.lasting);
    drop_image(&run->disk);
    int ret = open_image(run->name, &run->request, &run->disk);
    return ret < 0 ? ret : check_once(run, 0, err);
}

/* An image that another program may be writing: findings are believed when they last, and so told
 * by the last look. */
static int check_shared(struct check_run *run, struct qk_error *err)
{
    struct lasting lasting;
    lasting_begin(&lasting);
    run->findings.lasting = &lasting;
    run->findings.hold = true;
    int ret = check_once(run, 0, err);
    for (int i = 1; ret == 0 && i <= LOOKS_WHEN_SHARED && lasting_count(&lasting); i++) {
        run->findings.hold = i < LOOKS_WHEN_SHARED;
        ret = look_again(run, err);
    }
    run->result.corruptions = lasting.kept[QK_SEVERITY_CORRUPTION];
    run->result.leaks = lasting.kept[QK_SEVERITY_LEAK];
    run->result.check_errors = lasting.kept[QK_SEVERITY_ERROR];
    lasting_free(&lasting);
    run->findings.lasting = NULL;
    return ret;
}

/* The first of `stem`1, `stem`2, ... that is free, from `first` on. */
static int first_free(struct check_run *run, const char *stem, int first)
{
    struct stat st;
    for (int i = first; i < UNDO_NAMES; i++) {
        run->undo = xprintf("%s%d", stem, i);
        if (lstat(run->undo, &st) < 0 && errno == ENOENT)
            return 0;
        text_free(&run->undo);
    }
    report_error("There are %d undo files beside '%s' already", UNDO_NAMES - 1, run->name);
    return -1;
}

/* FILE is for the first repair of this run, FILE.2 for what a choice repairs after it. */
static int given_undo(struct check_run *run)
{
    if (!run->undo_saved) {
        run->undo = xstrdup(run->undo_given);
        return 0;
    }
    char *stem = xprintf("%s.", run->undo_given);
    int ret = first_free(run, stem, 2);
    text_free(&stem);
    return ret;
}

/* An image that is no plain file has no place of its own for undo files. */
static bool place_beside(const struct check_run *run)
{
    struct stat st;
    return !run->request.image_opts && stat(run->name, &st) == 0 && S_ISREG(st.st_mode);
}

static int choose_undo(struct check_run *run)
{
    if (!run->fix || run->plan || run->no_undo)
        return 0;
    if (run->undo_given)
        return given_undo(run);
    if (!run->own)
        return 0;
    if (!place_beside(run)) {
        report_error("There is no place for an undo file beside '%s'; give --undo FILE, or "
                     "--no-undo to repair without",
                     run->name);
        return -1;
    }
    char *stem = xprintf("%s.undo-", run->name);
    int ret = first_free(run, stem, 1);
    text_free(&stem);
    return ret;
}

/* An undo takes the name of the file, whatever way the image was named. */
static void say_undo(const struct check_run *run)
{
    struct qk_info info = QK_INFO_INIT;
    qk_disk_info(run->disk, &info, NULL);
    TEXT_CLEANUP char *name = shell_word(info.file_name ? info.file_name : run->name);
    TEXT_CLEANUP char *undo = shell_word(run->undo);
    progress_clear(&run->progress);
    say(run->quiet, "What is overwritten was saved: `%s undo %s %s` takes the repair back.\n",
        program_name(), name, undo);
}

static int repair_once(struct check_run *run, struct qk_error *err)
{
    progress_part(&run->progress, 0, 2);
    int ret = check_once(run, run->fix, err);
    run->undo_saved |= run->result.undo_saved;
    if (run->result.undo_saved && !run->json)
        say_undo(run);
    return ret < 0 ? ret : check_again(run, err);
}

/* ---- questions ---- */

static bool answered_yes(void)
{
    char answer[16];
    fflush(stdout);
    if (!fgets(answer, sizeof(answer), stdin)) {
        putchar('\n');
        return false;
    }
    return answer[0] == 'y' || answer[0] == 'Y';
}

/* Which of the choices that are left to make. */
static unsigned ask_choices(const struct check_findings *f, unsigned needed)
{
    unsigned chosen = 0, asked = 0;
    bool many = needed & (needed - 1);
    for (size_t i = 0; i < CHECK_CHOICES; i++) {
        const struct check_choice *choice = check_choice_at(i, needed);
        const uint64_t n = f->needing[choice - check_choices];
        const unsigned bits = f->together[choice - check_choices];
        bool moot = (bits & QK_ALLOW_L1) && (chosen & QK_ALLOW_ROLLBACK);
        if (!(needed & choice->bit) || !(bits & ~asked) || moot)
            continue;
        asked |= bits;
        TEXT_CLEANUP char *names = check_allow_names(bits, NULL);
        TEXT_CLEANUP char *count = check_choice_count(choice, n);
        printf("\n%s %s left to a choice (--allow %s): %s%s", count, n == 1 ? "is" : "are", names,
               choice->does, many ? "? [y/N] " : ".\n");
        if (!many || answered_yes())
            chosen |= bits;
    }
    return chosen;
}

/* Shows what a repair with these choices would do, and asks for leave. */
static int ask_leave(struct check_run *run, unsigned chosen, bool *leave, struct qk_error *err)
{
    const struct qk_check_result before = run->result;
    const unsigned allowed = run->allow;
    findings_recount(&run->findings);
    run->findings.mute = run->findings.plan = run->plan = true;
    run->allow |= chosen;
    int ret = check_once(run, run->fix, err);
    run->findings.mute = run->findings.plan = run->plan = false;
    *leave = false;
    if (ret == 0 && !run->result.steps)
        printf("There is nothing that a repair would do.\n");
    if (ret == 0 && run->result.steps) {
        printf("Do this? [y/N] ");
        *leave = answered_yes();
    }
    run->result = before;
    if (!*leave)
        run->allow = allowed;
    return ret;
}

/* On a terminal what needs a choice is asked for, once, after the rest was repaired. */
static int wants_choices(struct check_run *run, bool *leave, struct qk_error *err)
{
    const struct qk_check_result *r = &run->result;
    unsigned needed = run->findings.needed & ~run->allow;
    *leave = false;
    if (!(run->fix & QK_FIX_ERRORS) || run->json || run->quiet || !needed ||
        !(r->corruptions | r->check_errors) || !isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
        return 0;
    progress_end(&run->progress, true);
    const struct check_findings found = run->findings;
    unsigned chosen = ask_choices(&found, needed);
    int ret = chosen ? ask_leave(run, chosen, leave, err) : 0;
    if (!*leave)
        run->findings = found;
    else
        progress_again(&run->progress);
    return ret;
}

static int repair_all(struct check_run *run, struct qk_error *err)
{
    if (choose_undo(run) < 0)
        return -ECANCELED;
    bool leave;
    int ret = repair_once(run, err);
    if (ret == 0)
        ret = wants_choices(run, &leave, err);
    if (ret < 0 || !leave)
        return ret;
    findings_recount(&run->findings);
    text_free(&run->undo);
    run->undo = NULL;
    if (choose_undo(run) < 0)
        return -ECANCELED;
    return repair_once(run, err);
}

static int check_all(struct check_run *run, struct qk_error *err)
{
    if (run->request.flags & QK_OPEN_FORCE_SHARE)
        return check_shared(run, err);
    return run->fix && !run->plan ? repair_all(run, err) : check_once(run, run->fix, err);
}

static int exit_status(const struct qk_check_result *r, bool own)
{
    if (r->check_errors) {
        fflush(stdout);
        if (own)
            report_error("Check failed: %" PRIu64 " structure%s could not be read, so there may be "
                         "more damage",
                         r->check_errors, r->check_errors == 1 ? "" : "s");
        else
            report_error("Check failed");
        return STATUS_FAILED;
    }
    return r->corruptions ? STATUS_CORRUPT : r->leaks ? STATUS_LEAKS : STATUS_OK;
}

/* Of an image that others write to, findings come and go. */
static void print_advice(const struct check_run *run)
{
    const struct check_advice advice = {
        .name = run->name,
        .format = run->request.format,
        .image_opts = run->request.image_opts,
        .objects = run->request.secrets,
        .undo_beside = place_beside(run),
        .plan = run->plan,
        .fix = run->fix,
        .allow = run->allow,
        .rollback = run->rollback,
        .findings = &run->findings,
        .result = &run->result,
    };
    if (!(run->request.flags & QK_OPEN_FORCE_SHARE))
        check_advice_print(&advice);
}

static void print_result(struct check_run *run)
{
    const struct qk_check_result *r = &run->result;
    if (run->json && !run->quiet) {
        check_json_end_lists(&run->out);
        print_json(&run->out, r, run->disk, run->name);
        if (run->undo_saved)
            json_text(&run->out.json, "undo-file", run->undo);
        if (run->out.details)
            json_bool(&run->out.json, "leaks-kept", r->leaks && r->leaks_kept);
        check_json_end(&run->out);
    } else if (!run->json) {
        if (run->plan && !r->steps)
            say(run->quiet, "There is nothing that a repair would do.\n");
        print_text(r, run->quiet);
        if (run->own && !run->quiet)
            print_advice(run);
    }
}

static int run_check(struct check_run *run)
{
    struct qk_error err = {0};
    int ret = check_all(run, &err);
    progress_end(&run->progress, ret == 0);
    if (ret < 0 && run->json && !run->quiet)
        check_json_failed(&run->out, err.text);
    if (ret == -ENOTSUP && !run->undo_saved) {
        report_error("This image format does not support checks");
        if (run->own && !run->request.format && !run->request.image_opts)
            report_error(
                "If this is a qcow2 image whose first bytes are damaged, -f qcow2 says so");
        return STATUS_NONE;
    }
    if (ret < 0) {
        if (run->disk && err.text[0]) /* else the message is there */
            report_failure(&err, "Check failed");
        if (!strcmp(err.structure, "undo file"))
            report_error(
                "The image was not changed. Give --undo FILE a place elsewhere, or --no-undo "
                "to repair without a way back");
        return STATUS_FAILED;
    }
    print_result(run);
    return exit_status(&run->result, run->own);
}

/* -1 to go on. */
static int repair_option(const struct opts *opts, unsigned *fix)
{
    const char *what = opts_string(opts, 'r');
    *fix = 0;
    if (!what)
        return -1;
    if (!strcmp(what, "leaks"))
        *fix = QK_FIX_LEAKS;
    else if (!strcmp(what, "all"))
        *fix = QK_FIX_LEAKS | QK_FIX_ERRORS;
    else
        return usage_error("Unknown option value for -r (expecting 'leaks' or 'all'): %s", what);
    return -1;
}

static int read_options(struct check_run *run, const struct opts *opts)
{
    run->quiet = opts_given(opts, 'q');
    run->json = opts_json(opts);
    run->plan = opts_given(opts, OPT_PLAN);
    run->no_undo = opts_given(opts, OPT_NO_UNDO);
    run->undo_given = opts_string(opts, OPT_UNDO);
    run->findings.explain = opts_given(opts, OPT_EXPLAIN);
    run->findings.plan = run->plan && !run->quiet;
    int status = repair_option(opts, &run->fix);
    if (status < 0)
        status = check_allow_option(opts, OPT_ALLOW, &run->allow, &run->rollback);
    if (status >= 0)
        return status;
    if (run->plan && !run->fix)
        run->fix = QK_FIX_LEAKS | QK_FIX_ERRORS;
    if (opts->operand_count != 1)
        return usage_error("Expecting one image file name");
    if ((run->undo_given || run->allow) && !run->fix)
        return usage_error("--undo and --allow are about a repair: they need -r or --plan");
    if (run->allow && !(run->fix & QK_FIX_ERRORS))
        return usage_error("--allow is about what -r all repairs; -r leaks makes no choice");
    if (run->undo_given && run->no_undo)
        return usage_error("--undo and --no-undo contradict each other");
    run->request = image_request_from(opts);
    return cache_mode_option(opts, 'T', "writeback", &run->request.flags);
}

static void hint_not_opened(const struct check_run *run, int ret)
{
    if (ret == -EAGAIN && run->fix && !run->plan)
        report_error(
            "Nothing was changed: a repair needs the image for itself. End the program that "
            "uses it, then try again");
    else if (ret == -EAGAIN)
        report_error("-U looks at an image that is in use; what it finds may be changing");
    else if ((ret == -EACCES || ret == -EROFS) && run->fix && !run->plan)
        report_error("Nothing was changed: the image cannot be written to. A copy of it can be "
                     "repaired in its place; --plan tells what would be done");
}

int cmd_check(int argc, char **argv)
{
    OPTS_CLEANUP struct opts opts;
    int status = opts_parse(&desc_check, argc, argv, &opts);
    if (status >= 0)
        return status;
    struct check_run run = {.own = !strcmp(program_name(), "qcowkit")};
    status = read_options(&run, &opts);
    if (status >= 0)
        return status;
    run.request.flags |= QK_OPEN_CHECK | QK_OPEN_NO_BACKING | QK_OPEN_NO_IO;
    if (run.fix && !run.plan)
        run.request.flags |= QK_OPEN_RDWR;
    run.name = opts.operand[0];
    int ret = open_image(run.name, &run.request, &run.disk);
    if (ret < 0) {
        if (run.own)
            hint_not_opened(&run, ret);
        return STATUS_FAILED;
    }
    if (run.json && !run.quiet) {
        check_json_begin(&run.out, run.own || run.plan || run.findings.explain,
                         run.findings.explain);
        run.findings.json = &run.out;
    }
    progress_begin(&run.progress, &opts, 1.0);
    run.progress.estimate = run.own;
    run.findings.progress = &run.progress;
    status = run_check(&run);
    text_free(&run.undo);
    text_free(&run.rollback);
    return close_image(run.disk) ? STATUS_FAILED : status;
}
