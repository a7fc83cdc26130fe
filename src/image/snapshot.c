/*
 * snapshot.c - creating, deleting, applying and renaming snapshots: what each of them means as a
 * new shape of the image, which reshape.c brings about. See snapshots.h.
 */
#include "image/reshape.h"

/* What all of them have: the disk held, the image frozen, the list read. */
struct op {
    struct image *img;
    struct range_hold hold;
    struct snapshot_vec list;
    struct snapshot target; /* taken out of the list; free to be empty */
    struct reshape r;
    uint64_t *other_l1; /* of a snapshot, host-endian */
    bool deletes;
};

static uint64_t table_clusters(const struct image *img, const struct snapshot_vec *v)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < v->len; i++)
        bytes += snapshot_entry_bytes(&v->ptr[i].fixed);
    return div_round_up(bytes, img->g.cluster_bytes);
}

static uint64_t *copy_l1(const uint64_t *l1, uint64_t entries, uint64_t room)
{
    uint64_t *copy = calloc(max_u64(round_up(max_u64(entries, room), 64), 64), sizeof(*copy));
    if (copy)
        memcpy(copy, l1, entries * sizeof(*copy));
    return copy;
}

static int judge_image(const struct image *img, struct qk_error *err)
{
    if (img->h.incompatible & INCOMPAT_DATA_FILE)
        return qk_fail(err, -ENOTSUP,
                       "internal snapshots of images with an external data file are "
                       "not possible");
    return 0;
}

/* The new shape is the present one, until the operation says otherwise. */
static int begin(struct op *op, struct qk_error *err)
{
    struct image *img = op->img;
    int ret = judge_image(img, err);
    if (ret == 0)
        ret = image_freeze(img, err);
    if (ret < 0)
        return ret;
    ret = image_snapshots(img, &op->list, err);
    op->r = (struct reshape){.img = img,
                             .snapshots = &op->list,
                             .l1_entries = img->l1_count,
                             .disk_bytes = image_size(img),
                             .snapshot_clusters = table_clusters(img, &op->list)};
    op->r.l1 = copy_l1(img->l1, img->l1_count, 0);
    if (ret == 0 && !op->r.l1)
        ret = qk_fail_nomem(err);
    if (ret < 0) {
        free(TAKE(op->r.l1));
        image_thaw(img);
    }
    return ret;
}

typedef int (*op_fn)(struct op *op, const void *what, struct qk_error *err);

/* Who deletes a snapshot because the disk is full has no space for doing it. */
static int shape(struct op *op, op_fn fn, const void *what, struct qk_error *err)
{
    struct qk_error why = {0};
    int ret = fn(op, what, &why);
    if (ret == 0)
        ret = reshape_run(&op->r, &why);
    image_thaw(op->img);
    if (ret == -ENOSPC && op->deletes && op->r.judged)
        ret = reshape_in_place(&op->r, &why);
    reshape_end(&op->r);
    if (ret < 0 && err)
        *err = why;
    return ret;
}

static int run(struct image *img, op_fn fn, const void *what, struct qk_error *err)
{
    struct op op = {.img = img};
    image_drain(img, &op.hold);
    int ret = begin(&op, err);
    if (ret == 0)
        ret = shape(&op, fn, what, err);
    range_release(&img->ranges, &op.hold);
    snapshots_free_all(&op.list);
    snapshot_free(&op.target);
    free(op.other_l1);
    return ret;
}

static int find(const struct op *op, const struct snapshot_key *key, struct snapshot **out,
                struct qk_error *err)
{
    int64_t i = snapshots_find(&op->list, key);
    if (i < 0)
        return qk_fail(err, -ENOENT, "Can't find the snapshot");
    *out = &op->list.ptr[i];
    return 0;
}

/* ---- create ---- */

static int set_text(char **text, uint32_t *bytes, const char *value, struct qk_error *err)
{
    size_t len = strlen(value);
    if (len > SNAPSHOT_TEXT_MAX)
        return qk_fail(err, -EINVAL, "the name is too long: %zu bytes, at most %u", len,
                       (unsigned)SNAPSHOT_TEXT_MAX);
    char *copy = strdup(value);
    if (!copy)
        return qk_fail_nomem(err);
    free(*text);
    *text = copy;
    *bytes = (uint32_t)len;
    return 0;
}

static int describe(struct op *op, const struct snapshot_params *p, struct qk_error *err)
{
    struct snapshot s = {
        .fixed = {.l1_entries = op->img->l1_count,
                  .extra_bytes = SNAPSHOT_EXTRA_KNOWN_BYTES,
                  .date_sec = p->date_sec,
                  .date_nsec = p->date_nsec,
                  .vm_clock_ns = p->vm_clock_ns,
                  .vm_state_bytes = (uint32_t)min_u64(p->vm_state_bytes, UINT32_MAX)},
        .vm_state_bytes = p->vm_state_bytes,
        .disk_bytes = image_size(op->img),
        .icount = p->icount,
    };
    char id[21];
    snapshots_next_id(&op->list, id);
    int ret = set_text(&s.id, &s.fixed.id_bytes, id, err);
    if (ret == 0)
        ret = set_text(&s.name, &s.fixed.name_bytes, p->name, err);
    if (ret == 0 && snapshot_vec_append(&op->list, s) < 0)
        ret = qk_fail_nomem(err);
    if (ret < 0)
        snapshot_free(&s);
    else
        op->r.fresh = &op->list.ptr[op->list.len - 1];
    return ret;
}

static int create(struct op *op, const void *what, struct qk_error *err)
{
    const struct snapshot_params *p = what;
    struct image *img = op->img;
    if (op->list.len >= QCOW2_MAX_SNAPSHOTS)
        return qk_fail(err, -EFBIG, "the image has as many snapshots as it can have (%u)",
                       QCOW2_MAX_SNAPSHOTS);
    int ret = describe(op, p, err);
    if (ret < 0)
        return ret;
    op->r.fresh_l1 = img->l1;
    /* Machine state goes with the snapshot: the active L1 keeps none of it. */
    uint64_t disk_entries = geometry_l1_entries(&img->g, image_size(img));
    for (uint64_t i = disk_entries; p->vm_state_bytes && i < op->r.l1_entries; i++)
        op->r.l1[i] = 0;
    return l2_tables_of(img, op->r.l1, op->r.l1_entries, &op->r.come, err);
}

int image_snapshot_create(struct image *img, const struct snapshot_params *params,
                          struct qk_error *err)
{
    return run(img, create, params, err);
}

/* ---- delete ---- */

static int delete (struct op *op, const void *what, struct qk_error *err)
{
    struct image *img = op->img;
    struct snapshot *s;
    int ret = find(op, what, &s, err);
    if (ret == 0)
        ret = snapshot_read_l1(img, s, 0, &op->other_l1, err);
    if (ret < 0)
        return ret;
    op->r.gone_l1 = (struct cluster_run){
        image_cluster_of(img, s->fixed.l1_off),
        div_round_up(s->fixed.l1_entries * UINT64_C(8), img->g.cluster_bytes), false};
    ret = l2_tables_of(img, op->other_l1, s->fixed.l1_entries, &op->r.go, err);
    op->target = *s;
    op->deletes = true;
    size_t i = (size_t)(s - op->list.ptr);
    op->r.drops_last = i + 1 == op->list.len;
    memmove(s, s + 1, (op->list.len - i - 1) * sizeof(*s));
    op->list.len--;
    return ret;
}

int image_snapshot_delete(struct image *img, const struct snapshot_key *key, struct qk_error *err)
{
    return run(img, delete, key, err);
}

/* ---- apply ---- */

static int judge_size(const struct image *img, const struct snapshot *s, struct qk_error *err)
{
    if (s->disk_bytes == image_size(img))
        return 0;
    if (img->h.version < 3)
        return qk_fail(err, -ENOTSUP, "Can't resize a v2 image which has snapshots");
    if (s->disk_bytes > INT64_MAX ||
        geometry_l1_entries(&img->g, s->disk_bytes) * 8 > QCOW2_MAX_L1_BYTES)
        return qk_fail(err, -EFBIG, "the snapshot's disk of %" PRIu64 " bytes is too large",
                       s->disk_bytes);
    return 0;
}

static int apply(struct op *op, const void *what, struct qk_error *err)
{
    struct image *img = op->img;
    struct reshape *r = &op->r;
    struct snapshot *s;
    int ret = find(op, what, &s, err);
    if (ret == 0)
        ret = judge_size(img, s, err);
    if (ret < 0)
        return ret;
    uint64_t needed = geometry_l1_entries(&img->g, s->disk_bytes);
    ret = snapshot_read_l1(img, s, needed, &op->other_l1, err);
    if (ret == 0)
        ret = l2_tables_of(img, img->l1, img->l1_count, &r->go, err);
    if (ret == 0)
        ret = l2_tables_of(img, op->other_l1, s->fixed.l1_entries, &r->come, err);
    free(r->l1);
    r->l1 = TAKE(op->other_l1);
    r->l1_entries = max_u64(needed, s->fixed.l1_entries);
    r->disk_bytes = s->disk_bytes;
    return ret;
}

int image_snapshot_apply(struct image *img, const struct snapshot_key *key, struct qk_error *err)
{
    if (img->h.autoclear & AUTOCLEAR_BITMAPS)
        return qk_fail(err, -EBUSY, "Device has active dirty bitmaps");
    return run(img, apply, key, err);
}

/* ---- rename ---- */

struct new_name {
    const struct snapshot_key *key;
    const char *name;
};

static int rename_one(struct op *op, const void *what, struct qk_error *err)
{
    const struct new_name *n = what;
    struct snapshot *s;
    int ret = find(op, n->key, &s, err);
    return ret < 0 ? ret : set_text(&s->name, &s->fixed.name_bytes, n->name, err);
}

int image_snapshot_rename(struct image *img, const struct snapshot_key *key, const char *name,
                          struct qk_error *err)
{
    const struct new_name n = {key, name};
    return run(img, rename_one, &n, err);
}
