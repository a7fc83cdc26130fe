/*
 * file_lock.c - the advisory byte locks by which QEMU and we keep each other off an image that is
 * in use. Byte 100+n says "I use permission n", byte 200+n says "I do not share permission n".
 * All locks are read locks of the open file description, so any number of programs can hold the
 * same byte; a conflict is found by asking whether a write lock on the opposite byte would be
 * refused. Relies on F_OFD_SETLK; promises that a failed change leaves the former locks in place.
 *
 * The order is lock first, then probe: of two programs that start at the same time, at least one
 * sees the other (both may fail, which is safe).
 */
#include "base/checked.h"
#include "io/file.h"

#include <fcntl.h>
#include <unistd.h>

enum { USED_BASE = 100, UNSHARED_BASE = 200 };

/* Bit n of a permission set is byte n; the names are those of QEMU's messages. */
static const char *const perm_names[] = {
    "consistent read",
    "write",
    "write unchanged",
    "resize",
};

static int ofd_lock(int fd, int cmd, short type, struct flock *out, off_t byte)
{
    *out = (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    return fcntl(fd, cmd, out) < 0 ? -errno : 0;
}

bool file_lock_available(int fd)
{
    struct flock unused;
    return ofd_lock(fd, F_OFD_GETLK, F_WRLCK, &unused, USED_BASE) == 0;
}

static void unlock_set(int fd, unsigned perms, off_t base)
{
    struct flock unused;
    for (unsigned n = 0; n < ARRAY_SIZE(perm_names); n++) {
        if (perms & (1u << n))
            ofd_lock(fd, F_OFD_SETLK, F_UNLCK, &unused, base + n);
    }
}

static int lock_set(int fd, unsigned perms, off_t base, struct qk_error *err)
{
    struct flock unused;
    for (unsigned n = 0; n < ARRAY_SIZE(perm_names); n++) {
        if (!(perms & (1u << n)))
            continue;
        int ret = ofd_lock(fd, F_OFD_SETLK, F_RDLCK, &unused, base + n);
        if (ret < 0) {
            unlock_set(fd, perms & ((1u << n) - 1), base);
            return qk_fail_errno(err, ret, "Failed to lock byte %d", (int)base + (int)n);
        }
    }
    return 0;
}

/* Looks for another program that holds one of the bytes of perms. */
static int probe_set(int fd, unsigned perms, off_t base, const char *name, struct qk_error *err)
{
    for (unsigned n = 0; n < ARRAY_SIZE(perm_names); n++) {
        struct flock found;
        if (!(perms & (1u << n)))
            continue;
        int ret = ofd_lock(fd, F_OFD_GETLK, F_WRLCK, &found, base + n);
        if (ret < 0)
            return qk_fail_errno(err, ret, "Failed to probe lock byte %d", (int)base + (int)n);
        if (found.l_type != F_UNLCK)
            return qk_fail(err, -EAGAIN,
                           "Failed to get %s\"%s\" lock\nIs another process using the image [%s]?",
                           base == USED_BASE ? "shared " : "", perm_names[n], name);
    }
    return 0;
}

int file_lock_set(int fd, const char *name, struct file_lock *lock, unsigned used, unsigned shared,
                  struct qk_error *err)
{
    if (!lock->enabled)
        return 0;
    unsigned unshared = IO_PERM_ALL & ~shared;
    unsigned new_used = used & ~lock->used, new_unshared = unshared & ~lock->unshared;
    int ret = lock_set(fd, new_used, USED_BASE, err);
    if (ret < 0)
        return ret;
    ret = lock_set(fd, new_unshared, UNSHARED_BASE, err);
    if (ret < 0) {
        unlock_set(fd, new_used, USED_BASE);
        return ret;
    }
    ret = probe_set(fd, used, UNSHARED_BASE, name, err);
    if (ret == 0)
        ret = probe_set(fd, unshared, USED_BASE, name, err);
    if (ret < 0) {
        unlock_set(fd, new_used, USED_BASE);
        unlock_set(fd, new_unshared, UNSHARED_BASE);
        return ret;
    }
    unlock_set(fd, lock->used & ~used, USED_BASE);
    unlock_set(fd, lock->unshared & ~unshared, UNSHARED_BASE);
    lock->used = used;
    lock->unshared = unshared;
    return 0;
}

int file_lock_copy(int fd, const struct file_lock *lock, struct qk_error *err)
{
    if (!lock->enabled)
        return 0;
    int ret = lock_set(fd, lock->used, USED_BASE, err);
    return ret < 0 ? ret : lock_set(fd, lock->unshared, UNSHARED_BASE, err);
}
