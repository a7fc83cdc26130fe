/*
 * bitmaps_repair.c - what a repair does to the persistent bitmaps of the image. A bitmap that
 * tracks changes says which ranges of the disk are as they were; a repair that changes what the
 * guest reads is a change that no bitmap has seen (Format, section "Dirty tracking bitmaps"). So
 * before anything of that kind the flag in_use of each such bitmap is made stable. Relies on
 * bitmaps.c having noted the entries of the directory.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "check/internal.h"
#include "format/bitmap.h"

#define ENTRY_FLAGS_AT 12u

int bitmaps_bit_write(struct check *c, bool on, const struct step *what, struct qk_error *err)
{
    uint8_t field[8];
    int ret = io_read(c->file, HEADER_AUTOCLEAR_OFF, field, sizeof(field), err);
    if (ret < 0)
        return ret;
    uint64_t old = load_be64(field), bits = old & ~(uint64_t)AUTOCLEAR_BITMAPS;
    store_be64(field, bits | (on ? AUTOCLEAR_BITMAPS : 0));
    const struct plan_bytes bytes = {HEADER_AUTOCLEAR_OFF, field, sizeof(field)};
    ret = plan_barrier(c, err);
    if (ret == 0 && load_be64(field) != old)
        ret = plan_write(c, what, &bytes, err);
    return ret < 0 ? ret : plan_barrier(c, err);
}

/* The directory's entries are there, and nothing else lies in their clusters. */
static bool can_mark(const struct check *c, const struct bitmaps_extension *dir)
{
    struct refmap_span span;
    if (!c->bitmaps.len || !range_span(c, dir->directory_off, dir->directory_bytes, &span))
        return false;
    for (uint64_t i = 0; i < span.count; i++) {
        if (refmap_count(&c->refs, span.first + i) > 1)
            return false;
    }
    return true;
}

static int mark(struct check *c, uint64_t entry, bool disabled_too, struct qk_error *err)
{
    static const struct step what = {.action = "mark as in use", .structure = "bitmap directory"};
    uint8_t flags[4];
    const struct plan_bytes bytes = {entry + ENTRY_FLAGS_AT, flags, sizeof(flags)};
    int ret = io_read(c->file, bytes.off, flags, sizeof(flags), err);
    if (ret < 0)
        return ret;
    uint32_t old = load_be32(flags);
    if ((old & BITMAP_IN_USE) || !(disabled_too || (old & BITMAP_AUTO)))
        return 0;
    store_be32(flags, old | BITMAP_IN_USE);
    return plan_write(c, &what, &bytes, err);
}

static int mark_all(struct check *c, uint64_t dir, bool disabled_too, struct qk_error *err)
{
    size_t steps = c->steps.len;
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < c->bitmaps.len; i++)
        ret = mark(c, dir + c->bitmaps.ptr[i].at, disabled_too, err);
    if (ret == 0 && c->steps.len > steps)
        sink_message(&c->sink, "Marking bitmaps as in use: what the guest reads is changed");
    return ret < 0 ? ret : plan_barrier(c, err);
}

int check_distrust_bitmaps(struct check *c, bool disabled_too, struct qk_error *err)
{
    static const struct step off = {.action = "trust no bitmap", .structure = "header"};
    const struct header_extension *ext =
        header_extensions_find(image_extensions(c->img), HEXT_BITMAPS);
    struct bitmaps_extension dir;
    if (!ext || !(c->h->autoclear & AUTOCLEAR_BITMAPS))
        return 0;
    if (ext->len < BITMAPS_EXTENSION_BYTES)
        return bitmaps_bit_write(c, false, &off, err);
    bitmaps_extension_decode(ext->data, &dir);
    /* Whether all of them are known does not matter: what follows a break is never used again. */
    if (can_mark(c, &dir))
        return mark_all(c, dir.directory_off, disabled_too, err);
    c->bitmaps_leaked = c->bitmaps.len != 0;
    return bitmaps_bit_write(c, false, &off, err);
}

int bitmaps_before_changes(struct check *c, struct qk_error *err)
{
    return c->guest_changes ? check_distrust_bitmaps(c, c->disk_resized, err) : 0;
}
