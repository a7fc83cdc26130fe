/*
 * snapshot_table.c - the snapshot table of an open image: reading it, finding entries, laying out a
 * new one; and the L1 tables that it names. Everything read is checked against the file (INV-4).
 */
#include "image/image_int.h"
#include "image/snapshots.h"

#include "base/bytes.h"

static int damaged(struct image *img, uint64_t off, const char *why, struct qk_error *err)
{
    return qk_fail_at(err, -EINVAL, WHERE(img->file->name, "snapshot table", off),
                      "Snapshot table entry at %#" PRIx64 " is malformed: %s", off, why);
}

/* ---- reading ---- */

/* Bytes of the file from the table's beginning on, as they are needed. */
struct window {
    uint8_t *bytes;
    uint64_t off; /* in the file, of bytes[0] */
    size_t len, room;
};

#define WINDOW_BYTES (256u << 10)

/* Makes at least one entry of the largest size available at `off`, where the file has it. */
static int window_at(struct image *img, struct window *w, uint64_t off, uint64_t file_bytes,
                     struct qk_error *err)
{
    const size_t largest =
        SNAPSHOT_FIXED_BYTES + SNAPSHOT_EXTRA_BYTES_MAX + 2 * SNAPSHOT_TEXT_MAX + 8;
    size_t left = w->bytes ? (size_t)(w->off + w->len - off) : 0;
    if (left >= largest || (w->bytes && w->off + w->len == file_bytes))
        return 0;
    w->room = WINDOW_BYTES;
    if (!w->bytes && !(w->bytes = malloc(w->room)))
        return qk_fail_nomem(err);
    w->off = off;
    w->len = (size_t)min_u64(w->room, file_bytes - off);
    return io_read(img->file, off, w->bytes, w->len, err);
}

static int read_entries(struct image *img, struct window *w, uint64_t file_bytes,
                        struct snapshot_vec *out, struct qk_error *err)
{
    const struct snapshot_defaults defaults = {img->h.version, image_size(img)};
    uint64_t off = img->h.snapshots_off;
    for (uint32_t i = 0; i < img->h.snapshot_count; i++) {
        struct snapshot s;
        struct qk_error why = {0};
        size_t used;
        int ret = window_at(img, w, off, file_bytes, err);
        if (ret < 0)
            return ret;
        size_t skip = (size_t)(off - w->off);
        ret = snapshot_decode(w->bytes + skip, w->len - skip, &defaults, &s, &used, &why);
        if (ret == -ENOMEM)
            return qk_fail_nomem(err);
        if (ret < 0)
            return damaged(img, off, why.text, err);
        if (snapshot_vec_append(out, s) < 0) {
            snapshot_free(&s);
            return qk_fail_nomem(err);
        }
        off += used;
    }
    return 0;
}

int image_snapshots(struct image *img, struct snapshot_vec *out, struct qk_error *err)
{
    uint64_t file_bytes;
    struct window w = {0};
    *out = (struct snapshot_vec){0};
    int ret = io_size(img->file, &file_bytes, err);
    if (ret < 0 || !img->h.snapshot_count)
        return ret;
    if (img->h.snapshots_off >= file_bytes)
        return damaged(img, img->h.snapshots_off, "it lies beyond the end of the file", err);
    io_event(img->file, "snapshot_load");
    ret = read_entries(img, &w, file_bytes, out, err);
    free(w.bytes);
    return ret;
}

int64_t snapshots_find(const struct snapshot_vec *v, const struct snapshot_key *key)
{
    for (size_t i = 0; i < v->len; i++) {
        const struct snapshot *s = &v->ptr[i];
        if ((!key->id || strcmp(s->id, key->id) == 0) &&
            (!key->name || strcmp(s->name, key->name) == 0) &&
            (!key->either || strcmp(s->id, key->either) == 0))
            return (int64_t)i;
    }
    if (!key->either)
        return -ENOENT;
    const struct snapshot_key by_name = {key->id, key->either, NULL};
    return snapshots_find(v, &by_name);
}

static int judge_l1(struct image *img, const struct snapshot *s, struct qk_error *err)
{
    uint64_t off = s->fixed.l1_off, bytes = s->fixed.l1_entries * UINT64_C(8);
    uint64_t file_bytes = img->end_clusters << img->g.cluster_bits;
    struct where where = {img->file->name, "snapshot table", off};
    if (bytes > QCOW2_MAX_L1_BYTES)
        return qk_fail_at(err, -EFBIG, &where, "Snapshot L1 table too large");
    if (!is_aligned(off, img->g.cluster_bytes) || !range_within(off, bytes, file_bytes))
        return qk_fail_at(err, -EINVAL, &where, "Snapshot L1 table offset invalid");
    return 0;
}

int snapshot_read_l1(struct image *img, const struct snapshot *s, uint64_t room, uint64_t **l1,
                     struct qk_error *err)
{
    uint64_t count = s->fixed.l1_entries;
    int ret = judge_l1(img, s, err);
    if (ret < 0)
        return ret;
    *l1 = calloc(max_u64(round_up(max_u64(count, room), 64), 64), sizeof(**l1));
    if (!*l1)
        return qk_fail_nomem(err);
    ret = count ? io_read(img->file, s->fixed.l1_off, *l1, count * 8, err) : 0;
    for (uint64_t i = 0; i < count && ret == 0; i++)
        (*l1)[i] = load_be64(&(*l1)[i]);
    if (ret < 0)
        free(TAKE(*l1));
    return ret;
}

int snapshot_show(struct image *img, const struct snapshot_key *key, struct qk_error *err)
{
    struct snapshot_vec list;
    if (img->opts.writable)
        return qk_fail(err, -EINVAL, "a snapshot can only be read");
    int ret = image_snapshots(img, &list, err);
    int64_t i = ret < 0 ? ret : snapshots_find(&list, key);
    if (ret == 0 && i < 0)
        ret = qk_fail_at(err, -ENOENT, WHERE(img->file->name, "snapshot table", QK_OFFSET_NONE),
                         "Can't find snapshot");
    if (ret == 0)
        ret = judge_l1(img, &list.ptr[i], err);
    if (ret == 0) {
        img->h.l1_off = list.ptr[i].fixed.l1_off;
        img->h.l1_entries = list.ptr[i].fixed.l1_entries;
        img->h.size_bytes = list.ptr[i].disk_bytes;
    }
    snapshots_free_all(&list);
    return ret;
}

/* ---- writing ---- */

void snapshots_next_id(const struct snapshot_vec *v, char id[21])
{
    uint64_t max = 0;
    for (size_t i = 0; i < v->len; i++)
        max = max_u64(max, strtoul(v->ptr[i].id, NULL, 10));
    snprintf(id, 21, "%" PRIu64, max + 1);
}

int snapshots_encode(const struct image *img, const struct snapshot_vec *v, uint8_t **out,
                     uint64_t *bytes, struct qk_error *err)
{
    uint64_t total = 0;
    *out = NULL;
    *bytes = 0;
    for (size_t i = 0; i < v->len; i++)
        total += snapshot_bytes(&v->ptr[i], img->h.version);
    if (v->len > QCOW2_MAX_SNAPSHOTS || total > SNAPSHOT_TABLE_BYTES_MAX)
        return qk_fail(err, -EFBIG,
                       "the image cannot have more snapshots: at most %u in a table of "
                       "at most %u bytes",
                       QCOW2_MAX_SNAPSHOTS, SNAPSHOT_TABLE_BYTES_MAX);
    if (!v->len)
        return 0;
    *bytes = round_up(total, img->g.cluster_bytes);
    *out = aligned_alloc(4096, round_up(*bytes, 4096));
    if (!*out)
        return qk_fail_nomem(err);
    memset(*out, 0, *bytes);
    uint8_t *at = *out;
    for (size_t i = 0; i < v->len; i++) {
        snapshot_encode(&v->ptr[i], img->h.version, at);
        at += snapshot_bytes(&v->ptr[i], img->h.version);
    }
    return 0;
}
