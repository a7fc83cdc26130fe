/*
 * cmd_break.c - break, remove_break, resume, wait_break: stopping requests at the events that a
 * blkdebug image names. Other images name no events.
 */
#include "io/io.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static int refuse(const char *what)
{
    printf("%s: %s\n", what, strerror(ENOTSUP));
    return -ENOTSUP;
}

int do_break(struct session *session, const struct args *args)
{
    (void)session, (void)args;
    return refuse("Could not set breakpoint");
}

int do_remove_break(struct session *session, const struct args *args)
{
    (void)session;
    printf("Could not remove breakpoint %s: %s\n", args->operand[0], strerror(ENOTSUP));
    return -ENOTSUP;
}

int do_resume(struct session *session, const struct args *args)
{
    (void)session, (void)args;
    return refuse("Could not resume request");
}

int do_wait_break(struct session *session, const struct args *args)
{
    (void)session, (void)args;
    return refuse("Could not wait for a request to stop");
}
