/*
 * cmd_check.c - `check`: look for damage in an image and repair it. Output and exit statuses are
 * qemu-img's: findings one per line on stderr as they come, the summary on stdout. With --explain
 * each kind of finding is followed by what it means. The backing file is not opened: a check is
 * about one image.
 */
#include "common/open.h"
#include "common/report.h"
#include "common/rows.h"
#include "img/check_findings.h"
#include "img/commands.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { OPT_EXPLAIN = OPT_LOCAL };
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
    OPT_SRC_CACHE,
    OPT_SHARE,
    OPT_QUIET,
    OPT_END,
};

static const struct cmd_text examples[] = {
    {"check disk.qcow2", "look only; nothing is written"},
    {"check -r leaks disk.qcow2", "give back space that nothing uses"},
    {"check -r all disk.qcow2", "repair refcounts and flags as well"},
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

static void print_json(const struct qk_check_result *r, struct qk_disk *disk, const char *name)
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
    struct json json = JSON_PRETTY(stdout);
    json_open(&json, NULL, '{');
    for (size_t i = 0; i < sizeof(head) / sizeof(*head); i++) {
        if (head[i].value || !head[i].optional)
            json_uint(&json, head[i].key, head[i].value);
    }
    json_text(&json, "filename", name);
    json_text(&json, "format", info.format ? info.format : "");
    if (r->fragmented_clusters)
        json_uint(&json, "fragmented-clusters", r->fragmented_clusters);
    json_close(&json, '}');
    putchar('\n');
}

/* ---- the command ---- */

struct check_run {
    struct image_request request;
    struct qk_disk *disk;
    const char *name;
    unsigned fix;
    bool quiet, json;
    struct check_findings findings;
    struct qk_check_result result;
};

static int check_once(struct check_run *run, unsigned fix, struct qk_error *err)
{
    struct qk_check_options check = QK_CHECK_OPTIONS_INIT;
    check.fix = fix;
    check.on_problem = findings_on_problem;
    check.on_message = findings_on_message;
    check.opaque = &run->findings;
    run->result = (struct qk_check_result)QK_CHECK_RESULT_INIT;
    return qk_disk_check(run->disk, &check, &run->result, err);
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
    int ret = check_once(run, 0, err);
    run->result.leaks_fixed = first.leaks_fixed;
    run->result.corruptions_fixed = first.corruptions_fixed;
    return ret;
}

/* The same look once more, from the header on; what was found before and is not now is forgotten.
 */
static int look_again(struct check_run *run, struct qk_error *err)
{
    struct check_findings before = run->findings;
    run->findings = (struct check_findings){.explain = before.explain, .hold = true};
    drop_image(&run->disk);
    int ret = open_image(run->name, &run->request, &run->disk);
    if (ret == 0)
        ret = check_once(run, 0, err);
    if (ret == 0)
        findings_keep_common(&run->findings, &before, &run->result);
    findings_free(&before);
    return ret;
}

/* An image that another program may be writing: findings are believed when they last. */
static int check_shared(struct check_run *run, struct qk_error *err)
{
    const struct timespec pause = {0, 50 * 1000 * 1000};
    run->findings.hold = true;
    int ret = check_once(run, 0, err);
    for (int i = 0; ret == 0 && i < LOOKS_WHEN_SHARED && run->findings.count; i++) {
        nanosleep(&pause, NULL);
        ret = look_again(run, err);
    }
    findings_print(&run->findings);
    return ret;
}

static int check_all(struct check_run *run, struct qk_error *err)
{
    if (run->request.flags & QK_OPEN_FORCE_SHARE)
        return check_shared(run, err);
    int ret = check_once(run, run->fix, err);
    return ret < 0 ? ret : check_again(run, err);
}

static int run_check(struct check_run *run)
{
    struct qk_error err = {0};
    int ret = check_all(run, &err);
    if (ret == -ENOTSUP) {
        report_error("This image format does not support checks");
        return STATUS_NONE;
    }
    if (ret < 0) {
        if (run->disk) /* else the message of the failed opening is there */
            report_failure(&err, "Check failed");
        return STATUS_FAILED;
    }
    const struct qk_check_result *r = &run->result;
    if (!run->json)
        print_text(r, run->quiet);
    else if (!run->quiet)
        print_json(r, run->disk, run->name);
    if (r->check_errors) {
        fflush(stdout);
        report_error("Check failed");
        return STATUS_FAILED;
    }
    return r->corruptions ? STATUS_CORRUPT : r->leaks ? STATUS_LEAKS : STATUS_OK;
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

int cmd_check(int argc, char **argv)
{
    OPTS_CLEANUP struct opts opts;
    int status = opts_parse(&desc_check, argc, argv, &opts);
    if (status >= 0)
        return status;
    struct check_run run = {.quiet = opts_given(&opts, 'q'), .json = opts_json(&opts)};
    run.findings.explain = opts_given(&opts, OPT_EXPLAIN);
    status = repair_option(&opts, &run.fix);
    if (status < 0 && opts.operand_count != 1)
        status = usage_error("Expecting one image file name");
    if (status < 0)
        status = image_request_from(&opts, &run.request);
    if (status < 0)
        status = cache_mode_option(&opts, 'T', "writeback", &run.request.flags);
    if (status >= 0)
        return status;
    run.request.flags |= QK_OPEN_CHECK | QK_OPEN_NO_BACKING | QK_OPEN_NO_IO;
    if (run.fix)
        run.request.flags |= QK_OPEN_RDWR;
    run.name = opts.operand[0];
    if (open_image(run.name, &run.request, &run.disk) < 0)
        return STATUS_FAILED;
    status = run_check(&run);
    findings_free(&run.findings);
    return close_image(run.disk) ? STATUS_FAILED : status;
}
