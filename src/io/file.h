/*
 * file.h - what the parts of the file store share: the open file, and the calls between opening
 * (file.c), moving bytes (file_rw.c), space (file_space.c) and locks (file_lock.c).
 */
#ifndef QK_IO_FILE_H
#define QK_IO_FILE_H

#include "io/io.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

/* What the locks of one open file say: bytes held for "used" and for "not shared" permissions. */
struct file_lock {
    bool enabled;
    unsigned used;     /* IO_PERM_* whose byte 100+n is held */
    unsigned unshared; /* IO_PERM_* whose byte 200+n is held */
};

/* Flushes of one file, numbered in the order of their start; see file_flush.c. */
struct file_flush {
    pthread_mutex_t lock;
    pthread_cond_t done;
    bool running;
    uint64_t started, finished;
    uint64_t failed; /* number of the last that failed, 0: none */
    int error;       /* its negative errno */
};

struct file_store {
    struct qk_io io;
    int fd;
    bool is_device;
    bool direct, no_flush, writethrough;
    uint32_t mem_alignment; /* of buffers when direct */
    uint64_t device_bytes;  /* fixed size of a block device */
    struct file_flush flush;
    atomic_bool no_zero_range; /* the file system said that it has no such operation */
    atomic_bool no_punch_hole;
    pthread_rwlock_t edge_lock; /* direct only: see file_rw.c */
    struct file_lock lock;
};

static inline struct file_store *file_store(struct qk_io *io)
{
    return (struct file_store *)io;
}

/* Over quota, or past the largest file there may be: no room, either; the text says which. */
static inline int file_no_room(int ret, struct qk_error *err)
{
    if (ret != -EDQUOT && ret != -EFBIG)
        return ret;
    if (err)
        err->code = ENOSPC;
    return -ENOSPC;
}

/* file_rw.c */
int file_preadv(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                struct qk_error *err);
void file_will_read(struct qk_io *io, uint64_t off, uint64_t len);
int file_pwritev(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                 unsigned flags, struct qk_error *err);
/* Shared: requests that change whole blocks. Exclusive: those that rewrite a neighbour's bytes. */
void file_edge_lock(struct file_store *file, bool exclusive);
void file_edge_unlock(struct file_store *file);

/* file_flush.c */
int file_flush(struct qk_io *io, struct qk_error *err);
/* After a change that O_DSYNC does not cover: flushes when each write must be stable. */
int file_settle(struct file_store *file, unsigned flags, struct qk_error *err);

/* file_space.c */
int file_size(struct qk_io *io, uint64_t *size, struct qk_error *err);
int file_zero(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags, struct qk_error *err);
int file_discard(struct qk_io *io, uint64_t off, uint64_t len, struct qk_error *err);
int file_resize(struct qk_io *io, uint64_t size, enum qk_prealloc prealloc, struct qk_error *err);
int file_status(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                struct qk_extent *extent, struct qk_error *err);
int file_allocated(struct qk_io *io, uint64_t *bytes, struct qk_error *err);

/*
 * Moves from the permissions that lock describes to used and shared (IO_PERM_*). On failure
 * (-EAGAIN: another program objects) the locks held are those from before. No-op when not enabled.
 */
int file_lock_set(int fd, const char *name, struct file_lock *lock, unsigned used, unsigned shared,
                  struct qk_error *err);
/* Takes the locks that `lock` describes on another description of the same file. */
int file_lock_copy(int fd, const struct file_lock *lock, struct qk_error *err);
/* Whether this kernel and file system have open-file-description locks. */
bool file_lock_available(int fd);

#endif
