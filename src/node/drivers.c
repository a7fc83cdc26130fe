/*
 * drivers.c - the table of drivers by name and by protocol prefix, and the vtable entries that
 * only pass a call on. Names that QEMU knows and this version does not are part of the table, so
 * that they are refused by name rather than taken for something else.
 */
#include "base/checked.h"
#include "node/driver.h"
#include "node/name.h"

#include <string.h>
#include <sys/stat.h>

#define KNOWN_FORMAT(name_)                                                                        \
    &(const struct node_driver)                                                                    \
    {                                                                                              \
        .name = (name_), .kind = DRIVER_KNOWN_FORMAT                                               \
    }
#define KNOWN_PROTOCOL(name_, prefix_)                                                             \
    &(const struct node_driver)                                                                    \
    {                                                                                              \
        .name = (name_), .kind = DRIVER_KNOWN_PROTOCOL, .prefix = (prefix_)                        \
    }

static const struct node_driver *const drivers[] = {
    &file_driver,
    &host_device_driver,
    &raw_driver,
    &qcow2_driver,
    &null_co_driver,
    &null_aio_driver,
    &blkdebug_driver,
    KNOWN_FORMAT("bochs"),
    KNOWN_FORMAT("cloop"),
    KNOWN_FORMAT("dmg"),
    KNOWN_FORMAT("luks"),
    KNOWN_FORMAT("parallels"),
    KNOWN_FORMAT("qcow"),
    KNOWN_FORMAT("qed"),
    KNOWN_FORMAT("vdi"),
    KNOWN_FORMAT("vhdx"),
    KNOWN_FORMAT("vmdk"),
    KNOWN_FORMAT("vpc"),
    KNOWN_FORMAT("blklogwrites"),
    KNOWN_FORMAT("copy-on-read"),
    KNOWN_FORMAT("compress"),
    KNOWN_FORMAT("preallocate"),
    KNOWN_FORMAT("replication"),
    KNOWN_FORMAT("throttle"),
    KNOWN_PROTOCOL("blkreplay", NULL),
    KNOWN_PROTOCOL("blkverify", "blkverify"),
    KNOWN_PROTOCOL("quorum", NULL),
    KNOWN_PROTOCOL("host_cdrom", "host_cdrom"),
    KNOWN_PROTOCOL("nbd", "nbd"),
    KNOWN_PROTOCOL("nbd", "nbd+tcp"),
    KNOWN_PROTOCOL("nbd", "nbd+unix"),
    KNOWN_PROTOCOL("ssh", "ssh"),
    KNOWN_PROTOCOL("http", "http"),
    KNOWN_PROTOCOL("https", "https"),
    KNOWN_PROTOCOL("ftp", "ftp"),
    KNOWN_PROTOCOL("ftps", "ftps"),
    KNOWN_PROTOCOL("iscsi", "iscsi"),
    KNOWN_PROTOCOL("iser", "iser"),
    KNOWN_PROTOCOL("rbd", "rbd"),
    KNOWN_PROTOCOL("nfs", "nfs"),
    KNOWN_PROTOCOL("gluster", "gluster"),
    KNOWN_PROTOCOL("gluster", "gluster+tcp"),
    KNOWN_PROTOCOL("gluster", "gluster+unix"),
    KNOWN_PROTOCOL("nvme", "nvme"),
    KNOWN_PROTOCOL("vvfat", "fat"),
    KNOWN_PROTOCOL("io_uring", NULL),
    KNOWN_PROTOCOL("nvme-io_uring", NULL),
    KNOWN_PROTOCOL("virtio-blk-vhost-user", NULL),
    KNOWN_PROTOCOL("virtio-blk-vhost-vdpa", NULL),
};

const struct node_driver *driver_by_name(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(drivers); i++) {
        if (!strcmp(drivers[i]->name, name))
            return drivers[i];
    }
    return NULL;
}

const struct node_driver *driver_for_file(const char *name)
{
    struct stat st;
    bool device = stat(name, &st) == 0 && S_ISBLK(st.st_mode);
    return device ? &host_device_driver : &file_driver;
}

int driver_by_protocol(const char *name, const struct node_driver **out, struct qk_error *err)
{
    size_t len = name_protocol(name);
    if (!name_has_protocol(name)) {
        *out = driver_for_file(name);
        return 0;
    }
    for (size_t i = 0; i < ARRAY_SIZE(drivers); i++) {
        const char *prefix = drivers[i]->prefix;
        if (prefix && strlen(prefix) == len && !memcmp(prefix, name, len)) {
            *out = drivers[i];
            return 0;
        }
    }
    return qk_fail(err, -EINVAL, "Unknown protocol '%.*s'", (int)len, name);
}

int driver_check_supported(const struct node_driver *driver, struct qk_error *err)
{
    if (driver->kind == DRIVER_KNOWN_FORMAT)
        return qk_fail(err, -ENOTSUP, "Format '%s' is not supported by this version", driver->name);
    if (driver->kind == DRIVER_KNOWN_PROTOCOL)
        return qk_fail(err, -ENOTSUP, "Protocol '%s' is not supported by this version",
                       driver->name);
    return 0;
}

/* ---- passing on -------------------------------------------------------------------------- */

int pass_preadv(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                struct qk_error *err)
{
    return io_readv(node_below(node_of(io)), off, iov, iovcnt, err);
}

int pass_pwritev(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                 unsigned flags, struct qk_error *err)
{
    return io_writev(node_below(node_of(io)), off, iov, iovcnt, flags, err);
}

int pass_zero(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags, struct qk_error *err)
{
    return io_zero(node_below(node_of(io)), off, len, flags, err);
}

int pass_discard(struct qk_io *io, uint64_t off, uint64_t len, struct qk_error *err)
{
    return io_discard(node_below(node_of(io)), off, len, err);
}

int pass_flush(struct qk_io *io, struct qk_error *err)
{
    return io_flush(node_below(node_of(io)), err);
}

int pass_size(struct qk_io *io, uint64_t *size, struct qk_error *err)
{
    return io_size(node_below(node_of(io)), size, err);
}

int pass_resize(struct qk_io *io, uint64_t size, enum qk_prealloc prealloc, struct qk_error *err)
{
    return io_resize(node_below(node_of(io)), size, prealloc, err);
}

int pass_status(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                struct qk_extent *extent, struct qk_error *err)
{
    return io_status(node_below(node_of(io)), off, len, flags, extent, err);
}

int pass_allocated(struct qk_io *io, uint64_t *bytes, struct qk_error *err)
{
    return io_allocated(node_below(node_of(io)), bytes, err);
}

static void pass_will_read(struct qk_io *io, uint64_t off, uint64_t len)
{
    io_will_read(node_below(node_of(io)), off, len);
}

void pass_event(struct qk_io *io, const char *event)
{
    io_event(node_below(node_of(io)), event);
}

int pass_set_perm(struct qk_io *io, unsigned used, unsigned shared, struct qk_error *err)
{
    return io_set_perm(node_below(node_of(io)), used, shared, err);
}

int pass_set_writable(struct qk_io *io, bool writable, struct qk_error *err)
{
    struct node *node = node_of(io);
    int ret = io_set_writable(node_below(node), writable, err);
    if (ret < 0)
        return ret;
    node_note_writable(node, writable);
    return 0;
}

int node_io_close(struct qk_io *io, struct qk_error *err)
{
    return node_close(node_of(io), err);
}

const struct qk_io_ops node_pass_ops = {
    .name = "pass",
    .preadv = pass_preadv,
    .pwritev = pass_pwritev,
    .zero = pass_zero,
    .discard = pass_discard,
    .flush = pass_flush,
    .size = pass_size,
    .resize = pass_resize,
    .status = pass_status,
    .allocated = pass_allocated,
    .will_read = pass_will_read,
    .event = pass_event,
    .set_perm = pass_set_perm,
    .set_writable = pass_set_writable,
    .close = node_io_close,
};

void node_take_limits(struct node *node)
{
    node->io.name = node->store->name;
    node->io.alignment = node->store->alignment;
    node->io.can_grow = node->store->can_grow;
    node->io.zero_init = node->store->zero_init;
}
