/*
 * node_test.h - what the tests of the block graph share: a directory of their own, images made
 * with one line, disks opened with one line, and patterns.
 */
#ifndef QK_NODE_TEST_H
#define QK_NODE_TEST_H

#include "qcowkit.h"
#include "test.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static char test_dir[64];

/* Everything happens in a fresh directory, which is the current one. */
static inline bool test_dir_enter(void)
{
    snprintf(test_dir, sizeof(test_dir), "/tmp/qk-node-XXXXXX");
    return mkdtemp(test_dir) && chdir(test_dir) == 0;
}

static inline void test_dir_leave(void)
{
    char command[128];
    snprintf(command, sizeof(command), "rm -rf '%s'", test_dir);
    if (chdir("/") < 0 || system(command))
        printf("%s is left behind\n", test_dir);
}

static struct qk_error last_error;

/* Creates with up to 7 options "key=value". */
#define MAKE(name_, format_, ...)                                                                  \
    qk_create((name_), (format_), (const char *const[]){__VA_ARGS__, NULL}, &last_error)

/* How to open what; for a refusal also the code and the text to expect. */
struct opening {
    const char *name;
    int code;
    const char *text;
    const char *format;
    unsigned flags;
    enum qk_policy policy;
    const char *const *options;
    const char *snapshot, *snapshot_id, *snapshot_name;
};

/* NULL on failure, with last_error. */
static inline struct qk_disk *open_disk(struct opening how)
{
    struct qk_open_options opts = QK_OPEN_OPTIONS_INIT;
    struct qk_disk *disk = NULL;
    opts.format = how.format;
    opts.flags = how.flags;
    opts.policy = how.policy;
    opts.options = how.options;
    opts.snapshot = how.snapshot;
    opts.snapshot_id = how.snapshot_id;
    opts.snapshot_name = how.snapshot_name;
    last_error = (struct qk_error){0};
    return qk_disk_open(how.name, &opts, &disk, &last_error) == 0 ? disk : NULL;
}
#define OPEN(...) open_disk((struct opening){.name = __VA_ARGS__})
#define OPTIONS(...)                                                                               \
    (const char *const[])                                                                          \
    {                                                                                              \
        __VA_ARGS__, NULL                                                                          \
    }

/* Opens, expects that to fail with this code and text. */
static inline void expect_refused(struct opening how)
{
    struct qk_disk *disk = open_disk(how);
    CHECK(!disk);
    CHECK_EQ(last_error.code, how.code);
    CHECK_STR(last_error.text, how.text);
    qk_disk_close(disk, NULL);
}
#define REFUSED(...) expect_refused((struct opening){.name = __VA_ARGS__})

static inline int fill(struct qk_disk *disk, uint64_t off, size_t len, int byte)
{
    uint8_t *buf = malloc(len);
    memset(buf, byte, len);
    int ret = qk_disk_write(disk, off, buf, len, 0, &last_error);
    free(buf);
    return ret;
}

/* Whether each byte of the range reads as `byte`. */
static inline bool holds(struct qk_disk *disk, uint64_t off, size_t len, int byte)
{
    uint8_t *buf = malloc(len);
    bool same = qk_disk_read(disk, off, buf, len, &last_error) == 0;
    for (size_t i = 0; i < len && same; i++)
        same = buf[i] == (uint8_t)byte;
    free(buf);
    return same;
}

/* A check finds nothing, not even leaks. */
static inline void expect_clean(const char *name)
{
    struct qk_disk *disk = OPEN(name, .flags = QK_OPEN_CHECK);
    struct qk_check_options opts = QK_CHECK_OPTIONS_INIT;
    struct qk_check_result result = QK_CHECK_RESULT_INIT;
    REQUIRE(disk);
    CHECK_OK(qk_disk_check(disk, &opts, &result, &last_error));
    CHECK_EQ(result.corruptions, 0);
    CHECK_EQ(result.leaks, 0);
    CHECK_OK(qk_disk_close(disk, &last_error));
}

static inline void put_file(const char *name, const void *bytes, size_t len, off_t length)
{
    int fd = open(name, O_CREAT | O_TRUNC | O_WRONLY, 0644);
    CHECK(fd >= 0 && write(fd, bytes, len) == (ssize_t)len && ftruncate(fd, length) == 0);
    close(fd);
}

static inline off_t file_bytes(const char *name)
{
    struct stat st;
    return stat(name, &st) == 0 ? st.st_size : -1;
}

#endif
