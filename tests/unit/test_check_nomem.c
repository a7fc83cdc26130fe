/*
 * test_check_nomem.c - the Nth allocation of memory of a check or a repair fails, for every N until
 * it passes: the failure is reported, no guest data is lost, and a repair afterwards ends clean. A
 * plan changes no byte, and a repair that makes all choices can be taken back, wherever it stopped.
 */
#include "check_test.h"
#include "io/undo.h"
#include "nomem.h"

static void damage(struct qk_io *io)
{
    write_be64(io, l2_place(io, 30), read_be64(io, l2_place(io, 4)));
    write_be64(io, l2_place(io, 6), read_be64(io, l2_place(io, 6)) | 4);
    set_refcount(io, host_cluster(io, 9), 3);
    set_refcount(io, 0, 0);
}

/* True when the run got through. A check that says nothing is wrong must be right. */
static bool one_run(const uint8_t *base, size_t bytes, unsigned fix, long nth)
{
    struct qk_io *mem = NULL;
    struct findings f;
    struct qk_check_result said, is;
    CHECK_OK(io_mem_open(base, bytes, 0, &mem, NULL));
    struct image *img = open_for_check(mem, fix != 0);
    countdown = nth;
    int ret = run_check(img, fix, &f, &said);
    bool failed = countdown < 0;
    countdown = -1;
    image_abandon(img);
    CHECK(ret == 0 || ret == -ENOMEM);
    CHECK_OK(check_store(mem, 0, &f, &is));
    if (ret == 0 && !said.check_errors)
        CHECK_EQ(is.corruptions + is.leaks, said.corruptions + said.leaks);
    CHECK(data_intact(mem) || is.corruptions);
    CHECK_OK(check_store(mem, QK_FIX_LEAKS | QK_FIX_ERRORS, &f, &is));
    CHECK_EQ(is.corruptions, 1); /* the reserved bit of entry 6 */
    CHECK_EQ(is.leaks + is.check_errors, 0);
    io_close(mem, NULL);
    return !failed;
}

static void test_allocations(unsigned fix)
{
    struct qk_io *io = make_image(12, 4);
    size_t bytes;
    damage(io);
    const uint8_t *base = io_mem_data(io, &bytes);
    long nth = 0;
    while (!one_run(base, bytes, fix, nth))
        nth++;
    CHECK(nth > 8);
    io_close(io, NULL);
}

static void count_step(void *opaque, const struct qk_plan_step *step)
{
    unsigned *steps = opaque;
    *steps += step->bytes > 0;
}

/* True when the run got through. */
static bool one_undone(const uint8_t *base, size_t bytes, bool plan_only, long nth)
{
    struct qk_check_options opts = QK_CHECK_OPTIONS_INIT;
    struct qk_check_result result = QK_CHECK_RESULT_INIT;
    struct qk_io *mem = NULL, *log = NULL;
    struct undo_result undone;
    unsigned steps = 0;
    size_t len;
    CHECK_OK(io_mem_open(base, bytes, 0, &mem, NULL));
    CHECK_OK(io_mem_open(NULL, 0, 0, &log, NULL));
    struct image *img = open_for_check(mem, !plan_only);
    opts.fix = QK_FIX_LEAKS | QK_FIX_ERRORS;
    opts.allow = ~0u;
    opts.threads = 2;
    opts.plan_only = plan_only;
    opts.on_step = count_step;
    opts.opaque = &steps;
    countdown = nth;
    int ret = check_image_saving(img, &opts, log, &result, NULL);
    bool failed = countdown < 0;
    countdown = -1;
    image_abandon(img);
    CHECK(ret == 0 || ret == -ENOMEM);
    CHECK(failed || (ret == 0 && steps > 0));
    if (!plan_only && io_mem_data(log, &len) && len)
        CHECK_OK(undo_restore(log, mem, &undone, NULL));
    const uint8_t *now = io_mem_data(mem, &len);
    CHECK(len == bytes && !memcmp(now, base, bytes));
    io_close(mem, NULL);
    io_close(log, NULL);
    return !failed;
}

/* way_back: all choices are to go back to a snapshot. */
static void test_undone(bool plan_only, bool way_back)
{
    struct qk_io *io = way_back ? make_saved_image(12, 4) : make_image(12, 4);
    size_t bytes;
    damage(io);
    if (way_back)
        write_be64(io, 40, 0);
    const uint8_t *base = io_mem_data(io, &bytes);
    long nth = 0;
    while (!one_undone(base, bytes, plan_only, nth))
        nth++;
    printf("%s%s: %ld allocations\n", plan_only ? "plan" : "repair and undo",
           way_back ? ", going back" : "", nth);
    CHECK(nth > 8);
    io_close(io, NULL);
}

int main(void)
{
    for (unsigned i = 0; i < 4; i++)
        test_undone(i & 1, i & 2);
    test_allocations(0);
    test_allocations(QK_FIX_LEAKS | QK_FIX_ERRORS);
    return TEST_SUMMARY();
}
