/*
 * check_json.h - the result of a check as one JSON object, written while the check runs, so that
 * millions of findings take no memory: first `findings`, `losses` and `plan`, then what qemu-img
 * prints. Only losses, one for each disk, are kept until no finding can follow.
 */
#ifndef TOOLS_IMG_CHECK_JSON_H
#define TOOLS_IMG_CHECK_JSON_H

#include "common/rows.h"
#include "qcowkit.h"

struct check_json_held;
struct check_json {
    struct json json;
    struct check_json_held *losses, **losses_end; /* not written yet */
    bool details;  /* with findings and plan; else qemu-img's fields only */
    bool explain;  /* and with what each kind of finding means */
    unsigned open; /* how many of the lists were begun */
};

void check_json_begin(struct check_json *j, bool details, bool explain);
/* One finding, or a run of them as one object with `count` and `last`; run: NULL for one. */
void check_json_problem(struct check_json *j, const struct qk_problem *p,
                        const struct qk_problem_run *run);
void check_json_loss(struct check_json *j, const struct qk_check_loss *l);
void check_json_step(struct check_json *j, const struct qk_plan_step *s);
/* Ends the lists. What follows goes into the object; check_json_end closes that. */
void check_json_end_lists(struct check_json *j);
void check_json_end(struct check_json *j);
/* Instead of both, when the check could not be completed: qemu-img prints nothing then. */
void check_json_failed(struct check_json *j, const char *why);

#endif
