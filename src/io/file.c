/*
 * file.c - the store for regular files and block devices: opening one and its vtable. Moving bytes
 * is in file_rw.c, lengths and holes in file_space.c, locks in file_lock.c.
 *
 * Promises: opening never blocks on a FIFO and refuses what has no fixed bytes (FIFO, socket,
 * directory, character device) before anything is read from it.
 */
#include "io/file.h"
#include "base/checked.h"
#include "base/cleanup.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

static int file_set_perm(struct qk_io *io, unsigned used, unsigned shared, struct qk_error *err)
{
    struct file_store *file = file_store(io);
    return file_lock_set(file->fd, io->name, &file->lock, used, shared, err);
}

/* A second description of the same file, not of whatever has the name now. */
static int reopen_descriptor(const struct file_store *file, bool writable, struct qk_error *err)
{
    char path[40];
    int old = fcntl(file->fd, F_GETFL);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", file->fd);
    int flags = O_CLOEXEC | O_NOCTTY | (writable ? O_RDWR : O_RDONLY);
    flags |= old & (O_DIRECT | O_DSYNC);
    int fd = old < 0 ? -1 : open(path, flags);
    return fd < 0 ? qk_fail_errno(err, -errno, "Could not reopen '%s'", file->io.name) : fd;
}

/* The new description holds the locks before the old one lets go: nobody slips in between. */
static int file_set_writable(struct qk_io *io, bool writable, struct qk_error *err)
{
    struct file_store *file = file_store(io);
    int fd = reopen_descriptor(file, writable, err);
    if (fd < 0)
        return fd;
    int ret = file_lock_copy(fd, &file->lock, err);
    if (ret < 0) {
        close(fd);
        return ret;
    }
    close(file->fd);
    file->fd = fd;
    io->can_grow = writable && !file->is_device;
    return 0;
}

static void free_store(struct file_store *file)
{
    pthread_mutex_destroy(&file->flush.lock);
    pthread_cond_destroy(&file->flush.done);
    pthread_rwlock_destroy(&file->edge_lock);
    free(file->io.name);
    free(file);
}

static int file_close(struct qk_io *io, struct qk_error *err)
{
    struct file_store *file = file_store(io);
    /* close reports write errors on network file systems; the descriptor is gone either way */
    int ret = close(file->fd) < 0 && errno != EINTR ? -errno : 0;
    if (ret < 0)
        qk_fail_errno(err, ret, "Could not close '%s'", io->name);
    pthread_rwlock_destroy(&file->edge_lock);
    free(io->name);
    free(file);
    return ret;
}

static const struct qk_io_ops file_ops = {
    .name = "file",
    .preadv = file_preadv,
    .pwritev = file_pwritev,
    .zero = file_zero,
    .discard = file_discard,
    .flush = file_flush,
    .size = file_size,
    .resize = file_resize,
    .status = file_status,
    .allocated = file_allocated,
    .will_read = file_will_read,
    .set_perm = file_set_perm,
    .set_writable = file_set_writable,
    .close = file_close,
};

static const struct qk_io_ops device_ops = {
    .name = "host_device",
    .preadv = file_preadv,
    .pwritev = file_pwritev,
    .zero = file_zero,
    .discard = file_discard,
    .flush = file_flush,
    .size = file_size,
    .status = file_status,
    .allocated = file_allocated,
    .will_read = file_will_read,
    .set_perm = file_set_perm,
    .set_writable = file_set_writable,
    .close = file_close,
};

static int refuse_kind(const char *name, mode_t mode, struct qk_error *err)
{
    if (S_ISREG(mode) || S_ISBLK(mode))
        return 0;
    return qk_fail_at(err, -EINVAL, WHERE(name, NULL, QK_OFFSET_NONE),
                      "'file' driver requires '%s' to be a regular file", name);
}

/* The kind is looked at before opening, so that no program that waits on a FIFO wakes up, and
 * after it, because the name may mean another file by then. */
static int open_descriptor(const char *name, const struct io_file_options *opts, int *out,
                           struct qk_error *err)
{
    struct stat st;
    if (stat(name, &st) == 0) {
        int ret = refuse_kind(name, st.st_mode, err);
        if (ret < 0)
            return ret;
    }
    int flags = O_CLOEXEC | O_NONBLOCK | O_NOCTTY | (opts->writable ? O_RDWR : O_RDONLY);
    if (opts->create)
        flags |= O_CREAT;
    if (opts->direct)
        flags |= O_DIRECT;
    if (opts->writethrough && !opts->no_flush)
        flags |= O_DSYNC;
    *out = open(name, flags, 0644);
    if (*out >= 0)
        return 0;
    int code = -errno;
    if (code == -EINVAL && opts->direct)
        return qk_fail_at(err, code, WHERE(name, NULL, QK_OFFSET_NONE),
                          "Could not open '%s': filesystem does not support O_DIRECT", name);
    qk_fail_errno(err, code, "Could not open '%s'", name);
    qk_error_locate(err, WHERE(name, NULL, QK_OFFSET_NONE));
    return code;
}

/* Finds out by a small read whether requests of 512 bytes pass. Needs content to read. */
static bool direct_works_at_512(int fd)
{
    void *page;
    if (posix_memalign(&page, 4096, 4096))
        return false;
    bool works = pread(fd, (uint8_t *)page + 512, 512, 512) == 512;
    free(page);
    return works;
}

static void find_direct_alignment(struct file_store *file)
{
    file->io.alignment = file->mem_alignment = 4096;
#ifdef STATX_DIOALIGN
    struct statx stx;
    if (statx(file->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
        (stx.stx_mask & STATX_DIOALIGN) && is_power_of_2(stx.stx_dio_offset_align) &&
        is_power_of_2(stx.stx_dio_mem_align)) {
        file->io.alignment = stx.stx_dio_offset_align;
        file->mem_alignment = stx.stx_dio_mem_align;
        return;
    }
#endif
    int sector;
    if (file->is_device && ioctl(file->fd, BLKSSZGET, &sector) == 0 && sector >= 512 &&
        is_power_of_2((uint64_t)sector))
        file->io.alignment = (uint32_t)sector;
    else if (!file->is_device && direct_works_at_512(file->fd))
        file->io.alignment = 512;
}

static int inspect(struct file_store *file, struct qk_error *err)
{
    struct stat st;
    if (fstat(file->fd, &st) < 0)
        return qk_fail_errno(err, -errno, "Could not stat '%s'", file->io.name);
    int ret = refuse_kind(file->io.name, st.st_mode, err);
    if (ret < 0)
        return ret;
    file->is_device = S_ISBLK(st.st_mode);
    if (file->is_device && ioctl(file->fd, BLKGETSIZE64, &file->device_bytes) < 0)
        return qk_fail_errno(err, -errno, "Could not get the size of '%s'", file->io.name);
    int flags = fcntl(file->fd, F_GETFL);
    if (flags < 0 || fcntl(file->fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
        return qk_fail_errno(err, -errno, "Could not set up '%s'", file->io.name);
    file->io.ops = file->is_device ? &device_ops : &file_ops;
    file->io.can_grow = file->io.writable && !file->is_device;
    file->io.zero_init = !file->is_device;
    file->io.alignment = file->mem_alignment = 1;
    if (file->direct)
        find_direct_alignment(file);
    return 0;
}

static int take_locks(struct file_store *file, const struct io_file_options *opts,
                      struct qk_error *err)
{
    file->lock.enabled = opts->locking && file_lock_available(file->fd);
    return file_lock_set(file->fd, file->io.name, &file->lock, opts->used,
                         opts->force_share ? IO_PERM_ALL : opts->shared, err);
}

/* Writers go first, else a stream of aligned requests could starve a misaligned one. */
static int init_edge_lock(pthread_rwlock_t *lock)
{
    pthread_rwlockattr_t attr;
    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    int ret = -pthread_rwlock_init(lock, &attr);
    pthread_rwlockattr_destroy(&attr);
    return ret;
}

static struct file_store *new_store(const char *name, const struct io_file_options *opts)
{
    struct file_store *file = calloc(1, sizeof(*file));
    if (!file)
        return NULL;
    file->io.name = strdup(name);
    if (!file->io.name || init_edge_lock(&file->edge_lock) < 0) {
        free(file->io.name);
        free(file);
        return NULL;
    }
    pthread_mutex_init(&file->flush.lock, NULL);
    pthread_cond_init(&file->flush.done, NULL);
    file->io.writable = opts->writable;
    file->direct = opts->direct;
    file->no_flush = opts->no_flush;
    file->writethrough = opts->writethrough && !opts->no_flush;
    return file;
}

int io_file_open(const char *name, const struct io_file_options *opts, struct qk_io **out,
                 struct qk_error *err)
{
    struct file_store *file = new_store(name, opts);
    if (!file)
        return qk_fail_nomem(err);
    int ret = open_descriptor(name, opts, &file->fd, err);
    if (ret < 0) {
        free_store(file);
        return ret;
    }
    ret = inspect(file, err);
    if (ret == 0)
        ret = take_locks(file, opts, err);
    if (ret < 0) {
        qk_error_locate(err, WHERE(name, NULL, QK_OFFSET_NONE));
        file_close(&file->io, NULL);
        return ret;
    }
    *out = &file->io;
    return 0;
}
