/*
 * file_flush.c - making a file's writes stable. Flushes that are asked for while one is running
 * share the next one: what a caller needs is an fdatasync that starts after its call.
 *
 * A failed flush of cached data is remembered: the kernel reports such an error once, to one of
 * its callers, and may have dropped the pages, so that a later fdatasync that says "done" would be
 * a lie (INV-3). Running one at a time makes sure that nobody gets such an answer meanwhile.
 */
#include "base/cleanup.h"
#include "io/file.h"

#include <unistd.h>

static int sync_data(int fd)
{
    int ret;
    do
        ret = fdatasync(fd) < 0 ? -errno : 0;
    while (ret == -EINTR);
    return ret;
}

/* Called with the lock held, which is open during the system call. */
static void run_one(struct file_store *file)
{
    struct file_flush *f = &file->flush;
    uint64_t mine = ++f->started;
    f->running = true;
    pthread_mutex_unlock(&f->lock);
    int ret = sync_data(file->fd);
    pthread_mutex_lock(&f->lock);
    f->running = false;
    f->finished = mine;
    if (ret < 0) {
        f->failed = mine;
        f->error = ret;
    }
    pthread_cond_broadcast(&f->done);
}

int file_flush(struct qk_io *io, struct qk_error *err)
{
    struct file_store *file = file_store(io);
    struct file_flush *f = &file->flush;
    if (file->no_flush || !io->writable)
        return 0;
    LOCK_SCOPE(&f->lock);
    uint64_t need = f->started + 1;
    if (!file->direct && f->failed)
        return qk_fail_errno(err, f->error, "an earlier flush failed, data may be lost");
    while (f->finished < need) {
        if (f->running)
            pthread_cond_wait(&f->done, &f->lock);
        else
            run_one(file);
    }
    if (f->failed >= need || (f->failed && !file->direct))
        return qk_fail_errno(err, f->error, "cannot flush");
    return 0;
}

int file_settle(struct file_store *file, unsigned flags, struct qk_error *err)
{
    if (file->writethrough || (flags & QK_WRITE_FUA))
        return file_flush(&file->io, err);
    return 0;
}
