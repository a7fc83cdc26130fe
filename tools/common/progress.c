/*
 * progress.c - showing how far long work is (progress.h). The signal handler only sets a flag;
 * the line is printed by the next report.
 */
#include "common/progress.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#define LINE_WIDTH 40 /* of the longest line, and more */

static atomic_int asked; /* by whichever thread has got the signal */

static void on_signal(int number)
{
    (void)number;
    atomic_store(&asked, 1);
}

/* By the time that it took so far; -1: too early to tell. */
static double seconds_left(const struct progress *progress, double percent)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double spent = (double)(now.tv_sec - progress->start.tv_sec) +
                   (double)(now.tv_nsec - progress->start.tv_nsec) / 1e9;
    return percent >= 1 ? spent * (100 - percent) / percent : -1;
}

/* ", 1:02:03 left", or nothing. */
static void left_text(const struct progress *progress, double percent, char *out, size_t size)
{
    double left = progress->estimate ? seconds_left(progress, percent) : -1;
    unsigned long s = left > 0 && left < 1e9 ? (unsigned long)(left + 0.5) : 0;
    *out = '\0';
    if (left >= 0 && s >= 3600)
        snprintf(out, size, ", %lu:%02lu:%02lu left", s / 3600, s / 60 % 60, s % 60);
    else if (left >= 0)
        snprintf(out, size, ", %lu:%02lu left", s / 60, s % 60);
}

/* Blanks cover a longer line before it. */
static void print_line(struct progress *progress, double percent)
{
    char left[64] = "";
    progress->last = percent;
    if (progress->terminal)
        left_text(progress, percent, left, sizeof(left));
    if (progress->terminal && progress->estimate)
        printf("    (%3.2f/100%%)%-18s\r", percent, left);
    else
        printf("    (%3.2f/100%%)\r", percent);
    fflush(stdout);
}

/* One line per whole percent: {"percent": 42.00, "done": 21, "total": 50, "seconds-left": 3.1}. */
static void write_json(struct progress *progress, double percent, uint64_t done, uint64_t total)
{
    char left[64] = "";
    double seconds = seconds_left(progress, percent);
    if (seconds >= 0)
        snprintf(left, sizeof(left), ", \"seconds-left\": %.1f", seconds);
    progress->last_fd = percent;
    if (dprintf(progress->fd, "{\"percent\": %.2f, \"done\": %llu, \"total\": %llu%s}\n", percent,
                (unsigned long long)done, (unsigned long long)total, left) < 0)
        progress->fd = -1; /* nobody listens any more: that must not stop the work */
}

void progress_begin(struct progress *progress, const struct opts *opts, double min_percent)
{
    *progress = (struct progress){
        .shown = opts_given(opts, 'p') && !opts_given(opts, 'q'),
        .fd = opts_given(opts, OPT_PROGRESS_FD) ? (int)opts_number(opts, OPT_PROGRESS_FD, 0) : -1,
        .min_percent = min_percent,
        .begun = true,
        .terminal = isatty(STDOUT_FILENO),
        .parts = 1,
    };
    clock_gettime(CLOCK_MONOTONIC, &progress->start);
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

void progress_part(struct progress *progress, unsigned part, unsigned parts)
{
    progress->part = part;
    progress->parts = parts;
}

int progress_report(void *opaque, uint64_t done, uint64_t total)
{
    struct progress *progress = opaque;
    double percent = total ? (double)done * 100.0 / (double)total : 100.0;
    if (progress->parts > 1)
        percent = (100.0 * progress->part + percent) / progress->parts;
    if (progress->shown && percent > progress->last + progress->min_percent)
        print_line(progress, percent);
    if (progress->fd >= 0 && percent >= progress->last_fd + 1)
        write_json(progress, percent, done, total);
    progress->done = done;
    progress->total = total;
    if (atomic_exchange(&asked, 0)) {
        char left[64];
        left_text(progress, percent, left, sizeof(left));
        fprintf(stderr, "    (%3.2f/100%%)%s\n", percent, left);
    }
    return 0;
}

void progress_clear(const struct progress *progress)
{
    if (!progress || !progress->begun || !progress->shown || !progress->terminal)
        return;
    printf("%*s\r", LINE_WIDTH, "");
    fflush(stdout);
}

void progress_again(struct progress *progress)
{
    progress->begun = true;
    progress->last = 0;
    clock_gettime(CLOCK_MONOTONIC, &progress->start);
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
