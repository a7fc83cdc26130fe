/*
 * cmd_map.c - `map`: which file of a chain holds which guest range, and where. Extents come from
 * qk_disk_status; neighbours that continue each other are joined before they are printed, one
 * behind, because the text form lets an entry influence what follows it.
 */
#include "common/open.h"
#include "common/report.h"
#include "common/rows.h"
#include "common/snapshot.h"
#include "img/commands.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { OPT_SNAPSHOT = OPT_LOCAL };

static const struct opt_desc options[] = {
    OPT_FORMAT,
    {'s', "start-offset", "OFFSET", "first guest byte to show", OPT_KIND_SIZE, "start offset", 0, 0,
     NULL},
    {'l', "max-length", "LENGTH", "how many guest bytes to show", OPT_KIND_SIZE, "max length", 0, 0,
     NULL},
    OPT_SNAPSHOT_AS(OPT_SNAPSHOT),
    OPT_ROW_OUTPUT,
    OPT_SHARE,
    OPT_ROW_IMAGE_OPTS,
    OPT_ROW_OBJECT,
    OPT_END,
};

static const struct cmd_text examples[] = {
    {"map overlay.qcow2", "where each range with data is, in which file of the chain"},
    {"map --output=json disk.qcow2", "all ranges, holes and zeroes too, with their depth"},
    {"map --start-offset=1G --max-length=64M disk.qcow2", "only a part of the disk"},
    {NULL, NULL},
};

const struct cmd_desc desc_map = {
    .name = "map",
    .summary = "show where the data of a disk is stored",
    .operands = "FILENAME",
    .options = options,
    .examples = examples,
};

struct map {
    struct qk_disk *disk;
    bool as_json;
    struct qk_extent entry; /* not printed yet; len 0: none */
};

static bool is_data(const struct qk_extent *e)
{
    return e->flags & QK_EXTENT_DATA;
}

static bool is_plain_data(const struct qk_extent *e)
{
    return is_data(e) && !(e->flags & QK_EXTENT_ZERO);
}

static bool has_offset(const struct qk_extent *e)
{
    return e->flags & QK_EXTENT_OFFSET;
}

static void print_json(const struct qk_extent *e, bool last)
{
    struct json item = JSON_COMPACT(stdout);
    json_open(&item, NULL, '{');
    putchar(' '); /* as qemu-img has it */
    json_uint(&item, "start", e->off);
    json_uint(&item, "length", e->len);
    json_uint(&item, "depth", e->depth);
    json_bool(&item, "present", e->flags & QK_EXTENT_ALLOCATED);
    json_bool(&item, "zero", e->flags & QK_EXTENT_ZERO);
    json_bool(&item, "data", is_data(e));
    if (has_offset(e))
        json_uint(&item, "offset", e->host_off);
    json_close(&item, '}');
    if (!last)
        puts(",");
}

/* Only data is shown, and so the kinds of zeroes behind an entry are made one. */
static int print_text(const struct qk_extent *e, struct qk_extent *next)
{
    if (is_data(e) && !has_offset(e)) {
        report_error("File contains external, encrypted or compressed clusters.");
        return 1;
    }
    if (is_plain_data(e))
        printf("%#-16" PRIx64 "%#-16" PRIx64 "%#-16" PRIx64 "%s\n", e->off, e->len, e->host_off,
               e->file ? e->file : "");
    if (next && !is_plain_data(next))
        next->flags = (next->flags | QK_EXTENT_ZERO) & ~(unsigned)QK_EXTENT_DATA;
    return -1;
}

/* next: NULL at the end. -1 to go on. */
static int print_entry(struct map *map, struct qk_extent *next)
{
    if (!map->as_json)
        return print_text(&map->entry, next);
    print_json(&map->entry, !next);
    return -1;
}

static bool continues(const struct qk_extent *e, const struct qk_extent *next)
{
    const unsigned meaning =
        QK_EXTENT_DATA | QK_EXTENT_ZERO | QK_EXTENT_ALLOCATED | QK_EXTENT_OFFSET;
    if (!e->len || (e->flags ^ next->flags) & meaning || e->depth != next->depth)
        return false;
    return !has_offset(e) || (e->host_off + e->len == next->host_off &&
                              !strcmp(e->file ? e->file : "", next->file ? next->file : ""));
}

static int add(struct map *map, struct qk_extent *next)
{
    if (continues(&map->entry, next)) {
        map->entry.len += next->len;
        return -1;
    }
    int status = map->entry.len ? print_entry(map, next) : -1;
    map->entry = *next;
    return status;
}

static int walk(struct map *map, uint64_t off, uint64_t end)
{
    map->entry = (struct qk_extent){.off = off};
    while (off < end) {
        struct qk_extent next;
        struct qk_error err = {0};
        if (qk_disk_status(map->disk, off, end - off, 0, &next, &err) < 0) {
            report_failure(&err, "Could not read file metadata");
            return 1;
        }
        off += next.len;
        int status = add(map, &next);
        if (status >= 0)
            return status;
    }
    int status = print_entry(map, NULL);
    return status < 0 ? 0 : status;
}

static int run(struct map *map, const struct opts *opts)
{
    uint64_t size = qk_disk_size(map->disk);
    uint64_t start = opts_number(opts, 's', 0);
    uint64_t length = opts_number(opts, 'l', UINT64_MAX);
    uint64_t end = start < size && length < size - start ? start + length : size;
    map->as_json = opts_json(opts);
    if (map->as_json)
        putchar('[');
    else
        printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
    int status = walk(map, start, end);
    if (map->as_json)
        puts("]");
    return status;
}

int cmd_map(int argc, char **argv)
{
    OPTS_CLEANUP struct opts opts;
    struct image_request request;
    int status = one_image_from(&desc_map, argc, argv, &opts, &request);
    if (status >= 0)
        return status;
    SNAPSHOT_CLEANUP struct snapshot_choice snapshot;
    status = snapshot_choice_parse(opts_string(&opts, OPT_SNAPSHOT), &snapshot);
    if (status >= 0)
        return status;
    snapshot_choice_request(&snapshot, &request);
    struct map map = {0};
    if (open_image(opts.operand[0], &request, &map.disk) < 0)
        return 1;
    status = run(&map, &opts);
    drop_image(&map.disk);
    return status;
}
