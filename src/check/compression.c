/*
 * compression.c - how clusters are compressed, when the header's type and feature bit contradict
 * each other: a zstd stream begins with a number of its own, with which no deflate stream of this
 * format begins in all of many cases. The first compressed clusters of the L2 tables are looked at,
 * of snapshots as well; when all are alike the header can say so. Without any, the type is as good
 * as it was, and the bit follows.
 */
#include "base/bytes.h"
#include "base/cleanup.h"
#include "check/internal.h"

#define CLUSTERS_LOOKED_AT 256u
#define ZSTD_MAGIC         UINT32_C(0x28b52ffd)

struct streams {
    unsigned zstd, other;
};

static bool contradicts(const struct header *h)
{
    bool bit = h->incompatible & INCOMPAT_COMPRESSION;
    return h->compression_type > COMPRESSION_ZSTD || bit != (h->compression_type != 0);
}

static bool is_zstd(const uint8_t *stream)
{
    return load_be32(stream) == ZSTD_MAGIC;
}

enum compression_type compression_of(const struct check *c, const uint8_t *stream)
{
    if (!contradicts(&c->raw))
        return (enum compression_type)c->h->compression_type;
    return is_zstd(stream) ? COMPRESSION_ZSTD : COMPRESSION_ZLIB;
}

static void stream_look(struct check *c, uint64_t raw, struct streams *s)
{
    uint8_t magic[4];
    struct compressed_extent e = compressed_decode(c->g, raw);
    if (e.off >= c->file_bytes || io_read(c->file, e.off, magic, sizeof(magic), NULL) < 0)
        return;
    if (is_zstd(magic))
        s->zstd++;
    else
        s->other++;
}

static void table_look(struct check *c, const struct l2_table *t, uint8_t *buf, struct streams *s)
{
    if (t->flags & L2_UNREAD ||
        io_read(c->file, t->cluster << c->g->cluster_bits, buf, c->g->cluster_bytes, NULL) < 0)
        return;
    for (uint32_t i = 0; i < c->g->l2_entries && s->zstd + s->other < CLUSTERS_LOOKED_AT; i++) {
        struct l2_entry e = l2_entry_load(c->g, buf, i);
        if (e.raw & ENTRY_COMPRESSED)
            stream_look(c, e.raw, s);
    }
}

static void lost(struct check *c)
{
    const struct finding f = {PROBLEM_COMPRESSION_LOST, HEADER_COMPRESSION_OFF, QK_OFFSET_NONE, 0,
                              c->raw.compression_type};
    sink_found(&c->sink, &f, (uint64_t)c->raw.compression_type);
}

int compression_judge(struct check *c, struct qk_error *err)
{
    struct streams s = {0};
    CLEANUP_FREE uint8_t *buf = malloc(c->g->cluster_bytes);
    if (!contradicts(&c->raw) || image_header_stored(c->img)->unreadable)
        return 0;
    if (!buf)
        return qk_fail_nomem(err);
    for (size_t i = 0; i < c->tables.len && s.zstd + s.other < CLUSTERS_LOOKED_AT; i++)
        table_look(c, &c->tables.ptr[i], buf, &s);
    if (s.zstd && s.other) {
        lost(c);
        return 0;
    }
    if (s.zstd || s.other)
        c->view.compression_type = s.zstd ? COMPRESSION_ZSTD : COMPRESSION_ZLIB;
    c->view.incompatible &= ~(uint64_t)INCOMPAT_COMPRESSION;
    if (c->view.compression_type != COMPRESSION_ZLIB)
        c->view.incompatible |= INCOMPAT_COMPRESSION;
    c->compression_known = true;
    compression_report(c);
    return 0;
}
