/*
 * test_check_crash.c - a power cut at every point of a repair (INV-8). Each kind of damage is
 * repaired over a log of writes; then each state that a crash can leave is built: every prefix of
 * the log, with the writes that no flush had made stable yet all there, all missing, each one
 * alone, each one missing, and each one torn. In every state no cluster is worse off than in the
 * damaged image, all guest data reads, and repairing again gives a clean image. The repair saves
 * what it overwrites: from every state the undo log leads back to the damaged image, also when the
 * undo is cut off in turn; a log that is torn before the repair began changes nothing.
 */
#include "check_test.h"
#include "crash_states.h"

struct crash {
    struct traced run; /* over the damaged image */
    struct qk_io *log; /* what the repair overwrites */
    const char *label;
    unsigned low_before;  /* clusters with more references than their refcount, before the repair */
    bool readable_before; /* all guest data */
    unsigned states, worse, unreadable, unclean, not_undone;
};

/* ---- one state ---- */

static unsigned low_refcounts(const struct findings *f)
{
    return f->by_number[1] + f->by_number[2];
}

/* Repairs with the choices that the damages here need. */
static int repair_saving(struct qk_io *io, struct qk_io *log, struct qk_check_result *r)
{
    struct qk_check_options opts = QK_CHECK_OPTIONS_INIT;
    struct image *img = open_for_check(io, true);
    if (!img)
        return -EINVAL;
    opts.fix = QK_FIX_LEAKS | QK_FIX_ERRORS;
    opts.allow = QK_ALLOW_COPIES | QK_ALLOW_ENTRIES | QK_ALLOW_HEADER;
    int ret = check_image_saving(img, &opts, log, r, NULL);
    image_abandon(img);
    return ret;
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
    if (c->readable_before && !data_intact(io))
        c->unreadable++;
    if (repair_saving(io, NULL, &r) < 0 || r.corruptions || r.leaks)
        c->unclean++;
    if (!data_intact(io))
        c->unreadable++;
}

static void judge_and_undo(void *crash, struct qk_io *state)
{
    struct crash *c = crash;
    c->not_undone += undo_failures(&c->run, c->log, state);
    judge_state(crash, state);
}

/* A power cut in the middle of the undo of the whole repair. */
static void cut_undo(struct crash *c)
{
    struct qk_io *done = NULL, *mem = NULL, *trace = NULL;
    struct undo_result result;
    size_t bytes;
    CHECK_OK(io_mem_open(c->run.base, c->run.base_bytes, 0, &done, NULL));
    replay_state(c->run.trace, done, trace_count(c->run.trace), ALL, 0);
    const uint8_t *repaired = io_mem_data(done, &bytes);
    CHECK_OK(io_mem_open(repaired, bytes, 0, &mem, NULL));
    CHECK_OK(io_trace_open(mem, &trace, NULL));
    CHECK_OK(undo_restore(c->log, trace, &result, NULL));
    CHECK(is_base(&c->run, mem));
    for (size_t end = 0; end <= trace_count(trace); end++) {
        for (size_t seq = trace_stable_before(trace, end); seq < end; seq++) {
            for (unsigned v = NONE; v < VARIANTS; v++) {
                struct qk_io *io = NULL;
                CHECK_OK(io_mem_open(repaired, bytes, 0, &io, NULL));
                replay_state(trace, io, end, (enum variant)v, seq);
                c->not_undone += undo_failures(&c->run, c->log, io);
                io_close(io, NULL);
            }
        }
    }
    io_close(trace, NULL);
    io_close(done, NULL);
}

/* A log that ends anywhere, over the image that the repair had not touched. */
static void cut_log(struct crash *c)
{
    size_t bytes;
    const uint8_t *whole = io_mem_data(c->log, &bytes);
    for (size_t end = 0; end < bytes; end += 1 + bytes / 97) {
        struct qk_io *log = NULL, *io = NULL;
        struct undo_result result;
        CHECK_OK(io_mem_open(whole, end, 0, &log, NULL));
        CHECK_OK(io_mem_open(c->run.base, c->run.base_bytes, 0, &io, NULL));
        int ret = undo_restore(log, io, &result, NULL);
        CHECK(ret == 0 ? result.never_begun : end < 64);
        CHECK(is_base(&c->run, io));
        io_close(log, NULL);
        io_close(io, NULL);
    }
}

/* A log that lost a byte, or one over another image: refused, or the damaged image comes out. */
static void spoil_log(struct crash *c)
{
    size_t bytes, log_bytes;
    const uint8_t *whole = io_mem_data(c->log, &log_bytes);
    struct qk_io *done = NULL;
    CHECK_OK(io_mem_open(c->run.base, c->run.base_bytes, 0, &done, NULL));
    replay_state(c->run.trace, done, trace_count(c->run.trace), ALL, 0);
    const uint8_t *repaired = io_mem_data(done, &bytes);
    for (size_t at = 0; at < log_bytes; at += 1 + log_bytes / 97) {
        struct qk_io *log = NULL, *io = NULL;
        struct undo_result result;
        uint8_t byte = whole[at] ^ 0x40;
        CHECK_OK(io_mem_open(whole, log_bytes, 0, &log, NULL));
        CHECK_OK(io_write(log, at, &byte, 1, 0, NULL));
        CHECK_OK(io_mem_open(repaired, bytes, 0, &io, NULL));
        int ret = undo_restore(log, io, &result, NULL);
        const uint8_t *now = io_mem_data(io, &bytes);
        /* Behind its last byte of meaning a record has only padding. */
        CHECK(ret == 0 ? is_base(&c->run, io) : !memcmp(now, repaired, bytes));
        byte = now[24] ^ 1;
        CHECK_OK(io_write(io, 24, &byte, 1, 0, NULL));
        CHECK(undo_restore(c->log, io, &result, NULL) == -EUCLEAN);
        io_close(log, NULL);
        io_close(io, NULL);
    }
    io_close(done, NULL);
}

static void build_states(struct crash *c)
{
    each_state(&c->run, judge_and_undo, c);
    if (c->worse | c->unreadable | c->unclean | c->not_undone)
        printf("%s: %u of %u states worse, %u unreadable, %u not repaired, %u not undone\n",
               c->label, c->worse, c->states, c->unreadable, c->unclean, c->not_undone);
    CHECK(c->states > trace_count(c->run.trace));
    CHECK_EQ(c->worse, 0);
    CHECK_EQ(c->unreadable, 0);
    CHECK_EQ(c->unclean, 0);
    CHECK_EQ(c->not_undone, 0);
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

static void write_be32(struct qk_io *io, uint64_t off, uint32_t value)
{
    uint8_t bytes[4];
    store_be32(bytes, value);
    CHECK_OK(io_write(io, off, bytes, sizeof(bytes), 0, NULL));
}

/* The new width and the table that has it are named by the same sector. */
static void width_impossible(struct qk_io *io)
{
    write_be32(io, 96, 200);
}

static void cluster_bits_impossible(struct qk_io *io)
{
    write_be32(io, 20, 77);
}

/* What looks leaked under a chosen version stays for another run, so nothing is. */
static void version_and_features(struct qk_io *io)
{
    wrong_flags(io);
    write_be32(io, 4, 9);
    write_be64(io, 72, INCOMPAT_COMPRESSION);
    write_be32(io, 100, 112);
}

static void l1_misplaced_and_refcounts(struct qk_io *io)
{
    too_low_and_leaked(io);
    write_be64(io, 40, read_be64(io, 40) + 256);
}

static void sizes_and_refcounts(struct qk_io *io)
{
    zero_refcounts(io);
    write_be32(io, 36, UINT32_MAX);
    write_be32(io, 56, 0);
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
    {"width impossible", width_impossible},
    {"cluster_bits impossible", cluster_bits_impossible},
    {"version and features", version_and_features},
    {"L1 misplaced and refcounts", l1_misplaced_and_refcounts},
    {"sizes and refcounts", sizes_and_refcounts},
};

static unsigned test_damage(size_t which, uint32_t cluster_bits, uint32_t order)
{
    struct qk_io *io = make_image(cluster_bits, order), *mem = NULL;
    struct crash c = {.label = damages[which].label};
    struct findings f;
    struct qk_check_result r;
    damages[which].damage(io);
    const uint8_t *now = io_mem_data(io, &c.run.base_bytes);
    uint8_t *base = malloc(c.run.base_bytes);
    memcpy(base, now, c.run.base_bytes);
    c.run.base = base;
    CHECK_OK(check_store(io, 0, &f, &r));
    CHECK(r.corruptions + r.leaks);
    c.low_before = low_refcounts(&f);
    c.readable_before = data_intact(io);
    CHECK_OK(io_mem_open(base, c.run.base_bytes, 0, &mem, NULL));
    CHECK_OK(io_trace_open(mem, &c.run.trace, NULL));
    CHECK_OK(io_mem_open(NULL, 0, 0, &c.log, NULL));
    CHECK_OK(repair_saving(c.run.trace, c.log, &r));
    CHECK_EQ(r.corruptions + r.leaks, 0);
    CHECK(r.undo_saved);
    build_states(&c);
    cut_undo(&c);
    cut_log(&c);
    spoil_log(&c);
    io_close(c.log, NULL);
    io_close(c.run.trace, NULL);
    io_close(io, NULL);
    free(base);
    return c.states;
}

static void judge_only(void *crash, struct qk_io *state)
{
    judge_state(crash, state);
}

/* A repair that is not safe is seen: the width is stable before a table that has it. */
static void wrong_order_is_seen(void)
{
    struct qk_io *io = make_image(12, 1), *mem = NULL;
    struct crash c = {.label = "width before its table"};
    struct findings f;
    struct qk_check_result r;
    width_impossible(io);
    CHECK_OK(check_store(io, 0, &f, &r));
    c.low_before = low_refcounts(&f);
    c.run.base = io_mem_data(io, &c.run.base_bytes);
    CHECK_OK(io_mem_open(c.run.base, c.run.base_bytes, 0, &mem, NULL));
    CHECK_OK(io_trace_open(mem, &c.run.trace, NULL));
    write_be32(c.run.trace, 96, 4);
    CHECK_OK(io_flush(c.run.trace, NULL));
    each_state(&c.run, judge_only, &c);
    CHECK(c.states > 0 && c.worse > 0);
    io_close(c.run.trace, NULL);
    io_close(io, NULL);
}

int main(void)
{
    unsigned states = 0;
    for (size_t i = 0; i < ARRAY_SIZE(damages); i++) {
        states += test_damage(i, 9, 4);
        states += test_damage(i, 12, 1);
        states += test_damage(i, 12, 6);
    }
    wrong_order_is_seen();
    printf("%u states\n", states);
    return TEST_SUMMARY();
}
