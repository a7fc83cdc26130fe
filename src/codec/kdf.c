/*
 * kdf.c - key derivation and the anti-forensic splitter (see kdf.h), hashes by libgcrypt. Promises
 * that no key is left behind in memory of its own.
 */
#include "codec/kdf.h"

#include "base/bytes.h"
#include "base/checked.h"

#include <gcrypt.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

#define NSEC_PER_MSEC 1000000
#define PROBE_MSEC    20 /* a measurement shorter than this is repeated with more iterations */

int random_bytes(void *buf, size_t len)
{
    uint8_t *p = buf;
    while (len) {
        ssize_t n = getrandom(p, len, 0);
        if (n < 0 && errno != EINTR)
            return -EIO;
        if (n > 0) {
            p += n;
            len -= (size_t)n;
        }
    }
    return 0;
}

/* ---- PBKDF2 ---- */

int kdf_derive(const struct kdf_input *in, struct iovec out)
{
    if (in->iterations > KDF_ITERATIONS_MAX)
        return -EFBIG;
    if (!in->iterations)
        return -EINVAL;
    cipher_library_begin();
    const void *secret = in->secret.iov_len ? in->secret.iov_base : "";
    gcry_error_t ret = gcry_kdf_derive(secret, in->secret.iov_len, GCRY_KDF_PBKDF2, in->hash->id,
                                       in->salt.iov_base, in->salt.iov_len, in->iterations,
                                       out.iov_len, out.iov_base);
    return !ret ? 0 : gcry_err_code(ret) == GPG_ERR_ENOMEM ? -ENOMEM : -EIO;
}

static uint64_t thread_nsec(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000 * NSEC_PER_MSEC + (uint64_t)t.tv_nsec;
}

int kdf_iterations(const struct hash *hash, size_t out_bytes, uint64_t ms, uint32_t min,
                   uint32_t *iterations)
{
    static char secret[] = "a passphrase", salt[] = "thirty-two bytes are a full salt";
    uint8_t out[CIPHER_KEY_MAX_BYTES];
    struct kdf_input in = {
        hash, {secret, sizeof(secret) - 1}, {salt, sizeof(salt) - 1}, .iterations = 4096};
    uint64_t spent;
    for (;;) {
        uint64_t start = thread_nsec();
        int ret = kdf_derive(&in, (struct iovec){out, min_u64(out_bytes, sizeof(out))});
        if (ret < 0)
            return ret;
        spent = thread_nsec() - start;
        if (spent >= PROBE_MSEC * NSEC_PER_MSEC || in.iterations > KDF_ITERATIONS_MAX / 4)
            break;
        in.iterations *= 4;
    }
    double wanted = (double)in.iterations * (double)ms * NSEC_PER_MSEC / (double)max_u64(spent, 1);
    *iterations = wanted >= (double)KDF_ITERATIONS_MAX ? KDF_ITERATIONS_MAX
                                                       : (uint32_t)max_u64((uint64_t)wanted, min);
    return 0;
}

/* ---- the splitter ---- */

/* Spreads each bit of the block: every piece of a digest's length becomes the hash of its number
 * and itself. */
static int diffuse(gcry_md_hd_t md, const struct af_shape *shape, uint8_t *block)
{
    const size_t step = shape->hash->bytes;
    uint32_t number = 0;
    for (size_t at = 0; at < shape->key_bytes; at += step, number++) {
        size_t n = (size_t)min_u64(step, shape->key_bytes - at);
        uint8_t prefix[4];
        store_be32(prefix, number);
        gcry_md_reset(md);
        gcry_md_write(md, prefix, sizeof(prefix));
        gcry_md_write(md, block + at, n);
        const uint8_t *digest = gcry_md_read(md, shape->hash->id);
        if (!digest)
            return -EIO;
        memcpy(block + at, digest, n);
    }
    return 0;
}

static void xor_into(uint8_t *to, const uint8_t *from, size_t len)
{
    for (size_t i = 0; i < len; i++)
        to[i] ^= from[i];
}

/* Folds all stripes but the last into `block`. */
static int fold(const struct af_shape *shape, const uint8_t *stripes, uint8_t *block)
{
    gcry_md_hd_t md;
    cipher_library_begin();
    if (gcry_md_open(&md, shape->hash->id, 0))
        return -ENOMEM;
    memset(block, 0, shape->key_bytes);
    int ret = 0;
    for (uint32_t i = 0; i + 1 < shape->stripes && ret == 0; i++) {
        xor_into(block, stripes + (size_t)i * shape->key_bytes, shape->key_bytes);
        ret = diffuse(md, shape, block);
    }
    gcry_md_close(md);
    return ret;
}

int af_split(const struct af_shape *shape, const uint8_t *key, uint8_t *out)
{
    size_t len = shape->key_bytes, before = (size_t)(shape->stripes - 1) * len;
    int ret = random_bytes(out, before);
    if (ret == 0)
        ret = fold(shape, out, out + before);
    if (ret == 0)
        xor_into(out + before, key, len);
    return ret;
}

int af_merge(const struct af_shape *shape, const uint8_t *in, uint8_t *key)
{
    size_t len = shape->key_bytes;
    int ret = fold(shape, in, key);
    if (ret == 0)
        xor_into(key, in + (size_t)(shape->stripes - 1) * len, len);
    return ret;
}
