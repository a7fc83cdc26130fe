/*
 * write.c - writing guest data: map, plan, transfer, link (ARCHITECTURE, "How data flows"). A
 * write into clusters that are ours alone goes straight to them under a shared hold; anything that
 * changes a mapping takes its clusters exclusively, allocates, writes data and copy-on-write
 * edges into the new clusters, and links them in the cached L2 slice. Nothing on disk refers to a
 * new cluster before the writeback that makes its data stable (INV-1).
 */
#include "image/image_int.h"

/* One run of guest clusters that gets new host clusters. */
struct plan {
    guest_off_t off; /* first byte that the request writes */
    uint64_t len;    /* bytes that the request writes */
    const struct iovec *iov;
    int iovcnt;
    size_t skip; /* bytes of the iovec before the run */
    struct cluster_run run;
};

static uint64_t first_cluster(const struct image *img, const struct plan *p)
{
    return image_cluster_of(img, p->off.v);
}

static uint64_t end_cluster(const struct image *img, const struct plan *p)
{
    return image_cluster_of(img, p->off.v + p->len - 1) + 1;
}

/* A write may go to the cluster as it is. */
static bool in_place(const struct map_extent *ext)
{
    return ext->kind == CLUSTER_NORMAL && ext->copied;
}

/* ---- transfer ---- */

/* A copy-on-write edge: guest bytes before or after the written ones, in the same cluster. */
struct edge {
    guest_off_t off;
    size_t len;   /* to the cluster's border */
    size_t valid; /* bytes of it inside the disk; what is beyond becomes zero */
    bool zero;    /* reads as zero */
    uint8_t *buf;
};

static int edge_is_zero(struct image *img, struct edge *e, struct qk_error *err)
{
    struct map_extent ext;
    int ret = e->valid ? image_map(img, e->off, e->valid, &ext, err) : 0;
    if (ret < 0)
        return ret;
    e->zero = !e->valid || ext.kind == CLUSTER_ZERO_PLAIN || ext.kind == CLUSTER_ZERO_ALLOC ||
              (ext.kind == CLUSTER_UNALLOCATED && !img->backing);
    return 0;
}

static int edge_read(struct image *img, struct edge *e, struct qk_error *err)
{
    e->buf = calloc(1, e->len ? e->len : 1);
    if (!e->buf)
        return qk_fail_nomem(err);
    if (e->zero)
        return 0;
    io_event(img->file, "cow_read");
    return image_read_held(img, e->off, &(struct iovec){e->buf, e->valid}, 1, err);
}

/* Data with its edges into the new clusters, in one call. */
static int write_with_edges(struct image *img, const struct plan *p, struct edge edges[2],
                            struct qk_error *err)
{
    CLEANUP_FREE struct iovec *iov = malloc(((size_t)p->iovcnt + 2) * sizeof(*iov));
    if (!iov)
        return qk_fail_nomem(err);
    int n = 0;
    uint64_t host = p->run.first << img->g.cluster_bits, at = edges[0].off.v;
    if (edges[0].buf)
        iov[n++] = (struct iovec){edges[0].buf, edges[0].len};
    else
        host += edges[0].len, at = p->off.v;
    n += iov_slice(p->iov, p->iovcnt, p->skip, p->len, iov + n);
    if (edges[1].buf)
        iov[n++] = (struct iovec){edges[1].buf, edges[1].len};
    return data_writev(img, (struct data_place){guest_off(at), host}, iov, n, err);
}

static int transfer(struct image *img, const struct plan *p, struct qk_error *err)
{
    uint64_t start = first_cluster(img, p) << img->g.cluster_bits;
    uint64_t end = p->off.v + p->len;
    uint64_t cluster_end = (first_cluster(img, p) + p->run.count) << img->g.cluster_bits;
    uint64_t guest_end = max_u64(image_size(img), end);
    struct edge edges[2] = {
        {.off = guest_off(start),
         .len = (size_t)(p->off.v - start),
         .valid = (size_t)(p->off.v - start)},
        {.off = guest_off(end),
         .len = (size_t)(cluster_end - end),
         .valid = (size_t)(min_u64(cluster_end, guest_end) - end)},
    };
    int ret = 0;
    for (int i = 0; i < 2 && ret == 0; i++) {
        ret = edge_is_zero(img, &edges[i], err);
        /* Clusters that were never written read as zero already. */
        if (ret == 0 && edges[i].len && !(edges[i].zero && p->run.fresh))
            ret = edge_read(img, &edges[i], err);
    }
    if (ret == 0)
        ret = write_with_edges(img, p, edges, err);
    free(edges[0].buf);
    free(edges[1].buf);
    return ret;
}

/* ---- link ---- */

struct link {
    uint64_t host;
    uint32_t cluster_bits;
    uint64_t bitmap; /* of extended entries */
    uint64_t linked;
};

static bool link_entry(void *opaque, uint64_t index, struct l2_entry old, struct l2_entry *entry)
{
    struct link *l = opaque;
    (void)old;
    entry->raw = (l->host + (index << l->cluster_bits)) | ENTRY_COPIED;
    entry->bitmap = l->bitmap;
    l->linked = index + 1;
    return true;
}

int image_link(struct image *img, uint64_t guest_cluster, struct cluster_run run,
               struct qk_error *err)
{
    struct link l = {
        .host = run.first << img->g.cluster_bits,
        .cluster_bits = img->g.cluster_bits,
        .bitmap = img->g.subclusters > 1 ? UINT32_MAX : 0,
    };
    int ret = l2_change(img, guest_off(guest_cluster << img->g.cluster_bits), run.count, link_entry,
                        &l, err);
    if (ret < 0 && l.linked < run.count)
        alloc_undo(img, (struct cluster_run){run.first + l.linked, run.count - l.linked, false});
    return ret;
}

/* ---- plan ---- */

/* How many bytes from off on (at most len) need new clusters: up to the next cluster that can be
 * written in place. */
static int span_to_allocate(struct image *img, guest_off_t off, uint64_t len, uint64_t *span,
                            struct qk_error *err)
{
    *span = 0;
    while (*span < len) {
        struct map_extent ext;
        int ret = image_map(img, guest_off(off.v + *span), len - *span, &ext, err);
        if (ret < 0)
            return ret;
        if (in_place(&ext) || (ext.kind == CLUSTER_ZERO_ALLOC && ext.copied))
            break;
        *span += ext.len;
    }
    return 0;
}

static int write_new(struct image *img, struct plan *p, struct qk_error *err)
{
    uint64_t first = first_cluster(img, p), table;
    int ret = l2_table_writable(img, p->off, &table, err);
    if (ret == 0)
        ret = alloc_clusters(img, end_cluster(img, p) - first, &p->run, err);
    if (ret < 0)
        return ret;
    uint64_t room = ((first + p->run.count) << img->g.cluster_bits) - p->off.v;
    p->len = min_u64(p->len, room);
    ret = transfer(img, p, err);
    if (ret < 0) {
        alloc_undo(img, p->run);
        return ret;
    }
    return image_link(img, first, p->run, err);
}

/* Zero clusters with a host cluster of their own: filled where they are, then relinked. */
static int write_reserved(struct image *img, struct plan *p, const struct map_extent *ext,
                          struct qk_error *err)
{
    uint64_t first = first_cluster(img, p);
    p->len = min_u64(p->len, ext->len);
    p->run =
        (struct cluster_run){image_cluster_of(img, ext->host), end_cluster(img, p) - first, false};
    int ret = transfer(img, p, err);
    if (ret < 0)
        return ret;
    struct link l = {.host = p->run.first << img->g.cluster_bits,
                     .cluster_bits = img->g.cluster_bits,
                     .bitmap = img->g.subclusters > 1 ? UINT32_MAX : 0};
    return l2_change(img, guest_off(first << img->g.cluster_bits), p->run.count, link_entry, &l,
                     err);
}

static int write_in_place(struct image *img, const struct plan *p, uint64_t host,
                          struct qk_error *err)
{
    struct iov_view view;
    if (iov_view_init(&view, p->iov, p->iovcnt, p->skip, p->len) < 0)
        return qk_fail_nomem(err);
    int ret = data_writev(img, (struct data_place){p->off, host}, view.iov, view.iovcnt, err);
    iov_view_free(&view);
    return ret;
}

/* One step of a write under an exclusive hold; p->len becomes what was written. */
static int write_step(struct image *img, struct plan *p, struct qk_error *err)
{
    struct map_extent ext;
    int ret = image_map(img, p->off, p->len, &ext, err);
    if (ret < 0)
        return ret;
    if (in_place(&ext)) {
        p->len = ext.len;
        return write_in_place(img, p, ext.host, err);
    }
    if (ext.kind == CLUSTER_ZERO_ALLOC && ext.copied)
        return write_reserved(img, p, &ext, err);
    uint64_t span;
    ret = span_to_allocate(img, p->off, p->len, &span, err);
    p->len = span;
    return ret < 0 ? ret : write_new(img, p, err);
}

static int write_held(struct image *img, const struct plan *request, struct qk_error *err)
{
    for (uint64_t done = 0; done < request->len;) {
        struct plan p = *request;
        p.off.v += done;
        p.len -= done;
        p.skip += done;
        int ret = write_step(img, &p, err);
        if (ret < 0)
            return ret;
        done += p.len;
    }
    return 0;
}

int image_write_held(struct image *img, guest_off_t off, const struct iovec *iov, int iovcnt,
                     struct qk_error *err)
{
    struct plan p = {.off = off, .len = iov_total(iov, iovcnt), .iov = iov, .iovcnt = iovcnt};
    return write_held(img, &p, err);
}

/* Writes the leading part of the request that needs no new mapping; *done says how much. */
static int write_shared(struct image *img, const struct plan *request, uint64_t *done,
                        struct qk_error *err)
{
    *done = 0;
    while (*done < request->len) {
        struct map_extent ext;
        guest_off_t at = guest_off(request->off.v + *done);
        int ret = image_map(img, at, request->len - *done, &ext, err);
        if (ret < 0)
            return ret;
        if (!in_place(&ext))
            return 0;
        struct plan p = *request;
        p.off = at;
        p.len = ext.len;
        p.skip += *done;
        ret = write_in_place(img, &p, ext.host, err);
        if (ret < 0)
            return ret;
        *done += ext.len;
    }
    return 0;
}

int image_check_writable(struct image *img, guest_off_t off, uint64_t len, struct qk_error *err)
{
    if (!range_within(off.v, len, image_size(img)))
        return qk_fail(err, -EIO,
                       "the range of %" PRIu64 " bytes at %" PRIu64 " leaves the disk of %" PRIu64
                       " bytes",
                       len, off.v, image_size(img));
    return image_begin_writing(img, err);
}

/* Runs fn with the clusters of the request held. */
static int write_phase(struct image *img, const struct plan *p, bool exclusive, uint64_t *done,
                       struct qk_error *err)
{
    struct range_hold hold = {
        .first = first_cluster(img, p),
        .end = end_cluster(img, p),
        .exclusive = exclusive,
    };
    range_acquire(&img->ranges, &hold);
    int ret = image_check_writable(img, p->off, p->len, err);
    if (ret == 0 && !exclusive)
        ret = write_shared(img, p, done, err);
    else if (ret == 0)
        ret = write_held(img, p, err);
    range_release(&img->ranges, &hold);
    return ret;
}

static int write_plain(struct image *img, struct plan *p, struct qk_error *err)
{
    uint64_t done;
    int ret = write_phase(img, p, false, &done, err);
    if (ret < 0 || done == p->len)
        return ret;
    p->off.v += done;
    p->skip = done;
    p->len -= done;
    ret = write_phase(img, p, true, NULL, err);
    return ret < 0 ? ret : image_throttle(img, err);
}

int image_writev(struct image *img, guest_off_t off, const struct iovec *iov, int iovcnt,
                 unsigned flags, struct qk_error *err)
{
    struct plan p = {.off = off, .len = iov_total(iov, iovcnt), .iov = iov, .iovcnt = iovcnt};
    if (!p.len)
        return 0;
    int ret = flags & QK_WRITE_COMPRESSED ? compressed_write(img, off, iov, iovcnt, err)
                                          : write_plain(img, &p, err);
    if (ret == 0 && (flags & QK_WRITE_FUA))
        ret = image_flush(img, err);
    return ret;
}
