/*
 * mem.c - a store in memory, for tests and for building images that are written elsewhere. Reads
 * share a lock, changes are exclusive. Growth is bounded by max_size; beyond it is -ENOSPC, as on
 * a full device. Space between the old end and a write reads as zero.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "io/io.h"

#include <string.h>

struct mem_store {
    struct qk_io io;
    pthread_rwlock_t lock;
    uint8_t *data;
    size_t len, cap;
    size_t max_size; /* 0: no bound but memory */
};

static struct mem_store *mem_store(struct qk_io *io)
{
    return (struct mem_store *)io;
}

static int grow(struct mem_store *mem, uint64_t end, struct qk_error *err)
{
    if (end <= mem->len)
        return 0;
    if (end > SIZE_MAX / 2 || (mem->max_size && end > mem->max_size))
        return qk_fail_errno(err, -ENOSPC, "the memory store is bounded");
    size_t len = (size_t)end;
    if (len > mem->cap) {
        size_t cap = len + len / 4;
        uint8_t *data = realloc(mem->data, cap);
        if (!data)
            return qk_fail_nomem(err);
        mem->data = data;
        mem->cap = cap;
    }
    memset(mem->data + mem->len, 0, len - mem->len);
    mem->len = len;
    return 0;
}

static int mem_preadv(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                      struct qk_error *err)
{
    struct mem_store *mem = mem_store(io);
    (void)err;
    size_t total = iov_total(iov, iovcnt), have = 0;
    pthread_rwlock_rdlock(&mem->lock);
    if (off < mem->len) {
        have = (size_t)min_u64(total, mem->len - off);
        iov_from_buf(iov, iovcnt, 0, mem->data + off, have);
    }
    pthread_rwlock_unlock(&mem->lock);
    iov_zero(iov, iovcnt, have, total - have);
    return 0;
}

static int mem_pwritev(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                       unsigned flags, struct qk_error *err)
{
    struct mem_store *mem = mem_store(io);
    size_t total = iov_total(iov, iovcnt);
    uint64_t end;
    (void)flags;
    if (total == 0)
        return 0;
    if (!try_add_u64(off, total, &end))
        return qk_fail_errno(err, -EFBIG, "the range wraps");
    pthread_rwlock_wrlock(&mem->lock);
    int ret = grow(mem, end, err);
    if (ret == 0)
        iov_to_buf(iov, iovcnt, 0, mem->data + off, total);
    pthread_rwlock_unlock(&mem->lock);
    return ret;
}

static int mem_zero(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                    struct qk_error *err)
{
    struct mem_store *mem = mem_store(io);
    uint64_t end;
    (void)flags;
    if (len == 0)
        return 0;
    if (!try_add_u64(off, len, &end))
        return qk_fail_errno(err, -EFBIG, "the range wraps");
    pthread_rwlock_wrlock(&mem->lock);
    int ret = grow(mem, end, err);
    if (ret == 0)
        memset(mem->data + off, 0, (size_t)len);
    pthread_rwlock_unlock(&mem->lock);
    return ret;
}

/* As punching a hole: what lies below the end becomes zero. */
static int mem_discard(struct qk_io *io, uint64_t off, uint64_t len, struct qk_error *err)
{
    struct mem_store *mem = mem_store(io);
    (void)err;
    pthread_rwlock_wrlock(&mem->lock);
    if (off < mem->len)
        memset(mem->data + off, 0, (size_t)min_u64(len, mem->len - off));
    pthread_rwlock_unlock(&mem->lock);
    return 0;
}

static int mem_flush(struct qk_io *io, struct qk_error *err)
{
    (void)io;
    (void)err;
    return 0;
}

static int mem_size(struct qk_io *io, uint64_t *size, struct qk_error *err)
{
    struct mem_store *mem = mem_store(io);
    (void)err;
    pthread_rwlock_rdlock(&mem->lock);
    *size = mem->len;
    pthread_rwlock_unlock(&mem->lock);
    return 0;
}

static int mem_resize(struct qk_io *io, uint64_t size, enum qk_prealloc prealloc,
                      struct qk_error *err)
{
    struct mem_store *mem = mem_store(io);
    int ret = 0;
    (void)prealloc;
    pthread_rwlock_wrlock(&mem->lock);
    if (size <= mem->len)
        mem->len = (size_t)size;
    else
        ret = grow(mem, size, err);
    pthread_rwlock_unlock(&mem->lock);
    return ret;
}

static int mem_status(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                      struct qk_extent *extent, struct qk_error *err)
{
    uint64_t size;
    (void)flags;
    mem_size(io, &size, err);
    bool data = off < size;
    *extent = (struct qk_extent){
        .off = off,
        .len = data ? min_u64(len, size - off) : len,
        .host_off = off,
        .file = io->name,
        .flags = QK_EXTENT_ALLOCATED | QK_EXTENT_OFFSET | (data ? QK_EXTENT_DATA : QK_EXTENT_ZERO),
    };
    if (!data || extent->len == size - off)
        extent->flags |= QK_EXTENT_EOF;
    return 0;
}

static int mem_close(struct qk_io *io, struct qk_error *err)
{
    struct mem_store *mem = mem_store(io);
    (void)err;
    pthread_rwlock_destroy(&mem->lock);
    free(mem->data);
    free(io->name);
    free(mem);
    return 0;
}

static const struct qk_io_ops mem_ops = {
    .name = "mem",
    .preadv = mem_preadv,
    .pwritev = mem_pwritev,
    .zero = mem_zero,
    .discard = mem_discard,
    .flush = mem_flush,
    .size = mem_size,
    .resize = mem_resize,
    .status = mem_status,
    .allocated = mem_size,
    .close = mem_close,
};

int io_mem_open(const void *data, size_t len, size_t max_size, struct qk_io **out,
                struct qk_error *err)
{
    struct mem_store *mem = calloc(1, sizeof(*mem));
    if (!mem)
        return qk_fail_nomem(err);
    mem->io = (struct qk_io){
        .ops = &mem_ops,
        .name = strdup("memory"),
        .alignment = 1,
        .writable = true,
        .can_grow = true,
        .zero_init = true,
    };
    mem->max_size = max_size;
    if (pthread_rwlock_init(&mem->lock, NULL)) {
        free(mem->io.name);
        free(mem);
        return qk_fail_nomem(err);
    }
    int ret = mem->io.name ? grow(mem, len, err) : qk_fail_nomem(err);
    if (ret < 0) {
        mem_close(&mem->io, NULL);
        return ret;
    }
    if (len && data)
        memcpy(mem->data, data, len);
    *out = &mem->io;
    return 0;
}

const uint8_t *io_mem_data(struct qk_io *io, size_t *len)
{
    struct mem_store *mem = mem_store(io);
    *len = mem->len;
    return mem->data;
}
