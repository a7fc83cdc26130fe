/*
 * crypt_open.c - what an image's header says of encryption, and getting at the key. Damage of the
 * LUKS area is no obstacle to a check, and a description needs no key (INV-4: nothing here takes
 * memory that the area does not have in bytes).
 */
#include "image/image_int.h"

#include "image/luks.h"

/* The AES format's key is the passphrase itself, cut or filled up to the key's length. */
#define AES_KEY_BYTES 16

static int find_area(struct image *img, struct luks_pointer *area, struct qk_error *err)
{
    const struct header_extension *ext = header_extensions_find(&img->exts, HEXT_CRYPTO);
    const struct where where = {img->file->name, "header extensions", QK_OFFSET_NONE};
    uint64_t size;
    if (!ext || ext->len != LUKS_POINTER_BYTES)
        return qk_fail_at(err, -EINVAL, &where, "Missing CRYPTO header for crypt method %u",
                          img->h.crypt_method);
    *area = luks_pointer_decode(ext->data);
    if (!is_aligned(area->off, img->g.cluster_bytes))
        return qk_fail_at(err, -EINVAL, &where,
                          "Encryption header offset '%" PRIu64
                          "' not a multiple of cluster size '%u'",
                          area->off, img->g.cluster_bytes);
    int ret = io_size(img->file, &size, err);
    if (ret < 0)
        return ret;
    if (area->bytes < LUKS_HEADER_BYTES || !range_within(area->off, area->bytes, size))
        return qk_fail_at(err, -EINVAL, &where,
                          "The encryption header of %" PRIu64 " bytes at %" PRIu64
                          " is not inside the file",
                          area->bytes, area->off);
    return 0;
}

static int load_luks(struct image *img, struct image_luks *l, struct qk_error *err)
{
    uint8_t bytes[LUKS_HEADER_BYTES];
    int ret = find_area(img, &l->area, err);
    if (ret == 0)
        ret = io_read(img->file, l->area.off, bytes, sizeof(bytes), err);
    if (ret == 0)
        ret = luks_decode(bytes, &l->header, err);
    if (ret == 0)
        ret = luks_understand(l, l->area.bytes, err);
    if (ret < 0)
        qk_error_locate(err, WHERE(img->file->name, "encryption header", l->area.off));
    return ret;
}

static int unlock_luks(struct image *img, struct qk_error *err)
{
    uint8_t key[CIPHER_KEY_MAX_BYTES];
    struct passphrase pass;
    int ret = luks_passphrase(img->opts.secret, &pass, err);
    if (ret == 0)
        ret = luks_find_key(img->file, img->luks, pass, key, err);
    if (ret == 0)
        ret = crypt_new(&img->luks->suite, key, false, &img->crypt, err);
    explicit_bzero(key, sizeof(key));
    return ret;
}

static int unlock_aes(struct image *img, struct qk_error *err)
{
    const struct cipher_suite suite = {cipher_by_name("aes-128"), CIPHER_CBC, IVGEN_PLAIN64, NULL};
    uint8_t key[AES_KEY_BYTES] = {0};
    struct passphrase pass;
    int ret = luks_passphrase(img->opts.secret, &pass, err);
    if (ret < 0)
        return ret;
    memcpy(key, pass.data, (size_t)min_u64(pass.len, sizeof(key)));
    ret = crypt_new(&suite, key, true, &img->crypt, err);
    explicit_bzero(key, sizeof(key));
    return ret;
}

/* A check needs no key, but takes one that is given; guest I/O is not for those who have none. */
static bool wants_key(const struct image *img)
{
    const struct image_secret *secret = img->opts.secret;
    bool given = secret && secret->id;
    bool readable = img->luks || img->h.crypt_method == CRYPT_AES;
    return !img->opts.describe && (!img->opts.for_check || (given && readable));
}

int crypt_open(struct image *img, struct qk_error *err)
{
    int ret = 0;
    free(img->luks);
    img->luks = NULL;
    if (img->h.crypt_method == CRYPT_LUKS) {
        struct image_luks *l = calloc(1, sizeof(*l));
        if (!l)
            return qk_fail_nomem(err);
        ret = load_luks(img, l, img->opts.for_check ? NULL : err);
        if (ret == 0)
            img->luks = l;
        else
            free(l);
        if (img->opts.for_check && ret != -ENOMEM)
            ret = 0;
    }
    if (ret < 0 || !image_is_encrypted(img) || img->crypt || !wants_key(img))
        return ret;
    if (img->opts.unlocked && img->opts.unlocked->crypt)
        return crypt_clone(img->opts.unlocked->crypt, &img->crypt, err);
    return img->luks ? unlock_luks(img, err) : unlock_aes(img, err);
}

const struct image_luks *image_luks(const struct image *img)
{
    return img->luks;
}
