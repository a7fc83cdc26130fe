/*
 * file_space.c - lengths, zeroing, discarding, preallocation and holes of a file or block device.
 * Which operations a file system has is learned from its answers and remembered. An operation
 * that is missing changes nothing and says -ENOTSUP (the contract of io.h), unless resize needs it.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "io/file.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

static int do_fallocate(struct file_store *file, int mode, uint64_t off, uint64_t len)
{
    int ret;
    do
        ret = fallocate(file->fd, mode, (off_t)off, (off_t)len) < 0 ? -errno : 0;
    while (ret == -EINTR);
    return ret;
}

/* Errors that mean "this file cannot do that", as opposed to "it went wrong". */
static bool means_unsupported(int ret)
{
    return ret == -EOPNOTSUPP || ret == -ENOSYS || ret == -ENODEV || ret == -ENOTTY ||
           ret == -EINVAL || ret == -EPERM;
}

/* Runs one operation unless it is known to be missing; -ENOTSUP when it is. */
static int try_fallocate(struct file_store *file, atomic_bool *missing, int mode,
                         const uint64_t range[2])
{
    if (atomic_load_explicit(missing, memory_order_relaxed))
        return -ENOTSUP;
    int ret = do_fallocate(file, mode, range[0], range[1]);
    if (!means_unsupported(ret))
        return ret;
    /* devices answer -EINVAL for a range that is not whole sectors: true of this range only */
    if (ret != -EINVAL)
        atomic_store_explicit(missing, true, memory_order_relaxed);
    return -ENOTSUP;
}

static int punch_hole(struct file_store *file, const uint64_t range[2])
{
    return try_fallocate(file, &file->no_punch_hole, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                         range);
}

static int zero_range(struct file_store *file, const uint64_t range[2])
{
    return try_fallocate(file, &file->no_zero_range, FALLOC_FL_ZERO_RANGE, range);
}

int file_size(struct qk_io *io, uint64_t *size, struct qk_error *err)
{
    struct file_store *file = file_store(io);
    struct stat st;
    if (file->is_device) {
        *size = file->device_bytes;
        return 0;
    }
    file_edge_lock(file, false);
    int ret = fstat(file->fd, &st) < 0 ? -errno : 0;
    file_edge_unlock(file);
    if (ret < 0)
        return qk_fail_errno(err, ret, "cannot get the length");
    *size = (uint64_t)st.st_size;
    return 0;
}

static bool ends_beyond(struct file_store *file, uint64_t end)
{
    struct stat st;
    return fstat(file->fd, &st) == 0 && (uint64_t)st.st_size < end;
}

/* Frees the space. Growing by allocating the last byte cannot cut off a parallel, longer write as
 * setting the length could. */
static int zero_file_unmap(struct file_store *file, const uint64_t range[2])
{
    int ret = punch_hole(file, range);
    if (ret < 0)
        return ret;
    uint64_t end = range[0] + range[1];
    return ends_beyond(file, end) ? do_fallocate(file, 0, end - 1, 1) : 0;
}

/* Keeps the space. A file system without the zeroing call may still have its two halves. */
static int zero_file_keep(struct file_store *file, const uint64_t range[2])
{
    int ret = zero_range(file, range);
    if (ret != -ENOTSUP)
        return ret;
    ret = punch_hole(file, range);
    return ret < 0 ? ret : do_fallocate(file, 0, range[0], range[1]);
}

static int zero_device(struct file_store *file, const uint64_t range[2], unsigned flags)
{
    int ret = -ENOTSUP;
    if (flags & (IO_ZERO_UNMAP | IO_ZERO_NO_FALLBACK))
        ret = punch_hole(file, range);
    if (ret != -ENOTSUP || (flags & IO_ZERO_NO_FALLBACK))
        return ret;
    ret = ioctl(file->fd, BLKZEROOUT, range) < 0 ? -errno : 0;
    return means_unsupported(ret) ? -ENOTSUP : ret;
}

static int zero_locked(struct file_store *file, const uint64_t range[2], unsigned flags)
{
    if (file->is_device)
        return zero_device(file, range, flags);
    int ret = -ENOTSUP;
    if (flags & IO_ZERO_UNMAP)
        ret = zero_file_unmap(file, range);
    return ret == -ENOTSUP ? zero_file_keep(file, range) : ret;
}

static int check_change(struct file_store *file, uint64_t off, uint64_t len, struct qk_error *err)
{
    if (!range_within(off, len, INT64_MAX))
        return qk_fail(err, -EFBIG, "the range ends beyond any file");
    if (file->is_device && !range_within(off, len, file->device_bytes))
        return qk_fail(err, -ENOSPC, "the range ends beyond the device");
    return 0;
}

int file_zero(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags, struct qk_error *err)
{
    struct file_store *file = file_store(io);
    int ret = check_change(file, off, len, err);
    if (ret < 0 || len == 0)
        return ret;
    file_edge_lock(file, false);
    ret = zero_locked(file, (const uint64_t[2]){off, len}, flags);
    file_edge_unlock(file);
    if (ret < 0)
        return file_no_room(
            qk_fail_errno(err, ret, "cannot zero %llu bytes", (unsigned long long)len), err);
    return file_settle(file, 0, err);
}

int file_discard(struct qk_io *io, uint64_t off, uint64_t len, struct qk_error *err)
{
    struct file_store *file = file_store(io);
    const uint64_t range[2] = {off, len};
    int ret = check_change(file, off, len, err);
    if (ret < 0 || len == 0)
        return ret;
    file_edge_lock(file, false);
    if (file->is_device)
        ret = ioctl(file->fd, BLKDISCARD, range) < 0 ? -errno : 0;
    else
        ret = punch_hole(file, range);
    file_edge_unlock(file);
    if (means_unsupported(ret))
        ret = -ENOTSUP;
    if (ret < 0)
        return qk_fail_errno(err, ret, "cannot discard %llu bytes", (unsigned long long)len);
    return file_settle(file, 0, err);
}

/* ---- the length ---- */

static int reserve(struct file_store *file, uint64_t from, uint64_t to, struct qk_error *err)
{
    int ret = do_fallocate(file, 0, from, to - from);
    /* the C library's way writes to every block, which a direct descriptor would refuse */
    if (ret == -EOPNOTSUPP && !file->direct)
        ret = -posix_fallocate(file->fd, (off_t)from, (off_t)(to - from));
    return ret < 0 ? file_no_room(qk_fail_errno(err, ret, "Could not preallocate data"), err) : 0;
}

static int write_zeroes(struct file_store *file, uint64_t from, uint64_t to, struct qk_error *err)
{
    const size_t chunk = 1 << 20;
    CLEANUP_FREE void *zeroes = NULL;
    if (posix_memalign(&zeroes, 4096, chunk))
        return qk_fail_nomem(err);
    iov_zero(&(struct iovec){zeroes, chunk}, 1, 0, chunk);
    while (from < to) {
        size_t len = (size_t)min_u64(to - from, chunk - from % chunk);
        int ret = file_pwritev(&file->io, from, &(struct iovec){zeroes, len}, 1, 0, err);
        if (ret < 0)
            return ret;
        from += len;
    }
    return file_flush(&file->io, err);
}

static int set_length(struct file_store *file, uint64_t size, struct qk_error *err)
{
    int ret;
    file_edge_lock(file, true);
    do
        ret = ftruncate(file->fd, (off_t)size) < 0 ? -errno : 0;
    while (ret == -EINTR);
    file_edge_unlock(file);
    if (ret < 0)
        qk_fail_errno(err, ret, "Could not resize file");
    return ret == -EDQUOT ? file_no_room(ret, err) : ret; /* -EFBIG: no file can be so long */
}

/* Grows with the space taken; on failure the file has its old length and space again. */
static int grow_allocated(struct file_store *file, uint64_t old_size, uint64_t size,
                          enum qk_prealloc prealloc, struct qk_error *err)
{
    int ret = prealloc == QK_PREALLOC_FALLOC ? reserve(file, old_size, size, err)
                                             : write_zeroes(file, old_size, size, err);
    if (ret < 0)
        set_length(file, old_size, NULL);
    return ret;
}

int file_resize(struct qk_io *io, uint64_t size, enum qk_prealloc prealloc, struct qk_error *err)
{
    struct file_store *file = file_store(io);
    uint64_t old_size;
    if (!io->writable)
        return qk_fail(err, -EROFS, "opened read-only");
    if (prealloc == QK_PREALLOC_METADATA)
        return qk_fail(err, -ENOTSUP, "Unsupported preallocation mode: metadata");
    if (size > INT64_MAX)
        return qk_fail(err, -EFBIG, "larger than any file can be");
    int ret = file_size(io, &old_size, err);
    if (ret < 0)
        return ret;
    if (prealloc != QK_PREALLOC_OFF && size < old_size)
        return qk_fail(err, -ENOTSUP, "Cannot use preallocation for shrinking files");
    if (prealloc == QK_PREALLOC_OFF)
        ret = set_length(file, size, err);
    else if (size > old_size)
        ret = grow_allocated(file, old_size, size, prealloc, err);
    return ret < 0 ? ret : file_settle(file, 0, err);
}

int file_allocated(struct qk_io *io, uint64_t *bytes, struct qk_error *err)
{
    struct stat st;
    if (fstat(file_store(io)->fd, &st) < 0)
        return qk_fail_errno(err, -errno, "cannot stat");
    *bytes = (uint64_t)st.st_blocks * 512;
    return 0;
}

/* ---- holes ---- */

/*
 * Where the run that starts at off ends, and whether it is data. A file system that knows nothing
 * of holes says that all is data; so do we when it gives no sensible answer.
 */
static uint64_t find_run(int fd, uint64_t off, uint64_t size, bool *data)
{
    off_t start = lseek(fd, (off_t)off, SEEK_DATA);
    if (start < 0 && errno == ENXIO) {
        *data = false;
        return size;
    }
    if (start > (off_t)off) {
        *data = false;
        return min_u64((uint64_t)start, size);
    }
    off_t hole = lseek(fd, (off_t)off, SEEK_HOLE);
    *data = true;
    return hole > (off_t)off ? min_u64((uint64_t)hole, size) : size;
}

int file_status(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                struct qk_extent *extent, struct qk_error *err)
{
    struct file_store *file = file_store(io);
    uint64_t size, end;
    int ret = file_size(io, &size, err);
    if (ret < 0)
        return ret;
    bool data = off < size;
    if (!data)
        end = UINT64_MAX;
    else if (file->is_device || (flags & QK_STATUS_FAST))
        end = size;
    else
        end = find_run(file->fd, off, size, &data);
    *extent = (struct qk_extent){
        .off = off,
        .len = min_u64(len, end - off),
        .host_off = off,
        .file = io->name,
        .flags = QK_EXTENT_ALLOCATED | QK_EXTENT_OFFSET | (data ? QK_EXTENT_DATA : QK_EXTENT_ZERO),
    };
    if (off >= size || extent->len == size - off)
        extent->flags |= QK_EXTENT_EOF;
    return 0;
}
