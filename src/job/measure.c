/*
 * measure.c - qk_measure: how large an image would be. The size of the metadata comes from the
 * code that lays out new images (image_measure), the number of data clusters from the source's
 * block status. Nothing is created or written.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "job/cursor.h"
#include "node/create.h"
#include "node/driver.h"

#include <string.h>

#define SECTOR 512

/* Clusters of the target that hold some of the source's data. */
static int count_clusters(struct qk_disk *source, uint32_t cluster_bits, uint64_t *count,
                          struct qk_error *err)
{
    struct cursor cursor = cursor_of(source, 0);
    uint64_t next = 0; /* first cluster that is not counted */
    *count = 0;
    for (uint64_t off = 0; off < cursor.size; off = cursor.end) {
        int ret = cursor_seek(&cursor, off, err);
        if (ret < 0) {
            qk_error_prefix(err, "Unable to get block status");
            return ret;
        }
        bool data = cursor.flags & QK_EXTENT_DATA && cursor.flags & QK_EXTENT_ALLOCATED &&
                    !(cursor.flags & QK_EXTENT_ZERO);
        if (!data)
            continue;
        uint64_t first = max_u64(off >> cluster_bits, next);
        next = max_u64(((cursor.end - 1) >> cluster_bits) + 1, next);
        *count += next - first;
    }
    return 0;
}

static int measure_qcow2(struct qk_disk *source, const struct create_plan *plan, bool on_backing,
                         struct qk_measure_result *result, struct qk_error *err)
{
    uint64_t clusters = on_backing ? UINT64_MAX : 0;
    int ret = 0;
    /* what a backing file will hold is not known: the worst case is that nothing is shared */
    if (source && !on_backing)
        ret = count_clusters(source, plan->params.cluster_bits, &clusters, err);
    if (ret == 0)
        ret = image_measure(&plan->params, clusters, &result->required, err);
    if (ret == 0)
        ret = image_measure(&plan->params, UINT64_MAX, &result->fully_allocated, err);
    return ret;
}

/* Only a source that could have bitmaps, into a target that can, has an answer: what they take when
 * each is stored in full. */
static int measure_bitmaps(struct qk_disk *source, const struct create_plan *plan, uint64_t *bytes,
                           struct qk_error *err)
{
    struct image *img = source ? source->node->image : NULL;
    *bytes = QK_OFFSET_NONE;
    if (!img || plan->params.version < 3 || image_header(img)->version < 3)
        return 0;
    return image_bitmaps_measure(img, plan->params.cluster_bits, bytes, err);
}

static bool has_key(const char *option, const char *key)
{
    size_t len = strlen(key);
    return !strncmp(option, key, len) && (option[len] == '=' || !option[len]);
}

/* Copies the options without those of the backing file, whose format does not matter here.
 * Returns NULL when out of memory; the strings stay the caller's. */
static const char **without_backing(const char *const *options, bool *on_backing)
{
    size_t count = 0, kept = 0;
    while (options && options[count])
        count++;
    const char **list = calloc(count + 1, sizeof(*list));
    for (size_t i = 0; list && i < count; i++) {
        bool file = has_key(options[i], "backing_file");
        *on_backing |= file;
        if (!file && !has_key(options[i], "backing_fmt"))
            list[kept++] = options[i];
    }
    return list;
}

static int check_format(const char *format, struct qk_error *err)
{
    const struct create_format *unused;
    if (!driver_by_name(format))
        return qk_fail(err, -EINVAL, "Unknown file format '%s'", format);
    if (create_find_format(format, &unused, NULL) < 0)
        return qk_fail(err, -ENOTSUP, "Block driver '%s' does not support size measurement",
                       format);
    return 0;
}

static int make_plan(struct create_plan *plan, struct qk_disk *source, const char *format,
                     const char *const *options, struct qk_error *err)
{
    int ret = create_plan_parse(plan, format, options, err);
    if (ret < 0) {
        qk_error_locate(err, WHERE("", "creation options", QK_OFFSET_NONE));
        return ret;
    }
    if (source) {
        plan->has_size = true;
        plan->params.size_bytes = qk_disk_size(source);
    }
    ret = create_plan_judge(plan, err);
    if (ret == -EFBIG)
        return qk_fail(err, ret, "The image size is too large (try using a larger cluster size)");
    return ret;
}

int qk_measure(struct qk_disk *source, const char *format, const char *const *options,
               struct qk_measure_result *result, struct qk_error *err)
{
    bool on_backing = false;
    int ret = check_format(format, err);
    if (ret < 0)
        return ret;
    bool qcow2 = !strcmp(format, "qcow2");
    CLEANUP_FREE const char **list = qcow2 ? without_backing(options, &on_backing) : NULL;
    if (qcow2 && !list)
        return qk_fail_nomem(err);
    CREATE_PLAN_CLEANUP struct create_plan plan = {0};
    ret = make_plan(&plan, source, format, qcow2 ? list : options, err);
    if (ret < 0)
        return ret;
    result->bitmaps = QK_OFFSET_NONE;
    if (qcow2) {
        ret = measure_bitmaps(source, &plan, &result->bitmaps, err);
        return ret < 0 ? ret : measure_qcow2(source, &plan, source && on_backing, result, err);
    }
    result->required = round_up(plan.params.size_bytes, SECTOR);
    result->fully_allocated = result->required;
    return 0;
}
