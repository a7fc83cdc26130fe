/*
 * overlap_load.c - learning where an image's metadata is, for the overlap check: the active L2
 * tables and refcount blocks from the tables in memory; the snapshot table and the snapshots' L1
 * tables from the file; their L2 tables only when that level of the check was asked for, since
 * each inactive L1 has to be read for it.
 */
#include "image/overlap.h"

#include "base/bytes.h"
#include "format/snapshot.h"

static int note_off(struct image *img, uint64_t off, unsigned kind)
{
    return overlap_note(img, (struct cluster_run){image_cluster_of(img, off), 1, false}, kind);
}

static int bad_table(struct image *img, uint64_t off, struct qk_error *err)
{
    return qk_fail_at(err, -EINVAL, WHERE(img->file->name, "snapshot table", off),
                      "the entry at %" PRIu64 " is damaged: the image cannot be written to before "
                      "it is repaired",
                      off);
}

static int note_inactive_l2(struct image *img, const struct snapshot_fixed *s, struct qk_error *err)
{
    uint64_t bytes = (uint64_t)s->l1_entries * 8;
    CLEANUP_FREE uint8_t *l1 = malloc(bytes ? bytes : 1);
    if (!l1)
        return qk_fail_nomem(err);
    int ret = io_read(img->file, s->l1_off, l1, bytes, err);
    for (uint64_t i = 0; i < s->l1_entries && ret == 0; i++) {
        uint64_t off = l1_entry_host(load_be64(l1 + i * 8));
        if (off && note_off(img, off, OVERLAP_INACTIVE_L2) < 0)
            ret = qk_fail_nomem(err);
    }
    return ret;
}

static int load_snapshot(struct image *img, uint64_t *off, struct qk_error *err)
{
    uint8_t bytes[SNAPSHOT_FIXED_BYTES];
    uint64_t file_bytes = img->end_clusters << img->g.cluster_bits;
    if (!range_within(*off, sizeof(bytes), file_bytes))
        return bad_table(img, *off, err);
    int ret = io_read(img->file, *off, bytes, sizeof(bytes), err);
    if (ret < 0)
        return ret;
    struct snapshot_fixed s = snapshot_fixed_decode(bytes);
    uint64_t l1_bytes = (uint64_t)s.l1_entries * 8;
    if (!range_within(*off, snapshot_entry_bytes(&s), file_bytes) ||
        !range_within(s.l1_off, l1_bytes, file_bytes) || l1_bytes > QCOW2_MAX_L1_BYTES)
        return bad_table(img, *off, err);
    *off += snapshot_entry_bytes(&s);
    struct byte_range range = {s.l1_off, l1_bytes, OVERLAP_INACTIVE_L1};
    if (byte_range_vec_append(&img->tables->ranges, range) < 0)
        return qk_fail_nomem(err);
    return img->opts.overlap & OVERLAP_INACTIVE_L2 ? note_inactive_l2(img, &s, err) : 0;
}

static int load_snapshots(struct image *img, struct qk_error *err)
{
    uint64_t off = img->h.snapshots_off;
    int ret = 0;
    for (uint32_t i = 0; i < img->h.snapshot_count && ret == 0; i++)
        ret = load_snapshot(img, &off, err);
    struct byte_range table = {img->h.snapshots_off, off - img->h.snapshots_off,
                               OVERLAP_SNAPSHOT_TABLE};
    if (ret == 0 && table.len && byte_range_vec_append(&img->tables->ranges, table) < 0)
        ret = qk_fail_nomem(err);
    return ret;
}

int overlap_load(struct image *img, struct qk_error *err)
{
    overlap_destroy(img);
    img->tables = calloc(1, sizeof(*img->tables));
    int ret = img->tables ? 0 : -ENOMEM;
    for (uint32_t i = 0; i < img->l1_count && ret == 0; i++)
        if (l1_entry_host(img->l1[i]))
            ret = note_off(img, l1_entry_host(img->l1[i]), OVERLAP_ACTIVE_L2);
    for (uint64_t i = 0; i < img->reftable.count && ret == 0; i++)
        if (img->reftable.entries[i])
            ret = note_off(img, img->reftable.entries[i], OVERLAP_REFCOUNT_BLOCK);
    /* Guest bytes over the key slots would lose all others. */
    if (ret == 0 && img->luks)
        ret = byte_range_vec_append(
            &img->tables->ranges,
            (struct byte_range){img->luks->area.off, img->luks->area.bytes, OVERLAP_MAIN_HEADER});
    if (ret < 0)
        return qk_fail_nomem(err);
    /* A check describes a damaged snapshot table, and repairs with its own knowledge of it. */
    return img->opts.for_check ? 0 : load_snapshots(img, err);
}
