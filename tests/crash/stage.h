/*
 * stage.h - the stack of stores that a workload runs on: memory at the bottom, above it the log of
 * changes, on top (when wanted) the filter that injects faults.
 */
#ifndef QK_CRASH_STAGE_H
#define QK_CRASH_STAGE_H

#include "verify.h"

struct stage {
    struct recorder rec;
    struct qk_io *trace;
    struct qk_io *fault; /* NULL: none; else it is rec.file */
    uint8_t *initial;    /* the file before the log begins */
    size_t initial_len;
};

/* Stores and model, nothing opened yet. */
int stage_set(struct stage *stage, const struct workload *w, bool with_fault);
/* Opens the image; creates it first when the log is to show that, repairs it when damaged. */
int stage_begin(struct stage *stage);
/* How an image of that moment is to be looked at. */
void stage_judge(const struct stage *stage, struct moment at, struct verify_options *opts);
void stage_strike(struct stage *stage);

#endif
