/*
 * cut.c - a file that ends too early. What lies behind the end is reported by whoever names it;
 * here is what else the end does: it may lie inside a table, whose last entries are lost then
 * although they read as zero, and be it in the middle of an entry. No program that writes images
 * leaves a table that is not all there, so such a table is damaged, and what its lost entries named
 * stays untouched (ACT_HOLD) until they are given up. Giving up makes the file as long as the
 * tables need, so that the lost entries are really zero.
 *
 * While such a table stays, or an entry that names what is gone, the file does not grow: the damage
 * would look like data of zeroes then.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"
#include "codec/codec.h"

#include <string.h>

#define ENTRY_BYTES_MAX 16u
#define SECTOR_BYTES    512u /* that compressed clusters are counted in */

bool cut_through(const struct check *c, uint64_t off, uint64_t bytes)
{
    return bytes && !range_within(off, bytes, c->file_bytes);
}

bool cut_table(const struct check *c, uint64_t cluster)
{
    return cut_through(c, cluster << c->g->cluster_bits, c->g->cluster_bytes);
}

bool cut_data(const struct check *c, uint64_t off)
{
    uint64_t end = c->data_file ? c->data_bytes : c->file_bytes;
    return off < end && !range_within(off, c->g->cluster_bytes, end);
}

uint32_t cut_first_lost(const struct check *c, uint64_t off, uint32_t entry_bytes)
{
    return (uint32_t)((c->file_bytes - min_u64(off, c->file_bytes)) / entry_bytes);
}

void cut_clean(const struct check *c, uint64_t cluster, uint8_t *table)
{
    if (!cut_table(c, cluster))
        return;
    uint64_t kept =
        (uint64_t)cut_first_lost(c, cluster << c->g->cluster_bits, c->g->l2_entry_bytes) *
        c->g->l2_entry_bytes;
    memset(table + kept, 0, c->g->cluster_bytes - kept);
}

void cut_named(struct check *c, enum problem_id id, uint64_t off, uint64_t bytes)
{
    uint64_t end;
    c->cut.names++;
    if (try_add_u64(off, bytes, &end))
        c->cut.reach = max_u64(c->cut.reach, end);
    if (!problem_fixable(c->opts, id))
        outside_named(c, off, bytes);
}

/* ---- compressed clusters ---- */

static bool stream_decodes(enum codec_type type, struct iovec in, struct iovec out)
{
    struct codec *codec = NULL;
    int ret = codec_new(type, 0, &codec);
    if (ret == 0)
        ret = codec_decompress(codec, in, out);
    codec_free(codec);
    return ret == 0 || ret == -ENOMEM;
}

/* The header may be wrong about the type. */
static bool stream_bad(const struct check *c, uint64_t off)
{
    size_t there = (size_t)min_u64(c->file_bytes - off, 2 * (uint64_t)c->g->cluster_bytes);
    CLEANUP_FREE uint8_t *in = malloc(there);
    CLEANUP_FREE uint8_t *out = malloc(c->g->cluster_bytes);
    if (!in || !out || io_read(c->file, off, in, there, NULL) < 0)
        return false;
    for (unsigned type = 0; type < CODEC_TYPES; type++) {
        if (stream_decodes((enum codec_type)type, (struct iovec){in, there},
                           (struct iovec){out, c->g->cluster_bytes}))
            return false;
    }
    return true;
}

/* A stream ends anywhere in the last sector that it names: only reading it tells whether it is all
 * there. As many are tried as any sound file has
 * in its last sector. */
bool cut_stream(const struct check *c, uint64_t off, uint64_t bytes)
{
    struct cut_streams *s = c->cut_streams;
    if (range_within(off, bytes, c->file_bytes))
        return false;
    if (off >= c->file_bytes || off + bytes >= c->file_bytes + SECTOR_BYTES)
        return true;
    LOCK_SCOPE(&s->lock);
    for (unsigned i = 0; i < s->count; i++) {
        if (s->tried[i].off == off && s->tried[i].bytes == bytes)
            return s->tried[i].bad;
    }
    if (s->count == CUT_STREAMS)
        return false;
    bool bad = stream_bad(c, off);
    s->tried[s->count].off = off;
    s->tried[s->count].bytes = bytes;
    s->tried[s->count++].bad = bad;
    return bad;
}

/* ---- tables that the end cuts ---- */

/* Where the file has to reach so that the table is all there. */
static void need(struct check *c, uint64_t off, uint64_t bytes, uint32_t entry_bytes)
{
    c->cut.fill_end = max_u64(c->cut.fill_end, off + bytes);
    if (off < c->file_bytes)
        c->cut.entry_bytes = max_u64(c->cut.entry_bytes, entry_bytes);
}

void cut_found(struct check *c, const struct cut_off_table *t)
{
    const struct finding f = {t->id, t->off, t->guest_off, t->bytes,
                              c->file_bytes - min_u64(t->off, c->file_bytes)};
    sink_found(&c->sink, &f, t->off, t->bytes);
    cut_named(c, t->id, t->off, t->bytes);
    c->cut.torn = true;
    c->cut.held |= !t->alone;
    if (!problem_fixable(c->opts, f.id))
        return;
    if (t->active && t->guest_off < c->h->size_bytes) {
        uint64_t each = f.id == PROBLEM_L2_CUT ? (uint64_t)c->g->l2_entries << c->g->cluster_bits
                                               : c->h->size_bytes;
        c->guest_changes = true;
        c->cut.lost_off = t->guest_off;
        c->cut.lost_bytes = min_u64(each - t->guest_off % each, c->h->size_bytes - t->guest_off);
    }
    need(c, t->off, t->bytes, t->entry_bytes);
}

/* The rest of an L1 table behind the end is given up, too: when it is not far away, and nothing
 * else can be the table. */
int cut_l1_count(struct check *c, struct qk_error *err)
{
    uint64_t off = c->h->l1_off, bytes = (uint64_t)c->h->l1_entries * 8, end = off + bytes;
    struct refmap_span span = {off >> c->g->cluster_bits, 0};
    cut_named(c, PROBLEM_L1_TABLE_OUTSIDE, off, bytes);
    c->cut.torn = off < c->file_bytes;
    if (!problem_fixable(c->opts, PROBLEM_L1_TABLE_OUTSIDE) || c->l1_found ||
        bytes > QCOW2_MAX_L1_BYTES || end > 2 * c->file_bytes + QCOW2_MAX_L1_BYTES ||
        !file_can_grow(c) || c->no_growth) {
        c->no_growth = c->cut.held = true;
        return 0;
    }
    span.count = div_round_up(end, c->g->cluster_bytes) - span.first;
    c->clusters = max_u64(c->clusters, span.first + span.count);
    c->guest_changes = true;
    c->cut.lost_off = (c->file_bytes - min_u64(off, c->file_bytes)) / 8
                      << (c->g->l2_bits + c->g->cluster_bits);
    c->cut.lost_bytes = c->h->size_bytes - min_u64(c->h->size_bytes, c->cut.lost_off);
    need(c, off, bytes, 8);
    int ret = refmap_grow(&c->refs, c->clusters + 1, err);
    return ret == 0 && refmap_add(&c->refs, span, 1, 0) < 0 ? qk_fail_nomem(err) : ret;
}

/* ---- what is known of the file's length ---- */

/* One more than the highest cluster that a sound block counts as used; 0: none in this block. */
static uint64_t block_highest(struct check *c, uint64_t b, uint8_t *buf)
{
    if (block_state(c, b) != BLOCK_GOOD ||
        io_read(c->file, c->reftable.ptr[b], buf, c->g->cluster_bytes, NULL) < 0)
        return 0;
    for (uint64_t i = block_clusters(c); i-- > 0;) {
        if (c->ops->get(buf, i))
            return b * block_clusters(c) + i + 1;
    }
    return 0;
}

static int counted_end(struct check *c, struct qk_error *err)
{
    CLEANUP_FREE uint8_t *buf = malloc(c->g->cluster_bytes);
    if (!buf)
        return qk_fail_nomem(err);
    for (uint64_t b = c->reftable.len; b-- > c->clusters >> c->g->refblock_bits;) {
        c->cut.counted = block_highest(c, b, buf);
        if (c->cut.counted)
            break;
    }
    return 0;
}

/* One wild entry makes no cut file: that takes a table that is cut, or refcounts behind the end. */
int cut_report(struct check *c, struct qk_error *err)
{
    struct cut *cut = &c->cut;
    if (!cut->names)
        return 0;
    int ret = counted_end(c, err);
    if (ret < 0)
        return ret;
    uint64_t counted = cut->counted << c->g->cluster_bits;
    cut->sure = cut->torn || counted > c->file_bytes + c->g->cluster_bytes;
    if (!cut->sure)
        return 0;
    uint64_t whole = counted > c->file_bytes ? counted : cut->reach;
    const struct finding f = {PROBLEM_FILE_CUT, c->file_bytes, QK_OFFSET_NONE, whole,
                              c->file_bytes};
    sink_found(&c->sink, &f, c->file_bytes, whole, cut->names);
    return 0;
}

/* ---- giving up ---- */

/* Only this makes the damage go away, so that what it held is free. */
bool cut_can_fill(const struct check *c)
{
    return file_can_grow(c) && !c->no_growth && !c->cut.held;
}

static int clear_half_entry(struct check *c, struct qk_error *err)
{
    static const uint8_t zeroes[ENTRY_BYTES_MAX];
    static const struct step what = {.action = "clear the entry that is cut off",
                                     .structure = "table at the end of the file"};
    uint64_t off =
        c->cut.entry_bytes ? round_down(c->file_bytes, c->cut.entry_bytes) : c->file_bytes;
    const struct plan_bytes w = {off, zeroes, (size_t)(c->file_bytes - off)};
    return w.len ? plan_write(c, &what, &w, err) : 0;
}

int cut_fill(struct check *c, struct qk_error *err)
{
    static const uint8_t zeroes[8];
    static const enum problem_id done[] = {PROBLEM_L1_CUT, PROBLEM_L2_CUT,
                                           PROBLEM_L1_TABLE_OUTSIDE};
    struct step what = {.action = "write zeroes for what is missing",
                        .structure = "table at the end of the file",
                        .lost_off = c->cut.lost_off,
                        .lost_bytes = c->cut.lost_bytes};
    if (c->sink.seen[PROBLEM_L1_TABLE_OUTSIDE])
        what.lost = "the active L1 table, which alone says where the disk's data is in the file";
    if (c->cut.fill_end <= c->file_bytes)
        return 0;
    uint64_t bytes = min_u64(sizeof(zeroes), c->cut.fill_end - c->file_bytes);
    const struct plan_bytes w = {c->cut.fill_end - bytes, zeroes, (size_t)bytes};
    int ret = clear_half_entry(c, err);
    if (ret == 0)
        ret = plan_write(c, &what, &w, err);
    for (size_t i = 0; ret == 0 && i < ARRAY_SIZE(done); i++) {
        if (c->sink.seen[done[i]])
            sink_settle(&c->sink, done[i]);
    }
    if (ret == 0)
        sink_message(&c->sink, "Giving up what the end of the file has cut off from its tables");
    return ret;
}

/* Refcounts of what was behind the end: the file may grow there again. */
int cut_uncount(struct check *c, struct qk_error *err)
{
    static const struct step what = {.action = "lower refcounts", .structure = "refcount block"};
    CLEANUP_FREE uint8_t *old = NULL;
    int ret = 0;
    if (!c->cut.names || (c->actions & (ACT_HOLD | ACT_REBUILD)) ||
        !(c->opts->fix & QK_FIX_LEAKS) || c->no_growth)
        return 0;
    old = malloc(2 * (size_t)c->g->cluster_bytes);
    if (!old)
        return qk_fail_nomem(err);
    uint8_t *new = old + c->g->cluster_bytes;
    for (uint64_t b = c->clusters >> c->g->refblock_bits; ret == 0 && b < c->reftable.len; b++) {
        if (block_state(c, b) != BLOCK_GOOD)
            continue;
        ret = io_read(c->file, c->reftable.ptr[b], old, c->g->cluster_bytes, err);
        if (ret < 0)
            break;
        memcpy(new, old, c->g->cluster_bytes);
        uint64_t first = b * block_clusters(c);
        for (uint64_t i = c->clusters - min_u64(c->clusters, first); i < block_clusters(c); i++)
            c->ops->set(new, i, 0);
        const struct table_write w = {c->reftable.ptr[b], c->g->cluster_bytes,
                                      (c->g->refcount_bits + 7) / 8, old, new};
        ret = write_changed(c, &what, &w, err);
    }
    block_cache_drop(c);
    return ret;
}
