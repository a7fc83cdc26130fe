/*
 * cipher.c - sector ciphers by libgcrypt (see cipher.h; doc/design/encryption.md says why that
 * library). Relies on nothing but its generic cipher interface; promises that sectors are
 * independent of each other, whatever was encrypted before with the same context.
 */
#include "codec/cipher.h"

#include "base/checked.h"
#include "codec/cipher_nettle.h"

#include <endian.h>
#include <gcrypt.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

/* ---- tables ---- */

/* What libgcrypt does not have comes from elsewhere, or not at all (0). */
#ifdef HAVE_NETTLE
#define TWOFISH192 (-1)
#else
#define TWOFISH192 0
#endif

static const struct cipher ciphers[] = {
    {"aes-128", "aes", 16, 16, GCRY_CIPHER_AES128},
    {"aes-192", "aes", 24, 16, GCRY_CIPHER_AES192},
    {"aes-256", "aes", 32, 16, GCRY_CIPHER_AES256},
    {"cast5-128", "cast5", 16, 8, GCRY_CIPHER_CAST5},
    {"serpent-128", "serpent", 16, 16, GCRY_CIPHER_SERPENT128},
    {"serpent-192", "serpent", 24, 16, GCRY_CIPHER_SERPENT192},
    {"serpent-256", "serpent", 32, 16, GCRY_CIPHER_SERPENT256},
    {"twofish-128", "twofish", 16, 16, GCRY_CIPHER_TWOFISH128},
    {"twofish-192", "twofish", 24, 16, TWOFISH192},
    {"twofish-256", "twofish", 32, 16, GCRY_CIPHER_TWOFISH},
};

static const struct hash hashes[] = {
    {"md5", 16, GCRY_MD_MD5},          {"sha1", 20, GCRY_MD_SHA1},
    {"sha224", 28, GCRY_MD_SHA224},    {"sha256", 32, GCRY_MD_SHA256},
    {"sha384", 48, GCRY_MD_SHA384},    {"sha512", 64, GCRY_MD_SHA512},
    {"ripemd160", 20, GCRY_MD_RMD160},
};

static const char *const mode_names[] = {"ecb", "cbc", "ctr", "xts"};
static const char *const ivgen_names[] = {"plain", "plain64", "essiv"};

const struct cipher *cipher_by_name(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(ciphers); i++)
        if (!strcmp(ciphers[i].name, name))
            return &ciphers[i];
    return NULL;
}

const struct cipher *cipher_by_family(const char *family, uint32_t key_bytes)
{
    for (size_t i = 0; i < ARRAY_SIZE(ciphers); i++)
        if (!strcmp(ciphers[i].family, family) && ciphers[i].key_bytes == key_bytes)
            return &ciphers[i];
    return NULL;
}

const struct hash *hash_by_name(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(hashes); i++)
        if (!strcmp(hashes[i].name, name))
            return &hashes[i];
    return NULL;
}

static unsigned find_name(const char *const *names, unsigned count, const char *name)
{
    unsigned i = 0;
    while (i < count && strcmp(names[i], name))
        i++;
    return i;
}

enum cipher_mode cipher_mode_by_name(const char *name)
{
    return (enum cipher_mode)find_name(mode_names, CIPHER_MODES, name);
}

enum cipher_ivgen cipher_ivgen_by_name(const char *name)
{
    return (enum cipher_ivgen)find_name(ivgen_names, IVGENS, name);
}

const char *cipher_mode_name(enum cipher_mode mode)
{
    return mode_names[mode];
}

const char *cipher_ivgen_name(enum cipher_ivgen ivgen)
{
    return ivgen_names[ivgen];
}

/* ---- suites ---- */

uint32_t cipher_suite_key_bytes(const struct cipher_suite *suite)
{
    return suite->cipher->key_bytes * (suite->mode == CIPHER_XTS ? 2 : 1);
}

/* ESSIV encrypts the sector's number under a hash of the key: with the member of the family whose
 * key is as long as the digest, which need not be the one that encrypts the data. */
static const struct cipher *essiv_cipher(const struct cipher_suite *suite)
{
    if (suite->ivgen_hash->bytes == suite->cipher->key_bytes)
        return suite->cipher;
    return cipher_by_family(suite->cipher->family, suite->ivgen_hash->bytes);
}

static int judge_essiv(const struct cipher_suite *suite, struct qk_error *err)
{
    static const struct {
        const char *family, *text;
    } shown[] = {{"aes", "AES"}, {"serpent", "Serpent"}, {"twofish", "Twofish"}};
    if (!suite->ivgen_hash)
        return qk_fail(err, -EINVAL, "Missing IV generator hash specification");
    if (essiv_cipher(suite))
        return 0;
    for (size_t i = 0; i < ARRAY_SIZE(shown); i++)
        if (!strcmp(shown[i].family, suite->cipher->family))
            return qk_fail(err, -ENOTSUP, "No %s cipher with key size %u available", shown[i].text,
                           suite->ivgen_hash->bytes);
    return qk_fail(err, -ENOTSUP, "Cipher %s not supported with essiv", suite->cipher->name);
}

int cipher_suite_judge(const struct cipher_suite *suite, struct qk_error *err)
{
    if (!suite->cipher->id)
        return qk_fail(err, -ENOTSUP, "Algorithm '%s' not supported", suite->cipher->name);
    if (suite->mode == CIPHER_XTS && suite->cipher->block_bytes != 16)
        return qk_fail(err, -ENOTSUP, "Unsupported cipher mode %s", cipher_mode_name(suite->mode));
    return suite->ivgen == IVGEN_ESSIV ? judge_essiv(suite, err) : 0;
}

/* ---- the library ---- */

/* A program that has set the library up itself keeps its choice. */
static void begin_library(void)
{
    if (gcry_control(GCRYCTL_INITIALIZATION_FINISHED_P))
        return;
    gcry_check_version(NULL);
    gcry_control(GCRYCTL_DISABLE_SECMEM, 0);
    gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0);
}

void cipher_library_begin(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, begin_library);
}

static int open_context(gcry_cipher_hd_t *out, int id, int mode, struct iovec key,
                        struct qk_error *err)
{
    cipher_library_begin();
    gcry_error_t ret = gcry_cipher_open(out, id, mode, 0);
    if (!ret) {
        ret = gcry_cipher_setkey(*out, key.iov_base, key.iov_len);
        /* A key that a standard calls weak came out of the dice all the same, and was used. */
        if (gcry_err_code(ret) == GPG_ERR_WEAK_KEY)
            ret = 0;
        if (ret)
            gcry_cipher_close(*out);
    }
    if (!ret)
        return 0;
    *out = NULL;
    if (gcry_err_code(ret) == GPG_ERR_ENOMEM)
        return qk_fail_nomem(err);
    return qk_fail(err, -EIO, "Unable to initialize cipher: %s", gcry_strerror(ret));
}

/* ---- sectors ---- */

struct sector_cipher {
    struct cipher_suite suite;
    gcry_cipher_hd_t data, essiv;  /* essiv NULL: not that generator */
    struct twofish192 *twofish192; /* in the place of data; or NULL */
};

static int open_essiv(struct sector_cipher *c, const uint8_t *key, struct qk_error *err)
{
    uint8_t digest[HASH_MAX_BYTES];
    const struct cipher *cipher = essiv_cipher(&c->suite);
    gcry_md_hash_buffer(c->suite.ivgen_hash->id, digest, key, cipher_suite_key_bytes(&c->suite));
    int ret = open_context(&c->essiv, cipher->id, GCRY_CIPHER_MODE_ECB,
                           (struct iovec){digest, cipher->key_bytes}, err);
    explicit_bzero(digest, sizeof(digest));
    return ret;
}

static int open_data(struct sector_cipher *c, const uint8_t *key, struct qk_error *err)
{
    static const int modes[] = {GCRY_CIPHER_MODE_ECB, GCRY_CIPHER_MODE_CBC, GCRY_CIPHER_MODE_CTR,
                                GCRY_CIPHER_MODE_XTS};
    struct iovec whole = {(void *)(uintptr_t)key, cipher_suite_key_bytes(&c->suite)};
#ifdef HAVE_NETTLE
    if (c->suite.cipher->id == TWOFISH192) {
        c->twofish192 = twofish192_new(c->suite.mode, key);
        return c->twofish192 ? 0 : qk_fail_nomem(err);
    }
#endif
    return open_context(&c->data, c->suite.cipher->id, modes[c->suite.mode], whole, err);
}

int sector_cipher_new(const struct cipher_suite *suite, const uint8_t *key,
                      struct sector_cipher **out, struct qk_error *err)
{
    struct sector_cipher *c = calloc(1, sizeof(*c));
    if (!c)
        return qk_fail_nomem(err);
    c->suite = *suite;
    int ret = open_data(c, key, err);
    if (ret == 0 && suite->ivgen == IVGEN_ESSIV && suite->mode != CIPHER_ECB)
        ret = open_essiv(c, key, err);
    if (ret < 0)
        sector_cipher_free(c);
    else
        *out = c;
    return ret;
}

void sector_cipher_free(struct sector_cipher *c)
{
    if (!c)
        return;
    gcry_cipher_close(c->data);
    gcry_cipher_close(c->essiv);
#ifdef HAVE_NETTLE
    twofish192_free(c->twofish192);
#endif
    free(c);
}

/* The vector is the sector's number, little-endian. */
static gcry_error_t set_vector(struct sector_cipher *c, uint64_t sector)
{
    uint8_t iv[16] = {0};
    size_t len = c->suite.cipher->block_bytes;
    uint64_t number = htole64(c->suite.ivgen == IVGEN_PLAIN ? (uint32_t)sector : sector);
    memcpy(iv, &number, sizeof(number));
    if (c->essiv) {
        gcry_error_t ret = gcry_cipher_encrypt(c->essiv, iv, len, NULL, 0);
        if (ret)
            return ret;
    }
#ifdef HAVE_NETTLE
    if (c->twofish192) {
        twofish192_set_vector(c->twofish192, iv);
        return 0;
    }
#endif
    return c->suite.mode == CIPHER_CTR ? gcry_cipher_setctr(c->data, iv, len)
                                       : gcry_cipher_setiv(c->data, iv, len);
}

/* Bytes under one vector. */
static gcry_error_t crypt_piece(struct sector_cipher *c, bool encrypt, uint8_t *out,
                                const uint8_t *in, size_t len)
{
#ifdef HAVE_NETTLE
    if (c->twofish192) {
        twofish192_crypt(c->twofish192, encrypt, out, in, len);
        return 0;
    }
#endif
    return encrypt ? gcry_cipher_encrypt(c->data, out, len, in, len)
                   : gcry_cipher_decrypt(c->data, out, len, in, len);
}

static int crypt_sectors(struct sector_cipher *c, const struct sector_run *run, bool encrypt)
{
    if (c->suite.mode == CIPHER_ECB)
        return crypt_piece(c, encrypt, run->out, run->in, run->bytes) ? -EIO : 0;
    gcry_error_t ret = 0;
    uint64_t sector = run->first;
    for (size_t at = 0; at < run->bytes && !ret; at += CIPHER_SECTOR_BYTES) {
        ret = set_vector(c, sector++);
        if (!ret)
            ret = crypt_piece(c, encrypt, run->out + at, run->in + at, CIPHER_SECTOR_BYTES);
    }
    return ret ? -EIO : 0;
}

int sector_cipher_encrypt(struct sector_cipher *c, const struct sector_run *run)
{
    return crypt_sectors(c, run, true);
}

int sector_cipher_decrypt(struct sector_cipher *c, const struct sector_run *run)
{
    return crypt_sectors(c, run, false);
}

int cipher_open_message(const uint8_t key[32], const uint8_t iv[16], uint8_t *bytes, size_t len)
{
    gcry_cipher_hd_t h;
    struct iovec whole = {(void *)(uintptr_t)key, 32};
    int ret = open_context(&h, GCRY_CIPHER_AES256, GCRY_CIPHER_MODE_CBC, whole, NULL);
    if (ret < 0)
        return ret;
    bool failed = gcry_cipher_setiv(h, iv, 16) || gcry_cipher_decrypt(h, bytes, len, NULL, 0);
    gcry_cipher_close(h);
    return failed ? -EIO : 0;
}
