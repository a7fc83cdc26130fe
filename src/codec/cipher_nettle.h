/*
 * cipher_nettle.h - Twofish with keys of 192 bits, for cipher.c alone.
 */
#ifndef QK_CODEC_CIPHER_NETTLE_H
#define QK_CODEC_CIPHER_NETTLE_H

#include "codec/cipher.h"

struct twofish192;

/* NULL: out of memory. */
struct twofish192 *twofish192_new(enum cipher_mode mode, const uint8_t *key);
void twofish192_free(struct twofish192 *t);
void twofish192_set_vector(struct twofish192 *t, const uint8_t *iv);
void twofish192_crypt(struct twofish192 *t, bool encrypt, uint8_t *out, const uint8_t *in,
                      size_t len);

#endif
