/*
 * test_check_crash_bitmaps.c - a power cut at every point of a repair that drops one bitmap of
 * three. In every state that it can leave the header says that the bitmaps are right, the good ones
 * have the bits that they had, no cluster has fewer refcounts than references, and repairing again
 * gives a clean image with just these two.
 */
#include "check_test.h"
#include "format/header.h"
#include "io/trace.h"

#include <string.h>

#define GRANULARITY      12u
#define ENTRY_BYTES      32u /* of names of up to eight letters */
#define HEADER_AUTOCLEAR 88u

static const char *const names[] = {"first", "second", "third"};

static struct qk_io *image_with_bitmaps(uint32_t cluster_bits, uint32_t order)
{
    struct qk_io *io = make_image(cluster_bits, order);
    struct image_options opts = {.writable = true, .lazy_refcounts = -1};
    struct image *img = NULL;
    uint8_t *buf = malloc((size_t)1 << cluster_bits);
    struct iovec iov = {buf, (size_t)1 << cluster_bits};
    CHECK_OK(image_open(io, &opts, &img, NULL));
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        const struct image_bitmap want = {
            .name = names[i], .granularity_bits = GRANULARITY, .enabled = true};
        CHECK_OK(image_bitmap_add(img, &want, NULL));
    }
    fill_pattern(buf, iov.iov_len, 3);
    CHECK_OK(image_writev(img, guest_off(UINT64_C(3) << cluster_bits), &iov, 1, 0, NULL));
    CHECK_OK(image_close(img, NULL));
    free(buf);
    return io;
}

static uint64_t directory(struct qk_io *io)
{
    uint8_t head[8];
    CHECK_OK(io_read(io, 100, head, 4, NULL));
    for (uint64_t at = load_be32(head);;) {
        CHECK_OK(io_read(io, at, head, sizeof(head), NULL));
        if (load_be32(head) == HEXT_BITMAPS)
            return read_be64(io, at + 24);
        if (!load_be32(head))
            return 0;
        at += 8 + round_up(load_be32(head + 4), 8);
    }
}

/* The bitmap says of the written cluster, and of no other, that it was written. */
static bool bits_right(struct image *img, const char *name)
{
    struct qk_bitmap_extent extent;
    uint64_t cluster = image_geometry(img)->cluster_bytes, at = 3 * cluster, size = image_size(img);
    uint64_t from = round_down(at, UINT64_C(1) << GRANULARITY);
    uint64_t to = round_up(at + cluster, UINT64_C(1) << GRANULARITY);
    return image_bitmap_status(img, name, guest_off(from), size - from, &extent, NULL) == 0 &&
           extent.dirty && extent.len == to - from &&
           image_bitmap_status(img, name, guest_off(to), size - to, &extent, NULL) == 0 &&
           !extent.dirty && extent.len == size - to;
}

static unsigned low_refcounts(const struct findings *f)
{
    return f->by_number[1] + f->by_number[2];
}

static int repair(struct qk_io *io, struct qk_check_result *r)
{
    struct qk_check_options opts = QK_CHECK_OPTIONS_INIT;
    struct image *img = open_for_check(io, true);
    opts.fix = QK_FIX_LEAKS | QK_FIX_ERRORS;
    opts.allow = QK_ALLOW_BITMAPS;
    int ret = check_image(img, &opts, r, NULL);
    image_abandon(img);
    return ret;
}

static void judge(struct qk_io *io, uint32_t bad)
{
    struct findings f;
    struct qk_check_result r;
    struct image *img = open_for_check(io, false);
    CHECK(read_be64(io, HEADER_AUTOCLEAR) & AUTOCLEAR_BITMAPS);
    for (uint32_t i = 0; i < ARRAY_SIZE(names); i++)
        CHECK(i == bad || bits_right(img, names[i]));
    image_abandon(img);
    CHECK_OK(check_store(io, 0, &f, &r));
    CHECK_EQ(low_refcounts(&f), 0);
    CHECK(data_intact(io));
    CHECK_OK(repair(io, &r));
    CHECK_EQ(r.corruptions + r.leaks, 0);
    img = open_for_check(io, false);
    CHECK_EQ(image_bitmap_count(img), 2);
    for (uint32_t i = 0; i < ARRAY_SIZE(names); i++)
        CHECK(i == bad || bits_right(img, names[i]));
    image_abandon(img);
}

/* The damaged image, what a repair wrote, and the bitmap that was damaged. */
struct crash {
    const uint8_t *base;
    size_t base_bytes;
    struct qk_io *trace;
    uint32_t bad;
};
enum variant { ALL, NONE, ONLY, ALL_BUT };

static void state(const struct crash *c, size_t end, enum variant v, size_t chosen)
{
    struct qk_io *io = NULL;
    size_t stable = trace_stable_before(c->trace, end);
    CHECK_OK(io_mem_open(c->base, c->base_bytes, 0, &io, NULL));
    for (size_t seq = 0; seq < end; seq++) {
        bool there = v == ALL || (v == ONLY && seq == chosen) || (v == ALL_BUT && seq != chosen);
        if (seq < stable || there)
            CHECK_OK(trace_replay(trace_get(c->trace, seq), io, NULL));
    }
    judge(io, c->bad);
    io_close(io, NULL);
}

static void all_states(const struct crash *c)
{
    CHECK(trace_count(c->trace) > 4);
    for (size_t end = 0; end <= trace_count(c->trace); end++) {
        state(c, end, ALL, 0);
        state(c, end, NONE, 0);
        for (size_t seq = trace_stable_before(c->trace, end); seq < end; seq++) {
            state(c, end, ONLY, seq);
            state(c, end, ALL_BUT, seq);
        }
    }
}

/* Where the file cannot grow the directory stays in its place. */
static void test_no_room(const struct crash *c)
{
    struct qk_io *io = NULL;
    struct qk_check_result r;
    uint64_t before, after;
    CHECK_OK(io_mem_open(c->base, c->base_bytes, 0, &io, NULL));
    io->can_grow = false;
    CHECK_OK(io_size(io, &before, NULL));
    CHECK_OK(repair(io, &r));
    CHECK_OK(io_size(io, &after, NULL));
    CHECK_EQ(after, before);
    CHECK_EQ(r.corruptions + r.leaks, 0);
    judge(io, c->bad);
    io_close(io, NULL);
}

static void test_drop(uint32_t cluster_bits, uint32_t order, uint32_t bad)
{
    struct qk_io *io = image_with_bitmaps(cluster_bits, order), *mem = NULL;
    struct crash c = {.bad = bad};
    struct qk_check_result r;
    write_be64(io, directory(io) + (uint64_t)bad * ENTRY_BYTES, 512 | UINT64_C(1) << 50);
    c.base = io_mem_data(io, &c.base_bytes);
    CHECK_OK(io_mem_open(c.base, c.base_bytes, 0, &mem, NULL));
    CHECK_OK(io_trace_open(mem, &c.trace, NULL));
    CHECK_OK(repair(c.trace, &r));
    CHECK_EQ(r.corruptions + r.leaks, 0);
    all_states(&c);
    test_no_room(&c);
    io_close(c.trace, NULL);
    io_close(io, NULL);
}

int main(void)
{
    for (uint32_t bad = 0; bad < ARRAY_SIZE(names); bad++) {
        test_drop(9, 4, bad);
        test_drop(12, 0, bad);
        test_drop(16, 6, bad);
    }
    return TEST_SUMMARY();
}
