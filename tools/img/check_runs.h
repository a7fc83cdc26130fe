/*
 * check_runs.h - findings that differ by equal steps (struct qk_problem_run), taken apart again.
 */
#ifndef TOOLS_IMG_CHECK_RUNS_H
#define TOOLS_IMG_CHECK_RUNS_H

#include "qcowkit.h"

#include <stdio.h>

#define RUN_TEXT_BYTES 2048u

/* A part of a run, as a run of its own; a finding by itself is one of one. */
struct run_part {
    struct qk_problem first;
    struct qk_problem_run run;
    char text[RUN_TEXT_BYTES]; /* first.text */
};

/* Its texts are too long for the functions below. */
bool run_too_long(const struct qk_problem *first, const struct qk_problem_run *run);
/* Findings i to i + count - 1 of the run. */
void run_part(const struct qk_problem *first, const struct qk_problem_run *run, uint64_t i,
              uint64_t count, struct run_part *part);
/* The text of finding i; returns its length. */
size_t run_text(const struct qk_problem *first, const struct qk_problem_run *run, uint64_t i,
                char text[RUN_TEXT_BYTES]);
/* The texts of all of them, as lines. */
void run_write_lines(const struct qk_problem *first, const struct qk_problem_run *run, FILE *out);

#endif
