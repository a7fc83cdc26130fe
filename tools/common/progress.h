/*
 * progress.h - how long work shows how far it is: `    (12.34/100%)` with -p, on SIGUSR1
 * without, and as JSON lines on a descriptor of the caller's choice (--progress-fd). A program that
 * sets `estimate` after progress_begin has the time that is left behind it, `    (12.34/100%), 0:42
 * left`, but not with -p where stdout is no terminal; the JSON lines have "seconds-left" always.
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
    bool estimate;        /* say how much time is left: on a terminal, and on SIGUSR1 */
    bool terminal;        /* stdout is one */
    unsigned part, parts; /* of the work, see progress_part */
    struct timespec start;
};

/*
 * Reads -p, -q and --progress-fd; prints the first line (0 %) and, without -p, sets SIGUSR1 to
 * show progress. One at a time per program. min_percent as qemu-img has it: 1.0 for convert,
 * commit, rebase and amend; 2.0 for compare.
 */
void progress_begin(struct progress *progress, const struct opts *opts, double min_percent);

/* What library calls take. Valid as long as *progress is. */
struct qk_progress progress_hook(struct progress *progress);

/* The work consists of so many equal parts, and number `part` (from 0) begins. */
void progress_part(struct progress *progress, unsigned part, unsigned parts);

/* For loops of the tools themselves. Returns 0 to go on. */
int progress_report(void *progress, uint64_t done, uint64_t total);

/* Takes the line off a terminal, so that something else can be printed. NULL: nothing to do. */
void progress_clear(const struct progress *progress);

/* More work after progress_end: from the beginning on. */
void progress_again(struct progress *progress);

/* Ends the line; `finished`: show 100 % first. Harmless when nothing was begun. */
void progress_end(struct progress *progress, bool finished);

#endif
