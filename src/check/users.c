/*
 * users.c - whose it is: which snapshot an L1 table or an L2 table belongs to, and who shares a
 * cluster that is counted for fewer. Clusters are asked for first (users_want), then one pass over
 * the tables finds their users (users_find). Relies on roots and walk being done. Memory: a bounded
 * number of clusters, with the first few users of each.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"

#include <string.h>

#define WANTED_MAX 256u

/* ---- snapshots ---- */

/* The L1 table of one snapshot, and of those up to this one the one that ends last. */
struct snapshot_range {
    uint64_t off, end;
    uint32_t index, last;
};

static int range_compare(const void *a, const void *b)
{
    const struct snapshot_range *x = a, *y = b;
    if (x->off != y->off)
        return x->off < y->off ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

int snapshot_ranges_init(struct check *c, struct qk_error *err)
{
    size_t n = c->snapshot_l1.len / 2;
    struct snapshot_range *r = calloc(n + 1, sizeof(*r));
    if (!r)
        return qk_fail_nomem(err);
    for (size_t i = 0; i < n; i++) {
        uint64_t off = c->snapshot_l1.ptr[2 * i];
        r[i] = (struct snapshot_range){off, off + c->snapshot_l1.ptr[2 * i + 1], (uint32_t)i, 0};
    }
    qsort(r, n, sizeof(*r), range_compare);
    for (size_t i = 1; i < n; i++)
        r[i].last = r[i].end > r[r[i - 1].last].end ? (uint32_t)i : r[i - 1].last;
    c->snapshot_ranges = r;
    return 0;
}

/* Of the tables that this byte lies in, the one that ends last; NULL: it lies in none. */
static const struct snapshot_range *range_at(const struct check *c, uint64_t off)
{
    const struct snapshot_range *r = c->snapshot_ranges;
    size_t low = 0, high = r ? c->snapshot_l1.len / 2 : 0;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (r[mid].off <= off)
            low = mid + 1;
        else
            high = mid;
    }
    return low && r[r[low - 1].last].end > off ? &r[r[low - 1].last] : NULL;
}

bool in_snapshot_l1(const struct check *c, uint64_t off)
{
    return range_at(c, off);
}

struct owner snapshot_at(const struct check *c, uint64_t off)
{
    const struct snapshot_range *r = range_at(c, off);
    if (!r)
        return (struct owner){0, 0};
    return (struct owner){r->index < UINT16_MAX ? (uint16_t)(r->index + 1) : 0,
                          (uint32_t)((off - r->off) / 8)};
}

void snapshot_label(struct check *c, uint16_t snapshot, struct snapshot_text *text)
{
    memset(text, 0, sizeof(*text));
    size_t i = 2 * (size_t)(snapshot - 1);
    if (snapshot && i < c->snapshot_kept.len)
        snapshot_entry_label(c, c->snapshot_kept.ptr[i], text);
}

void snapshot_entry_label(struct check *c, uint64_t off, struct snapshot_text *text)
{
    uint8_t head[40];
    memset(text, 0, sizeof(*text));
    if (io_read(c->file, off, head, sizeof(head), NULL) < 0)
        return;
    uint64_t id = load_be16(head + 12), name = load_be16(head + 14);
    off += sizeof(head) + load_be32(head + 36);
    io_read(c->file, off, text->id, min_u64(id, sizeof(text->id) - 1), NULL);
    io_read(c->file, off + id, text->name, min_u64(name, sizeof(text->name) - 1), NULL);
}

uint64_t snapshot_disk_bytes(struct check *c, uint64_t entry_off)
{
    uint8_t fields[56];
    if (io_read(c->file, entry_off, fields, sizeof(fields), NULL) < 0 ||
        load_be32(fields + 36) < 16)
        return c->h->size_bytes;
    return min_u64(load_be64(fields + 48), INT64_MAX);
}

void sink_of_snapshot(struct check *c, uint16_t snapshot)
{
    if (c->sink.snapshot)
        sink_flush(&c->sink);
    snapshot_label(c, snapshot, &c->label);
    c->sink.snapshot = c->label.id[0] ? c->label.id : NULL;
    c->sink.snapshot_name = c->label.id[0] ? c->label.name : NULL;
}

/* ---- who shares ---- */

static int shared_compare(const void *a, const void *b)
{
    const struct shared_cluster *x = a, *y = b;
    return x->cluster < y->cluster ? -1 : x->cluster > y->cluster;
}

static struct shared_cluster *shared_find(const struct check *c, uint64_t cluster)
{
    const struct shared_cluster key = {.cluster = cluster};
    if (!c->shared.len)
        return NULL;
    return bsearch(&key, c->shared.ptr, c->shared.len, sizeof(key), shared_compare);
}

int users_want(struct check *c, uint64_t cluster, struct qk_error *err)
{
    const struct shared_cluster wanted = {.cluster = cluster};
    if (!c->opts->on_problem || c->shared.len >= WANTED_MAX)
        return 0;
    return shared_vec_append(&c->shared, wanted) < 0 ? qk_fail_nomem(err) : 0;
}

static void user_add(struct check *c, uint64_t cluster, struct shared_user user)
{
    struct shared_cluster *s = shared_find(c, cluster);
    if (!s)
        return;
    if (s->listed < QK_USERS_LISTED)
        s->users[s->listed++] = user;
}

static void user_range(struct check *c, uint64_t off, uint64_t bytes, const char *structure)
{
    struct refmap_span span;
    if (!range_span(c, off, bytes, &span))
        return;
    for (size_t i = 0; i < c->shared.len; i++) {
        uint64_t cluster = c->shared.ptr[i].cluster;
        if (cluster >= span.first && cluster - span.first < span.count)
            user_add(c, cluster, (struct shared_user){structure, off, QK_OFFSET_NONE, 0});
    }
}

static void structures_find(struct check *c)
{
    user_range(c, 0, c->g->cluster_bytes, "header");
    user_range(c, c->h->l1_off, (uint64_t)c->l1_entries * 8, "active L1 table");
    user_range(c, c->h->reftable_off, (uint64_t)c->h->reftable_clusters << c->g->cluster_bits,
               "refcount table");
    user_range(c, c->snapshot_old.first << c->g->cluster_bits,
               c->snapshot_old.count << c->g->cluster_bits, "snapshot table");
    for (size_t i = 0; i + 1 < c->snapshot_l1.len; i += 2)
        user_range(c, c->snapshot_l1.ptr[i], c->snapshot_l1.ptr[i + 1], "snapshot's L1 table");
    for (size_t i = 0; i < c->reftable.len; i++) {
        uint64_t off = c->reftable.ptr[i] & REFTABLE_OFFSET_MASK;
        if (off)
            user_add(c, off >> c->g->cluster_bits,
                     (struct shared_user){"refcount block", off, QK_OFFSET_NONE, 0});
    }
    for (size_t i = 0; i < c->tables.len; i++) {
        const struct l2_table *t = &c->tables.ptr[i];
        user_add(c, t->cluster,
                 (struct shared_user){"L2 table", t->cluster << c->g->cluster_bits,
                                      table_place(c, t, 0), t->active ? 0 : t->snapshot});
    }
}

static void entry_find(struct check *c, const struct l2_table *t, uint32_t index, struct l2_entry e)
{
    struct l2_verdict v;
    struct refmap_span span;
    l2_judge(c, e, QK_OFFSET_NONE, &v);
    if (!v.counted || !range_span(c, v.off, v.bytes, &span))
        return;
    uint64_t off = (t->cluster << c->g->cluster_bits) + (uint64_t)index * c->g->l2_entry_bytes;
    for (uint64_t i = 0; i < span.count; i++)
        user_add(c, span.first + i,
                 (struct shared_user){"guest data", off, table_place(c, t, index),
                                      t->active ? 0 : t->snapshot});
}

static void table_find_users(struct check *c, const struct l2_table *t, uint8_t *buf)
{
    uint64_t low = c->shared.ptr[0].cluster, high = c->shared.ptr[c->shared.len - 1].cluster;
    if ((t->flags & L2_UNREAD) ||
        io_read(c->file, t->cluster << c->g->cluster_bits, buf, c->g->cluster_bytes, NULL) < 0)
        return;
    cut_clean(c, t->cluster, buf);
    for (uint32_t i = 0; i < c->g->l2_entries; i++) {
        struct l2_entry e = l2_entry_load(c->g, buf, i);
        uint64_t cluster = l2_entry_host(e).v >> c->g->cluster_bits;
        bool compressed = e.raw & ENTRY_COMPRESSED;
        if (e.raw && (compressed || (cluster >= low && cluster <= high)))
            entry_find(c, t, i, e);
    }
}

int users_find(struct check *c, struct qk_error *err)
{
    if (!c->shared.len)
        return 0;
    qsort(c->shared.ptr, c->shared.len, sizeof(*c->shared.ptr), shared_compare);
    size_t n = 1;
    for (size_t i = 1; i < c->shared.len; i++) {
        if (c->shared.ptr[i].cluster != c->shared.ptr[n - 1].cluster)
            c->shared.ptr[n++] = c->shared.ptr[i];
    }
    c->shared.len = n;
    for (size_t i = 0; i < n; i++) {
        c->shared.ptr[i].listed = 0;
        c->shared.ptr[i].total = refmap_count(&c->refs, c->shared.ptr[i].cluster);
    }
    CLEANUP_FREE uint8_t *buf = malloc(c->g->cluster_bytes);
    if (!buf)
        return qk_fail_nomem(err);
    structures_find(c);
    for (size_t i = 0; i < c->tables.len; i++)
        table_find_users(c, &c->tables.ptr[i], buf);
    return 0;
}

void sink_of_cluster(struct check *c, uint64_t cluster)
{
    const struct shared_cluster *s = shared_find(c, cluster);
    c->sink.user_count = s ? s->listed : 0;
    c->sink.user_total = s ? s->total : 0;
    c->sink.guest_off = QK_OFFSET_NONE;
    for (unsigned i = 0; i < c->sink.user_count; i++) {
        const struct shared_user *u = &s->users[i];
        snapshot_label(c, u->snapshot, &c->user_labels[i]);
        c->sink.users[i] = (struct qk_cluster_user){
            .struct_size = sizeof(c->sink.users[i]),
            .structure = u->structure,
            .file_off = u->file_off,
            .guest_off = u->guest_off,
            .snapshot = c->user_labels[i].id[0] ? c->user_labels[i].id : NULL,
        };
        if (c->sink.guest_off == QK_OFFSET_NONE)
            c->sink.guest_off = u->guest_off;
    }
}

void sink_of_nothing(struct check *c)
{
    if (c->sink.snapshot)
        sink_flush(&c->sink);
    c->sink.snapshot = c->sink.snapshot_name = NULL;
    c->sink.user_count = 0;
    c->sink.guest_off = QK_OFFSET_NONE;
}
