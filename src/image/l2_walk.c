/* l2_walk.c - walking all L2 tables below an L1: see l2_walk.h for the contract. */
#include "image/l2_walk.h"

#include "base/bytes.h"
#include "image/snapshots.h"

/* ---- which tables ---- */

static int by_off(const void *a, const void *b)
{
    const struct l2_table *x = a, *y = b;
    if (x->off != y->off)
        return x->off < y->off ? -1 : 1;
    return x->l1_index < y->l1_index ? -1 : x->l1_index > y->l1_index;
}

/* Sorts and joins the entries that name the same table. */
static void join_equal(struct l2_table_vec *v)
{
    size_t n = 0;
    if (v->len)
        qsort(v->ptr, v->len, sizeof(*v->ptr), by_off);
    for (size_t i = 0; i < v->len; i++) {
        if (n && v->ptr[n - 1].off == v->ptr[i].off)
            v->ptr[n - 1].uses++;
        else
            v->ptr[n++] = v->ptr[i];
    }
    v->len = n;
}

static bool inside_file(const struct image *img, uint64_t off, uint64_t bytes)
{
    return range_within(off, bytes, img->end_clusters << img->g.cluster_bits);
}

int l2_tables_of(struct image *img, const uint64_t *l1, uint64_t count, struct l2_table_vec *out,
                 struct qk_error *err)
{
    for (uint64_t i = 0; i < count; i++) {
        struct l2_table t = {.off = l1_entry_host(l1[i]), .l1_index = (uint32_t)i, .uses = 1};
        if (!t.off)
            continue;
        if (!is_aligned(t.off, img->g.cluster_bytes) ||
            !inside_file(img, t.off, img->g.cluster_bytes))
            return qk_fail_at(err, -EIO, WHERE(img->file->name, "L1 table", QK_OFFSET_NONE),
                              "L2 table offset 0x%" PRIx64 " is unaligned or beyond the end of the "
                              "file (L1 index: 0x%" PRIx64 "); run a check to see the damage",
                              t.off, i);
        if (l2_table_vec_append(out, t) < 0)
            return qk_fail_nomem(err);
    }
    join_equal(out);
    return 0;
}

const struct l2_table *l2_tables_find(const struct l2_table_vec *tables, uint64_t off)
{
    size_t lo = 0, hi = tables->len;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (tables->ptr[mid].off < off)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < tables->len && tables->ptr[lo].off == off ? &tables->ptr[lo] : NULL;
}

/* ---- those of all L1 tables ---- */

DEFINE_VECTOR(u64_vec, uint64_t)

static int append_entries(struct u64_vec *all, const uint64_t *l1, uint64_t count,
                          struct qk_error *err)
{
    if (u64_vec_reserve(all, all->len + count) < 0)
        return qk_fail_nomem(err);
    for (uint64_t i = 0; i < count; i++)
        u64_vec_append(all, l1[i]);
    return 0;
}

static int append_snapshots(struct image *img, struct u64_vec *all, struct qk_error *err)
{
    struct snapshot_vec snapshots;
    int ret = image_snapshots(img, &snapshots, err);
    for (size_t i = 0; i < snapshots.len && ret == 0; i++) {
        uint64_t *l1;
        ret = snapshot_read_l1(img, &snapshots.ptr[i], 0, &l1, err);
        if (ret < 0)
            break;
        ret = append_entries(all, l1, snapshots.ptr[i].fixed.l1_entries, err);
        free(l1);
    }
    snapshots_free_all(&snapshots);
    return ret;
}

int l2_tables_all(struct image *img, struct l2_table_vec *out, struct qk_error *err)
{
    struct u64_vec all = {0};
    int ret = append_entries(&all, img->l1, img->l1_count, err);
    if (ret == 0)
        ret = append_snapshots(img, &all, err);
    if (ret == 0)
        ret = l2_tables_of(img, all.ptr, all.len, out, err);
    u64_vec_free(&all);
    return ret;
}

/* ---- reading them ---- */

/* How many tables from `first` on stand behind one another, as far as a piece holds. */
static size_t neighbours(const struct image *img, const struct l2_table_vec *v, size_t first,
                         size_t max)
{
    size_t n = 1;
    while (n < max && first + n < v->len &&
           v->ptr[first + n].off == v->ptr[first].off + (uint64_t)n * img->g.cluster_bytes)
        n++;
    return n;
}

int l2_tables_visit(struct image *img, const struct l2_table_vec *tables, l2_table_visit visit,
                    void *opaque, struct qk_error *err)
{
    const size_t cluster = img->g.cluster_bytes;
    const size_t max = (size_t)max_u64(L2_WALK_BYTES / cluster, 1);
    CLEANUP_FREE uint8_t *buf =
        tables->len ? aligned_alloc(4096, round_up(min_u64(max, tables->len) * cluster, 4096))
                    : NULL;
    if (tables->len && !buf)
        return qk_fail_nomem(err);
    int ret = 0;
    for (size_t i = 0; i < tables->len && ret == 0;) {
        size_t n = neighbours(img, tables, i, max);
        io_event(img->file, "l2_load");
        ret = io_read(img->file, tables->ptr[i].off, buf, n * cluster, err);
        for (size_t k = 0; k < n && ret == 0; k++)
            ret = visit(opaque, &tables->ptr[i + k], buf + k * cluster, err);
        i += n;
    }
    return ret;
}

/* ---- what they refer to ---- */

static int bad_entry(struct image *img, const struct l2_table *t, uint32_t index,
                     struct qk_error *err)
{
    return qk_fail_at(
        err, -EIO,
        WHERE(img->file->name, "L2 table", t->off + (uint64_t)index * img->g.l2_entry_bytes),
        "cluster offset is unaligned or beyond the end of the file; run a check to "
        "see the damage");
}

static bool run_valid(const struct image *img, struct cluster_run run)
{
    return range_within(run.first, run.count, img->end_clusters);
}

static struct cluster_run compressed_run(const struct image *img, uint64_t raw)
{
    struct compressed_extent c = compressed_decode(&img->g, raw);
    uint64_t first = image_cluster_of(img, c.off);
    return (struct cluster_run){first, image_cluster_of(img, c.off + c.bytes - 1) - first + 1,
                                false};
}

int l2_table_runs(struct image *img, const struct l2_table *table, const uint8_t *bytes,
                  l2_run_fn fn, void *opaque, struct qk_error *err)
{
    const uint64_t in_cluster = img->g.cluster_bytes - 1;
    struct cluster_run run = {0};
    int ret = 0;
    for (uint32_t i = 0; i < img->g.l2_entries; i++) {
        uint64_t raw = load_be64(bytes + (size_t)i * img->g.l2_entry_bytes);
        uint64_t host = raw & L2_OFFSET_MASK;
        struct cluster_run one = {host >> img->g.cluster_bits, 1, false};
        bool packed = raw & ENTRY_COMPRESSED;
        if (packed)
            one = compressed_run(img, raw);
        else if (!host || img->g.data_file)
            continue;
        if ((!packed && host & in_cluster) || !run_valid(img, one))
            return bad_entry(img, table, i, err);
        if (run.count && !packed && one.first == run.first + run.count) {
            run.count++;
            continue;
        }
        if (run.count && (ret = fn(opaque, run, err)) != 0)
            return ret;
        run = one;
        if (packed) {
            ret = fn(opaque, run, err);
            run.count = 0;
        }
        if (ret != 0)
            return ret;
    }
    return run.count ? fn(opaque, run, err) : 0;
}
