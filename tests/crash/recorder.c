/* recorder.c - see recorder.h. */
#include "recorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/check.h"

#include <stdio.h>
#include <string.h>

uint32_t rec_random(struct recorder *rec, uint32_t below)
{
    rec->random = rec->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rec->random >> 33) % below;
}

static size_t position(struct recorder *rec)
{
    return rec->log_position ? rec->log_position(rec) : 0;
}

static void guard(struct recorder *rec, bool enters)
{
    if (rec->guard)
        rec->guard(enters);
}

void recorder_init(struct recorder *rec, const struct workload *w)
{
    rec->w = w;
    rec->random = w->seed + workload_salt * UINT64_C(7919);
    model_init(&rec->model, w->create.size_bytes, max_u64(w->max_bytes, w->create.size_bytes));
    if (!w->backing_bytes)
        return;
    uint8_t *bytes = malloc(w->backing_bytes);
    if (!bytes || io_mem_open(NULL, w->backing_bytes, 0, &rec->backing, NULL) < 0)
        abort();
    model_pattern(0x7fffffff, 0, bytes, w->backing_bytes);
    model_base(&rec->model, bytes, w->backing_bytes);
    if (io_write(rec->backing, 0, bytes, w->backing_bytes, 0, NULL) < 0)
        abort();
    free(bytes);
}

int recorder_create(struct recorder *rec)
{
    struct op op = {.start = position(rec)};
    guard(rec, true);
    int ret = image_create(rec->file, &rec->w->create, &rec->error);
    guard(rec, false);
    op.end = position(rec);
    op.flush = ret == 0;
    rec->errors += ret < 0;
    model_op(&rec->model, op);
    return ret < 0 ? ret : recorder_open(rec);
}

/* What a dirty image asks for before it is written to. */
static int repair(struct image *img)
{
    const struct qk_check_options opts = {
        .struct_size = sizeof(opts), .fix = QK_FIX_LEAKS | QK_FIX_ERRORS, .threads = 1};
    struct qk_check_result result = QK_CHECK_RESULT_INIT;
    int ret = check_image(img, &opts, &result, NULL);
    if (ret == 0 && (result.corruptions || result.check_errors))
        ret = -EIO;
    return ret < 0 ? ret : image_set_incompatible(img, 0, INCOMPAT_DIRTY, NULL);
}

static int open_image(struct recorder *rec, bool for_check)
{
    struct image_options opts = rec->w->options;
    opts.writable = true;
    opts.for_check = for_check;
    opts.secret = &workload_secret;
    opts.data = rec->data;
    opts.l2_cache_bytes = opts.l2_cache_bytes ? opts.l2_cache_bytes : 64 << 10;
    opts.refcount_cache_bytes = opts.refcount_cache_bytes ? opts.refcount_cache_bytes : 64 << 10;
    int ret = image_open(rec->file, &opts, &rec->img, &rec->error);
    if (ret < 0)
        rec->img = NULL;
    else if (rec->backing)
        image_set_backing(rec->img, rec->backing);
    return ret;
}

static int drop_on_failure(struct recorder *rec, int ret)
{
    if (ret < 0) {
        image_abandon(rec->img);
        rec->img = NULL;
    }
    return ret;
}

static int repair_damaged(struct recorder *rec)
{
    int ret = open_image(rec, true);
    if (ret == 0)
        ret = drop_on_failure(rec, repair(rec->img));
    if (ret < 0)
        return ret;
    ret = image_close(rec->img, &rec->error);
    rec->img = NULL;
    rec->damaged = ret < 0;
    return ret;
}

static int open_guarded(struct recorder *rec)
{
    int ret = rec->damaged ? repair_damaged(rec) : 0;
    if (ret == 0)
        ret = open_image(rec, false);
    if (ret == 0 && image_needs_repair(rec->img))
        ret = drop_on_failure(rec, repair(rec->img));
    return ret;
}

int recorder_open(struct recorder *rec)
{
    guard(rec, true);
    int ret = open_guarded(rec);
    guard(rec, false);
    return ret;
}

int recorder_close(struct recorder *rec)
{
    struct op op = {.start = position(rec)};
    guard(rec, true);
    int ret = rec->img ? image_close(rec->img, &rec->error) : -EBADF;
    guard(rec, false);
    rec->img = NULL;
    op.end = position(rec);
    op.flush = ret == 0;
    rec->errors += ret < 0;
    if (ret < 0)
        model_lose_unflushed(&rec->model);
    model_op(&rec->model, op);
    return ret;
}

void recorder_free(struct recorder *rec)
{
    if (rec->img)
        image_abandon(rec->img);
    io_close(rec->backing, NULL);
    model_free(&rec->model);
}

/* ---- operations ---- */

static void end_op(struct recorder *rec, size_t start, int ret)
{
    rec->errors += ret < 0;
    model_op(&rec->model, (struct op){.start = start, .end = position(rec)});
}

/* What is left of a range after rounding and cutting it at the end of the disk; *off moves. */
static uint64_t fit(struct recorder *rec, uint64_t *off, uint64_t len)
{
    if (rec->whole_sectors) {
        *off = round_down(*off, SECTOR);
        len = round_up(len, SECTOR);
    }
    return *off < rec->model.size ? min_u64(len, rec->model.size - *off) : 0;
}

/* Nothing is begun on a closed image. */
static int closed(struct recorder *rec)
{
    rec->errors++;
    return -EBADF;
}

static int write_pattern(struct recorder *rec, uint64_t off, uint64_t len, bool compressed)
{
    size_t start = position(rec);
    CLEANUP_FREE uint8_t *buf = malloc(len + 1);
    if (!buf)
        abort();
    model_pattern(model_next_op(&rec->model), off, buf, len);
    for (uint64_t i = 0; compressed && i < len; i++) {
        if ((off + i) % SECTOR > 15)
            buf[i] = 7;
    }
    guard(rec, true);
    int ret = image_writev(rec->img, guest_off(off), &(struct iovec){buf, len}, 1,
                           compressed ? QK_WRITE_COMPRESSED : 0, &rec->error);
    guard(rec, false);
    model_put(&rec->model, off, buf, len, ret == 0);
    end_op(rec, start, ret);
    return ret;
}

int rec_write(struct recorder *rec, uint64_t off, uint64_t len)
{
    len = fit(rec, &off, len);
    return rec->img ? write_pattern(rec, off, len, false) : closed(rec);
}

int rec_write_compressed(struct recorder *rec, uint64_t off, uint64_t len)
{
    uint64_t cluster = UINT64_C(1) << rec->w->create.cluster_bits;
    uint64_t end = round_up(off + len, cluster);
    off = round_down(off, cluster);
    len = fit(rec, &off, end - off);
    rec_discard(rec, off, len);
    return rec->img ? write_pattern(rec, off, len, true) : closed(rec);
}

int rec_zero(struct recorder *rec, uint64_t off, uint64_t len, unsigned flags)
{
    size_t start = position(rec);
    if (!rec->img)
        return closed(rec);
    len = fit(rec, &off, len);
    guard(rec, true);
    int ret = image_zero(rec->img, guest_off(off), len, flags, &rec->error);
    guard(rec, false);
    model_put(&rec->model, off, NULL, len, ret == 0);
    end_op(rec, start, ret);
    return ret;
}

/* What a discard has done is up to the engine: the model takes what reads back, if that is old
 * content or zeroes; recorder_verify finds anything else. */
static void put_discarded(struct recorder *rec, uint64_t off, uint64_t len)
{
    uint8_t buf[SECTOR], zeroes[SECTOR] = {0};
    uint64_t first = round_up(off, SECTOR), end = round_down(off + len, SECTOR);
    for (uint64_t at = first; at < end; at += SECTOR) {
        int ret = image_readv(rec->img, guest_off(at), &(struct iovec){buf, SECTOR}, 1, NULL);
        rec->errors += ret < 0;
        if (ret < 0 || !memcmp(buf, zeroes, SECTOR))
            model_put(&rec->model, at, NULL, SECTOR, ret == 0);
    }
}

int rec_discard(struct recorder *rec, uint64_t off, uint64_t len)
{
    size_t start = position(rec);
    if (!rec->img)
        return closed(rec);
    len = fit(rec, &off, len);
    guard(rec, true);
    int ret = image_discard(rec->img, guest_off(off), len, &rec->error);
    guard(rec, false);
    put_discarded(rec, off, len);
    end_op(rec, start, ret);
    return ret;
}

int rec_flush(struct recorder *rec)
{
    struct op op = {.start = position(rec)};
    guard(rec, true);
    int ret = rec->img ? image_flush(rec->img, &rec->error) : -EBADF;
    guard(rec, false);
    op.end = position(rec);
    op.flush = ret == 0;
    rec->errors += ret < 0;
    model_op(&rec->model, op);
    return ret;
}

int rec_resize(struct recorder *rec, uint64_t size, enum qk_prealloc prealloc)
{
    size_t start = position(rec);
    if (!rec->img)
        return closed(rec);
    guard(rec, true);
    int ret = image_resize(rec->img, size, prealloc, QK_RESIZE_SHRINK, &rec->error);
    guard(rec, false);
    model_resize(&rec->model, size, ret == 0);
    if (ret < 0)
        rec->model.size = image_size(rec->img);
    end_op(rec, start, ret);
    return ret;
}

int rec_amend(struct recorder *rec, const struct amend_params *params)
{
    size_t start = position(rec);
    if (!rec->img)
        return closed(rec);
    guard(rec, true);
    int ret = image_amend(rec->img, params, &rec->error);
    guard(rec, false);
    end_op(rec, start, ret);
    return ret;
}

int rec_reopen(struct recorder *rec)
{
    int ret = recorder_close(rec);
    int opened = recorder_open(rec);
    rec->errors += opened < 0;
    return ret < 0 ? ret : opened;
}

/* ---- looking at the result ---- */

unsigned recorder_verify(struct image *img, const struct model *m, struct moment at,
                         char text[MODEL_TEXT])
{
    unsigned wrong = 0;
    uint64_t bytes = image_size(img);
    if (!model_size_allowed(m, at, bytes)) {
        snprintf(text, MODEL_TEXT, "the disk has %llu bytes", (unsigned long long)bytes);
        return 1;
    }
    CLEANUP_FREE uint8_t *buf = calloc(1, round_up(bytes, SECTOR) + 1);
    struct qk_error err = {0};
    if (!buf)
        abort();
    if (image_readv(img, guest_off(0), &(struct iovec){buf, bytes}, 1, &err) < 0) {
        snprintf(text, MODEL_TEXT, "reading fails: %.300s", err.text);
        return 1;
    }
    for (uint64_t s = m->first; s < min_u64(m->end, div_round_up(bytes, SECTOR)); s++) {
        if (!model_sector_allowed(m, at, s, buf + s * SECTOR) && !wrong++)
            model_describe(m, at, s, buf + s * SECTOR, text);
    }
    return wrong;
}
