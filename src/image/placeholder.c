/* placeholder.c - weak stand-ins while rooms are being built in parallel; goes away. */
#include "check/check.h"
#include "image/freemap.h"
#include "image/image.h"
#define WEAK __attribute__((weak))
#pragma GCC diagnostic ignored "-Wunused-parameter"
WEAK int image_open(struct qk_io *f, const struct image_options *o, struct image **out, struct qk_error *err) { return qk_fail(err, -ENOSYS, "placeholder"); }
WEAK void image_set_backing(struct image *img, struct qk_io *backing) {}
WEAK int image_close(struct image *img, struct qk_error *err) { return 0; }
WEAK void image_abandon(struct image *img) {}
WEAK const struct header *image_header(const struct image *img) { return NULL; }
WEAK const struct geometry *image_geometry(const struct image *img) { return NULL; }
WEAK const struct header_extensions *image_extensions(const struct image *img) { return NULL; }
WEAK const char *image_backing_name(const struct image *img) { return NULL; }
WEAK const char *image_backing_format(const struct image *img) { return NULL; }
WEAK uint64_t image_size(const struct image *img) { return 0; }
WEAK struct qk_io *image_file(const struct image *img) { return NULL; }
WEAK bool image_writable(const struct image *img) { return false; }
WEAK bool image_needs_repair(const struct image *img) { return false; }
WEAK const uint64_t *image_l1(const struct image *img, uint32_t *entries) { return NULL; }
WEAK int image_readv(struct image *img, guest_off_t off, const struct iovec *iov, int n, struct qk_error *err) { return -ENOSYS; }
WEAK int image_writev(struct image *img, guest_off_t off, const struct iovec *iov, int n, unsigned flags, struct qk_error *err) { return -ENOSYS; }
WEAK int image_zero(struct image *img, guest_off_t off, uint64_t len, unsigned flags, struct qk_error *err) { return -ENOSYS; }
WEAK int image_discard(struct image *img, guest_off_t off, uint64_t len, struct qk_error *err) { return -ENOSYS; }
WEAK int image_flush(struct image *img, struct qk_error *err) { return -ENOSYS; }
WEAK int image_status(struct image *img, guest_off_t off, uint64_t len, struct qk_extent *extent, struct qk_error *err) { return -ENOSYS; }
WEAK int image_resize(struct image *img, uint64_t size, enum qk_prealloc p, unsigned flags, struct qk_error *err) { return -ENOSYS; }
WEAK int image_reload(struct image *img, struct qk_error *err) { return -ENOSYS; }
WEAK int image_set_incompatible(struct image *img, uint64_t set, uint64_t clear, struct qk_error *err) { return -ENOSYS; }
WEAK int image_create(struct qk_io *file, const struct create_params *params, struct qk_error *err) { return -ENOSYS; }
WEAK int image_measure(const struct create_params *params, uint64_t n, uint64_t *bytes, struct qk_error *err) { return -ENOSYS; }
WEAK int check_image(struct image *img, const struct qk_check_options *opts, struct qk_check_result *result, struct qk_error *err) { return -ENOSYS; }
