/*
 * cmd_break.c - break, remove_break, resume, wait_break: stopping requests at the events that a
 * blkdebug image names. Other images name no events.
 */
#include "io/io.h"
#include "io/request.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static int refuse(const char *what, int ret)
{
    if (ret < 0)
        printf("%s: %s\n", what, strerror(-ret));
    return ret;
}

/* Says once of each request that it has stopped. */
static void announce(struct session *session, const char *tag)
{
    const char *said = keyvals_get(&session->breaks, tag);
    if ((said && *said) || qk_disk_is_stopped(session->disk, tag, NULL) <= 0)
        return;
    printf("blkdebug: Suspended request '%s'\n", tag);
    keyvals_remove(&session->breaks, tag);
    keyvals_add(&session->breaks, tag, "said");
}

int do_break(struct session *session, const struct args *args)
{
    const char *tag = args->operand[1];
    int ret = qk_disk_set_break(session->disk, args->operand[0], tag, NULL);
    if (!ret)
        keyvals_add(&session->breaks, tag, "");
    return refuse("Could not set breakpoint", ret);
}

int do_remove_break(struct session *session, const struct args *args)
{
    const char *tag = args->operand[0];
    announce(session, tag);
    bool stopped = qk_disk_is_stopped(session->disk, tag, NULL) > 0;
    int ret = qk_disk_remove_break(session->disk, tag, NULL);
    if (!ret && stopped)
        printf("blkdebug: Resuming request '%s'\n", tag);
    if (ret)
        printf("Could not remove breakpoint %s: %s\n", tag, strerror(-ret));
    return ret;
}

int do_resume(struct session *session, const struct args *args)
{
    const char *tag = args->operand[0];
    announce(session, tag);
    int ret = qk_disk_resume(session->disk, tag, NULL);
    if (!ret)
        printf("blkdebug: Resuming request '%s'\n", tag);
    return refuse("Could not resume request", ret);
}

int do_wait_break(struct session *session, const struct args *args)
{
    static const struct timespec nap = {.tv_nsec = 1000000};
    int stopped;
    while (!(stopped = qk_disk_is_stopped(session->disk, args->operand[0], NULL))) {
        if (!queue_is_busy(session->queue)) {
            /* it may have stopped and gone on, or ended: nothing is left that could stop */
            stopped = -ENOENT;
            break;
        }
        nanosleep(&nap, NULL);
    }
    announce(session, args->operand[0]);
    return refuse("Could not wait for a request to stop", stopped < 0 ? stopped : 0);
}
