/*
 * commit.c - qk_commit: what the layers above `base` decide goes into `base`, so that both show a
 * guest the same. Relies on the block graph for who decides what, on the pool for the threads.
 *
 * The order is what makes it safe: (1) base becomes writable and as large as the top, (2) data goes
 * into base, (3) base is flushed, (4) only then the top gives up its clusters. Until (4) the top
 * has all its data and hides what was copied, so that an error or a crash at any point is followed
 * by another commit; from (4) on a cluster that the top has lost is stable below it.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "job/pool.h"
#include "job/throttle.h"
#include "job/zero.h"
#include "node/node.h"

#include <string.h>

enum piece_kind {
    PIECE_SKIP, /* base decides already */
    PIECE_ZERO,
    PIECE_COPY,
};

struct commit {
    struct node *top, *base;
    uint64_t end; /* of the top */
    uint64_t pos; /* the producer's */
    struct sparse_rule sparse;
    struct throttle throttle;
};

static struct qk_commit_options options_of(const struct qk_commit_options *opts)
{
    struct qk_commit_options copy = QK_COMMIT_OPTIONS_INIT;
    if (opts)
        memcpy(&copy, opts, (size_t)min_u64(opts->struct_size, sizeof(copy)));
    return copy;
}

/* ---- copying ---- */

static enum piece_kind kind_of(const struct qk_extent *extent)
{
    if (!extent->flags)
        return PIECE_SKIP;
    return extent->flags & QK_EXTENT_ZERO ? PIECE_ZERO : PIECE_COPY;
}

static int commit_take(void *job, struct job_item *item, struct qk_error *err)
{
    struct commit *c = job;
    while (c->pos < c->end) {
        struct qk_extent extent;
        int ret = node_status_above(c->top, c->base, c->pos, c->end - c->pos, &extent, err);
        if (ret < 0)
            return job_fail_at_byte(err, ret, "error while reading block status at offset", c->pos);
        struct job_piece piece = {c->pos, extent.len, kind_of(&extent)};
        bool copied = piece.kind == PIECE_COPY;
        piece.len = min_u64(piece.len, job_item_room(item, c->pos, copied));
        if (!piece.len || !job_item_add(item, piece))
            break;
        if (piece.kind != PIECE_SKIP)
            item->weight += piece.len;
        c->pos += piece.len;
    }
    return item->count > 0;
}

static uint8_t *piece_buffer(const struct job_worker *worker, const struct job_piece *piece)
{
    return worker->buffer + piece->off % JOB_CHUNK_BYTES;
}

static int commit_prepare(void *job, struct job_worker *worker, struct qk_error *err)
{
    struct commit *c = job;
    for (unsigned i = 0; i < worker->item.count; i++) {
        const struct job_piece *piece = &worker->item.piece[i];
        if (piece->kind != PIECE_COPY)
            continue;
        throttle_wait(&c->throttle, piece->len);
        int ret =
            io_read(&c->top->io, piece->off, piece_buffer(worker, piece), (size_t)piece->len, err);
        if (ret < 0)
            return job_fail_at_byte(err, ret, "error while reading at byte", piece->off);
    }
    return 0;
}

static int write_zeroes(struct commit *c, uint64_t off, uint64_t len, struct qk_error *err)
{
    return qk_disk_write_zeroes(&c->base->handle, off, len, QK_WRITE_UNMAP, err);
}

static int write_data(struct commit *c, const struct job_piece *piece, const uint8_t *buf,
                      struct qk_error *err)
{
    size_t len = (size_t)piece->len;
    int ret = 0;
    for (size_t at = 0; at < len && ret == 0;) {
        bool zero;
        uint64_t off = piece->off + at;
        size_t run = sparse_run(&c->sparse, buf + at, len - at, off, &zero);
        ret = zero ? write_zeroes(c, off, run, err)
                   : qk_disk_write(&c->base->handle, off, buf + at, run, 0, err);
        at += run;
    }
    return ret;
}

static int commit_finish(void *job, struct job_worker *worker, struct qk_error *err)
{
    struct commit *c = job;
    for (unsigned i = 0; i < worker->item.count; i++) {
        const struct job_piece *piece = &worker->item.piece[i];
        int ret = 0;
        if (piece->kind == PIECE_ZERO)
            ret = write_zeroes(c, piece->off, piece->len, err);
        else if (piece->kind == PIECE_COPY)
            ret = write_data(c, piece, piece_buffer(worker, piece), err);
        if (ret < 0)
            return job_fail_at_byte(err, ret, "error while writing at byte", piece->off);
    }
    return 0;
}

/* Bytes that will be copied or zeroed, for progress: one more walk over the metadata. */
static int count_weight(struct commit *c, uint64_t *weight, struct qk_error *err)
{
    int ret;
    *weight = 0;
    do {
        struct job_item item = {0};
        ret = commit_take(c, &item, err);
        *weight += item.weight;
    } while (ret > 0);
    c->pos = 0;
    return ret;
}

static int copy_up(struct commit *c, const struct qk_commit_options *opts, struct qk_error *err)
{
    static const struct job_ops ops = {commit_take, commit_prepare, commit_finish};
    struct job_plan plan = {
        .ops = &ops,
        .job = c,
        .threads = opts->threads,
        .buffer_bytes = JOB_CHUNK_BYTES,
        .progress = &opts->progress,
    };
    uint64_t cluster = c->base->image ? image_geometry(c->base->image)->cluster_bytes : 0;
    c->sparse = sparse_rule_of(max_u64(cluster, 4096));
    throttle_init(&c->throttle, opts->rate_bytes_per_sec);
    int ret = opts->progress.report ? count_weight(c, &plan.total_weight, err) : 0;
    if (ret == 0)
        ret = job_run(&plan, err);
    throttle_free(&c->throttle);
    return ret;
}

/* ---- the steps ---- */

static int find_base(struct commit *c, const char *name, struct qk_error *err)
{
    if (!c->top->backing)
        return qk_fail(err, -EINVAL, "Image does not have a backing file");
    c->base = name ? chain_find_layer(c->top, name) : c->top->backing;
    if (!c->base)
        return qk_fail(err, -ENOENT, "Did not find '%s' in the backing chain of '%s'", name,
                       c->top->shown_name);
    return 0;
}

static int grow_base(struct commit *c, struct qk_error *err)
{
    if (node_size(c->base) >= c->end)
        return 0;
    int ret = qk_disk_resize(&c->base->handle, c->end, QK_PREALLOC_OFF, 0, err);
    /* resizing a raw file takes its locks as a disk; it is a backing file */
    if (ret == 0 && !c->base->image)
        ret = node_lock_also(c->base, ROLE_BACKING, IO_PERM_RESIZE, err);
    return ret;
}

static int commit_into_base(struct commit *c, const struct qk_commit_options *opts,
                            struct qk_error *err)
{
    enum node_discard discard = c->top->discard == DISCARD_UNMAP ? DISCARD_UNMAP : c->base->discard;
    int ret = node_make_writable(c->base, discard, err);
    if (ret == 0)
        ret = grow_base(c, err);
    if (ret == 0)
        ret = copy_up(c, opts, err);
    if (ret == 0)
        ret = io_flush(&c->base->io, err);
    return ret < 0 ? qk_error_prefix(err, "Block job failed") : 0;
}

int qk_commit(struct qk_disk *disk, const struct qk_commit_options *options, struct qk_error *err)
{
    const struct qk_commit_options opts = options_of(options);
    struct commit c = {.top = disk->node, .end = node_size(disk->node)};
    bool empty = !(opts.flags & QK_COMMIT_KEEP);
    if (empty && !c.top->io.writable)
        return qk_fail(err, -EROFS, "To empty the image it has to be opened for writing");
    int ret = find_base(&c, opts.base, err);
    if (ret == 0)
        ret = commit_into_base(&c, &opts, err);
    /* Over another layer, what the top has must go on hiding that layer's. */
    if (ret == 0 && empty && c.base == c.top->backing)
        ret = image_empty(c.top->image, err);
    return ret;
}
