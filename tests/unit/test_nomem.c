/*
 * test_nomem.c - the Nth allocation of memory fails, for every N until a workload passes: the
 * failure is reported, nothing crashes, what was flushed before is intact, and the image has
 * leaked clusters at most. malloc and its kin are wrapped by the linker (see meson.build).
 */
#include "check/check.h"
#include "image/image.h"
#include "nomem.h"
#include "test.h"

#define DISK    (256u * 1024)
#define FLUSHED (32u * 1024)

static const struct image_options writable = {
    .writable = true, .lazy_refcounts = -1, .overlap = OVERLAP_CACHED};

static int write_pattern(struct image *img, uint64_t off, size_t len, int byte)
{
    uint8_t *buf = __real_malloc(len);
    memset(buf, byte, len);
    int ret = image_writev(img, guest_off(off), &(struct iovec){buf, len}, 1, 0, NULL);
    free(buf);
    return ret;
}

static bool reads_as(struct image *img, uint64_t off, size_t len, int byte)
{
    uint8_t *buf = __real_malloc(len);
    int ret = image_readv(img, guest_off(off), &(struct iovec){buf, len}, 1, NULL);
    bool same = ret == 0;
    for (size_t i = 0; i < len && same; i++)
        same = buf[i] == byte;
    free(buf);
    return same;
}

/* Small clusters, so that refcount blocks and the table grow on the way. */
static struct qk_io *new_image(void)
{
    struct create_params p = {
        .size_bytes = DISK, .version = 3, .cluster_bits = 9, .refcount_order = 6};
    struct qk_io *io = NULL;
    CHECK_OK(io_mem_open(NULL, 0, 0, &io, NULL));
    CHECK_OK(image_create(io, &p, NULL));
    return io;
}

/* Everything after the flushed part; the first error ends it. */
static int workload(struct image *img)
{
    int ret = write_pattern(img, FLUSHED, 100000, 2);
    if (ret == 0)
        ret = write_pattern(img, 200001, 700, 3);
    if (ret == 0)
        ret = image_zero(img, guest_off(40000), 20000, IO_ZERO_UNMAP, NULL);
    if (ret == 0)
        ret = image_discard(img, guest_off(65536), 16384, NULL);
    if (ret == 0)
        ret = image_flush(img, NULL);
    if (ret == 0)
        ret = image_resize(img, 64u << 20, QK_PREALLOC_OFF, 0, NULL);
    if (ret == 0)
        ret = write_pattern(img, 60u << 20, 50000, 4);
    return ret == 0 ? image_flush(img, NULL) : ret;
}

static void check_clean(struct qk_io *io)
{
    struct image *img;
    struct image_options o = {.for_check = true, .lazy_refcounts = -1};
    struct qk_check_options co = QK_CHECK_OPTIONS_INIT;
    struct qk_check_result result = QK_CHECK_RESULT_INIT;
    REQUIRE(image_open(io, &o, &img, NULL) == 0);
    CHECK_OK(check_image(img, &co, &result, NULL));
    CHECK_EQ(result.corruptions, 0);
    CHECK_EQ(result.check_errors, 0);
    CHECK(reads_as(img, 0, FLUSHED, 1));
    image_abandon(img);
}

/* Returns whether the workload passed. */
static bool run(long n)
{
    struct qk_io *io = new_image();
    struct image *img = NULL;
    countdown = n;
    int ret = image_open(io, &writable, &img, NULL);
    countdown = -1;
    if (ret < 0) {
        CHECK_EQ(ret, -ENOMEM);
        io_close(io, NULL);
        return false;
    }
    CHECK_OK(write_pattern(img, 0, FLUSHED, 1));
    CHECK_OK(image_flush(img, NULL));
    countdown = n;
    ret = workload(img);
    bool untouched = countdown >= 0;
    countdown = -1;
    CHECK(ret == 0 || ret == -ENOMEM);
    CHECK(reads_as(img, 0, FLUSHED, 1));
    /* With memory again everything goes on. */
    CHECK_OK(write_pattern(img, FLUSHED, 5000, 7));
    CHECK(reads_as(img, FLUSHED, 5000, 7));
    CHECK_OK(image_close(img, NULL));
    check_clean(io);
    io_close(io, NULL);
    return ret == 0 && untouched;
}

int main(void)
{
    long n = 0;
    while (n < 100000 && !run(n))
        n++;
    CHECK(n > 20 && n < 100000);
    printf("%ld allocations failed, one at a time\n", n);
    return TEST_SUMMARY();
}
