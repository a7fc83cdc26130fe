/*
 * cipher.h - the ciphers that a LUKS header can name, applied to a disk's sectors of 512 bytes.
 * Which algorithms there are is a table; how a sector's number becomes its initialization vector is
 * part of a suite. Pure: bytes in, bytes out; a struct sector_cipher is for one thread at a time.
 *
 * Keys that are given are not kept beyond the library's own contexts, which wipe themselves.
 */
#ifndef QK_CODEC_CIPHER_H
#define QK_CODEC_CIPHER_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CIPHER_SECTOR_BYTES  512
#define CIPHER_KEY_MAX_BYTES 64 /* XTS with two keys of 256 bits */
#define HASH_MAX_BYTES       64

/* "aes-256" in options; family "aes" and a length of key in a LUKS header. */
struct cipher {
    const char *name, *family;
    uint32_t key_bytes, block_bytes;
    int id; /* the library's */
};

struct hash {
    const char *name;
    uint32_t bytes;
    int id;
};

enum cipher_mode { CIPHER_ECB, CIPHER_CBC, CIPHER_CTR, CIPHER_XTS, CIPHER_MODES };
enum cipher_ivgen { IVGEN_PLAIN, IVGEN_PLAIN64, IVGEN_ESSIV, IVGENS };

struct cipher_suite {
    const struct cipher *cipher;
    enum cipher_mode mode;
    enum cipher_ivgen ivgen;
    const struct hash *ivgen_hash; /* for ESSIV; else ignored, may be NULL */
};

/* NULL, or CIPHER_MODES and IVGENS: there is none of that name. Names have static storage. */
const struct cipher *cipher_by_name(const char *name);
const struct cipher *cipher_by_family(const char *family, uint32_t key_bytes);
const struct hash *hash_by_name(const char *name);
enum cipher_mode cipher_mode_by_name(const char *name);
enum cipher_ivgen cipher_ivgen_by_name(const char *name);
const char *cipher_mode_name(enum cipher_mode mode);
const char *cipher_ivgen_name(enum cipher_ivgen ivgen);

/* XTS takes two keys in one. */
uint32_t cipher_suite_key_bytes(const struct cipher_suite *suite);
/* -ENOTSUP for parts that do not go together. */
int cipher_suite_judge(const struct cipher_suite *suite, struct qk_error *err);

struct sector_cipher;

/* key: cipher_suite_key_bytes of a suite that was judged. -ENOMEM, -EIO. */
int sector_cipher_new(const struct cipher_suite *suite, const uint8_t *key,
                      struct sector_cipher **out, struct qk_error *err);
void sector_cipher_free(struct sector_cipher *c);

/* Bytes on their way from `in` to `out`, which may be the same. */
struct sector_run {
    uint64_t first; /* number of the first sector */
    uint8_t *out;
    const uint8_t *in;
    size_t bytes; /* whole sectors */
};
/* -EIO: the library failed. */
int sector_cipher_encrypt(struct sector_cipher *c, const struct sector_run *run);
int sector_cipher_decrypt(struct sector_cipher *c, const struct sector_run *run);

/* Decrypts whole blocks with AES-256 in CBC mode, as one message. -EIO. */
int cipher_open_message(const uint8_t key[32], const uint8_t iv[16], uint8_t *bytes, size_t len);

/* Makes the library ready; called by all that needs it. */
void cipher_library_begin(void);

#endif
