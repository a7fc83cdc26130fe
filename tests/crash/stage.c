/* stage.c - see stage.h. */
#include "stage.h"
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

/* What is there before the log begins: the created image; or, when the log is to show its creation,
 * an older image, or a device full of old bytes. */
static int make_initial(struct stage *stage)
{
    const struct workload *w = stage->rec.w;
    struct qk_io *mem = NULL;
    int ret = io_mem_open(NULL, w->device_bytes, 0, &mem, NULL);
    if (ret == 0)
        ret = w->logs_creation ? write_old_image(mem) : image_create(mem, &w->create, NULL);
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
    return ret;
}

int stage_set(struct stage *stage, const struct workload *w, bool with_fault)
{
    *stage = (struct stage){.rec.log_position = log_position};
    recorder_init(&stage->rec, w);
    int ret = make_initial(stage);
    return ret < 0 ? ret : open_stores(stage, with_fault);
}

int stage_begin(struct stage *stage)
{
    if (stage->rec.w->logs_creation)
        return recorder_create(&stage->rec);
    model_op(&stage->rec.model, (struct op){.flush = true});
    return recorder_open(&stage->rec);
}

void stage_strike(struct stage *stage)
{
    recorder_free(&stage->rec);
    io_close(stage->rec.file, NULL);
    free(stage->initial);
}
