/* stage.c - see stage.h. */
#include "stage.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "io/fault.h"
#include "io/trace.h"

#include <string.h>

static size_t log_position(struct recorder *rec)
{
    return trace_count(((struct stage *)rec)->trace);
}

/* An image in the place of the one to be created: other clusters, some data. */
static int write_old_image(struct qk_io *mem)
{
    const struct create_params params = {
        .size_bytes = 300000, .version = 3, .cluster_bits = 11, .refcount_order = 3};
    const struct image_options options = {.writable = true, .lazy_refcounts = -1};
    static const uint8_t data[70000] = {1, 2, 3};
    struct image *img = NULL;
    int ret = image_create(mem, &params, NULL);
    if (ret == 0)
        ret = image_open(mem, &options, &img, NULL);
    if (ret == 0)
        ret = image_writev(img, guest_off(1000),
                           &(struct iovec){(void *)(uintptr_t)data, sizeof(data)}, 1, 0, NULL);
    return ret < 0 ? ret : image_close(img, NULL);
}

/* ---- damage ---- */

static void fill(struct qk_io *mem, uint64_t off, uint64_t len, int byte)
{
    uint8_t *bytes = malloc(len + 1);
    if (!bytes)
        abort();
    memset(bytes, byte, len);
    io_write(mem, off, bytes, len, 0, NULL);
    free(bytes);
}

/* The refcount blocks that the table names. */
static void fill_blocks(struct qk_io *mem, const struct header *h, int byte)
{
    uint64_t cluster = UINT64_C(1) << h->cluster_bits;
    uint8_t entry[8];
    for (uint64_t i = 0; i < h->reftable_clusters * cluster / 8; i++) {
        io_read(mem, h->reftable_off + i * 8, entry, sizeof(entry), NULL);
        if (load_be64(entry))
            fill(mem, load_be64(entry), cluster, byte);
    }
}

static void do_damage(struct qk_io *mem, enum damage damage, const struct header *h)
{
    if (damage == DAMAGE_BLOCKS)
        fill_blocks(mem, h, 0);
    else if (damage == DAMAGE_REFCOUNTS)
        fill_blocks(mem, h, 3);
    else if (damage == DAMAGE_TABLE)
        fill(mem, h->reftable_off, (uint64_t)h->reftable_clusters << h->cluster_bits, 0);
}

/* Puts content on the new disk, tells the model, and damages the image. Not closed, a lazy one
 * stays dirty. */
static int make_damaged(struct stage *stage, struct qk_io *mem)
{
    const struct workload *w = stage->rec.w;
    uint64_t len = w->create.size_bytes / 3;
    struct image_options options = w->options;
    struct image *img = NULL;
    uint8_t *bytes = malloc(len);
    options.writable = true;
    options.secret = &workload_secret;
    int ret = image_open(mem, &options, &img, NULL);
    if (ret < 0 || !bytes)
        abort();
    model_pattern(0x7ffffffd, 0, bytes, len);
    model_base(&stage->rec.model, bytes, len);
    for (uint64_t at = 0; at < len && ret == 0; at += len / 20)
        ret = image_writev(img, guest_off(at),
                           &(struct iovec){bytes + at, min_u64(len / 20, len - at)}, 1, 0, NULL);
    free(bytes);
    if (ret == 0)
        ret = image_flush(img, NULL);
    const struct header header = *image_header(img);
    if (w->damage == DAMAGE_DIRTY)
        image_abandon(img);
    else
        ret = image_close(img, NULL);
    do_damage(mem, w->damage, &header);
    stage->rec.damaged = w->damage != DAMAGE_DIRTY;
    return ret;
}

/* What is there before the log begins: the created image; or, when the log is to show its creation,
 * an older image, or a device full of old bytes. */
static int make_initial(struct stage *stage)
{
    const struct workload *w = stage->rec.w;
    struct qk_io *mem = NULL;
    int ret = io_mem_open(NULL, w->device_bytes, 0, &mem, NULL);
    if (ret == 0)
        ret = w->logs_creation ? write_old_image(mem) : image_create(mem, &w->create, NULL);
    if (ret == 0 && w->damage)
        ret = make_damaged(stage, mem);
    if (ret == 0 && w->device_bytes)
        ret = io_resize(mem, w->device_bytes, QK_PREALLOC_OFF, NULL);
    const uint8_t *bytes = ret == 0 ? io_mem_data(mem, &stage->initial_len) : NULL;
    size_t len = stage->initial_len;
    stage->initial = malloc(len + 1);
    if (stage->initial && bytes)
        memcpy(stage->initial, bytes, len);
    if (stage->initial && w->device_bytes)
        model_pattern(0x7ffffffe, len / 4, stage->initial + len / 4, len / 4 * 3);
    io_close(mem, NULL);
    return ret;
}

/* A raw one starts as the disk does. Any other is longer than that and full of old bytes, which
 * must never show. */
static void make_initial_data(struct stage *stage)
{
    const struct workload *w = stage->rec.w;
    size_t len = (size_t)(w->create.data_file_raw ? w->create.size_bytes : w->max_bytes);
    if (!w->create.data_file)
        return;
    stage->initial_data.len = len;
    stage->initial_data.bytes = calloc(1, len + 1);
    if (!stage->initial_data.bytes)
        abort();
    if (!w->create.data_file_raw)
        model_pattern(0x7ffffffb, 0, stage->initial_data.bytes, len);
}

static int open_data(struct stage *stage, bool with_fault)
{
    struct recorder *rec = &stage->rec;
    struct qk_io *trace = NULL;
    int ret =
        io_mem_open(stage->initial_data.bytes, stage->initial_data.len, 0, &rec->data_mem, NULL);
    if (ret == 0)
        ret = io_trace_open_beside(rec->data_mem, stage->trace, 1, &trace, NULL);
    rec->data = trace;
    if (ret == 0 && with_fault) {
        ret = io_fault_open(trace, NULL, &stage->data_fault, NULL);
        rec->data = stage->data_fault;
    }
    return ret;
}

static int open_stores(struct stage *stage, bool with_fault)
{
    struct recorder *rec = &stage->rec;
    int ret =
        io_mem_open(stage->initial, stage->initial_len, rec->w->device_bytes, &rec->mem, NULL);
    if (ret < 0)
        return ret;
    rec->mem->can_grow = rec->mem->zero_init = !rec->w->device_bytes;
    ret = io_trace_open(rec->mem, &stage->trace, NULL);
    rec->file = stage->trace;
    if (ret == 0 && with_fault) {
        ret = io_fault_open(stage->trace, NULL, &stage->fault, NULL);
        rec->file = stage->fault;
    }
    if (ret == 0 && stage->initial_data.bytes)
        ret = open_data(stage, with_fault);
    return ret;
}

int stage_set(struct stage *stage, const struct workload *w, bool with_fault)
{
    *stage = (struct stage){.rec.log_position = log_position};
    recorder_init(&stage->rec, w);
    int ret = make_initial(stage);
    make_initial_data(stage);
    return ret < 0 ? ret : open_stores(stage, with_fault);
}

int stage_begin(struct stage *stage)
{
    if (stage->rec.w->logs_creation)
        return recorder_create(&stage->rec);
    struct recorder *rec = &stage->rec;
    struct op op = {.start = trace_count(stage->trace)};
    int ret = recorder_open(rec);
    op.end = trace_count(stage->trace);
    op.flush = ret == 0;
    model_op(&rec->model, op);
    return ret;
}

int stage_history(const struct stage *stage, struct history *history)
{
    const struct content initial[STORES] = {{stage->initial, stage->initial_len},
                                            stage->initial_data};
    return history_take_both(history, stage->trace, initial);
}

void stage_judge(const struct stage *stage, struct moment at, struct verify_options *opts)
{
    const struct workload *w = stage->rec.w;
    opts->at = at;
    opts->backing = stage->rec.backing;
    opts->data = stage->rec.data_mem;
    opts->model = &stage->rec.model;
    opts->unborn = w->logs_creation && at.flushed == 0;
    opts->damaged = w->damage && at.flushed == 0;
}

void stage_strike(struct stage *stage)
{
    recorder_free(&stage->rec);
    io_close(stage->rec.data, NULL);
    io_close(stage->rec.file, NULL);
    free(stage->initial);
    free(stage->initial_data.bytes);
}
