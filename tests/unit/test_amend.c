/*
 * test_amend.c - other refcount widths, versions and sizes of images in memory: every cluster size
 * and width against a check and the content; what cannot be done changes no byte; the new
 * structure stands in the lowest free clusters.
 */
#include "check_test.h"

#include <unistd.h>

#define IMAGE_CLUSTERS 64u

static struct image *open_to_write(struct qk_io *io)
{
    const struct image_options opts = {
        .writable = true, .lazy_refcounts = -1, .overlap = OVERLAP_CACHED};
    struct image *img = NULL;
    CHECK_OK(image_open(io, &opts, &img, NULL));
    return img;
}

static int amend(struct qk_io *io, struct amend_params params, struct qk_error *err)
{
    struct image *img = open_to_write(io);
    if (!img)
        return -EINVAL;
    int ret = image_amend(img, &params, err);
    CHECK_OK(image_close(img, NULL));
    return ret;
}

static struct amend_params width(uint32_t bits)
{
    return (struct amend_params){.refcount_bits = bits, .lazy_refcounts = -1};
}

/* A copy of the whole file; *len. */
static uint8_t *all_bytes(struct qk_io *io, uint64_t *len)
{
    CHECK_OK(io_size(io, len, NULL));
    uint8_t *bytes = malloc(*len + 1);
    CHECK_OK(io_read(io, 0, bytes, *len, NULL));
    return bytes;
}

static bool is_sound(struct qk_io *io)
{
    struct findings f;
    struct qk_check_result r = QK_CHECK_RESULT_INIT;
    CHECK_OK(check_store(io, 0, &f, &r));
    return r.corruptions == 0 && r.leaks == 0 && r.check_errors == 0;
}

/* Every refcount of the file. */
static void check_counts(struct qk_io *io, uint32_t bits)
{
    struct image *img = open_to_write(io);
    if (!img)
        return;
    CHECK_EQ(image_geometry(img)->refcount_bits, bits);
    image_abandon(img);
}

/* ---- widths ---- */

static void one_width_to_another(uint32_t cluster_bits, uint32_t from, uint32_t to)
{
    struct qk_io *io = make_image(cluster_bits, from);
    uint64_t before, after;
    CHECK_OK(io_size(io, &before, NULL));
    CHECK_OK(amend(io, width(1u << to), NULL));
    check_counts(io, 1u << to);
    bool good = is_sound(io) && data_intact(io);
    if (!CHECK(good))
        printf("    clusters of 2^%" PRIu32 " bytes, %u to %u bits\n", cluster_bits, 1u << from,
               1u << to);
    /* There and back: nothing is left behind. */
    CHECK_OK(amend(io, width(1u << from), NULL));
    CHECK(is_sound(io) && data_intact(io));
    CHECK_OK(io_size(io, &after, NULL));
    CHECK(after <= before + (UINT64_C(4) << cluster_bits));
    io_close(io, NULL);
}

static void widths_of(uint32_t cluster_bits)
{
    for (uint32_t from = 0; from <= 6; from++)
        for (uint32_t to = 0; to <= 6; to++)
            if (from != to)
                one_width_to_another(cluster_bits, from, to);
}

/* Blocks of 64 counts: 170 blocks that count themselves, in a table of several clusters. */
static void many_blocks(void)
{
    const struct create_params params = {.size_bytes = 5u << 20,
                                         .version = 3,
                                         .cluster_bits = 9,
                                         .refcount_order = 0,
                                         .prealloc = QK_PREALLOC_METADATA};
    struct qk_io *io = NULL;
    CHECK_OK(io_mem_open(NULL, 0, 0, &io, NULL));
    CHECK_OK(image_create(io, &params, NULL));
    static const uint32_t widths[] = {64, 1, 32, 2, 64, 8};
    for (size_t i = 0; i < ARRAY_SIZE(widths); i++) {
        CHECK_OK(amend(io, width(widths[i]), NULL));
        CHECK(is_sound(io));
    }
    io_close(io, NULL);
}

/* A hole in the file that is large enough takes the new structure. */
static void lowest_place(void)
{
    struct qk_io *io = make_image(12, 4);
    struct image *img = open_to_write(io);
    uint64_t before, after;
    CHECK_OK(image_discard(img, guest_off(0), 8u << 12, NULL));
    CHECK_OK(image_close(img, NULL));
    CHECK_OK(io_size(io, &before, NULL));
    CHECK_OK(amend(io, width(64), NULL));
    CHECK_OK(io_size(io, &after, NULL));
    CHECK_EQ(after, before);
    CHECK(is_sound(io));
    io_close(io, NULL);
}

/* ---- what cannot be done ---- */

/* Amending with params fails and changes nothing but, at most, free clusters behind the end. */
static void refused(struct qk_io *io, struct amend_params params, int code, const char *text)
{
    uint64_t before_len, after_len;
    struct qk_error err = {0};
    uint8_t *before = all_bytes(io, &before_len);
    CHECK_ERR(amend(io, params, &err), code);
    uint8_t *after = all_bytes(io, &after_len);
    if (!CHECK(strstr(err.text, text) != NULL))
        printf("    %s\n", err.text);
    CHECK_EQ(after_len, before_len);
    CHECK(after_len == before_len && memcmp(before, after, before_len) == 0);
    free(before);
    free(after);
}

static void too_narrow(void)
{
    struct qk_io *io = make_image(12, 4);
    set_refcount(io, 20, 3);
    refused(io, width(1), -EINVAL, "Cluster at offset 0x14000 has a refcount of 3");
    CHECK_OK(amend(io, width(2), NULL));
    refused(io, width(1), -EINVAL, "Cluster at offset 0x14000 has a refcount of 3");
    io_close(io, NULL);
}

static void wrong_words(void)
{
    struct qk_io *io = make_image(16, 4);
    struct amend_params p = width(0);
    refused(io, width(3), -EINVAL, "power of two");
    refused(io, width(128), -EINVAL, "power of two");
    p.version = 2;
    p.refcount_bits = 8;
    refused(io, p, -EINVAL, "Refcount widths other than 16 bits");
    p.refcount_bits = 0;
    p.lazy_refcounts = 1;
    refused(io, p, -EINVAL, "Lazy refcounts");
    p = width(0);
    p.has_size = true;
    p.size = 1000;
    refused(io, p, -EINVAL, "multiple of 512");
    p.size = 512;
    refused(io, p, -EINVAL, "shrinking must be asked for");
    io_close(io, NULL);
}

/* A device without a free cluster. */
static void no_room(void)
{
    const struct create_params params = {.size_bytes = 48u << 12,
                                         .version = 3,
                                         .cluster_bits = 12,
                                         .refcount_order = 4,
                                         .prealloc = QK_PREALLOC_METADATA};
    struct qk_io *small = NULL, *device = NULL;
    uint64_t bytes;
    CHECK_OK(io_mem_open(NULL, 0, 0, &small, NULL));
    CHECK_OK(image_create(small, &params, NULL));
    CHECK_OK(io_size(small, &bytes, NULL));
    CHECK_OK(io_mem_open(NULL, 0, 0, &device, NULL));
    CHECK_OK(io_resize(device, bytes, QK_PREALLOC_OFF, NULL));
    device->can_grow = false;
    CHECK_OK(image_create(device, &params, NULL));
    refused(device, width(64), -ENOSPC, "No space left");
    io_close(small, NULL);
    io_close(device, NULL);
}

static int stop_at(void *opaque, uint64_t done, uint64_t total)
{
    (void)total;
    return done >= *(uint64_t *)opaque;
}

static void canceled(void)
{
    const struct create_params params = {.size_bytes = 64u << 20,
                                         .version = 3,
                                         .cluster_bits = 9,
                                         .refcount_order = 6,
                                         .prealloc = QK_PREALLOC_METADATA};
    struct qk_io *io = NULL;
    CHECK_OK(io_mem_open(NULL, 0, 0, &io, NULL));
    CHECK_OK(image_create(io, &params, NULL));
    for (uint64_t at = 1; at < 4000; at += 1500) {
        struct qk_progress progress = {stop_at, &at};
        struct amend_params p = width(8);
        p.progress = &progress;
        refused(io, p, -ECANCELED, "canceled");
    }
    CHECK(is_sound(io));
    io_close(io, NULL);
}

/* ---- versions and sizes ---- */

static void down_and_up(uint32_t cluster_bits)
{
    struct qk_io *io = make_image(cluster_bits, 4);
    struct amend_params p = width(0);
    p.version = 2;
    CHECK_OK(amend(io, p, NULL));
    CHECK(is_sound(io) && data_intact(io));
    p.version = 3;
    p.lazy_refcounts = 1;
    CHECK_OK(amend(io, p, NULL));
    struct image *img = open_for_check(io, false);
    CHECK_EQ(image_header(img)->version, 3);
    CHECK_EQ(image_header(img)->compatible, COMPAT_LAZY_REFCOUNTS);
    CHECK_EQ(image_header(img)->incompatible, 0);
    image_abandon(img);
    p = width(0);
    p.lazy_refcounts = 0;
    CHECK_OK(amend(io, p, NULL));
    CHECK(is_sound(io) && data_intact(io));
    io_close(io, NULL);
}

static void shrink_to_nothing(uint32_t cluster_bits)
{
    struct qk_io *io = make_image(cluster_bits, 4);
    struct image *img = open_to_write(io);
    uint64_t before, after;
    CHECK_OK(io_size(io, &before, NULL));
    CHECK_ERR(image_resize(img, 512, QK_PREALLOC_OFF, 0, NULL), -EINVAL);
    CHECK_OK(image_resize(img, 512, QK_PREALLOC_OFF, QK_RESIZE_SHRINK, NULL));
    CHECK_OK(image_resize(img, 0, QK_PREALLOC_OFF, QK_RESIZE_SHRINK, NULL));
    CHECK_OK(image_resize(img, UINT64_C(64) << cluster_bits, QK_PREALLOC_OFF, 0, NULL));
    uint8_t sector[512], zeroes[512] = {0};
    CHECK_OK(image_readv(img, guest_off(0), &(struct iovec){sector, 512}, 1, NULL));
    CHECK_MEM(sector, zeroes, 512);
    CHECK_OK(image_close(img, NULL));
    CHECK_OK(io_size(io, &after, NULL));
    CHECK(after < before);
    CHECK(is_sound(io));
    io_close(io, NULL);
}

/* An L1 entry that leads out of the file: nothing is cut off before that is repaired. */
static void shrink_damaged(void)
{
    struct qk_io *io = make_image(9, 4);
    struct image *img = open_for_check(io, false);
    uint8_t entry[8];
    uint64_t before_len, after_len, at = image_header(img)->l1_off;
    image_abandon(img);
    store_be64(entry, (UINT64_C(1) << 40) | ENTRY_COPIED);
    CHECK_OK(io_write(io, at, entry, 8, 0, NULL));
    uint8_t *before = all_bytes(io, &before_len);
    img = open_to_write(io);
    CHECK_ERR(image_resize(img, 0, QK_PREALLOC_OFF, QK_RESIZE_SHRINK, NULL), -EIO);
    CHECK_OK(image_close(img, NULL));
    uint8_t *after = all_bytes(io, &after_len);
    CHECK_EQ(after_len, before_len);
    CHECK(after_len == before_len && !memcmp(after, before, after_len));
    free(before);
    free(after);
    io_close(io, NULL);
}

/* ---- the public call ---- */

static const char *description_of(const char *key)
{
    size_t count;
    const struct qk_option_desc *list = qk_amend_options("qcow2", &count);
    for (size_t i = 0; list && i < count; i++)
        if (!strcmp(list[i].name, key))
            return list[i].help;
    return NULL;
}

static int amend_file(const char *name, const char *option, unsigned flags, struct qk_error *err)
{
    const char *list[] = {option, NULL};
    struct qk_open_options how = QK_OPEN_OPTIONS_INIT;
    struct qk_amend_settings settings = QK_AMEND_SETTINGS_INIT;
    struct qk_disk *disk = NULL;
    how.flags = QK_OPEN_RDWR;
    settings.flags = flags;
    if (!CHECK_OK(qk_disk_open(name, &how, &disk, err)))
        return -EIO;
    int ret = qk_disk_amend(disk, list, &settings, err);
    CHECK(qk_disk_size(disk) % 512 == 0);
    CHECK_OK(qk_disk_close(disk, NULL));
    return ret;
}

static void public_call(void)
{
    struct qk_error err;
    char name[] = "/tmp/qcowkit-amend.XXXXXX";
    int fd = mkstemp(name);
    CHECK(fd >= 0);
    close(fd);
    CHECK_OK(qk_create(name, "qcow2", (const char *[]){"size=8M", NULL}, &err));
    CHECK_OK(amend_file(name, "refcount_bits=2", 0, &err));
    CHECK_OK(amend_file(name, "size=16M", 0, &err));
    CHECK_ERR(amend_file(name, "size=1M", 0, &err), -EINVAL);
    CHECK_OK(amend_file(name, "size=1M", QK_AMEND_FORCE, &err));
    CHECK_ERR(amend_file(name, "cluster_size=4k", 0, &err), -EINVAL);
    CHECK(strstr(err.text, "only supported for image creation") != NULL);
    CHECK_ERR(amend_file(name, "compat=0.10", 0, &err), -ENOTSUP);
    CHECK(description_of("refcount_bits") != NULL);
    CHECK(description_of("cluster_size") == NULL);
    CHECK(qk_amend_options("raw", &(size_t){0}) == NULL);
    unlink(name);
}

int main(void)
{
    static const uint32_t sizes[] = {9, 10, 12, 16, 21};
    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        if (sizes[i] < 20)
            widths_of(sizes[i]);
        else
            one_width_to_another(sizes[i], 4, 6);
        down_and_up(sizes[i]);
        shrink_to_nothing(sizes[i]);
    }
    many_blocks();
    lowest_place();
    too_narrow();
    wrong_words();
    no_room();
    canceled();
    shrink_damaged();
    public_call();
    return TEST_SUMMARY();
}
