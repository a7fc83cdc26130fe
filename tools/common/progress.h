/*
 * progress.h - how long work shows how far it is: `    (12.34/100%)` with -p, on SIGUSR1
 * without, and as JSON lines on a descriptor of the caller's choice (--progress-fd).
 * Relies on options.h for the rows OPT_PROGRESS, OPT_ROW_PROGRESS_FD and OPT_QUIET.
 */
#ifndef TOOLS_COMMON_PROGRESS_H
#define TOOLS_COMMON_PROGRESS_H

#include "common/options.h"
#include "qcowkit.h"

#include <time.h>

struct progress {
    bool shown;         /* -p */
    int fd;             /* of --progress-fd, -1: none */
    double min_percent; /* smallest step that is printed */
    double last;        /* last percentage printed */
    double last_fd;
    uint64_t done, total;
    bool begun;
};

/*
 * Reads -p, -q and --progress-fd; prints the first line (0 %) and, without -p, sets SIGUSR1 to
 * show progress. One at a time per program. min_percent as qemu-img has it: 1.0 for convert,
 * commit, rebase and amend; 2.0 for compare.
 */
void progress_begin(struct progress *progress, const struct opts *opts, double min_percent);

/* What library calls take. Valid as long as *progress is. */
struct qk_progress progress_hook(struct progress *progress);

/* For loops of the tools themselves. Returns 0 to go on. */
int progress_report(void *progress, uint64_t done, uint64_t total);

/* Ends the line; `finished`: show 100 % first. Harmless when nothing was begun. */
void progress_end(struct progress *progress, bool finished);

#endif
