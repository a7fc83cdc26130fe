/*
 * cipher_nettle.c - Twofish with keys of 192 bits, the one cipher of QEMU's that libgcrypt has not,
 * by nettle (optional to the build).
 */
#include "codec/cipher_nettle.h"

#include <nettle/cbc.h>
#include <nettle/ctr.h>
#include <nettle/twofish.h>
#include <nettle/xts.h>
#include <stdlib.h>
#include <string.h>

#define KEY_BYTES 24
#define BLOCK     TWOFISH_BLOCK_SIZE

struct twofish192 {
    struct twofish_ctx data, tweak; /* tweak: XTS only */
    enum cipher_mode mode;
    uint8_t iv[BLOCK];
};

struct twofish192 *twofish192_new(enum cipher_mode mode, const uint8_t *key)
{
    struct twofish192 *t = calloc(1, sizeof(*t));
    if (!t)
        return NULL;
    t->mode = mode;
    twofish192_set_key(&t->data, key);
    if (mode == CIPHER_XTS)
        twofish192_set_key(&t->tweak, key + KEY_BYTES);
    return t;
}

void twofish192_free(struct twofish192 *t)
{
    if (t)
        explicit_bzero(t, sizeof(*t));
    free(t);
}

void twofish192_set_vector(struct twofish192 *t, const uint8_t *iv)
{
    memcpy(t->iv, iv, BLOCK);
}

void twofish192_crypt(struct twofish192 *t, bool encrypt, uint8_t *out, const uint8_t *in,
                      size_t len)
{
    nettle_cipher_func *forth = (nettle_cipher_func *)twofish_encrypt;
    nettle_cipher_func *back = (nettle_cipher_func *)twofish_decrypt;
    switch (t->mode) {
    case CIPHER_CBC:
        if (encrypt)
            cbc_encrypt(&t->data, forth, BLOCK, t->iv, len, out, in);
        else
            cbc_decrypt(&t->data, back, BLOCK, t->iv, len, out, in);
        break;
    case CIPHER_CTR:
        ctr_crypt(&t->data, forth, BLOCK, t->iv, len, out, in);
        break;
    case CIPHER_XTS:
        if (encrypt)
            xts_encrypt_message(&t->data, &t->tweak, forth, t->iv, len, out, in);
        else
            xts_decrypt_message(&t->data, &t->tweak, back, forth, t->iv, len, out, in);
        break;
    default:
        (encrypt ? twofish_encrypt : twofish_decrypt)(&t->data, len, out, in);
    }
}
