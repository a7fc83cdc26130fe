/*
 * compressed.c - compressed clusters: read, in whole or in part, and written. Compressing and
 * decompressing hold no lock; a request borrows a workspace from a pool that keeps a bounded number
 * of idle ones. A new stream is written where nothing refers to, counted, and then linked, as any
 * other cluster (INV-1).
 *
 * INV-4: a stream is at most two clusters long by its descriptor, and yields one cluster, whatever
 * it says; a request's memory is these three.
 */
#include "image/image_int.h"

struct workspace {
    struct codec *codec;
    uint8_t *stream;  /* two clusters */
    uint8_t *cluster; /* one */
};

/* ---- workspaces ---- */

void codec_pool_init(struct codec_pool *pool)
{
    pthread_mutex_init(&pool->lock, NULL);
}

static void workspace_free(struct workspace *ws)
{
    codec_free(ws->codec);
    free(ws->stream);
    free(ws->cluster);
    free(ws);
}

static void drop_idle(struct codec_pool *pool)
{
    while (pool->count)
        workspace_free(pool->idle[--pool->count]);
}

void codec_pool_destroy(struct codec_pool *pool)
{
    drop_idle(pool);
    pthread_mutex_destroy(&pool->lock);
}

void codec_pool_empty(struct image *img)
{
    int max = codec_level_max((enum codec_type)img->h.compression_type);
    drop_idle(&img->codecs);
    if (img->opts.compression_level > max)
        img->opts.compression_level = max;
}

static int workspace_new(struct image *img, struct workspace **out, struct qk_error *err)
{
    struct workspace *ws = calloc(1, sizeof(*ws));
    if (!ws)
        return qk_fail_nomem(err);
    int ret = codec_new((enum codec_type)img->h.compression_type, img->opts.compression_level,
                        &ws->codec);
    ws->stream = malloc(2 * (size_t)img->g.cluster_bytes);
    ws->cluster = malloc(img->g.cluster_bytes);
    if (ret == 0 && ws->stream && ws->cluster) {
        *out = ws;
        return 0;
    }
    workspace_free(ws);
    return qk_fail_nomem(err);
}

static int workspace_take(struct image *img, struct workspace **out, struct qk_error *err)
{
    struct codec_pool *pool = &img->codecs;
    pthread_mutex_lock(&pool->lock);
    *out = pool->count ? pool->idle[--pool->count] : NULL;
    pthread_mutex_unlock(&pool->lock);
    return *out ? 0 : workspace_new(img, out, err);
}

static void workspace_give(struct image *img, struct workspace *ws)
{
    struct codec_pool *pool = &img->codecs;
    pthread_mutex_lock(&pool->lock);
    bool keep = pool->count < CODEC_IDLE_MAX;
    if (keep)
        pool->idle[pool->count++] = ws;
    pthread_mutex_unlock(&pool->lock);
    if (!keep)
        workspace_free(ws);
}

/* ---- whole clusters in the caller's memory need no copy ---- */

/* The piece's bytes when they lie in one buffer and are a cluster; NULL: they do not. */
static uint8_t *whole_cluster(const struct image *img, const struct piece *p)
{
    size_t skip = p->skip;
    if (p->len != img->g.cluster_bytes)
        return NULL;
    for (int i = 0; i < p->iovcnt; i++) {
        if (skip < p->iov[i].iov_len)
            return p->iov[i].iov_len - skip >= p->len ? (uint8_t *)p->iov[i].iov_base + skip : NULL;
        skip -= p->iov[i].iov_len;
    }
    return NULL;
}

/* ---- reading ---- */

static int decompress(struct image *img, struct workspace *ws, struct compressed_extent c,
                      uint8_t *to)
{
    struct iovec in = {ws->stream, c.bytes}, out = {to, img->g.cluster_bytes};
    return codec_decompress(ws->codec, in, out);
}

static int stream_fail(struct image *img, guest_off_t off, uint64_t host, int ret,
                       struct qk_error *err)
{
    return qk_fail_at(err, ret == -ENOMEM ? ret : -EIO,
                      WHERE(img->file->name, "compressed cluster", host),
                      "the compressed cluster at guest offset %" PRIu64 " cannot be read: %s",
                      round_down(off.v, img->g.cluster_bytes), codec_reason(ret));
}

int compressed_read(struct image *img, guest_off_t off, const struct map_extent *ext,
                    const struct piece *p, struct qk_error *err)
{
    struct compressed_extent c = compressed_decode(&img->g, ext->entry.raw);
    struct workspace *ws;
    int ret = workspace_take(img, &ws, err);
    if (ret < 0)
        return ret;
    io_event(img->file, "read_compressed");
    ret = io_read(img->file, c.off, ws->stream, c.bytes, err);
    uint8_t *direct = whole_cluster(img, p), *to = direct ? direct : ws->cluster;
    if (ret == 0) {
        ret = decompress(img, ws, c, to);
        if (ret < 0)
            ret = stream_fail(img, off, c.off, ret, err);
        else if (!direct)
            iov_from_buf(p->iov, p->iovcnt, p->skip, to + (off.v & (img->g.cluster_bytes - 1)),
                         p->len);
    }
    workspace_give(img, ws);
    return ret;
}

/* ---- writing ---- */

struct packed {
    guest_off_t off;
    const uint8_t *stream;
    size_t bytes;
    uint64_t raw; /* the new entry */
    bool linked;
};

static bool link_packed(void *opaque, uint64_t index, struct l2_entry old, struct l2_entry *entry)
{
    struct packed *p = opaque;
    (void)index;
    (void)old;
    *entry = (struct l2_entry){.raw = p->raw};
    p->linked = true;
    return true;
}

/* The stream to its place in the file; nothing refers to that yet. */
static int put_stream(struct image *img, struct packed *p, uint64_t host, struct qk_error *err)
{
    struct compressed_extent ext = {host, (uint32_t)p->bytes};
    int ret = compressed_encode(&img->g, ext, &p->raw);
    if (ret < 0)
        return qk_fail(err, ret, "the file is too large for compressed clusters");
    ret = overlap_check(img, 0, host, p->bytes, err);
    if (ret < 0)
        return ret;
    io_event(img->file, "write_compressed");
    ret = io_write(img->file, host, p->stream, p->bytes, 0, err);
    image_note_unsynced(img);
    return ret;
}

/* QEMU, too, lets compressed data take the place of anything but a cluster with its own data. */
static int check_replaceable(struct image *img, guest_off_t off, struct qk_error *err)
{
    struct map_extent ext;
    int ret = image_map(img, off, 1, &ext, err);
    if (ret == 0 && ext.copied)
        return qk_fail(err, -EIO,
                       "compressed data cannot replace the cluster at guest offset %" PRIu64
                       ", which is allocated already",
                       off.v);
    return ret;
}

static int store_held(struct image *img, struct packed *p, struct qk_error *err)
{
    uint64_t host, table;
    int ret = check_replaceable(img, p->off, err);
    if (ret == 0)
        ret = l2_table_writable(img, p->off, &table, err);
    if (ret == 0)
        ret = alloc_bytes(img, p->bytes, &host, err);
    if (ret < 0)
        return ret;
    ret = put_stream(img, p, host, err);
    if (ret == 0) {
        io_event(img->file, "l2_update_compressed");
        ret = l2_change(img, p->off, 1, link_packed, p, err);
    }
    if (ret < 0 && !p->linked)
        alloc_bytes_undo(img, host, p->bytes);
    return ret;
}

static int store(struct image *img, struct packed *p, struct qk_error *err)
{
    struct range_hold hold = {
        .first = image_cluster_of(img, p->off.v),
        .end = image_cluster_of(img, p->off.v) + 1,
        .exclusive = true,
    };
    range_acquire(&img->ranges, &hold);
    uint64_t size = max_u64(image_size(img), p->off.v + 1);
    int ret =
        image_check_writable(img, p->off, min_u64(img->g.cluster_bytes, size - p->off.v), err);
    if (ret == 0)
        ret = store_held(img, p, err);
    range_release(&img->ranges, &hold);
    return ret < 0 ? ret : image_throttle(img, err);
}

/* The cluster is `data`, padded with zeroes where the disk ends in it. What does not become smaller
 * by a byte is not worth it: -ENOSPC. */
static int compress(struct image *img, struct workspace *ws, struct iovec data, struct iovec stream,
                    size_t *bytes)
{
    const size_t cluster = img->g.cluster_bytes;
    if (data.iov_len < cluster) {
        memmove(ws->cluster, data.iov_base, data.iov_len);
        memset(ws->cluster + data.iov_len, 0, cluster - data.iov_len);
        data.iov_base = ws->cluster;
        data.iov_len = cluster;
    }
    stream.iov_len = min_u64(stream.iov_len, cluster - 1);
    return codec_compress(ws->codec, data, stream, bytes);
}

static int write_cluster(struct image *img, struct workspace *ws, guest_off_t off,
                         const struct piece *p, struct qk_error *err)
{
    struct iovec data = {whole_cluster(img, p), p->len};
    if (!data.iov_base) {
        data.iov_base = ws->cluster;
        iov_to_buf(p->iov, p->iovcnt, p->skip, ws->cluster, p->len);
    }
    struct packed packed = {.off = off, .stream = ws->stream};
    struct iovec stream = {ws->stream, img->g.cluster_bytes};
    int ret = compress(img, ws, data, stream, &packed.bytes);
    if (ret == -ENOSPC)
        return image_writev(img, off, &data, 1, 0, err);
    return ret < 0 ? qk_fail_nomem(err) : store(img, &packed, err);
}

/* Its clusters are where the guest has them, whole. */
static int refuse_data_file(const struct image *img, struct qk_error *err)
{
    if (!img->g.data_file)
        return 0;
    return qk_fail(err, -ENOTSUP, "an external data file holds no compressed clusters");
}

int image_compress(struct image *img, struct iovec data, struct iovec stream, size_t *bytes,
                   struct qk_error *err)
{
    struct workspace *ws;
    int ret = refuse_data_file(img, err);
    if (ret == 0)
        ret = workspace_take(img, &ws, err);
    if (ret < 0)
        return ret;
    ret = compress(img, ws, data, stream, bytes);
    workspace_give(img, ws);
    if (ret == -ENOSPC) {
        *bytes = 0;
        return 0;
    }
    return ret < 0 ? qk_fail_nomem(err) : 0;
}

/* A compressed stream is read as it is, so plain bytes would get into an encrypted image. */
static int refuse_encrypted(const struct image *img, struct qk_error *err)
{
    if (!image_is_encrypted(img))
        return 0;
    return qk_fail(err, -EIO, "Compression and encryption not supported at the same time");
}

int image_write_stream(struct image *img, guest_off_t off, struct iovec stream,
                       struct qk_error *err)
{
    struct packed packed = {.off = off, .stream = stream.iov_base, .bytes = stream.iov_len};
    int ret = refuse_encrypted(img, err);
    return ret < 0 ? ret : store(img, &packed, err);
}

static int check_whole(struct image *img, guest_off_t off, uint64_t len, struct qk_error *err)
{
    uint64_t mask = img->g.cluster_bytes - 1;
    if (!range_within(off.v, len, image_size(img)))
        return qk_fail(err, -EIO,
                       "the range of %" PRIu64 " bytes at %" PRIu64 " leaves the disk of %" PRIu64
                       " bytes",
                       len, off.v, image_size(img));
    if (off.v & mask || (len & mask && off.v + len != image_size(img)))
        return qk_fail(err, -EINVAL, "compressed data is written in whole clusters of %u bytes",
                       img->g.cluster_bytes);
    return 0;
}

int compressed_write(struct image *img, guest_off_t off, const struct iovec *iov, int iovcnt,
                     struct qk_error *err)
{
    uint64_t len = iov_total(iov, iovcnt);
    struct workspace *ws;
    int ret = refuse_data_file(img, err);
    if (ret == 0)
        ret = refuse_encrypted(img, err);
    if (ret == 0)
        ret = check_whole(img, off, len, err);
    if (ret == 0)
        ret = workspace_take(img, &ws, err);
    if (ret < 0)
        return ret;
    for (uint64_t done = 0; done < len && ret == 0; done += img->g.cluster_bytes) {
        size_t n = (size_t)min_u64(len - done, img->g.cluster_bytes);
        struct piece p = {iov, iovcnt, (size_t)done, n};
        ret = write_cluster(img, ws, guest_off(off.v + done), &p, err);
    }
    workspace_give(img, ws);
    return ret;
}
