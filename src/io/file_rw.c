/*
 * file_rw.c - reading and writing a file or block device. Loops over interrupted and
 * short calls, splits long vectors, and lets any offset through under O_DIRECT by bouncing.
 *
 * Direct writes that do not cover whole blocks read, change and write back the blocks at their
 * edges. A neighbour that writes its own bytes of such a block in between would be lost, so these
 * requests hold edge_lock exclusively, all other changes share it. Cached I/O needs no lock.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "io/file.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

enum { BOUNCE_MAX = 1 << 20 };

void file_edge_lock(struct file_store *file, bool exclusive)
{
    if (!file->direct)
        return;
    if (exclusive)
        pthread_rwlock_wrlock(&file->edge_lock);
    else
        pthread_rwlock_rdlock(&file->edge_lock);
}

void file_edge_unlock(struct file_store *file)
{
    if (file->direct)
        pthread_rwlock_unlock(&file->edge_lock);
}

/* As many entries as one system call takes, from byte `skip` on. */
static int slice_for_call(const struct iovec *iov, int iovcnt, size_t skip, struct iovec *out)
{
    int n = 0;
    for (int i = 0; i < iovcnt && n < IOV_MAX; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        out[n++] = (struct iovec){(uint8_t *)iov[i].iov_base + skip, iov[i].iov_len - skip};
        skip = 0;
    }
    return n;
}

/* One request on its way; `done` counts the bytes moved so far. */
struct transfer {
    struct file_store *file;
    uint64_t off;
    const struct iovec *iov;
    int iovcnt;
    size_t total, done;
};

typedef ssize_t vector_call(int fd, const struct iovec *iov, int iovcnt, off_t off);

static ssize_t call_once(struct transfer *t, vector_call *call)
{
    const struct iovec *iov = t->iov;
    int iovcnt = t->iovcnt;
    struct iovec part[IOV_MAX];
    if (t->done || iovcnt > IOV_MAX) {
        iovcnt = slice_for_call(iov, iovcnt, t->done, part);
        iov = part;
    }
    ssize_t n;
    do
        n = call(t->file->fd, iov, iovcnt, (off_t)(t->off + t->done));
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

static int read_loop(struct transfer *t, struct qk_error *err)
{
    while (t->done < t->total) {
        ssize_t n = call_once(t, preadv);
        if (n < 0)
            return qk_fail_errno(err, (int)n, "cannot read %zu bytes", t->total);
        t->done += (size_t)n;
        /* a direct read that ends inside a block has met the end of the file */
        if (n == 0 || !is_aligned((uint64_t)n, t->file->io.alignment)) {
            iov_zero(t->iov, t->iovcnt, t->done, t->total - t->done);
            return 0;
        }
    }
    return 0;
}

static int write_loop(struct transfer *t, struct qk_error *err)
{
    while (t->done < t->total) {
        ssize_t n = call_once(t, pwritev);
        if (n == 0)
            n = -ENOSPC;
        if (n < 0)
            return file_no_room(qk_fail_errno(err, (int)n, "cannot write %zu bytes", t->total),
                                err);
        t->done += (size_t)n;
    }
    return 0;
}

static int flat_transfer(struct file_store *file, bool write, uint64_t off,
                         const struct iovec *flat, struct qk_error *err)
{
    struct transfer t = {
        .file = file, .off = off, .iov = flat, .iovcnt = 1, .total = flat->iov_len};
    return write ? write_loop(&t, err) : read_loop(&t, err);
}

/* ---- direct I/O of any offset ---- */

static bool buffers_aligned(const struct transfer *t)
{
    const struct file_store *file = t->file;
    for (int i = 0; i < t->iovcnt; i++) {
        if (!is_aligned((uintptr_t)t->iov[i].iov_base, file->mem_alignment) ||
            !is_aligned(t->iov[i].iov_len, file->io.alignment))
            return false;
    }
    return true;
}

static bool range_aligned(const struct transfer *t)
{
    return is_aligned(t->off | t->total, t->file->io.alignment);
}

/* The next piece of a bounced request: its bytes [off, off+len), and the whole blocks around. */
struct piece {
    uint64_t off, block_off;
    size_t len, block_len;
};

static struct piece next_piece(const struct transfer *t)
{
    uint64_t align = t->file->io.alignment;
    struct piece p = {.off = t->off + t->done};
    p.block_off = round_down(p.off, align);
    uint64_t end = min_u64(t->off + t->total, p.block_off + BOUNCE_MAX);
    p.len = (size_t)(end - p.off);
    p.block_len = (size_t)(round_up(end, align) - p.block_off);
    return p;
}

static int bounce_read(struct transfer *t, uint8_t *buf, struct qk_error *err)
{
    while (t->done < t->total) {
        struct piece p = next_piece(t);
        int ret =
            flat_transfer(t->file, false, p.block_off, &(struct iovec){buf, p.block_len}, err);
        if (ret < 0)
            return ret;
        iov_from_buf(t->iov, t->iovcnt, t->done, buf + (p.off - p.block_off), p.len);
        t->done += p.len;
    }
    return 0;
}

/* Reads the blocks of which the piece covers only a part. */
static int read_edges(struct file_store *file, const struct piece *p, uint8_t *buf,
                      struct qk_error *err)
{
    size_t align = file->io.alignment;
    uint64_t end = p->off + p->len;
    int ret = 0;
    if (p->off != p->block_off)
        ret = flat_transfer(file, false, p->block_off, &(struct iovec){buf, align}, err);
    if (ret == 0 && !is_aligned(end, align))
        ret = flat_transfer(file, false, round_down(end, align),
                            &(struct iovec){buf + p->block_len - align, align}, err);
    return ret;
}

static int bounce_write(struct transfer *t, uint8_t *buf, struct qk_error *err)
{
    while (t->done < t->total) {
        struct piece p = next_piece(t);
        int ret = read_edges(t->file, &p, buf, err);
        if (ret < 0)
            return ret;
        iov_to_buf(t->iov, t->iovcnt, t->done, buf + (p.off - p.block_off), p.len);
        ret = flat_transfer(t->file, true, p.block_off, &(struct iovec){buf, p.block_len}, err);
        if (ret < 0)
            return ret;
        t->done += p.len;
    }
    return 0;
}

/* Whole blocks at the end of a file make it longer than what was asked for; cut that off. Runs
 * under the exclusive lock, so that nobody else has grown the file meanwhile. */
static int trim_padding(struct transfer *t, uint64_t old_size, struct qk_error *err)
{
    uint64_t keep = max_u64(old_size, t->off + t->total);
    off_t now = lseek(t->file->fd, 0, SEEK_END);
    if (t->file->is_device || (now >= 0 && (uint64_t)now <= keep))
        return 0;
    if (now < 0 || ftruncate(t->file->fd, (off_t)keep) < 0)
        return qk_fail_errno(err, -errno, "cannot cut the file at %llu", (unsigned long long)keep);
    return 0;
}

static int write_misaligned(struct transfer *t, uint8_t *buf, struct qk_error *err)
{
    off_t old_size = lseek(t->file->fd, 0, SEEK_END);
    if (old_size < 0)
        return qk_fail_errno(err, -errno, "cannot find the end of the file");
    int ret = bounce_write(t, buf, err);
    int trimmed = trim_padding(t, (uint64_t)old_size, ret < 0 ? NULL : err);
    return ret < 0 ? ret : trimmed;
}

static int direct_transfer(struct transfer *t, bool write, struct qk_error *err)
{
    bool whole_blocks = range_aligned(t);
    uint8_t *bounce = NULL;
    if (!whole_blocks || !buffers_aligned(t)) {
        size_t size = (size_t)min_u64(t->total + 2 * (uint64_t)t->file->io.alignment,
                                      BOUNCE_MAX + (uint64_t)t->file->io.alignment);
        size_t align = t->file->mem_alignment < 4096 ? 4096 : t->file->mem_alignment;
        if (posix_memalign((void **)&bounce, align, (size_t)round_up(size, align)))
            return qk_fail_nomem(err);
    }
    bool exclusive = write && !whole_blocks;
    file_edge_lock(t->file, exclusive);
    int ret;
    if (!bounce)
        ret = write ? write_loop(t, err) : read_loop(t, err);
    else if (exclusive)
        ret = write_misaligned(t, bounce, err);
    else
        ret = write ? bounce_write(t, bounce, err) : bounce_read(t, bounce, err);
    file_edge_unlock(t->file);
    free(bounce);
    return ret;
}

/* ---- the vtable's entries ---- */

static int check_range(struct file_store *file, bool write, const struct transfer *t,
                       struct qk_error *err)
{
    uint64_t limit = (uint64_t)INT64_MAX - BOUNCE_MAX;
    if (!range_within(t->off, t->total, limit))
        return qk_fail(err, write ? -EFBIG : -EINVAL, "the range ends beyond any file");
    if (write && file->is_device && !range_within(t->off, t->total, file->device_bytes))
        return qk_fail(err, -ENOSPC, "the range ends beyond the device");
    return 0;
}

int file_preadv(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                struct qk_error *err)
{
    struct file_store *file = file_store(io);
    struct transfer t = {
        .file = file, .off = off, .iov = iov, .iovcnt = iovcnt, .total = iov_total(iov, iovcnt)};
    int ret = check_range(file, false, &t, err);
    if (ret < 0)
        return ret;
    return file->direct ? direct_transfer(&t, false, err) : read_loop(&t, err);
}

/* Only what goes through the page cache can come early. */
void file_will_read(struct qk_io *io, uint64_t off, uint64_t len)
{
    struct file_store *file = file_store(io);
    if (!file->direct && off <= INT64_MAX && len <= INT64_MAX)
        posix_fadvise(file->fd, (off_t)off, (off_t)len, POSIX_FADV_WILLNEED);
}

int file_pwritev(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                 unsigned flags, struct qk_error *err)
{
    struct file_store *file = file_store(io);
    struct transfer t = {
        .file = file, .off = off, .iov = iov, .iovcnt = iovcnt, .total = iov_total(iov, iovcnt)};
    int ret = check_range(file, true, &t, err);
    if (ret == 0)
        ret = file->direct ? direct_transfer(&t, true, err) : write_loop(&t, err);
    if (ret == 0 && (flags & QK_WRITE_FUA) && !file->writethrough)
        ret = file_flush(io, err);
    return ret;
}
