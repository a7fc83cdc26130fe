/*
 * trace.c - the logging filter of trace.h. One mutex is held over each change and its log entry,
 * which makes the two orders the same; reads pass through without it. A flush counts as covering
 * what was complete when it was called, not what slipped in while it waited for its turn.
 */
#include "io/trace.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/vector.h"

#include <stdio.h>
#include <string.h>

DEFINE_VECTOR(entry_list, struct trace_entry *)

struct trace_log {
    pthread_mutex_t order; /* held over a change and its entry */
    pthread_mutex_t lock;  /* over entries only */
    struct entry_list entries;
};

struct trace_store {
    struct qk_io io;
    struct qk_io *inner;
    unsigned number;
    struct trace_log own;
    struct trace_log *log; /* its own, or that of the first store */
};

static struct trace_store *trace_store(struct qk_io *io)
{
    return (struct trace_store *)io;
}

/* Entry and data in one block. Made before the change, so that logging cannot fail after it. */
static struct trace_entry *new_entry(struct trace_store *t, enum trace_kind kind, size_t data_len,
                                     struct qk_error *err)
{
    struct trace_entry *entry = malloc(sizeof(*entry) + data_len);
    LOCK_SCOPE(&t->log->lock);
    if (!entry || entry_list_reserve(&t->log->entries, t->log->entries.len + 1) < 0) {
        free(entry);
        qk_fail_nomem(err);
        return NULL;
    }
    *entry = (struct trace_entry){.kind = kind, .store = t->number, .data = (uint8_t *)(entry + 1)};
    return entry;
}

/* Keeps the entry when the change succeeded. */
static int log_result(struct trace_store *t, struct trace_entry *entry, int ret)
{
    LOCK_SCOPE(&t->log->lock);
    if (ret < 0) {
        free(entry);
        return ret;
    }
    entry->seq = t->log->entries.len;
    t->log->entries.ptr[t->log->entries.len++] = entry;
    return ret;
}

static int trace_preadv(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                        struct qk_error *err)
{
    return io_readv(trace_store(io)->inner, off, iov, iovcnt, err);
}

static int trace_pwritev(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                         unsigned flags, struct qk_error *err)
{
    struct trace_store *t = trace_store(io);
    size_t len = iov_total(iov, iovcnt);
    LOCK_SCOPE(&t->log->order);
    struct trace_entry *entry = new_entry(t, TRACE_WRITE, len, err);
    if (!entry)
        return -ENOMEM;
    entry->off = off;
    entry->len = len;
    entry->fua = flags & QK_WRITE_FUA;
    iov_to_buf(iov, iovcnt, 0, entry + 1, len);
    return log_result(t, entry, io_writev(t->inner, off, iov, iovcnt, flags, err));
}

static int trace_zero(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                      struct qk_error *err)
{
    struct trace_store *t = trace_store(io);
    LOCK_SCOPE(&t->log->order);
    struct trace_entry *entry = new_entry(t, TRACE_ZERO, 0, err);
    if (!entry)
        return -ENOMEM;
    entry->off = off;
    entry->len = len;
    return log_result(t, entry, io_zero(t->inner, off, len, flags, err));
}

static int trace_discard(struct qk_io *io, uint64_t off, uint64_t len, struct qk_error *err)
{
    struct trace_store *t = trace_store(io);
    LOCK_SCOPE(&t->log->order);
    struct trace_entry *entry = new_entry(t, TRACE_DISCARD, 0, err);
    if (!entry)
        return -ENOMEM;
    entry->off = off;
    entry->len = len;
    return log_result(t, entry, io_discard(t->inner, off, len, err));
}

static int trace_resize(struct qk_io *io, uint64_t size, enum qk_prealloc prealloc,
                        struct qk_error *err)
{
    struct trace_store *t = trace_store(io);
    LOCK_SCOPE(&t->log->order);
    struct trace_entry *entry = new_entry(t, TRACE_RESIZE, 0, err);
    if (!entry)
        return -ENOMEM;
    entry->len = size;
    return log_result(t, entry, io_resize(t->inner, size, prealloc, err));
}

static int trace_flush(struct qk_io *io, struct qk_error *err)
{
    struct trace_store *t = trace_store(io);
    size_t covers = trace_count(io);
    LOCK_SCOPE(&t->log->order);
    struct trace_entry *entry = new_entry(t, TRACE_FLUSH, 0, err);
    if (!entry)
        return -ENOMEM;
    entry->covers = covers;
    return log_result(t, entry, io_flush(t->inner, err));
}

static int trace_size(struct qk_io *io, uint64_t *size, struct qk_error *err)
{
    return io_size(trace_store(io)->inner, size, err);
}

static int trace_status(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                        struct qk_extent *extent, struct qk_error *err)
{
    return io_status(trace_store(io)->inner, off, len, flags, extent, err);
}

static int trace_allocated(struct qk_io *io, uint64_t *bytes, struct qk_error *err)
{
    return io_allocated(trace_store(io)->inner, bytes, err);
}

static void trace_event(struct qk_io *io, const char *event)
{
    io_event(trace_store(io)->inner, event);
}

static int trace_set_perm(struct qk_io *io, unsigned used, unsigned shared, struct qk_error *err)
{
    return io_set_perm(trace_store(io)->inner, used, shared, err);
}

static int trace_close(struct qk_io *io, struct qk_error *err)
{
    struct trace_store *t = trace_store(io);
    int ret = io_close(t->inner, err);
    for (size_t i = 0; i < t->own.entries.len; i++)
        free(t->own.entries.ptr[i]);
    entry_list_free(&t->own.entries);
    pthread_mutex_destroy(&t->own.order);
    pthread_mutex_destroy(&t->own.lock);
    free(t->io.name);
    free(t);
    return ret;
}

static const struct qk_io_ops trace_ops = {
    .name = "trace",
    .preadv = trace_preadv,
    .pwritev = trace_pwritev,
    .zero = trace_zero,
    .discard = trace_discard,
    .flush = trace_flush,
    .size = trace_size,
    .resize = trace_resize,
    .status = trace_status,
    .allocated = trace_allocated,
    .event = trace_event,
    .set_perm = trace_set_perm,
    .close = trace_close,
};

int io_trace_open(struct qk_io *inner, struct qk_io **out, struct qk_error *err)
{
    struct trace_store *t = calloc(1, sizeof(*t));
    char *name = t ? strdup(inner->name) : NULL;
    if (!name) {
        free(t);
        io_close(inner, NULL);
        return qk_fail_nomem(err);
    }
    t->io = *inner;
    t->io.ops = &trace_ops;
    t->io.name = name;
    t->inner = inner;
    t->log = &t->own;
    pthread_mutex_init(&t->own.order, NULL);
    pthread_mutex_init(&t->own.lock, NULL);
    *out = &t->io;
    return 0;
}

int io_trace_open_beside(struct qk_io *inner, struct qk_io *first, unsigned store,
                         struct qk_io **out, struct qk_error *err)
{
    int ret = io_trace_open(inner, out, err);
    if (ret < 0)
        return ret;
    trace_store(*out)->log = trace_store(first)->log;
    trace_store(*out)->number = store;
    return 0;
}

size_t trace_count(struct qk_io *io)
{
    struct trace_store *t = trace_store(io);
    LOCK_SCOPE(&t->log->lock);
    return t->log->entries.len;
}

const struct trace_entry *trace_get(struct qk_io *io, size_t seq)
{
    struct trace_store *t = trace_store(io);
    LOCK_SCOPE(&t->log->lock);
    return seq < t->log->entries.len ? t->log->entries.ptr[seq] : NULL;
}

size_t trace_stable_before(struct qk_io *io, size_t end)
{
    struct trace_store *t = trace_store(io);
    LOCK_SCOPE(&t->log->lock);
    for (size_t i = end < t->log->entries.len ? end : t->log->entries.len; i-- > 0;) {
        const struct trace_entry *entry = t->log->entries.ptr[i];
        if (entry->kind == TRACE_FLUSH && entry->store == t->number)
            return entry->covers;
    }
    return 0;
}

int trace_replay(const struct trace_entry *entry, struct qk_io *target, struct qk_error *err)
{
    switch (entry->kind) {
    case TRACE_WRITE:
    case TRACE_ZERO:
        return trace_replay_part(entry, 0, entry->len, target, err);
    case TRACE_DISCARD:
        return io_discard(target, entry->off, entry->len, err);
    case TRACE_RESIZE:
        return io_resize(target, entry->len, QK_PREALLOC_OFF, err);
    case TRACE_FLUSH:
        break;
    }
    return 0;
}

int trace_replay_part(const struct trace_entry *entry, uint64_t skip, uint64_t len,
                      struct qk_io *target, struct qk_error *err)
{
    if (!range_within(skip, len, entry->len))
        return qk_fail(err, -EINVAL, "the part leaves the entry");
    if (entry->kind == TRACE_WRITE)
        return io_write(target, entry->off + skip, entry->data + skip, (size_t)len, 0, err);
    if (entry->kind == TRACE_ZERO)
        return io_zero_or_write(target, entry->off + skip, len, 0, err);
    return qk_fail(err, -EINVAL, "only writes have parts");
}
