/*
 * test_node.c - disks through the public API: names, option trees, probing, raw and its guarded
 * first sector, chains of backing files, what an image may make us open, locks, status, copies on
 * read and temporary overlays.
 */
#include "node_test.h"

#include <pthread.h>

#define MIB (1u << 20)

/* ---- names and options ------------------------------------------------------------------- */

static void test_names(void)
{
    put_file("r.raw", "x", 1, MIB);
    CHECK_OK(MAKE("a.qcow2", "qcow2", "size=1M"));
    CHECK(!mkdir("dir", 0755) && !mkfifo("fifo", 0644));
    REFUSED("nofile", ENOENT, "Could not open 'nofile': No such file or directory");
    REFUSED("file:nofile", ENOENT, "Could not open 'nofile': No such file or directory");
    REFUSED("dir", EINVAL, "'file' driver requires 'dir' to be a regular file");
    REFUSED("fifo", EINVAL, "'file' driver requires 'fifo' to be a regular file");
    REFUSED("xxx:foo", EINVAL, "Unknown protocol 'xxx'");
    REFUSED("./xxx:foo", ENOENT, "Could not open './xxx:foo': No such file or directory");
    REFUSED("nbd:x:1", ENOTSUP, "Protocol 'nbd' is not supported by this version");
    REFUSED("a.qcow2", EINVAL, "Unknown driver 'nosuch'", .format = "nosuch");
    REFUSED("a.qcow2", ENOTSUP, "Format 'vmdk' is not supported by this version", .format = "vmdk");
    REFUSED("r.raw", EINVAL, "Image is not in qcow2 format", .format = "qcow2");
    REFUSED("blkdebug:a.qcow2", EINVAL, "blkdebug requires both config file and image path");
    REFUSED(NULL, EINVAL, "Must specify either driver or file");
}

static void test_json(void)
{
    REFUSED("json:[1]", EINVAL, "Invalid JSON object given");
    REFUSED("json:{\"driver\":\"qcow2\"}", EINVAL, "A block device must be specified for \"file\"");
    REFUSED("json:{\"driver\":\"file\"}", EINVAL, "The 'file' block driver requires a file name");
    REFUSED("json:{\"driver\":\"qcow2\",\"file.filename\":\"a.qcow2\",\"foo\":1}", EINVAL,
            "Block format 'qcow2' does not support the option 'foo'");
    REFUSED("json:{\"driver\":\"qcow2\",\"file.filename\":\"a.qcow2\",\"file.foo\":1}", EINVAL,
            "Block protocol 'file' doesn't support the option 'foo'");
    CHECK(!OPEN("json:{"));
    CHECK(!strncmp(last_error.text, "Could not parse the JSON options: ", 34));
    struct qk_disk *disk = OPEN("json:{\"driver\":\"qcow2\",\"lazy-refcounts\":true,\"file\":"
                                "{\"driver\":\"file\",\"filename\":\"a.qcow2\"}}");
    REQUIRE(disk);
    CHECK_EQ(qk_disk_size(disk), MIB);
    struct qk_info info = QK_INFO_INIT;
    CHECK_OK(qk_disk_info(disk, &info, &last_error));
    CHECK_STR(info.name, "a.qcow2");
    CHECK_STR(info.format, "qcow2");
    CHECK_OK(qk_disk_close(disk, &last_error));
}

static void test_options(void)
{
    static const char *const good[][4] = {
        {"driver=qcow2", "file.filename=a.qcow2", "l2-cache-size=1M"},
        {"file.filename=a.qcow2", "cache.direct=off", "node-name=x"},
        {"driver=qcow2", "file.driver=file", "file.filename=a.qcow2", "file.locking=off"},
        {"driver=qcow2", "file.filename=a.qcow2", "overlap-check=all",
         "overlap-check.main-header=off"},
        {"driver=qcow2", "file.driver=blkdebug", "file.image.filename=a.qcow2",
         "file.inject-error.0.event=l2_load"},
    };
    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
        const char *list[5] = {good[i][0], good[i][1], good[i][2], good[i][3], NULL};
        struct qk_disk *disk = OPEN(NULL, .options = list);
        CHECK(disk && qk_disk_size(disk) == MIB);
        CHECK_OK(qk_disk_close(disk, &last_error));
    }
    REFUSED("a.qcow2", EINVAL, "Parameter 'lazy-refcounts' expects 'on' or 'off'",
            .options = OPTIONS("lazy-refcounts=maybe"));
    REFUSED("a.qcow2", EINVAL,
            "cache-size, l2-cache-size and refcount-cache-size may not be set at "
            "the same time",
            .options = OPTIONS("cache-size=1M", "l2-cache-size=64k", "refcount-cache-size=64k"));
    REFUSED("a.qcow2", EINVAL, "force-share=on can only be used with read-only images",
            .flags = QK_OPEN_RDWR, .options = OPTIONS("force-share=on"));
    REFUSED(NULL, EINVAL, "Cannot find device='a.qcow2' nor node-name='a.qcow2'",
            .options = OPTIONS("driver=qcow2", "file=a.qcow2"));
}

static void test_null(void)
{
    struct qk_disk *disk =
        OPEN(NULL, .flags = QK_OPEN_RDWR, .options = OPTIONS("driver=null-co", "size=3M"));
    REQUIRE(disk);
    CHECK_EQ(qk_disk_size(disk), 3 * MIB);
    CHECK_OK(fill(disk, 5, 100, 1));
    CHECK(holds(disk, 0, 4096, 0));
    CHECK_ERR(fill(disk, 3 * MIB - 1, 2, 1), -EINVAL);
    CHECK_OK(qk_disk_close(disk, &last_error));
}

/* ---- probing and raw --------------------------------------------------------------------- */

static void test_foreign_formats(void)
{
    static const struct {
        const char *bytes, *format;
        size_t len;
    } images[] = {{"KDMV", "vmdk", 4},
                  {"COWD", "vmdk", 4},
                  {"conectix", "vpc", 8},
                  {"vhdxfile", "vhdx", 8},
                  {"QED\0", "qed", 4},
                  {"QFI\xfb\0\0\0\1", "qcow", 8},
                  {"LUKS\xba\xbe\0\1", "luks", 8}};
    for (size_t i = 0; i < sizeof(images) / sizeof(*images); i++) {
        char text[128];
        put_file("foreign", images[i].bytes, images[i].len, MIB);
        snprintf(text, sizeof(text),
                 "Image is in %s format, which is not supported by this version "
                 "(give format raw to use its bytes as they are)",
                 images[i].format);
        REFUSED("foreign", ENOTSUP, text);
        struct qk_disk *disk = OPEN("foreign", .format = "raw");
        CHECK(disk);
        qk_disk_close(disk, NULL);
    }
    /* what QEMU takes for raw */
    put_file("foreign", "LUKS", 4, MIB);
    struct qk_disk *disk = OPEN("foreign");
    CHECK(disk);
    qk_disk_close(disk, NULL);
}

static void test_guarded_sector(void)
{
    static const char magic[] = "QFI\xfb\0\0\0\3";
    put_file("guest", "", 0, MIB);
    struct qk_disk *disk = OPEN("guest", .flags = QK_OPEN_RDWR);
    struct qk_info info = QK_INFO_INIT;
    REQUIRE(disk);
    CHECK_OK(qk_disk_info(disk, &info, &last_error));
    CHECK(info.probed);
    CHECK_OK(fill(disk, 0, 512, 0x51));
    CHECK_ERR(qk_disk_write(disk, 0, magic, 8, 0, &last_error), -EPERM);
    CHECK(holds(disk, 0, 512, 0x51));
    /* in two halves: the second one would complete the signature */
    CHECK_OK(qk_disk_write(disk, 4, "\0\0\0\0", 4, 0, &last_error));
    CHECK_OK(qk_disk_write(disk, 0, magic, 4, 0, &last_error));
    CHECK_ERR(qk_disk_write(disk, 4, magic + 4, 4, 0, &last_error), -EPERM);
    CHECK_OK(qk_disk_write(disk, 512, magic, 8, 0, &last_error));
    CHECK_OK(qk_disk_close(disk, &last_error));
    disk = OPEN("guest", .format = "raw", .flags = QK_OPEN_RDWR);
    REQUIRE(disk);
    CHECK_OK(qk_disk_write(disk, 0, magic, 8, 0, &last_error));
    CHECK_OK(qk_disk_close(disk, &last_error));
}

/* Zeroes around old bytes must not complete a signature either: version 1 of "QFI" is a format,
 * and its number is three zeroes and a one. */
static void test_guarded_zeroes(void)
{
    put_file("guest", "QFI\xfb\0\0\0", 7, MIB);
    struct qk_disk *disk = OPEN("guest", .flags = QK_OPEN_RDWR | QK_OPEN_UNMAP);
    REQUIRE(disk);
    CHECK_ERR(qk_disk_write(disk, 7, "\1", 1, 0, &last_error), -EPERM);
    CHECK_OK(qk_disk_close(disk, &last_error));
    put_file("guest", "xxxxxxxxversion=1\nx", 19, MIB);
    disk = OPEN("guest", .flags = QK_OPEN_RDWR | QK_OPEN_UNMAP);
    REQUIRE(disk);
    CHECK_OK(qk_disk_write_zeroes(disk, 0, 4096, QK_WRITE_UNMAP, &last_error));
    CHECK(holds(disk, 0, 4096, 0));
    CHECK_OK(qk_disk_close(disk, &last_error));
}

static void test_raw_window(void)
{
    put_file("win", "", 0, MIB);
    REFUSED("win", EINVAL,
            "Offset (2097152) cannot be greater than size of the containing file "
            "(1048576)",
            .format = "raw", .options = OPTIONS("offset=2M"));
    REFUSED("win", EINVAL, "Specified size is not multiple of 512", .format = "raw",
            .options = OPTIONS("size=1000"));
    struct qk_disk *disk = OPEN("win", .format = "raw", .flags = QK_OPEN_RDWR,
                                .options = OPTIONS("offset=512", "size=1024"));
    REQUIRE(disk);
    CHECK_EQ(qk_disk_size(disk), 1024);
    CHECK_OK(fill(disk, 0, 1024, 7));
    CHECK_ERR(fill(disk, 1023, 2, 7), -EINVAL);
    CHECK_ERR(qk_disk_resize(disk, 4096, QK_PREALLOC_OFF, 0, &last_error), -ENOTSUP);
    CHECK_OK(qk_disk_close(disk, &last_error));
    disk = OPEN("win", .format = "raw");
    REQUIRE(disk);
    CHECK(holds(disk, 0, 512, 0) && holds(disk, 512, 1024, 7) && holds(disk, 1536, 512, 0));
    CHECK_OK(qk_disk_close(disk, &last_error));
}

/* A file of odd length is a disk of whole sectors; the last bytes read as zero and can be written.
 */
static void test_raw_odd_length(void)
{
    put_file("odd", "\1\1\1", 3, 1001);
    struct qk_disk *disk = OPEN("odd", .format = "raw", .flags = QK_OPEN_RDWR);
    struct qk_extent extent;
    REQUIRE(disk);
    CHECK_EQ(qk_disk_size(disk), 1024);
    CHECK(holds(disk, 3, 1021, 0));
    CHECK_OK(qk_disk_status(disk, 1001, 100, 0, &extent, &last_error));
    CHECK_EQ(extent.len, 23);
    CHECK(extent.flags & QK_EXTENT_ZERO && extent.flags & QK_EXTENT_EOF);
    CHECK_OK(fill(disk, 1000, 24, 9));
    CHECK_ERR(qk_disk_status(disk, 1024, 1, 0, &extent, &last_error), -EINVAL);
    CHECK_OK(qk_disk_resize(disk, 2000, QK_PREALLOC_OFF, 0, &last_error));
    CHECK_EQ(qk_disk_size(disk), 2048);
    CHECK_ERR(qk_disk_resize(disk, 512, QK_PREALLOC_OFF, 0, &last_error), -EINVAL);
    CHECK_OK(qk_disk_resize(disk, 512, QK_PREALLOC_OFF, QK_RESIZE_SHRINK, &last_error));
    CHECK_OK(qk_disk_close(disk, &last_error));
    CHECK_EQ(file_bytes("odd"), 512);
}

static void test_discard_modes(void)
{
    static const struct {
        unsigned flags;
        const char *option;
        bool freed;
    } modes[] = {{0, NULL, false},
                 {QK_OPEN_UNMAP, NULL, true},
                 {QK_OPEN_UNMAP, "discard=ignore", false},
                 {0, "discard=unmap", true}};
    for (size_t i = 0; i < sizeof(modes) / sizeof(*modes); i++) {
        const char *list[] = {modes[i].option, NULL};
        put_file("disc", "", 0, MIB);
        struct qk_disk *disk =
            OPEN("disc", .format = "raw", .flags = QK_OPEN_RDWR | modes[i].flags, .options = list);
        REQUIRE(disk);
        CHECK_OK(fill(disk, 0, MIB, 1));
        CHECK_OK(qk_disk_discard(disk, 0, MIB, &last_error));
        CHECK_EQ(holds(disk, 0, MIB, 0), modes[i].freed);
        CHECK_OK(qk_disk_close(disk, &last_error));
    }
}

/* ---- chains ------------------------------------------------------------------------------ */

/* sub/base.raw (64k, all 1) <- sub/mid.q (1M) <- sub/top.q (2M), with names relative to sub. */
static void make_chain(void)
{
    struct qk_disk *disk;
    mkdir("sub", 0755);
    CHECK_OK(MAKE("sub/base.raw", "raw", "size=64k"));
    CHECK_OK(MAKE("sub/mid.q", "qcow2", "size=1M", "backing_file=base.raw", "backing_fmt=raw"));
    CHECK_OK(MAKE("sub/top.q", "qcow2", "size=2M", "backing_file=mid.q", "backing_fmt=qcow2"));
    disk = OPEN("sub/base.raw", .format = "raw", .flags = QK_OPEN_RDWR);
    CHECK_OK(fill(disk, 0, 65536, 1));
    CHECK_OK(qk_disk_close(disk, &last_error));
    disk = OPEN("sub/mid.q", .flags = QK_OPEN_RDWR);
    CHECK_OK(fill(disk, 32768, 65536, 2));
    CHECK_OK(qk_disk_close(disk, &last_error));
}

static void test_chain(void)
{
    make_chain();
    struct qk_disk *top = OPEN("sub/top.q", .flags = QK_OPEN_RDWR);
    struct qk_info info = QK_INFO_INIT;
    REQUIRE(top);
    CHECK(holds(top, 0, 32768, 1) && holds(top, 32768, 65536, 2));
    CHECK(holds(top, 98304, 2 * MIB - 98304, 0));
    CHECK_OK(fill(top, 1000, 24, 3));
    CHECK(holds(top, 0, 1000, 1) && holds(top, 1000, 24, 3) && holds(top, 1024, 31744, 1));
    CHECK_OK(qk_disk_info(top, &info, &last_error));
    CHECK_STR(info.backing_file, "mid.q");
    CHECK_STR(info.backing_full, "sub/mid.q");
    CHECK_STR(info.backing_format, "qcow2");
    struct qk_disk *base = qk_disk_backing(qk_disk_backing(top));
    REQUIRE(base);
    CHECK(!qk_disk_backing(base));
    CHECK_OK(qk_disk_info(base, &info, &last_error));
    CHECK_STR(info.name, "sub/base.raw");
    CHECK(info.read_only);
    CHECK_ERR(fill(base, 0, 1, 1), -EROFS);
    CHECK_OK(qk_disk_close(top, &last_error));
}

static void expect_extent(struct qk_disk *disk, uint64_t off, uint64_t len, unsigned flags,
                          unsigned depth)
{
    const unsigned seen = QK_EXTENT_DATA | QK_EXTENT_ZERO | QK_EXTENT_ALLOCATED;
    struct qk_extent extent;
    CHECK_OK(qk_disk_status(disk, off, UINT64_MAX, 0, &extent, &last_error));
    CHECK_EQ(extent.off, off);
    CHECK_EQ(extent.len, len);
    CHECK_EQ(extent.flags & seen, flags);
    CHECK_EQ(extent.depth, depth);
}

static void test_chain_status(void)
{
    const unsigned data = QK_EXTENT_DATA | QK_EXTENT_ALLOCATED;
    struct qk_extent extent;
    remove("sub/top.q");
    CHECK_OK(MAKE("sub/top.q", "qcow2", "size=2M", "backing_file=mid.q", "backing_fmt=qcow2"));
    struct qk_disk *top = OPEN("sub/top.q", .flags = QK_OPEN_RDWR);
    REQUIRE(top);
    expect_extent(top, 0, 131072, data, 1); /* the first two clusters of mid.q */
    expect_extent(top, 131072, MIB - 131072, QK_EXTENT_ZERO, 1); /* base.raw is shorter */
    expect_extent(top, MIB, MIB, QK_EXTENT_ZERO, 0);             /* mid.q is shorter */
    CHECK_OK(fill(top, 65536, 65536, 4));
    expect_extent(top, 0, 65536, data, 1);
    expect_extent(top, 65536, 65536, data, 0);
    CHECK_OK(qk_disk_status(top, 0, 65536, QK_STATUS_TOP, &extent, &last_error));
    CHECK_EQ(extent.flags, 0);
    CHECK_EQ(extent.len, 65536);
    CHECK_OK(qk_disk_close(top, &last_error));
    top = OPEN("sub/top.q", .flags = QK_OPEN_NO_BACKING);
    REQUIRE(top);
    expect_extent(top, 0, 65536, QK_EXTENT_ZERO, 0);
    CHECK(holds(top, 0, 65536, 0));
    CHECK_OK(qk_disk_close(top, &last_error));
}

static void test_chain_failures(void)
{
    struct qk_disk *disk;
    rename("sub/base.raw", "sub/away");
    REFUSED("sub/top.q", ENOENT,
            "Could not open backing file: Could not open backing file: Could "
            "not open 'sub/base.raw': No such file or directory");
    CHECK(!mkfifo("sub/base.raw", 0644));
    REFUSED("sub/mid.q", EINVAL,
            "Could not open backing file: 'file' driver requires "
            "'sub/base.raw' to be a regular file");
    unlink("sub/base.raw");
    disk = OPEN("sub/top.q", .flags = QK_OPEN_NO_IO); /* what info needs is in the image itself */
    CHECK(disk);
    CHECK_OK(qk_disk_close(disk, &last_error));
    disk = OPEN("sub/mid.q", .options = OPTIONS("backing.file.filename=sub/away"));
    REQUIRE(disk && qk_disk_backing(disk));
    CHECK(holds(qk_disk_backing(disk), 0, 65536, 1));
    CHECK_OK(qk_disk_close(disk, &last_error));
    disk = OPEN("sub/mid.q", .options = OPTIONS("backing="));
    CHECK(disk && !qk_disk_backing(disk));
    CHECK_OK(qk_disk_close(disk, &last_error));
    rename("sub/away", "sub/base.raw");
}

/* Makes `name` an overlay over `backing`, whatever that is. */
static void overlay(const char *name, const char *backing, const char *format)
{
    char file[300], fmt[64];
    snprintf(file, sizeof(file), "backing_file=%s", backing);
    snprintf(fmt, sizeof(fmt), "backing_fmt=%s", format);
    CHECK_OK(MAKE(name, "qcow2", "size=1M", file, fmt));
}

static void test_loops(void)
{
    overlay("l2.q", "l1.q", "qcow2");
    overlay("l1.q", "l2.q", "qcow2");
    REFUSED("l1.q", ELOOP, "The backing chain is a loop: 'l1.q' -> 'l2.q' -> 'l1.q'");
    overlay("self.q", "./self.q", "qcow2");
    REFUSED("self.q", ELOOP, "The backing chain is a loop: 'self.q' -> './self.q'");
    REFUSED("self.q", ELOOP, "The backing chain is a loop: 'self.q' -> './self.q'",
            .flags = QK_OPEN_RDWR);
    CHECK(!symlink("self2.q", "link.q"));
    overlay("self2.q", "link.q", "qcow2");
    REFUSED("self2.q", ELOOP, "The backing chain is a loop: 'self2.q' -> 'link.q'");
    struct qk_disk *disk = OPEN("self.q", .flags = QK_OPEN_NO_IO);
    CHECK(disk);
    CHECK_OK(qk_disk_close(disk, &last_error));
}

static void test_deep_chain(void)
{
    char name[32], below[32] = "r.raw";
    for (unsigned i = 1; i <= 202; i++) {
        snprintf(name, sizeof(name), "deep%u.q", i);
        overlay(name, below, i == 1 ? "raw" : "qcow2");
        memcpy(below, name, sizeof(below));
    }
    struct qk_disk *disk = OPEN("deep199.q", .flags = QK_OPEN_RDWR);
    CHECK(disk && holds(disk, 0, 1, 'x') && holds(disk, 1, 4096, 0));
    CHECK_OK(qk_disk_close(disk, &last_error));
    REFUSED("deep202.q", ELOOP, "The backing chain is deeper than 200 images at 'deep2.q'");
}

static void test_policy(void)
{
    static const char json[] = "json:{\"driver\":\"null-co\",\"size\":65536}";
    char text[256];
    struct qk_disk *disk;
    overlay("p.q", json, "null-co");
    snprintf(text, sizeof(text),
             "Could not open backing file: The image names '%s', which is not a "
             "plain file name, and other names inside an image are not followed",
             json);
    REFUSED("p.q", EPERM, text);
    disk = OPEN("p.q", .policy = QK_POLICY_ALL);
    CHECK(disk && holds(disk, 0, 4096, 0));
    CHECK_OK(qk_disk_close(disk, &last_error));
    disk = OPEN("p.q", .flags = QK_OPEN_NO_IO);
    CHECK(disk);
    CHECK_OK(qk_disk_close(disk, &last_error));
    overlay("p2.q", "nbd:localhost:1", "raw");
    CHECK(!OPEN("p2.q") && last_error.code == EPERM);
    CHECK(!OPEN("p2.q", .policy = QK_POLICY_ALL) && last_error.code == ENOTSUP);
    overlay("p3.q", "r.raw", "raw");
    CHECK(!OPEN("p3.q", .policy = QK_POLICY_NONE) && last_error.code == EPERM);
    overlay("p4.q", "r.raw", "blkdebug");
    CHECK(!OPEN("p4.q") && last_error.code == EPERM);
    /* options are the caller's own word */
    disk = OPEN("p2.q", .options = OPTIONS("backing.driver=raw", "backing.file.filename=r.raw"));
    CHECK(disk && holds(disk, 0, 1, 'x'));
    CHECK_OK(qk_disk_close(disk, &last_error));
}

/* ---- locks ------------------------------------------------------------------------------- */

static void test_locks(void)
{
    struct qk_disk *disk = OPEN("a.qcow2", .flags = QK_OPEN_RDWR), *other;
    REQUIRE(disk);
    REFUSED("a.qcow2", EAGAIN,
            "Failed to get \"write\" lock\nIs another process using the image "
            "[a.qcow2]?",
            .flags = QK_OPEN_RDWR);
    REFUSED("a.qcow2", EAGAIN,
            "Failed to get shared \"write\" lock\nIs another process using the "
            "image [a.qcow2]?");
    REFUSED("a.qcow2", EAGAIN,
            "Failed to get shared \"write\" lock\nIs another process using the "
            "image [a.qcow2]?",
            .flags = QK_OPEN_NO_IO);
    other = OPEN("a.qcow2", .flags = QK_OPEN_FORCE_SHARE);
    CHECK(other);
    CHECK_OK(qk_disk_close(other, &last_error));
    CHECK_ERR(MAKE("a.qcow2", "qcow2", "size=4M"), -EAGAIN);
    CHECK_OK(MAKE("on-a.q", "qcow2", "backing_file=a.qcow2", "backing_fmt=qcow2"));
    CHECK(!OPEN("on-a.q") && last_error.code == EAGAIN);
    CHECK_OK(fill(disk, 0, 4096, 1));
    CHECK_OK(qk_disk_close(disk, &last_error));
    other = OPEN("on-a.q", .flags = QK_OPEN_RDWR); /* a backing file may not be written meanwhile */
    CHECK(other && !OPEN("a.qcow2", .flags = QK_OPEN_RDWR) && last_error.code == EAGAIN);
    disk = OPEN("a.qcow2");
    CHECK(disk && holds(disk, 0, 4096, 1));
    CHECK_OK(qk_disk_close(disk, &last_error));
    CHECK_OK(qk_disk_close(other, &last_error));
}

static void test_raw_locks(void)
{
    struct qk_disk *disk = OPEN("win", .format = "raw", .flags = QK_OPEN_RDWR), *other;
    REQUIRE(disk);
    other = OPEN("win", .format = "raw", .flags = QK_OPEN_RDWR); /* raw is shared, as QEMU has it */
    CHECK(other);
    CHECK_OK(qk_disk_resize(disk, 2 * MIB, QK_PREALLOC_OFF, 0, &last_error));
    CHECK_OK(qk_disk_close(other, &last_error));
    CHECK_OK(qk_disk_close(disk, &last_error));
}

/* ---- modes ------------------------------------------------------------------------------- */

static void test_temporary_overlay(void)
{
    struct qk_disk *disk = OPEN("r.raw", .format = "raw", .flags = QK_OPEN_RDWR | QK_OPEN_SNAPSHOT);
    REQUIRE(disk);
    CHECK_EQ(qk_disk_size(disk), MIB);
    CHECK(holds(disk, 0, 1, 'x'));
    CHECK_OK(fill(disk, 0, 65536, 5));
    CHECK(holds(disk, 0, 65536, 5));
    CHECK_OK(qk_disk_close(disk, &last_error));
    disk = OPEN("r.raw", .format = "raw");
    CHECK(disk && holds(disk, 0, 1, 'x') && holds(disk, 1, 4096, 0));
    CHECK_OK(qk_disk_close(disk, &last_error));
}

static void test_copy_on_read(void)
{
    struct qk_extent extent;
    overlay("cor.q", "sub/base.raw", "raw");
    REFUSED("cor.q", EINVAL, "Can't use copy-on-read on read-only device",
            .flags = QK_OPEN_COPY_ON_READ);
    struct qk_disk *disk = OPEN("cor.q", .flags = QK_OPEN_RDWR | QK_OPEN_COPY_ON_READ);
    REQUIRE(disk);
    CHECK(holds(disk, 100, 1000, 1));
    CHECK_OK(qk_disk_status(disk, 0, MIB, QK_STATUS_TOP, &extent, &last_error));
    CHECK(extent.flags & QK_EXTENT_DATA && extent.len == 65536);
    CHECK_OK(qk_disk_close(disk, &last_error));
    disk = OPEN("cor.q", .flags = QK_OPEN_NO_BACKING);
    CHECK(disk && holds(disk, 0, 65536, 1));
    CHECK_OK(qk_disk_close(disk, &last_error));
}

/* Readers that copy and writers work on the same clusters: no write is lost to a copy. */
static void *copy_worker(void *opaque)
{
    struct qk_disk *disk = opaque;
    uint8_t buf[512];
    struct qk_error err;
    for (uint64_t off = 0; off < MIB; off += 4096)
        CHECK_OK(qk_disk_read(disk, off, buf, sizeof(buf), &err));
    return NULL;
}

static void *write_worker(void *opaque)
{
    struct qk_disk *disk = opaque;
    uint8_t buf[512];
    struct qk_error err;
    memset(buf, 6, sizeof(buf));
    for (uint64_t off = 1024; off < MIB; off += 8192)
        CHECK_OK(qk_disk_write(disk, off, buf, sizeof(buf), 0, &err));
    return NULL;
}

static void test_copy_on_read_threads(void)
{
    pthread_t thread[4];
    put_file("full.raw", "", 0, MIB);
    struct qk_disk *disk = OPEN("full.raw", .format = "raw", .flags = QK_OPEN_RDWR);
    REQUIRE(disk);
    CHECK_OK(fill(disk, 0, MIB, 5));
    CHECK_OK(qk_disk_close(disk, &last_error));
    remove("cor2.q");
    overlay("cor2.q", "full.raw", "raw");
    disk = OPEN("cor2.q", .flags = QK_OPEN_RDWR | QK_OPEN_COPY_ON_READ);
    REQUIRE(disk);
    for (int i = 0; i < 4; i++)
        CHECK_OK(pthread_create(&thread[i], NULL, i % 2 ? write_worker : copy_worker, disk));
    for (int i = 0; i < 4; i++)
        pthread_join(thread[i], NULL);
    for (uint64_t off = 0; off < MIB; off += 8192)
        CHECK(holds(disk, off, 1024, 5) && holds(disk, off + 1024, 512, 6) &&
              holds(disk, off + 1536, 6656, 5));
    CHECK_OK(qk_disk_close(disk, &last_error));
    disk = OPEN("cor2.q", .flags = QK_OPEN_NO_BACKING);
    CHECK(disk && holds(disk, MIB - 512, 512, 5)); /* all of it was copied */
    CHECK_OK(qk_disk_close(disk, &last_error));
}

/* Zeroes that were written while the backing file was left closed hide it later. */
static void test_zeroes_without_backing(void)
{
    overlay("nb.q", "sub/base.raw", "raw");
    struct qk_disk *disk = OPEN("nb.q", .flags = QK_OPEN_RDWR | QK_OPEN_NO_BACKING);
    REQUIRE(disk);
    CHECK(!qk_disk_backing(disk) && holds(disk, 0, MIB, 0));
    CHECK_OK(qk_disk_write_zeroes(disk, 0, 65536, 0, &last_error));
    CHECK_OK(qk_disk_close(disk, &last_error));
    disk = OPEN("nb.q");
    CHECK(disk && holds(disk, 0, 65536, 0));
    CHECK_OK(qk_disk_close(disk, &last_error));
}

static void test_detect_zeroes(void)
{
    struct qk_extent extent;
    CHECK_OK(MAKE("dz.q", "qcow2", "size=1M"));
    struct qk_disk *disk =
        OPEN("dz.q", .flags = QK_OPEN_RDWR, .options = OPTIONS("detect-zeroes=on"));
    REQUIRE(disk);
    CHECK_OK(fill(disk, 0, 65536, 0));
    CHECK_OK(fill(disk, 65536, 65536, 1));
    CHECK_OK(qk_disk_status(disk, 0, MIB, 0, &extent, &last_error));
    CHECK(extent.flags & QK_EXTENT_ZERO && extent.len == 65536);
    CHECK_OK(qk_disk_close(disk, &last_error));
    CHECK(!OPEN("dz.q", .flags = QK_OPEN_RDWR, .options = OPTIONS("detect-zeroes=unmap")));
}

static void set_header_bits(const char *name, uint8_t bits)
{
    int fd = open(name, O_RDWR);
    CHECK(fd >= 0 && pwrite(fd, &bits, 1, 79) == 1);
    close(fd);
}

static void test_dirty_and_corrupt(void)
{
    struct qk_info info = QK_INFO_INIT;
    CHECK_OK(MAKE("bits.q", "qcow2", "size=1M"));
    set_header_bits("bits.q", 2);
    REFUSED("bits.q", EACCES, "qcow2: Image is corrupt; cannot be opened read/write",
            .flags = QK_OPEN_RDWR);
    struct qk_disk *disk = OPEN("bits.q");
    CHECK(disk && holds(disk, 0, 4096, 0));
    CHECK_OK(qk_disk_close(disk, &last_error));
    set_header_bits("bits.q", 1);
    disk = OPEN("bits.q", .flags = QK_OPEN_RDWR);
    REQUIRE(disk);
    CHECK_OK(fill(disk, 0, 512, 1));
    CHECK_OK(qk_disk_close(disk, &last_error));
    disk = OPEN("bits.q", .flags = QK_OPEN_CHECK);
    REQUIRE(disk);
    CHECK_OK(qk_disk_info(disk, &info, &last_error));
    CHECK(!info.dirty && !info.qcow2.corrupt);
    CHECK_OK(qk_disk_close(disk, &last_error));
}

static void test_blkdebug(void)
{
    CHECK_OK(MAKE("bd.q", "qcow2", "size=1M"));
    struct qk_disk *disk =
        OPEN(NULL, .flags = QK_OPEN_RDWR,
             .options = OPTIONS("driver=qcow2", "file.driver=blkdebug", "file.image.filename=bd.q",
                                "file.inject-error.0.event=write_aio",
                                "file.inject-error.0.errno=28", "file.inject-error.0.once=on"));
    REQUIRE(disk);
    CHECK_ERR(fill(disk, 0, 65536, 1), -ENOSPC);
    CHECK_OK(fill(disk, 0, 65536, 1));
    CHECK_OK(qk_disk_close(disk, &last_error));
    disk = OPEN("blkdebug::bd.q");
    CHECK(disk && holds(disk, 0, 65536, 1));
    CHECK_OK(qk_disk_close(disk, &last_error));
}

/* Shrinking changes the size before it can fail at what lies behind the new end. */
static void test_size_after_failure(void)
{
    CHECK_OK(MAKE("sf.q", "qcow2", "size=1M", "cluster_size=512"));
    struct qk_disk *disk =
        OPEN(NULL, .flags = QK_OPEN_RDWR,
             .options = OPTIONS("driver=qcow2", "file.driver=blkdebug", "file.image.filename=sf.q",
                                "file.inject-error.0.event=l1_shrink_free_l2_clusters",
                                "file.inject-error.0.once=on"));
    REQUIRE(disk);
    CHECK_OK(fill(disk, 0, 65536, 1));
    CHECK_ERR(qk_disk_resize(disk, 4096, QK_PREALLOC_OFF, QK_RESIZE_SHRINK, &last_error), -EIO);
    CHECK(qk_disk_size(disk) == 4096);
    CHECK_OK(fill(disk, 0, 4096, 2));
    CHECK_OK(qk_disk_close(disk, &last_error));
    disk = OPEN("sf.q");
    CHECK(disk && qk_disk_size(disk) == 4096 && holds(disk, 0, 4096, 2));
    CHECK_OK(qk_disk_close(disk, &last_error));
}

int main(void)
{
    if (!test_dir_enter())
        return EXIT_FAILURE;
    test_names();
    test_json();
    test_options();
    test_null();
    test_foreign_formats();
    test_guarded_sector();
    test_guarded_zeroes();
    test_raw_window();
    test_raw_odd_length();
    test_discard_modes();
    test_chain();
    test_chain_status();
    test_chain_failures();
    test_loops();
    test_deep_chain();
    test_policy();
    test_locks();
    test_raw_locks();
    test_temporary_overlay();
    test_copy_on_read();
    test_copy_on_read_threads();
    test_zeroes_without_backing();
    test_detect_zeroes();
    test_dirty_and_corrupt();
    test_blkdebug();
    test_size_after_failure();
    test_dir_leave();
    return TEST_SUMMARY();
}
