/*
 * test_node_nomem.c - opening, using, describing and creating disks while the Nth allocation of
 * memory fails, for every N until the work passes: the failure is reported as such, nothing crashes
 * or leaks (the sanitizers' runs see that), no file is left behind by a creation that failed, and
 * what was there before stays. malloc and its kin are wrapped by the linker (see meson.build).
 */
#include "node_test.h"
#include "nomem_text.h"

enum { MOST_ALLOCATIONS = 2000 };

/* One piece of work that ends with the first failure. */
typedef int (*work_fn)(struct qk_error *err);

static int close_after(struct qk_disk *disk, int ret, struct qk_error *err)
{
    int closed = qk_disk_close(disk, ret < 0 ? NULL : err);
    return ret < 0 ? ret : closed;
}

static int open_and_read(struct opening how, struct qk_error *err)
{
    struct qk_open_options opts = QK_OPEN_OPTIONS_INIT;
    struct qk_info info = QK_INFO_INIT;
    struct qk_extent extent;
    struct qk_disk *disk;
    uint8_t buf[512];
    opts.flags = how.flags;
    opts.options = how.options;
    int ret = qk_disk_open(how.name, &opts, &disk, err);
    if (ret < 0)
        return ret;
    ret = qk_disk_read(disk, 3, buf, sizeof(buf), err);
    if (ret == 0)
        ret = qk_disk_status(disk, 0, 65536, 0, &extent, err);
    if (ret == 0)
        ret = qk_disk_info(disk, &info, err);
    return close_after(disk, ret, err);
}

static int work_chain(struct qk_error *err)
{
    return open_and_read((struct opening){.name = "top.q"}, err);
}

static int work_json(struct qk_error *err)
{
    return open_and_read(
        (struct opening){.name =
                             "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"raw\",\"offset\":0,"
                             "\"file\":{\"filename\":\"top.q\"}}}"},
        err);
}

static int work_blkdebug(struct qk_error *err)
{
    static const char *const options[] = {"driver=qcow2",
                                          "file.driver=blkdebug",
                                          "file.image.filename=top.q",
                                          "file.inject-error.0.event=none",
                                          "file.inject-error.0.state=9",
                                          NULL};
    return open_and_read((struct opening){.name = NULL, .options = options}, err);
}

static int work_overlay(struct qk_error *err)
{
    return open_and_read(
        (struct opening){.name = "base.raw", .flags = QK_OPEN_RDWR | QK_OPEN_SNAPSHOT}, err);
}

static int work_copy_on_read(struct qk_error *err)
{
    return open_and_read(
        (struct opening){.name = "cor.q", .flags = QK_OPEN_RDWR | QK_OPEN_COPY_ON_READ}, err);
}

static int work_create(struct qk_error *err)
{
    return qk_create("made.q", "qcow2", OPTIONS("backing_file=mid.q", "backing_fmt=qcow2"), err);
}

static int work_resolve(struct qk_error *err)
{
    char **list = NULL;
    int ret = qk_create_resolve("new.q", "qcow2",
                                OPTIONS("backing_file=mid.q", "backing_fmt=qcow2"), 0, &list, err);
    if (ret == 0)
        qk_options_free(list);
    return ret;
}

static void run_work(work_fn work, const char *made)
{
    int ret = -ENOMEM;
    long n = 0;
    for (; n < MOST_ALLOCATIONS && ret < 0; n++) {
        struct qk_error err = {0};
        countdown = n;
        ret = work(&err);
        bool reached = countdown < 0;
        countdown = -1;
        CHECK(ret == 0 || (reached && err.code == ENOMEM && *err.text));
        CHECK(ret == 0 || !made || file_bytes(made) < 0);
    }
    CHECK_EQ(ret, 0);
    CHECK(n > 3);
}

int main(void)
{
    if (!test_dir_enter())
        return EXIT_FAILURE;
    setenv("TMPDIR", test_dir, 1);
    CHECK_OK(MAKE("base.raw", "raw", "size=1M"));
    CHECK_OK(MAKE("mid.q", "qcow2", "backing_file=base.raw", "backing_fmt=raw"));
    CHECK_OK(MAKE("top.q", "qcow2", "backing_file=mid.q", "backing_fmt=qcow2"));
    CHECK_OK(MAKE("cor.q", "qcow2", "backing_file=mid.q", "backing_fmt=qcow2"));
    run_work(work_chain, NULL);
    run_work(work_json, NULL);
    run_work(work_blkdebug, NULL);
    run_work(work_overlay, NULL);
    run_work(work_copy_on_read, NULL);
    run_work(work_create, "made.q");
    run_work(work_resolve, NULL);
    test_dir_leave();
    return TEST_SUMMARY();
}
