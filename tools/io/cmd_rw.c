/*
 * cmd_rw.c - read, readv, write, writev: one request each, done before the next command.
 */
#include "common/report.h"
#include "io/io.h"
#include "io/request.h"
#include "io/words.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

/* Offset and length, the two operands of a request with one buffer. */
static int take_range(struct request *request, const struct args *args, bool any_length)
{
    int ret = word_bytes(args->operand[0], &request->off);
    if (!ret)
        ret = word_bytes(args->operand[1], &request->len);
    if (ret)
        return ret;
    if (request->len > REQUEST_MAX_BYTES && !any_length) {
        printf("length cannot exceed %" PRIu64 "%s, given %s\n", REQUEST_MAX_BYTES,
               request->kind == REQUEST_READ ? "" : " without -n", args->operand[1]);
        return -EINVAL;
    }
    return 0;
}

/* The VM state and compressed data come in whole sectors. */
static int check_sectors(const struct request *request)
{
    bool odd_off = request->off % SECTOR_BYTES;
    if (!odd_off && request->len % SECTOR_BYTES == 0)
        return 0;
    printf("%" PRIu64 " is not a sector-aligned value for '%s'\n",
           odd_off ? request->off : request->len, odd_off ? "offset" : "count");
    return -EINVAL;
}

/* A range outside the image is not worth gigabytes of memory. */
static int allocate_and_perform(struct request *request, struct session *session)
{
    if (request->kind != REQUEST_ZEROES && !request->memory &&
        request_fits(request, session->disk)) {
        int ret = request_allocate(request, session, NULL, 0);
        if (ret)
            return ret;
    }
    return request_perform(request, session);
}

/* ---- read -------------------------------------------------------------------------------- */

static int take_verify(struct request *request, const struct args *args)
{
    const char *from = args_value(args, 's'), *len = args_value(args, 'l');
    request->verify = args_given(args, 'P');
    int ret = request_take_pattern(request, args);
    if (!ret && len)
        ret = word_bytes(len, &request->verify_len);
    if (!ret && from)
        ret = word_bytes(from, &request->verify_off);
    return ret;
}

/* -s and -l must lie in what is read; without -l all that follows -s is looked at. */
static int place_verify(struct request *request, const struct args *args)
{
    uint64_t rest = request->len - request->verify_off;
    if (!args_given(args, 'l'))
        request->verify_len = rest;
    if (request->verify_off <= request->len && request->verify_len <= rest)
        return 0;
    printf("pattern verification range exceeds end of read data\n");
    return -EINVAL;
}

int do_read(struct session *session, const struct args *args)
{
    REQUEST_CLEANUP struct request *request = request_new(REQUEST_READ, "read", args);
    int ret = take_verify(request, args);
    if (ret)
        return ret;
    bool stray = (args_given(args, 's') || args_given(args, 'l')) && !request->verify;
    if (args->count != 2 || stray)
        return command_usage(args->command);
    request->vm_state = args_given(args, 'b');
    ret = take_range(request, args, false);
    if (!ret)
        ret = place_verify(request, args);
    if (!ret && request->vm_state)
        ret = check_sectors(request);
    return ret ? ret : allocate_and_perform(request, session);
}

int do_readv(struct session *session, const struct args *args)
{
    REQUEST_CLEANUP struct request *request = request_new(REQUEST_READ, "readv", args);
    int ret = take_verify(request, args);
    if (!ret)
        ret = request_take_vector(request, args, session);
    if (ret)
        return ret;
    request->verify_len = request->len;
    return request_perform(request, session);
}

/* ---- write ------------------------------------------------------------------------------- */

/* Which options of write exclude or need each other: the first row that applies is printed. */
static const char *conflict(const struct args *args)
{
    bool b = args_given(args, 'b'), c = args_given(args, 'c'), z = args_given(args, 'z');
    const struct {
        bool wrong;
        const char *text;
    } rules[] = {
        {b && z, "-b and -z cannot be specified at the same time"},
        {args_given(args, 'f') && (b || c), "-f and -b or -c cannot be specified at the same time"},
        {args_given(args, 'n') && !z, "-n requires -z to be specified"},
        {args_given(args, 'u') && !z, "-u requires -z to be specified"},
        {z + args_given(args, 'P') + args_given(args, 's') > 1,
         "Only one of -z, -P, and -s can be specified at the same time"},
    };
    for (size_t i = 0; i < sizeof(rules) / sizeof(*rules); i++) {
        if (rules[i].wrong)
            return rules[i].text;
    }
    return NULL;
}

static unsigned write_flags(const struct args *args)
{
    bool zeroes = args_given(args, 'z');
    return (args_given(args, 'f') ? QK_WRITE_FUA : 0u) |
           (args_given(args, 'u') ? QK_WRITE_UNMAP : 0u) |
           (args_given(args, 'n') ? QK_WRITE_NO_FALLBACK : 0u) |
           (args_given(args, 'c') && !zeroes ? QK_WRITE_COMPRESSED : 0u);
}

static int take_write(struct request *request, const struct args *args)
{
    int ret = request_take_pattern(request, args);
    if (ret)
        return ret;
    if (args->count != 2)
        return command_usage(args->command);
    const char *text = conflict(args);
    if (text) {
        printf("%s\n", text);
        return -EINVAL;
    }
    request->flags = write_flags(args);
    request->vm_state = args_given(args, 'b');
    ret = take_range(request, args, args_given(args, 'n'));
    if (!ret && (request->vm_state || args_given(args, 'c')))
        ret = check_sectors(request);
    return ret;
}

int do_write(struct session *session, const struct args *args)
{
    bool zeroes = args_given(args, 'z');
    REQUEST_CLEANUP struct request *request =
        request_new(zeroes ? REQUEST_ZEROES : REQUEST_WRITE, "write", args);
    int ret = take_write(request, args);
    if (!ret && args_given(args, 's') && request_fits(request, session->disk)) {
        ret = request_allocate(request, session, NULL, 0);
        if (!ret)
            ret = request_fill_from(request, args_value(args, 's'));
    }
    return ret ? ret : allocate_and_perform(request, session);
}

int do_writev(struct session *session, const struct args *args)
{
    REQUEST_CLEANUP struct request *request = request_new(REQUEST_WRITE, "writev", args);
    int ret = request_take_pattern(request, args);
    if (!ret)
        ret = request_take_vector(request, args, session);
    if (ret)
        return ret;
    request->flags = args_given(args, 'f') ? QK_WRITE_FUA : 0;
    return request_perform(request, session);
}
