/*
 * breakpoint.c - stopping the requests of a disk at the events that a blkdebug node below it sees
 * (io/fault.h). For tests of what happens meanwhile.
 */
#include "io/fault.h"
#include "node/driver.h"

static int find_store(const struct qk_disk *disk, struct qk_io **store, struct qk_error *err)
{
    for (const struct node *node = disk->node; node; node = node->file) {
        if (node->driver == &blkdebug_driver) {
            *store = node->store;
            return 0;
        }
    }
    return qk_fail(err, -ENOTSUP, "Breakpoints need a blkdebug node below the disk");
}

int qk_disk_set_break(struct qk_disk *disk, const char *event, const char *tag,
                      struct qk_error *err)
{
    struct qk_io *store;
    int ret = find_store(disk, &store, err);
    if (ret == 0 && (ret = fault_break(store, event, tag)) < 0)
        return qk_fail(err, ret, "There is no event '%s' to stop at", event);
    return ret;
}

int qk_disk_remove_break(struct qk_disk *disk, const char *tag, struct qk_error *err)
{
    struct qk_io *store;
    int ret = find_store(disk, &store, err);
    if (ret == 0 && (ret = fault_remove_break(store, tag)) < 0)
        return qk_fail(err, ret, "There is no breakpoint '%s'", tag);
    return ret;
}

int qk_disk_resume(struct qk_disk *disk, const char *tag, struct qk_error *err)
{
    struct qk_io *store;
    int ret = find_store(disk, &store, err);
    if (ret == 0 && (ret = fault_resume(store, tag)) < 0)
        return qk_fail(err, ret, "No request has stopped at '%s'", tag);
    return ret;
}

int qk_disk_is_stopped(struct qk_disk *disk, const char *tag, struct qk_error *err)
{
    struct qk_io *store;
    int ret = find_store(disk, &store, err);
    return ret < 0 ? ret : fault_is_suspended(store, tag);
}
