/*
 * test_break.c - breakpoints on a disk over blkdebug: a request stops at its event and no other
 * does, goes on when it is told to, and tags that nobody has are refused.
 */
#include "node_test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { MIB = 1024 * 1024, KIB = 1024 };

struct writer {
    struct qk_disk *disk;
    pthread_t thread;
    atomic_bool done;
    int ret;
};

static void *write_there(void *opaque)
{
    struct writer *w = opaque;
    static uint8_t data[64 * KIB];
    w->ret = qk_disk_write(w->disk, 64 * KIB, data, sizeof(data), 0, NULL);
    w->done = true;
    return NULL;
}

static void start_and_wait(struct writer *w)
{
    int stopped = 0;
    w->done = false;
    CHECK_EQ(pthread_create(&w->thread, NULL, write_there, w), 0);
    while (!stopped && !w->done) {
        usleep(1000);
        stopped = qk_disk_is_stopped(w->disk, "tag", &last_error);
    }
    CHECK_EQ(stopped, 1);
}

static struct qk_disk *open_debugged(void)
{
    CHECK_OK(MAKE("a.q", "qcow2", "size=1M"));
    return OPEN("blkdebug::a.q", .flags = QK_OPEN_RDWR);
}

static void test_stop_and_go(void)
{
    struct writer w = {.disk = open_debugged()};
    REQUIRE(w.disk);
    CHECK_OK(qk_disk_set_break(w.disk, "write_aio", "tag", &last_error));
    CHECK_EQ(qk_disk_is_stopped(w.disk, "tag", &last_error), 0);
    start_and_wait(&w);
    CHECK(!w.done);
    CHECK(holds(w.disk, 512 * KIB, 4 * KIB, 0)); /* others go on */
    CHECK_ERR(qk_disk_resume(w.disk, "other", &last_error), -ENOENT);
    CHECK_OK(qk_disk_resume(w.disk, "tag", &last_error));
    pthread_join(w.thread, NULL);
    CHECK_EQ(w.ret, 0);
    CHECK_EQ(qk_disk_is_stopped(w.disk, "tag", &last_error), 0);
    CHECK_OK(fill(w.disk, 0, MIB, 3)); /* a breakpoint serves once */
    CHECK_OK(qk_disk_close(w.disk, &last_error));
}

static void test_remove(void)
{
    struct writer w = {.disk = open_debugged()};
    REQUIRE(w.disk);
    CHECK_OK(qk_disk_set_break(w.disk, "write_aio", "tag", &last_error));
    start_and_wait(&w);
    CHECK(!w.done);
    CHECK_OK(qk_disk_remove_break(w.disk, "tag", &last_error));
    pthread_join(w.thread, NULL);
    CHECK_EQ(w.ret, 0);
    CHECK_OK(qk_disk_close(w.disk, &last_error));
}

static void test_refusals(void)
{
    struct qk_disk *disk = open_debugged();
    REQUIRE(disk);
    CHECK_ERR(qk_disk_set_break(disk, "no_such_event", "tag", &last_error), -ENOENT);
    CHECK_STR(last_error.text, "There is no event 'no_such_event' to stop at");
    CHECK_ERR(qk_disk_remove_break(disk, "tag", &last_error), -ENOENT);
    CHECK_OK(qk_disk_close(disk, &last_error));
    disk = OPEN("a.q", .flags = QK_OPEN_RDWR);
    REQUIRE(disk);
    CHECK_ERR(qk_disk_set_break(disk, "write_aio", "tag", &last_error), -ENOTSUP);
    CHECK_ERR(qk_disk_remove_break(disk, "tag", &last_error), -ENOTSUP);
    CHECK_ERR(qk_disk_resume(disk, "tag", &last_error), -ENOTSUP);
    CHECK_ERR(qk_disk_is_stopped(disk, "tag", &last_error), -ENOTSUP);
    CHECK_OK(qk_disk_close(disk, &last_error));
}

int main(void)
{
    if (!test_dir_enter())
        return 1;
    test_stop_and_go();
    test_remove();
    test_refusals();
    test_dir_leave();
    return TEST_SUMMARY();
}
