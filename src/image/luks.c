/*
 * luks.c - reading and making the LUKS area (see luks.h): what its header means, opening a key
 * slot, and making one. Relies on luks_validate for every offset; promises that passphrases and
 * keys are wiped from all memory that is its own, and appear in no error.
 */
#include "image/luks.h"

#include "base/checked.h"
#include "base/cleanup.h"

#include <stdio.h>
#include <string.h>

/* What LUKS takes at least, however slow the machine. */
#define MIN_ITERATIONS 1000
/* The digest of the master key takes an eighth of a slot's time: all slots may have to be tried. */
#define DIGEST_SHARE 8

/* Memory that held secrets. */
struct wiped {
    uint8_t *bytes;
    size_t len;
};

static void wiped_free(struct wiped *w)
{
    if (w->bytes)
        explicit_bzero(w->bytes, w->len);
    free(w->bytes);
}
#define WIPED __attribute__((cleanup(wiped_free))) struct wiped

static int wiped_alloc(struct wiped *w, size_t len, struct qk_error *err)
{
    *w = (struct wiped){calloc(1, len), len};
    return w->bytes ? 0 : qk_fail_nomem(err);
}

static struct iovec iov_of(const void *data, size_t len)
{
    return (struct iovec){(void *)(uintptr_t)data, len};
}

/* ---- passphrases ---- */

/* The length of the character at p, 0: not UTF-8. */
static size_t utf8_length(const uint8_t *p, size_t left)
{
    static const struct {
        uint8_t mask, lead;
        uint32_t min;
    } forms[] = {{0x80, 0x00, 0}, {0xe0, 0xc0, 0x80}, {0xf0, 0xe0, 0x800}, {0xf8, 0xf0, 0x10000}};
    size_t n = 0;
    while (n < ARRAY_SIZE(forms) && (p[0] & forms[n].mask) != forms[n].lead)
        n++;
    if (n == ARRAY_SIZE(forms) || n >= left)
        return 0;
    uint32_t code = p[0] & (uint8_t)~forms[n].mask;
    for (size_t i = 1; i <= n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | (p[i] & 0x3f);
    }
    bool surrogate = code >= 0xd800 && code < 0xe000;
    return code < forms[n].min || code > 0x10ffff || surrogate ? 0 : n + 1;
}

static bool is_utf8(const uint8_t *p, size_t len)
{
    while (len) {
        size_t n = *p ? utf8_length(p, len) : 0;
        if (!n)
            return false;
        p += n;
        len -= n;
    }
    return true;
}

int luks_passphrase(const struct image_secret *secret, struct passphrase *out, struct qk_error *err)
{
    if (!secret || !secret->id)
        return qk_fail(err, -EINVAL, "Parameter 'encrypt.key-secret' is required for cipher");
    if (!secret->data)
        return qk_fail(err, -EINVAL, "No secret with id '%s'", secret->id);
    if (!is_utf8(secret->data, secret->len))
        return qk_fail(err, -EINVAL, "Data from secret %s is not valid UTF-8", secret->id);
    *out = (struct passphrase){secret->data, secret->len};
    return 0;
}

/* ---- names ---- */

static int no_such(struct qk_error *err, const char *what, const char *name)
{
    return qk_fail(err, -ENOTSUP, "%s %s not supported", what, name);
}

/* "MODE-IVGEN" or "MODE-IVGEN:HASH", taken apart in place. */
static int parse_mode(char *text, struct cipher_suite *suite, struct qk_error *err)
{
    char *ivgen = strchr(text, '-');
    if (!ivgen)
        return qk_fail(err, -EINVAL, "Unexpected cipher mode string format %s", text);
    *ivgen++ = 0;
    char *hash = strchr(ivgen, ':');
    if (hash)
        *hash++ = 0;
    suite->ivgen_hash = hash ? hash_by_name(hash) : NULL;
    if (hash && !suite->ivgen_hash)
        return no_such(err, "Hash algorithm", hash);
    suite->mode = cipher_mode_by_name(text);
    if (suite->mode == CIPHER_MODES)
        return no_such(err, "Cipher mode", text);
    suite->ivgen = cipher_ivgen_by_name(ivgen);
    return suite->ivgen == IVGENS ? no_such(err, "IV generator", ivgen) : 0;
}

int luks_understand(struct image_luks *l, uint64_t area_bytes, struct qk_error *err)
{
    const struct luks_header *h = &l->header;
    char mode[sizeof(h->mode)];
    memcpy(mode, h->mode, sizeof(mode));
    int ret = luks_validate(h, area_bytes, err);
    if (ret == 0)
        ret = parse_mode(mode, &l->suite, err);
    if (ret < 0)
        return ret;
    uint32_t key_bytes = h->key_bytes / (l->suite.mode == CIPHER_XTS ? 2 : 1);
    l->suite.cipher = cipher_by_family(h->cipher, key_bytes);
    l->hash = hash_by_name(h->hash);
    if (!l->suite.cipher || cipher_suite_key_bytes(&l->suite) != h->key_bytes)
        return qk_fail(err, -ENOTSUP, "Algorithm %s with key size %u bytes not supported",
                       h->cipher, key_bytes);
    if (!l->hash)
        return no_such(err, "Hash algorithm", h->hash);
    return cipher_suite_judge(&l->suite, err);
}

void luks_describe(struct image_luks *l)
{
    struct luks_header *h = &l->header;
    const struct cipher_suite *s = &l->suite;
    snprintf(h->cipher, sizeof(h->cipher), "%s", s->cipher->family);
    snprintf(h->mode, sizeof(h->mode), "%s-%s%s%s", cipher_mode_name(s->mode),
             cipher_ivgen_name(s->ivgen), s->ivgen_hash ? ":" : "",
             s->ivgen_hash ? s->ivgen_hash->name : "");
    snprintf(h->hash, sizeof(h->hash), "%s", l->hash->name);
    h->key_bytes = cipher_suite_key_bytes(s);
    luks_place(h);
}

/* ---- one slot ---- */

static int kdf_failed(struct qk_error *err, int ret)
{
    if (ret == -EFBIG)
        return qk_fail(err, ret,
                       "The LUKS header asks for more than %u iterations of PBKDF2, which would "
                       "take minutes to hours",
                       KDF_ITERATIONS_MAX);
    return ret == -ENOMEM ? qk_fail_nomem(err) : qk_fail(err, ret, "The key derivation failed");
}

static int slot_key(const struct image_luks *l, unsigned slot, struct passphrase pass, uint8_t *key,
                    struct qk_error *err)
{
    const struct luks_slot *s = &l->header.slots[slot];
    const struct kdf_input in = {l->hash, iov_of(pass.data, pass.len),
                                 iov_of(s->salt, LUKS_SALT_BYTES), s->iterations};
    int ret = kdf_derive(&in, (struct iovec){key, l->header.key_bytes});
    return ret < 0 ? kdf_failed(err, ret) : 0;
}

static int master_digest(const struct image_luks *l, const uint8_t *key,
                         uint8_t digest[LUKS_DIGEST_BYTES], struct qk_error *err)
{
    const struct kdf_input in = {l->hash, iov_of(key, l->header.key_bytes),
                                 iov_of(l->header.salt, LUKS_SALT_BYTES), l->header.iterations};
    int ret = kdf_derive(&in, (struct iovec){digest, LUKS_DIGEST_BYTES});
    return ret < 0 ? kdf_failed(err, ret) : 0;
}

typedef int (*crypt_fn)(struct sector_cipher *c, const struct sector_run *run);

/* Key material is encrypted like the disk, its sectors counted from 0. */
static int crypt_material(const struct image_luks *l, unsigned slot, struct passphrase pass,
                          crypt_fn fn, const struct wiped *m, struct qk_error *err)
{
    uint8_t key[CIPHER_KEY_MAX_BYTES];
    struct sector_cipher *c = NULL;
    int ret = slot_key(l, slot, pass, key, err);
    if (ret == 0)
        ret = sector_cipher_new(&l->suite, key, &c, err);
    explicit_bzero(key, sizeof(key));
    if (ret < 0)
        return ret;
    ret = fn(c, &(struct sector_run){0, m->bytes, m->bytes, m->len});
    sector_cipher_free(c);
    return ret < 0 ? qk_fail(err, ret, "The cipher failed on key material") : 0;
}

static size_t material_bytes(const struct image_luks *l, unsigned slot)
{
    return (size_t)round_up(luks_material_bytes(&l->header, slot), LUKS_SECTOR_BYTES);
}

static uint64_t material_off(const struct image_luks *l, unsigned slot)
{
    return l->area.off + (uint64_t)l->header.slots[slot].first_sector * LUKS_SECTOR_BYTES;
}

static struct af_shape shape_of(const struct image_luks *l, unsigned slot)
{
    return (struct af_shape){l->hash, l->header.key_bytes, l->header.slots[slot].stripes};
}

int luks_open_slot(struct qk_io *file, const struct image_luks *l, unsigned slot,
                   struct passphrase pass, uint8_t key[CIPHER_KEY_MAX_BYTES], struct qk_error *err)
{
    if (!l->header.slots[slot].active)
        return 0;
    WIPED m;
    uint8_t digest[LUKS_DIGEST_BYTES];
    struct af_shape shape = shape_of(l, slot);
    int ret = wiped_alloc(&m, material_bytes(l, slot), err);
    if (ret == 0)
        ret = io_read(file, material_off(l, slot), m.bytes, m.len, err);
    if (ret == 0)
        ret = crypt_material(l, slot, pass, sector_cipher_decrypt, &m, err);
    if (ret < 0)
        return ret;
    ret = af_merge(&shape, m.bytes, key);
    if (ret < 0)
        return kdf_failed(err, ret);
    ret = master_digest(l, key, digest, err);
    return ret < 0 ? ret : !memcmp(digest, l->header.digest, sizeof(digest));
}

int luks_find_key(struct qk_io *file, const struct image_luks *l, struct passphrase pass,
                  uint8_t key[CIPHER_KEY_MAX_BYTES], struct qk_error *err)
{
    bool slow = false; /* a slot was left out; the passphrase may be that of another one */
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        int ret = luks_open_slot(file, l, i, pass, key, err);
        slow |= ret == -EFBIG;
        if (ret && ret != -EFBIG)
            return ret < 0 ? ret : 0;
    }
    return slow ? kdf_failed(err, -EFBIG)
                : qk_fail(err, -EPERM, "Invalid password, cannot unlock any keyslot");
}

/* ---- making ---- */

void luks_material_free(struct luks_material *m)
{
    free(m->bytes); /* is ciphertext */
    *m = (struct luks_material){0};
}

int luks_make_material(struct image_luks *l, const struct luks_filling *what,
                       struct luks_material *out, struct qk_error *err)
{
    struct luks_slot *s = &l->header.slots[what->slot];
    struct af_shape shape = shape_of(l, what->slot);
    WIPED m;
    int ret = wiped_alloc(&m, material_bytes(l, what->slot), err);
    if (ret < 0)
        return ret;
    ret = random_bytes(s->salt, sizeof(s->salt));
    if (ret == 0)
        ret = kdf_iterations(l->hash, l->header.key_bytes, what->iter_ms, MIN_ITERATIONS,
                             &s->iterations);
    if (ret == 0)
        ret = af_split(&shape, what->key, m.bytes);
    if (ret < 0)
        return kdf_failed(err, ret);
    ret = crypt_material(l, what->slot, what->pass, sector_cipher_encrypt, &m, err);
    if (ret == 0)
        *out = (struct luks_material){TAKE(m.bytes), m.len};
    return ret;
}

int luks_write_material(struct qk_io *file, const struct image_luks *l, unsigned slot,
                        const struct luks_material *m, struct qk_error *err)
{
    return io_write(file, material_off(l, slot), m->bytes, m->len, 0, err);
}

/* Version 4: random but for six bits. */
static int make_uuid(char text[LUKS_UUID_BYTES + 1])
{
    uint8_t b[16];
    int ret = random_bytes(b, sizeof(b));
    b[6] = (uint8_t)((b[6] & 0x0f) | 0x40);
    b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
    int n = 0;
    for (unsigned i = 0; i < sizeof(b); i++)
        n += snprintf(text + n, (size_t)(LUKS_UUID_BYTES + 1 - n), "%s%02x",
                      i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", b[i]);
    return ret;
}

/* A key slot whose material ends inside a sector makes QEMU's reader give up. */
static int judge_material(const struct image_luks *l, struct qk_error *err)
{
    if (luks_material_bytes(&l->header, 0) % LUKS_SECTOR_BYTES == 0)
        return 0;
    return qk_fail(err, -ENOTSUP,
                   "A key of %u bytes does not fill whole sectors of a key slot: cipher %s needs "
                   "mode xts",
                   l->header.key_bytes, l->suite.cipher->name);
}

static int begin_master(struct image_luks *l, uint64_t iter_ms, uint8_t *key, struct qk_error *err)
{
    struct luks_header *h = &l->header;
    int ret = make_uuid(h->uuid);
    if (ret == 0)
        ret = random_bytes(h->salt, sizeof(h->salt));
    if (ret == 0)
        ret = random_bytes(key, h->key_bytes);
    if (ret == 0)
        ret = kdf_iterations(l->hash, LUKS_DIGEST_BYTES, iter_ms / DIGEST_SHARE, MIN_ITERATIONS,
                             &h->iterations);
    return ret < 0 ? kdf_failed(err, ret) : master_digest(l, key, h->digest, err);
}

int luks_begin(struct image_luks *l, const struct create_encryption *wish,
               struct luks_material *slot0, uint8_t key[CIPHER_KEY_MAX_BYTES], struct qk_error *err)
{
    struct passphrase pass;
    l->suite = wish->suite;
    l->hash = wish->hash;
    luks_describe(l);
    int ret = luks_passphrase(wish->secret, &pass, err);
    if (ret == 0)
        ret = cipher_suite_judge(&l->suite, err);
    if (ret == 0)
        ret = judge_material(l, err);
    if (ret == 0)
        ret = begin_master(l, wish->iter_ms, key, err);
    if (ret == 0)
        ret =
            luks_make_material(l, &(struct luks_filling){0, pass, wish->iter_ms, key}, slot0, err);
    if (ret == 0)
        l->header.slots[0].active = true;
    return ret;
}
