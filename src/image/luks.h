/*
 * luks.h - the LUKS area of an encrypted image: its header, the key slots, and the master key in
 * them. Works on a store and a place in it, so that an open image and one that is being made share
 * it. Internal to this room but for struct image_luks.
 */
#ifndef QK_IMAGE_LUKS_H
#define QK_IMAGE_LUKS_H

#include "image/image.h"

#include "codec/kdf.h"

/* A passphrase as it is used: not owned, and never longer than up to its first NUL, as in QEMU. */
struct passphrase {
    const uint8_t *data;
    size_t len;
};
/* What a secret of the caller's is worth. -EINVAL with QEMU's words: none given, none of that name,
 * not UTF-8. */
int luks_passphrase(const struct image_secret *secret, struct passphrase *out,
                    struct qk_error *err);

/* What the names in l->header mean; the header's own numbers are judged against area_bytes. */
int luks_understand(struct image_luks *l, uint64_t area_bytes, struct qk_error *err);

/* The same the other way round: names, key_bytes and the places of the slots. */
void luks_describe(struct image_luks *l);

/* 1: the passphrase opens the slot, key has the master key. 0: it does not, or there is nothing. */
int luks_open_slot(struct qk_io *file, const struct image_luks *l, unsigned slot,
                   struct passphrase pass, uint8_t key[CIPHER_KEY_MAX_BYTES], struct qk_error *err);

/* The first slot that the passphrase opens; *slot gets its number. -EPERM: none. */
int luks_find_key(struct qk_io *file, const struct image_luks *l, struct passphrase pass,
                  uint8_t key[CIPHER_KEY_MAX_BYTES], struct qk_error *err);

/* Key material that opens with the passphrase, in whole sectors; free with luks_material_free. */
struct luks_material {
    uint8_t *bytes;
    size_t len;
};
/* What is to be in a slot. */
struct luks_filling {
    unsigned slot;
    struct passphrase pass;
    uint64_t iter_ms;
    const uint8_t *key; /* the master key */
};
/* Makes it, with salt and iterations in the slot of l->header; writes nothing. */
int luks_make_material(struct image_luks *l, const struct luks_filling *what,
                       struct luks_material *out, struct qk_error *err);
void luks_material_free(struct luks_material *m);
int luks_write_material(struct qk_io *file, const struct image_luks *l, unsigned slot,
                        const struct luks_material *m, struct qk_error *err);

/* A new master key, its digest in l->header and slot 0 made for the passphrase. */
int luks_begin(struct image_luks *l, const struct create_encryption *wish,
               struct luks_material *slot0, uint8_t key[CIPHER_KEY_MAX_BYTES],
               struct qk_error *err);

#endif
