/*
 * cmd_aio.c - aio_read, aio_write, aio_flush: requests that go on while the next commands run.
 * Starting one succeeds once its words make sense; what became of it is only printed.
 */
#include "io/io.h"
#include "io/request.h"
#include "io/words.h"

#include <errno.h>
#include <stdio.h>

/* Starts *request and takes it away from the caller. */
static int submit(struct session *session, struct request **request)
{
    queue_submit(session->queue, *request, session->disk);
    *request = NULL;
    return 0;
}

int do_aio_read(struct session *session, const struct args *args)
{
    if (args_given(args, 'i')) {
        printf("injecting invalid read request\n");
        return 0;
    }
    REQUEST_CLEANUP struct request *request = request_new(REQUEST_READ, "readv", args);
    request->verify = args_given(args, 'P');
    int ret = request_take_pattern(request, args);
    if (!ret)
        ret = request_take_vector(request, args, session);
    request->verify_len = request->len;
    return ret ? ret : submit(session, &request);
}

static const char *conflict(const struct args *args)
{
    bool zeroes = args_given(args, 'z');
    if (zeroes && args->count != 2)
        return "-z supports only a single length parameter";
    if (args_given(args, 'u') && !zeroes)
        return "-u requires -z to be specified";
    return NULL;
}

static int take_write(struct request *request, const struct args *args, struct session *session)
{
    int ret = request_take_pattern(request, args);
    if (ret)
        return ret;
    if (args->count < 2)
        return command_usage(args->command);
    const char *text = conflict(args);
    if (text) {
        printf("%s\n", text);
        return -EINVAL;
    }
    request->flags =
        (args_given(args, 'f') ? QK_WRITE_FUA : 0u) | (args_given(args, 'u') ? QK_WRITE_UNMAP : 0u);
    if (request->kind == REQUEST_WRITE)
        return request_take_vector(request, args, session);
    ret = word_bytes(args->operand[0], &request->off);
    return ret ? ret : word_bytes(args->operand[1], &request->len);
}

int do_aio_write(struct session *session, const struct args *args)
{
    if (args_given(args, 'i')) {
        printf("injecting invalid write request\n");
        return 0;
    }
    bool zeroes = args_given(args, 'z');
    REQUEST_CLEANUP struct request *request =
        request_new(zeroes ? REQUEST_ZEROES : REQUEST_WRITE, "aio_write", args);
    int ret = take_write(request, args, session);
    return ret ? ret : submit(session, &request);
}

int do_aio_flush(struct session *session, const struct args *args)
{
    (void)args;
    queue_reap(session->queue, true);
    return 0;
}
