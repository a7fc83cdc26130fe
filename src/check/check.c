/*
 * check.c - the order of a check's phases, and its beginning and end (see internal.h). A check
 * without fix writes nothing. After a repair the image is reloaded, and its dirty and corrupt bits
 * are cleared when nothing is left that is wrong.
 */
#include "check/check.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "check/internal.h"
#include "io/stage.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static unsigned thread_count(const struct qk_check_options *opts)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return opts->threads ? opts->threads : cores > 0 ? (unsigned)cores : 1;
}

/* Before the image was opened, impossible fields were replaced: here they are as they were. */
static int header_load(struct check *c, struct qk_error *err)
{
    uint8_t magic[4];
    c->raw = *image_header_in_file(c->img);
    int ret = io_read(c->file, HEADER_MAGIC_OFF, magic, sizeof(magic), err);
    if (ret < 0)
        return ret;
    c->magic = load_be32(magic);
    return io_size(c->file, &c->file_bytes, err);
}

static int check_init(struct check *c, struct qk_error *err)
{
    c->file = image_file(c->img);
    c->view = *image_header(c->img);
    c->h = &c->view;
    c->g = image_geometry(c->img);
    c->ops = refcount_ops(c->h->refcount_order);
    c->data_file = c->h->incompatible & INCOMPAT_DATA_FILE;
    c->threads = thread_count(c->opts);
    c->sink = (struct sink){.opts = c->opts,
                            .result = c->result,
                            .guest_off = QK_OFFSET_NONE,
                            .disk_bytes = c->h->size_bytes,
                            .cluster_bytes = c->g->cluster_bytes,
                            .refcount_bits = c->g->refcount_bits,
                            .table_bytes = (uint64_t)c->g->l2_entries << c->g->cluster_bits};
    int ret = header_load(c, err);
    if (ret < 0)
        return ret;
    rollback_begin(c);
    if (c->opts->fix && !c->opts->plan_only && !c->file->writable)
        return qk_fail_at(err, -EROFS, WHERE(c->file->name, NULL, QK_OFFSET_NONE),
                          "cannot repair an image that is opened read-only");
    c->cut_streams = calloc(1, sizeof(*c->cut_streams));
    if (!c->cut_streams)
        return qk_fail_nomem(err);
    pthread_mutex_init(&c->cut_streams->lock, NULL);
    c->data_bytes = UINT64_MAX;
    if (image_data_file(c->img) && io_size(image_data_file(c->img), &c->data_bytes, NULL) < 0)
        c->data_bytes = UINT64_MAX;
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
    sink_flush(&c->sink);
    block_cache_drop(c);
    if (c->refs.regions)
        refmap_free(&c->refs);
    free(c->l1);
    free(c->blocks);
    l2_vec_free(&c->tables);
    u64_vec_free(&c->snapshot_l1);
    u64_vec_free(&c->snapshot_kept);
    u64_vec_free(&c->reftable);
    u64_vec_free(&c->block_places);
    bitmap_vec_free(&c->bitmaps);
    u64_vec_free(&c->bitmap_faults);
    u64_vec_free(&c->snapshot_gone);
    u64_vec_free(&c->snapshot_behind);
    lost_run_vec_free(&c->lost_runs);
    if (c->cut_streams)
        pthread_mutex_destroy(&c->cut_streams->lock);
    free(c->cut_streams);
    shared_vec_free(&c->shared);
    free(c->snapshot_ranges);
    spill_free(&c->steps.bytes);
    user_vec_free(&c->users);
    io_close(c->stage, NULL);
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
        ret = compression_judge(c, err);
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
    if (ret == 0)
        ret = orphans_find(c, err);
    if (ret == 0)
        ret = cut_report(c, err);
    if (ret == 0)
        ret = rollback_survey(c, err);
    if (ret == 0)
        ret = cost_tell(c, err);
    shared_vec_free(&c->shared);
    return ret;
}

/* A device without room for a new structure can still have its refcounts corrected in place. */
static int repair_refcounts(struct check *c, struct qk_error *err)
{
    if (c->actions & ACT_REBUILD) {
        int ret = rebuild_run(c, err);
        if (ret != -ENOSPC || c->rollback)
            return ret;
        bool named = c->named_from && !c->no_room; /* and not what the file system has */
        sink_message(&c->sink,
                     named
                         ? "No new refcount structure while damaged entries name places behind the "
                           "end of the file, which may not grow then: repairing the old one"
                         : "No room for a new refcount structure: repairing the old one");
        c->actions = (c->actions & ~(unsigned)ACT_REBUILD) | ACT_RAISE;
        copies_forget(c);
        snapshots_forget(c);
    }
    return apply_refcounts(c, err);
}

/* Nothing is left that is wrong: then the bits that say otherwise go, last of all. */
static int clear_bits(struct check *c, struct qk_error *err)
{
    uint64_t bits = c->h->incompatible & (INCOMPAT_DIRTY | INCOMPAT_CORRUPT);
    if (c->h->version < 3 || !bits || c->result->corruptions || c->result->check_errors)
        return 0;
    uint8_t field[8];
    store_be64(field, c->h->incompatible & ~bits);
    static const struct step what = {.action = "clear dirty and corrupt bits",
                                     .structure = "header"};
    const struct plan_bytes w = {HEADER_INCOMPATIBLE_OFF, field, sizeof(field)};
    return plan_write(c, &what, &w, err);
}

/* Beside what a plan goes that is too large for memory: the undo file, or the image. */
static const char *plan_place(const struct check *c)
{
    struct stat st;
    if (c->opts->undo_file)
        return c->opts->undo_file;
    return stat(c->file->name, &st) == 0 && S_ISREG(st.st_mode) ? c->file->name : "/var/tmp/.";
}

/* The whole repair, over the stage. */
static int repair(struct check *c, struct qk_error *err)
{
    static int (*const parts[])(struct check *, struct qk_error *) = {
        bitmaps_before_changes,
        apply_edits,
        snapshots_place,
        rollback_place,
        copies_place,
        repair_refcounts,
        snapshots_link,
        bitmaps_link,
        copies_link,
        cut_uncount,
        copied_run,
        plan_barrier,
        clear_bits,
    };
    int ret = io_stage_open(c->file, plan_place(c), &c->stage, err);
    if (ret == 0)
        ret = spill_init(&c->steps.bytes, plan_place(c), err);
    if (ret < 0)
        return ret;
    c->steps.bytes.most = STEPS_MEMORY;
    c->stage->can_grow = file_can_grow(c);
    c->file = c->stage;
    for (size_t i = 0; ret == 0 && i < ARRAY_SIZE(parts); i++) {
        if (c->header_only && parts[i] != apply_edits)
            continue;
        if (parts[i] == copied_run)
            block_cache_drop(c);
        ret = parts[i](c, err);
    }
    if (ret == 0)
        ret = plan_tell(c, err);
    if (ret < 0 || c->opts->plan_only || stage_empty(c->stage))
        return ret;
    return plan_carry_out(c, err);
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
    return c->opts->fix && !c->opts->plan_only ? image_reload(c->img, err) : 0;
}

/* The whole of a run: `rounds` rounds of the same work, of which number `round` (from 0) is on. */
struct attempt {
    struct image *img;
    struct qk_io *log;
    unsigned round, rounds;
    bool no_growth, in_place;
    bool out_of_room;                /* found out while writing, and nothing is worse for it */
    uint32_t snapshots_more;         /* behind those that the header counts, to be taken in */
    const struct rollback *rollback; /* the disk goes back to this snapshot; NULL: it does not */
    struct way_back way_back;        /* as the last run saw it */
    bool l1_found;                   /* where the header does not say that it is */
    bool sound_without_features;     /* see struct check */
    bool l1_open;                    /* it was found, and this run may not choose it */
    const char *held_back; /* why the last pass repaired nothing, or little; NULL: it did not */
};

/* While it is not sure what the tables mean, the rest of the run is a look. */
static void refuse_repair(struct check *c, struct attempt *a, struct qk_check_options *look)
{
    bool l1_open = a->l1_open && !a->rollback;
    a->held_back = NULL;
    if (!c->opts->fix || !(l1_open || header_refuses(c)))
        return;
    *look = *c->opts;
    look->fix = 0;
    c->opts = c->sink.opts = look;
    a->held_back = l1_open
                       ? "Nothing is repaired: where the active L1 table is has to be chosen first"
                       : "Nothing is repaired: the header leaves open what the tables mean";
    sink_message(&c->sink, a->held_back);
}

/* It lies where the tables contradict the header: all else is seen when that is right. */
static void hold_to_header(struct check *c, struct attempt *a)
{
    if (!c->header_only || !c->opts->fix)
        return;
    c->actions = (c->actions & ACT_EDIT_HEADER) | ACT_HOLD;
    a->held_back = "Only the header is repaired: check again what the tables mean then";
    sink_message(&c->sink, a->held_back);
}

/* Snapshots that the header does not count are counted in the next pass: to be taken into the
 * table, or where refcounts are lost, so that the new ones do not make them free. */
static bool snapshots_counted(const struct check *c)
{
    bool lost = c->snapshots_guessed || c->snapshots_more;
    return c->snapshots_found && (problem_fixable(c->opts, PROBLEM_SNAPSHOT_COUNT) ||
                                  (lost && (c->opts->fix & QK_FIX_ERRORS)));
}

static int decide_and_repair(struct check *c, struct attempt *a, struct qk_error *err)
{
    int ret = rollback_judge(c, err);
    if (ret == 0)
        ret = plan_decide(c, err);
    if (ret < 0)
        return ret;
    hold_to_header(c, a);
    block_cache_drop(c);
    return c->opts->fix ? repair(c, err) : copied_run(c, err);
}

/* Ends before the repair where the next pass is to count more snapshots than this one did. */
static int check_pass(struct attempt *a, const struct qk_check_options *opts,
                      struct qk_check_result *result, struct qk_error *err)
{
    struct check c = {.img = a->img, .opts = opts, .result = result};
    c.undo_log = a->log;
    c.no_growth = c.no_room = a->no_growth;
    c.in_place = a->in_place;
    c.rollback = a->rollback;
    c.snapshots_more = a->snapshots_more;
    c.sound_without_features = a->sound_without_features;
    struct qk_check_options look;
    c.round = a->round;
    c.rounds = a->rounds;
    *result = (struct qk_check_result)QK_CHECK_RESULT_INIT;
    pthread_mutex_init(&c.lock, NULL);
    spill_init(&c.steps.bytes, NULL, NULL);
    int ret = check_init(&c, err);
    if (ret == 0)
        refuse_repair(&c, a, &look);
    if (ret == 0)
        ret = find(&c, err);
    if (ret == 0)
        ret = snapshots_behind_judge(&c, err);
    a->snapshots_more = snapshots_counted(&c) ? c.snapshots_found : 0;
    if (ret == 0 && c.snapshots_more == a->snapshots_more)
        ret = decide_and_repair(&c, a, err);
    if (ret == 0)
        ret = finish(&c, err);
    a->out_of_room = c.out_of_room;
    a->way_back = c.way_back;
    a->l1_found = c.l1_found != 0;
    check_release(&c);
    return ret;
}

/* The same as `opts`, without a word. */
static struct qk_check_options muted(const struct qk_check_options *opts)
{
    struct qk_check_options quiet = *opts;
    quiet.on_problem = NULL;
    quiet.on_run = NULL;
    quiet.on_message = NULL;
    quiet.on_loss = NULL;
    return quiet;
}

/* A pass that finds snapshots which the header does not count learns of their clusters too late. */
static int check_once(struct attempt *a, const struct qk_check_options *opts,
                      struct qk_check_result *result, struct qk_error *err)
{
    uint32_t taken = a->snapshots_more;
    int ret = check_pass(a, opts, result, err);
    if (ret < 0 || a->snapshots_more == taken)
        return ret;
    struct qk_check_options quiet = muted(opts);
    quiet.on_message = opts->on_message;
    return check_pass(a, &quiet, result, err);
}

/* A look as it is without `fix`, and then the repair without its words and writes. */
static int plan_look(struct attempt *a, const struct qk_check_options *opts,
                     struct qk_check_result *result, struct qk_error *err)
{
    struct qk_check_options look = *opts, quiet = muted(opts);
    struct qk_check_result planned;
    look.fix = 0;
    int ret = check_once(a, &look, result, err);
    if (ret < 0)
        return ret;
    a->round = 1;
    ret = check_once(a, &quiet, &planned, err);
    if (a->held_back && opts->on_message)
        opts->on_message(opts->opaque, a->held_back);
    result->steps = planned.steps;
    result->leaks_kept = planned.leaks_kept;
    return ret;
}

/* Only the file system knows whether it has room: when it has none the plan is made anew. */
static int check_fixing(struct attempt *a, const struct qk_check_options *opts,
                        struct qk_check_result *result, struct qk_error *err)
{
    int ret = check_once(a, opts, result, err);
    const struct qk_check_options quiet = muted(opts);
    if (a->out_of_room && opts->on_message)
        opts->on_message(opts->opaque,
                         "No room for a new refcount structure: repairing the old one");
    /* A part of the file that has nothing in it may find no room either. */
    while (a->out_of_room && !a->in_place) {
        a->in_place = a->no_growth || !image_file(a->img)->can_grow;
        a->no_growth = true;
        ret = image_reload(a->img, err);
        if (ret == 0)
            ret = check_once(a, &quiet, result, err);
    }
    return ret;
}

/* ---- rolling back ---- */

static void ignore(void *opaque, const struct qk_problem *problem)
{
    (void)opaque;
    (void)problem;
}

/* A look without a word: a->way_back says whether the disk must go back, and where to. */
static int rollback_look(struct attempt *a, const struct qk_check_options *opts,
                         struct qk_error *err)
{
    struct qk_check_options look = muted(opts);
    struct qk_check_result seen;
    look.fix = 0;
    look.on_problem = ignore; /* who shares a cluster is found only for who asks */
    a->way_back = (struct way_back){0};
    return check_once(a, &look, &seen, err);
}

/* Every refcount of the snapshot's clusters changes: the damage of before is what counts. */
static void rollback_result(const struct qk_check_options *opts, struct qk_check_result *result,
                            const struct qk_check_result *after)
{
    const struct qk_check_result before = *result;
    uint64_t were = before.corruptions + before.check_errors,
             are = after->corruptions + after->check_errors;
    if (opts->plan_only) {
        result->steps = after->steps;
        result->leaks_kept = after->leaks_kept;
        return;
    }
    *result = *after;
    result->corruptions_fixed = were - min_u64(were, are);
    result->leaks_fixed = before.leaks - min_u64(before.leaks, after->leaks);
}

/* The damaged image is told as it is; then a run over what it will be makes it that. */
static int rollback_to(struct attempt *a, const struct qk_check_options *opts,
                       const struct rollback *to, struct qk_check_result *after,
                       struct qk_error *err)
{
    const struct qk_check_options quiet = muted(opts);
    char text[256];
    a->rollback = to;
    a->round = 2;
    int ret =
        opts->plan_only ? check_once(a, &quiet, after, err) : check_fixing(a, &quiet, after, err);
    if (ret < 0) {
        qk_error_prefix(err, "Cannot go back to snapshot %s", rollback_text(to));
        return ret;
    }
    snprintf(text, sizeof(text), "The disk goes back to snapshot %s", rollback_text(to));
    if (opts->on_message && !opts->plan_only)
        opts->on_message(opts->opaque, text);
    return 0;
}

static int roll_back(struct attempt *a, const struct qk_check_options *opts,
                     struct qk_check_result *result, struct qk_error *err)
{
    const struct way_back way = a->way_back;
    struct qk_check_options look = *opts;
    struct qk_check_result after;
    look.fix = 0;
    a->round = 1;
    int ret = check_once(a, &look, result, err);
    if (ret < 0 || !a->way_back.damaged) /* what does not last is no reason to go back */
        return ret;
    for (unsigned i = 0; i < way.count; i++) {
        ret = rollback_to(a, opts, &way.candidates[i], &after, err);
        if (ret != -EUCLEAN || i + 1 == way.count)
            break;
    }
    if (ret == 0)
        rollback_result(opts, result, &after);
    return ret;
}

static bool rollback_allowed(const struct qk_check_options *opts)
{
    return (opts->allow & QK_ALLOW_ROLLBACK) && (opts->fix & QK_FIX_ERRORS);
}

static int check_rolling_back(struct attempt *a, const struct qk_check_options *opts,
                              struct qk_check_result *result, struct qk_error *err)
{
    a->rounds = 3;
    int ret = rollback_look(a, opts, err);
    const struct way_back *w = &a->way_back;
    if (ret < 0)
        return ret;
    if (w->damaged && w->refused)
        return qk_fail_at(err, w->unknown ? -ENOENT : -EUCLEAN,
                          WHERE(image_file(a->img)->name, "snapshot table", QK_OFFSET_NONE),
                          "Cannot go back to snapshot '%s': %s", opts->rollback, w->refused);
    if (w->damaged && w->count)
        return roll_back(a, opts, result, err);
    if (w->damaged && opts->on_message)
        opts->on_message(opts->opaque, "There is no sound snapshot to bring the disk back to");
    a->round = 1;
    return opts->plan_only ? plan_look(a, opts, result, err) : check_fixing(a, opts, result, err);
}

/* A feature that has something of its own in the file shows: by what is counted and not named, or
 * makes no sense. */
static int features_judge(struct attempt *a, const struct qk_check_options *opts,
                          struct qk_error *err)
{
    uint64_t unknown = image_header_in_file(a->img)->incompatible & ~(uint64_t)INCOMPAT_KNOWN;
    struct qk_check_options look = muted(opts);
    struct qk_check_result seen;
    if (!unknown || !problem_fixable(opts, PROBLEM_FEATURE_UNKNOWN))
        return 0;
    look.fix = 0;
    int ret = check_once(a, &look, &seen, err);
    a->sound_without_features = seen.corruptions == 1 && !seen.leaks && !seen.check_errors;
    return ret;
}

/* What the L1 table names looks leaked to a run that may not choose its place, and to a look it
 * does not. */
static int l1_judge_place(struct attempt *a, const struct qk_check_options *opts,
                          struct qk_error *err)
{
    struct qk_check_options look = muted(opts);
    struct qk_check_result seen;
    if (image_header(a->img)->l1_off || problem_fixable(opts, PROBLEM_L1_TABLE_MISPLACED))
        return 0;
    look.fix = 0;
    int ret = check_once(a, &look, &seen, err);
    a->l1_open = a->l1_found;
    return ret;
}

int check_image_saving(struct image *img, const struct qk_check_options *opts, struct qk_io *log,
                       struct qk_check_result *result, struct qk_error *err)
{
    static const struct qk_check_options look_only = QK_CHECK_OPTIONS_INIT;
    struct attempt a = {.img = img, .log = log, .rounds = 1};
    const struct qk_check_options *o = opts ? opts : &look_only;
    if (!o->fix)
        return check_once(&a, o, result, err);
    int ret = features_judge(&a, o, err);
    if (ret == 0)
        ret = l1_judge_place(&a, o, err);
    if (ret < 0)
        return ret;
    if (rollback_allowed(o))
        return check_rolling_back(&a, o, result, err);
    a.rounds = 2; /* a look and another, or a look and writing */
    return o->plan_only ? plan_look(&a, o, result, err) : check_fixing(&a, o, result, err);
}

int check_image(struct image *img, const struct qk_check_options *opts,
                struct qk_check_result *result, struct qk_error *err)
{
    return check_image_saving(img, opts, NULL, result, err);
}
