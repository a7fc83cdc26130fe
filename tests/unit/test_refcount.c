/*
 * test_refcount.c - refcounts of every width: each position of a small block and the edges of
 * large ones, neighbours untouched; used_bits and one_bits against get for every start and length;
 * steps of many refcounts against a model that changes one at a time.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/refcount.h"
#include "format/refcount_convert.h"
#include "test.h"

static uint64_t rng_state = UINT64_C(0x2545f4914f6cdd1d);

static uint64_t rng(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state;
}

static uint64_t max_of(unsigned order)
{
    return UINT64_MAX >> (64 - (1u << order));
}

/* The layout that the specification gives, written down once more bit by bit. */
static uint64_t spec_get(const uint8_t *block, unsigned bits, uint64_t index)
{
    uint64_t v = 0;
    if (bits < 8) {
        for (unsigned b = 0; b < bits; b++) {
            uint64_t at = index * bits + b;
            v |= (uint64_t)(block[at / 8] >> (at % 8) & 1) << b;
        }
        return v;
    }
    for (unsigned b = 0; b < bits / 8; b++)
        v = (bits == 8 ? 0 : v << 8) | block[index * (bits / 8) + b];
    return v;
}

/* Sets one refcount in a block of `fill` and looks at all of them. */
static void set_one(unsigned order, uint64_t index, uint64_t value, int fill)
{
    const struct refcount_ops *ops = refcount_ops(order);
    const unsigned bits = 1u << order;
    uint8_t block[512];
    bool others_kept = true;
    memset(block, fill, sizeof(block));
    ops->set(block, index, value);
    for (uint64_t i = 0; i < 512 * 8 / bits; i++) {
        uint64_t expected = i == index ? value : fill ? max_of(order) : 0;
        others_kept &= spec_get(block, bits, i) == expected && ops->get(block, i) == expected;
    }
    if (!CHECK(others_kept))
        printf("    order %u, index %" PRIu64 ", value %" PRIu64 "\n", order, index, value);
}

static void every_position(unsigned order)
{
    const uint64_t count = 512 * 8 >> order, max = max_of(order);
    for (uint64_t i = 0; i < count; i += order < 3 ? 13 : 1) {
        set_one(order, i, 0, 0xff);
        set_one(order, i, max, 0);
        set_one(order, i, 1, 0xff);
        set_one(order, i, rng() & max, 0);
    }
    set_one(order, count - 1, max, 0);
    set_one(order, count - 1, 0, 0xff);
}

static void edges_of_large_blocks(unsigned order)
{
    const struct refcount_ops *ops = refcount_ops(order);
    for (unsigned cluster_bits = 9; cluster_bits <= 21; cluster_bits++) {
        size_t bytes = (size_t)1 << cluster_bits;
        uint64_t last = bytes * 8 / (1u << order) - 1;
        uint8_t *block = calloc(1, bytes + 8); /* 8 bytes behind must stay zero */
        ops->set(block, 0, 1);
        ops->set(block, last, max_of(order));
        CHECK_EQ(ops->get(block, 0), 1);
        CHECK(ops->get(block, last) == max_of(order));
        CHECK_EQ(ops->get(block, last - 1), 0);
        CHECK_MEM(block + bytes, "\0\0\0\0\0\0\0\0", 8);
        free(block);
    }
}

static void bits_of_range(unsigned order, const uint8_t *block, uint64_t first, uint64_t count)
{
    const struct refcount_ops *ops = refcount_ops(order);
    uint64_t used[9], ones[9];
    bool same = true;
    memset(used, 0xa5, sizeof(used));
    memset(ones, 0xa5, sizeof(ones));
    ops->used_bits(block, first, count, used);
    ops->one_bits(block, first, count, ones);
    for (uint64_t i = 0; i < round_up(count, 64); i++) {
        uint64_t v = i < count ? ops->get(block, first + i) : 0;
        same &= (used[i / 64] >> (i % 64) & 1) == (v != 0);
        same &= (ones[i / 64] >> (i % 64) & 1) == (v == 1);
    }
    same &= used[round_up(count, 64) / 64] == UINT64_C(0xa5a5a5a5a5a5a5a5);
    same &= ones[round_up(count, 64) / 64] == UINT64_C(0xa5a5a5a5a5a5a5a5);
    if (!CHECK(same))
        printf("    order %u, first %" PRIu64 ", count %" PRIu64 "\n", order, first, count);
}

/* Sparse blocks, so that zero and not zero both occur at every width; the block is as long as
 * what may be read, so that a sanitizer sees reads behind it. */
static void bits(unsigned order)
{
    const struct refcount_ops *ops = refcount_ops(order);
    const uint64_t count = 448;
    uint8_t *block = calloc(1, div_round_up(count << order, 8));
    for (uint64_t i = 0; i < count; i++)
        if (rng() % 3 == 0)
            ops->set(block, i, UINT64_C(1) << rng() % (1u << order));
    for (uint64_t first = 0; first < 70; first++)
        for (uint64_t n = 0; n <= count - first; n += n < 130 ? 1 : 63)
            bits_of_range(order, block, first, n);
    for (uint64_t n = 0; n <= 200; n++)
        bits_of_range(order, block, count - n, n);
    free(block);
}

/* One refcount at a time: what refcount_step promises. */
static uint64_t model_step(unsigned order, uint8_t *block, uint64_t first, uint64_t count,
                           const struct refcount_step *step)
{
    const struct refcount_ops *ops = refcount_ops(order);
    uint64_t n = 0;
    for (; n < count; n++) {
        uint64_t v = ops->get(block, first + n);
        bool fits =
            step->down ? v >= step->amount : v >= step->least && step->amount <= max_of(order) - v;
        if (!fits)
            break;
        ops->set(block, first + n, step->down ? v - step->amount : v + step->amount);
    }
    return n;
}

static void one_step(unsigned order, uint8_t *block, uint64_t refcounts, uint64_t odd)
{
    const struct refcount_ops *ops = refcount_ops(order);
    size_t bytes = (size_t)(refcounts << order) / 8;
    CLEANUP_FREE uint8_t *expected = malloc(bytes);
    uint64_t first = rng() % refcounts, count = rng() % (refcounts - first + 1);
    struct refcount_step step = {.amount = rng() % 4, .down = rng() & 1, .least = rng() & 1};
    memset(block, 0, bytes);
    ops->add(block, 0, refcounts, max_of(order) / 2 + 1);
    for (; odd; odd--)
        ops->set(block, rng() % refcounts, rng() & 1 ? max_of(order) : rng() & 1);
    memcpy(expected, block, bytes);
    uint64_t want = model_step(order, expected, first, count, &step);
    uint64_t got = refcount_step(ops, block, first, count, &step);
    if (!CHECK(got == want && memcmp(block, expected, bytes) == 0))
        printf("    order %u, first %" PRIu64 ", count %" PRIu64 ": %" PRIu64 " for %" PRIu64 "\n",
               order, first, count, got, want);
}

static void steps(unsigned order)
{
    const uint64_t refcounts = 16384;
    uint8_t *block = malloc((size_t)(refcounts << order) / 8);
    for (unsigned i = 0; i < 400; i++)
        one_step(order, block, refcounts, i % 4);
    free(block);
}

/* To plain numbers and back, in parts of a block; what is around stays. */
static void conversion(unsigned order)
{
    enum { COUNT = 1024, BYTES = COUNT * 8 };
    const struct refcount_ops *ops = refcount_ops(order);
    uint8_t block[BYTES], copy[BYTES];
    uint64_t numbers[COUNT];
    for (unsigned round = 0; round < 50; round++) {
        uint64_t first = rng() % (COUNT / 8) * 8, count = rng() % ((COUNT - first) / 8 + 1) * 8;
        bool same = true;
        for (size_t i = 0; i < BYTES; i++)
            block[i] = (uint8_t)rng();
        memcpy(copy, block, sizeof(copy));
        refcount_unpack(order, block, first, count, numbers);
        for (uint64_t i = 0; i < count; i++) {
            same &= numbers[i] == ops->get(block, first + i);
            numbers[i] = rng() & max_of(order);
            ops->set(copy, first + i, numbers[i]);
        }
        refcount_pack(order, block, first, count, numbers);
        if (!CHECK(same && memcmp(block, copy, sizeof(copy)) == 0))
            printf("    order %u, first %" PRIu64 ", count %" PRIu64 "\n", order, first, count);
    }
}

int main(void)
{
    for (unsigned order = 0; order <= 6; order++) {
        conversion(order);
        every_position(order);
        edges_of_large_blocks(order);
        bits(order);
        steps(order);
    }
    return TEST_SUMMARY();
}
