/*
 * test_data_file.c - external data files: what names them and may open them, what is refused, which
 * bytes lie where, a raw file's exactness, its length, and stores that cannot grow or are missing.
 */
#include "image/image.h"
#include "node_test.h"

#include <stdlib.h>

enum { KIB = 1024, CLUSTER = 4096, DISK = 20 * CLUSTER + 512 };

static bool file_holds(const char *name, off_t off, size_t len, int byte)
{
    uint8_t *buf = malloc(len);
    int fd = open(name, O_RDONLY);
    bool same = fd >= 0 && pread(fd, buf, len, off) == (ssize_t)len;
    for (size_t i = 0; i < len && same; i++)
        same = buf[i] == byte;
    close(fd);
    free(buf);
    return same;
}

static int make(const char *name, const char *data_file, const char *more)
{
    char file[200];
    snprintf(file, sizeof(file), "data_file=%s", data_file);
    return MAKE(name, "qcow2", "size=82432", "cluster_size=4k", file, more);
}

/* ---- where the bytes are ---- */

static void test_places(void)
{
    CHECK_OK(make("a.q", "a.data", "data_file_raw=off"));
    CHECK_EQ(file_bytes("a.data"), DISK);
    struct qk_disk *disk = OPEN("a.q", .flags = QK_OPEN_RDWR | QK_OPEN_UNMAP);
    REQUIRE(disk);
    CHECK_OK(fill(disk, 0, 100, 1)); /* cluster 0 is at offset 0 */
    CHECK_OK(fill(disk, 5 * CLUSTER + 7, 2 * CLUSTER, 2));
    CHECK_OK(fill(disk, DISK - 10, 10, 3));
    CHECK(file_holds("a.data", 0, 100, 1));
    CHECK(file_holds("a.data", 5 * CLUSTER + 7, 2 * CLUSTER, 2));
    CHECK(file_holds("a.data", DISK - 10, 10, 3));
    CHECK_EQ(file_bytes("a.data"), DISK); /* not to the end of the cluster */
    struct qk_extent e;
    CHECK_OK(qk_disk_status(disk, 0, DISK, 0, &e, &last_error));
    CHECK(e.flags & QK_EXTENT_DATA && e.flags & QK_EXTENT_OFFSET);
    CHECK_EQ(e.host_off, 0);
    CHECK_EQ(e.len, CLUSTER);
    CHECK_STR(e.file, "a.data");
    CHECK_OK(qk_disk_discard(disk, 0, CLUSTER, &last_error));
    CHECK(holds(disk, 0, CLUSTER, 0));
    CHECK_ERR(qk_disk_write(disk, 0, (uint8_t[CLUSTER]){0}, CLUSTER, QK_WRITE_COMPRESSED, NULL),
              -ENOTSUP);
    CHECK_ERR(qk_disk_write_vm_state(disk, 0, "x", 1, NULL), -ENOTSUP);
    struct qk_info info = QK_INFO_INIT;
    CHECK_OK(qk_disk_info(disk, &info, &last_error));
    CHECK_STR(info.qcow2.data_file, "a.data");
    CHECK_STR(info.data_file_full, "a.data");
    CHECK(!info.qcow2.data_file_raw);
    CHECK_OK(qk_disk_close(disk, &last_error));
    expect_clean("a.q");
}

/* Old bytes of the file never show: neither in a new cluster, nor where the disk grows. */
static void test_old_bytes(void)
{
    struct qk_io *file = NULL, *data = NULL;
    const struct create_params params = {.size_bytes = 10 * CLUSTER + 512,
                                         .version = 3,
                                         .cluster_bits = 12,
                                         .refcount_order = 4,
                                         .data_file = "x"};
    uint8_t old[20 * CLUSTER], now[20 * CLUSTER], zero[20 * CLUSTER] = {0};
    memset(old, 0xee, sizeof(old));
    CHECK_OK(io_mem_open(NULL, 0, 0, &file, NULL));
    CHECK_OK(io_mem_open(old, sizeof(old), 0, &data, NULL));
    data->can_grow = false; /* as a device */
    CHECK_OK(image_create(file, &params, &last_error));
    const struct image_options opts = {.writable = true, .lazy_refcounts = -1, .data = data};
    struct image *img = NULL;
    CHECK_OK(image_open(file, &opts, &img, &last_error));
    REQUIRE(img);
    CHECK_OK(image_readv(img, guest_off(0), &(struct iovec){now, 10 * CLUSTER}, 1, NULL));
    CHECK_MEM(now, zero, 10 * CLUSTER);
    CHECK_OK(image_writev(img, guest_off(10 * CLUSTER + 100), &(struct iovec){"x", 1}, 1, 0, NULL));
    CHECK_OK(image_resize(img, 12 * CLUSTER + 512, QK_PREALLOC_OFF, 0, &last_error));
    CHECK_OK(image_resize(img, 16 * CLUSTER, QK_PREALLOC_METADATA, 0, &last_error));
    CHECK_ERR(image_resize(img, 21 * CLUSTER, QK_PREALLOC_OFF, 0, NULL), -ENOSPC);
    CHECK_EQ(image_size(img), 16 * CLUSTER);
    CHECK_OK(image_readv(img, guest_off(0), &(struct iovec){now, 16 * CLUSTER}, 1, NULL));
    zero[10 * CLUSTER + 100] = 'x';
    CHECK_MEM(now, zero, 16 * CLUSTER);
    CHECK_OK(image_close(img, &last_error));
    io_close(data, NULL);
    io_close(file, NULL);
}

static void test_not_open(void)
{
    struct qk_io *file = NULL;
    struct image *img = NULL;
    const struct create_params params = {.size_bytes = DISK,
                                         .version = 3,
                                         .cluster_bits = 12,
                                         .refcount_order = 4,
                                         .data_file = "x"};
    const struct image_options opts = {.writable = true, .lazy_refcounts = -1};
    uint8_t byte = 1;
    struct iovec iov = {&byte, 1};
    CHECK_OK(io_mem_open(NULL, 0, 0, &file, NULL));
    CHECK_OK(image_create(file, &params, &last_error));
    CHECK_OK(image_open(file, &opts, &img, &last_error));
    REQUIRE(img);
    CHECK(image_has_data_file(img) && !image_data_file_is_raw(img));
    CHECK_ERR(image_writev(img, guest_off(0), &iov, 1, 0, NULL), -EBADF);
    CHECK_ERR(image_resize(img, 2 * DISK, QK_PREALLOC_OFF, 0, NULL), -EBADF);
    CHECK_OK(image_readv(img, guest_off(0), &iov, 1, NULL)); /* has no cluster */
    CHECK_EQ(byte, 0);
    CHECK_OK(image_close(img, &last_error));
    io_close(file, NULL);
}

/* ---- a raw file is the disk ---- */

static void test_raw(void)
{
    CHECK_OK(make("r.q", "r.data", "data_file_raw=on"));
    struct qk_disk *disk = OPEN("r.q", .flags = QK_OPEN_RDWR | QK_OPEN_UNMAP);
    REQUIRE(disk);
    CHECK_OK(fill(disk, 0, DISK, 1));
    CHECK_OK(qk_disk_write_zeroes(disk, 1000, 9000, 0, &last_error));
    CHECK_OK(qk_disk_write_zeroes(disk, 7 * CLUSTER, CLUSTER, QK_WRITE_UNMAP, &last_error));
    CHECK_OK(qk_disk_discard(disk, 10 * CLUSTER - 1, CLUSTER + 2, &last_error));
    CHECK(file_holds("r.data", 0, 1000, 1));
    CHECK(file_holds("r.data", 1000, 9000, 0));
    CHECK(file_holds("r.data", 7 * CLUSTER, CLUSTER, 0));
    CHECK(file_holds("r.data", 10 * CLUSTER - 1, 1, 1)); /* whole clusters only */
    CHECK(file_holds("r.data", 10 * CLUSTER, CLUSTER, 0));
    CHECK(holds(disk, 10 * CLUSTER, CLUSTER, 0));
    struct qk_extent e;
    CHECK_OK(qk_disk_status(disk, 7 * CLUSTER, CLUSTER, 0, &e, &last_error));
    CHECK(e.flags & QK_EXTENT_ZERO && e.flags & QK_EXTENT_ALLOCATED);
    CHECK_OK(qk_disk_resize(disk, 30 * CLUSTER, QK_PREALLOC_OFF, 0, &last_error));
    CHECK_EQ(file_bytes("r.data"), 30 * CLUSTER);
    CHECK_OK(qk_disk_resize(disk, 9 * CLUSTER, QK_PREALLOC_OFF, QK_RESIZE_SHRINK, &last_error));
    CHECK_EQ(file_bytes("r.data"), 9 * CLUSTER);
    CHECK_OK(qk_disk_resize(disk, DISK, QK_PREALLOC_OFF, 0, &last_error));
    CHECK(holds(disk, 9 * CLUSTER, DISK - 9 * CLUSTER, 0));
    CHECK_OK(qk_disk_close(disk, &last_error));
    expect_clean("r.q");
}

/* Without discard=unmap the file keeps its bytes, and so does the disk. */
static void test_raw_keeps(void)
{
    struct qk_disk *disk = OPEN("r.q", .flags = QK_OPEN_RDWR);
    REQUIRE(disk);
    CHECK_OK(fill(disk, 0, 2 * CLUSTER, 5));
    CHECK_OK(qk_disk_discard(disk, 0, 2 * CLUSTER, &last_error));
    CHECK(holds(disk, 0, 2 * CLUSTER, 5) == file_holds("r.data", 0, 2 * CLUSTER, 5));
    CHECK_OK(qk_disk_close(disk, &last_error));
}

static void test_kept(void)
{
    put_file("k.data", "kept", 4, 3 * CLUSTER);
    CHECK_ERR(make("k.q", "k.data", "keep_data_file=on"), -EINVAL);
    CHECK_ERR(MAKE("k.q", "qcow2", "size=80k", "data_file=k.data", "keep_data_file=on",
                   "preallocation=full"),
              -EINVAL);
    CHECK_ERR(MAKE("k.q", "qcow2", "size=80k", "keep_data_file=on"), -EINVAL);
    CHECK(file_holds("k.data", 0, 1, 'k') && file_bytes("k.q") == -1);
    CHECK_OK(MAKE("k.q", "qcow2", "size=80k", "data_file=k.data", "data_file_raw=on",
                  "data_file_keep=on"));
    CHECK_EQ(file_bytes("k.data"), 80 * KIB);
    struct qk_disk *disk = OPEN("k.q");
    REQUIRE(disk);
    CHECK(holds(disk, 0, 1, 'k') && holds(disk, 4, 80 * KIB - 4, 0));
    CHECK_OK(qk_disk_close(disk, &last_error));
}

/* ---- names ---- */

static void test_policy(void)
{
    REFUSED("a.q", EPERM,
            "The image names data file 'a.data', and no name inside an image may be followed here",
            .policy = QK_POLICY_NONE);
    struct qk_disk *disk =
        OPEN("a.q", .policy = QK_POLICY_NONE, .options = OPTIONS("data-file.filename=a.data"));
    CHECK(disk);
    CHECK_OK(qk_disk_close(disk, NULL));
    CHECK_OK(make("p.q", "p.data", "data_file_raw=off"));
    struct qk_disk *trusted =
        OPEN("p.q", .flags = QK_OPEN_RDWR, .options = OPTIONS("data-file.filename=p.data"));
    REQUIRE(trusted);
    CHECK_OK(qk_disk_close(trusted, NULL));
}

static int rename_data_file(const char *image, const char *name)
{
    struct qk_io *file = NULL;
    struct image *img = NULL;
    const struct io_file_options how = {.writable = true};
    const struct image_options opts = {.writable = true, .lazy_refcounts = -1};
    int ret = io_file_open(image, &how, &file, &last_error);
    if (ret == 0)
        ret = image_open(file, &opts, &img, &last_error);
    if (ret == 0)
        ret = image_change_data_file(img, name, false, &last_error);
    if (img)
        image_close(img, NULL);
    io_close(file, NULL);
    return ret;
}

static void test_names(void)
{
    static const char null_name[] = "json:{\"driver\":\"null-co\",\"size\":1048576}";
    CHECK_OK(rename_data_file("p.q", null_name));
    REFUSED("p.q", EPERM,
            "The image names data file 'json:{\"driver\":\"null-co\",\"size\":1048576}', which is "
            "not a plain file name, and other names inside an image are not followed");
    struct qk_disk *disk = OPEN("p.q", .policy = QK_POLICY_ALL);
    CHECK(disk);
    CHECK_OK(qk_disk_close(disk, NULL));
    CHECK_OK(rename_data_file("p.q", ""));
    REFUSED("p.q", EINVAL, "'data-file' is required for this image");
    CHECK_ERR(rename_data_file("a.raw", "x"), -ENOENT);
    CHECK_OK(rename_data_file("p.q", "gone"));
    REFUSED("p.q", ENOENT, "Could not open 'gone': No such file or directory");
    disk = OPEN("p.q", .flags = QK_OPEN_NO_IO);
    CHECK(disk);
    CHECK_OK(qk_disk_close(disk, NULL));
    expect_clean("p.q");
    CHECK_OK(MAKE("plain.q", "qcow2", "size=1M"));
    CHECK_ERR(rename_data_file("plain.q", "x"), -EINVAL);
    REFUSED("plain.q", EINVAL, "'data-file' can only be set for images with an external data file",
            .options = OPTIONS("data-file.filename=a.data"));
    REFUSED("a.q", EINVAL, "Cannot find device='node' nor node-name='node'",
            .options = OPTIONS("data-file=node"));
}

static void test_beside(void)
{
    CHECK(!mkdir("sub", 0755) && chdir("sub") == 0);
    CHECK_OK(make("s.q", "s.data", "data_file_raw=off"));
    CHECK(chdir("..") == 0);
    struct qk_disk *disk = OPEN("sub/s.q");
    REQUIRE(disk);
    struct qk_info info = QK_INFO_INIT;
    CHECK_OK(qk_disk_info(disk, &info, &last_error));
    CHECK_STR(info.data_file_full, "sub/s.data");
    CHECK_OK(qk_disk_close(disk, &last_error));
    put_file("s.data", "", 0, DISK);
    REFUSED("sub/s.q", EINVAL,
            "The image names data file 's.data', and there are two: 'sub/s.data' beside the image "
            "and one in the current directory. Say which with data-file.filename=...");
    CHECK(unlink("s.data") == 0 && symlink("sub/s.data", "s.data") == 0);
    disk = OPEN("sub/s.q");
    CHECK(disk);
    CHECK_OK(qk_disk_close(disk, &last_error));
}

/* ---- one file, one use ---- */

static void test_shared(void)
{
    CHECK_ERR(make("own.q", "own.q", "data_file_raw=off"), -EINVAL);
    CHECK_EQ(file_bytes("own.q"), -1);
    CHECK_OK(rename_data_file("p.q", "p.q"));
    REFUSED("p.q", ELOOP,
            "Data file 'p.q' of 'p.q' is in use in the same chain, as the image itself");
    CHECK_OK(MAKE("top.q", "qcow2", "backing_file=a.q", "backing_fmt=qcow2", "data_file=t.data"));
    CHECK_OK(rename_data_file("top.q", "a.data"));
    REFUSED("top.q", ELOOP,
            "Data file 'a.data' of 'a.q' is in use in the same chain, "
            "as an image or data file above");
    CHECK_OK(rename_data_file("top.q", "a.q"));
    REFUSED("top.q", ELOOP, "Backing file 'a.q' is the data file of an image above it");
}

/* Two that write to the same data file exclude each other; a reader is let in. */
static void test_locks(void)
{
    struct qk_disk *first = OPEN("a.q", .flags = QK_OPEN_RDWR);
    REQUIRE(first);
    CHECK_OK(make("b.q", "b.data", "data_file_raw=off"));
    REFUSED("b.q", EAGAIN,
            "Failed to get shared \"resize\" lock\nIs another process using the image [a.data]?",
            .flags = QK_OPEN_RDWR, .options = OPTIONS("data-file.filename=a.data"));
    struct qk_disk *raw = OPEN("a.data", .format = "raw");
    CHECK(raw);
    CHECK_OK(qk_disk_close(raw, NULL));
    struct qk_disk *shared = OPEN("a.q", .flags = QK_OPEN_FORCE_SHARE);
    CHECK(shared);
    CHECK_OK(qk_disk_close(shared, NULL));
    CHECK_OK(qk_disk_close(first, NULL));
}

int main(void)
{
    if (!test_dir_enter())
        return EXIT_FAILURE;
    test_places();
    test_old_bytes();
    test_not_open();
    test_raw();
    test_raw_keeps();
    test_kept();
    test_policy();
    test_names();
    test_beside();
    test_shared();
    test_locks();
    test_dir_leave();
    return TEST_SUMMARY();
}
