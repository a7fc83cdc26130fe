/*
 * cmd_convert.c - `convert`: the content of one or more images into a new (or, with -n, an
 * existing) one. The copying is qk_convert; here are the rules for combinations of options, the
 * creation of the target, and what is known about a target before the first byte is copied. All
 * that can be refused is refused before the target is touched.
 */
#include "common/open.h"
#include "common/progress.h"
#include "common/report.h"
#include "common/snapshot.h"
#include "common/units.h"
#include "img/bitmap_copy.h"
#include "img/commands.h"
#include "img/create_options.h"
#include "img/source.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { OPT_TARGET_ZERO = OPT_LOCAL, OPT_SALVAGE, OPT_BITMAPS, OPT_SKIP_BROKEN, OPT_LEVEL };

#define SECTOR          512
#define SPARSE_DEFAULT  4096
#define SPARSE_MAX      (UINT64_C(16) << 20)
#define WORKERS_MAX     16
#define WORKERS_DEFAULT 8
#define ZLIB_LEVEL_MAX  9
#define ZSTD_LEVEL_MAX  19

static const struct opt_desc options[] = {
    OPT_FORMAT,
    {'O', NULL, "FMT", "format of the new image (default: raw)", OPT_KIND_FORMAT, NULL, 0, 0, NULL},
    {'o', NULL, "OPTIONS", "options of the new image, key=value,...; `-o help` lists them",
     OPT_KIND_TEXT, NULL, 0, 0, NULL},
    {'B', NULL, "BACKING", "copy only what the source has of its own, as an overlay over BACKING",
     OPT_KIND_FILE, NULL, 0, 0, NULL},
    {'F', NULL, "FMT", "format of the backing image", OPT_KIND_FORMAT, NULL, 0, 0, NULL},
    {'S', NULL, "SIZE",
     "runs of zeroes of at least this many bytes become holes (default 4k; 0: none, all is "
     "allocated)",
     OPT_KIND_TEXT, NULL, 0, 0, NULL},
    {'n', NULL, NULL, "the target exists already: write into it", OPT_KIND_FLAG, NULL, 0, 0, NULL},
    {OPT_TARGET_ZERO, "target-is-zero", NULL, "with -n: the target reads as zero everywhere",
     OPT_KIND_FLAG, NULL, 0, 0, NULL},
    {'W', NULL, NULL, "allow writes to the target in any order, which is faster", OPT_KIND_FLAG,
     NULL, 0, 0, NULL},
    {'m', NULL, "N", "how many workers copy at once, 1 to 16 (default 8)", OPT_KIND_TEXT, NULL, 0,
     0, NULL},
    {'r', NULL, "RATE", "at most this many bytes per second", OPT_KIND_SIZE, "rate limit", 0, 0,
     NULL},
    {'C', NULL, NULL, "let the system copy without looking at the content", OPT_KIND_FLAG, NULL, 0,
     0, NULL},
    {'c', NULL, NULL, "compress the new image", OPT_KIND_FLAG, NULL, 0, 0, NULL},
    {OPT_LEVEL, "compress-level", "N",
     "with -c: 1 (fastest) to 9 for zlib or 19 for zstd (smallest)", OPT_KIND_TEXT, NULL, 0, 0,
     NULL},
    OPT_SNAPSHOT_ROW,
    {OPT_SALVAGE, "salvage", NULL, "turn what cannot be read into zeroes and go on", OPT_KIND_FLAG,
     NULL, 0, 0, NULL},
    {OPT_BITMAPS, "bitmaps", NULL, "copy the persistent bitmaps too", OPT_KIND_FLAG, NULL, 0, 0,
     NULL},
    {OPT_SKIP_BROKEN, "skip-broken-bitmaps", NULL, "leave out bitmaps that are inconsistent",
     OPT_KIND_FLAG, NULL, 0, 0, NULL},
    OPT_ROW_IMAGE_OPTS,
    OPT_ROW_(OPT_TARGET_IMAGE_OPTS, "target-image-opts", NULL,
             "with -n: the target's name is a list of options key=value,...", OPT_KIND_FLAG),
    OPT_CACHE,
    OPT_SRC_CACHE,
    OPT_SHARE,
    OPT_ROW_OBJECT,
    OPT_PROGRESS,
    OPT_ROW_PROGRESS_FD,
    OPT_QUIET,
    OPT_END,
};

static const struct cmd_text examples[] = {
    {"convert -O qcow2 disk.raw disk.qcow2", "a qcow2 image of a raw disk; zeroes take no space"},
    {"convert -c -O qcow2 -o compression_type=zstd disk.raw small.qcow2",
     "a compressed image; what is written to it later is not compressed"},
    {"convert -p -W -m 16 disk.qcow2 disk.raw", "the other way, as fast as it goes, with progress"},
    {"convert -O qcow2 -B base.qcow2 -F qcow2 old.qcow2 new.qcow2",
     "rewrite an overlay; base.qcow2 stays its backing file"},
    {"convert -n --target-is-zero disk.qcow2 /dev/vg/new", "into a device that was just zeroed"},
    {"convert -O qcow2 part1.raw part2.raw whole.qcow2", "several images behind one another"},
    {NULL, NULL},
};

const struct cmd_desc desc_convert = {
    .name = "convert",
    .summary = "copy the content of images into another image, of any format",
    .operands = "FILENAME [FILENAME2 ...] TARGET",
    .options = options,
    .examples = examples,
};

struct convert {
    const struct opts *opts;
    struct qk_convert_options how;
    struct image_request source_request, target_request;
    struct qk_disk **source;
    size_t source_count;
    char **source_name;
    const char *target_name, *target_format;
    struct keyvals create; /* -o, -B and -F */
    const char *backing;   /* of the target; NULL: none */
    struct snapshot_choice snapshot;
    struct keyvals target_options;
    bool create_target;
    struct progress progress;
};

/* ---- options ----------------------------------------------------------------------------- */

static int parse_sparse(struct convert *c)
{
    const char *text = opts_string(c->opts, 'S');
    c->how.sparse_bytes = SPARSE_DEFAULT;
    if (!text)
        return -1;
    if (size_parse("buffer size for sparse output", text, 0, 0, &c->how.sparse_bytes) < 0)
        return 1;
    if (c->how.sparse_bytes % SECTOR == 0 && c->how.sparse_bytes <= SPARSE_MAX)
        return -1;
    report_error("Invalid buffer size for sparse output specified. Valid sizes are multiples of %d "
                 "up to %llu. Select 0 to disable sparse detection (fully allocates output).",
                 SECTOR, (unsigned long long)SPARSE_MAX);
    return 1;
}

static int parse_workers(struct convert *c)
{
    const char *text = opts_string(c->opts, 'm');
    c->how.threads = WORKERS_DEFAULT;
    if (!text)
        return -1;
    char *end;
    errno = 0;
    long count = strtol(text, &end, 0);
    if (errno || end == text || *end || count < 1 || count > WORKERS_MAX) {
        report_error("Invalid number of coroutines. Allowed number of coroutines is between 1 and "
                     "%d",
                     WORKERS_MAX);
        return 1;
    }
    c->how.threads = (unsigned)count;
    return -1;
}

/* The library judges the level, too, but only when there is a target. */
static int parse_level(struct convert *c)
{
    const char *text = opts_string(c->opts, OPT_LEVEL);
    if (!text)
        return -1;
    const char *type = keyvals_get(&c->create, "compression_type");
    int max = c->create_target && (!type || strcmp(type, "zstd")) ? ZLIB_LEVEL_MAX : ZSTD_LEVEL_MAX;
    char *end;
    errno = 0;
    long level = strtol(text, &end, 10);
    if (errno || end == text || *end || level < 1 || level > max) {
        report_error("Invalid compression level. Allowed are 1 to %d for zlib, 1 to %d for zstd",
                     ZLIB_LEVEL_MAX, ZSTD_LEVEL_MAX);
        return 1;
    }
    TEXT_CLEANUP char *digits = xprintf("%ld", level);
    keyvals_add(&c->target_options, "compression-level", digits);
    return -1;
}

/* Two options of which one excludes (or, with `needs`, requires) the other. */
static int check_combinations(const struct opts *opts)
{
    static const struct {
        int option, other;
        bool needs;
        const char *text;
    } rules[] = {
        {OPT_SKIP_BROKEN, OPT_BITMAPS, true, "Use of --skip-broken-bitmaps requires --bitmaps"},
        {'C', 'c', false, "Cannot enable copy offloading when -c is used"},
        {'C', 'S', false, "Cannot enable copy offloading when -S is used"},
        {'C', OPT_SALVAGE, false, "Cannot use copy offloading in salvaging mode"},
        {OPT_TARGET_IMAGE_OPTS, 'n', true, "--target-image-opts requires use of -n flag"},
        {OPT_LEVEL, 'c', true, "Use of --compress-level requires -c"},
        {'o', 'n', false, "-o has no effect when skipping image creation"},
        {OPT_TARGET_ZERO, 'n', true, "--target-is-zero requires use of -n flag"},
    };
    for (size_t i = 0; i < sizeof(rules) / sizeof(*rules); i++) {
        if (opts_given(opts, rules[i].option) &&
            opts_given(opts, rules[i].other) != rules[i].needs) {
            report_error("%s", rules[i].text);
            return 1;
        }
    }
    return -1;
}

/* Said before anything is opened. */
static int refuse_unsupported(const struct convert *c)
{
    if (!opts_given(c->opts, 'c') || !c->target_format || strcmp(c->target_format, "raw"))
        return -1;
    report_error("Compression not supported for this file format");
    return 1;
}

static int parse_snapshot(struct convert *c)
{
    int status = snapshot_choice_parse(opts_string(c->opts, 'l'), &c->snapshot);
    if (status < 0 && c->source_count > 1 && c->snapshot.either) {
        report_error("No support for concatenating multiple snapshot");
        return 1;
    }
    return status;
}

static void print_salvage(void *opaque, uint64_t off, uint64_t len, const struct qk_error *why)
{
    const struct convert *c = opaque;
    (void)len;
    if (!opts_given(c->opts, 'q'))
        report_warning("error while reading offset %llu: %s", (unsigned long long)off,
                       error_text(why));
}

static void set_flags(struct convert *c)
{
    static const struct {
        int option;
        enum qk_convert_flag flag;
    } rows[] = {
        {'W', QK_CONVERT_OUT_OF_ORDER},
        {'c', QK_CONVERT_COMPRESS},
        {OPT_SALVAGE, QK_CONVERT_SALVAGE},
        {OPT_TARGET_ZERO, QK_CONVERT_TARGET_IS_ZERO},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++)
        if (opts_given(c->opts, rows[i].option))
            c->how.flags |= rows[i].flag;
    c->how.rate_bytes_per_sec = opts_number(c->opts, 'r', 0);
    c->how.on_salvage = print_salvage;
    c->how.opaque = c;
}

/* -t and -T; the target's is judged late by qemu-img, but nothing is lost by doing it now. */
static int set_requests(struct convert *c)
{
    c->source_request = image_request_from(c->opts);
    int status = cache_mode_option(c->opts, 'T', "writeback", &c->source_request.flags);
    if (status >= 0)
        return status;
    c->source_request.flags |= QK_OPEN_NO_SHARE; /* or the target could be a source */
    snapshot_choice_request(&c->snapshot, &c->source_request);
    c->target_request = (struct image_request){
        .format = c->target_format,
        .image_opts = opts_given(c->opts, OPT_TARGET_IMAGE_OPTS),
        .flags = QK_OPEN_RDWR | (c->how.sparse_bytes ? QK_OPEN_UNMAP : 0u),
        .quiet = c->source_request.quiet,
        .secrets = c->opts->secrets,
    };
    const char *key = keyvals_get(&c->create, "encrypt.key-secret");
    if (key)
        keyvals_add(&c->target_options, "encrypt.key-secret", key);
    c->target_request.options = (const char *const *)c->target_options.item;
    return cache_mode_option(c->opts, 't', "unsafe", &c->target_request.flags);
}

/* The names at the end: sources, then the target. */
static int set_names(struct convert *c)
{
    if (c->opts->operand_count < 2) {
        report_error("Must specify image file name");
        return 1;
    }
    c->source_count = (size_t)c->opts->operand_count - 1;
    c->source_name = c->opts->operand;
    c->target_name = c->opts->operand[c->source_count];
    return -1;
}

static int parse(struct convert *c)
{
    const struct opts *opts = c->opts;
    bool help = false;
    c->create_target = !opts_given(opts, 'n');
    c->target_format = opts_string(opts, 'O');
    if (!c->target_format && !opts_given(opts, OPT_TARGET_IMAGE_OPTS))
        c->target_format = "raw";
    int status = opts_keyvals(opts, 'o', &c->create, &help);
    if (status < 0)
        status = parse_sparse(c);
    if (status < 0)
        status = parse_workers(c);
    if (status < 0)
        status = parse_level(c);
    if (status < 0)
        status = check_combinations(opts);
    if (status < 0 && help)
        status = create_show_options(
            opts->operand_count > 1 ? opts->operand[opts->operand_count - 1] : NULL,
            c->target_format);
    if (status < 0)
        status = set_names(c);
    if (status < 0)
        status = refuse_unsupported(c);
    if (status < 0)
        status = parse_snapshot(c);
    set_flags(c);
    return status < 0 ? set_requests(c) : status;
}

/* ---- the target -------------------------------------------------------------------------- */

static uint64_t total_size(const struct convert *c)
{
    uint64_t total = 0;
    for (size_t i = 0; i < c->source_count; i++)
        total += (qk_disk_size(c->source[i]) + SECTOR - 1) / SECTOR * SECTOR;
    return total;
}

/* The format, and how the values of -o are written; what they mean is judged by the creation. */
static int check_create_options(struct convert *c)
{
    struct qk_error err = {0};
    char **resolved = NULL;
    TEXT_CLEANUP char *size = xprintf("%llu", (unsigned long long)total_size(c));
    keyvals_remove(&c->create, "size");
    keyvals_add(&c->create, "size", size);
    int ret =
        qk_create_resolve(c->target_name, c->target_format, (const char *const *)c->create.item,
                          QK_CREATE_UNCHECKED_BACKING, &resolved, &err);
    qk_options_free(resolved);
    if (ret < 0)
        report_qk(&err);
    return ret < 0 ? 1 : -1;
}

/* What -o asks for beside compression. */
static int check_compression(const struct convert *c)
{
    const char *prealloc = keyvals_get(&c->create, "preallocation");
    const char *alias = keyvals_get(&c->create, "encryption"), *other = NULL;
    if (!(c->how.flags & QK_CONVERT_COMPRESS))
        return -1;
    if (keyvals_get(&c->create, "encrypt.format") || (alias && !strcmp(alias, "on")))
        other = "encryption";
    else if (prealloc && strcmp(prealloc, "off") != 0)
        other = "preallocation";
    if (!other)
        return -1;
    report_error("Compression and %s not supported at the same time", other);
    return 1;
}

/* Names a backing file, by -B and -F or by -o. */
static int set_backing(struct convert *c)
{
    const char *format = opts_string(c->opts, 'F');
    c->backing = opts_string(c->opts, 'B');
    if (c->create_target) {
        const struct create_backing backing = {c->target_format, c->backing, format, ""};
        int status = create_add_backing(&c->create, &backing);
        if (status >= 0)
            return status;
        const char *option = keyvals_get(&c->create, "backing_file");
        c->backing = option ? option : c->backing;
        format = keyvals_get(&c->create, "backing_fmt");
        if (c->backing && !format) {
            report_error("Use of backing file requires explicit backing format");
            return 1;
        }
    }
    if (c->backing && opts_given(c->opts, OPT_TARGET_ZERO)) {
        report_error("Cannot use --target-is-zero when the destination image has a backing file");
        return 1;
    }
    if (c->backing && c->source_count > 1) {
        report_error("Having a backing file for the target makes no sense when concatenating "
                     "multiple input images");
        return 1;
    }
    return -1;
}

static int create_target(struct convert *c)
{
    struct qk_error err = {0};
    TEXT_CLEANUP char *size = xprintf("%llu", (unsigned long long)total_size(c));
    keyvals_remove(&c->create, "size");
    keyvals_add(&c->create, "size", size);
    struct qk_create_context context = QK_CREATE_CONTEXT_INIT;
    context.secrets = c->opts->secrets;
    int ret = qk_create_with(c->target_name, c->target_format, (const char *const *)c->create.item,
                             &context, &err);
    if (ret < 0) {
        report_failure(&err, "%s: error while converting %s", c->target_name, c->target_format);
        return 1;
    }
    return -1;
}

/* The guest's bytes go to a data file beside the target; no lock keeps it apart from a source. */
static bool overwrites_source(const struct convert *c, const char *name)
{
    for (size_t i = 0; name && i < c->source_count; i++)
        if (source_is_target(c->source[i], strncmp(name, "file:", 5) ? name : name + 5))
            return true;
    return false;
}

static bool keeps_data_file(const struct convert *c)
{
    return keyvals_get(&c->create, "keep_data_file") || keyvals_get(&c->create, "data_file_keep");
}

/* What a new target's format promises about bytes that were never written. */
static void judge_target(struct convert *c, struct qk_disk *target)
{
    struct qk_info info = QK_INFO_INIT;
    if (c->backing)
        c->how.flags |= QK_CONVERT_TARGET_BACKING;
    else if (c->create_target && c->how.sparse_bytes && !keeps_data_file(c) &&
             qk_disk_info(target, &info, NULL) == 0 && info.zero_init)
        c->how.flags |= QK_CONVERT_TARGET_IS_ZERO;
}

static int copy(struct convert *c, struct qk_disk *target)
{
    struct qk_error err = {0};
    judge_target(c, target);
    c->how.progress = progress_hook(&c->progress);
    int ret = qk_convert(c->source, c->source_count, target, &c->how, &err);
    if (ret < 0)
        report_qk(&err);
    return ret < 0;
}

static int copy_all(struct convert *c, struct qk_disk *target)
{
    if (!opts_given(c->opts, OPT_BITMAPS))
        return copy(c, target);
    int status = bitmaps_judge_target(target);
    if (status < 0)
        status = copy(c, target);
    return status ? status : bitmaps_copy(c->source[0], target);
}

static int convert_into_target(struct convert *c)
{
    int status = set_backing(c);
    if (status < 0 && c->create_target)
        status = check_create_options(c);
    if (status < 0 && c->create_target)
        status = check_compression(c);
    if (status < 0 && overwrites_source(c, keyvals_get(&c->create, "data_file")))
        status = 1;
    if (status < 0 && c->create_target)
        status = create_target(c);
    struct qk_disk *target = NULL;
    if (status >= 0 || open_image(c->target_name, &c->target_request, &target) < 0)
        return 1;
    struct qk_info info = QK_INFO_INIT;
    bool same = qk_disk_info(target, &info, NULL) == 0 && overwrites_source(c, info.data_file_full);
    status = same ? 1 : copy_all(c, target);
    return close_image(target) | status;
}

static int judge_bitmaps(const struct convert *c)
{
    if (!opts_given(c->opts, OPT_BITMAPS))
        return -1;
    if (c->source_count > 1) {
        report_error("Copying bitmaps only possible with single source");
        return 1;
    }
    int status = bitmaps_judge_source(c->source[0], opts_given(c->opts, OPT_SKIP_BROKEN));
    if (status < 0 && c->target_format && !strcmp(c->target_format, "raw")) {
        report_error("Format driver 'raw' does not support bitmaps");
        status = 1;
    }
    return status;
}

static int open_sources(struct convert *c)
{
    for (size_t i = 0; i < c->source_count; i++)
        if (open_image(c->source_name[i], &c->source_request, &c->source[i]) < 0)
            return 1;
    /* with -U no lock keeps the two apart */
    for (size_t i = 0; opts_given(c->opts, 'U') && i < c->source_count; i++)
        if (source_is_target(c->source[i], c->target_name))
            return 1;
    return judge_bitmaps(c);
}

static int run(struct convert *c)
{
    int status = parse(c);
    if (status >= 0)
        return status;
    progress_begin(&c->progress, c->opts, 1.0);
    c->source = xmalloc(c->source_count * sizeof(*c->source));
    memset(c->source, 0, c->source_count * sizeof(*c->source));
    status = open_sources(c);
    if (status < 0)
        status = convert_into_target(c);
    for (size_t i = 0; i < c->source_count; i++)
        drop_image(&c->source[i]);
    free(c->source);
    progress_end(&c->progress, status == 0);
    return status;
}

int cmd_convert(int argc, char **argv)
{
    OPTS_CLEANUP struct opts opts;
    int status = opts_parse(&desc_convert, argc, argv, &opts);
    if (status >= 0)
        return status;
    struct convert c = {.opts = &opts, .how = QK_CONVERT_OPTIONS_INIT};
    status = run(&c);
    keyvals_free(&c.create);
    snapshot_choice_free(&c.snapshot);
    keyvals_free(&c.target_options);
    return status;
}
