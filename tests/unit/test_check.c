/*
 * test_check.c - the check where images made by other programs cannot lead it: media that cannot be
 * read in one place, files that cannot grow, cancelling, read-only use, and counting in cells that
 * widen under several threads.
 */
#include "check/refmap.h"
#include "check_test.h"

#include <pthread.h>

/* ---- a store with a bad spot ---- */

struct bad_io {
    struct qk_io io;
    struct qk_io *inner;
    uint64_t bad_off, bad_len; /* reads that touch it fail */
    unsigned writes;
};

static int bad_preadv(struct qk_io *io, uint64_t off, const struct iovec *iov, int n,
                      struct qk_error *err)
{
    struct bad_io *b = (struct bad_io *)io;
    if (ranges_overlap(off, iov_total(iov, n), b->bad_off, b->bad_len))
        return qk_fail(err, -EIO, "bad spot");
    return io_readv(b->inner, off, iov, n, err);
}

static int bad_pwritev(struct qk_io *io, uint64_t off, const struct iovec *iov, int n,
                       unsigned flags, struct qk_error *err)
{
    struct bad_io *b = (struct bad_io *)io;
    b->writes++;
    return io_writev(b->inner, off, iov, n, flags, err);
}

static int bad_flush(struct qk_io *io, struct qk_error *err)
{
    return io_flush(((struct bad_io *)io)->inner, err);
}

static int bad_size(struct qk_io *io, uint64_t *size, struct qk_error *err)
{
    return io_size(((struct bad_io *)io)->inner, size, err);
}

static const struct qk_io_ops bad_ops = {
    .name = "bad",
    .preadv = bad_preadv,
    .pwritev = bad_pwritev,
    .flush = bad_flush,
    .size = bad_size,
};

static struct bad_io bad_over(struct qk_io *inner)
{
    static char name[] = "bad";
    return (struct bad_io){.io = {.ops = &bad_ops,
                                  .name = name,
                                  .alignment = 1,
                                  .writable = true,
                                  .can_grow = true,
                                  .zero_init = true},
                           .inner = inner};
}

/* The spot goes bad once the image is open: opening needs the header and the L1. */
static void check_bad_spot(struct qk_io *io, uint64_t off, unsigned number)
{
    struct bad_io bad = bad_over(io);
    struct findings f;
    struct qk_check_result r;
    struct image *img = open_for_check(&bad.io, false);
    REQUIRE(img);
    bad.bad_off = off;
    bad.bad_len = 1;
    CHECK_OK(run_check(img, 0, &f, &r));
    CHECK_EQ(f.by_number[number], 1);
    CHECK(r.check_errors >= 1);
    CHECK_EQ(bad.writes, 0);
    image_abandon(img);
}

static void test_unreadable(void)
{
    struct qk_io *io = make_image(12, 4);
    struct image *img = open_for_check(io, false);
    uint64_t l1 = image_header(img)->l1_off, reftable = image_header(img)->reftable_off;
    image_abandon(img);
    check_bad_spot(io, l1, 25);
    check_bad_spot(io, read_be64(io, l1) & L1_OFFSET_MASK, 40);
    check_bad_spot(io, reftable, 14);
    check_bad_spot(io, read_be64(io, reftable), 5);
    io_close(io, NULL);
}

/* An L2 table that cannot be read: its clusters look leaked, and are kept. */
static void test_unreadable_is_not_freed(void)
{
    struct qk_io *io = make_image(12, 4);
    struct bad_io bad = bad_over(io);
    struct findings f;
    struct qk_check_result r;
    struct image *img = open_for_check(&bad.io, true);
    REQUIRE(img);
    bad.bad_off = l2_place(io, 0);
    bad.bad_len = 1;
    CHECK_OK(run_check(img, QK_FIX_LEAKS | QK_FIX_ERRORS, &f, &r));
    CHECK_EQ(r.leaks, WRITTEN_CLUSTERS);
    CHECK_EQ(r.leaks_fixed, 0);
    image_abandon(img);
    CHECK_OK(check_store(io, 0, &f, &r));
    CHECK_EQ(r.leaks + r.corruptions, 0);
    CHECK(data_intact(io));
    io_close(io, NULL);
}

/* Bitmaps: a header extension, a directory with one bitmap, its table. */
static void add_bitmap(struct qk_io *io, uint64_t *table)
{
    uint64_t end;
    uint8_t ext[40] = {0}, dir[32] = {0};
    CHECK_OK(io_size(io, &end, NULL));
    *table = end + 4096;
    store_be32(ext, HEXT_BITMAPS);
    store_be32(ext + 4, 24);
    store_be32(ext + 8, 1);
    store_be64(ext + 16, sizeof(dir));
    store_be64(ext + 24, end);
    store_be64(dir, *table);
    store_be32(dir + 8, 1);
    dir[16] = 1;
    dir[17] = 16;
    store_be16(dir + 18, 1);
    dir[24] = 'b';
    CHECK_OK(io_write(io, 112, ext, sizeof(ext), 0, NULL));
    CHECK_OK(io_write(io, end, dir, sizeof(dir), 0, NULL));
    write_be64(io, *table, 0);
    write_be64(io, *table + 4088, 0);
    write_be64(io, 88, AUTOCLEAR_BITMAPS);
    set_refcount(io, end >> 12, 1);
    set_refcount(io, *table >> 12, 1);
}

static void test_unreadable_bitmap(void)
{
    struct qk_io *io = make_image(12, 4);
    struct findings f;
    struct qk_check_result r;
    uint64_t table;
    add_bitmap(io, &table);
    CHECK_OK(check_store(io, 0, &f, &r));
    CHECK_EQ(r.leaks + r.corruptions, 0);
    check_bad_spot(io, table, 63);
    io_close(io, NULL);
}

/* ---- refcount blocks that cannot be read are replaced ---- */

static void test_bad_block_replaced(void)
{
    struct qk_io *io = make_image(12, 4);
    struct bad_io bad = bad_over(io);
    struct findings f;
    struct qk_check_result r;
    struct image *img = open_for_check(&bad.io, true);
    REQUIRE(img);
    bad.bad_off = read_be64(io, image_header(img)->reftable_off);
    bad.bad_len = 4096;
    CHECK_OK(run_check(img, QK_FIX_LEAKS | QK_FIX_ERRORS, &f, &r));
    CHECK_STR(f.last_message, "Rebuilding refcount structure");
    image_abandon(img);
    CHECK_OK(check_store(&bad.io, 0, &f, &r));
    CHECK_EQ(r.leaks + r.corruptions + r.check_errors, 0);
    CHECK(data_intact(io));
    io_close(io, NULL);
}

/* ---- findings in runs ---- */

struct lines {
    char text[60000];
    size_t len;
    unsigned runs;
    bool take; /* what on_run returns */
};

static void add_line(struct lines *l, const struct qk_problem *p)
{
    l->len += (size_t)snprintf(
        l->text + l->len, sizeof(l->text) - l->len,
        "%s at %" PRIx64 " guest %" PRIx64 "+%" PRIx64 " has %" PRIx64 " not %" PRIx64 "\n",
        p->text, p->file_off, p->guest_off, p->guest_bytes, p->found, p->expected);
}

static void one_line(void *opaque, const struct qk_problem *p)
{
    add_line(opaque, p);
}

static void run_line(char line[200], const struct qk_problem *p, const struct qk_problem_run *run,
                     uint64_t i)
{
    unsigned from = 0, n = 0;
    for (unsigned k = 0; k < run->number_count; k++) {
        const struct qk_run_number *number = &run->numbers[k];
        n +=
            (unsigned)snprintf(line + n, 200 - n, "%.*s", (int)(number->at - from), p->text + from);
        n += (unsigned)snprintf(line + n, 200 - n, number->base == 16 ? "%" PRIx64 : "%" PRIu64,
                                number->value + i * number->step);
        from = number->at + number->width;
    }
    snprintf(line + n, 200 - n, "%s", p->text + from);
}

static bool run_of_lines(void *opaque, const struct qk_problem *p, const struct qk_problem_run *run)
{
    struct lines *l = opaque;
    l->runs++;
    CHECK(run->count >= 16);
    for (uint64_t i = 0; l->take && i < run->count; i++) {
        struct qk_problem one = *p;
        char line[200];
        run_line(line, p, run, i);
        one.text = line;
        if (p->file_off != QK_OFFSET_NONE)
            one.file_off += (run->file_bit + i * run->file_bits_step) / 8;
        one.guest_off += i * run->guest_step;
        one.found += i * run->found_step;
        add_line(l, &one);
    }
    return l->take;
}

/* Told in runs, one by one as the caller wants it, or to one who knows of no runs. */
static void tell(struct qk_io *io, unsigned fix, struct lines *l, bool runs)
{
    struct qk_check_options opts = QK_CHECK_OPTIONS_INIT;
    struct qk_check_result r;
    struct image *img = open_for_check(io, false);
    opts.fix = fix;
    opts.plan_only = fix != 0;
    opts.on_problem = one_line;
    opts.on_run = runs ? run_of_lines : NULL;
    opts.opaque = l;
    l->len = l->runs = 0;
    CHECK_OK(check_image(img, &opts, &r, NULL));
    image_abandon(img);
}

static void test_runs(uint32_t order)
{
    struct qk_io *io = make_image(12, order);
    static struct lines plain, taken, refused;
    uint64_t seed = 77 + order, most = order == 0 ? 1 : order == 1 ? 3 : 5;
    unsigned runs = 0;
    taken.take = true;
    for (unsigned round = 0; round < 8; round++) {
        for (uint64_t cluster = 0; cluster < 64;) {
            uint64_t value = (seed = seed * 6364136223846793005u + 1) >> 40, n = 1 + value % 21;
            for (; n && cluster < 64; n--)
                set_refcount(io, cluster++, value / 32 % (most + 1));
        }
        for (unsigned fix = 0; fix < 2; fix++) {
            tell(io, fix ? QK_FIX_LEAKS | QK_FIX_ERRORS : 0, &plain, false);
            tell(io, fix ? QK_FIX_LEAKS | QK_FIX_ERRORS : 0, &taken, true);
            tell(io, fix ? QK_FIX_LEAKS | QK_FIX_ERRORS : 0, &refused, true);
            CHECK(plain.len > 10 && plain.len < sizeof(plain.text));
            runs += taken.runs;
            CHECK_STR(taken.text, plain.text);
            CHECK_STR(refused.text, plain.text);
        }
    }
    CHECK(runs > 8);
    io_close(io, NULL);
}

/* ---- files that cannot grow ---- */

static void test_fixed_size(uint32_t order, bool room)
{
    struct qk_io *io = make_image(9, order);
    struct findings f;
    struct qk_check_result r;
    uint64_t before, after;
    CHECK_OK(io_size(io, &before, NULL));
    if (room) {
        before += 64 << 9;
        CHECK_OK(io_resize(io, before, QK_PREALLOC_OFF, NULL));
    }
    io->can_grow = false;
    set_refcount(io, 0, 0);
    CHECK_OK(check_store(io, QK_FIX_LEAKS | QK_FIX_ERRORS, &f, &r));
    CHECK_EQ(r.corruptions_fixed, 1);
    CHECK_EQ(r.corruptions, 0);
    CHECK_STR(f.last_message, room ? "Rebuilding refcount structure"
                                   : "No room for a new refcount structure: repairing the old one");
    CHECK_OK(check_store(io, 0, &f, &r));
    CHECK_EQ(r.corruptions + r.leaks + r.check_errors, 0);
    CHECK_OK(io_size(io, &after, NULL));
    CHECK_EQ(after, before);
    CHECK(data_intact(io));
    io_close(io, NULL);
}

/* ---- use ---- */

static int cancel_at_once(void *opaque, uint64_t done, uint64_t total)
{
    *(uint64_t *)opaque += done <= total;
    return 1;
}

static void test_cancel(void)
{
    struct qk_io *io = make_image(12, 4);
    struct image *img = open_for_check(io, false);
    struct qk_check_options opts = QK_CHECK_OPTIONS_INIT;
    struct qk_check_result r;
    uint64_t calls = 0;
    opts.progress = (struct qk_progress){cancel_at_once, &calls};
    CHECK_ERR(check_image(img, &opts, &r, NULL), -ECANCELED);
    CHECK(calls >= 1);
    image_abandon(img);
    io_close(io, NULL);
}

static void test_read_only(void)
{
    struct qk_io *io = make_image(12, 4);
    struct findings f;
    struct qk_check_result r;
    io->writable = false;
    struct image *img = open_for_check(io, false);
    CHECK_OK(run_check(img, 0, &f, &r));
    CHECK_EQ(r.allocated_clusters, WRITTEN_CLUSTERS);
    CHECK_EQ(r.total_clusters, 64);
    CHECK_ERR(run_check(img, QK_FIX_LEAKS, &f, &r), -EROFS);
    CHECK_OK(check_image(img, NULL, &r, NULL));
    CHECK_EQ(r.corruptions + r.leaks + r.check_errors, 0);
    image_abandon(img);
    io_close(io, NULL);
}

static void test_bits_cleared(void)
{
    struct qk_io *io = make_image(12, 4);
    struct findings f;
    struct qk_check_result r;
    write_be64(io, 72, INCOMPAT_DIRTY | INCOMPAT_CORRUPT);
    CHECK_OK(check_store(io, 0, &f, &r));
    CHECK_EQ(read_be64(io, 72), INCOMPAT_DIRTY | INCOMPAT_CORRUPT);
    CHECK_OK(check_store(io, QK_FIX_LEAKS | QK_FIX_ERRORS, &f, &r));
    CHECK_EQ(read_be64(io, 72), 0);
    write_be64(io, 72, INCOMPAT_CORRUPT);
    write_be64(io, l2_place(io, 3), read_be64(io, l2_place(io, 3)) | 2);
    CHECK_OK(check_store(io, QK_FIX_LEAKS | QK_FIX_ERRORS, &f, &r));
    CHECK_EQ(r.corruptions, 1);
    CHECK_EQ(read_be64(io, 72), INCOMPAT_CORRUPT);
    io_close(io, NULL);
}

/* ---- the reference map ---- */

#define MAP_CLUSTERS 100000u

struct adder {
    struct refmap *map;
    unsigned seed;
    uint64_t counts[MAP_CLUSTERS];
};

static uint64_t pick(struct adder *a, uint64_t below)
{
    a->seed = a->seed * 1103515245u + 12345u;
    return (a->seed >> 8) % below;
}

static void *add_randomly(void *opaque)
{
    struct adder *a = opaque;
    static const uint64_t times[] = {1, 1, 1, 2, 3, 5, 70, 20000, UINT64_C(1) << 40};
    int ret = 0;
    for (unsigned i = 0; i < 3000; i++) {
        struct refmap_span span = {pick(a, MAP_CLUSTERS), 1 + pick(a, 200)};
        span.count = min_u64(span.count, MAP_CLUSTERS - span.first);
        uint64_t n = times[pick(a, i % 50 ? 5 : ARRAY_SIZE(times))];
        ret |= refmap_add(a->map, span, n, REF_COPIED);
        for (uint64_t c = span.first; c < span.first + span.count; c++)
            a->counts[c] += n;
    }
    CHECK_EQ(ret, 0);
    return NULL;
}

static void test_refmap_threads(void)
{
    struct refmap map;
    struct adder *adders = calloc(4, sizeof(*adders));
    pthread_t threads[4];
    CHECK_OK(refmap_init(&map, MAP_CLUSTERS, NULL));
    for (unsigned i = 0; i < 4; i++) {
        adders[i].map = &map;
        adders[i].seed = i + 1;
        CHECK_OK(pthread_create(&threads[i], NULL, add_randomly, &adders[i]));
    }
    for (unsigned i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    unsigned wrong = 0;
    for (uint64_t c = 0; c < MAP_CLUSTERS; c++) {
        uint64_t sum = 0;
        for (unsigned i = 0; i < 4; i++)
            sum += adders[i].counts[c];
        wrong += refmap_count(&map, c) != sum;
        wrong += refmap_marks(&map, c) != (sum ? REF_COPIED : 0);
    }
    CHECK_EQ(wrong, 0);
    refmap_free(&map);
    free(adders);
}

static void test_refmap_edges(void)
{
    struct refmap map;
    const struct refmap_span last = {3 * REFMAP_REGION + 6, 1}, wide = {REFMAP_REGION - 5, 10};
    CHECK_OK(refmap_init(&map, 3 * REFMAP_REGION + 7, NULL));
    CHECK_EQ(refmap_end(&map), 0);
    CHECK(refmap_next(&map, 0, UINT64_MAX) == UINT64_MAX);
    CHECK_OK(refmap_add(&map, last, 1, 0));
    CHECK_EQ(refmap_end(&map), last.first + 1);
    CHECK_EQ(refmap_next(&map, 0, UINT64_MAX), last.first);
    CHECK(refmap_next(&map, 0, last.first) == UINT64_MAX);
    CHECK_OK(refmap_add(&map, wide, 1, REF_PLAIN));
    CHECK_EQ(refmap_next(&map, 0, UINT64_MAX), wide.first);
    CHECK_EQ(refmap_count(&map, REFMAP_REGION), 1);
    CHECK_EQ(refmap_count(&map, wide.first + 10), 0);
    CHECK_OK(refmap_add(&map, last, UINT64_MAX, 0));
    CHECK_EQ(refmap_count(&map, last.first), UINT64_MAX >> REF_MARK_BITS);
    refmap_drop(&map, wide);
    CHECK_EQ(refmap_next(&map, 0, UINT64_MAX), last.first);
    CHECK_OK(refmap_grow(&map, 9 * REFMAP_REGION, NULL));
    CHECK_EQ(refmap_count(&map, 8 * REFMAP_REGION), 0);
    refmap_free(&map);
}

int main(void)
{
    test_unreadable();
    test_unreadable_is_not_freed();
    test_unreadable_bitmap();
    test_bad_block_replaced();
    for (uint32_t order = 0; order <= QCOW2_MAX_REFCOUNT_ORDER; order++) {
        test_fixed_size(order, true);
        test_fixed_size(order, false);
        test_runs(order);
    }
    test_cancel();
    test_read_only();
    test_bits_cleared();
    test_refmap_threads();
    test_refmap_edges();
    return TEST_SUMMARY();
}
