/*
 * compare.c - qk_compare: do guests see the same bytes? The producer walks both disks' block
 * status and names only the parts that have to be read; workers read and compare them. The items
 * finish in order, so that the difference with the lowest offset is the one that is reported.
 *
 * Where one disk is longer, the other is taken to go on with zeroes.
 */
#include "base/checked.h"
#include "job/cursor.h"
#include "job/pool.h"
#include "job/zero.h"

#include <string.h>

#define SECTOR        512
#define STATUS_FAILED "Sector allocation test failed for"

enum piece_kind {
    PIECE_SAME,   /* known to be equal */
    PIECE_BOTH,   /* to be compared */
    PIECE_ONLY_A, /* the other one reads as zero */
    PIECE_ONLY_B,
    PIECE_STATUS, /* strict: the block status differs */
};

struct compare {
    struct cursor a, b;
    bool strict;
    uint64_t end; /* of the longer one */
    uint64_t pos; /* the producer's */
    struct qk_compare_result *result;
};

static const char *name_of(struct qk_disk *disk)
{
    struct qk_info info = QK_INFO_INIT;
    return qk_disk_info(disk, &info, NULL) == 0 && info.name ? info.name : "?";
}

/* Behind its end a disk is zero that nobody decided. */
static int seek(struct cursor *cursor, uint64_t pos, uint64_t *left, struct qk_error *err)
{
    if (pos >= cursor->size) {
        cursor->flags = QK_EXTENT_ZERO;
        return 0;
    }
    int ret = cursor_seek(cursor, pos, err);
    if (ret < 0) {
        qk_error_prefix(err, STATUS_FAILED " %s", name_of(cursor->disk));
        return ret;
    }
    *left = min_u64(*left, cursor_left(cursor, pos));
    return 0;
}

static bool is_zero(const struct cursor *cursor)
{
    return cursor->flags & QK_EXTENT_ZERO || !(cursor->flags & QK_EXTENT_ALLOCATED);
}

static enum piece_kind kind_of(const struct compare *c)
{
    if (c->strict && (c->a.flags ^ c->b.flags) & CURSOR_MEANING)
        return PIECE_STATUS;
    if (is_zero(&c->a))
        return is_zero(&c->b) ? PIECE_SAME : PIECE_ONLY_B;
    return is_zero(&c->b) ? PIECE_ONLY_A : PIECE_BOTH;
}

static int compare_take(void *job, struct job_item *item, struct qk_error *err)
{
    struct compare *c = job;
    while (c->pos < c->end) {
        struct job_piece piece = {.off = c->pos, .len = c->end - c->pos};
        int ret = seek(&c->a, c->pos, &piece.len, err);
        if (ret == 0)
            ret = seek(&c->b, c->pos, &piece.len, err);
        if (ret < 0)
            return ret;
        piece.kind = kind_of(c);
        uint64_t room = job_item_room(item, c->pos, piece.kind != PIECE_SAME);
        piece.len = min_u64(piece.len, room);
        if (!piece.len || !job_item_add(item, piece))
            break;
        item->weight += piece.len;
        c->pos += piece.len;
    }
    return item->count > 0;
}

static int read_side(struct qk_disk *disk, const struct job_piece *piece, uint8_t *buf,
                     struct qk_error *err)
{
    int ret = qk_disk_read(disk, piece->off, buf, (size_t)piece->len, err);
    if (ret < 0)
        qk_error_prefix(err, "Error while reading offset %llu of %s",
                        (unsigned long long)piece->off, name_of(disk));
    return ret;
}

static int read_piece(const struct compare *c, const struct job_piece *piece, uint8_t *a,
                      uint8_t *b, struct qk_error *err)
{
    int ret = 0;
    if (piece->kind == PIECE_BOTH || piece->kind == PIECE_ONLY_A)
        ret = read_side(c->a.disk, piece, a, err);
    if (ret >= 0 && (piece->kind == PIECE_BOTH || piece->kind == PIECE_ONLY_B))
        ret = read_side(c->b.disk, piece, b, err);
    return ret < 0 ? ret : 0;
}

static size_t first_nonzero(const uint8_t *bytes, size_t len)
{
    size_t at = 0;
    while (at < len && bytes_are_zero(bytes + at, (size_t)min_u64(SECTOR, len - at)))
        at += SECTOR;
    while (at < len && !bytes[at])
        at++;
    return (size_t)min_u64(at, len);
}

/* Offset in the piece of the first byte that differs; its length when there is none. */
static size_t difference(const struct job_piece *piece, const uint8_t *a, const uint8_t *b)
{
    size_t len = (size_t)piece->len;
    if (piece->kind == PIECE_BOTH)
        return bytes_first_difference(a, b, len);
    return first_nonzero(piece->kind == PIECE_ONLY_A ? a : b, len);
}

/* Leaves in the item only a piece that says where the first difference is, if there is one. */
static void keep_difference(struct job_item *item, unsigned index, uint64_t off, unsigned kind)
{
    item->count = index + 1;
    item->piece[index] = (struct job_piece){off, 0, kind};
}

static int compare_prepare(void *job, struct job_worker *worker, struct qk_error *err)
{
    const struct compare *c = job;
    struct job_item *item = &worker->item;
    for (unsigned i = 0; i < item->count; i++) {
        const struct job_piece *piece = &item->piece[i];
        if (piece->kind == PIECE_SAME)
            continue;
        if (piece->kind == PIECE_STATUS) {
            keep_difference(item, i, piece->off, piece->kind);
            return 0;
        }
        uint8_t *a = worker->buffer, *b = a + JOB_CHUNK_BYTES;
        int ret = read_piece(c, piece, a, b, err);
        if (ret < 0)
            return ret;
        size_t at = difference(piece, a, b);
        if (at < piece->len) {
            /* by sectors, as qemu-img counts them */
            uint64_t sector = round_down(piece->off + at, SECTOR);
            keep_difference(item, i, max_u64(sector, piece->off), piece->kind);
            return 0;
        }
    }
    return 0;
}

static int compare_finish(void *job, struct job_worker *worker, struct qk_error *err)
{
    (void)err;
    struct compare *c = job;
    const struct job_piece *last = &worker->item.piece[worker->item.count - 1];
    if (last->len)
        return 0;
    c->result->equal = false;
    c->result->why = last->kind == PIECE_STATUS ? QK_COMPARE_ALLOCATION : QK_COMPARE_CONTENT;
    c->result->off = last->off;
    return JOB_STOP;
}

/* Says which step failed, for callers that care. */
static void note_failure(struct qk_compare_result *result, const struct qk_error *why)
{
    bool status = strncmp(why->text, STATUS_FAILED, strlen(STATUS_FAILED)) == 0;
    result->why = status ? QK_COMPARE_NO_STATUS : QK_COMPARE_NO_READ;
}

static int run(struct compare *c, const struct qk_progress *progress, struct qk_error *err)
{
    static const struct job_ops ops = {compare_take, compare_prepare, compare_finish};
    const struct job_plan plan = {
        .ops = &ops,
        .job = c,
        .buffer_bytes = 2 * JOB_CHUNK_BYTES,
        .ordered = true,
        .total_weight = c->end,
        .progress = progress,
    };
    struct qk_error why = {.offset = QK_OFFSET_NONE};
    int ret = job_run(&plan, &why);
    if (ret < 0) {
        note_failure(c->result, &why);
        if (err)
            *err = why;
    }
    return ret;
}

int qk_compare(struct qk_disk *a, struct qk_disk *b, bool strict,
               const struct qk_progress *progress, struct qk_compare_result *result,
               struct qk_error *err)
{
    struct compare c = {
        .a = cursor_of(a, 0),
        .b = cursor_of(b, 0),
        .strict = strict,
        .result = result,
    };
    c.end = max_u64(c.a.size, c.b.size);
    result->equal = true;
    result->why = QK_COMPARE_SAME;
    result->off = QK_OFFSET_NONE;
    result->size_differs = c.a.size != c.b.size;
    if (strict && result->size_differs) {
        result->equal = false;
        result->why = QK_COMPARE_SIZE;
        result->off = min_u64(c.a.size, c.b.size);
        return 0;
    }
    return run(&c, progress, err);
}
