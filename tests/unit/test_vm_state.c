/*
 * test_vm_state.c - machine state behind the disk: what is written comes back, also after closing;
 * the disk, its size and its backing file stay apart from it; the check counts its clusters; a
 * model of bytes for random writes at every cluster size.
 */
#include "node_test.h"

#include <stdlib.h>

enum { STATE_BYTES = 300000, KIB = 1024, MIB = 1024 * 1024 };

static bool state_is(struct qk_disk *disk, uint64_t off, size_t len, int byte)
{
    uint8_t *buf = malloc(len);
    memset(buf, ~byte, len);
    bool same = qk_disk_read_vm_state(disk, off, buf, len, &last_error) == 0;
    for (size_t i = 0; i < len && same; i++)
        same = buf[i] == byte;
    free(buf);
    return same;
}

static int save(struct qk_disk *disk, uint64_t off, size_t len, int byte)
{
    uint8_t *buf = malloc(len);
    memset(buf, byte, len);
    int ret = qk_disk_write_vm_state(disk, off, buf, len, &last_error);
    free(buf);
    return ret;
}

static void test_apart_from_the_disk(void)
{
    CHECK_OK(MAKE("a.q", "qcow2", "size=1M", "cluster_size=4k"));
    struct qk_disk *disk = OPEN("a.q", .flags = QK_OPEN_RDWR);
    REQUIRE(disk);
    CHECK_OK(fill(disk, 0, MIB, 1));
    CHECK(state_is(disk, 12345, 10 * KIB, 0));
    CHECK_OK(save(disk, 1000, 70 * KIB, 2));
    CHECK_OK(save(disk, 40 * MIB, 1, 3));
    CHECK_EQ(qk_disk_size(disk), MIB);
    CHECK(holds(disk, 0, MIB, 1));
    CHECK_OK(qk_disk_close(disk, &last_error));
    expect_clean("a.q");
    disk = OPEN("a.q");
    REQUIRE(disk);
    CHECK(state_is(disk, 0, 1000, 0));
    CHECK(state_is(disk, 1000, 70 * KIB, 2));
    CHECK(state_is(disk, 1000 + 70 * KIB, 40 * MIB - 1000 - 70 * KIB, 0));
    CHECK(state_is(disk, 40 * MIB, 1, 3));
    CHECK(state_is(disk, 40 * MIB + 1, 5 * MIB, 0));
    CHECK(holds(disk, 0, MIB, 1));
    CHECK_EQ(save(disk, 0, 1, 1), -EROFS);
    CHECK_OK(qk_disk_close(disk, &last_error));
}

/* The backing file reaches over the place where the overlay keeps its state. */
static void test_longer_backing_file(void)
{
    CHECK_OK(MAKE("base.q", "qcow2", "size=20M"));
    struct qk_disk *disk = OPEN("base.q", .flags = QK_OPEN_RDWR);
    REQUIRE(disk);
    CHECK_OK(fill(disk, 0, 20 * MIB, 9));
    CHECK_OK(qk_disk_close(disk, &last_error));
    CHECK_OK(MAKE("over.q", "qcow2", "size=1M", "cluster_size=4k", "backing_file=base.q",
                  "backing_fmt=qcow2"));
    disk = OPEN("over.q", .flags = QK_OPEN_RDWR);
    REQUIRE(disk);
    CHECK(state_is(disk, 0, 10 * MIB, 0));
    CHECK_OK(save(disk, 512, 512, 5));
    CHECK(state_is(disk, 0, 512, 0));
    CHECK(state_is(disk, 512, 512, 5));
    CHECK(state_is(disk, 1024, 10 * MIB, 0));
    CHECK_OK(qk_disk_close(disk, &last_error));
    expect_clean("over.q");
}

/* The disk takes the place of the state, and reads zero there. */
static void test_growth(const char *compat)
{
    char option[32];
    snprintf(option, sizeof(option), "compat=%s", compat);
    CHECK_OK(MAKE("grow.q", "qcow2", "size=1M", "cluster_size=512", option));
    struct qk_disk *disk = OPEN("grow.q", .flags = QK_OPEN_RDWR);
    REQUIRE(disk);
    CHECK_OK(fill(disk, 0, MIB, 1));
    CHECK_OK(save(disk, 0, 300 * KIB, 4));
    CHECK_OK(qk_disk_resize(disk, MIB + 100 * KIB, QK_PREALLOC_OFF, 0, &last_error));
    CHECK(holds(disk, 0, MIB, 1));
    CHECK(holds(disk, MIB, 100 * KIB, 0));
    CHECK_OK(qk_disk_resize(disk, 3 * MIB, QK_PREALLOC_OFF, 0, &last_error));
    CHECK(holds(disk, MIB, 2 * MIB, 0));
    CHECK_OK(qk_disk_close(disk, &last_error));
    expect_clean("grow.q");
}

static void test_refusals(void)
{
    uint8_t byte = 1;
    CHECK_OK(MAKE("r.raw", "raw", "size=1M"));
    struct qk_disk *disk = OPEN("r.raw", .format = "raw", .flags = QK_OPEN_RDWR);
    REQUIRE(disk);
    CHECK_EQ(qk_disk_read_vm_state(disk, 0, &byte, 1, &last_error), -ENOTSUP);
    CHECK_EQ(qk_disk_write_vm_state(disk, 0, &byte, 1, &last_error), -ENOTSUP);
    CHECK_OK(qk_disk_close(disk, &last_error));
    CHECK_OK(MAKE("r.q", "qcow2", "size=1M", "cluster_size=512"));
    disk = OPEN("r.q", .flags = QK_OPEN_RDWR);
    REQUIRE(disk);
    CHECK_EQ(qk_disk_write_vm_state(disk, UINT64_C(1) << 60, &byte, 1, &last_error), -EFBIG);
    CHECK_EQ(qk_disk_write_vm_state(disk, UINT64_MAX - 1, &byte, 1, &last_error), -EFBIG);
    CHECK_EQ(qk_disk_read_vm_state(disk, INT64_MAX, &byte, 1, &last_error), -EFBIG);
    CHECK_OK(qk_disk_read_vm_state(disk, UINT64_C(1) << 60, &byte, 1, &last_error));
    CHECK_EQ(byte, 0);
    CHECK_OK(qk_disk_write_vm_state(disk, 0, &byte, 0, &last_error));
    CHECK_OK(qk_disk_close(disk, &last_error));
    expect_clean("r.q");
}

static void test_model(unsigned cluster_bits, const char *extended_l2)
{
    static uint8_t model[STATE_BYTES], got[STATE_BYTES];
    char option[32];
    memset(model, 0, sizeof(model));
    snprintf(option, sizeof(option), "cluster_size=%u", 1u << cluster_bits);
    CHECK_OK(MAKE("m.q", "qcow2", "size=200k", option, extended_l2));
    struct qk_disk *disk = NULL;
    srandom(cluster_bits);
    for (int step = 0; step < 60; step++) {
        if (step % 20 == 0) {
            CHECK_OK(qk_disk_close(disk, &last_error));
            disk = OPEN("m.q", .flags = QK_OPEN_RDWR);
            REQUIRE(disk);
        }
        size_t off = (size_t)random() % STATE_BYTES;
        size_t len = (size_t)random() % ((STATE_BYTES - off) / (step % 3 ? 40 : 1) + 1);
        memset(model + off, step + 1, len);
        CHECK_OK(qk_disk_write_vm_state(disk, off, model + off, len, &last_error));
        CHECK_OK(fill(disk, (uint64_t)random() % (100 * KIB), 100, 200));
    }
    CHECK_OK(qk_disk_read_vm_state(disk, 0, got, STATE_BYTES, &last_error));
    CHECK(!memcmp(model, got, STATE_BYTES));
    CHECK_OK(qk_disk_close(disk, &last_error));
    expect_clean("m.q");
}

int main(void)
{
    if (!test_dir_enter())
        return 1;
    test_apart_from_the_disk();
    test_longer_backing_file();
    test_growth("0.10");
    test_growth("1.1");
    test_refusals();
    for (unsigned bits = 9; bits <= 21; bits += 3)
        test_model(bits, "extended_l2=off");
    for (unsigned bits = 14; bits <= 21; bits += 7)
        test_model(bits, "extended_l2=on");
    test_dir_leave();
    return TEST_SUMMARY();
}
