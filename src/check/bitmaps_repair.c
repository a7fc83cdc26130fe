/*
 * bitmaps_repair.c - what a repair does to the persistent bitmaps of the image.
 *
 * Bitmaps that cannot be used are dropped when that is allowed: a directory of the others is
 * written beside the old one, counted and stable; then one write of the header's sector names it;
 * then what only the old one named is taken off. So a crash leaves the old bitmaps or the new ones
 * (INV-1). Where there is no room beside, the autoclear bit goes, after which nothing of the
 * extension means anything, the directory is written in its place, and the bit comes back: a crash
 * in between leaves an image without bitmaps, and the undo file. A directory that cannot be
 * followed is dropped as a whole.
 *
 * A bitmap that tracks changes says which ranges of the disk are as they were; a repair that
 * changes what the guest reads is a change that no bitmap has seen (Format, section "Dirty tracking
 * bitmaps"). So before anything of that kind the flag in_use of each such bitmap is made stable.
 * Relies on bitmaps.c having noted the entries of the directory, and counted what they name.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"
#include "format/bitmap.h"

#include <string.h>

#define ENTRY_FLAGS_AT 12u
#define HEADER_SECTOR  512u

static int bit_write(struct check *c, bool on, const struct step *what, struct qk_error *err)
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

/* Nothing else lies in the clusters of the directory. */
static bool directory_alone(const struct check *c)
{
    struct refmap_span span;
    const struct bitmaps_extension *dir = &c->bitmap_dir;
    if (!dir->count || !range_span(c, dir->directory_off, dir->directory_bytes, &span))
        return false;
    for (uint64_t i = 0; i < span.count; i++) {
        if (refmap_count(&c->refs, span.first + i) > 1)
            return false;
    }
    return true;
}

/* ---- distrust ---- */

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

static int mark_all(struct check *c, bool disabled_too, struct qk_error *err)
{
    uint64_t steps = c->steps.count;
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < c->bitmaps.len; i++)
        ret = mark(c, c->bitmap_dir.directory_off + c->bitmaps.ptr[i].at, disabled_too, err);
    if (ret == 0 && c->steps.count > steps)
        sink_message(&c->sink, "Marking bitmaps as in use: what the guest reads is changed");
    return ret < 0 ? ret : plan_barrier(c, err);
}

int check_distrust_bitmaps(struct check *c, bool disabled_too, struct qk_error *err)
{
    static const struct step off = {.action = "trust no bitmap", .structure = "header"};
    if (!(c->h->autoclear & AUTOCLEAR_BITMAPS) ||
        !header_extensions_find(image_extensions(c->img), HEXT_BITMAPS))
        return 0;
    /* Whether all of them are known does not matter: what follows a break is never used again. */
    if (c->bitmaps.len && directory_alone(c))
        return mark_all(c, disabled_too, err);
    c->bitmaps_way = BITMAPS_GONE;
    return bit_write(c, false, &off, err);
}

int bitmaps_before_changes(struct check *c, struct qk_error *err)
{
    return c->guest_changes ? check_distrust_bitmaps(c, c->disk_resized, err) : 0;
}

/* ---- a directory without what cannot be used ---- */

static int directory_write(struct check *c, uint64_t off, struct qk_error *err)
{
    CLEANUP_FREE uint8_t *dir = malloc(c->bitmaps_bytes + 1);
    if (!dir)
        return qk_fail_nomem(err);
    uint64_t at = 0;
    for (size_t i = 0; i < c->bitmaps.len; i++) {
        const struct bitmap_note *b = &c->bitmaps.ptr[i];
        if (b->bad)
            continue;
        int ret =
            io_read(c->file, c->bitmap_dir.directory_off + b->at, dir + at, (size_t)b->bytes, err);
        if (ret < 0)
            return ret;
        at += b->bytes;
    }
    const struct step what = {.action = "write the entries that can be used",
                              .structure = "bitmap directory",
                              .count = c->bitmaps_kept};
    const struct plan_bytes w = {off, dir, (size_t)at};
    return plan_write(c, &what, &w, err);
}

uint64_t bitmaps_extension_place(const struct check *c)
{
    const struct header_extension_vec *list = &image_extensions(c->img)->list;
    uint64_t next = c->h->header_bytes, off = next;
    uint8_t head[8];
    for (size_t i = 0; i < list->len; i++) {
        const struct header_extension *e = &list->ptr[i];
        if (e->type == HEXT_BITMAPS)
            off = next;
        next += sizeof(head) + round_up(e->len, 8);
    }
    if (io_read(c->file, off, head, sizeof(head), NULL) < 0 || load_be32(head) != HEXT_BITMAPS)
        return 0;
    return off + sizeof(head);
}

static int extension_write(struct check *c, uint64_t directory_off, const char *lost,
                           struct qk_error *err)
{
    const struct step what = {
        .action = "name the new directory", .structure = "header", .count = 2, .lost = lost};
    const struct bitmaps_extension now = {c->bitmaps_kept, c->bitmaps_bytes, directory_off};
    uint8_t data[BITMAPS_EXTENSION_BYTES];
    bitmaps_extension_encode(&now, data);
    const struct plan_bytes w = {bitmaps_extension_place(c), data, sizeof(data)};
    return plan_write(c, &what, &w, err);
}

/* Beside the old one needs room, and clusters that nothing unreadable may own. */
static enum bitmaps_way choose_way(struct check *c)
{
    if (c->bitmaps_lost || !c->bitmaps_kept || !bitmaps_extension_place(c))
        return BITMAPS_GONE;
    if (c->file->can_grow && !c->no_growth && !(c->actions & ACT_HOLD))
        return BITMAPS_BESIDE;
    return directory_alone(c) ? BITMAPS_IN_PLACE : BITMAPS_GONE;
}

static void note_lost(struct check *c)
{
    char name[BITMAP_NAME_MAX + 1];
    for (size_t i = 0; i < c->bitmaps.len; i++) {
        const struct bitmap_note *b = &c->bitmaps.ptr[i];
        if (!b->bad && c->bitmaps_way != BITMAPS_GONE)
            continue;
        bitmap_name(c, b, name);
        lost_note(&c->lost_bitmaps, name);
    }
}

static int drop_in_way(struct check *c, struct qk_error *err)
{
    static const struct step aside = {.action = "put the bitmaps aside", .structure = "header"};
    const char *lost = lost_text(&c->lost_bitmaps, "bitmap", c->lost_bitmaps.count);
    const struct step all = {.action = "drop the bitmaps", .structure = "header", .lost = lost};
    int ret;
    switch (c->bitmaps_way) {
    case BITMAPS_BESIDE:
        ret = clusters_place(c, c->bitmaps_bytes, &c->bitmap_new, err);
        if (ret == 0)
            ret = directory_write(c, c->bitmap_new.first << c->g->cluster_bits, err);
        return ret < 0 ? ret : plan_barrier(c, err);
    case BITMAPS_IN_PLACE:
        ret = bit_write(c, false, &aside, err);
        if (ret == 0)
            ret = directory_write(c, c->bitmap_dir.directory_off, err);
        return ret < 0 ? ret : extension_write(c, c->bitmap_dir.directory_off, lost, err);
    default:
        return bit_write(c, false, &all, err);
    }
}

int bitmaps_drop(struct check *c, struct qk_error *err)
{
    if (c->bitmaps_way != BITMAPS_GONE)
        c->bitmaps_way = choose_way(c);
    note_lost(c);
    int ret = drop_in_way(c, err);
    if (ret < 0)
        return ret;
    sink_message(&c->sink, c->bitmaps_way == BITMAPS_GONE
                               ? "Dropping the bitmaps of the image"
                               : "Dropping the bitmaps that cannot be used");
    sink_settle(&c->sink, PROBLEM_BITMAP_DIRECTORY);
    sink_settle(&c->sink, PROBLEM_BITMAP_TABLE);
    sink_settle(&c->sink, PROBLEM_BITMAP_ENTRY);
    return 0;
}

/* In one sector this is one write; else the bit is off meanwhile. */
static int name_new(struct check *c, struct qk_error *err)
{
    static const struct step aside = {.action = "put the bitmaps aside", .structure = "header"};
    uint64_t at = bitmaps_extension_place(c);
    int ret = 0;
    if (at / HEADER_SECTOR != (at + BITMAPS_EXTENSION_BYTES - 1) / HEADER_SECTOR)
        ret = bit_write(c, false, &aside, err);
    if (ret == 0)
        ret = extension_write(c, c->bitmap_new.first << c->g->cluster_bits,
                              lost_text(&c->lost_bitmaps, "bitmap", c->lost_bitmaps.count), err);
    return ret < 0 ? ret : plan_barrier(c, err);
}

int bitmaps_link(struct check *c, struct qk_error *err)
{
    static const struct step again = {.action = "use the bitmaps again", .structure = "header"};
    struct refmap_span old;
    const struct bitmaps_extension *dir = &c->bitmap_dir;
    if (c->bitmaps_way == BITMAPS_STAY)
        return 0;
    int ret = c->bitmaps_way == BITMAPS_BESIDE ? name_new(c, err) : 0;
    if (ret == 0 && c->bitmaps_way != BITMAPS_GONE)
        ret = bit_write(c, true, &again, err);
    if (ret < 0 || !dir->count || c->bitmaps_lost)
        return ret;
    if (c->bitmaps_way != BITMAPS_IN_PLACE &&
        range_span(c, dir->directory_off, dir->directory_bytes, &old))
        references_drop(c, old, 1);
    ret = bitmaps_uncount(c, c->bitmaps_way != BITMAPS_GONE, err);
    if (!(c->actions & ACT_HOLD))
        c->actions |= ACT_LOWER;
    return ret < 0 ? ret : refcounts_lower(c, err);
}
