/*
 * rebase.c - qk_rebase: another backing file for an image, with the same content for the guest.
 * Where the image decides nothing, old and new backing are compared, and what differs goes into the
 * image in whole units (clusters, or subclusters), so that nothing has to be copied around it.
 *
 * The order is what makes it safe: (1) copies, over which nothing changes for the guest, since the
 * old backing file has the same, (2) a flush, (3) the header's switch in one sector. A crash before
 * (3) leaves the old chain, after it the new one.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "job/pool.h"
#include "job/zero.h"
#include "node/driver.h"
#include "node/name.h"
#include "node/qcow2_options.h"

#include <string.h>

/* A piece is compared when it has a kind other than 0; what is not read is zero. */
enum piece_kind { READ_OLD = 1, READ_NEW = 2 };

struct rebase {
    struct node *top;
    struct node *old, *new; /* NULL: reads as zero */
    bool shortcut;          /* new is a layer of old's chain */
    uint64_t end, pos;
    uint64_t unit, cluster; /* what is copied at least; what is compressed */
    bool compress;
};

static struct qk_rebase_options options_of(const struct qk_rebase_options *opts)
{
    struct qk_rebase_options copy = QK_REBASE_OPTIONS_INIT;
    if (opts)
        memcpy(&copy, opts, (size_t)min_u64(opts->struct_size, sizeof(copy)));
    if (copy.backing_file && !*copy.backing_file)
        copy.backing_file = NULL;
    return copy;
}

/* ---- what has to be compared ---- */

/* Whether a backing file has data at off, and up to where that holds. */
static int has_data(struct node *node, uint64_t off, uint64_t *len, bool *data,
                    struct qk_error *err)
{
    uint64_t size = node ? node_size(node) : 0;
    *data = false;
    if (off >= size)
        return 0;
    struct qk_extent extent;
    int ret = node_status(node, off, min_u64(*len, size - off), 0, &extent, err);
    if (ret < 0)
        return ret;
    *len = extent.len;
    *data = !(extent.flags & QK_EXTENT_ZERO) && extent.flags & QK_EXTENT_ALLOCATED;
    return 0;
}

/* Above a layer of the same chain nothing differs but what the layers between decide. */
static int changed_above(const struct rebase *r, uint64_t off, uint64_t *len, bool *changed,
                         struct qk_error *err)
{
    struct qk_extent extent;
    uint64_t size = node_size(r->old);
    *changed = r->old != r->new;
    if (!*changed || off >= size)
        return 0;
    int ret = node_status_above(r->old, r->new, off, min_u64(*len, size - off), &extent, err);
    if (ret < 0)
        return ret;
    *len = extent.len;
    *changed = extent.flags != 0;
    return 0;
}

/* The kind of the piece at off; *len gets how far it holds. */
static int piece_at(const struct rebase *r, uint64_t off, uint64_t *len, unsigned *kind,
                    struct qk_error *err)
{
    struct qk_extent extent;
    *kind = 0;
    int ret = node_own_status(r->top, off, *len, 0, &extent, err);
    if (ret < 0)
        return ret;
    *len = min_u64(*len, extent.len);
    if (extent.flags & (QK_EXTENT_ALLOCATED | QK_EXTENT_ZERO | QK_EXTENT_DATA))
        return 0;
    bool changed = true, old = false, new = false;
    if (r->shortcut)
        ret = changed_above(r, off, len, &changed, err);
    if (ret == 0 && changed)
        ret = has_data(r->old, off, len, &old, err);
    if (ret == 0 && changed)
        ret = has_data(r->new, off, len, &new, err);
    *kind = (old ? READ_OLD : 0u) | (new ? READ_NEW : 0u);
    /* what the image decides changes between units only; the rest may change anywhere */
    if (*len >= r->unit) {
        *len = off + *len == r->end ? *len : round_down(*len, r->unit);
    } else if (*len < r->end - off) {
        *len = min_u64(r->unit, r->end - off);
        *kind = READ_OLD | READ_NEW;
    }
    return ret;
}

static int rebase_take(void *job, struct job_item *item, struct qk_error *err)
{
    struct rebase *r = job;
    while (r->pos < r->end) {
        struct job_piece piece = {.off = r->pos, .len = r->end - r->pos};
        int ret = piece_at(r, r->pos, &piece.len, &piece.kind, err);
        if (ret < 0)
            return qk_error_prefix(err, "error while reading image metadata");
        piece.len = min_u64(piece.len, job_item_room(item, r->pos, piece.kind != 0));
        if (!piece.len || !job_item_add(item, piece))
            break;
        if (piece.kind)
            item->weight += piece.len;
        r->pos += piece.len;
    }
    return item->count > 0;
}

/* ---- reading ---- */

static int read_side(struct node *node, const struct job_piece *piece, bool wanted, uint8_t *buf,
                     struct qk_error *err)
{
    uint64_t size = node && wanted ? node_size(node) : 0;
    size_t len = (size_t)piece->len;
    size_t inside = piece->off < size ? (size_t)min_u64(len, size - piece->off) : 0;
    memset(buf + inside, 0, len - inside);
    return inside ? io_read(&node->io, piece->off, buf, inside, err) : 0;
}

static uint8_t *old_buffer(const struct job_worker *worker, const struct job_piece *piece)
{
    return worker->buffer + piece->off % JOB_CHUNK_BYTES;
}

static int rebase_prepare(void *job, struct job_worker *worker, struct qk_error *err)
{
    const struct rebase *r = job;
    for (unsigned i = 0; i < worker->item.count; i++) {
        const struct job_piece *piece = &worker->item.piece[i];
        if (!piece->kind)
            continue;
        uint8_t *buf = old_buffer(worker, piece);
        int ret = read_side(r->old, piece, piece->kind & READ_OLD, buf, err);
        if (ret < 0)
            return qk_error_prefix(err, "error while reading from old backing file");
        ret = read_side(r->new, piece, piece->kind & READ_NEW, buf + JOB_CHUNK_BYTES, err);
        if (ret < 0)
            return qk_error_prefix(err, "error while reading from new backing file");
    }
    return 0;
}

/* ---- writing ---- */

enum run_kind { RUN_SAME, RUN_ZERO, RUN_DATA };

static enum run_kind unit_kind(const uint8_t *old, size_t len)
{
    if (!memcmp(old, old + JOB_CHUNK_BYTES, len))
        return RUN_SAME;
    return bytes_are_zero(old, len) ? RUN_ZERO : RUN_DATA;
}

/* Length of the units from buf on that are of one kind. */
static size_t run_of_units(const struct rebase *r, const uint8_t *buf, size_t len,
                           enum run_kind *kind)
{
    size_t at = (size_t)min_u64(r->unit, len);
    *kind = unit_kind(buf, at);
    while (at < len) {
        size_t n = (size_t)min_u64(r->unit, len - at);
        if (unit_kind(buf + at, n) != *kind)
            break;
        at += n;
    }
    return at;
}

static bool is_whole_cluster(const struct rebase *r, uint64_t off, size_t left)
{
    return is_aligned(off, r->cluster) && left >= min_u64(r->cluster, r->end - off);
}

/* Whole clusters are compressed when that is asked for; parts of one are written as they are. */
static int write_compressed(struct rebase *r, uint64_t off, const uint8_t *buf, size_t len,
                            struct qk_error *err)
{
    int ret = 0;
    for (size_t at = 0; at < len && ret == 0;) {
        uint64_t pos = off + at, to_end = r->cluster - (pos & (r->cluster - 1));
        size_t n = (size_t)min_u64(to_end, len - at);
        unsigned flags = is_whole_cluster(r, pos, len - at) ? QK_WRITE_COMPRESSED : 0;
        ret = qk_disk_write(&r->top->handle, pos, buf + at, n, flags, err);
        at += n;
    }
    return ret;
}

static int write_run(struct rebase *r, enum run_kind kind, uint64_t off, struct iovec run,
                     struct qk_error *err)
{
    switch (kind) {
    case RUN_SAME:
        return 0;
    case RUN_ZERO:
        return qk_disk_write_zeroes(&r->top->handle, off, run.iov_len, 0, err);
    case RUN_DATA:
        break;
    }
    if (r->compress)
        return write_compressed(r, off, run.iov_base, run.iov_len, err);
    return qk_disk_write(&r->top->handle, off, run.iov_base, run.iov_len, 0, err);
}

static int rebase_finish(void *job, struct job_worker *worker, struct qk_error *err)
{
    struct rebase *r = job;
    for (unsigned i = 0; i < worker->item.count; i++) {
        const struct job_piece *piece = &worker->item.piece[i];
        uint8_t *buf = old_buffer(worker, piece);
        for (size_t at = 0; piece->kind && at < piece->len;) {
            enum run_kind kind;
            size_t n = run_of_units(r, buf + at, (size_t)piece->len - at, &kind);
            int ret = write_run(r, kind, piece->off + at, (struct iovec){buf + at, n}, err);
            if (ret < 0)
                return qk_error_prefix(err, "Error while writing to COW image");
            at += n;
        }
    }
    return 0;
}

/* Bytes that will be compared, for progress: one more walk over the metadata. */
static int count_weight(struct rebase *r, uint64_t *weight, struct qk_error *err)
{
    int ret;
    *weight = 0;
    do {
        struct job_item item = {0};
        ret = rebase_take(r, &item, err);
        *weight += item.weight;
    } while (ret > 0);
    r->pos = 0;
    return ret;
}

static int copy_differences(struct rebase *r, const struct qk_rebase_options *opts,
                            struct qk_error *err)
{
    static const struct job_ops ops = {rebase_take, rebase_prepare, rebase_finish};
    struct job_plan plan = {
        .ops = &ops,
        .job = r,
        .threads = opts->threads,
        .buffer_bytes = 2 * (size_t)JOB_CHUNK_BYTES,
        .progress = &opts->progress,
    };
    const struct geometry *g = image_geometry(r->top->image);
    r->end = image_size(r->top->image);
    r->cluster = g->cluster_bytes;
    r->unit = UINT64_C(1) << g->subcluster_bits;
    r->compress = opts->flags & QK_REBASE_COMPRESS;
    int ret = opts->progress.report ? count_weight(r, &plan.total_weight, err) : 0;
    if (ret == 0)
        ret = job_run(&plan, err);
    return ret < 0 ? ret : io_flush(&r->top->io, err);
}

/* ---- the new backing file ---- */

static int open_new(struct rebase *r, const struct qk_rebase_options *opts, const char *full,
                    struct qk_error *err)
{
    struct chain_link link = {.name = r->top->base_name ? r->top->base_name : r->top->io.name,
                              .depth = 1};
    chain_identify(&link);
    struct open_request req = {
        .name = full,
        .format = opts->backing_format,
        .flags = opts->open_flags & ~(unsigned)(QK_OPEN_RDWR | QK_OPEN_NO_BACKING),
        .role = ROLE_BACKING,
        .policy = opts->policy,
        .above = &link,
    };
    int ret = chain_refuse_loop(&link, name_strip_file(full), err);
    if (ret == 0)
        ret = node_open(&req, &r->new, err);
    return ret < 0
               ? qk_error_prefix(err, "Could not open new backing file '%s'", opts->backing_file)
               : 0;
}

static int find_new(struct rebase *r, const struct qk_rebase_options *opts, struct qk_error *err)
{
    CLEANUP_FREE char *full = NULL;
    if (!opts->backing_file)
        return 0;
    int ret = chain_backing_name(r->top, opts->backing_file, &full, err);
    if (ret < 0)
        return qk_error_prefix(err, "Could not resolve backing filename");
    struct node *layer = chain_find_layer(r->top, full);
    /* as another format the same file has another content */
    r->shortcut = layer && !strcmp(layer->driver->name, opts->backing_format);
    if (!r->shortcut)
        return open_new(r, opts, full, err);
    r->new = layer;
    return 0;
}

/* ---- the steps ---- */

static const char *shown_backing(const struct qk_rebase_options *opts)
{
    return opts->backing_file ? opts->backing_file : "";
}

static int check_request(const struct rebase *r, const struct qk_rebase_options *opts,
                         struct qk_error *err)
{
    if (!r->top->io.writable)
        return qk_fail(err, -EROFS, "opened read-only");
    if (opts->backing_format && !driver_by_name(opts->backing_format))
        return qk_fail(err, -EINVAL, "Invalid format name: '%s'", opts->backing_format);
    if (!r->top->image)
        return qk_fail(err, -ENOTSUP,
                       "Could not change the backing file to '%s': Operation not supported",
                       shown_backing(opts));
    if (opts->backing_file && !opts->backing_format)
        return qk_fail(
            err, -EINVAL,
            "Could not change the backing file to '%s': backing format must be specified",
            opts->backing_file);
    return 0;
}

static int change_header(struct rebase *r, const struct qk_rebase_options *opts,
                         struct qk_error *err)
{
    int ret = image_change_backing(r->top->image, opts->backing_file, opts->backing_format, err);
    if (ret == -ENOSPC)
        return qk_fail(
            err, ret, "Could not change the backing file to '%s': No space left in the file header",
            shown_backing(opts));
    if (ret < 0)
        return qk_error_prefix(err, "Could not change the backing file to '%s'",
                               shown_backing(opts));
    free(TAKE(r->top->backing_full));
    return 0;
}

static int change_header_only(struct rebase *r, const struct qk_rebase_options *opts,
                              struct qk_error *err)
{
    CLEANUP_FREE char *full = NULL;
    int ret = 0;
    if (opts->backing_file && chain_backing_name(r->top, opts->backing_file, &full, NULL) == 0)
        ret = chain_refuse_below(r->top, full, opts->backing_format, err);
    return ret < 0 ? ret : change_header(r, opts, err);
}

int qk_rebase(struct qk_disk *disk, const struct qk_rebase_options *options, struct qk_error *err)
{
    const struct qk_rebase_options opts = options_of(options);
    struct rebase r = {.top = disk->node, .old = disk->node->backing};
    int ret = check_request(&r, &opts, err);
    if (ret < 0)
        return ret;
    if (opts.flags & QK_REBASE_HEADER_ONLY)
        return change_header_only(&r, &opts, err);
    ret = find_new(&r, &opts, err);
    /* unallocated clusters are no zeroes to rely on any more: those that are written must stay */
    if (ret == 0 && !r.old && !r.top->blank)
        ret = qcow2_stand_in(r.top, err);
    if (ret == 0)
        ret = copy_differences(&r, &opts, err);
    if (ret == 0)
        ret = change_header(&r, &opts, err);
    if (ret < 0) {
        if (!r.shortcut)
            node_close(r.new, NULL);
        return ret;
    }
    return node_replace_backing(r.top, r.new, err);
}
