/*
 * luks_slots.c - filling and erasing key slots of an open image. A crash must leave every
 * passphrase that is not concerned good, and no slot that claims to be active and opens with
 * nothing (it would count as the way in that is left). So:
 *
 *     fill   key material | barrier | salt and iterations | barrier | active | barrier
 *     erase  inactive | barrier | no salt, no iterations | barrier | random bytes over the material
 *
 * The header of 592 bytes has two sectors and is not written at once; the word that says "active"
 * lies in one of them, and is changed alone. Without the salt the material opens with no
 * passphrase, so a crash before it is overwritten gives nothing away.
 *
 * An active slot that is to be replaced (force) is not filled anew while it is the only place of
 * the key: another slot takes the new passphrase first, and is erased when all is done.
 */
#include "image/image_int.h"

#include "image/luks.h"

#define WIPE_PASSES 3

/* ---- the header on disk ---- */

static int barrier(struct image *img, struct qk_error *err)
{
    return io_flush(img->file, err);
}

/* Writes the sectors of the header from l: all of them, or the one that holds the slot's state. */
static int store_header(struct image *img, const struct image_luks *l, int state_of_slot,
                        struct qk_error *err)
{
    uint8_t bytes[LUKS_HEADER_BYTES];
    luks_encode(&l->header, bytes);
    size_t from = 0, to = sizeof(bytes);
    if (state_of_slot >= 0) {
        from = (size_t)luks_state_sector((unsigned)state_of_slot) * LUKS_SECTOR_BYTES;
        to = (size_t)min_u64(to, from + LUKS_SECTOR_BYTES);
    }
    int ret = io_write(img->file, l->area.off + from, bytes + from, to - from, 0, err);
    return ret < 0 ? ret : barrier(img, err);
}

/* What was made is the image's state from now on. */
static void adopt(struct image *img, const struct image_luks *l)
{
    *img->luks = *l;
}

/* ---- fill ---- */

static int fill_slot(struct image *img, unsigned slot, struct passphrase pass, uint64_t iter_ms,
                     struct qk_error *err)
{
    struct image_luks next = *img->luks;
    const struct luks_filling what = {slot, pass, iter_ms, crypt_key(img->crypt)};
    struct luks_material m = {0};
    int ret = luks_make_material(&next, &what, &m, err);
    if (ret == 0)
        ret = luks_write_material(img->file, &next, slot, &m, err);
    luks_material_free(&m);
    if (ret == 0)
        ret = barrier(img, err);
    if (ret == 0)
        ret = store_header(img, &next, -1, err);
    next.header.slots[slot].active = true;
    if (ret == 0)
        ret = store_header(img, &next, (int)slot, err);
    if (ret == 0)
        adopt(img, &next);
    return ret;
}

/* ---- erase ---- */

static int wipe_material(struct image *img, unsigned slot, struct qk_error *err)
{
    struct luks_material m = {
        .len = (size_t)round_up(luks_material_bytes(&img->luks->header, slot), LUKS_SECTOR_BYTES)};
    m.bytes = calloc(1, m.len);
    int ret = m.bytes ? 0 : qk_fail_nomem(err);
    for (int i = 0; i < WIPE_PASSES && ret == 0; i++) {
        if (random_bytes(m.bytes, m.len) < 0)
            ret = qk_fail(err, -EIO, "no random bytes to overwrite key material with");
        if (ret == 0)
            ret = luks_write_material(img->file, img->luks, slot, &m, err);
        /* Each pass reaches the medium; only the last one would otherwise. */
        if (ret == 0)
            ret = barrier(img, err);
    }
    luks_material_free(&m);
    return ret;
}

static int erase_slot(struct image *img, unsigned slot, struct qk_error *err)
{
    struct image_luks next = *img->luks;
    struct luks_slot *s = &next.header.slots[slot];
    s->active = false;
    int ret = store_header(img, &next, (int)slot, err);
    s->iterations = 0;
    memset(s->salt, 0, sizeof(s->salt));
    if (ret == 0)
        ret = store_header(img, &next, -1, err);
    if (ret < 0)
        return ret;
    adopt(img, &next);
    return wipe_material(img, slot, err);
}

/* An active slot gets another passphrase. */
static int replace_slot(struct image *img, unsigned slot, struct passphrase pass, uint64_t iter_ms,
                        struct qk_error *err)
{
    const struct luks_slot *slots = img->luks->header.slots;
    unsigned spare = 0;
    while (spare < LUKS_SLOTS && slots[spare].active)
        spare++;
    int ret = spare < LUKS_SLOTS ? fill_slot(img, spare, pass, iter_ms, err) : 0;
    if (ret == 0)
        ret = erase_slot(img, slot, err);
    if (ret == 0)
        ret = fill_slot(img, slot, pass, iter_ms, err);
    if (ret == 0 && spare < LUKS_SLOTS)
        ret = erase_slot(img, spare, err);
    return ret;
}

/* ---- what was asked for ---- */

static unsigned count_active(const struct luks_header *h)
{
    unsigned count = 0;
    for (unsigned i = 0; i < LUKS_SLOTS; i++)
        count += h->slots[i].active;
    return count;
}

static int judge_number(const struct luks_amend *a, struct qk_error *err)
{
    if (a->slot == LUKS_SLOT_ANY || (a->slot >= 0 && a->slot < LUKS_SLOTS))
        return 0;
    return qk_fail(err, -EINVAL, "Invalid keyslot %d specified, must be between 0 and %d", a->slot,
                   LUKS_SLOTS - 1);
}

static int activate(struct image *img, const struct luks_amend *a, struct qk_error *err)
{
    const struct luks_slot *slots = img->luks->header.slots;
    struct passphrase pass;
    if (!a->new_secret)
        return qk_fail(err, -EINVAL, "'new-secret' is required to activate a keyslot");
    if (a->old_secret)
        return qk_fail(err, -EINVAL, "'old-secret' must not be given when activating keyslots");
    unsigned slot = 0;
    if (a->slot != LUKS_SLOT_ANY)
        slot = (unsigned)a->slot;
    else
        while (slot < LUKS_SLOTS && slots[slot].active)
            slot++;
    if (slot == LUKS_SLOTS)
        return qk_fail(err, -EINVAL, "Can't add a keyslot - all keyslots are in use");
    if (slots[slot].active && !a->force)
        return qk_fail(err, -EINVAL,
                       "Refusing to overwrite active keyslot %u - please erase it first", slot);
    int ret = luks_passphrase(a->new_secret, &pass, err);
    if (ret < 0)
        return ret;
    uint64_t iter_ms = a->has_iter_ms ? a->iter_ms : LUKS_ITER_MS;
    return slots[slot].active ? replace_slot(img, slot, pass, iter_ms, err)
                              : fill_slot(img, slot, pass, iter_ms, err);
}

/* Erases one slot by its number. */
static int erase_numbered(struct image *img, const struct luks_amend *a,
                          const struct passphrase *old, struct qk_error *err)
{
    const struct luks_header *h = &img->luks->header;
    unsigned slot = (unsigned)a->slot;
    uint8_t key[CIPHER_KEY_MAX_BYTES];
    int opens = old ? luks_open_slot(img->file, img->luks, slot, *old, key, err) : 1;
    explicit_bzero(key, sizeof(key));
    if (opens < 0)
        return opens;
    if (!opens)
        return qk_fail(err, -EINVAL,
                       "Given keyslot %u doesn't contain the given old password for erase "
                       "operation",
                       slot);
    if (!a->force && !h->slots[slot].active)
        return qk_fail(err, -EINVAL, "Given keyslot %u is already erased (inactive) ", slot);
    if (!a->force && count_active(h) == 1)
        return qk_fail(err, -EINVAL,
                       "Attempt to erase the only active keyslot %u which will erase all the data "
                       "in the image irreversibly - refusing operation",
                       slot);
    return erase_slot(img, slot, err);
}

/* Erases all slots that a passphrase opens. */
static int erase_matching(struct image *img, const struct luks_amend *a, struct passphrase old,
                          struct qk_error *err)
{
    uint8_t key[CIPHER_KEY_MAX_BYTES];
    bool opens[LUKS_SLOTS] = {false};
    unsigned count = 0;
    int ret = 0;
    for (unsigned i = 0; i < LUKS_SLOTS && ret >= 0; i++) {
        ret = luks_open_slot(img->file, img->luks, i, old, key, err);
        opens[i] = ret > 0;
        count += opens[i];
    }
    explicit_bzero(key, sizeof(key));
    if (ret < 0)
        return ret;
    if (!count)
        return qk_fail(err, -EINVAL, "No keyslots match given (old) password for erase operation");
    if (!a->force && count == count_active(&img->luks->header))
        return qk_fail(err, -EINVAL,
                       "All the active keyslots match the (old) password that was given and "
                       "erasing them will erase all the data in the image irreversibly - refusing "
                       "operation");
    ret = 0;
    for (unsigned i = 0; i < LUKS_SLOTS && ret == 0; i++)
        if (opens[i])
            ret = erase_slot(img, i, err);
    return ret;
}

static int deactivate(struct image *img, const struct luks_amend *a, struct qk_error *err)
{
    struct passphrase old;
    if (a->new_secret)
        return qk_fail(err, -EINVAL, "'new-secret' must not be given when erasing keyslots");
    if (a->has_iter_ms)
        return qk_fail(err, -EINVAL, "'iter-time' must not be given when erasing keyslots");
    int ret = a->old_secret ? luks_passphrase(a->old_secret, &old, err) : 0;
    if (ret < 0)
        return ret;
    if (a->slot != LUKS_SLOT_ANY)
        return erase_numbered(img, a, a->old_secret ? &old : NULL, err);
    if (a->old_secret)
        return erase_matching(img, a, old, err);
    return qk_fail(err, -EINVAL,
                   "To erase keyslot(s), either explicit keyslot index or the password currently "
                   "contained in them must be given");
}

int image_luks_amend(struct image *img, const struct luks_amend *a, struct qk_error *err)
{
    if (!img->luks)
        return qk_fail(err, -ENOTSUP, "Only LUKS images have key slots");
    if (!img->crypt)
        return crypt_locked(img, err);
    int ret = judge_number(a, err);
    if (ret == 0)
        ret = image_begin_writing(img, err);
    if (ret < 0)
        return ret;
    return a->activate ? activate(img, a, err) : deactivate(img, a, err);
}
