/*
 * test_io_mem_trace.c - the memory store against a byte array, its bound and its threads; the log
 * of changes: what it holds, what a flush covers, and that replaying any prefix rebuilds the
 * content of that moment.
 */
#include "io/trace.h"
#include "io_test.h"

#include <pthread.h>

static void test_mem_model(void)
{
    struct qk_io *io = NULL;
    CHECK_OK(io_mem_open(NULL, 0, 0, &io, NULL));
    model_run(io, 2000, 3);
    CHECK_OK(io_close(io, NULL));
}

static void test_mem_bound(void)
{
    struct qk_io *io = NULL;
    size_t len = 0;
    CHECK_OK(io_mem_open("hello", 5, 10, &io, NULL));
    CHECK_ERR(io_write(io, 6, "12345", 5, 0, NULL), -ENOSPC);
    CHECK_ERR(io_zero(io, 6, 5, 0, NULL), -ENOSPC);
    CHECK_ERR(io_resize(io, 11, QK_PREALLOC_OFF, NULL), -ENOSPC);
    CHECK_ERR(io_write(io, UINT64_MAX, "12", 2, 0, NULL), -EFBIG);
    CHECK_ERR(io_write(io, UINT64_MAX - 2, "12", 2, 0, NULL), -ENOSPC);
    CHECK_OK(io_write(io, 7, "xyz", 3, 0, NULL));
    const uint8_t *data = io_mem_data(io, &len);
    CHECK_EQ(len, 10);
    CHECK_MEM(data, "hello\0\0xyz", 10);
    struct qk_io *too_small = NULL;
    CHECK_ERR(io_mem_open("hello", 5, 4, &too_small, NULL), -ENOSPC);
    CHECK_OK(io_close(io, NULL));
}

/* Space that was cut off and comes back is zero. */
static void test_mem_regrow(void)
{
    struct qk_io *io = NULL;
    char back[6];
    CHECK_OK(io_mem_open("hello", 5, 0, &io, NULL));
    CHECK_OK(io_resize(io, 2, QK_PREALLOC_OFF, NULL));
    CHECK_OK(io_write(io, 5, "!", 1, 0, NULL));
    CHECK_OK(io_read(io, 0, back, 6, NULL));
    CHECK_MEM(back, "he\0\0\0!", 6);
    CHECK_OK(io_close(io, NULL));
}

static void *grow_store(void *arg)
{
    for (uint64_t i = 0; i < 300; i++) {
        uint64_t mark = i + 1, back = 0;
        CHECK_OK(io_write(arg, i * 800, &mark, sizeof(mark), 0, NULL));
        CHECK_OK(io_read(arg, i * 800, &back, sizeof(back), NULL));
        CHECK_EQ(back, mark);
    }
    return NULL;
}

static void run_threads(struct qk_io *io)
{
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, grow_store, io);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
}

/* ---- trace ---- */

static struct qk_io *open_trace(struct qk_io **mem)
{
    struct qk_io *io = NULL;
    CHECK_OK(io_mem_open(NULL, 0, 0, mem, NULL));
    CHECK_OK(io_trace_open(*mem, &io, NULL));
    return io;
}

static void test_entries(void)
{
    static const struct trace_entry expected[] = {
        {.kind = TRACE_WRITE, .off = 3, .len = 4},
        {.kind = TRACE_FLUSH, .covers = 1},
        {.kind = TRACE_ZERO, .off = 1, .len = 3},
        {.kind = TRACE_DISCARD, .off = 4, .len = 1},
        {.kind = TRACE_RESIZE, .len = 20},
        {.kind = TRACE_WRITE, .off = 0, .len = 1, .fua = true},
    };
    struct qk_io *mem, *io = open_trace(&mem);
    CHECK_OK(io_write(io, 3, "abcd", 4, 0, NULL));
    CHECK_OK(io_flush(io, NULL));
    CHECK_OK(io_zero(io, 1, 3, 0, NULL));
    CHECK_OK(io_discard(io, 4, 1, NULL));
    CHECK_OK(io_resize(io, 20, QK_PREALLOC_OFF, NULL));
    CHECK_OK(io_write(io, 0, "x", 1, QK_WRITE_FUA, NULL));
    CHECK_ERR(io_write(io, UINT64_MAX, "xy", 2, 0, NULL), -EFBIG);
    CHECK_EQ(trace_count(io), ARRAY_SIZE(expected));
    for (size_t i = 0; i < ARRAY_SIZE(expected); i++) {
        const struct trace_entry *e = trace_get(io, i), *x = &expected[i];
        CHECK(e->kind == x->kind && e->off == x->off && e->len == x->len && e->fua == x->fua);
        CHECK(e->seq == i && e->covers == x->covers);
    }
    CHECK_MEM(trace_get(io, 0)->data, "abcd", 4);
    CHECK(trace_get(io, ARRAY_SIZE(expected)) == NULL);
    CHECK_EQ(trace_stable_before(io, 1), 0);
    CHECK_EQ(trace_stable_before(io, 2), 1);
    CHECK_EQ(trace_stable_before(io, 6), 1);
    CHECK_OK(io_close(io, NULL));
}

static void check_same(struct qk_io *a, const uint8_t *bytes, uint64_t len)
{
    size_t have = 0;
    const uint8_t *data = io_mem_data(a, &have);
    CHECK_EQ(have, len);
    if (have == len && len)
        CHECK_MEM(data, bytes, len);
}

/* Random changes; after each a copy of the store, then every prefix replayed against the copies. */
static void test_replay(void)
{
    enum { STEPS = 200, MAX = 5000 };
    static uint8_t copies[STEPS][MAX];
    static size_t sizes[STEPS];
    struct qk_io *mem, *again = NULL, *io = open_trace(&mem);
    uint64_t random = 11;
    for (size_t i = 0; i < STEPS; i++) {
        uint64_t off = test_random(&random) % 4000, len = test_random(&random) % 900 + 1;
        uint8_t buf[1000];
        memset(buf, (int)i, sizeof(buf));
        const unsigned what = test_random(&random) % 6;
        int ret = what < 3    ? io_write(io, off, buf, len, 0, NULL)
                  : what == 3 ? io_zero(io, off, len, 0, NULL)
                  : what == 4 ? io_discard(io, off, len, NULL)
                              : io_resize(io, off + len, QK_PREALLOC_OFF, NULL);
        CHECK_OK(ret);
        const uint8_t *data = io_mem_data(mem, &sizes[i]);
        memcpy(copies[i], data, sizes[i]);
    }
    CHECK_OK(io_mem_open(NULL, 0, 0, &again, NULL));
    for (size_t i = 0; i < STEPS; i++) {
        CHECK_OK(trace_replay(trace_get(io, i), again, NULL));
        check_same(again, copies[i], sizes[i]);
    }
    CHECK_OK(io_close(again, NULL));
    CHECK_OK(io_close(io, NULL));
}

static void test_replay_part(void)
{
    struct qk_io *mem, *again = NULL, *io = open_trace(&mem);
    CHECK_OK(io_write(io, 2, "abcdef", 6, 0, NULL));
    CHECK_OK(io_resize(io, 9, QK_PREALLOC_OFF, NULL));
    CHECK_OK(io_mem_open("..........", 10, 0, &again, NULL));
    CHECK_OK(trace_replay_part(trace_get(io, 0), 1, 3, again, NULL));
    check_same(again, (const uint8_t *)"...bcd....", 10);
    CHECK_ERR(trace_replay_part(trace_get(io, 0), 4, 3, again, NULL), -EINVAL);
    CHECK_ERR(trace_replay_part(trace_get(io, 1), 0, 1, again, NULL), -EINVAL);
    CHECK_OK(io_close(again, NULL));
    CHECK_OK(io_close(io, NULL));
}

/* Parallel writers: the log's order is the order of the store. */
static void test_trace_threads(void)
{
    struct qk_io *mem, *again = NULL, *io = open_trace(&mem);
    run_threads(io);
    CHECK_OK(io_mem_open(NULL, 0, 0, &again, NULL));
    CHECK_EQ(trace_count(io), 1200);
    for (size_t i = 0; i < trace_count(io); i++)
        CHECK_OK(trace_replay(trace_get(io, i), again, NULL));
    size_t len = 0;
    const uint8_t *data = io_mem_data(mem, &len);
    check_same(again, data, len);
    CHECK_OK(io_close(again, NULL));
    CHECK_OK(io_close(io, NULL));
}

int main(void)
{
    struct qk_io *io = NULL;
    test_mem_model();
    test_mem_bound();
    test_mem_regrow();
    CHECK_OK(io_mem_open(NULL, 0, 0, &io, NULL));
    run_threads(io);
    CHECK_OK(io_close(io, NULL));
    test_entries();
    test_replay();
    test_replay_part();
    test_trace_threads();
    return TEST_SUMMARY();
}
