/*
 * rec_snapshot.c - snapshots in a workload: taking, deleting, applying, renaming them, and looking
 * whether an image has those that it may have, with the content that they must have. Each of the
 * operations covers what was done before it, as a flush does.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "image/image_int.h"
#include "image/snapshots.h"
#include "recorder.h"

#include <stdio.h>
#include <string.h>

enum { SNAPSHOTS_MAX = 5 };

static size_t position(struct recorder *rec)
{
    return rec->log_position ? rec->log_position(rec) : 0;
}

static void enter(struct recorder *rec, bool enters)
{
    if (rec->guard)
        rec->guard(enters);
}

static int end(struct recorder *rec, size_t start, int ret)
{
    size_t now = position(rec);
    rec->errors += ret < 0;
    model_op(&rec->model, (struct op){.start = start, .end = now});
    if (ret == 0)
        model_op(&rec->model, (struct op){.start = now, .end = now, .flush = true});
    return ret;
}

/* A refcount that cannot count one more is no failure: nothing has happened. */
static int refused(struct recorder *rec, int ret)
{
    return ret == -ERANGE ? end(rec, position(rec), 0) : ret;
}

static uint32_t next_id(const struct model *m)
{
    uint32_t id = 0;
    for (size_t i = 0; i < m->snapshots.len; i++)
        id = m->snapshots.ptr[i].id > id ? m->snapshots.ptr[i].id : id;
    return id + 1;
}

/* After an operation that failed only the disk knows what it shows; a snapshot keeps that. */
static bool know_disk(struct recorder *rec)
{
    struct model *m = &rec->model;
    if (!rec->errors)
        return true;
    enter(rec, true);
    int ret =
        image_readv(rec->img, guest_off(0), &(struct iovec){m->live, m->size}, 1, &rec->error);
    enter(rec, false);
    return ret == 0;
}

int rec_snapshot(struct recorder *rec)
{
    const struct snapshot_params params = {.name = "of a workload", .date_sec = 1};
    size_t start = position(rec);
    if (!rec->img || rec->model.snapshots.len >= SNAPSHOTS_MAX)
        return rec->img ? 0 : -EBADF;
    if (!know_disk(rec))
        return end(rec, start, -EIO);
    enter(rec, true);
    int ret = image_snapshot_create(rec->img, &params, &rec->error);
    enter(rec, false);
    if (ret == -ERANGE)
        return refused(rec, ret);
    model_snapshot_take(&rec->model, next_id(&rec->model), ret == 0);
    return end(rec, start, ret);
}

/* What is done with one that there is, and how the model takes it (NULL: nothing changes). */
struct change {
    int (*engine)(struct image *img, const struct snapshot_key *key, struct qk_error *err);
    void (*model)(struct model *m, size_t index, bool sure);
};

static int change_one(struct recorder *rec, size_t index, const struct change *change)
{
    char id[24];
    const struct snapshot_key key = {.id = id};
    size_t start = position(rec);
    if (!rec->img || index >= rec->model.snapshots.len)
        return 0;
    uint32_t before = image_header(rec->img)->snapshot_count;
    snprintf(id, sizeof(id), "%u", rec->model.snapshots.ptr[index].id);
    enter(rec, true);
    int ret = change->engine(rec->img, &key, &rec->error);
    enter(rec, false);
    if (ret == -ERANGE)
        return refused(rec, ret);
    /* On a full device a snapshot may be gone for good though what follows failed. */
    bool done = ret == 0 || image_header(rec->img)->snapshot_count < before;
    if (change->model)
        change->model(&rec->model, index, done);
    return end(rec, start, ret);
}

int rec_snapshot_delete(struct recorder *rec, size_t index)
{
    return change_one(rec, index, &(struct change){image_snapshot_delete, model_snapshot_drop});
}

int rec_snapshot_apply(struct recorder *rec, size_t index)
{
    return change_one(rec, index, &(struct change){image_snapshot_apply, model_snapshot_apply});
}

static int rename_it(struct image *img, const struct snapshot_key *key, struct qk_error *err)
{
    return image_snapshot_rename(img, key, "another name", err);
}

int rec_snapshot_rename(struct recorder *rec, size_t index)
{
    return change_one(rec, index, &(struct change){rename_it, NULL});
}

void rec_fill(struct recorder *rec, uint64_t left)
{
    struct cluster_run run = {0};
    uint64_t lowest = 0, taken = 0;
    if (!rec->img)
        return;
    if (image_writeback(rec->img, true, &rec->error) < 0) {
        rec->errors++;
        return;
    }
    LOCK_SCOPE(&rec->img->alloc_lock);
    while (alloc_reserve(rec->img, 1, &run, NULL) == 0 && taken++ < rec->w->device_bytes / 512)
        lowest = taken == 1 ? run.first : lowest;
    if (left && taken)
        alloc_unreserve(rec->img, (struct cluster_run){lowest, min_u64(left, taken), false});
}

/* ---- looking at the result ---- */

static bool hash_one(struct qk_io *file, struct qk_io *backing, const char *id, uint64_t *hash)
{
    const struct snapshot_key key = {.id = id};
    const struct image_options opts = {
        .snapshot = &key, .l2_cache_bytes = 64 << 10, .secret = &workload_secret};
    struct image *img = NULL;
    if (image_open(file, &opts, &img, NULL) < 0)
        return false;
    uint64_t size = image_size(img);
    CLEANUP_FREE uint8_t *bytes = malloc(size + 1);
    image_set_backing(img, backing);
    bool read = bytes && image_readv(img, guest_off(0), &(struct iovec){bytes, size}, 1, NULL) == 0;
    if (read)
        *hash = model_list_hash(*hash, (uint32_t)strtoul(id, NULL, 10), bytes, size);
    image_abandon(img);
    return read;
}

bool recorder_verify_snapshots(struct qk_io *file, struct qk_io *backing, const struct model *m,
                               struct moment at, char text[MODEL_TEXT])
{
    const struct image_options opts = {.l2_cache_bytes = 64 << 10, .secret = &workload_secret};
    struct snapshot_vec list = {0};
    struct image *img = NULL;
    uint64_t hash = 0;
    bool good = image_open(file, &opts, &img, NULL) == 0 && image_snapshots(img, &list, NULL) == 0;
    for (size_t i = 0; i < list.len && good; i++)
        good = hash_one(file, backing, list.ptr[i].id, &hash);
    good = good && model_list_allowed(m, at, hash);
    if (!good)
        snprintf(text, MODEL_TEXT, "the snapshots (%zu) are none of those that there may be",
                 list.len);
    snapshots_free_all(&list);
    if (img)
        image_abandon(img);
    return good;
}
