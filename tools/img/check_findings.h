/*
 * check_findings.h - what a check prints for what it finds. It is printed as it comes: nothing is
 * kept of a finding, of which there may be one for each cluster.
 */
#ifndef TOOLS_IMG_CHECK_FINDINGS_H
#define TOOLS_IMG_CHECK_FINDINGS_H

#include "common/progress.h"
#include "img/check_allow.h"
#include "img/check_json.h"
#include "img/check_lasting.h"
#include "qcowkit.h"

#define MAX_EXPLAINED 256u
struct check_findings {
    bool explain;            /* print the place of each, and the meaning of each kind once */
    struct lasting *lasting; /* of an image that others write to, what lasts is told; or NULL */
    bool hold;               /* tell nothing yet: more looks follow */
    bool plan;               /* print the steps of the plan */
    struct check_json *json; /* NULL: text */
    uint64_t lost_bytes;     /* of the guest, by the plan */
    unsigned last_epoch, steps;
    unsigned losses;           /* disks of which something is lost, as told so far */
    bool lost_things;          /* the plan gives up what has no guest range */
    bool mute;                 /* count, and print the plan only */
    struct progress *progress; /* its line makes room for what is printed; or NULL */
    /* What was found and not repaired: without a choice, with which choices, or in no way. */
    uint64_t safe_leaks, safe_errors, unreadable, stuck; /* stuck: in no way, unreadable or not */
    unsigned needed;                                     /* of enum qk_allow */
    uint64_t needing[CHECK_CHOICES];
    unsigned together[CHECK_CHOICES]; /* the choices that all of these need, this one included */
    bool explained[MAX_EXPLAINED];
    bool terminal; /* shows what is printed */
    char *buffer;  /* of stderr */
};

/* Lines between these go out in large pieces, unless a terminal shows them: a damaged image may
 * have one for each cluster. */
void findings_begin(struct check_findings *findings);
void findings_end(struct check_findings *findings);

/* For struct qk_check_options; opaque is a struct check_findings. */
void findings_on_problem(void *findings, const struct qk_problem *problem);
bool findings_on_run(void *findings, const struct qk_problem *first,
                     const struct qk_problem_run *run);
void findings_on_loss(void *findings, const struct qk_check_loss *loss);
void findings_on_step(void *findings, const struct qk_plan_step *step);
void findings_on_message(void *findings, const char *line);

/* Forgets what was counted, for a new look. */
void findings_recount(struct check_findings *findings);

#endif
