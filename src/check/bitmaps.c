/*
 * bitmaps.c - part of phase 1: the bitmap directory, its tables and what they name (Format,
 * sections "Bitmaps extension", "Bitmap table"). Without the autoclear bit the extension is
 * stale, and its clusters count as free. However many bitmaps name one table, it is read once. What
 * becomes of damaged ones: bitmaps_repair.c.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"
#include "format/bitmap.h"

#include <string.h>

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

void bitmap_name(struct check *c, const struct bitmap_note *b, char name[BITMAP_NAME_MAX + 1])
{
    uint8_t head[ENTRY_HEAD_BYTES];
    uint64_t at = c->bitmap_dir.directory_off + b->at;
    memset(name, 0, BITMAP_NAME_MAX + 1);
    if (io_read(c->file, at, head, sizeof(head), NULL) == 0)
        io_read(c->file, at + sizeof(head) + load_be32(head + 20), name,
                min_u64(load_be16(head + 18), BITMAP_NAME_MAX), NULL);
}

static void word_damaged(struct check *c, const struct finding *f)
{
    char name[BITMAP_NAME_MAX + 1] = "";
    for (size_t i = 0; i < c->bitmaps.len && !*name; i++) {
        const struct bitmap_note *b = &c->bitmaps.ptr[i];
        if (f->file_off >= b->table_off && f->file_off - b->table_off < b->table_bytes)
            bitmap_name(c, b, name);
    }
    c->sink.bitmap = *name ? name : NULL;
    sink_found(&c->sink, f, f->found);
    sink_flush(&c->sink);
    c->sink.bitmap = NULL;
}

static bool word_valid(const struct check *c, uint64_t word, struct refmap_span *span)
{
    uint64_t off = word & TABLE_OFFSET_MASK;
    *span = (struct refmap_span){0};
    return !(word & TABLE_RESERVED_MASK) && is_aligned(off, c->g->cluster_bytes) &&
           (!off || (!(word & BITMAP_TABLE_ONES) && range_span(c, off, c->g->cluster_bytes, span) &&
                     range_within(off, c->g->cluster_bytes, c->file_bytes)));
}

static int word_count(struct check *c, uint64_t word, uint64_t at, uint64_t times)
{
    struct refmap_span span;
    bool valid = word_valid(c, word, &span);
    if (c->bitmaps_uncounting) {
        if (valid)
            references_drop(c, span, times);
        return 0;
    }
    const struct finding f = {PROBLEM_BITMAP_ENTRY, at, QK_OFFSET_NONE, 0, word};
    if (valid)
        return refmap_add(&c->refs, span, times, 0);
    word_damaged(c, &f);
    if ((word & TABLE_OFFSET_MASK) > c->file_bytes - min_u64(c->file_bytes, c->g->cluster_bytes))
        cut_named(c, f.id, word & TABLE_OFFSET_MASK, c->g->cluster_bytes);
    return u64_vec_append(&c->bitmap_faults, at);
}

static int table_words(struct check *c, const uint64_t *words, size_t n, const struct root *piece,
                       struct qk_error *err)
{
    for (size_t i = 0; i < n; i++) {
        if (words[i] && word_count(c, words[i], piece->off + i * 8, piece->times) < 0)
            return qk_fail_nomem(err);
    }
    return 0;
}

/* why: the argument of the problem's text; NULL: the table's offset is. */
static void entry_damaged(struct check *c, const struct bitmap_note *b, enum problem_id id,
                          const char *why)
{
    const struct finding f = {id, c->bitmap_dir.directory_off + b->at, QK_OFFSET_NONE, 0,
                              b->table_off};
    char name[BITMAP_NAME_MAX + 1];
    bitmap_name(c, b, name);
    c->sink.bitmap = name;
    if (why)
        sink_found(&c->sink, &f, why);
    else
        sink_found(&c->sink, &f, b->table_off);
    sink_flush(&c->sink);
    c->sink.bitmap = NULL;
}

/* With an entry that makes no sense the image is not opened for writing, here or by qemu. */
static bool note_fault(struct check *c, const uint8_t *p, const struct bitmap_note *note,
                       size_t left)
{
    const struct bitmap_bounds bounds = {
        c->g->cluster_bytes, c->rollback ? c->rollback->old_disk_bytes : c->h->size_bytes,
        c->file_bytes};
    struct bitmap_entry entry;
    const char *fault =
        bitmap_entry_decode(p, left, &entry) ? bitmap_entry_fault(&entry, &bounds) : NULL;
    if (fault)
        entry_damaged(c, note, PROBLEM_BITMAP_DIRECTORY, fault);
    return fault != NULL;
}

/* Notes the bitmap whose entry is at `p`, `at` bytes into the directory, and its table. Returns the
 * entry's length, 0 when it is damaged. */
static size_t entry_note(struct check *c, const uint8_t *p, uint64_t at, size_t left)
{
    if (left < ENTRY_HEAD_BYTES)
        return 0;
    uint64_t bytes = ENTRY_HEAD_BYTES + (uint64_t)load_be16(p + 18) + load_be32(p + 20);
    bytes = round_up(bytes, 8);
    if (bytes > left)
        return 0;
    uint64_t off = load_be64(p), table_bytes = (uint64_t)load_be32(p + 8) * 8;
    struct refmap_span span;
    struct bitmap_note note = {at, bytes, off, table_bytes, true};
    if (!is_aligned(off, c->g->cluster_bytes) || !range_span(c, off, table_bytes, &span)) {
        entry_damaged(c, &note, PROBLEM_BITMAP_TABLE, NULL);
        note.table_off = note.table_bytes = 0;
    } else {
        note.bad = note_fault(c, p, &note, left);
    }
    return bitmap_vec_append(&c->bitmaps, note) < 0 ? 0 : bytes;
}

static int entries_note(struct check *c, uint64_t off, uint64_t bytes, uint32_t count,
                        struct qk_error *err)
{
    CLEANUP_FREE uint8_t *dir = malloc(bytes + 1);
    uint64_t at = 0;
    if (!dir)
        return qk_fail_nomem(err);
    if (io_read(c->file, off, dir, bytes, NULL) < 0) {
        const struct finding f = {PROBLEM_BITMAP_UNREADABLE, off, QK_OFFSET_NONE, 0, 0};
        sink_found(&c->sink, &f, off);
        c->bitmaps_lost = true;
        return 0;
    }
    for (size_t len; count; count--, at += len) {
        len = entry_note(c, dir + at, at, bytes - at);
        if (!len) {
            directory_lost(c, off + at, "an entry reaches past its end");
            return 0;
        }
    }
    if (at != bytes)
        directory_damaged(c, off + at, "there is more than its entries");
    return 0;
}

/* Counts what the tables of all bitmaps name, or takes off what those of the bad ones did: damage
 * may have put them where something is that this run has changed. */
static int tables_count(struct check *c, bool bad_only, struct qk_error *err)
{
    struct u64_vec tables = {0};
    const struct sweep sweep = {.ranges = &tables,
                                .unreadable = c->bitmaps_uncounting ? PROBLEM_COUNT
                                                                    : PROBLEM_BITMAP_UNREADABLE,
                                .before = c->bitmaps_uncounting,
                                .fn = table_words};
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < c->bitmaps.len; i++) {
        const struct bitmap_note *b = &c->bitmaps.ptr[i];
        if (bad_only && !b->bad)
            continue;
        if (u64_vec_append(&tables, b->table_off) < 0 ||
            u64_vec_append(&tables, b->table_bytes) < 0)
            ret = qk_fail_nomem(err);
    }
    if (ret == 0)
        ret =
            c->bitmaps_uncounting ? uncover_ranges(c, &tables, err) : cover_ranges(c, &tables, err);
    if (ret == 0)
        ret = sweep_ranges(c, &sweep, err);
    u64_vec_free(&tables);
    return ret;
}

/* The directory as the header names it, if it can be one. */
static bool find_directory(struct check *c)
{
    const struct header_extension *ext =
        header_extensions_find(image_extensions(c->img), HEXT_BITMAPS);
    if (!ext || !(c->h->autoclear & AUTOCLEAR_BITMAPS))
        return false;
    if (ext->len < EXTENSION_BYTES) {
        directory_lost(c, 0, "its header extension is too short");
        return false;
    }
    struct bitmaps_extension *dir = &c->bitmap_dir;
    bitmaps_extension_decode(ext->data, dir);
    if (dir->count && dir->count <= MAX_BITMAPS && dir->directory_bytes <= MAX_DIRECTORY_BYTES &&
        is_aligned(dir->directory_off, c->g->cluster_bytes) &&
        range_within(dir->directory_off, dir->directory_bytes, c->file_bytes))
        return true;
    directory_lost(c, dir->directory_off, "its place or size is impossible");
    *dir = (struct bitmaps_extension){0};
    return false;
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

/* Which bitmaps can be used, and how large a directory of them is. */
static void judge_all(struct check *c)
{
    for (size_t i = 0; i < c->bitmaps.len; i++) {
        struct bitmap_note *b = &c->bitmaps.ptr[i];
        b->bad = b->bad || has_fault(c, b);
        c->bitmaps_kept += !b->bad;
        c->bitmaps_bytes += b->bad ? 0 : b->bytes;
    }
}

/* All of it is counted as long as the header names it, also what will be dropped; but for a
 * directory that is dropped as a whole because nobody can tell what it names. */
int bitmaps_collect(struct check *c, struct qk_error *err)
{
    const struct bitmaps_extension *dir = &c->bitmap_dir;
    bool drops = problem_fixable(c->opts, PROBLEM_BITMAP_DIRECTORY);
    if (!find_directory(c))
        return 0;
    int ret = entries_note(c, dir->directory_off, dir->directory_bytes, dir->count, err);
    if (ret < 0 || (drops && c->bitmaps_lost))
        return ret;
    ret = count_inside(c, dir->directory_off, dir->directory_bytes, err);
    if (ret == 0)
        ret = tables_count(c, false, err);
    judge_all(c);
    return ret;
}

int bitmaps_uncount(struct check *c, bool bad_only, struct qk_error *err)
{
    c->bitmaps_uncounting = true;
    return tables_count(c, bad_only, err);
}
