/*
 * range.c - ranges of the file as clusters, and reading each byte that several ranges cover only
 * once. Promises (INV-4) that no offset or length from the image is used before it was compared
 * with the file's size.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"

#define SWEEP_CHUNK (UINT64_C(256) << 10)

bool range_span(const struct check *c, uint64_t off, uint64_t bytes, struct refmap_span *span)
{
    uint64_t end;
    *span = (struct refmap_span){0};
    if (!bytes)
        return true;
    if (!try_add_u64(off, bytes, &end) || end >= c->file_bytes + c->g->cluster_bytes)
        return false;
    span->first = off >> c->g->cluster_bits;
    span->count = ((end - 1) >> c->g->cluster_bits) - span->first + 1;
    return true;
}

/* If the file grew over it the damage would look like data of zeroes. */
void outside_named(struct check *c, uint64_t off, uint64_t bytes)
{
    uint64_t end, from = off >> c->g->cluster_bits;
    c->no_growth = true;
    c->named_from = c->named_from ? min_u64(c->named_from, from) : from;
    if (try_add_u64(off, bytes, &end) && end <= c->file_bytes + c->file_bytes / 2)
        c->named_end = max_u64(c->named_end, div_round_up(end, c->g->cluster_bytes));
}

int count_inside(struct check *c, uint64_t off, uint64_t bytes, struct qk_error *err)
{
    struct refmap_span span;
    if (!range_span(c, off, bytes, &span))
        return 0;
    return refmap_add(&c->refs, span, 1, 0) < 0 ? qk_fail_nomem(err) : 0;
}

int count_root(struct check *c, const struct root *root, struct qk_error *err)
{
    struct refmap_span span;
    if (!range_span(c, root->off, root->bytes, &span)) {
        const struct finding f = {root->outside, root->off, QK_OFFSET_NONE, c->file_bytes,
                                  root->off};
        sink_found(&c->sink, &f, root->off, root->bytes);
        if (root->outside != PROBLEM_L1_TABLE_OUTSIDE)
            cut_named(c, root->outside, root->off, root->bytes);
        return 0;
    }
    return refmap_add(&c->refs, span, root->times, 0) < 0 ? qk_fail_nomem(err) : 0;
}

/* Where the number of ranges that cover the file's bytes changes. */
struct edge {
    uint64_t off;
    int64_t change;
};

static int edge_compare(const void *a, const void *b)
{
    const struct edge *x = a, *y = b;
    return x->off < y->off ? -1 : x->off > y->off;
}

/* The ranges' sorted edges, starts rounded down and ends rounded up to `align`. */
static struct edge *edges_new(const struct check *c, const struct u64_vec *ranges, uint64_t align)
{
    struct edge *edges = calloc(ranges->len + 2, sizeof(*edges));
    for (size_t i = 0; edges && i + 1 < ranges->len; i += 2) {
        uint64_t off = min_u64(ranges->ptr[i], c->file_bytes);
        uint64_t end = off + min_u64(ranges->ptr[i + 1], c->file_bytes - off);
        if (align == sizeof(uint64_t)) /* half a word is none */
            end = max_u64(off, round_down(end, align));
        bool any = end > off;
        edges[i] = (struct edge){any ? round_down(off, align) : off, 1};
        edges[i + 1] = (struct edge){any ? round_up(end, align) : off, -1};
    }
    if (edges)
        qsort(edges, ranges->len / 2 * 2, sizeof(*edges), edge_compare);
    return edges;
}

static int sweep_piece(struct check *c, const struct sweep *s, struct root piece, uint64_t *words,
                       struct qk_error *err)
{
    struct qk_io *file = s->before ? image_file(c->img) : c->file;
    uint64_t end = piece.off + piece.bytes;
    for (; piece.off < end; piece.off += piece.bytes) {
        piece.bytes = min_u64(end - piece.off, SWEEP_CHUNK);
        if (io_read(file, piece.off, words, piece.bytes, NULL) < 0) {
            const struct finding f = {s->unreadable, piece.off, QK_OFFSET_NONE, 0, 0};
            if (f.id != PROBLEM_COUNT)
                sink_found(&c->sink, &f, piece.off);
            continue;
        }
        size_t n = piece.bytes / sizeof(*words);
        for (size_t i = 0; i < n; i++)
            words[i] = be64toh(words[i]);
        int ret = s->fn(c, words, n, &piece, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int count_piece(struct check *c, const struct root *piece, bool drop, struct qk_error *err)
{
    struct refmap_span span = {piece->off >> c->g->cluster_bits,
                               piece->bytes >> c->g->cluster_bits};
    if (drop) {
        references_drop(c, span, piece->times);
        return 0;
    }
    return refmap_add(&c->refs, span, piece->times, 0) < 0 ? qk_fail_nomem(err) : 0;
}

/* Every stretch between two edges that some range covers: to s->fn, or counted without it. */
static int each_piece(struct check *c, const struct sweep *s, uint64_t align, struct qk_error *err)
{
    CLEANUP_FREE struct edge *edges = edges_new(c, s->ranges, align);
    CLEANUP_FREE uint64_t *words = malloc(SWEEP_CHUNK);
    if (!edges || !words)
        return qk_fail_nomem(err);
    int64_t cover = 0;
    for (size_t i = 0; i + 1 < s->ranges->len / 2 * 2; i++) {
        cover += edges[i].change;
        const struct root piece = {edges[i].off, edges[i + 1].off - edges[i].off, (uint64_t)cover,
                                   0};
        if (cover <= 0 || !piece.bytes)
            continue;
        int ret =
            s->fn ? sweep_piece(c, s, piece, words, err) : count_piece(c, &piece, s->drop, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int sweep_ranges(struct check *c, const struct sweep *s, struct qk_error *err)
{
    return each_piece(c, s, sizeof(uint64_t), err);
}

int cover_ranges(struct check *c, struct u64_vec *ranges, struct qk_error *err)
{
    const struct sweep count_only = {.ranges = ranges};
    return each_piece(c, &count_only, c->g->cluster_bytes, err);
}

int uncover_ranges(struct check *c, struct u64_vec *ranges, struct qk_error *err)
{
    const struct sweep drop_only = {.ranges = ranges, .drop = true};
    return each_piece(c, &drop_only, c->g->cluster_bytes, err);
}

uint64_t extent_end(const struct check *c, uint64_t off, uint64_t end, bool *hole)
{
    struct qk_extent e;
    *hole = false;
    if (io_status(c->file, off, end - off, 0, &e, NULL) < 0 || !e.len)
        return end;
    *hole = !(e.flags & QK_EXTENT_DATA) && (e.flags & QK_EXTENT_ZERO);
    return off + e.len;
}
