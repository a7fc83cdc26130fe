/*
 * undo_restore.c - the way back: reads an undo log (untrusted, INV-4), holds the store against it,
 * and only then writes. Memory: 24 bytes for each sector state that the log announces.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/vector.h"
#include "io/undo_log.h"

#include <inttypes.h>
#include <string.h>

struct piece {
    struct undo_record record;
    uint64_t payload_off; /* in the log */
};
DEFINE_VECTOR(piece_vec, struct piece)

/* One state that a sector may be in. */
struct state {
    uint64_t sector;
    uint32_t sum;
};
DEFINE_VECTOR(state_vec, struct state)

struct restore {
    struct qk_io *log, *store;
    struct undo_head head;
    uint64_t log_bytes;
    bool begun; /* changes were allowed to happen */
    uint64_t longest, shortest;
    struct piece_vec pieces;
    struct state_vec states;
    uint8_t *payload, *buf; /* UNDO_RANGE_MAX each */
};

static int log_damaged(const struct restore *r, uint64_t off, struct qk_error *err)
{
    return qk_fail_at(err, -EINVAL, WHERE(r->log->name, "undo file", off),
                      "the undo file is damaged at offset %" PRIu64 "; nothing was changed", off);
}

/* ---- reading the log ---- */

/* False: no sound record of this place there. Its payload is in r->payload. */
static bool record_at(struct restore *r, uint64_t off, struct piece *out)
{
    uint8_t bytes[UNDO_RECORD_BYTES];
    if (!range_within(off, sizeof(bytes), r->log_bytes) ||
        io_read(r->log, off, bytes, sizeof(bytes), NULL) < 0 ||
        !undo_record_decode(bytes, &out->record))
        return false;
    out->payload_off = off + sizeof(bytes);
    size_t n = (size_t)out->record.payload_bytes;
    if (!range_within(out->payload_off, n, r->log_bytes) ||
        io_read(r->log, out->payload_off, r->payload, n, NULL) < 0)
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

static int records_load(struct restore *r, struct qk_error *err)
{
    size_t ready = 0;
    uint64_t off = UNDO_HEAD_BYTES;
    struct piece piece;
    while (record_at(r, off, &piece) && piece.record.seq == r->pieces.len) {
        if (piece.record.type != UNDO_SUMS && piece.record.type != UNDO_SIZE &&
            !range_within(piece.record.off, piece.record.len, r->head.length))
            return log_damaged(r, off, err);
        if (piece_vec_append(&r->pieces, piece) < 0)
            return qk_fail_nomem(err);
        off = piece.payload_off + round_up(piece.record.payload_bytes, UNDO_ALIGN);
        if (piece.record.type == UNDO_REDY)
            ready = r->pieces.len;
    }
    if (off < r->log_bytes && ready_behind(r, off))
        return log_damaged(r, off, err);
    r->begun = ready;
    if (ready)
        r->pieces.len = ready;
    return 0;
}

static int head_load(struct restore *r, struct qk_error *err)
{
    uint8_t bytes[UNDO_HEAD_BYTES];
    int ret = io_size(r->log, &r->log_bytes, err);
    if (ret == 0)
        ret = io_read(r->log, 0, bytes, sizeof(bytes), err);
    return ret < 0 ? ret : undo_head_decode(bytes, &r->head, err);
}

/* ---- holding the store against it ---- */

static int state_add(struct restore *r, uint64_t sector, uint32_t sum, struct qk_error *err)
{
    const struct state s = {sector, sum};
    return state_vec_append(&r->states, s) < 0 ? qk_fail_nomem(err) : 0;
}

/* A store reads as zeroes behind its end, so the last sector counts as a whole one. */
static int states_of_piece(struct restore *r, const struct piece *p, struct qk_error *err)
{
    const struct undo_record *rec = &p->record;
    size_t n = (size_t)div_round_up(rec->len, UNDO_SECTOR);
    memset(r->payload, 0, n * UNDO_SECTOR);
    int ret = io_read(r->log, p->payload_off, r->payload, (size_t)rec->payload_bytes, err);
    for (size_t i = 0; ret == 0 && i < n; i++) {
        uint32_t sum = rec->type == UNDO_SUMS
                           ? load_be32(r->payload + 4 * i)
                           : crc32c(0, r->payload + i * UNDO_SECTOR, UNDO_SECTOR);
        ret = state_add(r, rec->off / UNDO_SECTOR + i, sum, err);
    }
    return ret;
}

static int state_compare(const void *a, const void *b)
{
    const struct state *x = a, *y = b;
    if (x->sector != y->sector)
        return x->sector < y->sector ? -1 : 1;
    return x->sum < y->sum ? -1 : x->sum > y->sum;
}

static int states_load(struct restore *r, struct qk_error *err)
{
    r->longest = r->shortest = r->head.length;
    for (size_t i = 0; i < r->pieces.len; i++) {
        const struct undo_record *rec = &r->pieces.ptr[i].record;
        int ret = 0;
        if (!r->begun && (rec->type == UNDO_SUMS || rec->type == UNDO_SIZE))
            continue; /* nothing of it happened */
        if (rec->type == UNDO_SIZE) {
            r->longest = max_u64(r->longest, rec->len);
            r->shortest = min_u64(r->shortest, rec->len);
        } else if (rec->type != UNDO_REDY) {
            ret = states_of_piece(r, &r->pieces.ptr[i], err);
        }
        if (ret < 0)
            return ret;
    }
    if (r->states.len)
        qsort(r->states.ptr, r->states.len, sizeof(*r->states.ptr), state_compare);
    return 0;
}

static int changed_since(const struct restore *r, uint64_t off, struct qk_error *err)
{
    return qk_fail_at(err, -EUCLEAN, WHERE(r->store->name, NULL, off),
                      "the undo file is about another image, or the image was changed since "
                      "(at offset %" PRIu64 "); nothing was changed now. Repairs are taken back in "
                      "turn, the latest first",
                      off);
}

/* The states from i on are of one sector; *next is where those of another begin. */
static bool sector_fits(const struct restore *r, size_t i, const uint8_t *bytes, size_t *next)
{
    uint64_t sector = r->states.ptr[i].sector;
    uint32_t sum = crc32c(0, bytes, UNDO_SECTOR);
    static const uint8_t zero[UNDO_SECTOR];
    /* What the store grew by was zero first. */
    bool fits = sector * UNDO_SECTOR >= r->head.length && !memcmp(bytes, zero, sizeof(zero));
    for (; i < r->states.len && r->states.ptr[i].sector == sector; i++)
        fits |= r->states.ptr[i].sum == sum;
    *next = i;
    return fits;
}

static int sectors_fit(struct restore *r, struct qk_error *err)
{
    uint64_t from = 0, have = 0; /* what r->buf holds */
    for (size_t i = 0; i < r->states.len;) {
        uint64_t off = r->states.ptr[i].sector * UNDO_SECTOR;
        if (!have || off + UNDO_SECTOR > from + have) {
            /* Only as far as the next sectors lie close together. */
            from = off;
            have = UNDO_SECTOR;
            for (size_t k = i + 1; k < r->states.len && have < UNDO_RANGE_MAX; k++) {
                uint64_t at = r->states.ptr[k].sector * UNDO_SECTOR;
                if (at > from + have)
                    break;
                have = at + UNDO_SECTOR - from;
            }
            int ret = io_read(r->store, from, r->buf, (size_t)have, err);
            if (ret < 0)
                return ret;
        }
        if (!sector_fits(r, i, r->buf + (off - from), &i))
            return changed_since(r, off, err);
    }
    return 0;
}

static int state_find(const void *key, const void *item)
{
    const struct state *k = key, *s = item;
    return k->sector < s->sector ? -1 : k->sector > s->sector;
}

/* What the store grew by holds what was announced, and else nothing. */
static int growth_fits(struct restore *r, uint64_t length, struct qk_error *err)
{
    static const uint8_t zero[UNDO_SECTOR];
    for (uint64_t off = round_up(r->head.length, UNDO_SECTOR); off < length; off += UNDO_SECTOR) {
        const struct state key = {.sector = off / UNDO_SECTOR};
        if (r->states.len && bsearch(&key, r->states.ptr, r->states.len, sizeof(key), state_find))
            continue;
        int ret = io_read(r->store, off, r->buf, UNDO_SECTOR, err);
        if (ret < 0)
            return ret;
        if (memcmp(r->buf, zero, sizeof(zero)) != 0)
            return changed_since(r, off, err);
    }
    return 0;
}

static int store_fits(struct restore *r, struct qk_error *err)
{
    uint64_t length;
    int ret = io_size(r->store, &length, err);
    if (ret == 0 && (length > r->longest || length < r->shortest))
        return changed_since(r, min_u64(length, r->head.length), err);
    if (ret == 0)
        ret = sectors_fit(r, err);
    return ret < 0 ? ret : growth_fits(r, length, err);
}

/* ---- writing ---- */

static int piece_restore(struct restore *r, const struct piece *p, struct qk_error *err)
{
    const struct undo_record *rec = &p->record;
    size_t n = (size_t)rec->len;
    if (rec->type == UNDO_ZERO) {
        memset(r->payload, 0, n);
        return io_write(r->store, rec->off, r->payload, n, 0, err);
    }
    int ret = io_read(r->log, p->payload_off, r->payload, n, err);
    return ret < 0 ? ret : io_write(r->store, rec->off, r->payload, n, 0, err);
}

static int put_back(struct restore *r, struct undo_result *result, struct qk_error *err)
{
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < r->pieces.len; i++) {
        const struct undo_record *rec = &r->pieces.ptr[i].record;
        if (rec->type != UNDO_BYTE && rec->type != UNDO_ZERO)
            continue;
        ret = piece_restore(r, &r->pieces.ptr[i], err);
        result->sectors += div_round_up(rec->len, UNDO_SECTOR);
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

static int restore_run(struct restore *r, struct undo_result *result, struct qk_error *err)
{
    int ret = head_load(r, err);
    if (ret == 0)
        ret = records_load(r, err);
    if (ret == 0)
        ret = states_load(r, err);
    if (ret < 0)
        return ret;
    result->length = r->head.length;
    result->never_begun = !r->begun;
    ret = store_fits(r, err);
    return ret < 0 || !r->begun ? ret : put_back(r, result, err);
}

int undo_restore(struct qk_io *log, struct qk_io *store, struct undo_result *result,
                 struct qk_error *err)
{
    struct restore r = {.log = log, .store = store};
    *result = (struct undo_result){0};
    r.payload = malloc(UNDO_RANGE_MAX);
    r.buf = malloc(UNDO_RANGE_MAX + UNDO_SECTOR);
    int ret = r.payload && r.buf ? restore_run(&r, result, err) : qk_fail_nomem(err);
    piece_vec_free(&r.pieces);
    state_vec_free(&r.states);
    free(r.payload);
    free(r.buf);
    return ret;
}
