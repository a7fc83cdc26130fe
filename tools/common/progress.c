/*
 * progress.c - showing how far long work is (progress.h). The signal handler only sets a flag;
 * the line is printed by the next report.
 */
#include "common/progress.h"

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

static volatile sig_atomic_t asked;

static void on_signal(int number)
{
    (void)number;
    asked = 1;
}

static void print_line(struct progress *progress, double percent)
{
    progress->last = percent;
    printf("    (%3.2f/100%%)\r", percent);
    fflush(stdout);
}

/* One line per whole percent: {"percent": 42.00, "done": 21, "total": 50}. */
static void write_json(struct progress *progress, double percent, uint64_t done, uint64_t total)
{
    progress->last_fd = percent;
    if (dprintf(progress->fd, "{\"percent\": %.2f, \"done\": %llu, \"total\": %llu}\n", percent,
                (unsigned long long)done, (unsigned long long)total) < 0)
        progress->fd = -1; /* nobody listens any more: that must not stop the work */
}

void progress_begin(struct progress *progress, const struct opts *opts, double min_percent)
{
    *progress = (struct progress){
        .shown = opts_given(opts, 'p') && !opts_given(opts, 'q'),
        .fd = opts_given(opts, OPT_PROGRESS_FD) ? (int)opts_number(opts, OPT_PROGRESS_FD, 0) : -1,
        .min_percent = min_percent,
        .begun = true,
    };
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    if (progress->fd >= 0)
        signal(SIGPIPE, SIG_IGN);
    if (progress->shown)
        print_line(progress, 0);
    if (progress->fd >= 0)
        write_json(progress, 0, 0, 0);
}

struct qk_progress progress_hook(struct progress *progress)
{
    return (struct qk_progress){.report = progress_report, .opaque = progress};
}

int progress_report(void *opaque, uint64_t done, uint64_t total)
{
    struct progress *progress = opaque;
    double percent = total ? (double)done * 100.0 / (double)total : 100.0;
    if (progress->shown && percent > progress->last + progress->min_percent)
        print_line(progress, percent);
    if (progress->fd >= 0 && percent >= progress->last_fd + 1)
        write_json(progress, percent, done, total);
    progress->done = done;
    progress->total = total;
    if (asked) {
        asked = 0;
        fprintf(stderr, "    (%3.2f/100%%)\n", percent);
    }
    return 0;
}

void progress_end(struct progress *progress, bool finished)
{
    if (!progress->begun)
        return;
    if (progress->shown && finished)
        print_line(progress, 100);
    if (progress->shown)
        putchar('\n');
    if (progress->fd >= 0 && finished && progress->last_fd < 100)
        write_json(progress, 100, progress->total, progress->total);
    progress->begun = false;
}
