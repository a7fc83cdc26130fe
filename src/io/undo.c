/*
 * undo.c - the filter of undo.h, and the file that its log goes to. Each sector's old bytes are
 * saved once, at its first change; every announced state of a sector is noted. Promises
 * (INV-8): when pwritev, zero or resize reaches the inner store, a READY record that covers it is
 * stable. A log that cannot be written stops the change, not only the logging.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/runs.h"
#include "io/undo_log.h"

#include <fcntl.h>
#include <libgen.h>
#include <string.h>
#include <sys/random.h>

struct undo {
    struct qk_io io;
    struct qk_io *inner, *log;
    pthread_mutex_t lock;
    struct undo_head head;
    uint64_t log_end, seq;
    bool ready; /* nothing was announced since the last READY */
    uint64_t longest, shortest;
    struct runs saved; /* sectors */
};

static struct undo *undo_of(struct qk_io *io)
{
    return (struct undo *)io;
}

/* ---- the log ---- */

static int append(struct undo *u, struct undo_record r, const void *payload, struct qk_error *err)
{
    static const uint8_t padding[UNDO_ALIGN];
    uint8_t record[UNDO_RECORD_BYTES];
    r.seq = u->seq;
    undo_record_encode(&u->head, &r, payload, record);
    struct iovec iov[] = {
        {record, sizeof(record)},
        {(void *)(uintptr_t)payload, (size_t)r.payload_bytes},
        {(void *)(uintptr_t)padding, (size_t)(-r.payload_bytes % UNDO_ALIGN)},
    };
    int ret = io_writev(u->log, u->log_end, iov, ARRAY_SIZE(iov), 0, err);
    if (ret < 0)
        return ret;
    u->seq++;
    u->ready = r.type == UNDO_REDY;
    u->log_end += iov_total(iov, ARRAY_SIZE(iov));
    return 0;
}

static bool all_zero(const uint8_t *p, size_t len)
{
    return !len || (!p[0] && !memcmp(p, p + 1, len - 1));
}

/* Old bytes of [off, off + len), of which none was saved yet. */
static int save_run(struct undo *u, uint64_t off, const uint8_t *old, size_t len,
                    struct qk_error *err)
{
    struct undo_record r = {.type = UNDO_BYTE, .off = off, .len = len, .payload_bytes = len};
    if (all_zero(old, len)) {
        r.type = UNDO_ZERO;
        r.payload_bytes = 0;
    }
    const struct run sectors = {off / UNDO_SECTOR, (uint32_t)div_round_up(len, UNDO_SECTOR), 0, 0};
    int ret = append(u, r, old, err);
    return ret == 0 && runs_put(&u->saved, sectors) < 0 ? qk_fail_nomem(err) : ret;
}

/* What of the range [off, off + len) was there before and is not saved yet. */
static int save_old(struct undo *u, uint64_t off, const uint8_t *old, size_t len,
                    struct qk_error *err)
{
    uint64_t end = min_u64(off + len, max_u64(off, u->head.length));
    int ret = 0;
    for (uint64_t at = off; ret == 0 && at < end;) {
        struct run_at place;
        const struct run *saved = runs_from(&u->saved, at / UNDO_SECTOR, &place);
        if (saved && saved->first * UNDO_SECTOR <= at) {
            at = run_end(saved) * UNDO_SECTOR;
            continue;
        }
        uint64_t stop = saved ? min_u64(end, saved->first * UNDO_SECTOR) : end;
        ret = save_run(u, at, old + (at - off), (size_t)(stop - at), err);
        at = stop;
    }
    return ret;
}

/* The range will be as in `bytes`, whole sectors. */
static int note_sums(struct undo *u, uint64_t off, const uint8_t *bytes, size_t len,
                     struct qk_error *err)
{
    size_t n = len / UNDO_SECTOR;
    CLEANUP_FREE uint8_t *sums = malloc(n * 4);
    if (!sums)
        return qk_fail_nomem(err);
    for (size_t i = 0; i < n; i++)
        store_be32(sums + 4 * i, crc32c(0, bytes + i * UNDO_SECTOR, UNDO_SECTOR));
    const struct undo_record r = {
        .type = UNDO_SUMS, .off = off, .len = len, .payload_bytes = n * 4};
    return append(u, r, sums, err);
}

/* At most UNDO_RANGE_MAX bytes, and in whole sectors even so. bytes NULL: zeroes. */
static int announce_piece(struct undo *u, uint64_t off, const uint8_t *bytes, size_t len,
                          struct qk_error *err)
{
    uint64_t first = round_down(off, UNDO_SECTOR), end = round_up(off + len, UNDO_SECTOR);
    size_t n = (size_t)(end - first);
    CLEANUP_FREE uint8_t *buf = malloc(n);
    if (!buf)
        return qk_fail_nomem(err);
    int ret = io_read(u->inner, first, buf, n, err);
    if (ret == 0)
        ret = save_old(u, first, buf, n, err);
    if (ret < 0)
        return ret;
    if (bytes)
        memcpy(buf + (off - first), bytes, len);
    else
        memset(buf + (off - first), 0, len);
    return note_sums(u, first, buf, n, err);
}

static int announce_range(struct undo *u, uint64_t off, const uint8_t *bytes, uint64_t len,
                          struct qk_error *err)
{
    const uint64_t most = UNDO_RANGE_MAX / 2;
    int ret = 0;
    for (uint64_t done = 0; ret == 0 && done < len;) {
        uint64_t n = min_u64(len - done, most - (off + done) % UNDO_SECTOR);
        ret = announce_piece(u, off + done, bytes ? bytes + done : NULL, (size_t)n, err);
        done += n;
    }
    return ret;
}

static int announce_length(struct undo *u, uint64_t length, struct qk_error *err)
{
    if (length <= u->longest && length >= u->shortest)
        return 0;
    const struct undo_record r = {.type = UNDO_SIZE, .len = length};
    u->longest = max_u64(u->longest, length);
    u->shortest = min_u64(u->shortest, length);
    return append(u, r, NULL, err);
}

/* The head, and the sector that tells images apart: it is held against the store before an undo. */
static int begin(struct undo *u, struct qk_error *err)
{
    uint8_t head[UNDO_HEAD_BYTES], first[UNDO_SECTOR];
    if (u->log_end)
        return 0;
    undo_head_encode(&u->head, head);
    int ret = io_read(u->inner, 0, first, sizeof(first), err);
    if (ret == 0)
        ret = io_write(u->log, 0, head, sizeof(head), 0, err);
    if (ret < 0)
        return ret;
    u->log_end = sizeof(head);
    return save_old(u, 0, first, sizeof(first), err);
}

static int announce(struct undo *u, uint64_t off, const uint8_t *bytes, uint64_t len,
                    struct qk_error *err)
{
    uint64_t end;
    if (!try_add_u64(off, len, &end) || end > INT64_MAX - UNDO_RANGE_MAX)
        return qk_fail(err, -EFBIG, "write past the largest offset");
    int ret = begin(u, err);
    if (ret == 0)
        ret = announce_range(u, off, bytes, len, err);
    return ret == 0 && len ? announce_length(u, max_u64(end, u->shortest), err) : ret;
}

static int make_ready(struct undo *u, struct qk_error *err)
{
    const struct undo_record r = {.type = UNDO_REDY};
    if (u->ready)
        return 0;
    int ret = io_flush(u->log, err);
    if (ret == 0)
        ret = append(u, r, NULL, err);
    if (ret == 0 && (ret = io_flush(u->log, err)) < 0)
        u->ready = false;
    return ret;
}

static int cannot_save(const struct undo *u, int ret, struct qk_error *err)
{
    return ret < 0 && err ? qk_error_prefix(err, "Could not save what would be overwritten in '%s'",
                                            u->log->name)
                          : ret;
}

static int announce_resize(struct undo *u, uint64_t size, struct qk_error *err)
{
    uint64_t now;
    int ret = io_size(u->inner, &now, err);
    if (ret == 0)
        ret = begin(u, err);
    if (ret == 0 && size < now)
        ret = announce_range(u, size, NULL, now - size, err);
    return ret < 0 ? ret : announce_length(u, size, err);
}

int undo_announce(struct qk_io *io, uint64_t off, const void *bytes, size_t len,
                  struct qk_error *err)
{
    struct undo *u = undo_of(io);
    LOCK_SCOPE(&u->lock);
    int ret = bytes ? announce(u, off, bytes, len, err) : announce_resize(u, off, err);
    return cannot_save(u, ret, err);
}

int undo_ready(struct qk_io *io, struct qk_error *err)
{
    struct undo *u = undo_of(io);
    LOCK_SCOPE(&u->lock);
    return cannot_save(u, make_ready(u, err), err);
}

void undo_done(struct qk_io *io)
{
    struct undo *u = undo_of(io);
    const struct undo_record r = {.type = UNDO_DONE};
    LOCK_SCOPE(&u->lock);
    if (u->ready && u->seq && append(u, r, NULL, NULL) == 0)
        io_flush(u->log, NULL);
}

/* ---- the store ---- */

static int undo_preadv(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                       struct qk_error *err)
{
    return io_readv(undo_of(io)->inner, off, iov, iovcnt, err);
}

static int undo_pwritev(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                        unsigned flags, struct qk_error *err)
{
    struct undo *u = undo_of(io);
    size_t len = iov_total(iov, iovcnt);
    CLEANUP_FREE uint8_t *copy = iovcnt == 1 ? NULL : malloc(len + 1);
    const uint8_t *bytes = iovcnt == 1 ? iov->iov_base : copy;
    if (!bytes)
        return qk_fail_nomem(err);
    if (copy)
        iov_to_buf(iov, iovcnt, 0, copy, len);
    LOCK_SCOPE(&u->lock);
    int ret = announce(u, off, bytes, len, err);
    if (ret == 0)
        ret = make_ready(u, err);
    if (ret < 0)
        return cannot_save(u, ret, err);
    return io_writev(u->inner, off, iov, iovcnt, flags, err);
}

static int undo_zero(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                     struct qk_error *err)
{
    struct undo *u = undo_of(io);
    LOCK_SCOPE(&u->lock);
    int ret = announce(u, off, NULL, len, err);
    if (ret == 0)
        ret = make_ready(u, err);
    if (ret < 0)
        return cannot_save(u, ret, err);
    return io_zero(u->inner, off, len, flags, err);
}

static int undo_resize(struct qk_io *io, uint64_t size, enum qk_prealloc prealloc,
                       struct qk_error *err)
{
    struct undo *u = undo_of(io);
    LOCK_SCOPE(&u->lock);
    int ret = announce_resize(u, size, err);
    if (ret == 0)
        ret = make_ready(u, err);
    if (ret < 0)
        return cannot_save(u, ret, err);
    return io_resize(u->inner, size, prealloc, err);
}

static int undo_flush(struct qk_io *io, struct qk_error *err)
{
    return io_flush(undo_of(io)->inner, err);
}

static int undo_size(struct qk_io *io, uint64_t *size, struct qk_error *err)
{
    return io_size(undo_of(io)->inner, size, err);
}

static int undo_status(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                       struct qk_extent *extent, struct qk_error *err)
{
    return io_status(undo_of(io)->inner, off, len, flags, extent, err);
}

static int undo_close(struct qk_io *io, struct qk_error *err)
{
    struct undo *u = undo_of(io);
    (void)err;
    pthread_mutex_destroy(&u->lock);
    runs_free(&u->saved);
    free(u->io.name);
    free(u);
    return 0;
}

/* Without discard: the old bytes might be gone or not. */
static const struct qk_io_ops undo_ops = {
    .name = "undo",
    .preadv = undo_preadv,
    .pwritev = undo_pwritev,
    .zero = undo_zero,
    .flush = undo_flush,
    .size = undo_size,
    .resize = undo_resize,
    .status = undo_status,
    .close = undo_close,
};

int io_undo_open(struct qk_io *inner, struct qk_io *log, struct qk_io **out, struct qk_error *err)
{
    uint64_t log_length, length;
    int ret = io_size(log, &log_length, err);
    if (ret == 0)
        ret = io_size(inner, &length, err);
    if (ret < 0)
        return ret;
    if (log_length)
        return qk_fail(err, -EEXIST, "the undo file '%s' is not empty", log->name);
    struct undo *u = calloc(1, sizeof(*u));
    char *name = u ? strdup(inner->name) : NULL;
    if (!name || getrandom(u->head.id, sizeof(u->head.id), 0) != sizeof(u->head.id)) {
        free(name);
        free(u);
        return qk_fail_nomem(err);
    }
    u->io = *inner;
    u->io.ops = &undo_ops;
    u->io.name = name;
    u->inner = inner;
    u->log = log;
    u->ready = true;
    u->head.length = u->longest = u->shortest = length;
    pthread_mutex_init(&u->lock, NULL);
    *out = &u->io;
    return 0;
}

/* ---- the file ---- */

static int sync_folder(const char *name, struct qk_error *err)
{
    CLEANUP_FREE char *copy = strdup(name);
    if (!copy)
        return qk_fail_nomem(err);
    CLEANUP_CLOSE int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || (fsync(fd) < 0 && errno != EINVAL))
        return qk_fail_errno(err, -errno, "Could not make the name of '%s' stable", name);
    return 0;
}

int undo_file_create(const char *name, struct qk_io **out, struct qk_error *err)
{
    const struct io_file_options opts = {.writable = true};
    int fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return qk_fail_errno(err, -errno, "Could not create the undo file '%s'", name);
    close(fd);
    int ret = sync_folder(name, err);
    if (ret == 0)
        ret = io_file_open(name, &opts, out, err);
    if (ret < 0)
        unlink(name);
    return ret;
}
