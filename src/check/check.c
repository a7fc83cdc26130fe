/*
 * check.c - the order of a check's phases, and its beginning and end (see internal.h). A check
 * without fix writes nothing. After a repair the image is reloaded, and its dirty and corrupt bits
 * are cleared when nothing is left that is wrong.
 */
#include "check/check.h"
#include "base/checked.h"
#include "check/internal.h"

#include <unistd.h>

static unsigned thread_count(const struct qk_check_options *opts)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return opts->threads ? opts->threads : cores > 0 ? (unsigned)cores : 1;
}

static int check_init(struct check *c, struct qk_error *err)
{
    c->file = image_file(c->img);
    c->h = image_header(c->img);
    c->g = image_geometry(c->img);
    c->ops = refcount_ops(c->h->refcount_order);
    c->data_file = c->h->incompatible & INCOMPAT_DATA_FILE;
    c->threads = thread_count(c->opts);
    c->sink = (struct sink){.opts = c->opts, .result = c->result};
    if (c->opts->fix && !c->file->writable)
        return qk_fail_at(err, -EROFS, WHERE(c->file->name, NULL, QK_OFFSET_NONE),
                          "cannot repair an image that is opened read-only");
    int ret = io_size(c->file, &c->file_bytes, err);
    if (ret < 0)
        return ret;
    c->clusters = div_round_up(c->file_bytes, c->g->cluster_bytes);
    if (c->clusters >= REFMAP_MAX_CLUSTERS || c->file_bytes > INT64_MAX / 2)
        return qk_fail_at(err, -EFBIG, WHERE(c->file->name, NULL, QK_OFFSET_NONE),
                          "the file has too many clusters to check");
    c->result->total_clusters = div_round_up(c->h->size_bytes, c->g->cluster_bytes);
    /* One more: a reference may begin inside the last cluster and end behind it. */
    return refmap_init(&c->refs, c->clusters + 1, err);
}

static void check_release(struct check *c)
{
    block_cache_drop(c);
    if (c->refs.regions)
        refmap_free(&c->refs);
    free(c->l1);
    free(c->blocks);
    l2_vec_free(&c->tables);
    u64_vec_free(&c->snapshot_l1);
    u64_vec_free(&c->reftable);
    pthread_mutex_destroy(&c->lock);
}

static void plan_work(struct check *c)
{
    uint64_t entries = (uint64_t)c->h->reftable_clusters << c->g->cluster_bits >> 3;
    c->work_total = c->tables.len + min_u64(entries, div_round_up(c->clusters, block_clusters(c)));
}

static int find(struct check *c, struct qk_error *err)
{
    int ret = roots_collect(c, err);
    if (ret < 0)
        return ret;
    plan_work(c);
    ret = walk_tables(c, err);
    if (ret == 0)
        ret = roots_report(c, err);
    if (ret == 0)
        ret = refblocks_collect(c, err);
    if (refmap_count(&c->refs, c->clusters))
        c->clusters++;
    if (ret == 0)
        ret = compare_run(c, err);
    if (ret == 0)
        shared_report(c);
    return ret;
}

/* A device without room for a new structure can still have its refcounts corrected in place. */
static int repair_refcounts(struct check *c, struct qk_error *err)
{
    if (c->actions & ACT_REBUILD) {
        int ret = rebuild_run(c, err);
        if (ret != -ENOSPC)
            return ret;
        sink_message(&c->sink, "No room for a new refcount structure: repairing the old one");
        c->actions = (c->actions & ~(unsigned)ACT_REBUILD) | ACT_RAISE;
    }
    return apply_refcounts(c, err);
}

static int apply(struct check *c, struct qk_error *err)
{
    int ret = apply_edits(c, err);
    if (ret == 0)
        ret = repair_refcounts(c, err);
    return ret;
}

static bool repaired_any(const struct qk_check_result *r)
{
    return r->leaks_fixed || r->corruptions_fixed;
}

static int finish(struct check *c, struct qk_error *err)
{
    if (c->opts->fix && repaired_any(c->result) && !c->result->leaks)
        c->highest = refmap_end(&c->refs);
    c->result->image_end_off = max_u64(c->highest, 1) << c->g->cluster_bits;
    if (!c->opts->fix)
        return 0;
    uint64_t bits = c->h->incompatible & (INCOMPAT_DIRTY | INCOMPAT_CORRUPT);
    bool sound = !c->result->corruptions && !c->result->check_errors;
    int ret = image_reload(c->img, err);
    if (ret == 0 && bits && sound)
        ret = image_set_incompatible(c->img, 0, bits, err);
    return ret;
}

int check_image(struct image *img, const struct qk_check_options *opts,
                struct qk_check_result *result, struct qk_error *err)
{
    static const struct qk_check_options look_only = QK_CHECK_OPTIONS_INIT;
    struct check c = {.img = img, .opts = opts ? opts : &look_only, .result = result};
    *result = (struct qk_check_result)QK_CHECK_RESULT_INIT;
    pthread_mutex_init(&c.lock, NULL);
    int ret = check_init(&c, err);
    if (ret == 0)
        ret = find(&c, err);
    if (ret == 0)
        ret = plan_decide(&c, err);
    if (ret == 0 && c.opts->fix)
        ret = apply(&c, err);
    block_cache_drop(&c);
    if (ret == 0)
        ret = copied_run(&c, err);
    if (ret == 0)
        ret = finish(&c, err);
    check_release(&c);
    return ret;
}
