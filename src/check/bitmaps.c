/*
 * bitmaps.c - part of phase 1: the bitmap directory, its tables and what they name (Format,
 * sections "Bitmaps extension", "Bitmap table"). Without the autoclear bit the extension is
 * stale, and its clusters count as free. However many bitmaps name one table, it is read once.
 *
 * Bitmaps that cannot be used are dropped when that is allowed: the bit goes, after which nothing
 * of the extension means anything and what only they named may be freed; the directory is written
 * without them where it was; and when all else is stable, the bit comes back. So at no point does
 * anything name what is not counted (INV-1); a crash leaves an image without bitmaps, or the undo
 * file. A directory that cannot be followed is dropped as a whole.
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

/* No entry can be told from the next, or none be read. */
static void directory_lost(struct check *c, uint64_t off, const char *why)
{
    c->bitmaps_lost = true;
    directory_damaged(c, off, why);
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
            if (c->bitmaps_dry && u64_vec_append(&c->bitmap_faults, f.file_off) < 0)
                return qk_fail_nomem(err);
            continue;
        }
        if (!c->bitmaps_dry && refmap_add(&c->refs, span, piece->times, 0) < 0)
            return qk_fail_nomem(err);
    }
    return 0;
}

/* With an entry that makes no sense the image is not opened for writing, here or by qemu. */
static bool note_fault(struct check *c, const uint8_t *p, size_t left)
{
    const struct bitmap_bounds bounds = {c->g->cluster_bytes, c->h->size_bytes, c->file_bytes};
    struct bitmap_entry entry;
    const char *fault =
        bitmap_entry_decode(p, left, &entry) ? bitmap_entry_fault(&entry, &bounds) : NULL;
    if (fault)
        directory_damaged(c, load_be64(p), fault);
    return fault != NULL;
}

/* Notes the bitmap whose entry is at `p`, `at` bytes into the directory, and its table. Returns the
 * entry's length, 0 when it is damaged. */
static size_t entry_note(struct check *c, const uint8_t *p, uint64_t at, size_t left,
                         struct u64_vec *tables)
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
        const struct bitmap_note lost = {at, bytes, 0, 0, true};
        return bitmap_vec_append(&c->bitmaps, lost) < 0 ? 0 : bytes;
    }
    const struct bitmap_note note = {at, bytes, off, table_bytes, note_fault(c, p, left)};
    if (bitmap_vec_append(&c->bitmaps, note) < 0)
        return 0;
    if (u64_vec_append(tables, off) < 0 || u64_vec_append(tables, table_bytes) < 0)
        return 0;
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
        c->bitmaps_lost = true;
        return 0;
    }
    for (size_t at = 0, len; count; count--, at += len) {
        len = entry_note(c, dir + at, at, bytes - at, &tables);
        if (!len) {
            directory_lost(c, off + at, "an entry reaches past its end");
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
    c->bitmaps.len = 0;
    if (!ext || !(c->h->autoclear & AUTOCLEAR_BITMAPS))
        return 0;
    if (ext->len < EXTENSION_BYTES) {
        directory_lost(c, 0, "its header extension is too short");
        return 0;
    }
    uint32_t count = load_be32(ext->data);
    uint64_t bytes = load_be64(ext->data + 8), off = load_be64(ext->data + 16);
    if (count > MAX_BITMAPS || bytes > MAX_DIRECTORY_BYTES ||
        !is_aligned(off, c->g->cluster_bytes) || !range_within(off, bytes, c->file_bytes)) {
        directory_lost(c, off, "its place or size is impossible");
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

static bool has_fault(const struct check *c, const struct bitmap_note *b)
{
    const struct u64_vec *v = &c->bitmap_faults; /* ascending: a sweep found them */
    size_t low = 0, high = v->len;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (v->ptr[mid] < b->table_off)
            low = mid + 1;
        else
            high = mid;
    }
    return low < v->len && v->ptr[low] - b->table_off < b->table_bytes;
}

/* Of a directory that is written anew only what stays is counted, and that has no faults. */
static int kept_collect(struct check *c, struct qk_error *err)
{
    struct bitmaps_extension ext;
    struct u64_vec tables = {0};
    const struct sweep sweep = {&tables, PROBLEM_BITMAP_UNREADABLE, table_words};
    int ret = 0;
    c->bitmaps_bytes = c->bitmaps_kept = 0;
    for (size_t i = 0; ret == 0 && i < c->bitmaps.len; i++) {
        struct bitmap_note *b = &c->bitmaps.ptr[i];
        b->bad = b->bad || has_fault(c, b);
        if (b->bad)
            continue;
        c->bitmaps_kept++;
        c->bitmaps_bytes += b->bytes;
        if (u64_vec_append(&tables, b->table_off) < 0 ||
            u64_vec_append(&tables, b->table_bytes) < 0)
            ret = qk_fail_nomem(err);
    }
    bitmaps_extension_decode(header_extensions_find(image_extensions(c->img), HEXT_BITMAPS)->data,
                             &ext);
    if (ret == 0 && c->bitmaps_kept)
        ret = count_inside(c, ext.directory_off, c->bitmaps_bytes, err);
    if (ret == 0)
        ret = cover_ranges(c, &tables, err);
    if (ret == 0)
        ret = sweep_ranges(c, &sweep, err);
    u64_vec_free(&tables);
    return ret;
}

/* Bitmaps that will be dropped do not count. */
int bitmaps_collect(struct check *c, struct qk_error *err)
{
    if (problem_fixable(c->opts, PROBLEM_BITMAP_DIRECTORY)) {
        c->bitmaps_dry = true;
        int ret = look(c, err);
        c->bitmaps_dry = false;
        if (ret == 0 && damage_seen(c) && !c->bitmaps_lost)
            ret = kept_collect(c, err);
        if (ret < 0 || damage_seen(c))
            return ret;
    }
    return look(c, err);
}

/* ---- dropping ---- */

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
        int ret = io_read(c->file, off + b->at, dir + at, (size_t)b->bytes, err);
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

/* Where the extension's data is in the file; 0: not where the header's layout says. */
static uint64_t extension_place(struct check *c)
{
    const struct header_extension_vec *list = &image_extensions(c->img)->list;
    uint64_t off = c->h->header_bytes;
    uint8_t head[8];
    for (size_t i = 0; i < list->len; i++) {
        const struct header_extension *e = &list->ptr[i];
        if (e->type == HEXT_BITMAPS)
            break;
        off += sizeof(head) + round_up(e->len, 8);
    }
    if (io_read(c->file, off, head, sizeof(head), NULL) < 0 || load_be32(head) != HEXT_BITMAPS)
        return 0;
    return off + sizeof(head);
}

/* While the bit is off nobody reads the extension. */
static int extension_write(struct check *c, struct bitmaps_extension now, struct qk_error *err)
{
    static const struct step what = {"name the new directory", "header", .count = 2};
    uint8_t data[BITMAPS_EXTENSION_BYTES];
    now.count = c->bitmaps_kept;
    now.directory_bytes = c->bitmaps_bytes;
    bitmaps_extension_encode(&now, data);
    const struct plan_bytes w = {extension_place(c), data, sizeof(data)};
    return plan_write(c, &what, &w, err);
}

/* Some bitmaps are left, and nothing else lies where they are written to. */
static bool can_keep(struct check *c, const struct header_extension *ext,
                     struct bitmaps_extension *now)
{
    struct refmap_span span;
    if (c->bitmaps_lost || !c->bitmaps_kept || !ext || !extension_place(c))
        return false;
    bitmaps_extension_decode(ext->data, now);
    if (!range_span(c, now->directory_off, c->bitmaps_bytes, &span))
        return false;
    for (uint64_t i = 0; i < span.count; i++) {
        if (refmap_count(&c->refs, span.first + i) != 1)
            return false;
    }
    return true;
}

int bitmaps_drop(struct check *c, struct qk_error *err)
{
    static const struct step all = {.action = "drop the bitmaps", .structure = "header"};
    static const struct step off = {.action = "put the bitmaps aside", .structure = "header"};
    const struct header_extension *ext =
        header_extensions_find(image_extensions(c->img), HEXT_BITMAPS);
    struct bitmaps_extension now;
    bool some = can_keep(c, ext, &now);
    int ret = bitmaps_bit_write(c, false, some ? &off : &all, err);
    if (ret == 0 && some) {
        ret = directory_write(c, now.directory_off, err);
        if (ret == 0)
            ret = extension_write(c, now, err);
        c->bitmaps_aside = true;
    }
    c->bitmaps_leaked = !some && !c->bitmaps_lost && c->bitmaps_kept;
    if (ret < 0)
        return ret;
    sink_message(&c->sink, some ? "Dropping the bitmaps that cannot be used"
                                : "Dropping the bitmaps of the image");
    sink_settle(&c->sink, PROBLEM_BITMAP_DIRECTORY);
    sink_settle(&c->sink, PROBLEM_BITMAP_TABLE);
    sink_settle(&c->sink, PROBLEM_BITMAP_ENTRY);
    return 0;
}

/* Names one cluster of each: the next check knows all of them. */
static void report_leaks(struct check *c)
{
    for (size_t i = 0; i < c->bitmaps.len; i++) {
        const struct bitmap_note *b = &c->bitmaps.ptr[i];
        const struct finding f = {PROBLEM_REFCOUNT_HIGH, b->table_off, QK_OFFSET_NONE, 0, 1};
        if (!b->bad)
            sink_found(&c->sink, &f, b->table_off >> c->g->cluster_bits, UINT64_C(1), UINT64_C(0));
    }
}

int bitmaps_return(struct check *c, struct qk_error *err)
{
    static const struct step what = {.action = "use the bitmaps again", .structure = "header"};
    if (c->bitmaps_leaked)
        report_leaks(c);
    return c->bitmaps_aside ? bitmaps_bit_write(c, true, &what, err) : 0;
}
