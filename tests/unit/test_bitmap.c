/*
 * test_bitmap.c - persistent bitmaps: the format's parts, what is refused, what changes of the disk
 * are recorded, and what is on disk in between.
 */
#include "base/bytes.h"
#include "format/bitmap.h"
#include "image/image.h"
#include "io/fault.h"
#include "test.h"

#include <pthread.h>

enum { K = 1024 };

/* ---- format ---- */

static const struct bitmap_bounds bounds = {512, 64 * K, 1 << 20};

static struct bitmap_entry good_entry(void)
{
    return (struct bitmap_entry){.table_off = 1024,
                                 .table_entries = 1,
                                 .flags = BITMAP_AUTO,
                                 .type = BITMAP_TYPE_DIRTY,
                                 .granularity_bits = 9,
                                 .name_bytes = 3,
                                 .extra = (const uint8_t *)"",
                                 .name = "abc"};
}

static void test_entry_bytes(void)
{
    uint8_t bytes[64];
    struct bitmap_entry entry = good_entry(), again;
    entry.extra = (const uint8_t *)"extra";
    entry.extra_bytes = 5;
    memset(bytes, 0xee, sizeof(bytes));
    CHECK_EQ(bitmap_entry_bytes(&entry), 32);
    bitmap_entry_encode(&entry, bytes);
    CHECK_EQ(load_be64(bytes), 1024);
    CHECK_EQ(load_be32(bytes + 12), 2);
    CHECK_EQ(bytes[17], 9);
    CHECK_MEM(bytes + 24, "extraabc", 8);
    CHECK_EQ(bytes[32], 0xee);
    CHECK_EQ(bitmap_entry_decode(bytes, 32, &again), 32);
    CHECK_MEM(again.name, "abc", 3);
    CHECK_EQ(bitmap_entry_decode(bytes, 31, &again), 0);
    CHECK_EQ(bitmap_entry_decode(bytes, 23, &again), 0);
    store_be32(bytes + 20, UINT32_MAX); /* extra data */
    CHECK_EQ(bitmap_entry_decode(bytes, 32, &again), 0);
}

static void test_entry_faults(void)
{
    struct bitmap_entry e = good_entry();
    CHECK(!bitmap_entry_fault(&e, &bounds));
    CHECK(!bitmap_entry_foreign(&e));
#define BAD(member_, value_)                                                                       \
    e = good_entry();                                                                              \
    e.member_ = (value_);                                                                          \
    CHECK(bitmap_entry_fault(&e, &bounds))
    BAD(name_bytes, 0);
    BAD(name_bytes, 1024);
    BAD(name, "a\0c");
    BAD(type, 2);
    BAD(flags, 8);
    BAD(granularity_bits, 64);
    BAD(table_off, 0);
    BAD(table_off, 1025);
    BAD(table_off, 1 << 20);
    BAD(table_entries, 0);
    BAD(table_entries, 2);
    BAD(table_entries, UINT32_MAX);
#undef BAD
    /* In use: it may be of another size. */
    e = good_entry();
    e.table_entries = 2;
    e.flags = BITMAP_IN_USE;
    CHECK(!bitmap_entry_fault(&e, &bounds));
    e = good_entry();
    e.granularity_bits = 8;
    CHECK(bitmap_entry_foreign(&e));
    e = good_entry();
    e.extra_bytes = 1;
    CHECK(bitmap_entry_foreign(&e));
    e.flags |= BITMAP_EXTRA_COMPATIBLE;
    CHECK(!bitmap_entry_foreign(&e));
}

static void test_table_entries(void)
{
    CHECK(bitmap_table_entry_valid(0, 512, 4096));
    CHECK(bitmap_table_entry_valid(1, 512, 4096));
    CHECK(bitmap_table_entry_valid(512, 512, 4096));
    CHECK(!bitmap_table_entry_valid(513, 512, 4096));
    CHECK(!bitmap_table_entry_valid(512, 1024, 4096));
    CHECK(!bitmap_table_entry_valid(4096, 512, 4096));
    CHECK(!bitmap_table_entry_valid(2, 512, 4096));
    CHECK(!bitmap_table_entry_valid(UINT64_C(1) << 56, 512, 4096));
    CHECK_EQ(bitmap_bits_for(64 * K + 1, 16), 2);
    CHECK_EQ(bitmap_bits_for(UINT64_MAX, 9), UINT64_C(1) << 55);
    CHECK_EQ(bitmap_table_entries_for(4096, 512), 1);
    CHECK_EQ(bitmap_table_entries_for(4097, 512), 2);
}

static void test_extension(void)
{
    uint8_t bytes[BITMAPS_EXTENSION_BYTES];
    const struct bitmaps_extension good = {2, 64, 1024};
    struct bitmaps_extension ext;
    bitmaps_extension_encode(&good, bytes);
    bitmaps_extension_decode(bytes, &ext);
    CHECK_EQ(ext.count, 2);
    CHECK_EQ(ext.directory_bytes, 64);
    CHECK_EQ(ext.directory_off, 1024);
    CHECK(!bitmaps_extension_fault(&ext, 512, 2048));
    CHECK(bitmaps_extension_fault(&ext, 2048, 4096)); /* unaligned */
    CHECK(bitmaps_extension_fault(&ext, 512, 1087));
    ext.count = 0;
    CHECK(bitmaps_extension_fault(&ext, 512, 2048));
    ext.count = 3;
    CHECK(bitmaps_extension_fault(&ext, 512, 2048));
    ext = (struct bitmaps_extension){65536, UINT64_MAX, 1024};
    CHECK(bitmaps_extension_fault(&ext, 512, 2048));
}

/* ---- images ---- */

static struct qk_io *make_file(uint64_t size, uint32_t version, uint32_t cluster_bits)
{
    const struct create_params params = {
        .size_bytes = size, .version = version, .cluster_bits = cluster_bits, .refcount_order = 4};
    struct qk_io *file = NULL;
    CHECK_OK(io_mem_open(NULL, 0, 0, &file, NULL));
    CHECK_OK(image_create(file, &params, NULL));
    return file;
}

static struct image *open_file(struct qk_io *file, bool writable)
{
    const struct image_options opts = {
        .writable = writable, .lazy_refcounts = -1, .overlap = OVERLAP_CACHED};
    struct image *img = NULL;
    struct qk_error err = {0};
    if (image_open(file, &opts, &img, &err) < 0)
        printf("    %s\n", err.text);
    CHECK(img);
    return img;
}

static int add(struct image *img, const char *name, unsigned bits)
{
    const struct image_bitmap want = {
        .name = name, .granularity_bits = (uint8_t)bits, .enabled = true};
    return image_bitmap_add(img, &want, NULL);
}

static void write_at(struct image *img, uint64_t off, uint64_t len)
{
    uint8_t *bytes = calloc(1, len);
    memset(bytes, 0x5a, len);
    CHECK_OK(image_writev(img, guest_off(off), &(struct iovec){bytes, len}, 1, 0, NULL));
    free(bytes);
}

/* Granules [first, end) are dirty, and none beside them. */
static void check_dirty(struct image *img, const char *name, unsigned bits, uint64_t first,
                        uint64_t end)
{
    struct qk_bitmap_extent e = {0};
    uint64_t size = image_size(img), at = first << bits, stop = end << bits;
    if (at) {
        CHECK_OK(image_bitmap_status(img, name, guest_off(0), size, &e, NULL));
        CHECK(!e.dirty);
        CHECK_EQ(e.len, at);
    }
    if (end > first) {
        CHECK_OK(image_bitmap_status(img, name, guest_off(at), size, &e, NULL));
        CHECK(e.dirty);
        CHECK_EQ(e.len, (stop < size ? stop : size) - at);
    }
    if (stop < size) {
        CHECK_OK(image_bitmap_status(img, name, guest_off(stop), size, &e, NULL));
        CHECK(!e.dirty);
        CHECK_EQ(e.len, size - stop);
    }
}

static void test_recorded(void)
{
    struct qk_io *file = make_file(1 << 20, 3, 9);
    struct image *img = open_file(file, true);
    const uint64_t k = K;
    REQUIRE(img);
    CHECK_OK(add(img, "write", 12));
    write_at(img, 5 * 4 * k + 7, 1);
    check_dirty(img, "write", 12, 5, 6);
    CHECK_OK(add(img, "zero", 12));
    CHECK_OK(image_zero(img, guest_off(8 * k), 16 * k, 0, NULL));
    check_dirty(img, "zero", 12, 2, 6);
    CHECK_OK(add(img, "discard", 10));
    CHECK_OK(image_discard(img, guest_off(10 * k), 3 * k, NULL));
    check_dirty(img, "discard", 10, 10, 13);
    CHECK_OK(add(img, "compressed", 9));
    uint8_t zeroes[512] = {1};
    CHECK_OK(image_writev(img, guest_off(4096), &(struct iovec){zeroes, 512}, 1,
                          QK_WRITE_COMPRESSED, NULL));
    check_dirty(img, "compressed", 9, 8, 9);
    CHECK_OK(add(img, "state", 9));
    CHECK_OK(image_vm_state_writev(img, 0, &(struct iovec){zeroes, 512}, 1, NULL));
    check_dirty(img, "state", 9, 0, 0);
    CHECK_OK(add(img, "last", 12));
    write_at(img, (1 << 20) - 1, 1);
    check_dirty(img, "last", 12, 255, 256);
    CHECK_OK(image_close(img, NULL));
    img = open_file(file, false);
    REQUIRE(img);
    CHECK_EQ(image_bitmap_count(img), 6);
    check_dirty(img, "last", 12, 255, 256);
    image_abandon(img);
    io_close(file, NULL);
}

/* Compressed clusters that are larger than what a bit stands for. */
static void test_recorded_compressed(void)
{
    struct qk_io *file = make_file(1 << 20, 3, 14);
    struct image *img = open_file(file, true);
    uint8_t *bytes = calloc(1, 1 << 14);
    REQUIRE(img && bytes);
    CHECK_OK(add(img, "b", 9));
    CHECK_OK(image_writev(img, guest_off(1 << 15), &(struct iovec){bytes, 1 << 14}, 1,
                          QK_WRITE_COMPRESSED, NULL));
    check_dirty(img, "b", 9, 64, 96);
    free(bytes);
    CHECK_OK(image_close(img, NULL));
    io_close(file, NULL);
}

static void test_enable(void)
{
    struct qk_io *file = make_file(1 << 20, 3, 12);
    struct image *img = open_file(file, true);
    REQUIRE(img);
    CHECK_OK(add(img, "b", 12));
    CHECK_OK(image_bitmap_enable(img, "b", false, NULL));
    write_at(img, 0, 4096);
    check_dirty(img, "b", 12, 0, 0);
    CHECK_OK(image_bitmap_enable(img, "b", true, NULL));
    write_at(img, 4096, 4096);
    check_dirty(img, "b", 12, 1, 2);
    CHECK_OK(image_bitmap_clear(img, "b", NULL));
    check_dirty(img, "b", 12, 0, 0);
    write_at(img, 8192, 8192);
    CHECK_OK(add(img, "c", 9));
    CHECK_OK(image_bitmap_merge(img, "c", img, "b", NULL));
    check_dirty(img, "c", 9, 16, 32);
    CHECK_OK(image_close(img, NULL));
    img = open_file(file, true);
    REQUIRE(img);
    check_dirty(img, "b", 12, 2, 4);
    check_dirty(img, "c", 9, 16, 32);
    CHECK_OK(image_bitmap_remove(img, "b", NULL));
    CHECK_ERR(image_bitmap_remove(img, "b", NULL), -ENOENT);
    CHECK_OK(image_bitmap_remove(img, "c", NULL));
    CHECK_OK(image_close(img, NULL));
    img = open_file(file, false);
    REQUIRE(img);
    CHECK_EQ(image_bitmap_count(img), 0);
    CHECK(!header_extensions_find(image_extensions(img), HEXT_BITMAPS));
    CHECK_EQ(image_header(img)->autoclear, 0);
    image_abandon(img);
    io_close(file, NULL);
}

/* A program that dies after its first write leaves the bitmap in use; it can only be removed. */
static void test_in_use(void)
{
    struct qk_io *file = make_file(1 << 20, 3, 9);
    struct image *img = open_file(file, true);
    struct image_bitmap info;
    struct qk_bitmap_extent e;
    REQUIRE(img);
    CHECK_OK(add(img, "b", 9));
    CHECK_OK(add(img, "off", 9));
    CHECK_OK(image_bitmap_enable(img, "off", false, NULL));
    CHECK_OK(image_close(img, NULL));
    img = open_file(file, true); /* an opening alone changes nothing */
    image_abandon(img);
    img = open_file(file, true);
    REQUIRE(img);
    CHECK_OK(image_bitmap_info(img, 0, &info, NULL));
    CHECK(!info.in_use);
    write_at(img, 0, 512);
    image_abandon(img);
    img = open_file(file, true);
    REQUIRE(img);
    CHECK_OK(image_bitmap_info(img, 0, &info, NULL));
    CHECK(info.in_use && info.enabled);
    CHECK_OK(image_bitmap_info(img, 1, &info, NULL));
    CHECK(!info.in_use && !info.enabled);
    CHECK_ERR(image_bitmap_status(img, "b", guest_off(0), 1, &e, NULL), -ESTALE);
    CHECK_ERR(image_bitmap_clear(img, "b", NULL), -ESTALE);
    CHECK_ERR(image_bitmap_enable(img, "b", false, NULL), -ESTALE);
    CHECK_ERR(image_bitmap_merge(img, "off", img, "b", NULL), -ESTALE);
    CHECK_ERR(add(img, "b", 9), -EEXIST);
    write_at(img, 0, 512);
    CHECK_OK(image_resize(img, 2 << 20, QK_PREALLOC_OFF, 0, NULL));
    CHECK_OK(image_bitmap_remove(img, "b", NULL));
    check_dirty(img, "off", 9, 0, 0);
    CHECK_OK(image_close(img, NULL));
    io_close(file, NULL);
}

static void test_resize(void)
{
    struct qk_io *file = make_file(100 * K, 3, 9);
    struct image *img = open_file(file, true);
    REQUIRE(img);
    CHECK_OK(add(img, "b", 9));
    CHECK_OK(add(img, "off", 9));
    write_at(img, 2048, 512);
    CHECK_OK(image_bitmap_enable(img, "off", false, NULL));
    CHECK_OK(image_resize(img, 50 * K, QK_PREALLOC_OFF, QK_RESIZE_SHRINK, NULL));
    check_dirty(img, "b", 9, 4, 5);
    CHECK_OK(image_close(img, NULL));
    img = open_file(file, true);
    REQUIRE(img);
    check_dirty(img, "b", 9, 4, 5);
    /* To more than one chunk: what is added may have been something else once. */
    CHECK_OK(image_bitmap_clear(img, "b", NULL));
    CHECK_OK(image_resize(img, 8 << 20, QK_PREALLOC_OFF, 0, NULL));
    CHECK_OK(image_close(img, NULL));
    img = open_file(file, true);
    REQUIRE(img);
    check_dirty(img, "b", 9, 100, 16384);
    check_dirty(img, "off", 9, 4, 5);
    CHECK_ERR(image_resize(img, 0, QK_PREALLOC_OFF, QK_RESIZE_SHRINK, NULL), -ENOTSUP);
    CHECK_OK(image_close(img, NULL));
    io_close(file, NULL);
}

static void test_refused(void)
{
    struct qk_io *file = make_file(1 << 20, 2, 9);
    struct image *img = open_file(file, true);
    struct qk_error err = {0};
    const struct image_bitmap want = {.name = "b"};
    REQUIRE(img);
    CHECK_ERR(image_bitmap_add(img, &want, &err), -ENOTSUP);
    CHECK_OK(image_close(img, NULL));
    io_close(file, NULL);
    file = make_file(UINT64_C(1) << 36, 3, 16);
    img = open_file(file, true);
    REQUIRE(img);
    char name[1026];
    memset(name, 'n', sizeof(name));
    name[1024] = '\0';
    CHECK_ERR(add(img, name, 16), -EINVAL);
    name[1023] = '\0';
    CHECK_OK(add(img, name, 16));
    CHECK_ERR(add(img, name, 16), -EEXIST);
    CHECK_ERR(add(img, "fine", 8), -EINVAL);
    CHECK_ERR(add(img, "coarse", 32), -EINVAL);
    CHECK_OK(image_close(img, NULL));
    io_close(file, NULL);
    file = make_file(UINT64_C(1) << 46, 3, 21);
    img = open_file(file, true);
    REQUIRE(img);
    CHECK_ERR(add(img, "large", 9), -EFBIG);
    CHECK_OK(add(img, "fits", 14));
    CHECK_OK(image_close(img, NULL));
    io_close(file, NULL);
}

/* Without the autoclear bit the extension is stale: ignored, and gone with the first write. */
static void test_stale(void)
{
    struct qk_io *file = make_file(1 << 20, 3, 9);
    struct image *img = open_file(file, true);
    uint8_t zero[8] = {0};
    REQUIRE(img);
    CHECK_OK(add(img, "b", 9));
    CHECK_OK(image_close(img, NULL));
    CHECK_OK(io_write(file, 88, zero, 8, 0, NULL));
    img = open_file(file, true);
    REQUIRE(img);
    CHECK_EQ(image_bitmap_count(img), 0);
    CHECK(header_extensions_find(image_extensions(img), HEXT_BITMAPS));
    write_at(img, 0, 512);
    CHECK(!header_extensions_find(image_extensions(img), HEXT_BITMAPS));
    CHECK_OK(image_close(img, NULL));
    io_close(file, NULL);
}

/* A failed flush at each moment of an operation: what is written afterwards is never missed. */
static void test_failed_switch(void)
{
    for (uint64_t nth = 1; nth < 12; nth++) {
        struct qk_io *mem = make_file(1 << 20, 3, 9), *fault = NULL;
        struct image_bitmap info;
        CHECK_OK(io_fault_open(mem, NULL, &fault, NULL));
        struct image *img = open_file(fault, true);
        REQUIRE(img);
        CHECK_OK(add(img, "b", 9));
        fault_fail_nth(fault,
                       &(struct fault_nth){.nth = nth, .error = EIO, .iotypes = 1u << FAULT_FLUSH});
        add(img, "c", 9);
        fault_clear(fault);
        uint8_t bytes[512] = {1};
        int ret = image_writev(img, guest_off(0), &(struct iovec){bytes, 512}, 1, 0, NULL);
        image_flush(img, NULL);
        image_abandon(img);
        img = open_file(fault, false);
        REQUIRE(img);
        for (uint32_t i = 0; i < image_bitmap_count(img); i++) {
            CHECK_OK(image_bitmap_info(img, i, &info, NULL));
            CHECK(info.in_use || ret < 0);
        }
        image_abandon(img);
        io_close(fault, NULL);
    }
}

/* Many threads set bits of the same chunks. */
struct writer {
    struct image *img;
    unsigned number;
};

static void *write_stripes(void *arg)
{
    const struct writer *w = arg;
    for (uint64_t i = w->number; i < 512; i += 4)
        write_at(w->img, i * 2048, 512);
    return NULL;
}

static void test_threads(void)
{
    struct qk_io *file = make_file(1 << 20, 3, 12);
    struct image *img = open_file(file, true);
    pthread_t threads[4];
    struct writer writers[4];
    REQUIRE(img);
    CHECK_OK(add(img, "b", 9));
    for (unsigned i = 0; i < 4; i++) {
        writers[i] = (struct writer){img, i};
        CHECK_EQ(pthread_create(&threads[i], NULL, write_stripes, &writers[i]), 0);
    }
    CHECK_OK(add(img, "meanwhile", 12));
    for (unsigned i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    CHECK_OK(image_close(img, NULL));
    img = open_file(file, false);
    REQUIRE(img);
    for (uint64_t off = 0; off < 1 << 20; off += 512) {
        struct qk_bitmap_extent e = {0};
        CHECK_OK(image_bitmap_status(img, "b", guest_off(off), 512, &e, NULL));
        CHECK_EQ(e.dirty, off % 2048 == 0);
    }
    image_abandon(img);
    io_close(file, NULL);
}

int main(void)
{
    test_entry_bytes();
    test_entry_faults();
    test_table_entries();
    test_extension();
    test_recorded();
    test_recorded_compressed();
    test_enable();
    test_in_use();
    test_resize();
    test_refused();
    test_stale();
    test_failed_switch();
    test_threads();
    return TEST_SUMMARY();
}
