/*
 * check_test.h - what the unit tests of the check share: small images in memory, the findings of a
 * check counted by number, damage to refcounts, and guest data that must survive.
 */
#ifndef QK_CHECK_TEST_H
#define QK_CHECK_TEST_H

#include "base/bytes.h"
#include "base/checked.h"
#include "check/check.h"
#include "format/refcount.h"
#include "image/image.h"
#include "image/snapshots.h"
#include "test.h"

#define WRITTEN_CLUSTERS 24u
#define MAX_NUMBER       128u

struct findings {
    unsigned by_number[MAX_NUMBER];
    unsigned repaired;
    char last_message[200];
};

static inline void count_problem(void *opaque, const struct qk_problem *p)
{
    struct findings *f = opaque;
    f->by_number[p->number < MAX_NUMBER ? p->number : 0]++;
    f->repaired += p->repaired;
}

static inline void keep_message(void *opaque, const char *line)
{
    struct findings *f = opaque;
    snprintf(f->last_message, sizeof(f->last_message), "%s", line);
}

static inline struct image *open_for_check(struct qk_io *io, bool writable)
{
    const struct image_options opts = {
        .writable = writable, .for_check = true, .lazy_refcounts = -1};
    struct image *img = NULL;
    CHECK_OK(image_open(io, &opts, &img, NULL));
    return img;
}

static inline int run_allowing(struct image *img, unsigned fix, unsigned allow, struct findings *f,
                               struct qk_check_result *r)
{
    struct qk_check_options opts = QK_CHECK_OPTIONS_INIT;
    struct qk_error err = {0};
    *f = (struct findings){0};
    opts.fix = fix;
    opts.allow = allow;
    opts.threads = 2;
    opts.on_problem = count_problem;
    opts.on_message = keep_message;
    opts.opaque = f;
    return check_image(img, &opts, r, &err);
}

static inline int run_check(struct image *img, unsigned fix, struct findings *f,
                            struct qk_check_result *r)
{
    return run_allowing(img, fix, 0, f, r);
}

/* Opens, checks with `fix`, closes. */
static inline int check_allowing(struct qk_io *io, unsigned fix, unsigned allow, struct findings *f,
                                 struct qk_check_result *r)
{
    struct image *img = open_for_check(io, fix != 0);
    if (!img)
        return -EINVAL;
    int ret = run_allowing(img, fix, allow, f, r);
    image_abandon(img);
    return ret;
}

static inline int check_store(struct qk_io *io, unsigned fix, struct findings *f,
                              struct qk_check_result *r)
{
    return check_allowing(io, fix, 0, f, r);
}

static inline void fill_pattern(uint8_t *buf, size_t len, uint32_t cluster)
{
    memset(buf, (int)(cluster + 1), len);
}

/* An image of 64 clusters whose first WRITTEN_CLUSTERS are written. */
static inline struct qk_io *make_image(uint32_t cluster_bits, uint32_t refcount_order)
{
    const struct create_params params = {
        .size_bytes = UINT64_C(64) << cluster_bits,
        .version = 3,
        .cluster_bits = cluster_bits,
        .refcount_order = refcount_order,
    };
    struct qk_io *io = NULL;
    struct image *img = NULL;
    struct image_options opts = {.writable = true, .lazy_refcounts = -1};
    size_t bytes = (size_t)1 << cluster_bits;
    uint8_t *buf = malloc(bytes);
    CHECK_OK(io_mem_open(NULL, 0, 0, &io, NULL));
    CHECK_OK(image_create(io, &params, NULL));
    CHECK_OK(image_open(io, &opts, &img, NULL));
    for (uint32_t i = 0; img && i < WRITTEN_CLUSTERS; i++) {
        struct iovec iov = {buf, bytes};
        fill_pattern(buf, bytes, i);
        CHECK_OK(image_writev(img, guest_off((uint64_t)i << cluster_bits), &iov, 1, 0, NULL));
    }
    CHECK_OK(image_close(img, NULL));
    free(buf);
    return io;
}

/* Every written cluster reads as it was written. */
static inline bool image_data_intact(struct image *img)
{
    size_t bytes = image_geometry(img)->cluster_bytes;
    uint8_t *buf = malloc(2 * bytes);
    bool intact = true;
    for (uint32_t i = 0; i < WRITTEN_CLUSTERS; i++) {
        struct iovec iov = {buf, bytes};
        fill_pattern(buf + bytes, bytes, i);
        if (image_readv(img, guest_off((uint64_t)i * bytes), &iov, 1, NULL) < 0 ||
            memcmp(buf, buf + bytes, bytes) != 0)
            intact = false;
    }
    free(buf);
    return intact;
}

static inline bool data_intact(struct qk_io *io)
{
    struct image *img = open_for_check(io, false);
    if (!img)
        return false;
    bool intact = image_data_intact(img);
    image_abandon(img);
    return intact;
}

/* The same of a snapshot; NULL: of the disk. */
static inline bool snapshot_intact(struct qk_io *io, const char *snapshot)
{
    const struct snapshot_key key = {.either = snapshot};
    const struct image_options opts = {
        .for_check = true, .lazy_refcounts = -1, .snapshot = snapshot ? &key : NULL};
    struct image *img = NULL;
    if (image_open(io, &opts, &img, NULL) < 0)
        return false;
    bool same = image_data_intact(img);
    image_abandon(img);
    return same;
}

/* make_image, its state kept as snapshot "saved", and then some clusters written and given up:
 * there is a hole in the file. */
static inline struct qk_io *make_saved_image(uint32_t cluster_bits, uint32_t order)
{
    struct qk_io *io = make_image(cluster_bits, order);
    struct image_options opts = {.writable = true, .lazy_refcounts = -1};
    const struct snapshot_params params = {.name = "saved", .date_sec = 1000};
    struct image *img = NULL;
    size_t bytes = (size_t)1 << cluster_bits;
    uint8_t *buf = malloc(bytes);
    CHECK_OK(image_open(io, &opts, &img, NULL));
    CHECK_OK(image_snapshot_create(img, &params, NULL));
    for (uint32_t i = 20; i < WRITTEN_CLUSTERS + 4; i++) {
        struct iovec iov = {buf, bytes};
        fill_pattern(buf, bytes, 200 + i);
        CHECK_OK(image_writev(img, guest_off(i * (uint64_t)bytes), &iov, 1, 0, NULL));
    }
    for (uint32_t i = 0; i <= WRITTEN_CLUSTERS; i += WRITTEN_CLUSTERS)
        CHECK_OK(image_discard(img, guest_off(i * (uint64_t)bytes), 2 * bytes, NULL));
    CHECK_OK(image_close(img, NULL));
    free(buf);
    return io;
}

static inline uint64_t read_be64(struct qk_io *io, uint64_t off)
{
    uint8_t bytes[8];
    CHECK_OK(io_read(io, off, bytes, sizeof(bytes), NULL));
    return load_be64(bytes);
}

static inline void write_be64(struct qk_io *io, uint64_t off, uint64_t value)
{
    uint8_t bytes[8];
    store_be64(bytes, value);
    CHECK_OK(io_write(io, off, bytes, sizeof(bytes), 0, NULL));
}

/* Sets a refcount in the first block. */
static inline void set_refcount(struct qk_io *io, uint64_t cluster, uint64_t value)
{
    struct image *img = open_for_check(io, false);
    uint32_t bytes = image_geometry(img)->cluster_bytes, order = image_header(img)->refcount_order;
    uint64_t off = read_be64(io, image_header(img)->reftable_off);
    uint8_t *block = malloc(bytes);
    CHECK_OK(io_read(io, off, block, bytes, NULL));
    refcount_ops(order)->set(block, cluster, value);
    CHECK_OK(io_write(io, off, block, bytes, 0, NULL));
    free(block);
    image_abandon(img);
}

/* Where the entry of a guest cluster of the first L2 table is. */
static inline uint64_t l2_place(struct qk_io *io, uint32_t guest_cluster)
{
    uint64_t l1_off = read_be64(io, 40);
    return (read_be64(io, l1_off) & L1_OFFSET_MASK) + 8u * (uint64_t)guest_cluster;
}

static inline uint64_t host_cluster(struct qk_io *io, uint32_t guest_cluster)
{
    uint8_t bits[4];
    CHECK_OK(io_read(io, 20, bits, sizeof(bits), NULL));
    return (read_be64(io, l2_place(io, guest_cluster)) & L2_OFFSET_MASK) >> load_be32(bits);
}

#endif
