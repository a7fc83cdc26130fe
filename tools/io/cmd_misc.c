/*
 * cmd_misc.c - commands about this program itself: help, quit, sleep, abort, sigraise.
 */
#include "io/io.h"
#include "io/request.h"
#include "io/words.h"

#include <ctype.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static void help_one(const struct command *command, const char *name)
{
    command_print(command, name);
    if (command->text)
        printf("\n%s", command->text);
    if (!command->options || !command->options->letter)
        return;
    putchar('\n');
    for (const struct arg_desc *option = command->options; option->letter; option++)
        printf(" -%c, -- %s\n", option->letter, option->help);
}

int do_help(struct session *session, const struct args *args)
{
    (void)session;
    if (args->count) {
        const struct command *command = command_find(args->operand[0]);
        if (!command) {
            printf("command %s not found\n", args->operand[0]);
            return -EINVAL;
        }
        help_one(command, args->operand[0]);
        return 0;
    }
    for (const struct command *command = io_commands; command->name; command++)
        command_print(command, command->name);
    printf("\nUse 'help commandname' for extended help.\n");
    return 0;
}

int do_quit(struct session *session, const struct args *args)
{
    (void)args;
    session->quit = true;
    return 0;
}

int do_sleep(struct session *session, const struct args *args)
{
    char *end;
    errno = 0;
    unsigned long ms = strtoul(args->operand[0], &end, 0);
    if (errno || *end || !isdigit((unsigned char)args->operand[0][0])) {
        printf("%s is not a valid number\n", args->operand[0]);
        return -EINVAL;
    }
    struct timespec left = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
    while (nanosleep(&left, &left) && errno == EINTR)
        ;
    queue_reap(session->queue, false);
    return 0;
}

int do_abort(struct session *session, const struct args *args)
{
    (void)session, (void)args;
    abort();
}

int do_sigraise(struct session *session, const struct args *args)
{
    (void)session;
    if (args->count != 1)
        return command_usage(args->command);
    uint64_t number;
    int ret = word_bytes(args->operand[0], &number);
    if (ret)
        return ret;
    if (number > (uint64_t)NSIG) {
        printf("signal argument '%s' is too large to be a valid signal\n", args->operand[0]);
        return -EINVAL;
    }
    fflush(stdout);
    raise((int)number);
    return 0;
}
