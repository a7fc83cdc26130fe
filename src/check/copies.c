/*
 * copies.c - guest clusters that share a cluster of the file get one each, when that is allowed
 * (QK_ALLOW_COPIES): any number of users in one pass. One user keeps the cluster, unless it holds
 * one of the image's own tables; the others get copies of its bytes, so that no guest reads
 * anything new. Where data is encrypted by its place in the file (LUKS), a copy is encrypted for
 * its own place; that takes the key. Encrypted by the guest's place (AES), the stored bytes stay.
 *
 * Order (INV-1): copies are written into free clusters; a new refcount structure counts both the
 * old and the new reference; entries are changed; the old references are taken off. Without a new
 * structure, or while free clusters may belong to something unreadable, nothing is copied.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"

#include <string.h>

static int user_compare(const void *a, const void *b)
{
    const struct cluster_user *x = a, *y = b;
    if (x->cluster != y->cluster)
        return x->cluster < y->cluster ? -1 : 1;
    if (x->table != y->table)
        return x->table < y->table ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

static bool in_range(const struct check *c, uint64_t cluster, uint64_t off, uint64_t bytes)
{
    struct refmap_span span;
    return range_span(c, off, bytes, &span) && cluster >= span.first &&
           cluster - span.first < span.count;
}

bool is_metadata(const struct check *c, uint64_t cluster)
{
    return !cluster || table_find(c, cluster) ||
           in_range(c, cluster, c->h->l1_off, (uint64_t)c->l1_entries * 8) ||
           in_range(c, cluster, c->h->reftable_off,
                    (uint64_t)c->h->reftable_clusters << c->g->cluster_bits) ||
           in_snapshot_l1(c, cluster << c->g->cluster_bits) || block_at(c, cluster);
}

/* ---- who shares ---- */

/* The refcount shows that a user is there that nobody counted. */
static bool uncounted(struct check *c, uint64_t cluster)
{
    uint64_t stored, count = refmap_count(&c->refs, cluster);
    if (count < 2)
        return false;
    return count > c->g->refcount_max || stored_refcount(c, cluster, &stored, NULL) < 0 ||
           stored < count;
}

static int table_users(struct check *c, size_t table, const uint8_t *bytes)
{
    for (uint32_t i = 0; i < c->g->l2_entries; i++) {
        struct l2_entry e = l2_entry_load(c->g, bytes, i);
        uint64_t off = l2_entry_host(e).v;
        if ((e.raw & ENTRY_COMPRESSED) || !off || !is_aligned(off, c->g->cluster_bytes) ||
            off >= c->file_bytes)
            continue;
        const struct cluster_user user = {off >> c->g->cluster_bits, 0, (uint32_t)table, i};
        if (uncounted(c, user.cluster) && user_vec_append(&c->users, user) < 0)
            return -ENOMEM;
    }
    return 0;
}

static int users_collect(struct check *c, struct qk_error *err)
{
    CLEANUP_FREE uint8_t *buf = malloc(c->g->cluster_bytes);
    if (!buf)
        return qk_fail_nomem(err);
    for (size_t i = 0; i < c->tables.len && i < UINT32_MAX; i++) {
        const struct l2_table *t = &c->tables.ptr[i];
        /* What lies in a table with further users is likely to be no entries. */
        if (!t->active || (t->flags & L2_UNREAD) || refmap_count(&c->refs, t->cluster) != t->refs)
            continue;
        int ret = io_read(c->file, t->cluster << c->g->cluster_bits, buf, c->g->cluster_bytes, err);
        if (ret < 0)
            return ret;
        cut_clean(c, t->cluster, buf);
        if (table_users(c, i, buf) < 0)
            return qk_fail_nomem(err);
    }
    if (c->users.len)
        qsort(c->users.ptr, c->users.len, sizeof(*c->users.ptr), user_compare);
    return 0;
}

/* ---- copies ---- */

static int find_place(struct check *c, uint64_t *cluster, struct qk_error *err)
{
    uint64_t whole = c->file_bytes >> c->g->cluster_bits;
    while (!c->spare && c->copy_from < whole && refmap_count(&c->refs, c->copy_from))
        c->copy_from++;
    *cluster = c->copy_from;
    if (!c->spare && c->copy_from < whole)
        return 0;
    if (!c->file->can_grow || c->no_growth)
        return -ENOSPC;
    *cluster = c->clusters = max_u64(c->clusters, c->named_end);
    int ret = refmap_grow(&c->refs, c->clusters + 2, err);
    if (ret == 0)
        c->clusters++;
    return ret;
}

/* buf: the shared cluster, and room for another one. */
static int copy_make(struct check *c, struct cluster_user *user, uint8_t *buf, struct qk_error *err)
{
    const struct l2_table *t = &c->tables.ptr[user->table];
    int ret = find_place(c, &user->copy, err);
    if (ret < 0)
        return ret;
    const struct refmap_span span = {user->copy, 1};
    const struct step what = {.action = "copy a shared cluster", .structure = "guest data"};
    const struct moved_bytes moved = {user->cluster << c->g->cluster_bits,
                                      user->copy << c->g->cluster_bits, buf + c->g->cluster_bytes,
                                      buf, c->g->cluster_bytes};
    const struct plan_bytes bytes = {moved.to, moved.out, moved.len};
    if (refmap_add(&c->refs, span, t->refs, 0) < 0)
        return qk_fail_nomem(err);
    ret = image_move_bytes(c->img, &moved, err);
    return ret < 0 ? ret : plan_write(c, &what, &bytes, err);
}

/* Users [i, end) of one cluster. */
static int group_copy(struct check *c, size_t i, size_t end, uint8_t *buf, struct qk_error *err)
{
    uint64_t cluster = c->users.ptr[i].cluster;
    if (!is_metadata(c, cluster))
        i++;
    if (i == end)
        return 0;
    int ret = io_read(c->file, cluster << c->g->cluster_bits, buf, c->g->cluster_bytes, err);
    for (; ret == 0 && i < end; i++)
        ret = copy_make(c, &c->users.ptr[i], buf, err);
    return ret;
}

void copies_forget(struct check *c)
{
    for (size_t i = 0; i < c->users.len; i++) {
        const struct cluster_user *user = &c->users.ptr[i];
        if (user->copy)
            refmap_drop_times(&c->refs, user->copy, c->tables.ptr[user->table].refs);
    }
    c->users.len = 0;
}

int copies_place(struct check *c, struct qk_error *err)
{
    bool wanted = (c->opts->allow & QK_ALLOW_COPIES) && (c->opts->fix & QK_FIX_ERRORS);
    if (!wanted || c->rollback || c->data_file || image_bound_to_place(c->img) ||
        (c->actions & ACT_HOLD))
        return 0;
    CLEANUP_FREE uint8_t *buf = malloc(2 * (size_t)c->g->cluster_bytes);
    int ret = buf ? users_collect(c, err) : qk_fail_nomem(err);
    for (size_t i = 0, end; ret == 0 && i < c->users.len; i = end) {
        for (end = i + 1;
             end < c->users.len && c->users.ptr[end].cluster == c->users.ptr[i].cluster;)
            end++;
        ret = group_copy(c, i, end, buf, err);
        if (ret == 0 && c->users.ptr[end - 1].copy)
            c->actions |= ACT_REBUILD | ACT_LOWER;
    }
    block_cache_drop(c);
    if (ret == -ENOSPC) {
        copies_forget(c);
        ret = 0;
    }
    return ret < 0 ? ret : plan_barrier(c, err);
}

/* ---- entries ---- */

static int entry_link(struct check *c, const struct cluster_user *user, struct qk_error *err)
{
    const struct l2_table *t = &c->tables.ptr[user->table];
    const uint32_t step = c->g->l2_entry_bytes;
    uint64_t off = (t->cluster << c->g->cluster_bits) + (uint64_t)user->index * step;
    uint8_t entry[16];
    int ret = io_read(c->file, off, entry, step, err);
    if (ret < 0)
        return ret;
    struct l2_entry e = l2_entry_load(c->g, entry, 0);
    e.raw = (e.raw & ~(L2_OFFSET_MASK | ENTRY_COPIED)) | user->copy << c->g->cluster_bits;
    if (t->refs == 1)
        e.raw |= ENTRY_COPIED;
    uint8_t word[8];
    store_be64(word, e.raw);
    static const struct step what = {.action = "name the copy", .structure = "L2 table"};
    const struct plan_bytes bytes = {off, word, sizeof(word)};
    return plan_write(c, &what, &bytes, err);
}

/* The old reference is gone: the refcount may fall, and may fit again. */
static void reference_drop(struct check *c, const struct cluster_user *user)
{
    uint64_t before = refmap_count(&c->refs, user->cluster);
    refmap_drop_times(&c->refs, user->cluster, c->tables.ptr[user->table].refs);
    uint64_t b = user->cluster >> c->g->refblock_bits;
    if (b < c->reftable.len)
        c->blocks[b] |= BLOCK_MISMATCH;
    if (before > c->g->refcount_max && refmap_count(&c->refs, user->cluster) <= c->g->refcount_max)
        sink_settle_one(&c->sink, PROBLEM_REFCOUNT_OVERFLOW);
}

int copies_link(struct check *c, struct qk_error *err)
{
    int ret = 0;
    bool any = false;
    for (size_t i = 0; ret == 0 && i < c->users.len; i++) {
        if (!c->users.ptr[i].copy)
            continue;
        ret = entry_link(c, &c->users.ptr[i], err);
        any = true;
    }
    if (ret < 0 || !any)
        return ret;
    ret = plan_barrier(c, err);
    for (size_t i = 0; ret == 0 && i < c->users.len; i++) {
        if (c->users.ptr[i].copy)
            reference_drop(c, &c->users.ptr[i]);
    }
    block_cache_drop(c);
    return ret < 0 ? ret : refcounts_lower(c, err);
}
