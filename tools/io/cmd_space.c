/*
 * cmd_space.c - the disk's size and which parts of it the image itself holds: alloc, map, length,
 * truncate, discard. "Holds" is said of the top image alone, not of its backing files.
 */
#include "common/report.h"
#include "io/io.h"
#include "io/request.h"
#include "io/words.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct run {
    uint64_t off, len;
    bool allocated;
};

/* The longest run from run->off, at most run->len bytes, that is allocated or not as a whole. */
static int next_run(struct qk_disk *disk, struct run *run)
{
    uint64_t off = run->off, end = run->off + run->len;
    while (off < end) {
        struct qk_extent extent;
        struct qk_error err = {0};
        int ret =
            qk_disk_status(disk, off, end - off, QK_STATUS_TOP | QK_STATUS_FAST, &extent, &err);
        if (ret) {
            printf("Failed to get allocation status: %s\n", strerror(-ret));
            return ret;
        }
        bool allocated = extent.flags & QK_EXTENT_ALLOCATED;
        if (off > run->off && allocated != run->allocated)
            break;
        run->allocated = allocated;
        off += extent.len;
    }
    run->len = off - run->off;
    return 0;
}

static uint64_t lesser(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static int take_alloc(const struct args *args, uint64_t *off, uint64_t *count)
{
    *count = SECTOR_BYTES;
    int ret = word_bytes(args->operand[0], off);
    if (!ret && args->count > 1)
        ret = word_bytes(args->operand[1], count);
    return ret;
}

int do_alloc(struct session *session, const struct args *args)
{
    uint64_t off, count, allocated = 0, size = qk_disk_size(session->disk);
    int ret = take_alloc(args, &off, &count);
    if (ret)
        return ret;
    count = off < size ? lesser(count, size - off) : 0;
    struct run run = {.off = off};
    for (; run.off < off + count; run.off += run.len) {
        run.len = off + count - run.off;
        ret = next_run(session->disk, &run);
        if (ret)
            return ret;
        allocated += run.allocated ? run.len : 0;
    }
    char text[AMOUNT_TEXT_MAX];
    printf("%" PRIu64 "/%" PRIu64 " bytes allocated at offset %s\n", allocated, count,
           amount_text((double)off, text));
    return 0;
}

int do_map(struct session *session, const struct args *args)
{
    (void)args;
    uint64_t size = qk_disk_size(session->disk);
    struct run run = {.off = 0};
    for (; run.off < size; run.off += run.len) {
        run.len = size - run.off;
        int ret = next_run(session->disk, &run);
        if (ret)
            return ret;
        char len[AMOUNT_TEXT_MAX], off[AMOUNT_TEXT_MAX];
        printf("%s (0x%" PRIx64 ") bytes %s allocated at offset %s (0x%" PRIx64 ")\n",
               amount_text((double)run.len, len), run.len, run.allocated ? "   " : "not",
               amount_text((double)run.off, off), run.off);
    }
    return 0;
}

int do_length(struct session *session, const struct args *args)
{
    (void)args;
    char text[AMOUNT_TEXT_MAX];
    printf("%s\n", amount_text((double)qk_disk_size(session->disk), text));
    return 0;
}

static int take_prealloc(const char *text, enum qk_prealloc *mode)
{
    static const char *const names[] = {
        [QK_PREALLOC_OFF] = "off",
        [QK_PREALLOC_METADATA] = "metadata",
        [QK_PREALLOC_FALLOC] = "falloc",
        [QK_PREALLOC_FULL] = "full",
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        if (!strcmp(names[i], text)) {
            *mode = (enum qk_prealloc)i;
            return 0;
        }
    }
    report_error("Invalid preallocation mode '%s'", text);
    return -EINVAL;
}

/* qemu's rule for all formats but raw, whose last sector may be cut. */
static int check_size(struct qk_disk *disk, uint64_t size)
{
    struct qk_info info = QK_INFO_INIT;
    if (size % SECTOR_BYTES == 0 || qk_disk_info(disk, &info, NULL) || !strcmp(info.format, "raw"))
        return 0;
    report_error("The new size must be a multiple of %u", SECTOR_BYTES);
    return -EINVAL;
}

int do_truncate(struct session *session, const struct args *args)
{
    enum qk_prealloc mode = QK_PREALLOC_OFF;
    struct qk_error err = {0};
    uint64_t size;
    int ret = args_given(args, 'm') ? take_prealloc(args_value(args, 'm'), &mode) : 0;
    if (ret)
        return ret;
    if (!args->count)
        return command_usage(args->command);
    ret = word_bytes(args->operand[0], &size);
    if (!ret)
        ret = check_size(session->disk, size);
    if (ret)
        return ret;
    queue_reap(session->queue, true);
    ret = qk_disk_resize(session->disk, size, mode, QK_RESIZE_SHRINK, &err);
    if (ret)
        report_qk(&err);
    return ret;
}

int do_discard(struct session *session, const struct args *args)
{
    REQUEST_CLEANUP struct request *request = request_new(REQUEST_DISCARD, "discard", args);
    if (args->count != 2)
        return command_usage(args->command);
    int ret = word_bytes(args->operand[0], &request->off);
    if (!ret)
        ret = word_bytes(args->operand[1], &request->len);
    if (ret)
        return ret;
    if (request->len > REQUEST_MAX_BYTES) {
        printf("length cannot exceed %" PRIu64 ", given %s\n", REQUEST_MAX_BYTES, args->operand[1]);
        return -EINVAL;
    }
    return request_perform(request, session);
}
