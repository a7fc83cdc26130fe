/*
 * repairs.c - a power cut at every point of the repair of given images, whatever their damage, and
 * of its undo (INV-8): tests/damage/test-crash hands over every fixture of the damage tests.
 *
 *   repairs [--allow BITS] [--secret TEXT] [--data FILE] IMAGE...
 *
 * The repair of the whole image is what is aimed at; in each state before it
 *   - each piece of the disk, and of the oldest snapshot, reads as it did in the damaged image or
 * as it does in the repaired one, and no cluster lacks references that neither of both lacks;
 *   - the repair goes on to what it would have come to;
 *   - the undo log leads back to the damaged image, also when that is cut off in turn.
 * Besides the states of crash_states.h: any part of what is not stable yet, torn at any sectors.
 */
#include "crash_states.h"

#include "check/check.h"
#include "image/snapshots.h"

#include <getopt.h>

#define PIECE      512u
#define PIECES_MAX 16384u
#define NUMBERS    128u
#define SUBSETS    3u /* random ones for each point in time */

/* What a reader sees: a checksum for each piece, 0 where it cannot be read. */
struct view {
    size_t disk, snapshot;
    uint64_t sums[PIECES_MAX];
};

struct findings {
    uint64_t low; /* clusters with fewer refcounts than references */
    bool hidden;  /* refcounts, or what names clusters, could not be read */
};

struct run {
    const char *name;
    struct traced traced;
    struct qk_io *log, *data;
    struct image_secret secret;
    struct image *unlocked; /* the key, found once */
    struct qk_check_options opts;
    struct view *before, *after, *now;
    struct findings first;
    struct qk_check_result wanted;
    uint32_t random;
    unsigned states, worse, unreadable, unclean, not_undone;
};

/* ---- opening ---- */

static struct image *open_image(const struct run *r, struct qk_io *io, bool writable,
                                const struct snapshot_key *snapshot)
{
    const struct image_options opts = {
        .writable = writable,
        .for_check = true,
        .lazy_refcounts = -1,
        .data = r->data,
        .secret = r->secret.id ? &r->secret : NULL,
        .unlocked = r->unlocked,
        .snapshot = snapshot,
    };
    struct image *img = NULL;
    return image_open(io, &opts, &img, NULL) < 0 ? NULL : img;
}

static uint64_t sum(const uint8_t *bytes, size_t len)
{
    uint64_t h = UINT64_C(1469598103934665603), word = 0;
    for (size_t i = 0; i < len; i += sizeof(word)) {
        memcpy(&word, bytes + i, (size_t)min_u64(sizeof(word), len - i));
        h = (h ^ word) * UINT64_C(1099511628211);
        h ^= h >> 29;
    }
    return h ? h : 1;
}

static size_t view_disk(struct image *img, uint64_t *sums, size_t room)
{
    uint8_t buf[PIECE];
    size_t n = 0;
    uint64_t size = img ? image_size(img) : 0;
    for (uint64_t off = 0; off < size && n < room; off += PIECE) {
        struct iovec iov = {buf, (size_t)min_u64(sizeof(buf), size - off)};
        bool read = image_readv(img, guest_off(off), &iov, 1, NULL) == 0;
        sums[n++] = read ? sum(buf, iov.iov_len) : 0;
    }
    if (img)
        image_abandon(img);
    return n;
}

static void view_make(const struct run *r, struct qk_io *io, struct view *v)
{
    static const struct snapshot_key oldest = {.id = "1"};
    v->disk = view_disk(open_image(r, io, false, NULL), v->sums, PIECES_MAX / 2);
    v->snapshot =
        view_disk(open_image(r, io, false, &oldest), v->sums + PIECES_MAX / 2, PIECES_MAX / 2);
}

struct part {
    const uint64_t *sums;
    size_t n;
};

/* Each piece is as it was, or as it shall be. */
static bool part_explained(struct part now, struct part before, struct part after)
{
    if (now.n != before.n && now.n != after.n)
        return false;
    for (size_t i = 0; i < now.n; i++) {
        if ((i >= before.n || now.sums[i] != before.sums[i]) &&
            (i >= after.n || now.sums[i] != after.sums[i]))
            return false;
    }
    return true;
}

static struct part disk_part(const struct view *v)
{
    return (struct part){v->sums, v->disk};
}

static struct part snapshot_part(const struct view *v)
{
    return (struct part){v->sums + PIECES_MAX / 2, v->snapshot};
}

static bool view_explained(const struct run *r)
{
    const struct view *b = r->before, *a = r->after, *now = r->now;
    return part_explained(disk_part(now), disk_part(b), disk_part(a)) &&
           part_explained(snapshot_part(now), snapshot_part(b), snapshot_part(a));
}

/* ---- checks and repairs ---- */

static void count_problem(void *opaque, const struct qk_problem *p)
{
    struct findings *f = opaque;
    if (!p->repaired && (p->number == 1 || p->number == 2 || p->number == 4))
        f->low++;
    bool refcounts_or_roots = p->severity != QK_SEVERITY_NONE && p->number != 3 && p->number > 4;
    bool harmless = p->number == 24 || (p->number >= 34 && p->number <= 39);
    f->hidden |= refcounts_or_roots && !harmless;
}

static int look(const struct run *r, struct qk_io *io, struct findings *f)
{
    struct qk_check_options opts = QK_CHECK_OPTIONS_INIT;
    struct qk_check_result result;
    struct image *img = open_image(r, io, false, NULL);
    *f = (struct findings){0};
    if (!img)
        return -EINVAL;
    opts.threads = 1;
    opts.on_problem = count_problem;
    opts.opaque = f;
    int ret = check_image(img, &opts, &result, NULL);
    image_abandon(img);
    return ret;
}

static int repair(const struct run *r, struct qk_io *io, struct qk_io *log,
                  struct qk_check_result *result)
{
    struct image *img = open_image(r, io, true, NULL);
    if (!img)
        return -EINVAL;
    int ret = check_image_saving(img, &r->opts, log, result, NULL);
    image_abandon(img);
    return ret;
}

static bool as_clean(const struct qk_check_result *is, const struct qk_check_result *wanted)
{
    return is->corruptions <= wanted->corruptions && is->check_errors <= wanted->check_errors &&
           is->leaks <= wanted->leaks;
}

/* ---- one state ---- */

static void only_undo(void *run, struct qk_io *state)
{
    struct run *r = run;
    r->not_undone += undo_failures(&r->traced, r->log, state);
}

/* A repair that a crash cut off may leave what the next one finds to be a leak. */
static void judge(void *run, struct qk_io *state)
{
    struct run *r = run;
    struct findings f;
    struct qk_check_result result = QK_CHECK_RESULT_INIT;
    r->states++;
    r->not_undone += undo_failures(&r->traced, r->log, state);
    bool opens = look(r, state, &f) == 0;
    r->worse += opens && !f.hidden && !r->first.hidden && f.low > r->first.low;
    view_make(r, state, r->now);
    r->unreadable += !view_explained(r);
    int ret = repair(r, state, NULL, &result);
    if (ret == 0 && !as_clean(&result, &r->wanted))
        ret = repair(r, state, NULL, &result);
    r->unclean += ret < 0 || !as_clean(&result, &r->wanted);
    view_make(r, state, r->now);
    r->unreadable += !view_explained(r);
}

/* ---- any part of what is not stable ---- */

static uint32_t next_random(struct run *r, uint32_t below)
{
    r->random = r->random * 1103515245u + 12345u;
    return (r->random >> 8) % below;
}

static void replay_some(struct run *r, const struct traced *t, struct qk_io *io, size_t end)
{
    size_t stable = trace_stable_before(t->trace, end);
    for (size_t seq = 0; seq < end; seq++) {
        const struct trace_entry *e = trace_get(t->trace, seq);
        uint64_t sectors = e->len / TORN_SECTOR, first;
        unsigned how = seq < stable ? 0 : next_random(r, 4);
        if (how == 3)
            continue;
        if (how == 2 && e->kind == TRACE_WRITE && sectors > 1) {
            first = next_random(r, (uint32_t)sectors);
            CHECK_OK(trace_replay_part(
                e, first * TORN_SECTOR,
                (1 + next_random(r, (uint32_t)(sectors - first))) * TORN_SECTOR, io, NULL));
        } else {
            CHECK_OK(trace_replay(e, io, NULL));
        }
    }
}

static void random_states(struct run *r, const struct traced *t, state_fn *fn)
{
    for (size_t end = 0; end <= trace_count(t->trace); end++) {
        for (unsigned i = 0; i < SUBSETS && trace_stable_before(t->trace, end) + 2 < end; i++) {
            struct qk_io *io = NULL;
            CHECK_OK(io_mem_open(t->base, t->base_bytes, 0, &io, NULL));
            replay_some(r, t, io, end);
            fn(r, io);
            io_close(io, NULL);
        }
    }
}

/* ---- the undo, cut off ---- */

static void cut_undo(struct run *r, const uint8_t *repaired, size_t bytes)
{
    struct qk_io *mem = NULL;
    struct undo_result result;
    struct traced t = {.base = repaired, .base_bytes = bytes};
    CHECK_OK(io_mem_open(repaired, bytes, 0, &mem, NULL));
    CHECK_OK(io_trace_open(mem, &t.trace, NULL));
    CHECK_OK(undo_restore(r->log, t.trace, &result, NULL));
    each_state(&t, only_undo, r);
    random_states(r, &t, only_undo);
    io_close(t.trace, NULL);
}

/* ---- one image ---- */

static void all_states(struct run *r, struct qk_io *mem)
{
    size_t bytes;
    const uint8_t *now = io_mem_data(mem, &bytes);
    uint8_t *repaired = malloc(bytes + 1);
    memcpy(repaired, now, bytes);
    view_make(r, mem, r->after);
    each_state(&r->traced, judge, r);
    random_states(r, &r->traced, judge);
    cut_undo(r, repaired, bytes);
    free(repaired);
}

static void run_image(struct run *r)
{
    struct qk_io *mem = NULL;
    struct qk_io *locked = NULL;
    CHECK_OK(io_mem_open(r->traced.base, r->traced.base_bytes, 0, &locked, NULL));
    CHECK_OK(io_mem_open(r->traced.base, r->traced.base_bytes, 0, &mem, NULL));
    r->unlocked = open_image(r, locked, false, NULL);
    look(r, mem, &r->first);
    view_make(r, mem, r->before);
    CHECK_OK(io_trace_open(mem, &r->traced.trace, NULL));
    CHECK_OK(io_mem_open(NULL, 0, 0, &r->log, NULL));
    r->wanted = (struct qk_check_result)QK_CHECK_RESULT_INIT;
    int ret = repair(r, r->traced.trace, r->log, &r->wanted);
    if (ret < 0)
        printf("%s: no repair: %s\n", r->name, strerror(-ret));
    else if (r->wanted.undo_saved)
        all_states(r, mem);
    io_close(r->log, NULL);
    io_close(r->traced.trace, NULL);
    if (r->unlocked)
        image_abandon(r->unlocked);
    io_close(locked, NULL);
    if (r->worse | r->unreadable | r->unclean | r->not_undone)
        printf("%s: of %u states %u are worse, %u read wrong, %u are not repaired, %u not undone\n",
               r->name, r->states, r->worse, r->unreadable, r->unclean, r->not_undone);
    CHECK_EQ(r->worse, 0);
    CHECK_EQ(r->unreadable, 0);
    CHECK_EQ(r->unclean, 0);
    CHECK_EQ(r->not_undone, 0);
}

static uint8_t *load(const char *name, size_t *bytes)
{
    FILE *f = fopen(name, "rb");
    uint8_t *buf = NULL;
    *bytes = 0;
    if (f && fseek(f, 0, SEEK_END) == 0) {
        *bytes = (size_t)ftell(f);
        buf = malloc(*bytes + 1);
        rewind(f);
        if (fread(buf, 1, *bytes, f) != *bytes)
            *bytes = 0;
    }
    CHECK(buf && *bytes);
    if (f)
        fclose(f);
    return buf;
}

static void options(struct run *r, int argc, char **argv)
{
    static const struct option names[] = {
        {"allow", 1, NULL, 'a'}, {"secret", 1, NULL, 's'}, {"data", 1, NULL, 'd'}, {0}};
    r->opts = (struct qk_check_options)QK_CHECK_OPTIONS_INIT;
    r->opts.fix = QK_FIX_LEAKS | QK_FIX_ERRORS;
    r->opts.threads = 1;
    for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        size_t bytes;
        uint8_t *data = c == 'd' ? load(optarg, &bytes) : NULL;
        if (c == 'a')
            r->opts.allow = (unsigned)strtoul(optarg, NULL, 0);
        else if (c == 's')
            r->secret = (struct image_secret){"key", (const uint8_t *)optarg, strlen(optarg)};
        else if (data)
            CHECK_OK(io_mem_open(data, bytes, 0, &r->data, NULL));
        free(data);
    }
}

int main(int argc, char **argv)
{
    struct run common = {.random = 1};
    unsigned states = 0;
    options(&common, argc, argv);
    common.before = calloc(3, sizeof(struct view));
    common.after = common.before + 1;
    common.now = common.before + 2;
    for (int i = optind; i < argc; i++) {
        struct run r = common;
        uint8_t *base = load(argv[i], &r.traced.base_bytes);
        r.traced.base = base;
        r.name = argv[i];
        run_image(&r);
        states += r.states;
        free(base);
    }
    free(common.before);
    io_close(common.data, NULL);
    printf("%u states\n", states);
    return TEST_SUMMARY();
}
