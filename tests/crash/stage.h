/*
 * stage.h - the stack of stores that a workload runs on: memory at the bottom, above it the log of
 * changes, on top (when wanted) the filter that injects faults.
 */
#ifndef QK_CRASH_STAGE_H
#define QK_CRASH_STAGE_H

#include "states.h"
#include "verify.h"

struct stage {
    struct recorder rec;
    struct qk_io *trace;
    struct qk_io *fault;      /* NULL: none; else it is rec.file */
    struct qk_io *data_fault; /* the same of a data file */
    uint8_t *initial;         /* the file before the log begins */
    size_t initial_len;
    struct content initial_data; /* bytes NULL: there is no data file */
};

/* Stores and model, nothing opened yet. */
int stage_set(struct stage *stage, const struct workload *w, bool with_fault);
/* Opens the image; creates it first when the log is to show that, repairs it when damaged. */
int stage_begin(struct stage *stage);
/* The changes to image and data file. */
int stage_history(const struct stage *stage, struct history *history);
/* How an image of that moment is to be looked at. */
void stage_judge(const struct stage *stage, struct moment at, struct verify_options *opts);
void stage_strike(struct stage *stage);

#endif
