/*
 * bitmaps.c - part of phase 1: the bitmap directory, its tables and what they name (Format,
 * sections "Bitmaps extension", "Bitmap table"). Without the autoclear bit the extension is
 * stale, and its clusters count as free. However many bitmaps name one table, it is read once.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"
#include "format/bitmap.h"

#define EXTENSION_BYTES     24u
#define ENTRY_HEAD_BYTES    24u
#define TABLE_OFFSET_MASK   UINT64_C(0x00fffffffffffe00)
#define TABLE_RESERVED_MASK UINT64_C(0xff000000000001fe)
#define MAX_BITMAPS         65535u
#define MAX_DIRECTORY_BYTES (UINT64_C(64) << 20)

static void directory_damaged(struct check *c, uint64_t off, const char *why)
{
    const struct finding f = {PROBLEM_BITMAP_DIRECTORY, off, QK_OFFSET_NONE, 0, 0};
    sink_found(&c->sink, &f, why);
}

static int table_words(struct check *c, const uint64_t *words, size_t n, const struct root *piece,
                       struct qk_error *err)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t off = words[i] & TABLE_OFFSET_MASK;
        struct refmap_span span = {0};
        if (!words[i])
            continue;
        if ((words[i] & TABLE_RESERVED_MASK) || !is_aligned(off, c->g->cluster_bytes) ||
            (off && !range_span(c, off, c->g->cluster_bytes, &span))) {
            const struct finding f = {PROBLEM_BITMAP_ENTRY, piece->off + i * 8, QK_OFFSET_NONE, 0,
                                      words[i]};
            sink_found(&c->sink, &f, words[i]);
            continue;
        }
        if (!c->bitmaps_dry && refmap_add(&c->refs, span, piece->times, 0) < 0)
            return qk_fail_nomem(err);
    }
    return 0;
}

/* With an entry that makes no sense the image is not opened for writing, here or by qemu. */
static void note_fault(struct check *c, const uint8_t *p, size_t left)
{
    const struct bitmap_bounds bounds = {c->g->cluster_bytes, c->h->size_bytes, c->file_bytes};
    struct bitmap_entry entry;
    const char *fault =
        bitmap_entry_decode(p, left, &entry) ? bitmap_entry_fault(&entry, &bounds) : NULL;
    if (fault)
        directory_damaged(c, load_be64(p), fault);
}

/* Notes the table that the entry at `p` names; returns the entry's length, 0 when it is damaged. */
static size_t entry_note(struct check *c, const uint8_t *p, size_t left, struct u64_vec *tables)
{
    if (left < ENTRY_HEAD_BYTES)
        return 0;
    uint64_t bytes = ENTRY_HEAD_BYTES + (uint64_t)load_be16(p + 18) + load_be32(p + 20);
    bytes = round_up(bytes, 8);
    if (bytes > left)
        return 0;
    uint64_t off = load_be64(p), table_bytes = (uint64_t)load_be32(p + 8) * 8;
    struct refmap_span span;
    if (!is_aligned(off, c->g->cluster_bytes) || !range_span(c, off, table_bytes, &span)) {
        const struct finding f = {PROBLEM_BITMAP_TABLE, off, QK_OFFSET_NONE, 0, off};
        sink_found(&c->sink, &f, off);
        return bytes;
    }
    if (u64_vec_append(tables, off) < 0 || u64_vec_append(tables, table_bytes) < 0)
        return 0;
    note_fault(c, p, left);
    return bytes;
}

static int directory_collect(struct check *c, uint64_t off, uint64_t bytes, uint32_t count,
                             struct qk_error *err)
{
    CLEANUP_FREE uint8_t *dir = malloc(bytes + 1);
    struct u64_vec tables = {0};
    if (!dir)
        return qk_fail_nomem(err);
    if (io_read(c->file, off, dir, bytes, NULL) < 0) {
        const struct finding f = {PROBLEM_BITMAP_UNREADABLE, off, QK_OFFSET_NONE, 0, 0};
        sink_found(&c->sink, &f, off);
        return 0;
    }
    for (size_t at = 0, len; count; count--, at += len) {
        len = entry_note(c, dir + at, bytes - at, &tables);
        if (!len) {
            directory_damaged(c, off + at, "an entry reaches past its end");
            break;
        }
    }
    const struct sweep sweep = {&tables, PROBLEM_BITMAP_UNREADABLE, table_words};
    int ret = c->bitmaps_dry ? 0 : cover_ranges(c, &tables, err);
    if (ret == 0)
        ret = sweep_ranges(c, &sweep, err);
    u64_vec_free(&tables);
    return ret;
}

static int look(struct check *c, struct qk_error *err)
{
    const struct header_extension *ext =
        header_extensions_find(image_extensions(c->img), HEXT_BITMAPS);
    if (!ext || !(c->h->autoclear & AUTOCLEAR_BITMAPS))
        return 0;
    if (ext->len < EXTENSION_BYTES) {
        directory_damaged(c, 0, "its header extension is too short");
        return 0;
    }
    uint32_t count = load_be32(ext->data);
    uint64_t bytes = load_be64(ext->data + 8), off = load_be64(ext->data + 16);
    if (count > MAX_BITMAPS || bytes > MAX_DIRECTORY_BYTES ||
        !is_aligned(off, c->g->cluster_bytes) || !range_within(off, bytes, c->file_bytes)) {
        directory_damaged(c, off, "its place or size is impossible");
        return 0;
    }
    int ret = c->bitmaps_dry ? 0 : count_inside(c, off, bytes, err);
    return ret < 0 ? ret : directory_collect(c, off, bytes, count, err);
}

static bool damage_seen(const struct check *c)
{
    return c->sink.seen[PROBLEM_BITMAP_DIRECTORY] || c->sink.seen[PROBLEM_BITMAP_TABLE] ||
           c->sink.seen[PROBLEM_BITMAP_ENTRY];
}

/* Bitmaps that will be dropped do not count. */
int bitmaps_collect(struct check *c, struct qk_error *err)
{
    if (problem_fixable(c->opts, PROBLEM_BITMAP_DIRECTORY)) {
        c->bitmaps_dry = true;
        int ret = look(c, err);
        c->bitmaps_dry = false;
        if (ret < 0 || damage_seen(c))
            return ret;
    }
    return look(c, err);
}

/* Without its bit the extension means nothing: all bitmaps are gone, and their clusters free. */
int bitmaps_drop(struct check *c, struct qk_error *err)
{
    uint8_t field[8];
    int ret = io_read(c->file, HEADER_AUTOCLEAR_OFF, field, sizeof(field), err);
    if (ret < 0)
        return ret;
    store_be64(field, load_be64(field) & ~(uint64_t)AUTOCLEAR_BITMAPS);
    static const struct step what = {.action = "drop the bitmaps", .structure = "header"};
    const struct plan_bytes bytes = {HEADER_AUTOCLEAR_OFF, field, sizeof(field)};
    sink_message(&c->sink, "Dropping the bitmaps of the image");
    sink_settle(&c->sink, PROBLEM_BITMAP_DIRECTORY);
    sink_settle(&c->sink, PROBLEM_BITMAP_TABLE);
    sink_settle(&c->sink, PROBLEM_BITMAP_ENTRY);
    return plan_write(c, &what, &bytes, err);
}
