/*
 * test_compressed.c - compressed clusters in an image: the allocator of bytes packs them without
 * gaps and counts what it shares, at every refcount width; replaced, freed and failed ones leave
 * the refcounts exact; descriptors and streams that are damaged fail with their places.
 */
#include "base/bytes.h"
#include "check/check.h"
#include "image/image_int.h"
#include "io/fault.h"
#include "test.h"

#define CLUSTERS 200u

struct world {
    struct qk_io *mem; /* what the image is in; owned by the fault store above it */
    struct qk_io *io;
    struct image *img;
    uint32_t cluster;
    uint64_t seed;
    uint8_t *model, *buf; /* of the whole disk; of two clusters */
};

static uint32_t next(struct world *w)
{
    w->seed = w->seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(w->seed >> 33);
}

static void open_image(struct world *w)
{
    struct image_options o = {.writable = true, .lazy_refcounts = -1, .overlap = OVERLAP_CACHED};
    REQUIRE(image_open(w->io, &o, &w->img, NULL) == 0);
}

static struct world *new_world(uint32_t cluster_bits, uint32_t order, enum codec_type type)
{
    struct world *w = calloc(1, sizeof(*w));
    struct create_params p = {
        .size_bytes = (CLUSTERS << cluster_bits) - 512,
        .version = 3,
        .cluster_bits = cluster_bits,
        .refcount_order = order,
        .compression_type = type,
    };
    w->cluster = 1u << cluster_bits;
    w->seed = cluster_bits * 100 + order * 10 + type;
    w->model = calloc(CLUSTERS, w->cluster);
    w->buf = calloc(2, w->cluster);
    CHECK_OK(io_mem_open(NULL, 0, 0, &w->mem, NULL));
    CHECK_OK(io_fault_open(w->mem, NULL, &w->io, NULL));
    CHECK_OK(image_create(w->io, &p, NULL));
    open_image(w);
    return w;
}

static int read_disk(struct world *w, uint64_t off, void *buf, size_t len, struct qk_error *err)
{
    return image_readv(w->img, guest_off(off), &(struct iovec){buf, len}, 1, err);
}

static uint64_t disk_bytes(const struct world *w)
{
    return image_size(w->img);
}

static void check_content(struct world *w)
{
    for (uint64_t off = 0; off < disk_bytes(w); off += w->cluster) {
        size_t n = (size_t)min_u64(w->cluster, disk_bytes(w) - off);
        CHECK_OK(read_disk(w, off, w->buf, n, NULL));
        CHECK(memcmp(w->buf, w->model + off, n) == 0);
    }
}

/* Closes, lets a check count every reference, opens again and compares. */
static void check_closed(struct world *w)
{
    struct image_options o = {.for_check = true, .overlap = OVERLAP_CACHED};
    struct qk_check_options how = QK_CHECK_OPTIONS_INIT;
    struct qk_check_result result = QK_CHECK_RESULT_INIT;
    struct image *img;
    CHECK_OK(image_close(w->img, NULL));
    REQUIRE(image_open(w->io, &o, &img, NULL) == 0);
    CHECK_OK(check_image(img, &how, &result, NULL));
    CHECK_EQ(result.corruptions, 0);
    CHECK_EQ(result.leaks, 0);
    CHECK_EQ(result.check_errors, 0);
    image_abandon(img);
    open_image(w);
    check_content(w);
}

static void end_world(struct world *w)
{
    check_closed(w);
    CHECK_OK(image_close(w->img, NULL));
    CHECK_OK(io_close(w->io, NULL));
    free(w->model);
    free(w->buf);
    free(w);
}

/* `random` of 16 bytes cannot be compressed. */
static void fill(struct world *w, uint8_t *p, size_t len, unsigned random)
{
    for (size_t i = 0; i < len; i++)
        p[i] = (uint8_t)(i % 16 < random ? next(w) : i / 16);
}

static int write_flags(struct world *w, uint64_t off, size_t len, unsigned flags)
{
    struct iovec iov = {w->model + off, len};
    return image_writev(w->img, guest_off(off), &iov, 1, flags, NULL);
}

static void write_compressed(struct world *w, uint64_t index, unsigned random)
{
    uint64_t off = index * w->cluster;
    size_t len = (size_t)min_u64(w->cluster, disk_bytes(w) - off);
    fill(w, w->model + off, len, random);
    CHECK_OK(write_flags(w, off, len, QK_WRITE_COMPRESSED));
}

static struct l2_entry entry_of(struct world *w, uint64_t index)
{
    struct map_extent ext;
    CHECK_OK(image_map(w->img, guest_off(index * w->cluster), 1, &ext, NULL));
    return ext.entry;
}

/* ---- packing ---- */

/* Streams follow one another: no host cluster but the last has room behind them. */
static void test_dense(uint32_t cluster_bits)
{
    struct world *w = new_world(cluster_bits, 4, CODEC_DEFLATE);
    uint64_t total = 0, before = w->img->end_clusters;
    uint8_t *stream = malloc(w->cluster);
    for (uint64_t i = 0; i + 1 < CLUSTERS; i++) {
        uint64_t off = i * w->cluster;
        size_t bytes = 0;
        fill(w, w->model + off, w->cluster, 3 + next(w) % 5);
        CHECK_OK(image_compress(w->img, (struct iovec){w->model + off, w->cluster},
                                (struct iovec){stream, w->cluster}, &bytes, NULL));
        CHECK(bytes && bytes < w->cluster);
        CHECK_OK(image_write_stream(w->img, guest_off(off), (struct iovec){stream, bytes}, NULL));
        total += bytes;
    }
    free(stream);
    /* Beside the streams there are L2 tables and refcount blocks, which break the row at times. */
    uint64_t tables = div_round_up(CLUSTERS, w->img->g.l2_entries) + 4;
    CHECK(w->img->end_clusters - before <= div_round_up(total, w->cluster) + 2 * tables);
    check_content(w);
    end_world(w);
}

/* Counts the streams on each host cluster, and compares with the refcounts. */
static void check_shares(struct world *w)
{
    uint64_t most = 0;
    uint32_t *shares = calloc(w->img->end_clusters + 1, sizeof(*shares));
    for (uint64_t i = 0; i < CLUSTERS; i++) {
        struct l2_entry e = entry_of(w, i);
        if (!(e.raw & ENTRY_COMPRESSED))
            continue;
        struct compressed_extent c = compressed_decode(&w->img->g, e.raw);
        for (uint64_t k = c.off / w->cluster; k <= (c.off + c.bytes - 1) / w->cluster; k++)
            shares[k]++;
    }
    pthread_mutex_lock(&w->img->alloc_lock);
    for (uint64_t k = 0; k < w->img->end_clusters; k++) {
        uint64_t count = 0;
        CHECK_OK(refcount_get(w->img, k, &count, NULL));
        CHECK(!shares[k] || count == shares[k]);
        most = max_u64(most, shares[k]);
    }
    pthread_mutex_unlock(&w->img->alloc_lock);
    CHECK(most <= w->img->g.refcount_max);
    CHECK(most >= min_u64(w->img->g.refcount_max, 8));
    free(shares);
}

static void test_widths(uint32_t order)
{
    struct world *w = new_world(16, order, CODEC_ZSTD);
    for (uint64_t i = 0; i < CLUSTERS; i++)
        write_compressed(w, i, i % 20 == 19 ? 16 : 1);
    check_shares(w);
    end_world(w);
}

/* ---- changes ---- */

/* What has data of its own keeps it; data that cannot be compressed is written all the same. */
static void refuse_over_data(struct world *w, uint64_t off, size_t len)
{
    fill(w, w->buf, len, 2);
    struct iovec iov = {w->buf, len};
    CHECK_ERR(image_writev(w->img, guest_off(off), &iov, 1, QK_WRITE_COMPRESSED, NULL), -EIO);
    fill(w, w->model + off, len, 16);
    CHECK_OK(write_flags(w, off, len, QK_WRITE_COMPRESSED));
}

static void change_one(struct world *w)
{
    uint64_t index = next(w) % CLUSTERS, off = index * w->cluster;
    size_t len = (size_t)min_u64(w->cluster, disk_bytes(w) - off);
    struct l2_entry e = entry_of(w, index);
    switch (next(w) % 6) {
    case 0:
        memset(w->model + off, 0, len);
        CHECK_OK(image_discard(w->img, guest_off(off), len, NULL));
        break;
    case 1: /* a part: the rest is copied out of the stream */
        fill(w, w->model + off + 100, 300, 16);
        CHECK_OK(write_flags(w, off + 100, 300, 0));
        break;
    case 2:
        memset(w->model + off + 7, 0, 500);
        CHECK_OK(image_zero(w->img, guest_off(off + 7), 500, 0, NULL));
        break;
    case 3:
        CHECK_OK(image_flush(w->img, NULL));
        break;
    default:
        if (!(e.raw & ENTRY_COPIED))
            write_compressed(w, index, 1 + next(w) % 9);
        else
            refuse_over_data(w, off, len);
    }
}

static void test_changes(uint32_t cluster_bits, uint32_t order, enum codec_type type)
{
    struct world *w = new_world(cluster_bits, order, type);
    for (uint64_t i = 0; i < CLUSTERS; i += 2)
        write_compressed(w, i, 1 + next(w) % 12);
    for (int i = 0; i < 600; i++) {
        change_one(w);
        if (i % 150 == 149)
            check_closed(w);
    }
    end_world(w);
}

/* A write that fails gives its bytes back, and leaves the others alone. */
static void test_failed_writes(void)
{
    struct world *w = new_world(12, 4, CODEC_DEFLATE);
    for (uint64_t i = 0; i < 60; i++) {
        write_compressed(w, i, 2);
        if (i % 5 != 4)
            continue;
        struct fault_nth nth = {.nth = 1 + i / 5 % 4, .error = EIO, .torn = i % 2};
        fault_fail_nth(w->io, &nth);
        uint64_t off = (100 + i) * w->cluster;
        fill(w, w->model + off, w->cluster, 3);
        if (write_flags(w, off, w->cluster, QK_WRITE_COMPRESSED) < 0)
            memset(w->model + off, 0, w->cluster);
        fault_clear(w->io);
    }
    CHECK(fault_injected(w->io, 1u << FAULT_WRITE));
    end_world(w);
}

/* ---- refusals ---- */

static void test_refusals(void)
{
    struct world *w = new_world(12, 4, CODEC_DEFLATE);
    const uint64_t c = w->cluster, end = disk_bytes(w);
    CHECK_ERR(write_flags(w, 512, c, QK_WRITE_COMPRESSED), -EINVAL);
    CHECK_ERR(write_flags(w, 0, c - 512, QK_WRITE_COMPRESSED), -EINVAL);
    CHECK_ERR(write_flags(w, 0, c + 512, QK_WRITE_COMPRESSED), -EINVAL);
    CHECK_ERR(write_flags(w, round_down(end, c), c, QK_WRITE_COMPRESSED), -EIO);
    CHECK_OK(write_flags(w, round_down(end, c), c - 512, QK_WRITE_COMPRESSED));
    CHECK_OK(write_flags(w, 0, end, QK_WRITE_COMPRESSED | QK_WRITE_FUA));
    CHECK_OK(write_flags(w, 5 * c, c, 0));
    CHECK_ERR(write_flags(w, 5 * c, c, QK_WRITE_COMPRESSED), -EIO);
    end_world(w);
}

/* ---- damage ---- */

/* The entry goes straight into the table: nothing is counted or freed. */
static void store_raw(struct world *w, uint64_t index, uint64_t raw)
{
    uint64_t table = l1_entry_host(w->img->l1[0]) + index * 8;
    uint8_t bytes[8];
    store_be64(bytes, raw);
    CHECK_OK(image_flush(w->img, NULL));
    CHECK_OK(io_write(w->io, table, bytes, 8, 0, NULL));
    cache_drop(&w->img->l2);
}

static void expect_damage(struct world *w, uint64_t index, const char *text)
{
    struct qk_error err = {0};
    char guest[64];
    snprintf(guest, sizeof(guest), "guest offset %" PRIu64, index * w->cluster);
    CHECK_ERR(read_disk(w, index * w->cluster + 9, w->buf, 100, &err), -EIO);
    CHECK(strstr(err.text, text));
    CHECK(strstr(err.text, guest) || strstr(err.text, "beyond"));
    CHECK(err.offset != QK_OFFSET_NONE);
    CHECK_ERR(read_disk(w, index * w->cluster, w->buf, w->cluster, NULL), -EIO);
}

static void test_damage(enum codec_type type)
{
    struct world *w = new_world(16, 4, type);
    for (uint64_t i = 0; i < 10; i++)
        write_compressed(w, i, 4);
    const struct geometry *g = &w->img->g;
    struct l2_entry good = entry_of(w, 3);
    struct compressed_extent c = compressed_decode(g, good.raw);
    uint64_t length_field = g->csize_mask << g->csize_shift;
    const struct {
        uint64_t raw;
        const char *text;
    } rows[] = {
        {good.raw & ~length_field, "ends before"},         /* one sector of the stream */
        {(good.raw & ~g->coffset_mask) | (c.off + 1), ""}, /* begins too late */
        {ENTRY_COMPRESSED | length_field, ""},             /* the header is no stream */
        {ENTRY_COMPRESSED | g->coffset_mask, "beyond"},    /* far beyond the file */
        {UINT64_MAX & ~ENTRY_COPIED, "beyond"},
        {ENTRY_COMPRESSED | length_field | (w->img->end_clusters * w->cluster - 1), ""},
    };
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        store_raw(w, 3, rows[i].raw);
        expect_damage(w, 3, rows[i].text);
    }
    /* More than the stream is read, but not taken for a part of it: as QEMU. */
    store_raw(w, 3, good.raw | length_field);
    CHECK_OK(read_disk(w, 3 * w->cluster, w->buf, w->cluster, NULL));
    CHECK(memcmp(w->buf, w->model + 3 * w->cluster, w->cluster) == 0);
    store_raw(w, 3, good.raw);
    end_world(w);
}

int main(void)
{
    for (uint32_t bits = 9; bits <= 17; bits += 4)
        test_dense(bits);
    for (uint32_t order = 0; order <= 6; order++)
        test_widths(order);
    for (uint32_t order = 0; order <= 4; order += 2) {
        test_changes(10, order, CODEC_DEFLATE);
        test_changes(12, order, CODEC_ZSTD);
    }
    test_failed_writes();
    test_refusals();
    test_damage(CODEC_DEFLATE);
    test_damage(CODEC_ZSTD);
    return TEST_SUMMARY();
}
