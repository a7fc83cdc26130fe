/*
 * convert.c - qk_convert: the concatenation of disks copied into another one. The producer cuts
 * the guest address space along the sources' block status into items of at most one chunk of
 * data; workers read them, and write what is not zero (see zero.h).
 *
 * Relies on the public disk calls only. Promises: each target byte is written at most once; unless
 * QK_CONVERT_OUT_OF_ORDER, writes go out in ascending order; the target is flushed at the end.
 * Sources start at multiples of a sector; the gap behind one that ends inside a sector is zero.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "job/cursor.h"
#include "job/packer.h"
#include "job/pool.h"
#include "job/throttle.h"
#include "job/zero.h"

#include <string.h>

#define SECTOR 512

enum piece_kind {
    PIECE_SKIP, /* the target has the right content already */
    PIECE_ZERO, /* reads as zero in the source */
    PIECE_FILL, /* the same, and zero bytes are to be written */
    PIECE_READ,
};

struct source {
    struct cursor cursor;
    uint64_t start;        /* in the target */
    uint64_t backing_size; /* 0: no backing file */
};

struct convert {
    const struct qk_convert_options *opts;
    struct qk_disk *target;
    uint64_t target_size;
    uint64_t target_backing_size; /* meaningful with QK_CONVERT_TARGET_BACKING */
    struct source *source;
    size_t source_count;
    uint64_t end; /* where the last source ends, rounded up to a sector */
    struct sparse_rule sparse;
    struct throttle throttle;
    struct packer packer; /* no image: nothing is compressed */
    pthread_mutex_t salvage_lock;

    /* the producer's */
    uint64_t pos;
    size_t at; /* source */
};

static bool has_flag(const struct convert *c, enum qk_convert_flag flag)
{
    return c->opts->flags & flag;
}

static uint64_t source_end(const struct source *source)
{
    return source->start + source->cursor.size;
}

/* ---- what is to be done where ---- */

/* Zeroes: already there, to be written as data, or as zeroes. */
static enum piece_kind zero_kind(const struct convert *c, uint64_t off)
{
    if (has_flag(c, QK_CONVERT_TARGET_BACKING) && off >= c->target_backing_size)
        return PIECE_SKIP;
    if (!c->opts->sparse_bytes)
        return PIECE_FILL;
    return has_flag(c, QK_CONVERT_TARGET_IS_ZERO) ? PIECE_SKIP : PIECE_ZERO;
}

/* For the source's extent that holds `off`, an offset in the source. */
static enum piece_kind extent_kind(const struct convert *c, const struct source *source,
                                   uint64_t off)
{
    unsigned flags = source->cursor.flags;
    if (flags & QK_EXTENT_ZERO)
        return zero_kind(c, source->start + off);
    if (flags & QK_EXTENT_DATA || !has_flag(c, QK_CONVERT_TARGET_BACKING))
        return PIECE_READ;
    /* not decided by the source's top layer: the common backing file has it, where it reaches */
    return off < source->backing_size ? PIECE_SKIP : zero_kind(c, source->start + off);
}

/* How far the kind found at `off` holds: ends at the places where the rules above change. */
static uint64_t kind_left(const struct convert *c, const struct source *source, uint64_t off)
{
    uint64_t left = cursor_left(&source->cursor, off);
    if (has_flag(c, QK_CONVERT_TARGET_BACKING)) {
        uint64_t pos = source->start + off;
        if (pos < c->target_backing_size)
            left = min_u64(left, c->target_backing_size - pos);
        if (off < source->backing_size)
            left = min_u64(left, source->backing_size - off);
    }
    return left;
}

/* With salvage, a place whose status is lost is read in a small step: that will say more. */
static int seek_source(const struct convert *c, struct source *source, uint64_t off,
                       struct qk_error *err)
{
    int ret = cursor_seek(&source->cursor, off, err);
    if (ret >= 0 || !has_flag(c, QK_CONVERT_SALVAGE))
        return ret < 0
                   ? job_fail_at_byte(err, ret, "error while reading block status at offset", off)
                   : 0;
    source->cursor.begin = off;
    source->cursor.end = min_u64(source->cursor.size, round_down(off, SECTOR) + SECTOR);
    source->cursor.flags = QK_EXTENT_DATA | QK_EXTENT_ALLOCATED;
    return 0;
}

/* The piece that begins at pos, inside the source or in the gap behind it. */
static int piece_at(struct convert *c, struct source *source, uint64_t pos, struct job_piece *piece,
                    struct qk_error *err)
{
    if (pos >= source_end(source)) {
        uint64_t gap_end = min_u64(round_up(pos, SECTOR), c->target_size);
        *piece = (struct job_piece){pos, gap_end - pos, zero_kind(c, pos)};
        return 0;
    }
    uint64_t off = pos - source->start;
    int ret = seek_source(c, source, off, err);
    if (ret < 0)
        return ret;
    *piece = (struct job_piece){pos, kind_left(c, source, off), extent_kind(c, source, off)};
    return 0;
}

/* Compressed clusters are written whole: where less than one is of a kind, all of it is read. Parts
 * remain where a source begins or ends inside a cluster; they are written as they are. */
static void cut_at_clusters(const struct convert *c, uint64_t end, struct job_piece *piece)
{
    const uint64_t cluster = c->packer.cluster;
    if (!c->packer.image)
        return;
    uint64_t in_cluster = piece->off & (cluster - 1);
    if (in_cluster) {
        piece->len = min_u64(piece->len, cluster - in_cluster);
    } else if (piece->len >= cluster) {
        piece->len = round_down(piece->len, cluster);
    } else if (piece->len < end - piece->off) {
        piece->len = min_u64(cluster, end - piece->off);
        piece->kind = PIECE_READ;
    }
}

static bool needs_buffer(unsigned kind)
{
    return kind == PIECE_READ || kind == PIECE_FILL;
}

static int convert_take(void *job, struct job_item *item, struct qk_error *err)
{
    struct convert *c = job;
    while (c->at + 1 < c->source_count && c->pos >= c->source[c->at + 1].start)
        c->at++;
    struct source *source = &c->source[c->at];
    uint64_t end =
        c->at + 1 < c->source_count ? c->source[c->at + 1].start : min_u64(c->end, c->target_size);
    item->source = c->at;
    item->chunk = c->packer.chunk;
    while (c->pos < end) {
        struct job_piece piece;
        int ret = piece_at(c, source, c->pos, &piece, err);
        if (ret < 0)
            return ret;
        cut_at_clusters(c, end, &piece);
        uint64_t room = job_item_room(item, c->pos, needs_buffer(piece.kind));
        piece.len = min_u64(piece.len, room);
        if (!piece.len || !job_item_add(item, piece))
            break;
        if (needs_buffer(piece.kind))
            item->weight += piece.len;
        c->pos += piece.len;
    }
    return item->count > 0;
}

/* ---- reading ---- */

struct reading {
    struct qk_disk *disk;
    uint64_t off; /* in the disk */
    uint8_t *buf;
    size_t len;
};

/* Reads sector by sector what cannot be read at once, and puts zeroes where nothing is left. */
static int salvage(struct convert *c, struct reading r)
{
    LOCK_SCOPE(&c->salvage_lock);
    while (r.len) {
        size_t take = (size_t)min_u64(r.len, SECTOR - r.off % SECTOR);
        struct qk_error why = {.offset = QK_OFFSET_NONE};
        int ret = qk_disk_read(r.disk, r.off, r.buf, take, &why);
        if (ret < 0) {
            memset(r.buf, 0, take);
            if (c->opts->on_salvage)
                c->opts->on_salvage(c->opts->opaque, r.off, take, &why);
        }
        r.off += take;
        r.buf += take;
        r.len -= take;
    }
    return 0;
}

static int read_piece(struct convert *c, const struct source *source, struct job_piece piece,
                      uint8_t *buf, struct qk_error *err)
{
    struct reading r = {source->cursor.disk, piece.off - source->start, buf, (size_t)piece.len};
    if (r.len > source->cursor.size - r.off) { /* with the gap behind it */
        r.len = (size_t)(source->cursor.size - r.off);
        memset(buf + r.len, 0, (size_t)piece.len - r.len);
    }
    throttle_wait(&c->throttle, piece.len);
    int ret = qk_disk_read(r.disk, r.off, r.buf, r.len, err);
    if (ret >= 0)
        return 0;
    if (has_flag(c, QK_CONVERT_SALVAGE))
        return salvage(c, r);
    return job_fail_at_byte(err, ret, "error while reading at byte", piece.off);
}

static uint8_t *piece_buffer(const struct job_worker *worker, const struct job_piece *piece)
{
    uint64_t chunk = worker->item.chunk ? worker->item.chunk : JOB_CHUNK_BYTES;
    return worker->buffer + piece->off % chunk;
}

static struct packer_range packer_range_of(const struct convert *c, const struct job_piece *piece)
{
    return (struct packer_range){piece->off, piece->len, !c->opts->sparse_bytes};
}

static int compress_pieces(struct convert *c, struct job_worker *worker, struct qk_error *err)
{
    int ret = 0;
    for (unsigned i = 0; i < worker->item.count && ret == 0; i++) {
        const struct job_piece *piece = &worker->item.piece[i];
        if (needs_buffer(piece->kind))
            ret = packer_compress(&c->packer, worker, packer_range_of(c, piece), err);
    }
    return ret;
}

static int convert_prepare(void *job, struct job_worker *worker, struct qk_error *err)
{
    struct convert *c = job;
    for (unsigned i = 0; i < worker->item.count; i++) {
        const struct job_piece *piece = &worker->item.piece[i];
        if (piece->kind == PIECE_FILL)
            memset(piece_buffer(worker, piece), 0, (size_t)piece->len);
        if (piece->kind != PIECE_READ)
            continue;
        int ret = read_piece(c, &c->source[worker->item.source], *piece,
                             piece_buffer(worker, piece), err);
        if (ret < 0)
            return ret;
    }
    return c->packer.image ? compress_pieces(c, worker, err) : 0;
}

/* ---- writing ---- */

static int write_zeroes(struct convert *c, uint64_t off, uint64_t len, struct qk_error *err)
{
    if (has_flag(c, QK_CONVERT_TARGET_IS_ZERO))
        return 0;
    return qk_disk_write_zeroes(c->target, off, len, QK_WRITE_UNMAP, err);
}

static int write_sparse(struct convert *c, const struct job_piece *piece, const uint8_t *buf,
                        struct qk_error *err)
{
    size_t len = (size_t)piece->len;
    for (size_t at = 0; at < len;) {
        bool zero;
        uint64_t off = piece->off + at;
        size_t run = sparse_run(&c->sparse, buf + at, len - at, off, &zero);
        int ret = zero ? write_zeroes(c, off, run, err)
                       : qk_disk_write(c->target, off, buf + at, run, 0, err);
        if (ret < 0)
            return ret;
        at += run;
    }
    return 0;
}

static int write_piece(struct convert *c, const struct job_piece *piece, const uint8_t *buf,
                       struct qk_error *err)
{
    switch ((enum piece_kind)piece->kind) {
    case PIECE_SKIP:
        return 0;
    case PIECE_ZERO:
        return write_zeroes(c, piece->off, piece->len, err);
    case PIECE_READ:
        if (c->opts->sparse_bytes)
            return write_sparse(c, piece, buf, err);
        break;
    case PIECE_FILL:
        break;
    }
    return qk_disk_write(c->target, piece->off, buf, (size_t)piece->len, 0, err);
}

static int write_zeroes_of(void *opaque, uint64_t off, uint64_t len, struct qk_error *err)
{
    return write_zeroes(opaque, off, len, err);
}

static int write_packed(struct convert *c, struct job_worker *worker, const struct job_piece *piece,
                        struct qk_error *err)
{
    const struct packer_zeroes zeroes = {write_zeroes_of, c};
    return packer_write(&c->packer, worker, packer_range_of(c, piece), &zeroes, err);
}

static int convert_finish(void *job, struct job_worker *worker, struct qk_error *err)
{
    struct convert *c = job;
    for (unsigned i = 0; i < worker->item.count; i++) {
        const struct job_piece *piece = &worker->item.piece[i];
        int ret = c->packer.image && needs_buffer(piece->kind)
                      ? write_packed(c, worker, piece, err)
                      : write_piece(c, piece, piece_buffer(worker, piece), err);
        if (ret < 0)
            return job_fail_at_byte(err, ret, "error while writing at byte", piece->off);
    }
    return 0;
}

/* ---- the job ---- */

static int add_sources(struct convert *c, struct qk_disk *const *disks, struct qk_error *err)
{
    unsigned status = has_flag(c, QK_CONVERT_TARGET_BACKING) ? QK_STATUS_TOP : 0;
    for (size_t i = 0; i < c->source_count; i++) {
        struct qk_disk *backing = qk_disk_backing(disks[i]);
        c->source[i] = (struct source){
            .cursor = cursor_of(disks[i], status),
            .start = c->end,
            .backing_size = backing ? qk_disk_size(backing) : 0,
        };
        uint64_t size = c->source[i].cursor.size;
        if (!try_round_up(size, SECTOR, &size) || !try_add_u64(c->end, size, &c->end))
            return qk_fail(err, -EFBIG, "the sources are too large together");
    }
    if (c->source_count && source_end(&c->source[c->source_count - 1]) > c->target_size)
        return qk_fail(err, -EINVAL, "output file is smaller than input file");
    return 0;
}

static void set_target_backing(struct convert *c)
{
    struct qk_disk *backing = (struct qk_disk *)(uintptr_t)c->opts->target_backing;
    if (!backing)
        backing = qk_disk_backing(c->target);
    /* unknown: all zeroes have to be written */
    c->target_backing_size = backing ? qk_disk_size(backing) : UINT64_MAX;
}

/* Bytes that will be read or filled, for progress: one more walk over the metadata. */
static int count_weight(struct convert *c, uint64_t *weight, struct qk_error *err)
{
    *weight = 0;
    for (;;) {
        struct job_item item = {0};
        int ret = convert_take(c, &item, err);
        if (ret <= 0) {
            c->pos = 0;
            c->at = 0;
            return ret;
        }
        *weight += item.weight;
    }
}

static int run(struct convert *c, struct qk_error *err)
{
    static const struct job_ops ops = {convert_take, convert_prepare, convert_finish};
    struct job_plan plan = {
        .ops = &ops,
        .job = c,
        .threads = c->opts->threads,
        .buffer_bytes = c->packer.image ? packer_buffer_bytes(&c->packer) : JOB_CHUNK_BYTES,
        .ordered = !has_flag(c, QK_CONVERT_OUT_OF_ORDER),
        .progress = &c->opts->progress,
    };
    int ret = 0;
    if (plan.progress->report)
        ret = count_weight(c, &plan.total_weight, err);
    if (ret == 0)
        ret = job_run(&plan, err);
    return ret < 0 ? ret : qk_disk_flush(c->target, err);
}

static int check_options(const struct qk_convert_options *opts, struct qk_error *err)
{
    unsigned zero_and_backing = QK_CONVERT_TARGET_IS_ZERO | QK_CONVERT_TARGET_BACKING;
    if ((opts->flags & zero_and_backing) == zero_and_backing)
        return qk_fail(err, -EINVAL, "a target with a backing file does not read as zero");
    return 0;
}

int qk_convert(struct qk_disk *const *sources, size_t count, struct qk_disk *target,
               const struct qk_convert_options *opts, struct qk_error *err)
{
    static const struct qk_convert_options defaults = QK_CONVERT_OPTIONS_INIT;
    struct convert c = {
        .opts = opts ? opts : &defaults,
        .target = target,
        .target_size = qk_disk_size(target),
        .source_count = count,
        .salvage_lock = PTHREAD_MUTEX_INITIALIZER,
    };
    int ret = check_options(c.opts, err);
    if (ret == 0 && has_flag(&c, QK_CONVERT_COMPRESS))
        ret = packer_init(&c.packer, target, err);
    if (ret < 0)
        return ret;
    if (!count)
        return qk_disk_flush(target, err);
    CLEANUP_FREE struct source *list = calloc(count, sizeof(*list));
    if (!list)
        return qk_fail_nomem(err);
    c.source = list;
    c.sparse = sparse_rule_of(c.opts->sparse_bytes);
    set_target_backing(&c);
    ret = add_sources(&c, sources, err);
    if (ret < 0)
        return ret;
    throttle_init(&c.throttle, c.opts->rate_bytes_per_sec);
    ret = run(&c, err);
    throttle_free(&c.throttle);
    pthread_mutex_destroy(&c.salvage_lock);
    return ret;
}
