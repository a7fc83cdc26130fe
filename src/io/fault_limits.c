/*
 * fault_limits.c - the limits of a blkdebug store (align, max-transfer, opt- and max- sizes of
 * zeroing and discarding): cutting requests to pieces that keep to them, so that users of the
 * store can be tested against devices with such limits. Without limits a request is one piece.
 *
 * A write that is not aligned reads the blocks at its edges and writes them back; it excludes all
 * other writes meanwhile, and names the read-modify-write events.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "io/fault_store.h"

#include <string.h>

static const struct limit_key {
    const char *name;
    size_t field;
} limit_keys[] = {
    {"align", offsetof(struct fault_limits, align)},
    {"max-transfer", offsetof(struct fault_limits, max_transfer)},
    {"opt-write-zero", offsetof(struct fault_limits, opt_write_zero)},
    {"max-write-zero", offsetof(struct fault_limits, max_write_zero)},
    {"opt-discard", offsetof(struct fault_limits, opt_discard)},
    {"max-discard", offsetof(struct fault_limits, max_discard)},
};

static uint64_t *limit_field(struct fault_limits *limits, const char *key)
{
    for (size_t i = 0; i < ARRAY_SIZE(limit_keys); i++) {
        if (!strcmp(limit_keys[i].name, key))
            return (uint64_t *)(void *)((char *)limits + limit_keys[i].field);
    }
    return NULL;
}

bool fault_is_limit(const char *key)
{
    struct fault_limits unused;
    return limit_field(&unused, key) != NULL;
}

/* Each limit is a multiple of what is below it. */
static int validate(const struct fault_limits *l, struct qk_error *err)
{
    const uint64_t zero_unit = max_u64(l->opt_write_zero, l->align);
    const uint64_t discard_unit = max_u64(l->opt_discard, l->align);
    const struct {
        const char *name;
        uint64_t value, unit;
    } checks[] = {
        {"max-transfer", l->max_transfer, l->align},
        {"opt-write-zero", l->opt_write_zero, l->align},
        {"max-write-zero", l->max_write_zero, zero_unit},
        {"opt-discard", l->opt_discard, l->align},
        {"max-discard", l->max_discard, discard_unit},
    };
    if (l->align >= INT32_MAX || !is_power_of_2(l->align))
        return qk_fail(err, -EINVAL, "Cannot meet constraints with align %llu",
                       (unsigned long long)l->align);
    for (size_t i = 0; i < ARRAY_SIZE(checks); i++) {
        if (checks[i].value >= INT32_MAX || checks[i].value % checks[i].unit)
            return qk_fail(err, -EINVAL, "Cannot meet constraints with %s %llu", checks[i].name,
                           (unsigned long long)checks[i].value);
    }
    return 0;
}

int fault_set_limits(struct qk_io *io, const struct fault_option *options, size_t count,
                     struct qk_error *err)
{
    struct fault_store *f = fault_store(io);
    struct fault_limits limits = {0};
    for (size_t i = 0; i < count; i++) {
        uint64_t *field = limit_field(&limits, options[i].key);
        if (!field)
            return qk_fail(err, -EINVAL, "Invalid parameter '%s'", options[i].key);
        if (qk_parse_size(options[i].value, 'B', field) < 0)
            return qk_fail(err, -EINVAL, "Parameter '%s' expects a size", options[i].key);
    }
    if (!limits.align)
        limits.align = 1;
    int ret = validate(&limits, err);
    if (ret < 0)
        return ret;
    f->limits = limits;
    if (limits.align > f->io.alignment)
        f->io.alignment = (uint32_t)limits.align;
    return 0;
}

/* ---- reading and writing ---- */

/* What to do with each part of at most max-transfer bytes. */
struct shaped {
    struct fault_store *f;
    bool write;
    unsigned flags;
};

static int one_piece(const struct shaped *s, uint64_t off, const struct iovec *iov, int iovcnt,
                     struct qk_error *err)
{
    return s->write ? fault_write_piece(s->f, off, iov, iovcnt, s->flags, err)
                    : fault_read_piece(s->f, off, iov, iovcnt, err);
}

static int in_pieces(const struct shaped *s, uint64_t off, const struct iovec *iov, int iovcnt,
                     struct qk_error *err)
{
    size_t total = iov_total(iov, iovcnt), max = (size_t)s->f->limits.max_transfer;
    if (!max || total <= max)
        return one_piece(s, off, iov, iovcnt, err);
    CLEANUP_FREE struct iovec *part = calloc((size_t)iovcnt, sizeof(*part));
    if (!part)
        return qk_fail_nomem(err);
    for (size_t done = 0; done < total; done += max) {
        int n = iov_slice(iov, iovcnt, done, (size_t)min_u64(max, total - done), part);
        int ret = one_piece(s, off + done, part, n, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static bool is_whole(const struct fault_store *f, uint64_t off, size_t len)
{
    return f->limits.align <= 1 || is_aligned(off | len, f->limits.align);
}

/* The whole blocks around a misaligned request. */
struct window {
    uint64_t off;
    size_t len;
    uint8_t *bytes;
};

static int open_window(struct fault_store *f, uint64_t off, size_t len, struct window *w,
                       struct qk_error *err)
{
    uint64_t align = f->limits.align;
    w->off = round_down(off, align);
    w->len = (size_t)(round_up(off + len, align) - w->off);
    w->bytes = malloc(w->len);
    return w->bytes ? 0 : qk_fail_nomem(err);
}

int fault_preadv(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                 struct qk_error *err)
{
    struct fault_store *f = fault_store(io);
    const struct shaped s = {.f = f};
    size_t total = iov_total(iov, iovcnt);
    if (is_whole(f, off, total))
        return in_pieces(&s, off, iov, iovcnt, err);
    struct window w;
    int ret = open_window(f, off, total, &w, err);
    if (ret == 0)
        ret = in_pieces(&s, w.off, &(struct iovec){w.bytes, w.len}, 1, err);
    if (ret == 0)
        iov_from_buf(iov, iovcnt, 0, w.bytes + (off - w.off), total);
    free(w.bytes);
    return ret;
}

static int read_edge(struct fault_store *f, struct window *w, size_t at, const char *const names[2],
                     struct qk_error *err)
{
    fault_event(&f->io, names[0]);
    int ret = fault_read_piece(f, w->off + at,
                               &(struct iovec){w->bytes + at, (size_t)f->limits.align}, 1, err);
    if (ret == 0)
        fault_event(&f->io, names[1]);
    return ret;
}

static int read_edges(struct fault_store *f, struct window *w, uint64_t off, size_t len,
                      struct qk_error *err)
{
    static const char *const head[2] = {"pwritev_rmw_head", "pwritev_rmw_after_head"};
    static const char *const tail[2] = {"pwritev_rmw_tail", "pwritev_rmw_after_tail"};
    size_t align = (size_t)f->limits.align, last = w->len - align;
    bool has_head = off != w->off, has_tail = !is_aligned(off + len, align);
    int ret = has_head ? read_edge(f, w, 0, head, err) : 0;
    if (ret == 0 && has_tail && !(has_head && last == 0))
        ret = read_edge(f, w, last, tail, err);
    return ret;
}

static int write_window(const struct shaped *s, uint64_t off, const struct iovec *iov, int iovcnt,
                        struct qk_error *err)
{
    size_t total = iov_total(iov, iovcnt);
    struct window w;
    int ret = open_window(s->f, off, total, &w, err);
    if (ret == 0)
        ret = read_edges(s->f, &w, off, total, err);
    if (ret == 0) {
        iov_to_buf(iov, iovcnt, 0, w.bytes + (off - w.off), total);
        ret = in_pieces(s, w.off, &(struct iovec){w.bytes, w.len}, 1, err);
    }
    free(w.bytes);
    return ret;
}

static void lock_edges(struct fault_store *f, bool exclusive)
{
    if (f->limits.align <= 1)
        return;
    if (exclusive)
        pthread_rwlock_wrlock(&f->edge_lock);
    else
        pthread_rwlock_rdlock(&f->edge_lock);
}

static void unlock_edges(struct fault_store *f)
{
    if (f->limits.align > 1)
        pthread_rwlock_unlock(&f->edge_lock);
}

int fault_pwritev(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                  unsigned flags, struct qk_error *err)
{
    struct fault_store *f = fault_store(io);
    const struct shaped s = {.f = f, .write = true, .flags = flags};
    bool whole = is_whole(f, off, iov_total(iov, iovcnt));
    lock_edges(f, !whole);
    int ret =
        whole ? in_pieces(&s, off, iov, iovcnt, err) : write_window(&s, off, iov, iovcnt, err);
    unlock_edges(f);
    return ret;
}

/* ---- zeroing and discarding ---- */

/* The next part: up to a boundary of `unit`, or whole units of at most `max` bytes. */
static uint64_t next_part(uint64_t off, uint64_t len, uint64_t unit, uint64_t max)
{
    if (unit > 1 && off % unit)
        return min_u64(len, unit - off % unit);
    if (unit > 1 && len > unit)
        len -= len % unit;
    return max ? min_u64(len, max) : len;
}

static int write_zero_bytes(struct fault_store *f, uint64_t off, uint64_t len, struct qk_error *err)
{
    CLEANUP_FREE void *zeroes = calloc(1, (size_t)len);
    if (!zeroes)
        return qk_fail_nomem(err);
    return fault_pwritev(&f->io, off, &(struct iovec){zeroes, (size_t)len}, 1, 0, err);
}

int fault_zero(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags, struct qk_error *err)
{
    struct fault_store *f = fault_store(io);
    uint64_t unit = max_u64(f->limits.opt_write_zero, f->limits.align);
    int ret = 0;
    for (uint64_t part; len && ret == 0; off += part, len -= part) {
        part = next_part(off, len, unit, f->limits.max_write_zero);
        if (unit > 1 && (part < unit || off % unit)) {
            ret = write_zero_bytes(f, off, part, err);
            continue;
        }
        lock_edges(f, false);
        ret = fault_zero_piece(f, off, part, flags, err);
        unlock_edges(f);
    }
    return ret;
}

int fault_discard(struct qk_io *io, uint64_t off, uint64_t len, struct qk_error *err)
{
    struct fault_store *f = fault_store(io);
    uint64_t unit = max_u64(f->limits.opt_discard, f->limits.align);
    int ret = 0;
    for (uint64_t part; len && ret == 0; off += part, len -= part) {
        part = next_part(off, len, unit, f->limits.max_discard);
        if (unit > 1 && (part < unit || off % unit))
            continue;
        ret = fault_discard_piece(f, off, part, err);
    }
    return ret;
}
