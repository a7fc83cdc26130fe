/*
 * test_node_create.c - creating through the public API: the options of each format, what is
 * refused and in which words, what happens to files that were there before; and what an open disk
 * says of itself.
 */
#include "node_test.h"

#define MIB (1u << 20)

static void expect_create(const char *name, const char *format, const char *option, int code,
                          const char *text)
{
    const char *list[] = {"size=1M", option, NULL};
    last_error = (struct qk_error){0};
    CHECK_ERR(qk_create(name, format, list, &last_error), -code);
    CHECK_STR(last_error.text, text);
}

static void test_refused_options(void)
{
    static const char not_size[] =
        "Parameter 'cluster_size' expects a non-negative number below 2^64\n"
        "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
        "and exabytes, respectively.";
    static const char cluster[] = "Cluster size must be a power of two between 512 and 2048k";
    static const char width[] = "Refcount width must be a power of two and may not exceed 64 bits";
    static const struct {
        const char *option;
        int code;
        const char *text;
    } refused[] = {
        {"foo=bar", EINVAL, "Invalid parameter 'foo'"},
        {"cluster_size=511", EINVAL, cluster},
        {"cluster_size=1000", EINVAL, cluster},
        {"cluster_size=4M", EINVAL, cluster},
        {"cluster_size=abc", EINVAL, not_size},
        {"cluster_size=-1", EINVAL, not_size},
        {"cluster_size", EINVAL, not_size},
        {"refcount_bits=3", EINVAL, width},
        {"refcount_bits=0", EINVAL, width},
        {"refcount_bits=128", EINVAL, width},
        {"refcount_bits=-1", EINVAL, width},
        {"refcount_bits=x", EINVAL, "Parameter 'refcount_bits' expects a number"},
        {"compat=2", EINVAL, "Parameter 'version' does not accept value '2'"},
        {"lazy_refcounts=maybe", EINVAL, "Parameter 'lazy_refcounts' expects 'on' or 'off'"},
        {"preallocation=x", EINVAL, "Parameter 'preallocation' does not accept value 'x'"},
        {"compression_type=lz4", EINVAL,
         "Parameter 'compression-type' does not accept value 'lz4'"},
        {"backing_fmt=raw", EINVAL, "Backing format cannot be used without backing file"},
        {"backing_file=", EINVAL, "Expected backing file name, got empty string"},
        {"backing_file=x", EINVAL, "Backing file specified without backing format"},
        {"backing_file=no.q", EINVAL,
         "Error: Trying to create an image with the same filename as the backing file"},
        {"data_file_raw=on", EINVAL, "data-file-raw requires data-file"},
        {"encrypt.format=x", EINVAL, "Parameter 'format' does not accept value 'x'"},
        {"encrypt.cipher-alg=aes-256", EINVAL, "Parameter 'encrypt.format' is missing"},
        {"encrypt.format=luks", EINVAL, "Parameter 'encrypt.key-secret' is required for cipher"},
        {"encryption=on", EINVAL, "Parameter 'encrypt.key-secret' is required for cipher"},
        {"size=4E", EFBIG,
         "The image size is too large for file format 'qcow2' (try using a larger "
         "cluster size)"},
    };
    for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++) {
        expect_create("no.q", "qcow2", refused[i].option, refused[i].code, refused[i].text);
        CHECK_EQ(file_bytes("no.q"), -1);
    }
}

static void test_contradictions(void)
{
    static const char *const options[][2] = {
        {"compat=0.10", "lazy_refcounts=on"},   {"compat=0.10", "refcount_bits=8"},
        {"compat=v2", "compression_type=zstd"}, {"compat=v2", "extended_l2=on"},
        {"extended_l2=on", "cluster_size=8k"},  {"compat=v2", "data_file=x"},
        {"cluster_size=512", "size=1T"},
    };
    for (size_t i = 0; i < sizeof(options) / sizeof(*options); i++) {
        CHECK(MAKE("no.q", "qcow2", "size=1M", options[i][0], options[i][1]) < 0);
        CHECK_EQ(file_bytes("no.q"), -1);
    }
}

static void test_refused_targets(void)
{
    CHECK(!mkdir("dir", 0755) && !mkfifo("fifo", 0644));
    expect_create("x", "nosuch", NULL, EINVAL, "Unknown file format 'nosuch'");
    expect_create("x", "null-co", NULL, ENOTSUP,
                  "Format driver 'null-co' does not support image creation");
    expect_create("x", "vmdk", NULL, ENOTSUP, "Format 'vmdk' is not supported by this version");
    expect_create("json:x", "qcow2", NULL, EINVAL, "Unknown protocol 'json'");
    expect_create("blkdebug::x", "qcow2", NULL, ENOTSUP,
                  "Protocol driver 'blkdebug' does not support image creation");
    expect_create("nodir/x", "qcow2", NULL, ENOENT,
                  "Could not create 'nodir/x': No such file or directory");
    expect_create("dir", "raw", NULL, EISDIR, "Could not create 'dir': Is a directory");
    expect_create("fifo", "qcow2", NULL, EINVAL,
                  "'file' driver requires 'fifo' to be a regular file");
    expect_create("x", "raw", "preallocation=metadata", ENOTSUP,
                  "Unsupported preallocation mode: metadata");
    expect_create("x", "raw", "preallocation=x", EINVAL, "invalid parameter value: x");
    expect_create("x", "raw", "backing_file=y", EINVAL, "Invalid parameter 'backing_file'");
    CHECK_ERR(MAKE("x", "raw", "nocow=off"), -EINVAL);
    CHECK_STR(last_error.text, "Image creation needs a size parameter");
    CHECK_EQ(file_bytes("x"), -1);
}

/* What was in a file is lost only when the new image is made. */
static void test_existing_file(void)
{
    put_file("old", "precious", 8, 8);
    CHECK(MAKE("old", "qcow2", "size=1M", "cluster_size=1000") < 0);
    CHECK_EQ(file_bytes("old"), 8);
    CHECK_OK(MAKE("old", "qcow2", "size=1M"));
    struct qk_disk *disk = OPEN("old");
    CHECK(disk && holds(disk, 0, MIB, 0));
    CHECK_OK(qk_disk_close(disk, &last_error));
    put_file("old", "precious", 8, 4096);
    CHECK_OK(MAKE("file:old", "raw", "size=1000"));
    CHECK_EQ(file_bytes("old"), 1024);
    disk = OPEN("old", .format = "raw");
    CHECK(disk && holds(disk, 0, 1024, 0));
    CHECK_OK(qk_disk_close(disk, &last_error));
}

static void test_size_from_backing(void)
{
    mkdir("sub", 0755);
    CHECK_OK(MAKE("sub/base.raw", "raw", "size=3M"));
    CHECK_OK(MAKE("sub/over.q", "qcow2", "backing_file=base.raw", "backing_fmt=raw"));
    CHECK_OK(MAKE("over2.q", "qcow2", "backing_file=sub/over.q", "backing_fmt=qcow2"));
    struct qk_disk *disk = OPEN("over2.q");
    CHECK(disk && qk_disk_size(disk) == 3 * MIB);
    CHECK_OK(qk_disk_close(disk, &last_error));
    CHECK_ERR(MAKE("over3.q", "qcow2", "backing_file=base.raw", "backing_fmt=raw"), -ENOENT);
    CHECK_STR(last_error.text, "Could not open 'base.raw': No such file or directory\n"
                               "Could not open backing image.");
    /* with a size nobody needs to look at the backing file */
    CHECK_OK(MAKE("over3.q", "qcow2", "size=1M", "backing_file=gone", "backing_fmt=raw"));
}

/* ---- resolving --------------------------------------------------------------------------- */

static void expect_resolved(const char *name, const char *const *options, unsigned flags,
                            const char *joined)
{
    char **list = NULL, text[512] = "";
    CHECK_OK(qk_create_resolve(name, "qcow2", options, flags, &list, &last_error));
    for (char **item = list; item && *item; item++) {
        size_t len = strlen(text);
        snprintf(text + len, sizeof(text) - len, "%s%s", len ? " " : "", *item);
    }
    CHECK_STR(text, joined);
    qk_options_free(list);
    CHECK_EQ(file_bytes(name), -1);
}

static void test_resolve(void)
{
    char **list = NULL;
    expect_resolved("new.q", OPTIONS("size=1000"), 0,
                    "cluster_size=65536 extended_l2=off compression_type=zlib size=1000 "
                    "lazy_refcounts=off refcount_bits=16");
    expect_resolved(
        "new.q",
        OPTIONS("backing_fmt=raw", "nocow=on", "backing_file=sub/base.raw", "cluster_size=2k",
                "compat=v3", "lazy_refcounts"),
        0,
        "cluster_size=2048 extended_l2=off compression_type=zlib size=3145728 compat=v3 "
        "backing_file=sub/base.raw backing_fmt=raw lazy_refcounts=on refcount_bits=16 "
        "nocow=on");
    expect_resolved("new.q", OPTIONS("backing_fmt=raw", "backing_file=gone", "size=0"),
                    QK_CREATE_UNCHECKED_BACKING,
                    "cluster_size=65536 extended_l2=off compression_type=zlib size=0 "
                    "backing_file=gone backing_fmt=raw lazy_refcounts=off refcount_bits=16");
    CHECK_ERR(qk_create_resolve("new.q", "qcow2", OPTIONS("backing_file=sub/over.q", "size=1M"), 0,
                                &list, &last_error),
              -EINVAL);
    CHECK_STR(last_error.text, "Backing file specified without backing format\n"
                               "Detected format of qcow2.");
    CHECK_ERR(qk_create_resolve("new.q", "qcow2", NULL, 0, &list, &last_error), -EINVAL);
    CHECK_ERR(qk_create_resolve("new.q", "qcow2", OPTIONS("backing_file=gone", "backing_fmt=raw"),
                                QK_CREATE_UNCHECKED_BACKING, &list, &last_error),
              -EINVAL);
    CHECK(!list);
    qk_options_free(NULL);
}

static void test_option_tables(void)
{
    static const char *const types[] = {"str", "size", "num", "bool (on/off)"};
    static const char *const formats[] = {"qcow2", "raw", "file"};
    size_t count;
    CHECK(!qk_create_options("nosuch", &count));
    for (size_t f = 0; f < 3; f++) {
        const struct qk_option_desc *list = qk_create_options(formats[f], &count);
        bool has_size = false;
        REQUIRE(list && count);
        for (size_t i = 0; i < count; i++) {
            unsigned known = 0;
            for (size_t t = 0; t < 4; t++)
                known += !strcmp(list[i].type, types[t]);
            CHECK(known == 1 && *list[i].help);
            has_size |= !strcmp(list[i].name, "size");
        }
        CHECK(has_size);
    }
}

/* ---- information ------------------------------------------------------------------------- */

static void test_info(void)
{
    static const struct {
        const char *option[3];
        uint32_t version, cluster, bits;
        bool lazy;
    } images[] = {
        {{"cluster_size=512"}, 3, 512, 16, false},
        {{"compat=0.10"}, 2, 65536, 16, false},
        {{"refcount_bits=1", "cluster_size=2M"}, 3, 2097152, 1, false},
        {{"refcount_bits=64", "lazy_refcounts=on"}, 3, 65536, 64, true},
        {{"preallocation=metadata"}, 3, 65536, 16, false},
    };
    for (size_t i = 0; i < sizeof(images) / sizeof(*images); i++) {
        struct qk_info info = QK_INFO_INIT;
        const char *list[] = {"size=1M", images[i].option[0], images[i].option[1], NULL};
        CHECK_OK(qk_create("i.q", "qcow2", list, &last_error));
        struct qk_disk *disk = OPEN("i.q", .flags = QK_OPEN_NO_IO);
        REQUIRE(disk);
        CHECK_OK(qk_disk_info(disk, &info, &last_error));
        CHECK_STR(info.format, "qcow2");
        CHECK_EQ(info.virtual_size, MIB);
        CHECK_EQ(info.file_length, file_bytes("i.q"));
        CHECK(info.actual_size <= info.file_length + 65536 && info.actual_size > 0);
        CHECK_EQ(info.cluster_size, images[i].cluster);
        CHECK_EQ(info.qcow2.version, images[i].version);
        CHECK_EQ(info.qcow2.refcount_bits, images[i].bits);
        CHECK_EQ(info.qcow2.lazy_refcounts, images[i].lazy);
        CHECK_STR(info.qcow2.compression_type, "zlib");
        CHECK(!info.backing_file && !info.backing_full && !info.backing_format);
        CHECK(!info.encrypted && !info.dirty && info.read_only && info.probed);
        CHECK_EQ(info.snapshot_count, 0);
        CHECK_OK(qk_disk_close(disk, &last_error));
    }
}

/* A caller built with a shorter struct gets what it has room for. */
static void test_short_info(void)
{
    struct qk_info info;
    struct qk_snapshot_info snapshot = QK_SNAPSHOT_INFO_INIT;
    memset(&info, 0x5a, sizeof(info));
    info.struct_size = offsetof(struct qk_info, virtual_size) + 8;
    struct qk_disk *disk = OPEN("i.q");
    REQUIRE(disk);
    CHECK_OK(qk_disk_info(disk, &info, &last_error));
    CHECK_EQ(info.virtual_size, MIB);
    CHECK_EQ(info.actual_size, UINT64_C(0x5a5a5a5a5a5a5a5a));
    CHECK_ERR(qk_disk_snapshot(disk, 0, &snapshot, &last_error), -EINVAL);
    CHECK_OK(qk_disk_close(disk, &last_error));
}

/* ---- growing and checking ---------------------------------------------------------------- */

static void test_resize_and_check(void)
{
    struct qk_check_options opts = QK_CHECK_OPTIONS_INIT;
    struct qk_check_result result = QK_CHECK_RESULT_INIT;
    CHECK_OK(MAKE("grow.q", "qcow2", "size=1M"));
    struct qk_disk *disk = OPEN("grow.q");
    REQUIRE(disk);
    CHECK_ERR(qk_disk_resize(disk, 2 * MIB, QK_PREALLOC_OFF, 0, &last_error), -EROFS);
    CHECK_OK(qk_disk_close(disk, &last_error));
    disk = OPEN("grow.q", .flags = QK_OPEN_RDWR);
    REQUIRE(disk);
    CHECK_OK(qk_disk_resize(disk, 64 * MIB, QK_PREALLOC_OFF, 0, &last_error));
    CHECK_EQ(qk_disk_size(disk), 64 * MIB);
    CHECK_OK(fill(disk, 64 * MIB - 4096, 4096, 1));
    CHECK_OK(qk_disk_close(disk, &last_error));
    disk = OPEN("grow.q", .flags = QK_OPEN_CHECK);
    REQUIRE(disk);
    CHECK(qk_disk_size(disk) == 64 * MIB && holds(disk, 64 * MIB - 4096, 4096, 1));
    CHECK_OK(qk_disk_check(disk, &opts, &result, &last_error));
    CHECK_EQ(result.corruptions + result.leaks + result.check_errors, 0);
    opts.fix = QK_FIX_LEAKS;
    CHECK_ERR(qk_disk_check(disk, &opts, &result, &last_error), -EROFS);
    CHECK_OK(qk_disk_close(disk, &last_error));
    disk = OPEN("sub/base.raw", .format = "raw");
    REQUIRE(disk);
    CHECK_ERR(qk_disk_check(disk, &opts, &result, &last_error), -ENOTSUP);
    CHECK_OK(qk_disk_close(disk, &last_error));
}

int main(void)
{
    if (!test_dir_enter())
        return EXIT_FAILURE;
    test_refused_options();
    test_contradictions();
    test_refused_targets();
    test_existing_file();
    test_size_from_backing();
    test_resolve();
    test_option_tables();
    test_info();
    test_short_info();
    test_resize_and_check();
    test_dir_leave();
    return TEST_SUMMARY();
}
