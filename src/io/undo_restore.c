/*
 * undo_restore.c - the way back: reads an undo log (untrusted, INV-4), holds the store against it
 * window by window, and only then writes. Memory: 24 bytes for each record of the log, and three
 * windows.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/vector.h"
#include "io/undo_log.h"

#include <inttypes.h>
#include <string.h>

#define WINDOW         UNDO_RANGE_MAX
#define WINDOW_SECTORS (WINDOW / UNDO_SECTOR)

/* A record about a range of the store. */
struct piece {
    uint64_t off, payload_off; /* in the store, in the log */
    uint32_t len, type;
};
DEFINE_VECTOR(piece_vec, struct piece)

struct restore {
    struct qk_io *log, *store;
    struct undo_head head;
    uint64_t log_bytes;
    bool begun; /* changes were allowed to happen */
    uint64_t longest, shortest;
    struct {
        uint64_t off, seq; /* of DONE or BACK; off 0: there is none */
        bool done;
    } last;
    uint64_t store_bytes;
    bool all_old, all_new;           /* every sector is as it was, as the last change left it */
    uint64_t not_new;                /* the first that is not */
    struct piece_vec pieces;         /* by their place in the store once the log is read */
    uint8_t *payload, *buf;          /* WINDOW each */
    uint32_t sums[WINDOW_SECTORS];   /* of the sectors in buf */
    uint8_t known[WINDOW_SECTORS];   /* enum known */
    uint64_t latest[WINDOW_SECTORS]; /* which SUMS is the last one of a sector; 0: none */
};

/* What the log says of a sector in the window: it has one of the states, the old one, the last. */
enum known { KNOWN = 1, FITS = 2, OLD = 4, NEW = 8 };

static int log_damaged(const struct restore *r, uint64_t off, struct qk_error *err)
{
    return qk_fail_at(err, -EINVAL, WHERE(r->log->name, "undo file", off),
                      "the undo file is damaged at offset %" PRIu64 "; nothing was changed", off);
}

/* ---- reading the log ---- */

/* False: no sound record of this place there. Its payload is in r->payload. */
static bool record_at(struct restore *r, uint64_t off, struct undo_record *record)
{
    uint8_t bytes[UNDO_RECORD_BYTES];
    if (!range_within(off, sizeof(bytes), r->log_bytes) ||
        io_read(r->log, off, bytes, sizeof(bytes), NULL) < 0 || !undo_record_decode(bytes, record))
        return false;
    off += sizeof(bytes);
    size_t n = (size_t)record->payload_bytes;
    if (!range_within(off, n, r->log_bytes) || io_read(r->log, off, r->payload, n, NULL) < 0)
        return false;
    return undo_record_sound(&r->head, bytes, r->payload, n);
}

/* Whether a REDY lies in what could not be read: then it is no torn end. Every byte is read once:
 * what claims a payload is not believed here. */
static bool ready_behind(struct restore *r, uint64_t off)
{
    struct undo_record rec;
    while (off < r->log_bytes) {
        size_t n = (size_t)min_u64(r->log_bytes - off, UNDO_RANGE_MAX);
        if (io_read(r->log, off, r->payload, n, NULL) < 0)
            return true; /* it may be there */
        for (size_t at = 0; at + UNDO_RECORD_BYTES <= n; at += UNDO_ALIGN) {
            const uint8_t *bytes = r->payload + at;
            if (undo_record_decode(bytes, &rec) && rec.type == UNDO_REDY &&
                undo_record_sound(&r->head, bytes, bytes, 0))
                return true;
        }
        if (n < UNDO_RANGE_MAX)
            break;
        off += UNDO_RANGE_MAX - UNDO_ALIGN * (UNDO_RECORD_BYTES / UNDO_ALIGN - 1);
    }
    return false;
}

/* What a log says up to some place. */
struct reading {
    uint64_t off, seq;
    size_t pieces;
    uint64_t longest, shortest;
};

static int record_keep(struct restore *r, struct reading *at, const struct undo_record *record,
                       struct qk_error *err)
{
    const struct piece piece = {record->off, at->off + UNDO_RECORD_BYTES, (uint32_t)record->len,
                                record->type};
    if (record->type == UNDO_SIZE) {
        at->longest = max_u64(at->longest, record->len);
        at->shortest = min_u64(at->shortest, record->len);
        return 0;
    }
    if (record->type == UNDO_DONE || record->type == UNDO_BACK) {
        r->last.off = at->off;
        r->last.seq = record->seq;
        r->last.done = record->type == UNDO_DONE;
    }
    if (record->type == UNDO_REDY || record->type == UNDO_DONE || record->type == UNDO_BACK ||
        !record->len)
        return 0;
    if (record->type != UNDO_SUMS && !range_within(record->off, record->len, r->head.length))
        return log_damaged(r, at->off, err);
    at->pieces++;
    return piece_vec_append(&r->pieces, piece) < 0 ? qk_fail_nomem(err) : 0;
}

static int piece_compare(const void *a, const void *b)
{
    const struct piece *x = a, *y = b;
    if (x->off != y->off)
        return x->off < y->off ? -1 : 1;
    return x->payload_off < y->payload_off ? -1 : x->payload_off > y->payload_off;
}

/* Only what its last REDY has behind it counts. Without one nothing was changed: then the store has
 * what was saved, and no other state is possible. */
static void keep_ready(struct restore *r, const struct reading *ready)
{
    size_t kept = 0;
    r->longest = ready->longest;
    r->shortest = ready->shortest;
    if (r->begun)
        r->pieces.len = ready->pieces;
    for (size_t i = 0; i < r->pieces.len; i++) {
        if (r->begun || r->pieces.ptr[i].type != UNDO_SUMS)
            r->pieces.ptr[kept++] = r->pieces.ptr[i];
    }
    r->pieces.len = kept;
    if (kept)
        qsort(r->pieces.ptr, kept, sizeof(*r->pieces.ptr), piece_compare);
}

static int records_load(struct restore *r, struct qk_error *err)
{
    struct reading at = {UNDO_HEAD_BYTES, 0, 0, r->head.length, r->head.length}, ready = at;
    struct undo_record record;
    while (record_at(r, at.off, &record) && record.seq == at.seq) {
        r->last.off = 0; /* what lies behind it makes it none */
        int ret = record_keep(r, &at, &record, err);
        if (ret < 0)
            return ret;
        at.seq++;
        at.off += UNDO_RECORD_BYTES + round_up(record.payload_bytes, UNDO_ALIGN);
        if (record.type == UNDO_REDY) {
            r->begun = true;
            ready = at;
        }
    }
    if (at.off < r->log_bytes && ready_behind(r, at.off))
        return log_damaged(r, at.off, err);
    keep_ready(r, &ready);
    return 0;
}

/* An undo file has no head yet when nothing but its name was stable. */
static int head_load(struct restore *r, struct qk_error *err)
{
    uint8_t bytes[UNDO_HEAD_BYTES];
    int ret = io_size(r->log, &r->log_bytes, err);
    if (ret == 0)
        ret = io_read(r->log, 0, bytes, sizeof(bytes), err);
    if (ret < 0)
        return ret;
    bool begins = !memcmp(bytes, UNDO_MAGIC, (size_t)min_u64(8, r->log_bytes));
    if (r->log_bytes < UNDO_HEAD_BYTES && begins)
        return qk_fail(err, -EINVAL,
                       "the undo file ends in its head: the repair that wrote it had "
                       "changed nothing, and there is nothing to undo");
    return undo_head_decode(bytes, &r->head, err);
}

/* ---- holding the store against it ---- */

static int changed_since(const struct restore *r, uint64_t off, struct qk_error *err)
{
    return qk_fail_at(err, -EUCLEAN, WHERE(r->store->name, NULL, off),
                      "the undo file is about another image, or the image was changed since "
                      "(at offset %" PRIu64 "); nothing was changed now. Repairs are taken back in "
                      "turn, the latest first",
                      off);
}

/* The part of the store that is looked at; whole sectors. */
struct window {
    uint64_t off, end;
    size_t first; /* the first piece that may reach into it */
};

/* Of several states that were announced, the last one counts. */
static void sector_note(struct restore *r, const struct piece *p, size_t i, bool fits)
{
    r->known[i] |= (uint8_t)(KNOWN | (fits ? FITS : 0));
    if (p->type != UNDO_SUMS) {
        r->known[i] |= fits ? OLD : 0;
    } else if (p->payload_off > r->latest[i]) {
        r->latest[i] = p->payload_off;
        r->known[i] = (uint8_t)((r->known[i] & ~NEW) | (fits ? NEW : 0));
    }
}

/* A store reads as zeroes behind its end, so the last sector counts as a whole one. */
static int look_piece(struct restore *r, const struct window *w, const struct piece *p,
                      struct qk_error *err)
{
    uint64_t off = max_u64(p->off, w->off), end = min_u64(p->off + p->len, w->end),
             skip = off - p->off;
    size_t n = (size_t)div_round_up(end - off, UNDO_SECTOR), at = (off - w->off) / UNDO_SECTOR;
    memset(r->payload, 0, n * UNDO_SECTOR);
    int ret = 0;
    if (p->type == UNDO_BYTE)
        ret = io_read(r->log, p->payload_off + skip, r->payload, (size_t)(end - off), err);
    else if (p->type == UNDO_SUMS)
        ret = io_read(r->log, p->payload_off + skip / UNDO_SECTOR * 4, r->payload, n * 4, err);
    for (size_t i = 0; ret == 0 && i < n; i++) {
        uint32_t sum = p->type == UNDO_SUMS ? load_be32(r->payload + 4 * i)
                                            : crc32c(0, r->payload + i * UNDO_SECTOR, UNDO_SECTOR);
        sector_note(r, p, at + i, sum == r->sums[at + i]);
    }
    return ret;
}

static bool sector_fits(struct restore *r, size_t i, uint64_t off)
{
    static const uint8_t zero[UNDO_SECTOR];
    uint8_t known = r->known[i];
    bool grown = off >= r->head.length,
         untouched =
             grown ? !memcmp(r->buf + i * UNDO_SECTOR, zero, sizeof(zero)) : !known || known & OLD;
    r->all_old &= grown ? off >= r->store_bytes : untouched;
    if (!(r->latest[i] ? (known & NEW) != 0 : untouched)) {
        r->not_new = r->all_new ? off : r->not_new;
        r->all_new = false;
    }
    return (known & FITS) || (!grown && !known) || (grown && untouched);
}

/* Each sector is in a state that the log knows; what the store grew by may be zero, too, and what
 * else there is in its old part was not touched. */
static int sectors_fit(struct restore *r, const struct window *w, struct qk_error *err)
{
    for (uint64_t off = w->off; off < w->end; off += UNDO_SECTOR) {
        if (!sector_fits(r, (size_t)((off - w->off) / UNDO_SECTOR), off))
            return changed_since(r, off, err);
    }
    return 0;
}

static int window_fits(struct restore *r, const struct window *w, struct qk_error *err)
{
    size_t sectors = (size_t)((w->end - w->off) / UNDO_SECTOR);
    int ret = io_read(r->store, w->off, r->buf, (size_t)(w->end - w->off), err);
    for (size_t i = 0; ret == 0 && i < sectors; i++) {
        r->sums[i] = crc32c(0, r->buf + i * UNDO_SECTOR, UNDO_SECTOR);
        r->known[i] = 0;
        r->latest[i] = 0;
    }
    for (size_t i = w->first; i < r->pieces.len && r->pieces.ptr[i].off < w->end && ret == 0; i++) {
        if (r->pieces.ptr[i].off + r->pieces.ptr[i].len > w->off)
            ret = look_piece(r, w, &r->pieces.ptr[i], err);
    }
    return ret < 0 ? ret : sectors_fit(r, w, err);
}

/* The first place from `off` on where the store has grown by something that is not known to read as
 * zeroes. */
static uint64_t grown_from(const struct restore *r, uint64_t off, uint64_t length)
{
    struct qk_extent extent;
    off = max_u64(off, round_up(r->head.length, UNDO_SECTOR));
    while (off < length && io_status(r->store, off, length - off, 0, &extent, NULL) == 0 &&
           (extent.flags & QK_EXTENT_ZERO) && extent.len >= UNDO_SECTOR)
        off += round_down(min_u64(extent.len, length - off), UNDO_SECTOR);
    return off < length ? off : UINT64_MAX;
}

/* The next window from `w->end` on that has something to look at; false: none. */
static bool window_next(const struct restore *r, struct window *w, uint64_t *grown, uint64_t length)
{
    const struct piece *p = r->pieces.ptr;
    size_t n = r->pieces.len, i;
    uint64_t from = w->end, off = UINT64_MAX;
    while (w->first < n && p[w->first].off + p[w->first].len <= from)
        w->first++;
    for (i = w->first; i < n && off > from && p[i].off < off; i++) {
        if (p[i].off + p[i].len > from)
            off = max_u64(p[i].off, from);
    }
    if (*grown < from)
        *grown = grown_from(r, from, length);
    off = min_u64(off, *grown);
    if (off == UINT64_MAX)
        return false;
    uint64_t end = *grown == off ? off + UNDO_SECTOR : off;
    for (i = w->first; i < n && p[i].off <= end && end < off + WINDOW; i++)
        end = max_u64(end, round_up(p[i].off + p[i].len, UNDO_SECTOR));
    w->off = off;
    w->end = *grown == off ? off + WINDOW : min_u64(end, off + WINDOW);
    return true;
}

static int store_fits(struct restore *r, struct qk_error *err)
{
    uint64_t length;
    int ret = io_size(r->store, &length, err);
    if (ret == 0 && (length > r->longest || length < r->shortest))
        return changed_since(r, min_u64(length, r->head.length), err);
    uint64_t grown = ret == 0 ? grown_from(r, 0, length) : UINT64_MAX;
    struct window w = {0};
    r->store_bytes = length;
    r->all_old = r->all_new = true;
    while (ret == 0 && window_next(r, &w, &grown, length))
        ret = window_fits(r, &w, err);
    if (ret == 0 && r->last.off && r->last.done && !r->all_old && !r->all_new)
        ret = changed_since(r, r->not_new, err);
    return ret;
}

/* ---- writing ---- */

/* What is as it was is not written: on a full disk there may be no room for zeroes where there is
 * nothing. */
static int piece_restore(struct restore *r, const struct piece *p, struct qk_error *err)
{
    memset(r->payload, 0, p->len);
    int ret = io_read(r->store, p->off, r->buf, p->len, err);
    if (ret == 0 && p->type == UNDO_BYTE)
        ret = io_read(r->log, p->payload_off, r->payload, p->len, err);
    if (ret < 0 || !memcmp(r->buf, r->payload, p->len))
        return ret;
    if (p->type == UNDO_ZERO)
        return io_zero_or_write(r->store, p->off, p->len, IO_ZERO_UNMAP, err);
    return io_write(r->store, p->off, r->payload, p->len, 0, err);
}

static int put_back(struct restore *r, struct undo_result *result, struct qk_error *err)
{
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < r->pieces.len; i++) {
        const struct piece *p = &r->pieces.ptr[i];
        if (p->type == UNDO_SUMS)
            continue;
        ret = piece_restore(r, p, err);
        result->sectors += div_round_up(p->len, UNDO_SECTOR);
    }
    if (ret == 0)
        ret = io_flush(r->store, err);
    uint64_t now = r->head.length;
    if (ret == 0)
        ret = io_size(r->store, &now, err);
    if (ret == 0 && now != r->head.length)
        ret = io_resize(r->store, r->head.length, QK_PREALLOC_OFF, err);
    return ret < 0 ? ret : io_flush(r->store, err);
}

/* From here to the end of the undo a mixture of sectors is what there may be. */
static int mark(struct restore *r, uint32_t type, struct qk_error *err)
{
    const struct undo_record record = {.type = type, .seq = r->last.seq};
    uint8_t bytes[UNDO_RECORD_BYTES];
    undo_record_encode(&r->head, &record, NULL, bytes);
    int ret = io_write(r->log, r->last.off, bytes, sizeof(bytes), 0, err);
    return ret < 0 ? ret : io_flush(r->log, err);
}

static int mark_begun(struct restore *r, struct qk_error *err)
{
    if (!r->last.off || !r->last.done || r->all_old)
        return 0;
    if (!r->log->writable)
        return qk_fail_at(err, -EACCES, WHERE(r->log->name, "undo file", r->last.off),
                          "the undo file cannot be written to, and has to note that an undo has "
                          "begun; nothing was changed. A copy of it will do");
    return mark(r, UNDO_BACK, err);
}

static int restore_run(struct restore *r, struct undo_result *result, struct qk_error *err)
{
    int ret = head_load(r, err);
    if (ret == 0)
        ret = records_load(r, err);
    if (ret < 0)
        return ret;
    result->length = r->head.length;
    result->never_begun = !r->begun;
    ret = store_fits(r, err);
    if (ret < 0 || !r->begun)
        return ret;
    ret = mark_begun(r, err);
    if (ret == 0)
        ret = put_back(r, result, err);
    if (ret == 0 && r->last.off && r->log->writable)
        mark(r, UNDO_DONE, NULL); /* else the next look is not as strict */
    return ret;
}

int undo_restore(struct qk_io *log, struct qk_io *store, struct undo_result *result,
                 struct qk_error *err)
{
    struct restore r = {.log = log, .store = store};
    *result = (struct undo_result){0};
    r.payload = malloc(WINDOW);
    r.buf = malloc(WINDOW);
    int ret = r.payload && r.buf ? restore_run(&r, result, err) : qk_fail_nomem(err);
    piece_vec_free(&r.pieces);
    free(r.payload);
    free(r.buf);
    return ret;
}
