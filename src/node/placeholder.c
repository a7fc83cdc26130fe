/* placeholder.c - weak stand-ins for public functions that have not landed yet; goes away. */
#include "qcowkit.h"

#include <errno.h>
#define WEAK __attribute__((weak))
#pragma GCC diagnostic ignored "-Wunused-parameter"
WEAK int qk_disk_open(const char *name, const struct qk_open_options *opts, struct qk_disk **out,
                      struct qk_error *err)
{
    return -ENOSYS;
}
WEAK int qk_disk_close(struct qk_disk *disk, struct qk_error *err)
{
    return -ENOSYS;
}
WEAK uint64_t qk_disk_size(struct qk_disk *disk)
{
    return 0;
}
WEAK int qk_disk_read(struct qk_disk *disk, uint64_t off, void *buf, size_t len,
                      struct qk_error *err)
{
    return -ENOSYS;
}
WEAK int qk_disk_readv(struct qk_disk *disk, uint64_t off, const struct iovec *iov, int iovcnt,
                       struct qk_error *err)
{
    return -ENOSYS;
}
WEAK int qk_disk_write(struct qk_disk *disk, uint64_t off, const void *buf, size_t len,
                       unsigned flags, struct qk_error *err)
{
    return -ENOSYS;
}
WEAK int qk_disk_writev(struct qk_disk *disk, uint64_t off, const struct iovec *iov, int iovcnt,
                        unsigned flags, struct qk_error *err)
{
    return -ENOSYS;
}
WEAK int qk_disk_write_zeroes(struct qk_disk *disk, uint64_t off, uint64_t len, unsigned flags,
                              struct qk_error *err)
{
    return -ENOSYS;
}
WEAK int qk_disk_discard(struct qk_disk *disk, uint64_t off, uint64_t len, struct qk_error *err)
{
    return -ENOSYS;
}
WEAK int qk_disk_flush(struct qk_disk *disk, struct qk_error *err)
{
    return -ENOSYS;
}
WEAK int qk_disk_status(struct qk_disk *disk, uint64_t off, uint64_t len, unsigned flags,
                        struct qk_extent *extent, struct qk_error *err)
{
    return -ENOSYS;
}
WEAK const struct qk_option_desc *qk_create_options(const char *format, size_t *count)
{
    return NULL;
}
WEAK int qk_create(const char *name, const char *format, const char *const *options,
                   struct qk_error *err)
{
    return -ENOSYS;
}
WEAK int qk_create_resolve(const char *name, const char *format, const char *const *options,
                           unsigned flags, char ***resolved, struct qk_error *err)
{
    return -ENOSYS;
}
WEAK void qk_options_free(char **list)
{
}
WEAK int qk_disk_resize(struct qk_disk *disk, uint64_t size, enum qk_prealloc prealloc,
                        unsigned flags, struct qk_error *err)
{
    return -ENOSYS;
}
WEAK int qk_disk_info(struct qk_disk *disk, struct qk_info *info, struct qk_error *err)
{
    return -ENOSYS;
}
WEAK struct qk_disk *qk_disk_backing(struct qk_disk *disk)
{
    return NULL;
}
WEAK int qk_disk_snapshot(struct qk_disk *disk, uint32_t index, struct qk_snapshot_info *info,
                          struct qk_error *err)
{
    return -ENOSYS;
}
WEAK int qk_disk_check(struct qk_disk *disk, const struct qk_check_options *opts,
                       struct qk_check_result *result, struct qk_error *err)
{
    return -ENOSYS;
}
WEAK int qk_convert(struct qk_disk *const *sources, size_t count, struct qk_disk *target,
                    const struct qk_convert_options *opts, struct qk_error *err)
{
    return -ENOSYS;
}
WEAK int qk_compare(struct qk_disk *a, struct qk_disk *b, bool strict,
                    const struct qk_progress *progress, struct qk_compare_result *result,
                    struct qk_error *err)
{
    return -ENOSYS;
}
WEAK int qk_measure(struct qk_disk *source, const char *format, const char *const *options,
                    struct qk_measure_result *result, struct qk_error *err)
{
    return -ENOSYS;
}
