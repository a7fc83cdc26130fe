/*
 * fuzz_image.c - takes bytes as an image and does with them what a user would: open, map, read,
 * check; then write to a copy, give another another shape, repair one, and take and drop snapshots
 * in one more. Relies on
 * the memory store only, so nothing outside is touched. Linked with libFuzzer, or with driver.c as
 * a plain test.
 *
 * Promises that are tested beside "no crash": an extent is never empty nor outside the disk, a
 * check opens everything and does not change a byte, and what a repair calls clean is clean when
 * looked at again.
 */
#include "base/checked.h"
#include "check/check.h"
#include "fuzz.h"
#include "image/snapshots.h"
#include "io/undo.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_INPUT = 1 << 20, MAX_EXTENTS = 200, READ_BYTES = 1 << 16, GROWTH = 4 << 20 };
#define SHAPE_MAX (UINT64_C(1) << 32) /* larger disks are not preallocated */

/* Of the corpus' encrypted images. */
static const struct image_secret secret = {"s", (const uint8_t *)"abc", 3};

static void promise(bool held, const char *what)
{
    if (held)
        return;
    fprintf(stderr, "promise broken: %s\n", what);
    abort();
}

/* A store with the bytes and an image open on it; NULL when it cannot be opened. */
struct opened {
    struct qk_io *file;
    struct qk_io *data; /* of an image with a data file; NULL: none */
    struct image *img;
};

static bool open_bytes(struct opened *o, const uint8_t *data, size_t size,
                       const struct image_options *opts)
{
    struct qk_error err = {0};

    o->img = NULL;
    o->data = NULL;
    promise(io_mem_open(data, size, size + GROWTH, &o->file, NULL) == 0, "memory store opens");
    if (image_open(o->file, opts, &o->img, &err) == 0) {
        if (image_has_data_file(o->img))
            promise(io_mem_open(NULL, READ_BYTES, GROWTH, &o->data, NULL) == 0, "and another");
        if (o->data)
            image_set_data(o->img, o->data);
        return true;
    }
    promise(err.code > 0 && err.text[0], "a refusal has a code and a text");
    io_close(o->file, NULL);
    return false;
}

static void close_bytes(struct opened *o)
{
    image_abandon(o->img);
    io_close(o->file, NULL);
    io_close(o->data, NULL);
}

static void read_at(struct image *img, uint64_t off, uint64_t len, uint8_t *buf)
{
    struct iovec iov = {buf, len < READ_BYTES ? len : READ_BYTES};

    image_readv(img, guest_off(off), &iov, 1, NULL);
}

/* Walks the map, reading where it stops; then the end of the disk. */
static void read_pass(const uint8_t *data, size_t size)
{
    const struct image_options opts = {
        .lazy_refcounts = -1, .overlap = OVERLAP_CACHED, .secret = &secret};
    struct opened o;

    if (!open_bytes(&o, data, size, &opts))
        return;
    uint8_t *buf = malloc(READ_BYTES);
    uint64_t end = image_size(o.img), off = 0;
    for (int i = 0; i < MAX_EXTENTS && off < end; i++) {
        struct qk_extent e;
        if (image_status(o.img, guest_off(off), end - off, &e, NULL) < 0)
            break;
        promise(e.off == off && e.len > 0 && e.len <= end - off, "an extent lies in its range");
        read_at(o.img, off, e.len, buf);
        off += e.len;
    }
    if (end > READ_BYTES)
        read_at(o.img, end - READ_BYTES, READ_BYTES, buf);
    free(buf);
    close_bytes(&o);
}

static int check_bytes(struct opened *o, unsigned fix, struct qk_check_result *result)
{
    struct qk_check_options opts = QK_CHECK_OPTIONS_INIT;

    opts.fix = fix;
    opts.threads = 1;
    *result = (struct qk_check_result)QK_CHECK_RESULT_INIT;
    return check_image(o->img, &opts, result, NULL);
}

/* A check opens whatever begins as an image does, and has room for a header. */
static bool must_open(const uint8_t *data, size_t size)
{
    return size >= 112 && memcmp(data, "QFI\xfb", 4) == 0;
}

static void check_pass(const uint8_t *data, size_t size)
{
    const struct image_options opts = {.for_check = true, .lazy_refcounts = -1};
    struct qk_check_result result;
    struct opened o;
    size_t len;

    if (!open_bytes(&o, data, size, &opts)) {
        promise(!must_open(data, size), "a check opens every image");
        return;
    }
    check_bytes(&o, 0, &result);
    const uint8_t *now = io_mem_data(o.file, &len);
    promise(len == size && memcmp(now, data, size) == 0, "a check changes nothing");
    close_bytes(&o);
}

/* Writes of all kinds; what they do to a damaged image is not judged here. */
static void write_pass(const uint8_t *data, size_t size)
{
    const struct image_options opts = {
        .writable = true, .lazy_refcounts = -1, .overlap = OVERLAP_CACHED, .secret = &secret};
    struct opened o;

    if (!open_bytes(&o, data, size, &opts))
        return;
    uint64_t end = image_size(o.img);
    if (!image_needs_repair(o.img) && end > 20000) {
        static uint8_t bytes[7000];
        struct iovec iov = {bytes, sizeof(bytes)};
        memset(bytes, 0x5a, sizeof(bytes));
        image_writev(o.img, guest_off(300), &iov, 1, 0, NULL);
        image_writev(o.img, guest_off(end - sizeof(bytes)), &iov, 1, 0, NULL);
        image_zero(o.img, guest_off(1000), 9000, IO_ZERO_UNMAP, NULL);
        image_discard(o.img, guest_off(700), 6000, NULL);
        image_flush(o.img, NULL);
        uint32_t cluster = image_geometry(o.img)->cluster_bytes;
        iov.iov_len = cluster <= sizeof(bytes) ? sizeof(bytes) / cluster * cluster : 0;
        image_writev(o.img, guest_off(0), &iov, 1, QK_WRITE_COMPRESSED, NULL);
        image_discard(o.img, guest_off(0), 16384, NULL);
        image_writev(o.img, guest_off(0), &iov, 1, QK_WRITE_COMPRESSED, NULL);
        iov.iov_len = sizeof(bytes);
        image_writev(o.img, guest_off(end / 2), &iov, 1, 0, NULL);
        image_flush(o.img, NULL);
    }
    close_bytes(&o);
}

/* Another shape: sizes, refcount widths, versions; each may be refused. */
static void shape_pass(const uint8_t *data, size_t size)
{
    const struct image_options opts = {
        .writable = true, .lazy_refcounts = -1, .overlap = OVERLAP_CACHED, .secret = &secret};
    static const struct amend_params params[] = {
        {.refcount_bits = 64, .lazy_refcounts = -1},
        {.refcount_bits = 1, .lazy_refcounts = 1},
        {.version = 3, .refcount_bits = 16, .lazy_refcounts = 0},
        {.version = 2, .lazy_refcounts = -1},
    };
    struct opened o;

    if (!open_bytes(&o, data, size, &opts))
        return;
    uint64_t end = image_size(o.img);
    if (!image_needs_repair(o.img) && end < SHAPE_MAX) {
        for (size_t i = 0; i < sizeof(params) / sizeof(*params); i++)
            image_amend(o.img, &params[i], NULL);
        image_resize(o.img, end / 2 / 512 * 512, QK_PREALLOC_OFF, QK_RESIZE_SHRINK, NULL);
        image_discard(o.img, guest_off(0), image_size(o.img), NULL);
        image_resize(o.img, end + 4096, QK_PREALLOC_METADATA, 0, NULL);
        image_flush(o.img, NULL);
    }
    close_bytes(&o);
}

static void repair_pass(const uint8_t *data, size_t size, unsigned allow)
{
    const struct image_options opts = {.writable = true, .for_check = true, .lazy_refcounts = -1};
    struct qk_check_options how = QK_CHECK_OPTIONS_INIT;
    struct qk_check_result first = QK_CHECK_RESULT_INIT, second;
    struct undo_result undone;
    struct qk_io *log = NULL;
    struct opened o;
    size_t len;

    if (!open_bytes(&o, data, size, &opts))
        return;
    promise(io_mem_open(NULL, 0, 0, &log, NULL) == 0, "memory store opens");
    how.fix = QK_FIX_LEAKS | QK_FIX_ERRORS;
    how.allow = allow;
    how.threads = 1;
    int ret = check_image_saving(o.img, &how, log, &first, NULL);
    if (ret == 0 && first.corruptions + first.leaks + first.check_errors == 0) {
        promise(check_bytes(&o, 0, &second) == 0, "a repaired image can be checked");
        promise(second.corruptions + second.leaks + second.check_errors == 0,
                "a repaired image is clean");
    }
    if (first.undo_saved)
        promise(undo_restore(log, o.file, &undone, NULL) == 0, "a repair can be taken back");
    const uint8_t *now = io_mem_data(o.file, &len);
    promise(len == size && memcmp(now, data, size) == 0, "an undo brings the bytes back");
    io_close(log, NULL);
    close_bytes(&o);
}

/* Reads what the bitmaps say; what is said must lie in the disk. */
static void read_bitmaps(struct image *img)
{
    uint64_t end = image_size(img);
    for (uint32_t i = 0; i < 8 && i < image_bitmap_count(img); i++) {
        struct image_bitmap bitmap;
        uint64_t off = 0;
        if (image_bitmap_info(img, i, &bitmap, NULL) < 0)
            return;
        for (int n = 0; n < MAX_EXTENTS && off < end; n++) {
            struct qk_bitmap_extent e;
            if (image_bitmap_status(img, bitmap.name, guest_off(off), end - off, &e, NULL) < 0)
                break;
            promise(e.off == off && e.len > 0 && e.len <= end - off, "a bitmap covers the disk");
            off += e.len;
        }
    }
}

static void change_bitmaps(struct image *img)
{
    const struct image_bitmap want = {.name = "new", .enabled = true};
    struct image_bitmap first;
    static uint8_t bytes[700];
    struct iovec iov = {bytes, sizeof(bytes)};
    uint64_t end = image_size(img);

    image_bitmap_add(img, &want, NULL);
    if (end > sizeof(bytes))
        image_writev(img, guest_off(end - sizeof(bytes)), &iov, 1, 0, NULL);
    image_zero(img, guest_off(0), end < 100000 ? end : 100000, 0, NULL);
    if (image_bitmap_info(img, 0, &first, NULL) < 0)
        return;
    char *name = strdup(first.name);
    image_bitmap_merge(img, "new", img, name, NULL);
    image_bitmap_enable(img, name, !first.enabled, NULL);
    image_bitmap_clear(img, name, NULL);
    image_resize(img, end + 5000, QK_PREALLOC_OFF, 0, NULL);
    image_bitmap_remove(img, name, NULL);
    free(name);
}

static void bitmap_pass(const uint8_t *data, size_t size)
{
    struct image_options opts = {.lazy_refcounts = -1, .overlap = OVERLAP_CACHED};
    struct opened o;

    if (!open_bytes(&o, data, size, &opts))
        return;
    bool any = image_bitmap_count(o.img) > 0;
    read_bitmaps(o.img);
    close_bytes(&o);
    opts.writable = true;
    if (!any || !open_bytes(&o, data, size, &opts))
        return;
    if (!image_needs_repair(o.img))
        change_bitmaps(o.img);
    image_close(o.img, NULL);
    io_close(o.file, NULL);
    io_close(o.data, NULL);
}

/* ---- snapshots --------------------------------------------------------------------------- */

/* Reads the list, and the first snapshots of it. */
static void read_snapshots(struct image *img, const uint8_t *data, size_t size)
{
    struct snapshot_vec list;
    uint64_t bytes;
    uint8_t *buf = malloc(READ_BYTES);
    int ret = image_snapshots(img, &list, NULL);
    for (size_t i = 0; ret == 0 && i < list.len && i < 3; i++) {
        const struct snapshot_key key = {.id = list.ptr[i].id, .name = list.ptr[i].name};
        const struct image_options opts = {.lazy_refcounts = -1, .snapshot = &key};
        struct opened o;
        image_snapshot_freed(img, &list.ptr[i], &bytes, NULL);
        if (!open_bytes(&o, data, size, &opts))
            continue;
        read_at(o.img, 0, min_u64(image_size(o.img), READ_BYTES), buf);
        close_bytes(&o);
    }
    snapshots_free_all(&list);
    free(buf);
}

/* Leaks do not count: a mutation may make some behind the end of the file, where nobody sees them
 * until the file gets there. */
static bool is_sound(struct qk_io *file)
{
    const struct image_options opts = {.for_check = true, .lazy_refcounts = -1};
    struct qk_check_result result;
    struct opened o = {.file = file};
    if (image_open(file, &opts, &o.img, NULL) < 0)
        return false;
    int ret = check_bytes(&o, 0, &result);
    image_abandon(o.img);
    return ret == 0 && result.corruptions + result.check_errors == 0;
}

static void change_snapshots(struct image *img)
{
    const struct snapshot_params params = {.name = "new"};
    const struct snapshot_key first = {.either = "1"}, fresh = {.name = "new"};
    image_snapshot_create(img, &params, NULL);
    image_snapshot_apply(img, &first, NULL);
    image_snapshot_rename(img, &first, "renamed", NULL);
    image_snapshot_delete(img, &first, NULL);
    image_snapshot_create(img, &params, NULL);
    image_snapshot_delete(img, &fresh, NULL);
}

/* Whatever was wrong with an image: one without errors has none afterwards. */
static void snapshot_pass(const uint8_t *data, size_t size)
{
    struct image_options opts = {
        .lazy_refcounts = -1, .overlap = OVERLAP_CACHED, .secret = &secret};
    struct opened o;

    if (!open_bytes(&o, data, size, &opts))
        return;
    read_snapshots(o.img, data, size);
    close_bytes(&o);
    opts.writable = true;
    if (!open_bytes(&o, data, size, &opts))
        return;
    bool sound = is_sound(o.file);
    if (!image_needs_repair(o.img))
        change_snapshots(o.img);
    int ret = image_close(o.img, NULL);
    promise(!sound || ret < 0 || is_sound(o.file), "snapshots leave a sound image sound");
    io_close(o.file, NULL);
    io_close(o.data, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > MAX_INPUT)
        return 0;
    read_pass(data, size);
    check_pass(data, size);
    write_pass(data, size);
    shape_pass(data, size);
    repair_pass(data, size, 0);
    repair_pass(data, size, ~0u);
    bitmap_pass(data, size);
    snapshot_pass(data, size);
    return 0;
}
