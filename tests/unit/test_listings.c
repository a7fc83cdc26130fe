/*
 * test_listings.c - snapshots and bitmaps as the public API lists them, in images of the fuzz
 * corpus that the qemu tools wrote.
 */
#include "qcowkit.h"
#include "test.h"

/* An image of the corpus, or NULL when the tests run without their source. */
static struct qk_disk *corpus_disk(const char *name)
{
    const char *source = getenv("QCOWKIT_SOURCE");
    struct qk_open_options opts = QK_OPEN_OPTIONS_INIT;
    struct qk_error err = {0};
    struct qk_disk *disk = NULL;
    char path[600];

    if (!source) {
        SKIP("QCOWKIT_SOURCE is not set");
        return NULL;
    }
    snprintf(path, sizeof(path), "%s/tests/fuzz/corpus/%s", source, name);
    opts.format = "qcow2";
    if (!CHECK_OK(qk_disk_open(path, &opts, &disk, &err)))
        printf("    %s\n", err.text);
    return disk;
}

static void test_bitmap(void)
{
    struct qk_bitmap_info bitmap = QK_BITMAP_INFO_INIT;
    struct qk_info info = QK_INFO_INIT;
    struct qk_error err = {0};
    struct qk_disk *disk = corpus_disk("bitmaps.qcow2");

    if (!disk)
        return;
    CHECK_OK(qk_disk_info(disk, &info, NULL));
    CHECK_EQ(info.bitmap_count, 1);
    CHECK_OK(qk_disk_bitmap(disk, 0, &bitmap, NULL));
    CHECK_STR(bitmap.name, "b0");
    CHECK_EQ(bitmap.granularity, 512);
    CHECK_ERR(qk_disk_bitmap(disk, 1, &bitmap, &err), -EINVAL);
    CHECK(err.text[0]);
    CHECK_OK(qk_disk_close(disk, NULL));
}

static void test_snapshots(void)
{
    static const char *const names[] = {"one", "two"};
    struct qk_snapshot_info snapshot = QK_SNAPSHOT_INFO_INIT;
    struct qk_info info = QK_INFO_INIT;
    struct qk_disk *disk = corpus_disk("snapshots.qcow2");

    if (!disk)
        return;
    CHECK_OK(qk_disk_info(disk, &info, NULL));
    CHECK_EQ(info.snapshot_count, 2);
    for (uint32_t i = 0; i < 2; i++) {
        CHECK_OK(qk_disk_snapshot(disk, i, &snapshot, NULL));
        CHECK_STR(snapshot.name, names[i]);
        CHECK_EQ(snapshot.disk_size, 65536);
        CHECK_EQ(snapshot.vm_state_size, 0);
    }
    CHECK_ERR(qk_disk_snapshot(disk, 2, &snapshot, NULL), -EINVAL);
    CHECK_OK(qk_disk_close(disk, NULL));
}

int main(void)
{
    test_bitmap();
    test_snapshots();
    return TEST_SUMMARY();
}
