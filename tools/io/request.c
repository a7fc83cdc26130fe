/*
 * request.c - a transfer's memory, execution and report (request.h). Relies on the library for
 * the transfer; a range outside the image is refused here, with the EIO that qemu-io gives.
 */
#include "io/request.h"
#include "common/report.h"
#include "io/io.h"
#include "io/words.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NSEC_PER_SEC  UINT64_C(1000000000)
#define BUFFER_ALIGN  4096u
#define MISALIGN      16u
#define WRITE_PATTERN 0xcd

struct request *request_new(enum request_kind kind, const char *failed, const struct args *args)
{
    struct request *request = xmalloc(sizeof(*request));
    *request = (struct request){
        .kind = kind,
        .failed = failed,
        .pattern = WRITE_PATTERN,
        .quiet = args_given(args, 'q'),
        .machine = args_given(args, 'C'),
        .dump = args_given(args, 'v'),
    };
    return request;
}

void request_free(struct request *request)
{
    if (!request)
        return;
    free(request->memory);
    free(request->iov);
    free(request);
}

void request_drop(struct request **request)
{
    request_free(*request);
}

int request_allocate(struct request *request, const struct session *session, const size_t *lengths,
                     int count)
{
    size_t bytes = (size_t)request->len, before = session->misalign ? MISALIGN : 0;
    void *memory;
    if (posix_memalign(&memory, BUFFER_ALIGN, bytes + before + !bytes)) {
        printf("%s failed: %s\n", request->failed, strerror(ENOMEM));
        return -ENOMEM;
    }
    request->memory = memory;
    request->iovcnt = count ? count : 1;
    request->iov = xmalloc((size_t)request->iovcnt * sizeof(*request->iov));
    uint8_t *at = request->memory + before;
    if (request->kind == REQUEST_WRITE)
        memset(at, request->pattern, bytes);
    for (int i = 0; i < request->iovcnt; i++) {
        request->iov[i] = (struct iovec){.iov_base = at, .iov_len = count ? lengths[i] : bytes};
        at += request->iov[i].iov_len;
    }
    return 0;
}

int request_take_pattern(struct request *request, const struct args *args)
{
    return args_given(args, 'P') ? word_pattern(args_value(args, 'P'), &request->pattern) : 0;
}

int request_take_vector(struct request *request, const struct args *args,
                        const struct session *session)
{
    if (args->count < 2)
        return command_usage(args->command);
    int ret = word_bytes(args->operand[0], &request->off);
    if (ret)
        return ret;
    size_t *lengths;
    ret = word_lengths(args->operand + 1, args->count - 1, &lengths, &request->len);
    if (!ret && request_fits(request, session->disk))
        ret = request_allocate(request, session, lengths, args->count - 1);
    free(lengths);
    return ret;
}

static uint8_t *request_data(const struct request *request)
{
    return request->iov[0].iov_base;
}

int request_fill_from(struct request *request, const char *file)
{
    FILE *in = fopen(file, "r");
    uint8_t *data = request_data(request);
    size_t want = (size_t)request->len;
    size_t got = in ? fread(data, 1, want, in) : 0; /* 0 also when nothing is wanted */
    int ret = !in || ferror(in) ? -errno : 0;
    if (in)
        fclose(in);
    if (!ret && got) {
        for (; got < want; got *= 2)
            memcpy(data + got, data, got < want - got ? got : want - got);
        return 0;
    }
    fflush(stdout);
    fprintf(stderr, "%s: %s\n", file, ret ? strerror(-ret) : "file is empty");
    return ret ? ret : -EINVAL;
}

bool request_fits(const struct request *request, struct qk_disk *disk)
{
    uint64_t size = qk_disk_size(disk);
    if (request->vm_state)
        return true;
    return request->off <= size && request->len <= size - request->off;
}

static int transfer_vm_state(const struct request *request, struct qk_disk *disk)
{
    struct iovec *iov = request->iov;
    if (request->kind == REQUEST_READ)
        return qk_disk_read_vm_state(disk, request->off, iov->iov_base, iov->iov_len, NULL);
    return qk_disk_write_vm_state(disk, request->off, iov->iov_base, iov->iov_len, NULL);
}

static int transfer(const struct request *request, struct qk_disk *disk)
{
    if (request->vm_state)
        return transfer_vm_state(request, disk);
    if (!request_fits(request, disk))
        return -EIO;
    switch (request->kind) {
    case REQUEST_READ:
        return qk_disk_readv(disk, request->off, request->iov, request->iovcnt, NULL);
    case REQUEST_WRITE:
        return qk_disk_writev(disk, request->off, request->iov, request->iovcnt, request->flags,
                              NULL);
    case REQUEST_ZEROES:
        return qk_disk_write_zeroes(disk, request->off, request->len, request->flags, NULL);
    case REQUEST_DISCARD:
        return qk_disk_discard(disk, request->off, request->len, NULL);
    }
    return -EINVAL;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NSEC_PER_SEC + (uint64_t)now.tv_nsec;
}

void request_execute(struct request *request, struct qk_disk *disk)
{
    uint64_t start = now_ns();
    request->ret = transfer(request, disk);
    request->elapsed_ns = now_ns() - start;
}

/* ---- report ------------------------------------------------------------------------------ */

static bool matches(const struct request *request)
{
    const uint8_t *at = request_data(request) + request->verify_off;
    size_t len = (size_t)request->verify_len;
    /* the rest equals what is one byte in front of it: then all bytes equal the first */
    return !len || (at[0] == request->pattern && !memcmp(at, at + 1, len - 1));
}

static void dump(const struct request *request)
{
    const uint8_t *data = request_data(request);
    for (uint64_t row = 0; row < request->len; row += 16) {
        uint64_t n = request->len - row < 16 ? request->len - row : 16;
        printf("%08" PRIx64 ":  ", request->off + row);
        for (uint64_t i = row; i < row + n; i++)
            printf("%02x ", data[i]);
        putchar(' ');
        for (uint64_t i = row; i < row + n; i++)
            putchar(data[i] < 0x80 && isalnum(data[i]) ? data[i] : '.');
        putchar('\n');
    }
}

#define TIME_TEXT_MAX 48

/* "00.25 sec", or with hours and minutes when there are some or the form must not vary. */
static char *time_text(uint64_t ns, bool fixed, char buf[TIME_TEXT_MAX])
{
    uint64_t seconds = ns / NSEC_PER_SEC, hundredths = ns % NSEC_PER_SEC / (NSEC_PER_SEC / 100);
    if (fixed || seconds >= 60)
        snprintf(buf, TIME_TEXT_MAX, "%" PRIu64 ":%02" PRIu64 ":%02" PRIu64 ".%02" PRIu64,
                 seconds / 3600, seconds / 60 % 60, seconds % 60, hundredths);
    else
        snprintf(buf, TIME_TEXT_MAX, "%02" PRIu64 ".%02" PRIu64 " sec", seconds, hundredths);
    return buf;
}

static void print_statistics(const struct request *request)
{
    static const char *const done[] = {
        [REQUEST_READ] = "read",
        [REQUEST_WRITE] = "wrote",
        [REQUEST_ZEROES] = "wrote",
        [REQUEST_DISCARD] = "discard",
    };
    double seconds = (double)(request->elapsed_ns + !request->elapsed_ns) / (double)NSEC_PER_SEC;
    double bytes_rate = (double)request->len / seconds, ops_rate = 1 / seconds;
    char amount[AMOUNT_TEXT_MAX], rate[AMOUNT_TEXT_MAX], time[TIME_TEXT_MAX];
    time_text(request->elapsed_ns, request->machine, time);
    if (request->machine) {
        printf("%" PRIu64 ",1,%s,%.3f,%.3f\n", request->len, time, bytes_rate, ops_rate);
        return;
    }
    printf("%s %" PRIu64 "/%" PRIu64 " bytes at offset %" PRIu64 "\n", done[request->kind],
           request->len, request->len, request->off);
    printf("%s, 1 ops; %s (%s/sec and %.4f ops/sec)\n", amount_text((double)request->len, amount),
           time, amount_text(bytes_rate, rate), ops_rate);
}

int request_report(const struct request *request)
{
    int ret = request->ret;
    if (ret < 0) {
        printf("%s failed: %s\n", request->failed, strerror(-ret));
        return ret;
    }
    if (request->verify && !matches(request)) {
        printf("Pattern verification failed at offset %" PRIu64 ", %" PRIu64 " bytes\n",
               request->off + request->verify_off, request->verify_len);
        ret = -EINVAL;
    }
    if (request->quiet)
        return ret;
    if (request->dump)
        dump(request);
    print_statistics(request);
    return ret;
}

int request_perform(struct request *request, struct session *session)
{
    request_execute(request, session->disk);
    return request_report(request);
}
