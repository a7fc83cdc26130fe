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
    bool reserved; /* the run is where the guest clusters have been already */
};

static uint64_t first_cluster(const struct image *img, const struct plan *p)
{
    return image_cluster_of(img, p->off.v);
}

static uint64_t end_cluster(const struct image *img, const struct plan *p)
{
    return image_cluster_of(img, p->off.v + p->len - 1) + 1;
}

/* The guest cluster has a host cluster that is ours alone. */
static bool owned(const struct map_extent *ext)
{
    return cluster_kind_has_host(ext->kind) && ext->copied;
}

/* A write may go to the cluster as it is. */
static bool in_place(const struct map_extent *ext)
{
    return ext->kind == CLUSTER_NORMAL && ext->copied;
}

/* ---- transfer ---- */

/*
 * A copy-on-write edge: guest bytes before or after the written ones, in the same cluster. It ends
 * at the border of the subcluster, or further out when a new host cluster has to take over what
 * other subclusters store in the old one.
 */
struct edge {
    guest_off_t off;
    size_t len;
    size_t valid; /* bytes of it inside the disk; what is beyond becomes zero */
    bool zero;    /* reads as zero */
    uint8_t *buf;
};

/* All subclusters in bytes [from, to) of the cluster read as zero. */
static bool part_is_zero(const struct image *img, struct l2_entry e, uint64_t from, uint64_t to)
{
    enum cluster_kind kind;
    uint32_t sub = (uint32_t)(from >> img->g.subcluster_bits);
    while ((uint64_t)sub << img->g.subcluster_bits < to) {
        uint32_t run = l2_entry_run(&img->g, e, sub, &kind);
        if (!image_kind_is_zero(img, kind))
            return false;
        sub += run;
    }
    return true;
}

/* The edge behind or before the written bytes, in the cluster of which `old` is the entry. */
static struct edge edge_of(const struct image *img, const struct plan *p, struct l2_entry old,
                           bool behind)
{
    const uint32_t bits = img->g.subcluster_bits;
    const uint64_t end = p->off.v + p->len;
    uint64_t cluster = image_cluster_of(img, behind ? end - 1 : p->off.v);
    uint64_t start = cluster << img->g.cluster_bits;
    uint32_t filled = subclusters_touched(&img->g, cluster, p->off.v, end) |
                      (p->reserved ? 0 : l2_entry_stored(&img->g, old));
    struct edge e = {.off = guest_off(end)};
    if (behind) {
        uint64_t border = start + ((32 - (uint64_t)__builtin_clz(filled)) << bits);
        e.len = (size_t)(border - end);
        e.valid = (size_t)(max_u64(min_u64(border, image_size(img)), end) - end);
        e.zero = part_is_zero(img, old, end - start, border - start);
        if (data_ends_with_disk(img))
            e.len = e.valid;
    } else {
        e.off = guest_off(start + ((uint64_t)__builtin_ctz(filled) << bits));
        e.len = e.valid = (size_t)(p->off.v - e.off.v);
        e.zero = part_is_zero(img, old, e.off.v - start, p->off.v - start);
    }
    e.zero |= !e.valid;
    return e;
}

static int edge_find(struct image *img, const struct plan *p, bool behind, struct edge *e,
                     struct qk_error *err)
{
    uint64_t border = p->off.v + (behind ? p->len : 0);
    struct map_extent ext;
    *e = (struct edge){.off = guest_off(border)};
    if (is_aligned(border, img->g.cluster_bytes))
        return 0;
    int ret = image_map(img, guest_off(border - behind), 1, &ext, err);
    if (ret == 0)
        *e = edge_of(img, p, ext.entry, behind);
    return ret;
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
    uint64_t host = (p->run.first << img->g.cluster_bits) + (p->off.v & (img->g.cluster_bytes - 1));
    uint64_t before = edges[0].buf ? edges[0].len : 0;
    if (before)
        iov[n++] = (struct iovec){edges[0].buf, edges[0].len};
    n += iov_slice(p->iov, p->iovcnt, p->skip, p->len, iov + n);
    if (edges[1].buf)
        iov[n++] = (struct iovec){edges[1].buf, edges[1].len};
    struct data_place at = {guest_off(p->off.v - before), host - before};
    return data_writev(img, at, iov, n, err);
}

static int transfer(struct image *img, const struct plan *p, struct qk_error *err)
{
    struct edge edges[2] = {0};
    int ret = 0;
    for (int i = 0; i < 2 && ret == 0; i++) {
        ret = edge_find(img, p, i == 1, &edges[i], err);
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
    const struct image *img;
    uint64_t first_cluster; /* guest */
    struct cluster_run run;
    uint64_t off, end; /* guest bytes that have their data there */
    uint64_t linked;
};

static bool link_entry(void *opaque, uint64_t index, struct l2_entry old, struct l2_entry *entry)
{
    struct link *l = opaque;
    const struct geometry *g = &l->img->g;
    uint64_t host = (l->run.first + index) << g->cluster_bits;
    if (l->off == l->end) /* an empty place takes over no data */
        old = (struct l2_entry){.bitmap = old.bitmap >> 32 << 32};
    uint32_t filled =
        l2_entry_stored(g, old) | subclusters_touched(g, l->first_cluster + index, l->off, l->end);
    *entry = l2_entry_filled(g, old, host, filled);
    /* No bytes that lie there would be decrypted to zeroes. */
    if (l->off == l->end && g->subclusters == 1 && image_is_encrypted(l->img))
        *entry = l2_entry_zeroed(g, *entry, UINT32_MAX);
    l->linked = index + 1;
    return true;
}

static int link_run(struct image *img, struct link *l, struct qk_error *err)
{
    guest_off_t off = guest_off(l->first_cluster << img->g.cluster_bits);
    l->img = img;
    return l2_change(img, off, l->run.count, link_entry, l, err);
}

/* Takes back what could not be linked. */
static int link_new(struct image *img, struct link *l, struct qk_error *err)
{
    int ret = link_run(img, l, err);
    if (ret < 0 && l->linked < l->run.count)
        data_undo(img,
                  (struct cluster_run){l->run.first + l->linked, l->run.count - l->linked, false});
    return ret;
}

int image_link(struct image *img, uint64_t guest_cluster, struct cluster_run run,
               struct qk_error *err)
{
    struct link l = {.first_cluster = guest_cluster, .run = run};
    if (image_data_file_is_raw(img)) { /* its bytes are there already */
        l.off = guest_cluster << img->g.cluster_bits;
        l.end = (guest_cluster + run.count) << img->g.cluster_bits;
    }
    return link_new(img, &l, err);
}

static struct link link_of(const struct image *img, const struct plan *p)
{
    return (struct link){.first_cluster = first_cluster(img, p),
                         .run = p->run,
                         .off = p->off.v,
                         .end = p->off.v + p->len};
}

/* ---- plan ---- */

/* How many bytes from off on (at most len) need new clusters: up to the next cluster that has
 * one of its own. */
static int span_to_allocate(struct image *img, guest_off_t off, uint64_t len, uint64_t *span,
                            struct qk_error *err)
{
    *span = 0;
    while (*span < len) {
        struct map_extent ext;
        int ret = image_map(img, guest_off(off.v + *span), len - *span, &ext, err);
        if (ret < 0)
            return ret;
        if (owned(&ext))
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
        ret = data_alloc(img, first, end_cluster(img, p) - first, &p->run, err);
    if (ret < 0)
        return ret;
    uint64_t room = ((first + p->run.count) << img->g.cluster_bits) - p->off.v;
    p->len = min_u64(p->len, room);
    ret = transfer(img, p, err);
    if (ret < 0) {
        data_undo(img, p->run);
        return ret;
    }
    struct link l = link_of(img, p);
    return link_new(img, &l, err);
}

/* What reads as zero, or from the backing file, but has its place in a host cluster of its own: is
 * filled there, then relinked. Until then nothing reads the bytes in that place. */
static int write_reserved(struct image *img, struct plan *p, const struct map_extent *ext,
                          struct qk_error *err)
{
    uint64_t first = first_cluster(img, p);
    p->len = min_u64(p->len, ext->len);
    p->run =
        (struct cluster_run){image_cluster_of(img, ext->host), end_cluster(img, p) - first, false};
    p->reserved = true;
    int ret = transfer(img, p, err);
    if (ret < 0)
        return ret;
    struct link l = link_of(img, p);
    return link_run(img, &l, err);
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
    if (owned(&ext))
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
    /* The rest of a sector is read, and written again: not beside another writer of the sector. */
    if (img->crypt && (request->off.v | request->len) % CIPHER_SECTOR_BYTES)
        return 0;
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
    int ret = image_begin_writing(img, err);
    return ret < 0 ? ret : bitmaps_note(img, off, len, err);
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
