/*
 * io.c - calls through a store's vtable: the defaults of missing entries, the short forms, and the
 * store's name in errors. No state of its own.
 */
#include "io/io.h"
#include "base/checked.h"
#include "base/cleanup.h"

#include <string.h>

static int named(struct qk_io *io, uint64_t off, int ret, struct qk_error *err)
{
    if (ret < 0)
        qk_error_locate(err, WHERE(io->name, NULL, off));
    return ret;
}

int io_readv(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
             struct qk_error *err)
{
    return named(io, off, io->ops->preadv(io, off, iov, iovcnt, err), err);
}

int io_writev(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt, unsigned flags,
              struct qk_error *err)
{
    if (!io->writable)
        return qk_fail_at(err, -EROFS, WHERE(io->name, NULL, off), "opened read-only");
    return named(io, off, io->ops->pwritev(io, off, iov, iovcnt, flags, err), err);
}

int io_read(struct qk_io *io, uint64_t off, void *buf, size_t len, struct qk_error *err)
{
    return io_readv(io, off, &(struct iovec){buf, len}, 1, err);
}

int io_write(struct qk_io *io, uint64_t off, const void *buf, size_t len, unsigned flags,
             struct qk_error *err)
{
    return io_writev(io, off, &(struct iovec){(void *)(uintptr_t)buf, len}, 1, flags, err);
}

int io_zero(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags, struct qk_error *err)
{
    if (!io->ops->zero)
        return qk_fail(err, -ENOTSUP, "this store has no fast zeroing");
    return named(io, off, io->ops->zero(io, off, len, flags, err), err);
}

int io_zero_or_write(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                     struct qk_error *err)
{
    int ret = io_zero(io, off, len, flags & ~(unsigned)IO_ZERO_NO_FALLBACK, err);
    if (ret != -ENOTSUP)
        return ret;
    const size_t chunk_max = 1 << 20;
    size_t chunk = (size_t)min_u64(len, chunk_max);
    CLEANUP_FREE uint8_t *zeroes = calloc(1, chunk ? chunk : 1);
    if (!zeroes)
        return qk_fail_nomem(err);
    for (uint64_t done = 0; done < len; done += chunk) {
        chunk = (size_t)min_u64(len - done, chunk_max);
        ret = io_write(io, off + done, zeroes, chunk, 0, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int io_discard(struct qk_io *io, uint64_t off, uint64_t len, struct qk_error *err)
{
    if (!io->ops->discard)
        return qk_fail(err, -ENOTSUP, "this store has no discard");
    return named(io, off, io->ops->discard(io, off, len, err), err);
}

int io_flush(struct qk_io *io, struct qk_error *err)
{
    return named(io, QK_OFFSET_NONE, io->ops->flush(io, err), err);
}

int io_size(struct qk_io *io, uint64_t *size, struct qk_error *err)
{
    return named(io, QK_OFFSET_NONE, io->ops->size(io, size, err), err);
}

int io_resize(struct qk_io *io, uint64_t size, enum qk_prealloc prealloc, struct qk_error *err)
{
    if (!io->ops->resize)
        return qk_fail_at(err, -ENOTSUP, WHERE(io->name, NULL, size),
                          "this store has a fixed size");
    return named(io, size, io->ops->resize(io, size, prealloc, err), err);
}

int io_status(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
              struct qk_extent *extent, struct qk_error *err)
{
    if (io->ops->status)
        return named(io, off, io->ops->status(io, off, len, flags, extent, err), err);
    *extent = (struct qk_extent){
        .off = off,
        .len = len,
        .host_off = off,
        .file = io->name,
        .flags = QK_EXTENT_DATA | QK_EXTENT_ALLOCATED | QK_EXTENT_OFFSET,
    };
    return 0;
}

int io_allocated(struct qk_io *io, uint64_t *bytes, struct qk_error *err)
{
    if (!io->ops->allocated)
        return qk_fail(err, -ENOTSUP, "this store does not know its size on the medium");
    return named(io, QK_OFFSET_NONE, io->ops->allocated(io, bytes, err), err);
}

void io_will_read(struct qk_io *io, uint64_t off, uint64_t len)
{
    if (io->ops->will_read)
        io->ops->will_read(io, off, len);
}

void io_event(struct qk_io *io, const char *event)
{
    if (io->ops->event)
        io->ops->event(io, event);
}

int io_set_perm(struct qk_io *io, unsigned used, unsigned shared, struct qk_error *err)
{
    if (!io->ops->set_perm)
        return 0;
    return named(io, QK_OFFSET_NONE, io->ops->set_perm(io, used, shared, err), err);
}

int io_set_writable(struct qk_io *io, bool writable, struct qk_error *err)
{
    if (io->writable == writable)
        return 0;
    if (!io->ops->set_writable)
        return qk_fail_at(err, -ENOTSUP, WHERE(io->name, NULL, QK_OFFSET_NONE),
                          "this store is %s for as long as it is open",
                          io->writable ? "read-write" : "read-only");
    int ret = named(io, QK_OFFSET_NONE, io->ops->set_writable(io, writable, err), err);
    if (ret == 0)
        io->writable = writable;
    return ret;
}

int io_close(struct qk_io *io, struct qk_error *err)
{
    return io ? io->ops->close(io, err) : 0;
}
