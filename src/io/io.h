/*
 * io.h - the byte store: one vtable for everything that holds bytes at offsets. Files and block
 * devices, memory, the network and filters (fault, trace, undo) implement it; so do the nodes of
 * the block graph, which is why a backing file of any format is just another store.
 *
 * Contracts, for every implementation:
 *  - All functions are MT-safe except close, set_perm and set_writable, which are exclusive.
 *  - preadv beyond the end gives zero bytes; pwritev beyond the end grows the store when it can
 *    grow, else -ENOSPC; bytes between the old end and a write read as zero.
 *  - Any offset and length is accepted: a store with alignment (O_DIRECT) bounces inside.
 *  - flush makes everything stable that completed before; once a flush of cached data has failed,
 *    later flushes must not claim success for it (the file store stays failed).
 *  - zero and discard may return -ENOTSUP without having changed anything; the caller then falls
 *    back to writing, or skips.
 */
#ifndef QK_IO_IO_H
#define QK_IO_IO_H

#include "base/error.h"

struct qk_io;

/* Permissions as QEMU's locks name them (see file_lock.c). */
enum io_perm {
    IO_PERM_READ = 1u << 0, /* consistent read */
    IO_PERM_WRITE = 1u << 1,
    IO_PERM_WRITE_UNCHANGED = 1u << 2,
    IO_PERM_RESIZE = 1u << 3,
    IO_PERM_ALL = 15u,
};

enum io_zero_flag {
    IO_ZERO_UNMAP = 1u << 0,       /* may free the space */
    IO_ZERO_NO_FALLBACK = 1u << 1, /* -ENOTSUP when it would be as slow as writing */
};

struct qk_io_ops {
    const char *name; /* driver name: "file", "mem", "blkdebug", "qcow2", ... */
    int (*preadv)(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                  struct qk_error *err);
    /* flags: QK_WRITE_FUA, QK_WRITE_COMPRESSED */
    int (*pwritev)(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                   unsigned flags, struct qk_error *err);
    /* flags: enum io_zero_flag. The range reads as zero afterwards. NULL: -ENOTSUP */
    int (*zero)(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags, struct qk_error *err);
    /* A hint; what the range reads as afterwards is zero or the old bytes. NULL: -ENOTSUP */
    int (*discard)(struct qk_io *io, uint64_t off, uint64_t len, struct qk_error *err);
    int (*flush)(struct qk_io *io, struct qk_error *err);
    int (*size)(struct qk_io *io, uint64_t *size, struct qk_error *err);
    /* Sets the length. -ENOTSUP for a store that cannot change it. NULL: -ENOTSUP */
    int (*resize)(struct qk_io *io, uint64_t size, enum qk_prealloc prealloc, struct qk_error *err);
    /* As qk_disk_status; flags of enum qk_status_flag. NULL: all is data at its own offset. */
    int (*status)(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                  struct qk_extent *extent, struct qk_error *err);
    /* Bytes occupied on the medium. NULL: -ENOTSUP */
    int (*allocated)(struct qk_io *io, uint64_t *bytes, struct qk_error *err);
    /* A hint: the range will be read soon. It starts that, and waits for nothing. NULL: no hint. */
    void (*will_read)(struct qk_io *io, uint64_t off, uint64_t len);
    /* blkdebug events ("l2_update", ...): an error to inject, else 0. NULL: none. */
    void (*event)(struct qk_io *io, const char *event);
    /* Changes what is used and shared (IO_PERM_*); -EAGAIN when another program objects.
     * NULL: nothing to lock. */
    int (*set_perm)(struct qk_io *io, unsigned used, unsigned shared, struct qk_error *err);
    /* The same bytes, now read-write or read-only; permissions stay as they are. On failure nothing
     * has changed. NULL: -ENOTSUP when that would be a change. Exclusive. */
    int (*set_writable)(struct qk_io *io, bool writable, struct qk_error *err);
    /* Releases everything; io is gone whatever is returned. */
    int (*close)(struct qk_io *io, struct qk_error *err);
};

/* The part that every store has; implementations put it first in their own struct. */
struct qk_io {
    const struct qk_io_ops *ops;
    char *name;         /* for people and errors; owned by the store */
    uint32_t alignment; /* of requests that need no bounce: 1, 512, 4096 */
    bool writable;
    bool can_grow;  /* false: block device or fixed size; writing past the end is -ENOSPC */
    bool zero_init; /* bytes that were never written read as zero */
};

/* Calls through the vtable, with the defaults of NULL entries. Add the store's name to errors. */
int io_readv(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
             struct qk_error *err);
int io_writev(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt, unsigned flags,
              struct qk_error *err);
int io_read(struct qk_io *io, uint64_t off, void *buf, size_t len, struct qk_error *err);
int io_write(struct qk_io *io, uint64_t off, const void *buf, size_t len, unsigned flags,
             struct qk_error *err);
int io_zero(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags, struct qk_error *err);
/* io_zero, and zero bytes written in chunks of at most 1 MiB where the store has no better way. */
int io_zero_or_write(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                     struct qk_error *err);
int io_discard(struct qk_io *io, uint64_t off, uint64_t len, struct qk_error *err);
int io_flush(struct qk_io *io, struct qk_error *err);
int io_size(struct qk_io *io, uint64_t *size, struct qk_error *err);
int io_resize(struct qk_io *io, uint64_t size, enum qk_prealloc prealloc, struct qk_error *err);
int io_status(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
              struct qk_extent *extent, struct qk_error *err);
int io_allocated(struct qk_io *io, uint64_t *bytes, struct qk_error *err);
void io_will_read(struct qk_io *io, uint64_t off, uint64_t len);
void io_event(struct qk_io *io, const char *event);
int io_set_perm(struct qk_io *io, unsigned used, unsigned shared, struct qk_error *err);
int io_set_writable(struct qk_io *io, bool writable, struct qk_error *err);
int io_close(struct qk_io *io, struct qk_error *err); /* NULL is allowed */

/* ---- iovec helpers (iov.c) ---- */

size_t iov_total(const struct iovec *iov, int iovcnt);
/* Copies between iovec (from byte `skip` on) and buf; returns bytes copied. */
size_t iov_to_buf(const struct iovec *iov, int iovcnt, size_t skip, void *buf, size_t len);
size_t iov_from_buf(const struct iovec *iov, int iovcnt, size_t skip, const void *buf, size_t len);
void iov_zero(const struct iovec *iov, int iovcnt, size_t skip, size_t len);
/* Fills out (room for iovcnt entries) with the len bytes from `skip` on; returns entries used. */
int iov_slice(const struct iovec *iov, int iovcnt, size_t skip, size_t len, struct iovec *out);

/* Part of an iovec as an iovec of its own, without memory of its own where it is short. */
struct iov_view {
    struct iovec *iov;
    int iovcnt;
    struct iovec few[16];
    struct iovec *many; /* owned */
};
/* 0 or -ENOMEM; release with iov_view_free (also after a failure). */
int iov_view_init(struct iov_view *view, const struct iovec *iov, int iovcnt, size_t skip,
                  size_t len);
void iov_view_free(struct iov_view *view);

/* ---- stores ---- */

struct io_file_options {
    bool writable;
    bool direct;           /* O_DIRECT */
    bool no_flush;         /* flush does nothing */
    bool writethrough;     /* each write is stable before it returns */
    bool create;           /* create the file when missing (mode 0644), keep content otherwise */
    bool locking;          /* take QEMU's byte-range locks; false: "file.locking=off" */
    bool force_share;      /* -U */
    unsigned used, shared; /* IO_PERM_*: taken at open when locking */
};

/*
 * Opens a regular file or block device. -ENOENT, -EACCES, -EAGAIN (lock), -EINVAL (a FIFO, socket
 * or directory; never blocks on one).
 */
int io_file_open(const char *name, const struct io_file_options *opts, struct qk_io **out,
                 struct qk_error *err);

/* A store in memory. data may be NULL; it is copied. max_size bounds growth (0: no bound). */
int io_mem_open(const void *data, size_t len, size_t max_size, struct qk_io **out,
                struct qk_error *err);
/* The bytes of a mem store, valid until the next write or resize. */
const uint8_t *io_mem_data(struct qk_io *io, size_t *len);

/*
 * blkdebug over `inner`, which it owns afterwards also on failure. config: path of a rules file,
 * or NULL; rules may be added from option trees (see fault.h).
 */
int io_fault_open(struct qk_io *inner, const char *config, struct qk_io **out,
                  struct qk_error *err);

/* Logs every write, zero, discard, resize and flush of `inner` (owned) for crash tests: trace.h */

#endif
