/*
 * steps.c - the plan as data. A repair runs over a stage: each of its writes becomes a step, and
 * nothing else is written later. Carrying a plan out saves what it overwrites first, all of it, and
 * so begins only when the undo file is complete and stable (INV-8).
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "check/internal.h"
#include "io/stage.h"
#include "io/undo.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static uint64_t number_of(const uint8_t *bytes, size_t len)
{
    uint64_t value = 0;
    for (size_t i = 0; i < len; i++)
        value = value << 8 | bytes[i];
    return value;
}

int plan_note(struct check *c, const struct step *step, struct qk_error *err)
{
    uint64_t pos;
    int ret = spill_append(&c->steps.bytes, step, sizeof(*step), &pos, err);
    if (ret < 0)
        return ret;
    c->steps.count++;
    c->steps.last_epoch = step->epoch;
    return 0;
}

int plan_write(struct check *c, const struct step *what, const struct plan_bytes *w,
               struct qk_error *err)
{
    struct step step = *what;
    uint8_t old[8];
    step.off = w->off;
    step.bytes = w->len;
    step.count = max_u64(step.count, 1);
    step.epoch = c->epoch;
    if (!step.lost_bytes)
        step.lost_off = QK_OFFSET_NONE;
    step.has_values = w->len <= sizeof(old);
    if (step.has_values) {
        int ret = io_read(c->file, w->off, old, w->len, err);
        if (ret < 0)
            return ret;
        step.from = number_of(old, w->len);
        step.to = number_of(w->bytes, w->len);
    }
    int ret = plan_note(c, &step, err);
    return ret < 0 ? ret : io_write(c->file, w->off, w->bytes, w->len, 0, err);
}

int plan_barrier(struct check *c, struct qk_error *err)
{
    if (c->steps.count && c->steps.last_epoch == c->epoch)
        c->epoch++;
    return io_flush(c->file, err);
}

static uint64_t entries_changed(const struct table_write *w, size_t first, size_t end)
{
    const uint8_t *old = w->old, *new = w->new;
    uint64_t n = 0;
    for (size_t at = round_down(first, w->entry_bytes); at < end; at += w->entry_bytes)
        n += memcmp(old + at, new + at, min_u64(w->entry_bytes, w->bytes - at)) != 0;
    return n;
}

int write_changed(struct check *c, const struct step *what, const struct table_write *w,
                  struct qk_error *err)
{
    const uint8_t *old = w->old, *new = w->new;
    size_t first = 0, end = memcmp(old, new, w->bytes) ? w->bytes : 0;
    while (first < end && old[first] == new[first])
        first++;
    while (end > first && old[end - 1] == new[end - 1])
        end--;
    if (first == end)
        return 0;
    struct step step = *what;
    step.count = entries_changed(w, first, end);
    first = (size_t)round_down(first, w->entry_bytes);
    end = (size_t)min_u64(round_up(end, w->entry_bytes), w->bytes);
    const struct plan_bytes bytes = {w->off + first, new + first, end - first};
    return plan_write(c, &step, &bytes, err);
}

static void tell_step(const struct check *c, const struct step *s)
{
    const struct qk_plan_step step = {
        .struct_size = sizeof(step),
        .action = s->action,
        .structure = s->structure,
        .file_off = s->off,
        .bytes = s->bytes,
        .count = s->count,
        .has_values = s->has_values,
        .from = s->from,
        .to = s->to,
        .lost_off = s->lost_off,
        .lost_bytes = s->lost_bytes,
        .epoch = s->epoch,
        .lost = s->lost,
    };
    c->opts->on_step(c->opts->opaque, &step);
}

#define STEPS_AT_ONCE 64u

int plan_tell(struct check *c, struct qk_error *err)
{
    struct step steps[STEPS_AT_ONCE];
    sink_flush(&c->sink);
    c->result->steps = c->steps.count;
    for (uint64_t at = 0; c->opts->on_step && at < c->steps.count; at += STEPS_AT_ONCE) {
        const uint64_t n = min_u64(STEPS_AT_ONCE, c->steps.count - at);
        int ret = spill_read(&c->steps.bytes, at * sizeof(*steps), steps, n * sizeof(*steps), err);
        if (ret < 0)
            return ret;
        for (uint64_t i = 0; i < n; i++)
            tell_step(c, &steps[i]);
    }
    return 0;
}

/* ---- carrying it out ---- */

struct announcing {
    struct check *c;
    struct qk_io *undo;
    uint64_t done, total; /* sectors */
};

static int announce_run(void *announcing, const struct stage_run *run, struct qk_error *err)
{
    struct announcing *a = announcing;
    a->done += run->len / STAGE_SECTOR;
    progress_write(a->c, a->done, 2 * a->total);
    return undo_announce(a->undo, run->off, run->bytes, run->len, err);
}

/* With everything announced at once, the log is flushed once, and complete before the first write.
 */
static int commit_saving(struct check *c, struct qk_io *file, struct qk_io *log,
                         struct qk_error *err)
{
    struct qk_io *undo = NULL;
    int ret = io_undo_open(file, log, &undo, err);
    if (ret < 0)
        return ret;
    struct announcing a = {c, undo, 0, stage_sectors(c->stage)};
    ret = stage_each(c->stage, announce_run, &a, err);
    if (ret == 0)
        ret = undo_ready(undo, err);
    if (ret == 0) {
        c->result->undo_saved = true;
        ret = stage_commit(c->stage, file, err);
    }
    /* A log that the caller keeps serves for the states on the way, too. */
    if (ret == 0 && !c->undo_log)
        undo_done(undo);
    io_close(undo, NULL);
    return ret;
}

/* What grew for nothing shrinks again, when the header names nothing new. */
static void shrink_back(struct check *c, struct qk_io *file)
{
    uint8_t field[8];
    uint64_t now;
    if (io_size(file, &now, NULL) < 0 || now <= c->file_bytes ||
        io_read(file, HEADER_REFTABLE_OFF, field, sizeof(field), NULL) < 0)
        return;
    if ((c->actions & ACT_REBUILD) && load_be64(field) == c->raw.reftable_off)
        io_resize(file, c->file_bytes, QK_PREALLOC_OFF, NULL);
}

/* -EFBIG: a file cannot be as long as the plan needs it. */
static bool no_room(int ret)
{
    return ret == -ENOSPC || ret == -EFBIG;
}

/* With a log there is a way back that needs no judgement. */
static int carry_out_saving(struct check *c, struct qk_io *file, struct qk_io *log,
                            struct qk_error *err)
{
    struct undo_result undone;
    int ret = commit_saving(c, file, log, err);
    if (!no_room(ret) || !c->result->undo_saved || undo_restore(log, file, &undone, NULL) < 0)
        return ret;
    c->result->undo_saved = false;
    c->out_of_room = true;
    return ret;
}

static int carry_out_plainly(struct check *c, struct qk_io *file, struct qk_error *err)
{
    int ret = stage_commit(c->stage, file, err);
    if (ret < 0)
        shrink_back(c, file);
    c->out_of_room = no_room(ret);
    return ret;
}

/* The image is as it was: what failed is the place for what would be overwritten. */
static int about_undo_file(int ret, struct qk_error *err)
{
    if (err) {
        snprintf(err->structure, sizeof(err->structure), "undo file");
        err->offset = QK_OFFSET_NONE;
    }
    return ret;
}

int plan_carry_out(struct check *c, struct qk_error *err)
{
    struct qk_io *file = image_file(c->img), *log = NULL;
    if (c->undo_log)
        return carry_out_saving(c, file, c->undo_log, err);
    if (!c->opts->undo_file)
        return carry_out_plainly(c, file, err);
    int ret = undo_file_create(c->opts->undo_file, &log, err);
    if (ret < 0)
        return about_undo_file(ret, err);
    ret = carry_out_saving(c, file, log, err);
    io_close(log, NULL);
    if (!c->result->undo_saved)
        unlink(c->opts->undo_file);
    return ret < 0 && !c->result->undo_saved && !c->out_of_room ? about_undo_file(ret, err) : ret;
}
