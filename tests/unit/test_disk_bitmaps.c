/*
 * test_disk_bitmaps.c - persistent bitmaps through the public API: what a backup program does, and
 * what it is told when it asks for something impossible.
 */
#include "node_test.h"

#include <stdio.h>

enum { M = 1 << 20 };

static struct qk_disk *open_rw(const char *name, const char *format)
{
    return open_disk((struct opening){.name = name, .format = format, .flags = QK_OPEN_RDWR});
}

static uint64_t dirty_bytes(struct qk_disk *disk, const char *name)
{
    uint64_t total = 0;
    struct qk_bitmap_extent extent = {0};
    for (uint64_t off = 0; off < qk_disk_size(disk); off += extent.len) {
        if (!CHECK_OK(qk_disk_bitmap_status(disk, name, off, UINT64_MAX, &extent, NULL)))
            break;
        CHECK_EQ(extent.off, off);
        total += extent.dirty ? extent.len : 0;
    }
    return total;
}

/* A full backup, then one of what has changed. */
static void test_backup(void)
{
    static const uint8_t bytes[70000] = {1};
    CHECK_OK(MAKE("a.qcow2", "qcow2", "size=4M"));
    struct qk_disk *disk = open_rw("a.qcow2", "qcow2");
    REQUIRE(disk);
    CHECK_OK(qk_disk_write(disk, 0, bytes, sizeof(bytes), 0, NULL));
    CHECK_OK(qk_disk_bitmap_add(disk, "monday", 0, 0, NULL));
    CHECK_OK(qk_disk_write(disk, M, bytes, sizeof(bytes), 0, NULL));
    CHECK_EQ(dirty_bytes(disk, "monday"), 2 << 16);
    CHECK_OK(qk_disk_bitmap_add(disk, "tuesday", 4096, 0, NULL));
    CHECK_OK(qk_disk_bitmap_disable(disk, "monday", NULL));
    CHECK_OK(qk_disk_write_zeroes(disk, 2 * M, 4096, 0, NULL));
    CHECK_OK(qk_disk_close(disk, NULL));
    disk = open_rw("a.qcow2", "qcow2");
    REQUIRE(disk);
    CHECK_EQ(dirty_bytes(disk, "monday"), 2 << 16);
    CHECK_EQ(dirty_bytes(disk, "tuesday"), 4096);
    CHECK_OK(qk_disk_bitmap_merge(disk, "tuesday", disk, "monday", NULL));
    CHECK_EQ(dirty_bytes(disk, "tuesday"), 4096 + (2 << 16));
    CHECK_OK(qk_disk_bitmap_clear(disk, "tuesday", NULL));
    CHECK_EQ(dirty_bytes(disk, "tuesday"), 0);
    CHECK_OK(qk_disk_bitmap_enable(disk, "monday", NULL));
    CHECK_OK(qk_disk_bitmap_remove(disk, "monday", NULL));
    CHECK_ERR(qk_disk_bitmap_remove(disk, "monday", NULL), -ENOENT);
    CHECK_OK(qk_disk_close(disk, NULL));
}

/* From the overlay into the image below, as before a commit. */
static void test_merge_across(void)
{
    static const uint8_t bytes[512] = {1};
    CHECK_OK(MAKE("b.qcow2", "qcow2", "size=4M"));
    CHECK_OK(MAKE("c.qcow2", "qcow2", "size=4M"));
    struct qk_disk *below = open_rw("b.qcow2", "qcow2"), *above = open_rw("c.qcow2", "qcow2");
    REQUIRE(below && above);
    CHECK_OK(qk_disk_bitmap_add(below, "all", 1 << 20, QK_BITMAP_DISABLED, NULL));
    CHECK_OK(qk_disk_bitmap_add(above, "top", 512, 0, NULL));
    CHECK_OK(qk_disk_write(above, 3 * M - 512, bytes, 512, 0, NULL));
    CHECK_OK(qk_disk_bitmap_merge(below, "all", above, "top", NULL));
    CHECK_EQ(dirty_bytes(below, "all"), M);
    CHECK_OK(qk_disk_resize(above, 5 * M, QK_PREALLOC_OFF, 0, NULL));
    CHECK_ERR(qk_disk_bitmap_merge(below, "all", above, "top", NULL), -EINVAL);
    CHECK_OK(qk_disk_close(above, NULL));
    CHECK_OK(qk_disk_close(below, NULL));
}

static void test_impossible(void)
{
    struct qk_bitmap_extent extent;
    struct qk_error err = {0};
    CHECK_OK(MAKE("d.raw", "raw", "size=1M"));
    struct qk_disk *raw = open_rw("d.raw", "raw"), *disk = open_rw("a.qcow2", "qcow2");
    REQUIRE(raw && disk);
    CHECK_ERR(qk_disk_bitmap_add(raw, "b", 0, 0, &err), -ENOTSUP);
    CHECK_ERR(qk_disk_bitmap_remove(raw, "b", &err), -ENOENT);
    CHECK_ERR(qk_disk_bitmap_status(raw, "b", 0, 1, &extent, &err), -ENOENT);
    CHECK_ERR(qk_disk_bitmap_add(disk, "", 0, 0, &err), -EINVAL);
    CHECK_ERR(qk_disk_bitmap_add(disk, "b", 1000, 0, &err), -EINVAL);
    CHECK_ERR(qk_disk_bitmap_add(disk, "b", UINT64_C(1) << 63, 0, &err), -EINVAL);
    CHECK_ERR(qk_disk_bitmap_add(disk, "tuesday", 0, 0, &err), -EEXIST);
    CHECK_ERR(qk_disk_bitmap_status(disk, "tuesday", 4 * M, 1, &extent, &err), -EINVAL);
    CHECK_ERR(qk_disk_bitmap_merge(disk, "tuesday", raw, "b", &err), -ENOENT);
    CHECK_OK(qk_disk_close(disk, NULL));
    disk = open_disk((struct opening){.name = "a.qcow2"});
    REQUIRE(disk);
    CHECK_ERR(qk_disk_bitmap_clear(disk, "tuesday", &err), -EROFS);
    CHECK_EQ(dirty_bytes(disk, "tuesday"), 0);
    CHECK_OK(qk_disk_close(disk, NULL));
    CHECK_OK(qk_disk_close(raw, NULL));
}

/* What is known of the disk stays valid when its bitmaps change. */
static void test_names_stay(void)
{
    struct qk_info info = QK_INFO_INIT;
    CHECK_OK(MAKE("n.raw", "raw", "size=1M"));
    CHECK_OK(MAKE("n.qcow2", "qcow2", "size=1M", "backing_file=n.raw", "backing_fmt=raw"));
    struct qk_disk *disk = open_rw("n.qcow2", "qcow2");
    REQUIRE(disk);
    CHECK_OK(qk_disk_info(disk, &info, NULL));
    CHECK_OK(qk_disk_bitmap_add(disk, "one", 0, 0, NULL));
    CHECK_OK(qk_disk_bitmap_add(disk, "two", 0, 0, NULL));
    CHECK(strcmp(info.backing_file, "n.raw") == 0 && strcmp(info.backing_format, "raw") == 0);
    const char *file = info.backing_file, *format = info.backing_format;
    CHECK_OK(qk_disk_info(disk, &info, NULL));
    CHECK(info.backing_file == file && info.backing_format == format && info.bitmap_count == 2);
    CHECK_OK(qk_disk_close(disk, NULL));
}

/* A header without room for the extension: refused, and nothing is leaked. */
static void test_full_header(void)
{
    char below[360], option[400];
    struct qk_check_options opts = QK_CHECK_OPTIONS_INIT;
    struct qk_check_result result = QK_CHECK_RESULT_INIT;
    CHECK_OK(MAKE("below.qcow2", "qcow2", "size=1M"));
    memset(below, '/', sizeof(below));
    for (size_t i = 0; i < 340; i += 2)
        below[i] = '.';
    strcpy(below + 340, "below.qcow2");
    snprintf(option, sizeof(option), "backing_file=%s", below);
    CHECK_OK(MAKE("full.qcow2", "qcow2", "cluster_size=512", option, "backing_fmt=qcow2"));
    struct qk_disk *disk = open_rw("full.qcow2", "qcow2");
    REQUIRE(disk);
    CHECK_ERR(qk_disk_bitmap_add(disk, "x", 0, 0, NULL), -ENOSPC);
    CHECK_OK(qk_disk_close(disk, NULL));
    disk = OPEN("full.qcow2", .flags = QK_OPEN_CHECK);
    REQUIRE(disk);
    CHECK_OK(qk_disk_check(disk, &opts, &result, NULL));
    CHECK_EQ(result.leaks + result.corruptions, 0);
    CHECK_OK(qk_disk_close(disk, NULL));
}

int main(void)
{
    if (!CHECK(test_dir_enter()))
        return TEST_SUMMARY();
    test_backup();
    test_merge_across();
    test_impossible();
    test_names_stay();
    test_full_header();
    test_dir_leave();
    return TEST_SUMMARY();
}
