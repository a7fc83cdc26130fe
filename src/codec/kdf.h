/*
 * kdf.h - what LUKS does with a passphrase: deriving keys (PBKDF2, RFC 8018), and spreading a key
 * over many stripes so that it is gone when any of them is (the anti-forensic splitter of the LUKS
 * on-disk format). Pure but for random bytes and the thread's clock; MT-safe.
 */
#ifndef QK_CODEC_KDF_H
#define QK_CODEC_KDF_H

#include "codec/cipher.h"

#include <sys/uio.h>

/* A minute or two of one core. A header from elsewhere may ask for hours: more is refused. */
#define KDF_ITERATIONS_MAX (UINT32_C(1) << 28)

struct kdf_input {
    const struct hash *hash;
    struct iovec secret, salt;
    uint32_t iterations; /* at least 1, at most KDF_ITERATIONS_MAX */
};

/* Fills `out`. -EINVAL, -EFBIG (too many iterations), -ENOMEM, -EIO. */
int kdf_derive(const struct kdf_input *in, struct iovec out);

/* Iterations that fill out_bytes in `ms` milliseconds of this thread's time on this machine, at
 * least `min` and at most KDF_ITERATIONS_MAX. */
int kdf_iterations(const struct hash *hash, size_t out_bytes, uint64_t ms, uint32_t min,
                   uint32_t *iterations);

/* `key` of len bytes <-> len * stripes bytes; stripes at least 1. Splitting takes random bytes. */
struct af_shape {
    const struct hash *hash;
    size_t key_bytes;
    uint32_t stripes;
};
int af_split(const struct af_shape *shape, const uint8_t *key, uint8_t *out);
int af_merge(const struct af_shape *shape, const uint8_t *in, uint8_t *key);

/* From the kernel. -EIO when there are none. */
int random_bytes(void *buf, size_t len);

#endif
