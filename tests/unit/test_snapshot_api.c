/*
 * test_snapshot_api.c - snapshots through the public calls: who may, what is said, what a disk
 * shows that was opened on one; and snapshots that are taken and dropped while other threads read,
 * write and flush: each holds what the threads had written when it was taken.
 */
#include "node_test.h"

#include <pthread.h>
#include <stdlib.h>

enum { KIB = 1024, MIB = 1024 * 1024, WRITERS = 3, ROUNDS = 30 };

static int take(struct qk_disk *disk, const char *name)
{
    struct qk_snapshot_options opts = QK_SNAPSHOT_OPTIONS_INIT;
    opts.name = name;
    return qk_disk_snapshot_create(disk, &opts, &last_error);
}

static void test_life(void)
{
    struct qk_snapshot_info info = QK_SNAPSHOT_INFO_INIT;
    uint64_t freed;
    CHECK_OK(MAKE("a.q", "qcow2", "size=1M", "cluster_size=4k"));
    struct qk_disk *disk = OPEN("a.q", .flags = QK_OPEN_RDWR);
    REQUIRE(disk);
    CHECK_OK(fill(disk, 0, 64 * KIB, 1));
    CHECK_OK(take(disk, "one"));
    CHECK_OK(fill(disk, 0, 8 * KIB, 2));
    CHECK_OK(qk_disk_snapshot(disk, 0, &info, &last_error));
    CHECK_STR(info.id, "1");
    CHECK_STR(info.name, "one");
    CHECK_EQ(info.disk_size, MIB);
    CHECK(info.date_sec > 1600000000);
    /* two clusters of data, the L2 table, the L1 table */
    CHECK_OK(qk_disk_snapshot_freed(disk, 0, &freed, &last_error));
    CHECK_EQ(freed, 4 * 4 * KIB);
    CHECK_OK(qk_disk_snapshot_rename(disk, "1", NULL, "uno", &last_error));
    CHECK_ERR(qk_disk_snapshot_apply(disk, NULL, "one", &last_error), -ENOENT);
    CHECK_OK(qk_disk_resize(disk, 2 * MIB, QK_PREALLOC_OFF, 0, &last_error));
    CHECK_OK(take(disk, "dos"));
    CHECK_OK(qk_disk_snapshot_apply(disk, "1", "uno", &last_error));
    CHECK_EQ(qk_disk_size(disk), MIB);
    CHECK(holds(disk, 0, 64 * KIB, 1));
    CHECK_OK(qk_disk_snapshot_delete(disk, NULL, "uno", &last_error));
    CHECK_ERR(qk_disk_snapshot_delete(disk, NULL, "uno", &last_error), -ENOENT);
    CHECK_OK(qk_disk_close(disk, &last_error));
    expect_clean("a.q");
}

static void test_showing(void)
{
    struct qk_disk *disk = OPEN("a.q", .snapshot = "dos");
    REQUIRE(disk);
    CHECK_EQ(qk_disk_size(disk), 2 * MIB);
    CHECK(holds(disk, 0, 8 * KIB, 2));
    CHECK(holds(disk, 8 * KIB, 56 * KIB, 1));
    CHECK_ERR(take(disk, "x"), -EROFS);
    CHECK_OK(qk_disk_close(disk, &last_error));
    disk = OPEN("a.q", .snapshot_id = "2", .snapshot_name = "dos");
    CHECK(disk != NULL);
    CHECK_OK(qk_disk_close(disk, &last_error));
    CHECK(!OPEN("a.q", .snapshot_id = "1", .snapshot_name = "dos"));
    CHECK_EQ(last_error.code, ENOENT);
    CHECK(!OPEN("a.q", .snapshot = "dos", .flags = QK_OPEN_RDWR));
    CHECK_EQ(last_error.code, EINVAL);
}

static void test_other_formats(void)
{
    CHECK_OK(MAKE("a.r", "raw", "size=1M"));
    struct qk_disk *disk = OPEN("a.r", .format = "raw", .flags = QK_OPEN_RDWR);
    REQUIRE(disk);
    CHECK_ERR(take(disk, "x"), -ENOTSUP);
    CHECK_ERR(qk_disk_snapshot_delete(disk, NULL, "x", &last_error), -ENOTSUP);
    CHECK_OK(qk_disk_close(disk, &last_error));
    CHECK(!OPEN("a.r", .format = "raw", .snapshot = "x"));
    CHECK_EQ(last_error.code, ENOTSUP);
}

/* ---- threads ---- */

struct busy {
    struct qk_disk *disk;
    uint64_t base;
    _Atomic bool *stop;
    bool failed;
};

/* Writes its part over and over, cluster after cluster with the same byte: in a snapshot a part
 * shows one byte up to some cluster, and the one before behind it. */
static void *write_part(void *arg)
{
    struct busy *b = arg;
    uint8_t buf[4 * KIB];
    for (unsigned byte = 1; !*b->stop; byte = byte % 250 + 1) {
        memset(buf, (int)byte, sizeof(buf));
        for (uint64_t at = 0; at < 256 * KIB && !*b->stop; at += sizeof(buf))
            b->failed |= qk_disk_write(b->disk, b->base + at, buf, sizeof(buf), 0, NULL) < 0;
        b->failed |= qk_disk_flush(b->disk, NULL) < 0;
    }
    return NULL;
}

static bool part_is_consistent(struct qk_disk *disk, uint64_t base)
{
    uint8_t buf[4 * KIB];
    unsigned first = 0, last = 0, changes = 0;
    for (uint64_t at = 0; at < 256 * KIB; at += sizeof(buf)) {
        if (qk_disk_read(disk, base + at, buf, sizeof(buf), NULL) < 0 ||
            memcmp(buf, buf + 1, sizeof(buf) - 1) != 0)
            return false;
        changes += at && buf[0] != last;
        last = buf[0];
        first = at ? first : last;
    }
    unsigned before = first == 1 ? 250 : first - 1;
    return changes == 0 || (changes == 1 && (last == before || (first == 1 && last == 0)));
}

static void verify_parts(const char *name)
{
    struct qk_disk *disk = OPEN("busy.q", .snapshot = name, .flags = QK_OPEN_FORCE_SHARE);
    REQUIRE(disk);
    for (uint64_t i = 0; i < WRITERS; i++)
        CHECK(part_is_consistent(disk, i * MIB));
    CHECK_OK(qk_disk_close(disk, &last_error));
}

/* Looks at snapshots that come and go. */
static void *look(void *arg)
{
    struct busy *b = arg;
    while (!*b->stop) {
        struct qk_snapshot_info info = QK_SNAPSHOT_INFO_INIT;
        uint64_t freed;
        for (uint32_t i = 0; i < 3; i++) {
            int shown = qk_disk_snapshot(b->disk, i, &info, NULL);
            int counted = qk_disk_snapshot_freed(b->disk, i, &freed, NULL);
            b->failed |= (shown < 0 && shown != -EINVAL) || (counted < 0 && counted != -EINVAL);
        }
    }
    return NULL;
}

static void test_busy_disk(void)
{
    struct busy busy[WRITERS + 1];
    pthread_t threads[WRITERS + 1];
    _Atomic bool stop = false;
    CHECK_OK(MAKE("busy.q", "qcow2", "size=4M", "cluster_size=4k"));
    struct qk_disk *disk = OPEN("busy.q", .flags = QK_OPEN_RDWR);
    REQUIRE(disk);
    for (unsigned i = 0; i <= WRITERS; i++) {
        busy[i] = (struct busy){disk, i * (uint64_t)MIB, &stop, false};
        pthread_create(&threads[i], NULL, i < WRITERS ? write_part : look, &busy[i]);
    }
    for (unsigned i = 0; i < ROUNDS; i++) {
        char name[16], old[16];
        snprintf(name, sizeof(name), "s%u", i);
        snprintf(old, sizeof(old), "s%u", i - 3);
        CHECK_OK(take(disk, name));
        if (i >= 3)
            CHECK_OK(qk_disk_snapshot_delete(disk, NULL, old, &last_error));
    }
    stop = true;
    for (unsigned i = 0; i <= WRITERS; i++) {
        pthread_join(threads[i], NULL);
        CHECK(!busy[i].failed);
    }
    CHECK_OK(qk_disk_close(disk, &last_error));
    expect_clean("busy.q");
    verify_parts("s27");
    verify_parts("s28");
    verify_parts("s29");
}

int main(void)
{
    if (!test_dir_enter())
        return 1;
    test_life();
    test_showing();
    test_other_formats();
    test_busy_disk();
    test_dir_leave();
    return TEST_SUMMARY();
}
