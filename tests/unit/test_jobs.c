/*
 * test_jobs.c - convert, compare and measure through the public API: every pair of formats and
 * shapes keeps every byte, a comparison finds the first difference and no other, a measurement is
 * what the file then takes, cancelling stops.
 */
#include "model.h"

#include <sys/stat.h>

enum { DISK_BYTES = 3 * 1024 * 1024 + 512 };

static char folder[200];
static uint8_t content[DISK_BYTES];

static const char *in_folder(const char *name, char path[300])
{
    snprintf(path, 300, "%s/%s", folder, name);
    return path;
}

static struct qk_disk *open_disk(const char *name, const char *format, unsigned flags)
{
    struct qk_open_options opts = QK_OPEN_OPTIONS_INIT;
    struct qk_error err = {0};
    struct qk_disk *disk = NULL;
    char path[300];

    opts.flags = flags;
    opts.format = format;
    if (!CHECK_OK(qk_disk_open(in_folder(name, path), &opts, &disk, &err)))
        printf("    %s: %s\n", path, err.text);
    return disk;
}

static void make_disk(const char *name, const char *format, const char *options)
{
    struct qk_error err = {0};
    char path[300];

    if (!CHECK_OK(create_image(in_folder(name, path), format, DISK_BYTES, options, &err)))
        printf("    %s: %s\n", path, err.text);
}

/* Data with holes of all lengths, from a few bytes to a megabyte. */
static void make_content(void)
{
    struct rng rng = {.state = 5};

    for (uint64_t at = 0; at < DISK_BYTES;) {
        uint64_t len = UINT64_C(1) << rng_below(&rng, 19);
        if (len > DISK_BYTES - at)
            len = DISK_BYTES - at;
        if (rng_below(&rng, 2))
            rng_fill(&rng, content + at, len);
        at += len;
    }
}

static void check_content(const char *name, const char *format)
{
    struct qk_disk *disk = open_disk(name, format, 0);
    uint8_t *bytes = malloc(DISK_BYTES);

    REQUIRE(disk);
    CHECK_OK(qk_disk_read(disk, 0, bytes, DISK_BYTES, NULL));
    CHECK_MEM(bytes, content, DISK_BYTES);
    CHECK_OK(qk_disk_close(disk, NULL));
    free(bytes);
}

static void convert_pair(const char *from, const char *from_format, const char *to_format,
                         unsigned threads)
{
    struct qk_convert_options opts = QK_CONVERT_OPTIONS_INIT;
    struct qk_disk *source = open_disk(from, from_format, 0);
    struct qk_error err = {0};

    make_disk("target", to_format, "");
    struct qk_disk *target = open_disk("target", to_format, QK_OPEN_RDWR);
    REQUIRE(source && target);
    opts.threads = threads;
    opts.flags = threads == 3 ? QK_CONVERT_OUT_OF_ORDER : 0;
    if (threads == 2 && strcmp(to_format, "qcow2") == 0)
        opts.flags = QK_CONVERT_COMPRESS;
    if (!CHECK_OK(qk_convert(&source, 1, target, &opts, &err)))
        printf("    %s\n", err.text);
    CHECK_OK(qk_disk_close(target, NULL));
    CHECK_OK(qk_disk_close(source, NULL));
    check_content("target", to_format);
}

static void test_convert(void)
{
    static const struct {
        const char *name, *format, *options;
    } sources[] = {
        {"s.raw", "raw", ""},
        {"s.512", "qcow2", "cluster_size=512"},
        {"s.64k", "qcow2", "lazy_refcounts=on"},
        {"s.2m", "qcow2", "cluster_size=2M,refcount_bits=1"},
    };

    for (size_t i = 0; i < sizeof(sources) / sizeof(sources[0]); i++) {
        make_disk(sources[i].name, sources[i].format, sources[i].options);
        struct qk_disk *disk = open_disk(sources[i].name, sources[i].format, QK_OPEN_RDWR);
        REQUIRE(disk);
        CHECK_OK(qk_disk_write(disk, 0, content, DISK_BYTES, 0, NULL));
        CHECK_OK(qk_disk_close(disk, NULL));
        for (unsigned threads = 1; threads <= 3; threads++) {
            convert_pair(sources[i].name, sources[i].format, "qcow2", threads);
            convert_pair(sources[i].name, sources[i].format, "raw", threads);
        }
    }
}

/* Two sources one behind the other. */
static void test_concatenation(void)
{
    struct qk_convert_options opts = QK_CONVERT_OPTIONS_INIT;
    struct qk_disk *sources[2] = {open_disk("s.raw", "raw", 0), open_disk("s.512", "qcow2", 0)};
    char path[300];
    uint8_t *bytes = malloc(DISK_BYTES);

    CHECK_OK(create_image(in_folder("both", path), "qcow2", 2 * DISK_BYTES, "", NULL));
    struct qk_disk *target = open_disk("both", "qcow2", QK_OPEN_RDWR);
    REQUIRE(sources[0] && sources[1] && target);
    CHECK_OK(qk_convert(sources, 2, target, &opts, NULL));
    for (uint64_t i = 0; i < 2; i++) {
        CHECK_OK(qk_disk_read(target, i * DISK_BYTES, bytes, DISK_BYTES, NULL));
        CHECK_MEM(bytes, content, DISK_BYTES);
    }
    CHECK_OK(qk_disk_close(target, NULL));
    CHECK_OK(qk_disk_close(sources[0], NULL));
    CHECK_OK(qk_disk_close(sources[1], NULL));
    free(bytes);
}

static int stop_at_half(void *opaque, uint64_t done, uint64_t total)
{
    unsigned *calls = opaque;

    CHECK(done <= total);
    ++*calls;
    return done >= total / 2;
}

static void test_cancel(void)
{
    struct qk_convert_options opts = QK_CONVERT_OPTIONS_INIT;
    struct qk_disk *source = open_disk("s.raw", "raw", 0);
    unsigned calls = 0;

    make_disk("target", "qcow2", "");
    struct qk_disk *target = open_disk("target", "qcow2", QK_OPEN_RDWR);
    REQUIRE(source && target);
    opts.progress = (struct qk_progress){stop_at_half, &calls};
    CHECK_ERR(qk_convert(&source, 1, target, &opts, NULL), -ECANCELED);
    CHECK(calls > 0);
    CHECK_OK(qk_disk_close(target, NULL));
    CHECK_OK(qk_disk_close(source, NULL));
}

static void test_compare(void)
{
    static const uint64_t places[] = {0, 511, 65536, 1234567, DISK_BYTES - 1};
    struct qk_disk *a = open_disk("s.raw", "raw", 0);

    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        struct qk_compare_result result = QK_COMPARE_RESULT_INIT;
        struct qk_disk *b = open_disk("s.64k", "qcow2", QK_OPEN_RDWR);
        uint8_t byte = content[places[i]] ^ 1;
        REQUIRE(a && b);
        CHECK_OK(qk_compare(a, b, false, NULL, &result, NULL));
        CHECK(result.equal);
        CHECK_EQ(result.why, QK_COMPARE_SAME);
        CHECK_OK(qk_disk_write(b, places[i], &byte, 1, 0, NULL));
        CHECK_OK(qk_compare(a, b, false, NULL, &result, NULL));
        CHECK(!result.equal);
        CHECK_EQ(result.why, QK_COMPARE_CONTENT);
        CHECK_EQ(result.off / 512, places[i] / 512);
        CHECK_OK(qk_disk_write(b, places[i], content + places[i], 1, 0, NULL));
        CHECK_OK(qk_disk_close(b, NULL));
    }
    CHECK_OK(qk_disk_close(a, NULL));
}

/* What measure says is the length of the file that convert then writes. */
static void test_measure(void)
{
    struct qk_measure_result result = QK_MEASURE_RESULT_INIT;
    struct qk_disk *source = open_disk("s.raw", "raw", 0);
    char path[300];
    struct stat st;

    REQUIRE(source);
    CHECK_OK(qk_measure(source, "qcow2", NULL, &result, NULL));
    CHECK(result.required <= result.fully_allocated);
    CHECK_OK(qk_disk_close(source, NULL));
    convert_pair("s.raw", "raw", "qcow2", 1);
    CHECK_OK(stat(in_folder("target", path), &st));
    CHECK((uint64_t)st.st_size <= result.required);
    CHECK((uint64_t)st.st_size > DISK_BYTES / 3);
}

static void test_measure_empty(void)
{
    const char *options[] = {"size=1G", "cluster_size=64k", NULL};
    const char *bad[] = {"size=1G", "cluster_size=100", NULL};
    struct qk_measure_result result = QK_MEASURE_RESULT_INIT;
    struct qk_error err = {0};

    CHECK_OK(qk_measure(NULL, "qcow2", options, &result, NULL));
    CHECK_EQ(result.required, 6 * 65536); /* what qemu-img measure says for the same */
    CHECK_EQ(result.fully_allocated, (1u << 30) + 6 * 65536);
    CHECK_ERR(qk_measure(NULL, "qcow2", bad, &result, &err), -EINVAL);
    CHECK_EQ(err.code, EINVAL);
}

int main(void)
{
    const char *dir = getenv("TMPDIR");
    char command[300];

    snprintf(folder, sizeof(folder), "%s/qcowkit-jobs-XXXXXX", dir ? dir : "/tmp");
    if (!CHECK(mkdtemp(folder)))
        return TEST_SUMMARY();
    make_content();
    test_convert();
    test_concatenation();
    test_cancel();
    test_compare();
    test_measure();
    test_measure_empty();
    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    CHECK_OK(system(command));
    return TEST_SUMMARY();
}
