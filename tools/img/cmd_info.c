/*
 * cmd_info.c - `info`: what an image is, as text or JSON. Looks at metadata only, and with
 * --backing-chain at each image below; a name that an image gives for its backing file is
 * followed only when it is a plain file name (INV-7).
 */
#include "common/image_info.h"
#include "common/open.h"
#include "common/report.h"
#include "common/rows.h"
#include "img/commands.h"
#include "img/snapshot_rows.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { OPT_CHAIN = OPT_LOCAL, OPT_CHILDREN };

static const struct opt_desc options[] = {
    OPT_FORMAT,
    OPT_ROW_IMAGE_OPTS,
    OPT_ROW_OBJECT,
    OPT_ROW_OUTPUT,
    {OPT_CHAIN, "backing-chain", NULL, "describe the backing images too", OPT_KIND_FLAG, NULL, 0, 0,
     NULL},
    OPT_ROW_(OPT_CHILDREN, "children", NULL, "describe the file below too, as QEMU 8 and later do",
             OPT_KIND_FLAG),
    OPT_SHARE,
    OPT_END,
};

static const struct cmd_text examples[] = {
    {"info disk.qcow2", "size, format and features of an image"},
    {"info --backing-chain overlay.qcow2", "the same for the overlay and what it rests on"},
    {"info --output=json -U disk.qcow2", "for programs; also while a guest uses the image"},
    {NULL, NULL},
};

const struct cmd_desc desc_info = {
    .name = "info",
    .summary = "describe an image",
    .operands = "FILENAME",
    .options = options,
    .examples = examples,
};

/* The order in which qemu prints the keys of these objects. */
static const char *const key_order[] = {
    "children",
    "backing-filename-format",
    "snapshots",
    "virtual-size",
    "filename",
    "cluster-size",
    /* encrypt, in front */
    "ivgen-alg",
    "hash-alg",
    "cipher-alg",
    "uuid",
    "ivgen-hash-alg",
    "format",
    "cipher-mode",
    "slots",
    "payload-offset",
    "master-key-iters",
    "active",
    "iters",
    "key-offset",
    "stripes",
    "actual-size",
    "format-specific",
    "full-backing-filename",
    "encrypted",
    "backing-filename",
    "dirty-flag",
    /* snapshots, bitmaps */
    "flags",
    SNAPSHOT_KEYS,
    /* format-specific */
    "type",
    "data",
    "compat",
    "compression-type",
    "lazy-refcounts",
    "bitmaps",
    "refcount-bits",
    "encrypt",
    "data-file",
    "data-file-raw",
    "corrupt",
    "extended-l2",
    NULL,
};

/* ---- one image --------------------------------------------------------------------------- */

static void add_backing(struct rows *rows, const struct qk_info *info)
{
    if (!info->backing_file)
        return;
    rows_text(rows, "backing-filename", NULL, info->backing_file);
    if (info->backing_full)
        rows_text(rows, "full-backing-filename", NULL, info->backing_full);
    TEXT_CLEANUP char *text =
        !info->backing_full ? xprintf("%s (cannot determine actual path)", info->backing_file)
        : strcmp(info->backing_full, info->backing_file)
            ? xprintf("%s (actual path: %s)", info->backing_file, info->backing_full)
            : xstrdup(info->backing_file);
    rows_text(rows, NULL, "backing file", text);
    if (info->backing_format)
        rows_text(rows, "backing-filename-format", "backing file format", info->backing_format);
}

static void add_general(struct rows *rows, const struct qk_info *info)
{
    rows_text(rows, "filename", "image", info->name);
    rows_text(rows, "format", "file format", info->format);
    rows_size_bytes(rows, "virtual-size", "virtual size", info->virtual_size);
    if (info->actual_size == QK_OFFSET_NONE)
        rows_text(rows, NULL, "disk size", "unavailable");
    else
        rows_size(rows, "actual-size", "disk size", info->actual_size);
    if (info->encrypted) {
        rows_bool(rows, "encrypted", NULL, true);
        rows_text(rows, NULL, "encrypted", "yes");
    }
    if (info->cluster_size)
        rows_uint(rows, "cluster-size", "cluster_size", info->cluster_size);
    rows_bool(rows, "dirty-flag", NULL, info->dirty);
    if (info->dirty)
        rows_text(rows, NULL, "cleanly shut down", "no");
}

static int describe(struct qk_disk *disk, const struct qk_info *info, struct rows *rows,
                    struct qk_error *err)
{
    add_general(rows, info);
    add_backing(rows, info);
    int ret = snapshot_rows(rows, disk, 0, err);
    if (!ret)
        ret = image_info_specific(rows, disk, info, err);
    return ret;
}

/* ---- the chain --------------------------------------------------------------------------- */

struct seen {
    dev_t device;
    ino_t inode;
};

struct chain {
    struct rows *image; /* one per image, top first */
    struct seen *seen;
    size_t count;
    bool whole;    /* --backing-chain */
    bool children; /* --children */
};

static void chain_free(struct chain *chain)
{
    for (size_t i = 0; i < chain->count; i++)
        rows_free(&chain->image[i]);
    free(chain->image);
    free(chain->seen);
}

/* Remembers the file behind `name`. False: it was there already, the chain bites its tail. */
static bool chain_enter(struct chain *chain, const char *name)
{
    struct stat st = {0};
    bool is_file = !stat(name, &st);
    for (size_t i = 0; is_file && i < chain->count; i++) {
        if (chain->seen[i].device == st.st_dev && chain->seen[i].inode == st.st_ino)
            return false;
    }
    chain->image = xrealloc(chain->image, (chain->count + 1) * sizeof(*chain->image));
    chain->seen = xrealloc(chain->seen, (chain->count + 1) * sizeof(*chain->seen));
    chain->image[chain->count] = (struct rows){0};
    chain->seen[chain->count++] = (struct seen){st.st_dev, st.st_ino};
    return true;
}

/* What comes next: name and format are the caller's to free; NULL name: the chain ends here. */
struct next {
    char *name, *format;
};

static int add_image(struct chain *chain, const char *name, const struct image_request *request,
                     struct next *next)
{
    if (!chain_enter(chain, name)) {
        report_error("Backing file '%s' creates an infinite loop.", name);
        return 1;
    }
    IMAGE_CLEANUP struct qk_disk *disk = NULL;
    if (open_image(name, request, &disk))
        return 1;
    struct qk_info info = QK_INFO_INIT;
    struct qk_error err = {0};
    int ret = qk_disk_info(disk, &info, &err);
    if (!ret)
        ret = describe(disk, &info, &chain->image[chain->count - 1], &err);
    if (!ret && chain->children)
        image_info_children(&chain->image[chain->count - 1], &info);
    if (ret) {
        report_failure(&err, "Could not read the description of '%s'", name);
        return 1;
    }
    bool more = chain->whole && info.backing_file && info.backing_full;
    next->name = more ? xstrdup(info.backing_full) : NULL;
    next->format = more && info.backing_format ? xstrdup(info.backing_format) : NULL;
    return -1;
}

/* "nbd://...", "json:{...}": more than a file name, and the image's word is no permission. */
static bool is_plain_name(const char *name)
{
    return name[strcspn(name, ":/")] != ':';
}

static int walk(struct chain *chain, const char *name, struct image_request *request)
{
    struct next next = {0};
    int status = add_image(chain, name, request, &next);
    while (status < 0 && next.name) {
        TEXT_CLEANUP char *below = next.name, *format = next.format;
        next = (struct next){0};
        if (!is_plain_name(below)) {
            report_error("Could not open '%s': Only plain file names are followed from inside an "
                         "image",
                         below);
            return 1;
        }
        struct image_request lower = {.format = format, .flags = request->flags};
        status = add_image(chain, below, &lower, &next);
    }
    free(next.name);
    free(next.format);
    return status;
}

static void print_json(const struct chain *chain)
{
    if (!chain->whole) {
        rows_print_json(&chain->image[0], stdout, key_order);
        return;
    }
    struct json json = JSON_PRETTY(stdout);
    json_open(&json, NULL, '[');
    for (size_t i = 0; i < chain->count; i++) {
        json_open(&json, NULL, '{');
        rows_json(&chain->image[i], &json, key_order);
        json_close(&json, '}');
    }
    json_close(&json, ']');
    putchar('\n');
}

static void print_text(const struct chain *chain)
{
    for (size_t i = 0; i < chain->count; i++) {
        if (i)
            putchar('\n');
        rows_print(&chain->image[i], stdout, 0);
    }
}

int cmd_info(int argc, char **argv)
{
    OPTS_CLEANUP struct opts opts;
    struct image_request request;
    int status = one_image_from(&desc_info, argc, argv, &opts, &request);
    if (status >= 0)
        return status;
    request.flags |= QK_OPEN_NO_BACKING | QK_OPEN_NO_IO;
    struct chain chain = {
        .whole = opts_given(&opts, OPT_CHAIN),
        .children = opts_given(&opts, OPT_CHILDREN),
    };
    status = walk(&chain, opts.operand[0], &request);
    if (status < 0)
        opts_json(&opts) ? print_json(&chain) : print_text(&chain);
    chain_free(&chain);
    return status < 0 ? 0 : status;
}
