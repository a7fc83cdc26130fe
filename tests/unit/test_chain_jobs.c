/*
 * test_chain_jobs.c - commit and rebase: what the public calls do and refuse, a power cut at every
 * point, and an error at every request. The disk on top must read the same throughout, no image may
 * show more than leaks, and the job, done again, must finish.
 *
 * The images are files; once a chain is open, the stores below its two images are exchanged for
 * logs over memory with the same bytes, so that all changes of both files are known in one order.
 */
#include "check_test.h"
#include "io/fault.h"
#include "io/trace.h"
#include "node/node.h"
#include "node_test.h"

enum { FILES = 2, EVENTS_MAX = 4096, DISK_MAX = 1 << 20 };

static const char *const file_names[FILES] = {"base", "top"};

struct shape {
    const char *label;
    const char *options[3]; /* of both images */
    uint32_t cluster;
    bool raw_base, rebase;
};

static const struct shape shapes[] = {
    {"commit 4k", {"cluster_size=4k"}, 4096, false, false},
    {"commit 512", {"cluster_size=512"}, 512, false, false},
    {"commit 512, 1 bit", {"cluster_size=512", "refcount_bits=1"}, 512, false, false},
    {"commit version 2", {"cluster_size=1k", "compat=0.10"}, 1024, false, false},
    {"commit lazy", {"cluster_size=4k", "lazy_refcounts=on"}, 4096, false, false},
    {"commit subclusters", {"cluster_size=16k", "extended_l2=on"}, 4096, false, false},
    {"commit raw", {"cluster_size=4k"}, 4096, true, false},
    {"rebase 4k", {"cluster_size=4k"}, 4096, false, true},
    {"rebase 512", {"cluster_size=512"}, 512, false, true},
    {"rebase 512, 64 bits", {"cluster_size=512", "refcount_bits=64"}, 512, false, true},
    {"rebase version 2", {"cluster_size=1k", "compat=0.10"}, 1024, false, true},
    {"rebase lazy", {"cluster_size=4k", "lazy_refcounts=on"}, 4096, false, true},
    {"rebase subclusters", {"cluster_size=16k", "extended_l2=on"}, 4096, false, true},
};

/* ---- the chain ---- */

static uint8_t expected[DISK_MAX];
static uint64_t expected_bytes;

static void make_file(const struct shape *s, const char *name, const char *below, uint64_t bytes)
{
    char size[40], backing[60];
    const char *format = s->raw_base && !below && !strcmp(name, "base") ? "raw" : "qcow2";
    const char *options[8] = {size};
    size_t n = 1;
    snprintf(size, sizeof(size), "size=%llu", (unsigned long long)bytes);
    for (size_t i = 0; i < 3 && s->options[i] && strcmp(format, "raw"); i++)
        options[n++] = s->options[i];
    if (below) {
        snprintf(backing, sizeof(backing), "backing_file=%s", below);
        options[n++] = backing;
        options[n++] = s->raw_base ? "backing_fmt=raw" : "backing_fmt=qcow2";
    }
    CHECK_OK(qk_create(name, format, options, &last_error));
}

/* base and other differ in parts; top has data, zeroes and parts of clusters, and is longer. */
static void make_chain(const struct shape *s)
{
    const uint64_t c = s->cluster;
    const char *format = s->raw_base ? "raw" : "qcow2";
    make_file(s, "base", NULL, 24 * c);
    make_file(s, "other", NULL, 30 * c);
    make_file(s, "top", "base", 28 * c + 512);
    struct qk_disk *disk = OPEN("base", .format = format, .flags = QK_OPEN_RDWR);
    REQUIRE(disk);
    CHECK_OK(fill(disk, 0, 14 * c, 1));
    CHECK_OK(fill(disk, 15 * c + 100, c, 2));
    CHECK_OK(qk_disk_close(disk, NULL));
    disk = OPEN("other", .flags = QK_OPEN_RDWR);
    REQUIRE(disk);
    CHECK_OK(fill(disk, 0, 6 * c, 1));
    CHECK_OK(fill(disk, 8 * c, 3 * c + 17, 3));
    CHECK_OK(fill(disk, 20 * c, 10 * c, 4));
    CHECK_OK(qk_disk_close(disk, NULL));
    disk = OPEN("top", .flags = QK_OPEN_RDWR);
    REQUIRE(disk);
    CHECK_OK(fill(disk, 2 * c, 3 * c, 5));
    CHECK_OK(fill(disk, 18 * c + 7, 40, 6));
    CHECK_OK(fill(disk, 26 * c, 2 * c, 7));
    CHECK_OK(qk_disk_write_zeroes(disk, 6 * c, 2 * c, 0, NULL));
    expected_bytes = qk_disk_size(disk);
    CHECK_OK(qk_disk_read(disk, 0, expected, expected_bytes, NULL));
    CHECK_OK(qk_disk_close(disk, NULL));
}

static bool reads_as_expected(const char *name, const char *format)
{
    static uint8_t bytes[DISK_MAX];
    struct qk_disk *disk = OPEN(name, .format = format);
    bool same = disk && qk_disk_size(disk) >= expected_bytes &&
                qk_disk_read(disk, 0, bytes, expected_bytes, NULL) == 0 &&
                !memcmp(bytes, expected, expected_bytes);
    qk_disk_close(disk, NULL);
    return same;
}

static int do_job(const struct shape *s, struct qk_disk *disk)
{
    if (s->rebase) {
        struct qk_rebase_options opts = QK_REBASE_OPTIONS_INIT;
        opts.threads = 1;
        opts.backing_file = "other";
        opts.backing_format = "qcow2";
        return qk_rebase(disk, &opts, &last_error);
    }
    struct qk_commit_options opts = QK_COMMIT_OPTIONS_INIT;
    opts.threads = 1;
    return qk_commit(disk, &opts, &last_error);
}

static struct qk_disk *open_top(void)
{
    return OPEN("top", .flags = QK_OPEN_RDWR);
}

/* Leaks only, unless the image says that its refcounts are not to be believed. */
static bool is_sound(struct qk_io *io)
{
    struct findings f;
    struct qk_check_result r = QK_CHECK_RESULT_INIT;
    struct image *img = open_for_check(io, false);
    bool dirty = img && image_needs_repair(img);
    if (img)
        image_abandon(img);
    return img && check_store(io, 0, &f, &r) == 0 && !r.check_errors && (dirty || !r.corruptions);
}

static bool file_is_sound(const char *name)
{
    const struct io_file_options opts = {0};
    struct qk_io *io;
    if (io_file_open(name, &opts, &io, NULL) < 0)
        return false;
    bool sound = is_sound(io);
    io_close(io, NULL);
    return sound;
}

/* After a failure or a crash: the guest sees what it saw, and the job can be finished. */
static bool recovers(const struct shape *s)
{
    if (!reads_as_expected("top", NULL) || !file_is_sound("top") ||
        (!s->raw_base && !file_is_sound("base")))
        return false;
    struct qk_disk *disk = open_top();
    bool done = disk && do_job(s, disk) == 0;
    done = qk_disk_close(disk, NULL) == 0 && done && reads_as_expected("top", NULL);
    return done && (s->rebase || reads_as_expected("base", s->raw_base ? "raw" : "qcow2"));
}

/* ---- the stores below ---- */

static struct qk_io *logs[FILES];
static size_t seen[FILES];
static uint8_t order[EVENTS_MAX]; /* which file's log grew */
static size_t events;
static const struct qk_io_ops *trace_ops;

static void note(struct qk_io *io)
{
    for (uint8_t i = 0; i < FILES; i++) {
        if (logs[i] != io || trace_count(io) == seen[i] || events == EVENTS_MAX)
            continue;
        seen[i]++;
        order[events++] = i;
    }
}

static int noted_pwritev(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                         unsigned flags, struct qk_error *err)
{
    int ret = trace_ops->pwritev(io, off, iov, iovcnt, flags, err);
    note(io);
    return ret;
}

static int noted_zero(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                      struct qk_error *err)
{
    int ret = trace_ops->zero(io, off, len, flags, err);
    note(io);
    return ret;
}

static int noted_discard(struct qk_io *io, uint64_t off, uint64_t len, struct qk_error *err)
{
    int ret = trace_ops->discard(io, off, len, err);
    note(io);
    return ret;
}

static int noted_flush(struct qk_io *io, struct qk_error *err)
{
    int ret = trace_ops->flush(io, err);
    note(io);
    return ret;
}

static int noted_resize(struct qk_io *io, uint64_t size, enum qk_prealloc prealloc,
                        struct qk_error *err)
{
    int ret = trace_ops->resize(io, size, prealloc, err);
    note(io);
    return ret;
}

/* The log is needed after the chain is closed. */
static int kept_open(struct qk_io *io, struct qk_error *err)
{
    (void)io;
    (void)err;
    return 0;
}

static uint8_t *load_file(const char *name, size_t *len)
{
    *len = (size_t)file_bytes(name);
    uint8_t *bytes = malloc(*len + 1);
    int fd = open(name, O_RDONLY);
    CHECK(fd >= 0 && bytes && read(fd, bytes, *len) == (ssize_t)*len);
    close(fd);
    return bytes;
}

static struct qk_io *log_over(const char *name)
{
    static struct qk_io_ops ops;
    size_t len;
    uint8_t *bytes = load_file(name, &len);
    struct qk_io *mem = NULL, *log = NULL;
    CHECK_OK(io_mem_open(bytes, len, 0, &mem, NULL));
    CHECK_OK(io_trace_open(mem, &log, NULL));
    free(bytes);
    trace_ops = trace_ops ? trace_ops : log->ops;
    ops = *trace_ops;
    ops.pwritev = noted_pwritev;
    ops.zero = noted_zero;
    ops.discard = noted_discard;
    ops.flush = noted_flush;
    ops.resize = noted_resize;
    ops.close = kept_open;
    log->ops = &ops;
    return log;
}

static struct node *layer(struct qk_disk *disk, size_t file)
{
    return file ? disk->node : disk->node->backing;
}

static void put_below(struct qk_disk *disk, size_t file, struct qk_io *io)
{
    struct node *bytes = layer(disk, file)->file;
    io_close(bytes->store, NULL);
    bytes->store = io;
    bytes->io.name = io->name;
    bytes->io.can_grow = true;
}

/* ---- power cuts ---- */

/* Which of a file's unstable changes are in the state. */
enum variant { ALL, NONE, EVERY_OTHER, LAST_ONLY, LAST_TORN, VARIANTS };

static bool is_part(enum variant v, size_t seq, size_t end)
{
    switch (v) {
    case NONE:
        return false;
    case EVERY_OTHER:
        return seq % 2;
    case LAST_ONLY:
        return seq + 1 == end;
    default:
        return true;
    }
}

static int replay(const struct trace_entry *e, bool torn, struct qk_io *io)
{
    if (torn && e->kind == TRACE_WRITE && e->len > 512)
        return trace_replay_part(e, 0, e->len / 2 / 512 * 512, io, NULL);
    return trace_replay(e, io, NULL);
}

static void build_file(size_t file, const uint8_t *start, size_t start_len, size_t end,
                       enum variant v)
{
    struct qk_io *io = NULL;
    size_t stable = trace_stable_before(logs[file], end), len;
    CHECK_OK(io_mem_open(start, start_len, 0, &io, NULL));
    for (size_t seq = 0; seq < end; seq++)
        if (seq < stable || is_part(v, seq, end))
            CHECK(replay(trace_get(logs[file], seq),
                         v == LAST_TORN && seq + 1 == end && seq >= stable, io) == 0);
    const uint8_t *bytes = io_mem_data(io, &len);
    put_file(file_names[file], bytes, len, (off_t)len);
    io_close(io, NULL);
}

struct starts {
    uint8_t *bytes[FILES];
    size_t len[FILES];
};

static void cut_everywhere(const struct shape *s, const struct starts *starts)
{
    size_t ends[FILES] = {0};
    unsigned states = 0, lost = 0;
    for (size_t event = 0; event <= events; event++) {
        for (unsigned v = 0; v < VARIANTS * VARIANTS; v++) {
            const unsigned variant[FILES] = {v % VARIANTS, v / VARIANTS};
            bool needless = false;
            for (size_t i = 0; i < FILES; i++)
                needless |= variant[i] != ALL && trace_stable_before(logs[i], ends[i]) == ends[i];
            if (needless)
                continue;
            for (size_t i = 0; i < FILES; i++)
                build_file(i, starts->bytes[i], starts->len[i], ends[i], variant[i]);
            states++;
            if (!recovers(s) && !lost++)
                printf("    %s: lost after %zu of %zu events (%zu of base, %zu of top), variant "
                       "%u: %s\n",
                       s->label, event, events, ends[0], ends[1], v, last_error.text);
        }
        if (event < events)
            ends[order[event]]++;
    }
    CHECK(states > events);
    CHECK_EQ(lost, 0);
}

static void test_power_cuts(const struct shape *s)
{
    struct starts starts;
    make_chain(s);
    struct qk_disk *disk = open_top();
    REQUIRE(disk);
    events = 0;
    for (size_t i = 0; i < FILES; i++) {
        starts.bytes[i] = load_file(file_names[i], &starts.len[i]);
        logs[i] = log_over(file_names[i]);
        seen[i] = 0;
        put_below(disk, i, logs[i]);
    }
    if (!CHECK_OK(do_job(s, disk)))
        printf("    %s: %s\n", s->label, last_error.text);
    CHECK_OK(qk_disk_close(disk, NULL));
    CHECK(events > 0 && events < EVENTS_MAX);
    cut_everywhere(s, &starts);
    for (size_t i = 0; i < FILES; i++) {
        logs[i]->ops = trace_ops;
        io_close(logs[i], NULL);
        free(starts.bytes[i]);
    }
}

/* ---- an error at every request ---- */

static struct qk_io *put_fault(struct qk_disk *disk, size_t file)
{
    struct node *bytes = layer(disk, file)->file;
    struct qk_io *fault = NULL;
    CHECK_OK(io_fault_open(bytes->store, NULL, &fault, NULL));
    bytes->store = fault;
    return fault;
}

/* One run whose nth request on a file fails; false: there were not so many. */
static bool fail_once(const struct shape *s, size_t file, struct fault_nth nth, const char *what)
{
    make_chain(s);
    struct qk_disk *disk = open_top();
    if (!CHECK(disk != NULL))
        return false;
    struct qk_io *fault = put_fault(disk, file);
    fault_fail_nth(fault, &nth);
    int ret = do_job(s, disk);
    /* a rebase that went through has closed the old backing file */
    bool gone = s->rebase && !file && ret == 0;
    uint64_t injected = gone ? 0 : fault_injected(fault, ~0u);
    qk_disk_close(disk, NULL);
    CHECK(ret == 0 || injected);
    if (!CHECK(recovers(s)))
        printf("    %s: request %llu of %s, %s\n", s->label, (unsigned long long)nth.nth,
               file_names[file], what);
    return injected;
}

static void test_errors(const struct shape *s)
{
    static const struct {
        const char *what;
        struct fault_nth nth;
    } kinds[] = {
        {"once", {.error = EIO}},
        {"from there on", {.error = EIO, .always = true}},
        {"no space, torn", {.error = ENOSPC, .iotypes = 1u << FAULT_WRITE, .torn = true}},
    };
    for (size_t file = 0; file < FILES; file++)
        for (size_t k = 0; k < sizeof(kinds) / sizeof(*kinds); k++) {
            struct fault_nth nth = kinds[k].nth;
            for (nth.nth = 1; fail_once(s, file, nth, kinds[k].what); nth.nth++)
                continue;
        }
}

/* ---- the calls ---- */

static int count_down(void *opaque, uint64_t done, uint64_t total)
{
    unsigned *left = opaque;
    CHECK(done <= total);
    return !(*left)--;
}

static void test_cancel(void)
{
    for (unsigned at = 0; at < 3; at++) {
        unsigned left = at;
        struct qk_commit_options commit = QK_COMMIT_OPTIONS_INIT;
        struct qk_rebase_options rebase = QK_REBASE_OPTIONS_INIT;
        commit.progress = rebase.progress = (struct qk_progress){count_down, &left};
        rebase.backing_file = "other";
        rebase.backing_format = "qcow2";
        make_chain(&shapes[0]);
        struct qk_disk *disk = open_top();
        REQUIRE(disk);
        int ret = qk_commit(disk, &commit, &last_error);
        CHECK(ret == -ECANCELED || (at && ret == 0));
        CHECK_OK(qk_disk_close(disk, NULL));
        CHECK(recovers(&shapes[0]));
        make_chain(&shapes[0]);
        disk = open_top();
        REQUIRE(disk);
        left = at;
        ret = qk_rebase(disk, &rebase, &last_error);
        CHECK(ret == -ECANCELED || (at && ret == 0));
        CHECK_OK(qk_disk_close(disk, NULL));
        CHECK(reads_as_expected("top", NULL));
    }
}

static void test_refusals(void)
{
    struct qk_rebase_options rebase = QK_REBASE_OPTIONS_INIT;
    struct qk_commit_options commit = QK_COMMIT_OPTIONS_INIT;
    make_chain(&shapes[0]);
    struct qk_disk *disk = OPEN("top");
    REQUIRE(disk);
    CHECK_ERR(qk_commit(disk, NULL, &last_error), -EROFS);
    CHECK_ERR(qk_rebase(disk, NULL, &last_error), -EROFS);
    commit.base = "nothing";
    commit.flags = QK_COMMIT_KEEP;
    CHECK_ERR(qk_commit(disk, &commit, &last_error), -ENOENT);
    CHECK_STR(last_error.text, "Did not find 'nothing' in the backing chain of 'top'");
    qk_disk_close(disk, NULL);
    disk = OPEN("base", .flags = QK_OPEN_RDWR);
    CHECK_ERR(qk_commit(disk, NULL, &last_error), -EINVAL);
    rebase.backing_file = "top";
    rebase.backing_format = "qcow2";
    CHECK_ERR(qk_rebase(disk, &rebase, &last_error), -ELOOP);
    rebase.flags = QK_REBASE_HEADER_ONLY;
    CHECK_ERR(qk_rebase(disk, &rebase, &last_error), -ELOOP);
    rebase.backing_format = NULL;
    CHECK_ERR(qk_rebase(disk, &rebase, &last_error), -EINVAL);
    qk_disk_close(disk, NULL);
    CHECK(reads_as_expected("top", NULL));
}

/* The disk goes on to be used after a job. */
static void test_use_afterwards(void)
{
    for (unsigned how = 0; how < 3; how++) {
        struct qk_rebase_options rebase = QK_REBASE_OPTIONS_INIT;
        uint8_t *bytes = malloc(DISK_MAX);
        make_chain(&shapes[0]);
        struct qk_disk *disk = open_top();
        REQUIRE(disk && bytes);
        rebase.backing_file = how == 1 ? "other" : "";
        rebase.backing_format = "qcow2";
        CHECK_OK(how ? qk_rebase(disk, &rebase, &last_error) : qk_commit(disk, NULL, &last_error));
        CHECK_OK(qk_disk_read(disk, 0, bytes, expected_bytes, NULL));
        CHECK_MEM(bytes, expected, expected_bytes);
        CHECK(!qk_disk_backing(disk) == (how == 2));
        CHECK_OK(fill(disk, 4096 * 9 + 5, 100, 99));
        memset(expected + 4096 * 9 + 5, 99, 100);
        CHECK_OK(qk_disk_close(disk, NULL));
        CHECK(reads_as_expected("top", NULL));
        CHECK(file_is_sound("top") && file_is_sound("base"));
        free(bytes);
    }
}

int main(void)
{
    if (!test_dir_enter())
        return 1;
    test_refusals();
    test_cancel();
    test_use_afterwards();
    for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++) {
        test_power_cuts(&shapes[i]);
        test_errors(&shapes[i]);
    }
    test_dir_leave();
    return TEST_SUMMARY();
}
