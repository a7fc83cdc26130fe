/*
 * test_ops_nomem.c - operations on a whole image while the Nth allocation of memory fails, for
 * every N until the operation passes: snapshots, bitmaps, amend, shrink, commit, rebase, encryption
 * and data files. The failure is reported as such, nothing crashes or leaks memory (the sanitizers'
 * runs see that), the disk reads as before (or as after), a check finds no damage, and with memory
 * again the operation succeeds. malloc and its kin are wrapped by the linker (see meson.build).
 */
#include "base/checked.h"
#include "node_test.h"
#include "nomem_text.h"

enum { K = 1024, DISK_BYTES = 256 * K, MOST_ALLOCATIONS = 3000, SMALLER = 100 * K };

/* What an operation starts from, and what it does. */
struct op {
    const char *name;
    int (*work)(struct qk_disk *disk, struct qk_error *err);
    const char *create[4]; /* options beside the size */
    const char *open[2];
    void (*prepare)(struct qk_disk *disk);
    bool shrinks; /* what is behind SMALLER goes */
    bool applies; /* the disk may also read as in snapshot "one" */
    bool opens;   /* opens and closes the disk itself */
};

static struct qk_secrets *secrets;

/* ---- the disk ---- */

static uint8_t before[DISK_BYTES], applied[DISK_BYTES], now[DISK_BYTES];

static struct qk_disk *open_op(const struct op *op, unsigned flags, struct qk_error *err)
{
    struct qk_open_options opts = QK_OPEN_OPTIONS_INIT;
    struct qk_disk *disk = NULL;
    opts.format = "qcow2";
    opts.flags = flags | QK_OPEN_NO_FLUSH;
    opts.options = op->open;
    opts.secrets = secrets;
    return qk_disk_open("top", &opts, &disk, err) == 0 ? disk : NULL;
}

static void fill_some(struct qk_disk *disk, int byte)
{
    CHECK_OK(fill(disk, 0, 50 * K, byte));
    CHECK_OK(fill(disk, 100000, 5000, byte + 1));
    CHECK_OK(qk_disk_write_zeroes(disk, 30 * K, 9 * K, 0, NULL));
    CHECK_OK(fill(disk, DISK_BYTES - 700, 700, byte + 2));
}

static void make_below(const char *name, int byte)
{
    CHECK_OK(MAKE(name, "qcow2", "size=200k", "cluster_size=4k"));
    struct qk_disk *disk = OPEN(name, .flags = QK_OPEN_RDWR | QK_OPEN_NO_FLUSH);
    REQUIRE(disk);
    CHECK_OK(fill(disk, 60 * K, 90 * K, byte));
    CHECK_OK(qk_disk_close(disk, NULL));
}

static void make_top(const struct op *op)
{
    const char *list[ARRAY_SIZE(op->create) + 2] = {"size=256k"};
    struct qk_create_context context = QK_CREATE_CONTEXT_INIT;
    context.secrets = secrets;
    for (size_t i = 0; i < ARRAY_SIZE(op->create) && op->create[i]; i++)
        list[i + 1] = op->create[i];
    CHECK_OK(qk_create_with("top", "qcow2", list, &context, &last_error));
    struct qk_disk *disk = open_op(op, QK_OPEN_RDWR, &last_error);
    REQUIRE(disk);
    fill_some(disk, 1);
    if (op->prepare)
        op->prepare(disk);
    CHECK_OK(qk_disk_read(disk, 0, before, DISK_BYTES, &last_error));
    CHECK_OK(qk_disk_close(disk, &last_error));
}

/* ---- its files, brought back for each run ---- */

static struct kept {
    const char *name;
    uint8_t *bytes;
    size_t len;
} kept[] = {{.name = "top"}, {.name = "below"}, {.name = "other"}, {.name = "data"}};

static void keep_files(void)
{
    for (size_t i = 0; i < ARRAY_SIZE(kept); i++) {
        off_t len = file_bytes(kept[i].name);
        kept[i].bytes = NULL;
        if (len < 0)
            continue;
        FILE *file = fopen(kept[i].name, "rb");
        kept[i].len = (size_t)len;
        kept[i].bytes = malloc(kept[i].len + 1);
        CHECK(file && kept[i].bytes && fread(kept[i].bytes, 1, kept[i].len, file) == kept[i].len);
        fclose(file);
    }
}

static void bring_back(void)
{
    for (size_t i = 0; i < ARRAY_SIZE(kept); i++)
        if (kept[i].bytes)
            put_file(kept[i].name, kept[i].bytes, kept[i].len, (off_t)kept[i].len);
}

static void drop_files(void)
{
    for (size_t i = 0; i < ARRAY_SIZE(kept); i++) {
        free(kept[i].bytes);
        unlink(kept[i].name);
    }
}

/* ---- judging ---- */

static bool reads_well(const struct op *op, struct qk_disk *disk)
{
    uint64_t size = qk_disk_size(disk);
    if (!CHECK(size >= (op->shrinks ? SMALLER : DISK_BYTES)))
        return false;
    size = size < DISK_BYTES ? size : DISK_BYTES;
    return CHECK_OK(qk_disk_read(disk, 0, now, size, &last_error)) &&
           CHECK(!memcmp(now, before, op->shrinks ? SMALLER : size) ||
                 (op->applies && !memcmp(now, applied, size)));
}

static bool is_well(const struct op *op)
{
    struct qk_check_options opts = QK_CHECK_OPTIONS_INIT;
    struct qk_check_result result = QK_CHECK_RESULT_INIT;
    opts.threads = 1;
    struct qk_disk *disk = open_op(op, QK_OPEN_CHECK, &last_error);
    if (!CHECK(disk))
        return false;
    bool good = CHECK_OK(qk_disk_check(disk, &opts, &result, &last_error)) &&
                CHECK_EQ(result.corruptions + result.check_errors, 0);
    qk_disk_close(disk, NULL);
    disk = open_op(op, 0, &last_error);
    good = CHECK(disk) && reads_well(op, disk) && good;
    return CHECK_OK(qk_disk_close(disk, &last_error)) && good;
}

static bool failed_as_told(int ret, const struct qk_error *err)
{
    return ret == 0 || (CHECK_EQ(ret, -ENOMEM) && CHECK_EQ(err->code, ENOMEM) && CHECK(*err->text));
}

/* Once without enough memory, then with it: on the same disk or on the image opened again. False:
 * the nth allocation was never asked for. */
static bool run_open(const struct op *op, long n, bool *good)
{
    struct qk_error err = {0};
    struct qk_disk *disk = open_op(op, QK_OPEN_RDWR, &last_error);
    if (!CHECK(disk))
        return *good = false;
    countdown = n;
    int ret = op->work(disk, &err);
    bool reached = countdown < 0;
    countdown = -1;
    *good = failed_as_told(ret, &err) && reads_well(op, disk);
    if (n % 2 && ret < 0) {
        *good = CHECK_OK(qk_disk_close(disk, &last_error)) && is_well(op) && *good;
        disk = open_op(op, QK_OPEN_RDWR, &last_error);
    }
    if (ret < 0)
        *good = CHECK(disk) && CHECK_OK(op->work(disk, &last_error)) && *good;
    *good = CHECK_OK(qk_disk_close(disk, &last_error)) && *good;
    return reached;
}

static bool run_closed(const struct op *op, long n, bool *good)
{
    struct qk_error err = {0};
    countdown = n;
    int ret = op->work(NULL, &err);
    bool reached = countdown < 0;
    countdown = -1;
    *good = failed_as_told(ret, &err) && is_well(op);
    if (ret < 0)
        *good = CHECK_OK(op->work(NULL, &last_error)) && *good;
    return reached;
}

static const struct op *running;

static void run_op(const struct op *op)
{
    long n = 0;
    bool reached = true, good = true;
    running = op;
    make_below("below", 8);
    make_below("other", 9);
    make_top(op);
    keep_files();
    for (; reached && good && n < MOST_ALLOCATIONS; n++) {
        bring_back();
        reached = op->opens ? run_closed(op, n, &good) : run_open(op, n, &good);
        good = is_well(op) && good;
    }
    printf("%-24s %5ld allocations%s%s\n", op->name, n - 1,
           good ? "" : ": failed: ", good ? "" : last_error.text);
    CHECK(good && !reached && n > 2);
    drop_files();
}

/* ---- the operations ---- */

static void take_snapshots(struct qk_disk *disk)
{
    struct qk_snapshot_options opts = QK_SNAPSHOT_OPTIONS_INIT;
    opts.name = "one";
    CHECK_OK(qk_disk_snapshot_create(disk, &opts, &last_error));
    CHECK_OK(qk_disk_read(disk, 0, applied, DISK_BYTES, &last_error));
    fill_some(disk, 21);
    opts.name = "two";
    CHECK_OK(qk_disk_snapshot_create(disk, &opts, &last_error));
    CHECK_OK(fill(disk, 60 * K, 70 * K, 31));
}

static int snapshot_create(struct qk_disk *disk, struct qk_error *err)
{
    struct qk_snapshot_options opts = QK_SNAPSHOT_OPTIONS_INIT;
    opts.name = "new";
    return qk_disk_snapshot_create(disk, &opts, err);
}

static int snapshot_delete(struct qk_disk *disk, struct qk_error *err)
{
    return qk_disk_snapshot_delete(disk, NULL, "one", err);
}

static int snapshot_apply(struct qk_disk *disk, struct qk_error *err)
{
    return qk_disk_snapshot_apply(disk, NULL, "one", err);
}

static int snapshot_rename(struct qk_disk *disk, struct qk_error *err)
{
    return qk_disk_snapshot_rename(disk, "2", NULL, "a name that is longer than the old one", err);
}

static int snapshot_freed(struct qk_disk *disk, struct qk_error *err)
{
    uint64_t bytes;
    return qk_disk_snapshot_freed(disk, 0, &bytes, err);
}

static void add_bitmaps(struct qk_disk *disk)
{
    CHECK_OK(qk_disk_bitmap_add(disk, "fine", 512, 0, &last_error));
    CHECK_OK(fill(disk, 70 * K, 5 * K, 5));
    CHECK_OK(qk_disk_bitmap_add(disk, "coarse", 64 * K, 0, &last_error));
}

static int bitmap_add(struct qk_disk *disk, struct qk_error *err)
{
    return qk_disk_bitmap_add(disk, "third", 1024, 0, err);
}

static int bitmap_remove(struct qk_disk *disk, struct qk_error *err)
{
    return qk_disk_bitmap_remove(disk, "fine", err);
}

static int bitmap_clear(struct qk_disk *disk, struct qk_error *err)
{
    return qk_disk_bitmap_clear(disk, "fine", err);
}

static int bitmap_merge(struct qk_disk *disk, struct qk_error *err)
{
    return qk_disk_bitmap_merge(disk, "coarse", disk, "fine", err);
}

static int bitmap_disable(struct qk_disk *disk, struct qk_error *err)
{
    return qk_disk_bitmap_disable(disk, "coarse", err);
}

static int amend(struct qk_disk *disk, const char *const *options, struct qk_error *err)
{
    struct qk_amend_settings settings = QK_AMEND_SETTINGS_INIT;
    settings.secrets = secrets;
    settings.flags = QK_AMEND_FORCE;
    return qk_disk_amend(disk, options, &settings, err);
}

/* An operation that is one list of options of amend. */
#define AMEND(function_, ...)                                                                      \
    static int function_(struct qk_disk *disk, struct qk_error *err)                               \
    {                                                                                              \
        return amend(disk, OPTIONS(__VA_ARGS__), err);                                             \
    }
AMEND(amend_width, "refcount_bits=64")
AMEND(amend_narrow, "refcount_bits=4")
AMEND(amend_old, "compat=0.10")
AMEND(amend_new, "compat=1.1", "lazy_refcounts=on", "refcount_bits=32")
AMEND(amend_size, "size=3M")
AMEND(amend_smaller, "size=100k")
AMEND(amend_data, "data_file=data")
AMEND(amend_new_key, "encrypt.state=active", "encrypt.new-secret=t", "encrypt.iter-time=1")
AMEND(amend_no_key, "encrypt.state=inactive", "encrypt.keyslot=5")

static int resize_smaller(struct qk_disk *disk, struct qk_error *err)
{
    return qk_disk_resize(disk, SMALLER, QK_PREALLOC_OFF, QK_RESIZE_SHRINK, err);
}

static int resize_larger(struct qk_disk *disk, struct qk_error *err)
{
    return qk_disk_resize(disk, 2048 * K, QK_PREALLOC_METADATA, 0, err);
}

static int commit(struct qk_disk *disk, struct qk_error *err)
{
    struct qk_commit_options opts = QK_COMMIT_OPTIONS_INIT;
    opts.threads = 1;
    return qk_commit(disk, &opts, err);
}

static int rebase_onto(struct qk_disk *disk, const char *name, struct qk_error *err)
{
    struct qk_rebase_options opts = QK_REBASE_OPTIONS_INIT;
    opts.threads = 1;
    opts.backing_file = name;
    opts.backing_format = name ? "qcow2" : NULL;
    return qk_rebase(disk, &opts, err);
}

static int rebase(struct qk_disk *disk, struct qk_error *err)
{
    return rebase_onto(disk, "other", err);
}

static int rebase_away(struct qk_disk *disk, struct qk_error *err)
{
    return rebase_onto(disk, NULL, err);
}

/* Opens, writes over what is there with the same, closes. */
static int use(struct qk_disk *none, struct qk_error *err)
{
    static uint8_t bytes[20 * K];
    struct qk_info info = QK_INFO_INIT;
    struct qk_disk *disk = open_op(running, QK_OPEN_RDWR, err);
    (void)none;
    if (!disk)
        return -err->code;
    int ret = qk_disk_read(disk, 40 * K, bytes, sizeof(bytes), err);
    if (ret == 0)
        ret = qk_disk_write(disk, 40 * K, bytes, sizeof(bytes), 0, err);
    if (ret == 0)
        ret = qk_disk_info(disk, &info, err);
    int closed = qk_disk_close(disk, ret < 0 ? NULL : err);
    return ret < 0 ? ret : closed;
}

#define SMALL   "cluster_size=512"
#define BACKED  "backing_file=below", "backing_fmt=qcow2"
#define LUKS    "encrypt.format=luks", "encrypt.key-secret=s", "encrypt.iter-time=1"
#define WITHKEY .open = {"encrypt.key-secret=s"}

static const struct op ops[] = {
    {"snapshot create", snapshot_create, .create = {SMALL}, .prepare = take_snapshots},
    {"snapshot create, 1 bit", snapshot_create, .create = {SMALL, "refcount_bits=2"}},
    {"snapshot delete", snapshot_delete, .create = {SMALL}, .prepare = take_snapshots},
    {"snapshot apply", snapshot_apply, .create = {SMALL}, .prepare = take_snapshots,
     .applies = true},
    {"snapshot rename", snapshot_rename, .create = {SMALL}, .prepare = take_snapshots},
    {"snapshot freed", snapshot_freed, .create = {SMALL}, .prepare = take_snapshots},
    {"snapshots, subclusters", snapshot_apply, .create = {"cluster_size=16k", "extended_l2=on"},
     .prepare = take_snapshots, .applies = true},
    {"bitmap add", bitmap_add, .create = {SMALL}, .prepare = add_bitmaps},
    {"bitmap remove", bitmap_remove, .create = {SMALL}, .prepare = add_bitmaps},
    {"bitmap clear", bitmap_clear, .create = {SMALL}, .prepare = add_bitmaps},
    {"bitmap merge", bitmap_merge, .create = {SMALL}, .prepare = add_bitmaps},
    {"bitmap disable", bitmap_disable, .create = {SMALL}, .prepare = add_bitmaps},
    {"bitmaps load and store", use, .create = {SMALL}, .prepare = add_bitmaps, .opens = true},
    {"amend refcount_bits=64", amend_width, .create = {SMALL}},
    {"amend refcount_bits=4", amend_narrow, .create = {SMALL}, .prepare = take_snapshots},
    {"amend compat=0.10", amend_old, .create = {SMALL, "lazy_refcounts=on"}},
    {"amend compat=1.1", amend_new, .create = {SMALL, "compat=0.10"}, .prepare = take_snapshots},
    {"amend size", amend_size, .create = {SMALL}},
    {"amend a smaller size", amend_smaller, .create = {SMALL}, .shrinks = true},
    {"amend data_file", amend_data, .create = {SMALL, "data_file=data"}},
    {"amend a new key", amend_new_key, .create = {LUKS, "cluster_size=4k"}, WITHKEY},
    {"amend an empty slot", amend_no_key, .create = {LUKS, "cluster_size=4k"}, WITHKEY},
    {"shrink", resize_smaller, .create = {SMALL}, .shrinks = true},
    {"shrink with bitmaps", resize_smaller, .create = {SMALL}, .prepare = add_bitmaps,
     .shrinks = true},
    {"shrink a data file", resize_smaller, .create = {SMALL, "data_file=data"}, .shrinks = true},
    {"grow preallocated", resize_larger, .create = {SMALL}},
    {"commit", commit, .create = {SMALL, BACKED}},
    {"rebase", rebase, .create = {SMALL, BACKED}},
    {"rebase onto nothing", rebase_away, .create = {SMALL, BACKED}},
    {"use with LUKS", use, .create = {LUKS, "cluster_size=4k"}, WITHKEY, .opens = true},
    {"use with a data file", use, .create = {SMALL, "data_file=data"}, .opens = true},
    {"use with a raw data file", use, .create = {SMALL, "data_file=data", "data_file_raw=on"},
     .opens = true},
};

/* ---- creating ---- */

static void test_create(const char *const *options)
{
    struct qk_create_context context = QK_CREATE_CONTEXT_INIT;
    int ret = -ENOMEM;
    long n = 0;
    context.secrets = secrets;
    for (; ret < 0 && n < MOST_ALLOCATIONS; n++) {
        struct qk_error err = {0};
        countdown = n;
        ret = qk_create_with("made", "qcow2", options, &context, &err);
        countdown = -1;
        if (!failed_as_told(ret, &err))
            break;
        CHECK(ret == 0 || (file_bytes("made") < 0 && file_bytes("made-data") < 0));
    }
    CHECK_EQ(ret, 0);
    unlink("made");
    unlink("made-data");
}

int main(void)
{
    if (!test_dir_enter())
        return EXIT_FAILURE;
    CHECK_OK(qk_secrets_new(&secrets, NULL));
    CHECK_OK(qk_secrets_add(secrets, "s", "abc", 3, NULL));
    CHECK_OK(qk_secrets_add(secrets, "t", "def", 3, NULL));
    for (size_t i = 0; i < ARRAY_SIZE(ops); i++)
        run_op(&ops[i]);
    test_create(OPTIONS("size=1M", LUKS));
    test_create(OPTIONS("size=1M", "data_file=made-data", "data_file_raw=on"));
    test_create(OPTIONS("size=1M", "extended_l2=on", "preallocation=metadata"));
    qk_secrets_free(secrets);
    test_dir_leave();
    return TEST_SUMMARY();
}
