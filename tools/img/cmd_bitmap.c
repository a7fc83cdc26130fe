/*
 * cmd_bitmap.c - `bitmap`: adds, removes and changes persistent bitmaps, several actions in one
 * call, in the order in which they were given; and shows what a bitmap says, for authors of backup
 * programs. Each action is atomic and stable before the next one begins.
 */
#include "common/open.h"
#include "common/report.h"
#include "common/rows.h"
#include "img/commands.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { OPT_ADD = OPT_LOCAL, OPT_REMOVE, OPT_CLEAR, OPT_ENABLE, OPT_DISABLE, OPT_MERGE, OPT_LIST };

#define ACTION(id_, name_, help_)                                                                  \
    {                                                                                              \
        id_, name_, NULL, help_, OPT_KIND_FLAG, NULL, 0, 0, NULL                                   \
    }

static const struct opt_desc options[] = {
    ACTION(OPT_ADD, "add", "make a new bitmap that records writes from now on"),
    ACTION(OPT_REMOVE, "remove", "remove the bitmap, also an inconsistent one"),
    ACTION(OPT_CLEAR, "clear", "make all of it clean"),
    ACTION(OPT_ENABLE, "enable", "record writes from now on"),
    ACTION(OPT_DISABLE, "disable", "record no more writes"),
    {OPT_MERGE, "merge", "SOURCE", "make dirty what is dirty in bitmap SOURCE", OPT_KIND_TEXT, NULL,
     0, 0, NULL},
    ACTION(OPT_LIST, "list", "show all bitmaps, or the dirty ranges of BITMAP; changes nothing"),
    {'b', NULL, "FILE", "with --merge: the image that SOURCE is in", OPT_KIND_FILE, NULL, 0, 0,
     NULL},
    {'F', NULL, "FMT", "format of that image", OPT_KIND_FORMAT, NULL, 0, 0, NULL},
    {'g', NULL, "SIZE", "with --add: bytes for one bit (default: the cluster size, 4k to 64k)",
     OPT_KIND_SIZE, "granularity", 0, 0, NULL},
    OPT_FORMAT,
    OPT_ROW_IMAGE_OPTS,
    OPT_ROW_OBJECT,
    OPT_ROW_OUTPUT,
    OPT_SHARE,
    OPT_END,
};

static const struct cmd_text examples[] = {
    {"bitmap --add disk.qcow2 monday", "record what is written from now on"},
    {"bitmap --list --output=json disk.qcow2 monday", "what a backup has to copy"},
    {"bitmap --add --merge monday --disable disk.qcow2 copy", "a frozen copy of it"},
    {"bitmap --merge top -b overlay.qcow2 -F qcow2 base.qcow2 all",
     "before a commit: add what was recorded above"},
    {NULL, NULL},
};

const struct cmd_desc desc_bitmap = {
    .name = "bitmap",
    .summary = "add, remove, change or show a persistent bitmap",
    .operands = "FILENAME BITMAP",
    .options = options,
    .examples = examples,
};

/* ---- actions ----------------------------------------------------------------------------- */

struct work {
    const struct opts *opts;
    struct qk_disk *disk;
    struct qk_disk *source; /* of --merge: disk, or the image of -b */
    const char *bitmap;
};

static int do_add(const struct work *w, const char *arg, struct qk_error *err)
{
    (void)arg;
    return qk_disk_bitmap_add(w->disk, w->bitmap, opts_number(w->opts, 'g', 0), 0, err);
}

static int do_remove(const struct work *w, const char *arg, struct qk_error *err)
{
    (void)arg;
    return qk_disk_bitmap_remove(w->disk, w->bitmap, err);
}

static int do_clear(const struct work *w, const char *arg, struct qk_error *err)
{
    (void)arg;
    return qk_disk_bitmap_clear(w->disk, w->bitmap, err);
}

static int do_enable(const struct work *w, const char *arg, struct qk_error *err)
{
    (void)arg;
    return qk_disk_bitmap_enable(w->disk, w->bitmap, err);
}

static int do_disable(const struct work *w, const char *arg, struct qk_error *err)
{
    (void)arg;
    return qk_disk_bitmap_disable(w->disk, w->bitmap, err);
}

static int do_merge(const struct work *w, const char *arg, struct qk_error *err)
{
    return qk_disk_bitmap_merge(w->disk, w->bitmap, w->source, arg, err);
}

static const struct action {
    int option;
    const char *name; /* in messages */
    int (*run)(const struct work *w, const char *arg, struct qk_error *err);
} actions[] = {
    {OPT_ADD, "add", do_add},
    {OPT_REMOVE, "remove", do_remove},
    {OPT_CLEAR, "clear", do_clear},
    {OPT_ENABLE, "enable", do_enable},
    {OPT_DISABLE, "disable", do_disable},
    {OPT_MERGE, "merge", do_merge},
};

static const struct action *action_of(int option)
{
    for (size_t i = 0; i < sizeof(actions) / sizeof(*actions); i++)
        if (actions[i].option == option)
            return &actions[i];
    return NULL;
}

static int run_actions(const struct work *w)
{
    for (size_t i = 0; i < w->opts->value_count; i++) {
        const struct opt_value *value = &w->opts->value[i];
        const struct action *action = action_of(value->id);
        struct qk_error err = {0};
        int ret = action ? action->run(w, value->text, &err) : 0;
        if (ret < 0) {
            report_failure(&err, "Operation %s on bitmap %s failed", action->name, w->bitmap);
            if (ret == -ESTALE)
                fputs("Try block-dirty-bitmap-remove to delete this bitmap from disk\n", stderr);
            return 1;
        }
    }
    return 0;
}

/* ---- --list ------------------------------------------------------------------------------ */

/* Extents of one bitmap, neighbours that are alike joined. */
static int next_range(const struct work *w, uint64_t off, struct qk_bitmap_extent *range)
{
    struct qk_error err = {0};
    int ret = qk_disk_bitmap_status(w->disk, w->bitmap, off, UINT64_MAX, range, &err);
    if (ret < 0)
        report_failure(&err, "Could not read bitmap '%s'", w->bitmap);
    return ret;
}

static int list_ranges(const struct work *w)
{
    const uint64_t size = qk_disk_size(w->disk);
    const bool as_json = opts_json(w->opts);
    struct qk_bitmap_extent range = {0};
    bool first = true;
    for (uint64_t off = 0; off < size; off += range.len) {
        if (next_range(w, off, &range) < 0)
            return 1;
        if (first)
            as_json ? printf("[") : printf("%-16s%s\n", "Offset", "Length");
        if (as_json) {
            struct json item = JSON_COMPACT(stdout);
            fputs(first ? "" : ",\n", stdout);
            json_open(&item, NULL, '{');
            json_uint(&item, "start", range.off);
            json_uint(&item, "length", range.len);
            json_bool(&item, "dirty", range.dirty);
            json_close(&item, '}');
        } else if (range.dirty) {
            printf("%#-16" PRIx64 "%#-16" PRIx64 "\n", range.off, range.len);
        }
        first = false;
    }
    if (as_json)
        puts(first ? "[]" : "]");
    return 0;
}

static int dirty_bytes(const struct work *w, uint64_t *total)
{
    struct qk_bitmap_extent range;
    *total = 0;
    for (uint64_t off = 0; off < qk_disk_size(w->disk); off += range.len) {
        if (next_range(w, off, &range) < 0)
            return -EIO;
        *total += range.dirty ? range.len : 0;
    }
    return 0;
}

static int add_bitmap(struct rows *rows, struct rows *list, const struct work *w,
                      const struct qk_bitmap_info *info)
{
    struct rows *row = rows_object(list, NULL, NULL);
    struct work one = {w->opts, w->disk, NULL, info->name};
    uint64_t total = 0;
    int ret = info->in_use ? 0 : dirty_bytes(&one, &total);
    char size[QK_SIZE_TEXT_MAX];
    rows_text(row, "name", NULL, info->name);
    rows_uint(row, "granularity", NULL, info->granularity);
    rows_bool(row, "enabled", NULL, info->enabled);
    rows_bool(row, "inconsistent", NULL, info->in_use);
    if (!info->in_use)
        rows_uint(row, "dirty-bytes", NULL, total);
    TEXT_CLEANUP char *line = xprintf(
        "%-12" PRIu64 "%-10s%-14s%s\n", info->granularity, info->enabled ? "enabled" : "disabled",
        info->in_use ? "inconsistent" : qk_format_size(total, size), info->name);
    rows_block(rows, line);
    return ret;
}

static int list_bitmaps(const struct work *w)
{
    static const char *const order[] = {"name",         "granularity", "enabled",
                                        "inconsistent", "dirty-bytes", NULL};
    ROWS_CLEANUP struct rows rows = {0};
    struct rows *list = rows_list(&rows, "bitmaps", NULL);
    struct qk_info info = QK_INFO_INIT;
    struct qk_error err = {0};
    int ret = qk_disk_info(w->disk, &info, &err);
    for (uint32_t i = 0; i < info.bitmap_count && ret == 0; i++) {
        struct qk_bitmap_info bitmap = QK_BITMAP_INFO_INIT;
        ret = qk_disk_bitmap(w->disk, i, &bitmap, &err);
        if (ret == 0 && add_bitmap(&rows, list, w, &bitmap) < 0)
            return 1;
    }
    if (ret < 0) {
        report_qk(&err);
        return 1;
    }
    if (opts_json(w->opts)) {
        rows_print_json(&rows, stdout, order);
        return 0;
    }
    printf("%-12s%-10s%-14s%s\n", "Granularity", "State", "Dirty", "Name");
    rows_print(&rows, stdout, 0);
    return 0;
}

static int list(struct work *w, const char *name, struct image_request *request)
{
    if (open_image(name, request, &w->disk) < 0)
        return 1;
    int status = w->bitmap ? list_ranges(w) : list_bitmaps(w);
    drop_image(&w->disk);
    return status;
}

/* ---- the command line -------------------------------------------------------------------- */

static unsigned count_actions(const struct opts *opts)
{
    unsigned count = 0;
    for (size_t i = 0; i < opts->value_count; i++)
        count += action_of(opts->value[i].id) != NULL;
    return count;
}

static int judge_list(const struct opts *opts)
{
    static const int others[] = {'b', 'F', 'g'};
    const char *text = NULL;
    if (count_actions(opts))
        text = "--list changes nothing, and cannot be combined with actions that do";
    for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++)
        if (opts_given(opts, others[i]))
            text = "-b, -F and -g have no meaning with --list";
    if (opts->operand_count < 1 || opts->operand_count > 2)
        text = "Expecting filename and, if wanted, bitmap name";
    if (text)
        report_error("%s", text);
    return text ? 1 : -1;
}

/* In the order of qemu-img. */
static int judge_actions(const struct opts *opts)
{
    const char *text = NULL;
    if (!count_actions(opts))
        text = "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge";
    else if (opts_given(opts, 'g') && !opts_given(opts, OPT_ADD))
        text = "granularity only supported with --add";
    else if (opts_given(opts, 'F') && !opts_given(opts, 'b'))
        text = "-F only supported with -b";
    else if (opts_given(opts, 'b') && !opts_given(opts, OPT_MERGE))
        text = "Merge bitmap source file only supported with --merge";
    else if (opts->operand_count != 2)
        text = "Expecting filename and bitmap name";
    else if (opts_given(opts, 'U') || opts_given(opts, OPT_OUTPUT))
        text = "-U and --output are for --list only";
    if (text)
        report_error("%s", text);
    return text ? 1 : -1;
}

static int change(struct work *w, const char *name, struct image_request *request)
{
    const struct image_request other = {.format = opts_string(w->opts, 'F'),
                                        .secrets = w->opts->secrets};
    const char *source_name = opts_string(w->opts, 'b');
    IMAGE_CLEANUP struct qk_disk *source = NULL;
    request->flags |= QK_OPEN_RDWR;
    if (open_image(name, request, &w->disk) < 0)
        return 1;
    int status = source_name && open_image(source_name, &other, &source) < 0 ? 1 : 0;
    w->source = source ? source : w->disk;
    if (status == 0)
        status = run_actions(w);
    return close_image(w->disk) | status;
}

int cmd_bitmap(int argc, char **argv)
{
    OPTS_CLEANUP struct opts opts;
    int status = opts_parse(&desc_bitmap, argc, argv, &opts);
    if (status >= 0)
        return status;
    bool listing = opts_given(&opts, OPT_LIST);
    status = listing ? judge_list(&opts) : judge_actions(&opts);
    struct image_request request = image_request_from(&opts);
    if (status >= 0)
        return status;
    struct work w = {.opts = &opts, .bitmap = opts.operand_count > 1 ? opts.operand[1] : NULL};
    return listing ? list(&w, opts.operand[0], &request) : change(&w, opts.operand[0], &request);
}
