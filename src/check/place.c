/*
 * place.c - clusters for something new that a repair writes: behind the end of the file, since what
 * looks free may belong to something that cannot be read. Promises (INV-1) that they are counted
 * before anything names them: by refcounts that are written where they are when their blocks are
 * there and sound, else by the new structure that this asks for.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"

#include <string.h>

/* A plan is made over a file that is open for reading only. */
bool file_can_grow(const struct check *c)
{
    if (c->opts->plan_only && !c->file->writable)
        return c->file->zero_init;
    return c->file->can_grow;
}

static bool blocks_there(const struct check *c, struct refmap_span span)
{
    for (uint64_t i = span.first; i < span.first + span.count; i++) {
        if (block_state(c, i >> c->g->refblock_bits) != BLOCK_GOOD)
            return false;
    }
    return true;
}

/* The part of `span` that block b counts. */
static int refcounts_put(struct check *c, uint64_t b, struct refmap_span span, struct qk_error *err)
{
    static const struct step what = {.action = "count new clusters", .structure = "refcount block"};
    CLEANUP_FREE uint8_t *old = malloc(2 * (size_t)c->g->cluster_bytes);
    if (!old)
        return qk_fail_nomem(err);
    uint8_t *new = old + c->g->cluster_bytes;
    int ret = io_read(c->file, c->reftable.ptr[b], old, c->g->cluster_bytes, err);
    if (ret < 0)
        return ret;
    memcpy(new, old, c->g->cluster_bytes);
    uint64_t first = b * block_clusters(c), end = first + block_clusters(c);
    for (uint64_t i = max_u64(span.first, first); i < min_u64(span.first + span.count, end); i++)
        c->ops->set(new, i - first, 1);
    const struct table_write w = {c->reftable.ptr[b], c->g->cluster_bytes,
                                  (c->g->refcount_bits + 7) / 8, old, new};
    return write_changed(c, &what, &w, err);
}

int clusters_place(struct check *c, uint64_t bytes, struct refmap_span *span, struct qk_error *err)
{
    *span = (struct refmap_span){max_u64(c->clusters, c->named_end),
                                 div_round_up(bytes, c->g->cluster_bytes)};
    uint64_t end = span->first + span->count;
    int ret = refmap_grow(&c->refs, end + 1, err);
    if (ret == 0 && refmap_add(&c->refs, *span, 1, 0) < 0)
        ret = qk_fail_nomem(err);
    if (ret < 0)
        return ret;
    c->clusters = end;
    if (!(c->actions & ACT_REBUILD) && blocks_there(c, *span)) {
        uint64_t b = span->first >> c->g->refblock_bits;
        for (; ret == 0 && b <= (end - 1) >> c->g->refblock_bits; b++)
            ret = refcounts_put(c, b, *span, err);
        block_cache_drop(c);
        return ret;
    }
    c->actions |= ACT_REBUILD;
    return 0;
}
