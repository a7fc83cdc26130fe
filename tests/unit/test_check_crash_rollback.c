/*
 * test_check_crash_rollback.c - a power cut at every point of a repair that brings the disk back to
 * a snapshot. In every state that it can leave the snapshot is whole, no cluster has fewer
 * refcounts than references that the damaged image did not lack, too, and where the active tables
 * are sound again the disk reads as the snapshot. Repairing again, from any state, gives that disk
 * in a clean image; and from any state the undo log leads back to the damaged one. Then the Nth
 * read, write, flush and allocation fail: as long as the repair does not say that it is done, the
 * way back is there.
 */
#include "check_test.h"
#include "crash_states.h"

struct kind {
    const char *label;
    void (*damage)(struct qk_io *io);
    bool no_growth;
};

struct crash {
    const struct kind *kind;
    struct traced run;
    struct qk_io *log;
    unsigned low_before, states, worse, unreadable, unclean, not_undone;
};

static int repair(struct qk_io *io, struct qk_io *log, unsigned allow, struct qk_check_result *r)
{
    struct qk_check_options opts = QK_CHECK_OPTIONS_INIT;
    struct image *img = open_for_check(io, true);
    opts.fix = QK_FIX_LEAKS | QK_FIX_ERRORS;
    opts.allow = allow;
    int ret = check_image_saving(img, &opts, log, r, NULL);
    image_abandon(img);
    return ret;
}

/* ---- one state ---- */

static bool damage_left(const struct findings *f)
{
    return f->by_number[82] != 0; /* told while the disk could go back */
}

static void judge(void *crash, struct qk_io *state)
{
    struct crash *c = crash;
    struct findings f;
    struct qk_check_result r;
    c->states++;
    c->not_undone += undo_failures(&c->run, c->log, state);
    CHECK_OK(check_store(state, 0, &f, &r));
    c->worse += f.by_number[1] + f.by_number[2] > c->low_before;
    c->unreadable += !snapshot_intact(state, "saved");
    c->unreadable += !damage_left(&f) && !snapshot_intact(state, NULL);
    state->can_grow = !c->kind->no_growth;
    c->unclean += repair(state, NULL, QK_ALLOW_ROLLBACK, &r) < 0;
    /* Where the disk is back, and the old tables are counted still, these look like lost ones. */
    c->unclean += repair(state, NULL, QK_ALLOW_L1, &r) < 0;
    CHECK_OK(check_store(state, 0, &f, &r));
    c->unclean += r.corruptions + r.leaks + r.check_errors != 0;
    c->unreadable += !snapshot_intact(state, "saved") || !snapshot_intact(state, NULL);
}

/* ---- the images ---- */

static void table_nowhere(struct qk_io *io)
{
    write_be64(io, 40, 0);
}

static void entry_outside(struct qk_io *io)
{
    write_be64(io, l2_place(io, 21), ENTRY_COPIED | UINT64_C(1) << 40);
}

static void table_overwritten(struct qk_io *io)
{
    write_be64(io, read_be64(io, 40), UINT64_MAX);
}

static void refcounts_lost_too(struct qk_io *io)
{
    entry_outside(io);
    write_be64(io, 48, 0);
}

static void snapshot_says_its_own(struct qk_io *io)
{
    uint64_t entry = read_be64(io, 64), l1 = read_be64(io, entry);
    uint64_t place = (read_be64(io, l1) & L1_OFFSET_MASK) + 8;
    write_be64(io, place, read_be64(io, place) | ENTRY_COPIED);
    entry_outside(io);
}

/* Every cluster is counted: the new table finds no place below the end. */
static void fill_holes(struct qk_io *io)
{
    struct image *img = open_for_check(io, false);
    const struct header *h = image_header(img);
    uint64_t size, block_off = read_be64(io, h->reftable_off);
    uint32_t bytes = image_geometry(img)->cluster_bytes;
    const struct refcount_ops *ops = refcount_ops(h->refcount_order);
    uint8_t *block = malloc(bytes);
    CHECK_OK(io_size(io, &size, NULL));
    CHECK_OK(io_read(io, block_off, block, bytes, NULL));
    for (uint64_t i = 0; i < size / bytes && i < UINT64_C(1) << image_geometry(img)->refblock_bits;
         i++)
        ops->set(block, i, max_u64(ops->get(block, i), 1));
    CHECK_OK(io_write(io, block_off, block, bytes, 0, NULL));
    free(block);
    image_abandon(img);
}

/* What is just behind the end, a table cut through, and both: the file grows over all of it. */
static void entry_behind_the_end(struct qk_io *io)
{
    uint64_t size;
    uint8_t bits[4];
    fill_holes(io);
    CHECK_OK(io_size(io, &size, NULL));
    CHECK_OK(io_read(io, 20, bits, sizeof(bits), NULL));
    write_be64(io, l2_place(io, 21), ENTRY_COPIED | round_up(size, UINT64_C(1) << load_be32(bits)));
}

static uint64_t move_table(struct qk_io *io)
{
    uint64_t size, l1 = read_be64(io, 40), table = read_be64(io, l1) & L1_OFFSET_MASK, bytes = 1;
    uint8_t bits[4], *copy;
    fill_holes(io);
    CHECK_OK(io_size(io, &size, NULL));
    CHECK_OK(io_read(io, 20, bits, sizeof(bits), NULL));
    bytes <<= load_be32(bits);
    size = round_up(size, bytes);
    copy = malloc(bytes);
    CHECK_OK(io_read(io, table, copy, bytes, NULL));
    CHECK_OK(io_write(io, size, copy, bytes, 0, NULL));
    free(copy);
    write_be64(io, l1, ENTRY_COPIED | size);
    set_refcount(io, size / bytes, 1);
    return size;
}

static void table_cut_through(struct qk_io *io)
{
    CHECK_OK(io_resize(io, move_table(io) + 8, QK_PREALLOC_OFF, NULL));
}

static void table_cut_off(struct qk_io *io)
{
    CHECK_OK(io_resize(io, move_table(io), QK_PREALLOC_OFF, NULL));
}

static const struct kind kinds[] = {
    {"entry behind the end", entry_behind_the_end, false},
    {"table cut through", table_cut_through, false},
    {"table cut off", table_cut_off, false},
    {"table nowhere", table_nowhere, false},
    {"entry outside", entry_outside, false},
    {"entry outside, no growth", entry_outside, true},
    {"table overwritten", table_overwritten, false},
    {"refcounts lost, too", refcounts_lost_too, false},
    {"wrong flags in the snapshot", snapshot_says_its_own, false},
};

/* ---- all states ---- */

static void test_kind(const struct kind *kind, uint32_t cluster_bits, uint32_t order)
{
    struct qk_io *io = make_saved_image(cluster_bits, order), *mem = NULL;
    struct crash c = {.kind = kind};
    struct findings f;
    struct qk_check_result r;
    kind->damage(io);
    c.run.base = io_mem_data(io, &c.run.base_bytes);
    CHECK_OK(check_store(io, 0, &f, &r));
    CHECK(damage_left(&f));
    c.low_before = f.by_number[1] + f.by_number[2];
    CHECK_OK(io_mem_open(c.run.base, c.run.base_bytes, 0, &mem, NULL));
    mem->can_grow = !kind->no_growth;
    CHECK_OK(io_trace_open(mem, &c.run.trace, NULL));
    CHECK_OK(io_mem_open(NULL, 0, 0, &c.log, NULL));
    CHECK_OK(repair(c.run.trace, c.log, QK_ALLOW_ROLLBACK, &r));
    CHECK(r.undo_saved && !r.corruptions && !r.leaks && r.corruptions_fixed);
    CHECK(trace_count(c.run.trace) > 3);
    each_state(&c.run, judge, &c);
    if (c.worse | c.unreadable | c.unclean | c.not_undone)
        printf("%s: %u of %u states worse, %u unreadable, %u not repaired, %u not undone\n",
               kind->label, c.worse, c.states, c.unreadable, c.unclean, c.not_undone);
    CHECK_EQ(c.worse + c.unreadable + c.unclean + c.not_undone, 0);
    io_close(c.log, NULL);
    io_close(c.run.trace, NULL);
    io_close(io, NULL);
}

int main(void)
{
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        test_kind(&kinds[i], 9, 4);
        test_kind(&kinds[i], 12, 1);
        test_kind(&kinds[i], 16, 6);
    }
    return TEST_SUMMARY();
}
