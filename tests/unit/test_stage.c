/*
 * test_stage.c - runs and the stage against plain arrays: what is read back after each write, and
 * what the file has after each epoch that is carried out. With and without a file for what is too
 * large for memory.
 */
#include "base/checked.h"
#include "base/runs.h"
#include "io/spill.h"
#include "io/stage.h"
#include "test.h"

#include <sys/stat.h>
#include <unistd.h>

static uint64_t seed;

static uint64_t below(uint64_t n)
{
    seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (seed >> 33) % n;
}

/* ---- runs ---- */

#define NUMBERS 4096u

static uint64_t plain[NUMBERS]; /* value + 1; 0: not there */

static void runs_equal(const struct runs *runs)
{
    uint64_t at = 0;
    struct run_at place;
    for (const struct run *r = runs_from(runs, 0, &place); r; r = runs_next(runs, &place)) {
        REQUIRE(r->count && r->first >= at && run_end(r) <= NUMBERS);
        for (; at < r->first; at++)
            CHECK(!plain[at] && !runs_find(runs, at));
        for (; at < run_end(r); at++)
            CHECK(plain[at] == r->value + (at - r->first) * r->step + 1 &&
                  runs_find(runs, at) == r);
    }
    for (; at < NUMBERS; at++)
        CHECK(!plain[at]);
}

static void runs_change(struct runs *runs)
{
    uint64_t first = below(NUMBERS), n = 0, most = 1 + below(20);
    uint64_t value = below(3), step = below(2) * 512;
    bool there = plain[first];
    while (n < most && first + n < NUMBERS && !plain[first + n] == !there)
        n++;
    if (!there) {
        CHECK_OK(runs_put(runs, (struct run){first, (uint32_t)n, (uint32_t)step, value}));
        for (uint64_t i = 0; i < n; i++)
            plain[first + i] = value + i * step + 1;
        return;
    }
    n = min_u64(n, run_end(runs_find(runs, first)) - first);
    CHECK_OK(runs_cut(runs, first, (uint32_t)n));
    memset(&plain[first], 0, n * sizeof(*plain));
}

static void test_runs(void)
{
    struct runs runs = {0};
    struct run_at at;
    CHECK(!runs_from(&runs, 0, &at) && !runs_find(&runs, 7));
    for (unsigned i = 0; i < 20000; i++) {
        runs_change(&runs);
        if (i % 500 == 0)
            runs_equal(&runs);
    }
    runs_equal(&runs);
    runs_free(&runs);
    /* What follows on is one run, however many pieces it came in. */
    for (uint64_t i = 0; i < 1000; i++)
        CHECK_OK(runs_put(&runs, (struct run){i * 10, 10, 512, 100 + i * 5120}));
    const struct run *run = runs_from(&runs, 0, &at);
    CHECK(run && run->count == 10000 && !runs_next(&runs, &at));
    runs_free(&runs);
}

/* ---- the stage ---- */

#define DISK ((size_t)3 << 20)

static uint8_t *disk_of(struct qk_io *io)
{
    uint8_t *bytes = calloc(1, DISK);
    CHECK_OK(io_read(io, 0, bytes, DISK, NULL));
    return bytes;
}

/* Whole sectors of one word, bytes, and changes of a few. */
static void write_one(struct qk_io *stage, uint8_t *want)
{
    static uint8_t buf[200000];
    static const size_t most[] = {8, 700, 5000, sizeof(buf)};
    uint64_t off = below(DISK - sizeof(buf)), len = 1 + below(most[below(4)]);
    uint64_t word = below(4) ? UINT64_C(0x0100010001000100) : 0;
    if (below(2)) {
        off -= off % STAGE_SECTOR;
        len += STAGE_SECTOR - len % STAGE_SECTOR;
        len = min_u64(len, sizeof(buf) - sizeof(buf) % STAGE_SECTOR);
    }
    bool random = below(2);
    for (size_t i = 0; i < len; i++)
        buf[i] = random ? (uint8_t)below(256) : (uint8_t)(word >> (off + i) % 8 * 8);
    memcpy(want + off, buf, len);
    CHECK_OK(io_write(stage, off, buf, len, 0, NULL));
}

struct carried {
    struct qk_io *target;
    unsigned epoch;
    uint64_t end; /* of the run before */
};

static int carry(void *opaque, const struct stage_run *run, struct qk_error *err)
{
    struct carried *c = opaque;
    if (run->epoch != c->epoch)
        c->end = 0;
    CHECK(run->epoch >= c->epoch && (!run->bytes || run->off >= c->end));
    CHECK(run->off % STAGE_SECTOR == 0 || !run->bytes);
    c->epoch = run->epoch;
    c->end = run->bytes ? run->off + run->len : 0;
    return run->bytes ? io_write(c->target, run->off, run->bytes, run->len, 0, err) : 0;
}

static void test_stage(const char *beside, unsigned writes)
{
    struct qk_io *inner, *stage, *copy;
    uint8_t *want = malloc(DISK), *now;
    for (size_t i = 0; i < DISK; i++)
        want[i] = (uint8_t)below(256);
    CHECK_OK(io_mem_open(want, DISK, 0, &inner, NULL));
    CHECK_OK(io_mem_open(want, DISK, 0, &copy, NULL));
    CHECK_OK(io_stage_open(inner, beside, &stage, NULL));
    CHECK(stage_empty(stage));
    uint8_t *before = disk_of(inner);
    for (unsigned i = 0; i < writes; i++) {
        write_one(stage, want);
        if (below(writes) < 5)
            CHECK_OK(io_flush(stage, NULL));
        if (i % (writes / 10) == 0) {
            now = disk_of(stage);
            CHECK(!memcmp(now, want, DISK));
            free(now);
        }
    }
    now = disk_of(inner);
    CHECK(!memcmp(now, before, DISK) && !stage_empty(stage));
    free(now);
    struct carried c = {copy, 0, 0};
    CHECK_OK(stage_each(stage, carry, &c, NULL));
    CHECK_OK(stage_commit(stage, inner, NULL));
    for (unsigned i = 0; i < 2; i++) {
        now = disk_of(i ? copy : inner);
        CHECK(!memcmp(now, want, DISK));
        free(now);
    }
    free(want);
    free(before);
    CHECK_OK(io_close(stage, NULL));
    CHECK_OK(io_close(copy, NULL));
    CHECK_OK(io_close(inner, NULL));
}

/* Equal sectors take nothing, and the rest no more memory than is said. */
static void test_memory(const char *beside)
{
    static uint8_t buf[1 << 20];
    struct qk_io *inner, *stage;
    CHECK_OK(io_mem_open(NULL, 4096, 0, &inner, NULL));
    CHECK_OK(io_stage_open(inner, beside, &stage, NULL));
    for (size_t i = 0; i < sizeof(buf); i++)
        buf[i] = i % 2;
    for (uint64_t i = 0; i < 4096; i++)
        CHECK_OK(io_write(stage, i << 20, buf, sizeof(buf), 0, NULL));
    CHECK_EQ(stage_sectors(stage), (UINT64_C(4) << 30) / STAGE_SECTOR);
    for (size_t i = 0; i < sizeof(buf); i++)
        buf[i] = (uint8_t)(i >> 9 ^ i);
    for (uint64_t i = 0; i < 40; i++) {
        buf[5] = (uint8_t)i;
        CHECK_OK(io_write(stage, i << 24, buf, sizeof(buf), 0, NULL));
    }
    for (uint64_t i = 0; i < 40; i++) {
        static uint8_t back[sizeof(buf)];
        buf[5] = (uint8_t)i;
        CHECK_OK(io_read(stage, i << 24, back, sizeof(back), NULL));
        CHECK_MEM(back, buf, sizeof(buf));
    }
    CHECK_OK(io_close(stage, NULL));
    CHECK_OK(io_close(inner, NULL));
}

/* The last blocks are in memory, the others in the file; without one all of them. */
static void test_spill(const char *beside, bool file)
{
    struct spill s;
    static uint8_t buf[100003], back[sizeof(buf)];
    uint64_t pos;
    CHECK_OK(spill_init(&s, beside, NULL));
    for (unsigned i = 0; i < 300; i++) {
        memset(buf, (int)i, sizeof(buf));
        CHECK_OK(spill_append(&s, buf, sizeof(buf), &pos, NULL));
        CHECK_EQ(pos, i * sizeof(buf));
    }
    CHECK_EQ(s.fd >= 0, file);
    CHECK_EQ(s.in_vain, !file);
    uint64_t kept = (s.blocks - s.first) * (s.len / s.blocks);
    CHECK(file ? kept <= SPILL_MEMORY : s.first == 0);
    for (unsigned i = 0; i < 300; i += 7) {
        memset(buf, (int)(i + 1), sizeof(buf));
        CHECK_OK(spill_write(&s, i * sizeof(buf), buf, sizeof(buf), NULL));
    }
    for (unsigned i = 0; i < 300; i++) {
        memset(buf, (int)(i % 7 ? i : i + 1), sizeof(buf));
        CHECK_OK(spill_read(&s, i * sizeof(buf), back, sizeof(buf), NULL));
        CHECK_MEM(back, buf, sizeof(buf));
    }
    spill_free(&s);
}

int main(void)
{
    char folder[] = "/tmp/qcowkit-stage-XXXXXX", beside[sizeof(folder) + 8];
    CHECK(mkdtemp(folder) != NULL);
    snprintf(beside, sizeof(beside), "%s/undo", folder);
    test_runs();
    for (unsigned i = 0; i < 20; i++)
        test_stage(i % 2 ? beside : NULL, 10 + i * 40);
    test_memory(beside);
    test_spill(beside, true);
    test_spill(NULL, false);
    test_spill("/nowhere/at/all", false);
    /* Nothing of it has a name, or is left. */
    CHECK_OK(rmdir(folder));
    return TEST_SUMMARY();
}
