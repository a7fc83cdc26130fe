/*
 * test_check_crash.c - a power cut at every point of a repair (INV-8). Each kind of damage is
 * repaired over a log of writes; then each state that a crash can leave is built: every prefix of
 * the log, with the writes that no flush had made stable yet all there, all missing, each one
 * alone, each one missing, and each one torn. In every state no cluster is worse off than in the
 * damaged image, all guest data reads, and repairing again gives a clean image.
 */
#include "check_test.h"
#include "io/trace.h"

#define TORN_SECTOR 512u

struct crash {
    const uint8_t *base; /* the damaged image */
    size_t base_bytes;
    struct qk_io *trace;
    const char *label;
    unsigned low_before; /* clusters with more references than their refcount, before the repair */
    unsigned states, worse, unreadable, unclean;
};

/* ---- one state ---- */

static unsigned low_refcounts(const struct findings *f)
{
    return f->by_number[1] + f->by_number[2];
}

static void judge_state(struct crash *c, struct qk_io *io)
{
    struct findings f;
    struct qk_check_result r;
    c->states++;
    if (check_store(io, 0, &f, &r) < 0) {
        c->unreadable++;
        return;
    }
    /* A block that cannot be believed hides the refcounts behind it: nothing to compare. */
    bool hidden = f.by_number[10] + f.by_number[11] + f.by_number[12] + f.by_number[13] != 0;
    if (!hidden && low_refcounts(&f) > c->low_before)
        c->worse++;
    if (!data_intact(io))
        c->unreadable++;
    if (check_store(io, QK_FIX_LEAKS | QK_FIX_ERRORS, &f, &r) < 0 || r.corruptions || r.leaks)
        c->unclean++;
    if (!data_intact(io))
        c->unreadable++;
}

/* Which of the unstable writes [stable, end) are in the state. */
enum variant { ALL, NONE, ONLY, ALL_BUT, TORN, VARIANTS };

static bool part_of(enum variant v, size_t seq, size_t chosen)
{
    switch (v) {
    case NONE:
        return false;
    case ONLY:
        return seq == chosen;
    case ALL_BUT:
        return seq != chosen;
    default:
        return true;
    }
}

static void build_state(struct crash *c, size_t end, enum variant v, size_t chosen)
{
    struct qk_io *io = NULL;
    size_t stable = trace_stable_before(c->trace, end);
    CHECK_OK(io_mem_open(c->base, c->base_bytes, 0, &io, NULL));
    for (size_t seq = 0; seq < end; seq++) {
        const struct trace_entry *e = trace_get(c->trace, seq);
        int ret = 0;
        if (seq >= stable && !part_of(v, seq, chosen))
            continue;
        if (v == TORN && seq == chosen && e->kind == TRACE_WRITE && e->len > TORN_SECTOR)
            ret = trace_replay_part(e, 0, e->len / 2 / TORN_SECTOR * TORN_SECTOR, io, NULL);
        else
            ret = trace_replay(e, io, NULL);
        if (ret < 0)
            CHECK_OK(ret);
    }
    judge_state(c, io);
    io_close(io, NULL);
}

static void build_states(struct crash *c)
{
    for (size_t end = 0; end <= trace_count(c->trace); end++) {
        build_state(c, end, ALL, 0);
        build_state(c, end, NONE, 0);
        for (size_t seq = trace_stable_before(c->trace, end); seq < end; seq++) {
            for (unsigned v = ONLY; v < VARIANTS; v++)
                build_state(c, end, (enum variant)v, seq);
        }
    }
    if (c->worse | c->unreadable | c->unclean)
        printf("%s: %u of %u states worse, %u unreadable, %u not repaired\n", c->label, c->worse,
               c->states, c->unreadable, c->unclean);
    CHECK(c->states > trace_count(c->trace));
    CHECK_EQ(c->worse, 0);
    CHECK_EQ(c->unreadable, 0);
    CHECK_EQ(c->unclean, 0);
}

/* ---- damage ---- */

static void zero_refcounts(struct qk_io *io)
{
    set_refcount(io, 0, 0);
    set_refcount(io, host_cluster(io, 5), 0);
}

static void missing_block(struct qk_io *io)
{
    write_be64(io, read_be64(io, 48), 0);
}

static void shared_block(struct qk_io *io)
{
    uint64_t reftable = read_be64(io, 48);
    write_be64(io, reftable + 8, read_be64(io, reftable));
}

static void reserved_bits(struct qk_io *io)
{
    uint64_t reftable = read_be64(io, 48);
    write_be64(io, reftable, read_be64(io, reftable) | 1);
}

/* Two entries, one cluster: too low there, a leak where the other was. */
static void too_low_and_leaked(struct qk_io *io)
{
    write_be64(io, l2_place(io, 30), read_be64(io, l2_place(io, 4)));
    set_refcount(io, host_cluster(io, WRITTEN_CLUSTERS - 1) + 1, 1);
}

static void leaks(struct qk_io *io)
{
    uint64_t size, end = host_cluster(io, WRITTEN_CLUSTERS - 1);
    uint8_t bits[4];
    CHECK_OK(io_read(io, 20, bits, sizeof(bits), NULL));
    CHECK_OK(io_size(io, &size, NULL));
    end = size >> load_be32(bits);
    CHECK_OK(io_resize(io, (end + 4) << load_be32(bits), QK_PREALLOC_OFF, NULL));
    for (uint64_t i = 0; i < 4; i++)
        set_refcount(io, end + i, 1);
    set_refcount(io, host_cluster(io, 3), 2);
}

static void wrong_flags(struct qk_io *io)
{
    for (uint32_t i = 0; i < 9; i++)
        write_be64(io, l2_place(io, i), read_be64(io, l2_place(io, i)) & ~ENTRY_COPIED);
    uint64_t l1 = read_be64(io, 40);
    write_be64(io, l1, read_be64(io, l1) & ~ENTRY_COPIED);
}

static void dirty_after_lazy_writes(struct qk_io *io)
{
    write_be64(io, 72, INCOMPAT_DIRTY);
    for (uint32_t i = 4; i < 14; i++)
        set_refcount(io, host_cluster(io, i), 0);
}

static const struct {
    const char *label;
    void (*damage)(struct qk_io *io);
} damages[] = {
    {"zero refcounts", zero_refcounts},
    {"missing block", missing_block},
    {"shared block", shared_block},
    {"reserved bits", reserved_bits},
    {"too low and leaked", too_low_and_leaked},
    {"leaks", leaks},
    {"wrong flags", wrong_flags},
    {"dirty after lazy writes", dirty_after_lazy_writes},
};

static unsigned test_damage(size_t which, uint32_t cluster_bits, uint32_t order)
{
    struct qk_io *io = make_image(cluster_bits, order), *mem = NULL;
    struct crash c = {.label = damages[which].label};
    struct findings f;
    struct qk_check_result r;
    damages[which].damage(io);
    const uint8_t *now = io_mem_data(io, &c.base_bytes);
    uint8_t *base = malloc(c.base_bytes);
    memcpy(base, now, c.base_bytes);
    c.base = base;
    CHECK_OK(check_store(io, 0, &f, &r));
    CHECK(r.corruptions + r.leaks);
    c.low_before = low_refcounts(&f);
    CHECK_OK(io_mem_open(base, c.base_bytes, 0, &mem, NULL));
    CHECK_OK(io_trace_open(mem, &c.trace, NULL));
    CHECK_OK(check_store(c.trace, QK_FIX_LEAKS | QK_FIX_ERRORS, &f, &r));
    CHECK_EQ(r.corruptions + r.leaks, 0);
    build_states(&c);
    io_close(c.trace, NULL);
    io_close(io, NULL);
    free(base);
    return c.states;
}

int main(void)
{
    unsigned states = 0;
    for (size_t i = 0; i < ARRAY_SIZE(damages); i++) {
        states += test_damage(i, 9, 4);
        states += test_damage(i, 12, 1);
        states += test_damage(i, 12, 6);
    }
    printf("%u states\n", states);
    return TEST_SUMMARY();
}
