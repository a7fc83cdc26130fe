/*
 * test_undo.c - taking repairs back through the public calls, what is refused, and logs that cannot
 * be written: then nothing is repaired. What a power cut leaves is in test_check_crash.c.
 */
#include "check_test.h"
#include "io/undo_log.h"

#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define FIX_ALL (QK_FIX_LEAKS | QK_FIX_ERRORS)

static void damage(struct qk_io *io)
{
    write_be64(io, l2_place(io, 30), read_be64(io, l2_place(io, 4)));
    set_refcount(io, 0, 0);
}

static void store_in_file(const char *name, struct qk_io *io)
{
    size_t bytes;
    const uint8_t *data = io_mem_data(io, &bytes);
    FILE *f = fopen(name, "wb");
    CHECK_EQ(fwrite(data, 1, bytes, f), bytes);
    fclose(f);
}

static bool file_is(const char *name, struct qk_io *io)
{
    size_t bytes;
    const uint8_t *data = io_mem_data(io, &bytes);
    uint8_t *now = malloc(bytes + 1);
    FILE *f = fopen(name, "rb");
    bool same = fread(now, 1, bytes + 1, f) == bytes && !memcmp(now, data, bytes);
    fclose(f);
    free(now);
    return same;
}

static int repair(const char *name, const char *undo, struct qk_check_result *r,
                  struct qk_error *err)
{
    struct qk_open_options how = QK_OPEN_OPTIONS_INIT;
    struct qk_check_options opts = QK_CHECK_OPTIONS_INIT;
    struct qk_disk *disk = NULL;
    how.flags = QK_OPEN_RDWR | QK_OPEN_CHECK;
    how.format = "qcow2";
    opts.fix = FIX_ALL;
    opts.undo_file = undo;
    *r = (struct qk_check_result)QK_CHECK_RESULT_INIT;
    CHECK_OK(qk_disk_open(name, &how, &disk, NULL));
    int ret = qk_disk_check(disk, &opts, r, err);
    CHECK_OK(qk_disk_close(disk, NULL));
    return ret;
}

static void test_files(const char *folder)
{
    char name[300], other[300], undo[300];
    struct qk_undo_result u = QK_UNDO_RESULT_INIT;
    struct qk_error err = {0};
    struct qk_check_result r;
    struct qk_io *io = make_image(12, 4);
    struct stat st;
    snprintf(name, sizeof(name), "%s/disk", folder);
    snprintf(other, sizeof(other), "%s/other", folder);
    snprintf(undo, sizeof(undo), "%s/disk.undo", folder);
    store_in_file(other, io);
    damage(io);
    store_in_file(name, io);
    CHECK_OK(repair(name, undo, &r, NULL));
    CHECK(r.undo_saved && r.steps && r.corruptions_fixed);
    CHECK(!file_is(name, io));
    CHECK_EQ(qk_undo(other, undo, &u, &err), -EUCLEAN);
    CHECK_EQ(qk_undo(name, name, &u, &err), -EINVAL);
    CHECK_STR(err.text, "not an undo file");
    for (int i = 0; i < 2; i++) {
        CHECK_OK(qk_undo(name, undo, &u, NULL));
        CHECK(u.bytes && !u.never_begun);
        CHECK(file_is(name, io));
    }
    /* One that is there is never replaced, and then nothing is repaired. */
    CHECK_EQ(repair(name, undo, &r, &err), -EEXIST);
    CHECK(file_is(name, io));
    unlink(undo);
    CHECK_OK(repair(name, NULL, &r, NULL));
    CHECK_OK(repair(name, undo, &r, NULL));
    CHECK(!r.steps && !r.undo_saved && stat(undo, &st) < 0); /* nothing was left to do */
    unlink(name);
    unlink(other);
    io_close(io, NULL);
}

/* A program that was built when the structs were shorter: what is behind them is neither read nor
 * written. */
static void test_older_program(const char *folder)
{
    char name[300], undo[300];
    struct qk_open_options how = QK_OPEN_OPTIONS_INIT;
    struct qk_check_options opts = QK_CHECK_OPTIONS_INIT;
    struct qk_check_result r = {.steps = 12345,
                                .struct_size = offsetof(struct qk_check_result, steps)};
    struct qk_undo_result u = {.length = 12345,
                               .struct_size = offsetof(struct qk_undo_result, length)};
    struct qk_io *io = make_image(12, 4);
    struct qk_disk *disk = NULL;
    snprintf(name, sizeof(name), "%s/disk", folder);
    snprintf(undo, sizeof(undo), "%s/disk.undo", folder);
    damage(io);
    store_in_file(name, io);
    how.flags = QK_OPEN_CHECK;
    how.format = "qcow2";
    CHECK_OK(qk_disk_open(name, &how, &disk, NULL));
    opts.fix = FIX_ALL;
    opts.struct_size = offsetof(struct qk_check_options, fix);
    CHECK_OK(qk_disk_check(disk, &opts, &r, NULL)); /* a look: this disk cannot be written to */
    CHECK(r.corruptions && r.steps == 12345);
    CHECK_EQ(r.struct_size, offsetof(struct qk_check_result, steps));
    r.struct_size = 0;
    CHECK_EQ(qk_disk_check(disk, NULL, &r, NULL), -EINVAL);
    CHECK_OK(qk_disk_close(disk, NULL));
    CHECK_OK(repair(name, undo, &r, NULL));
    CHECK_OK(qk_undo(name, undo, &u, NULL));
    CHECK(u.bytes && u.length == 12345 && file_is(name, io));
    u.struct_size = 0;
    CHECK_EQ(qk_undo(name, undo, &u, NULL), -EINVAL);
    unlink(name);
    unlink(undo);
    io_close(io, NULL);
}

/* A log with room for some of the records only. */
static void test_no_room(size_t room)
{
    struct qk_io *io = make_image(12, 4), *log = NULL, *copy = NULL;
    struct qk_check_options opts = QK_CHECK_OPTIONS_INIT;
    struct qk_check_result r;
    size_t bytes, now_bytes;
    damage(io);
    const uint8_t *now = io_mem_data(io, &bytes);
    CHECK_OK(io_mem_open(now, bytes, 0, &copy, NULL));
    CHECK_OK(io_mem_open(NULL, 0, room, &log, NULL));
    struct image *img = open_for_check(io, true);
    opts.fix = FIX_ALL;
    CHECK_EQ(check_image_saving(img, &opts, log, &r, NULL), -ENOSPC);
    CHECK(!r.undo_saved);
    image_abandon(img);
    const uint8_t *before = io_mem_data(copy, &bytes);
    now = io_mem_data(io, &now_bytes);
    CHECK(now_bytes == bytes && !memcmp(now, before, bytes));
    io_close(log, NULL);
    io_close(copy, NULL);
    io_close(io, NULL);
}

/* A write that nobody announced, a growth and a cut, through the filter alone. */
static void test_filter(void)
{
    struct qk_io *store = NULL, *log = NULL, *undo = NULL;
    struct undo_result result;
    uint8_t bytes[5000], word[700];
    size_t now_bytes;
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 7);
    memset(word, 0xaa, sizeof(word));
    CHECK_OK(io_mem_open(bytes, sizeof(bytes), 0, &store, NULL));
    CHECK_OK(io_mem_open(NULL, 0, 0, &log, NULL));
    CHECK_OK(io_undo_open(store, log, &undo, NULL));
    CHECK_OK(io_write(undo, 700, word, sizeof(word), 0, NULL));
    CHECK_OK(io_write(undo, 4900, word, sizeof(word), 0, NULL));
    CHECK_OK(io_resize(undo, 3001, QK_PREALLOC_OFF, NULL));
    CHECK_OK(io_zero_or_write(undo, 10, 2000, 0, NULL));
    CHECK_OK(io_flush(undo, NULL));
    CHECK_OK(undo_restore(log, store, &result, NULL));
    const uint8_t *now = io_mem_data(store, &now_bytes);
    CHECK(now_bytes == sizeof(bytes) && !memcmp(now, bytes, sizeof(bytes)));
    io_close(undo, NULL);
    io_close(log, NULL);
    io_close(store, NULL);
}

/* ---- a log that says DONE ---- */

struct done_log {
    struct qk_io *store, *log;
    uint8_t before[2 * UNDO_SECTOR], after[2 * UNDO_SECTOR];
};

/* Two sectors were changed, and that is done. */
static void done_init(struct done_log *d)
{
    struct qk_io *undo = NULL;
    for (size_t i = 0; i < sizeof(d->before); i++) {
        d->before[i] = (uint8_t)(i * 7);
        d->after[i] = (uint8_t)(i * 11 + 1);
    }
    d->store = d->log = NULL;
    CHECK_OK(io_mem_open(d->before, sizeof(d->before), 0, &d->store, NULL));
    CHECK_OK(io_mem_open(NULL, 0, 0, &d->log, NULL));
    CHECK_OK(io_undo_open(d->store, d->log, &undo, NULL));
    CHECK_OK(io_write(undo, 0, d->after, sizeof(d->after), 0, NULL));
    undo_done(undo);
    io_close(undo, NULL);
}

/* The first sector is as it was, the second one as it was changed. */
static void done_mix(struct done_log *d)
{
    CHECK_OK(io_write(d->store, 0, d->before, UNDO_SECTOR, 0, NULL));
    CHECK_OK(io_write(d->store, UNDO_SECTOR, d->after + UNDO_SECTOR, UNDO_SECTOR, 0, NULL));
}

static bool done_is(struct done_log *d, const uint8_t *bytes)
{
    size_t len;
    const uint8_t *now = io_mem_data(d->store, &len);
    return len == sizeof(d->before) && !memcmp(now, bytes, len);
}

static uint32_t last_type(struct done_log *d, uint64_t *off)
{
    uint8_t bytes[UNDO_RECORD_BYTES];
    struct undo_record r = {0};
    CHECK_OK(io_size(d->log, off, NULL));
    *off -= sizeof(bytes);
    CHECK_OK(io_read(d->log, *off, bytes, sizeof(bytes), NULL));
    CHECK(undo_record_decode(bytes, &r));
    return r.type;
}

/* As the log is while an undo is on. */
static void done_begin(struct done_log *d)
{
    uint8_t head_bytes[UNDO_HEAD_BYTES], bytes[UNDO_RECORD_BYTES];
    struct undo_head head;
    struct undo_record r;
    uint64_t off;
    CHECK_EQ(last_type(d, &off), UNDO_DONE);
    CHECK_OK(io_read(d->log, 0, head_bytes, sizeof(head_bytes), NULL));
    CHECK_OK(io_read(d->log, off, bytes, sizeof(bytes), NULL));
    CHECK_OK(undo_head_decode(head_bytes, &head, NULL));
    CHECK(undo_record_decode(bytes, &r));
    r.type = UNDO_BACK;
    undo_record_encode(&head, &r, NULL, bytes);
    CHECK_OK(io_write(d->log, off, bytes, sizeof(bytes), 0, NULL));
}

/* Then each sector by itself may not be as one state or the other; while an undo is on, it may. */
static void test_done(void)
{
    struct done_log d;
    struct undo_result result;
    uint64_t off;
    done_init(&d);
    done_mix(&d);
    CHECK_EQ(undo_restore(d.log, d.store, &result, NULL), -EUCLEAN);
    CHECK(!done_is(&d, d.before));
    done_begin(&d);
    CHECK_OK(undo_restore(d.log, d.store, &result, NULL));
    CHECK(done_is(&d, d.before));
    CHECK_EQ(last_type(&d, &off), UNDO_DONE);
    CHECK_OK(undo_restore(d.log, d.store, &result, NULL));
    done_mix(&d);
    CHECK_EQ(undo_restore(d.log, d.store, &result, NULL), -EUCLEAN);
    CHECK_OK(io_write(d.store, 0, d.after, sizeof(d.after), 0, NULL));
    d.log->writable = false;
    CHECK_EQ(undo_restore(d.log, d.store, &result, NULL), -EACCES);
    CHECK(done_is(&d, d.after));
    d.log->writable = true;
    CHECK_OK(undo_restore(d.log, d.store, &result, NULL));
    CHECK(done_is(&d, d.before));
    CHECK_EQ(last_type(&d, &off), UNDO_DONE);
    io_close(d.log, NULL);
    io_close(d.store, NULL);
}

/* A log full of records that claim the largest payload: each byte is read once. */
static void test_claims(void)
{
    const size_t bytes = 8u << 20;
    uint8_t *log_bytes = calloc(1, bytes);
    struct undo_head head = {.length = 4096};
    struct qk_io *store = NULL, *log = NULL;
    struct undo_result result;
    undo_head_encode(&head, log_bytes);
    for (size_t at = UNDO_HEAD_BYTES; at + UNDO_RECORD_BYTES <= bytes; at += UNDO_RECORD_BYTES) {
        store_be32(log_bytes + at, UNDO_BYTE);
        store_be64(log_bytes + at + 24, UNDO_RANGE_MAX);
        store_be64(log_bytes + at + 32, UNDO_RANGE_MAX);
    }
    CHECK_OK(io_mem_open(log_bytes, bytes, 0, &log, NULL));
    CHECK_OK(io_mem_open(log_bytes, head.length, 0, &store, NULL));
    clock_t begun = clock();
    CHECK_OK(undo_restore(log, store, &result, NULL));
    CHECK(result.never_begun);
    CHECK(clock() - begun < 5 * CLOCKS_PER_SEC);
    io_close(log, NULL);
    io_close(store, NULL);
    free(log_bytes);
}

int main(void)
{
    char folder[] = "/tmp/qcowkit-undo.XXXXXX";
    CHECK(mkdtemp(folder) != NULL);
    test_older_program(folder);
    test_files(folder);
    rmdir(folder);
    for (size_t room = 1; room < 1200; room += 97)
        test_no_room(room);
    test_filter();
    test_done();
    test_claims();
    return TEST_SUMMARY();
}
