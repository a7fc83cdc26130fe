/* snapshot_rows.c - see snapshot_rows.h. */
#include "img/snapshot_rows.h"
#include "common/report.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#define NSEC_PER_SEC UINT64_C(1000000000)

#define COLUMNS "%-9s %-16s %8s%20s%13s%11s"

/* What is behind the columns that qemu-img has. */
static char *freed_column(const uint64_t *freed)
{
    char size[QK_SIZE_TEXT_MAX];
    return freed ? xprintf("%12s", qk_format_size(*freed, size)) : xstrdup("");
}

/* One line of the table. Long ids and names push the rest to the right. */
static char *snapshot_line(const struct qk_snapshot_info *snapshot, const uint64_t *freed)
{
    char size[QK_SIZE_TEXT_MAX], date[64] = "", clock[64], icount[32] = "";
    struct tm tm;
    time_t when = (time_t)snapshot->date_sec;
    if (localtime_r(&when, &tm))
        strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
    uint64_t seconds = snapshot->vm_clock_ns / NSEC_PER_SEC;
    snprintf(clock, sizeof(clock), "%02" PRIu64 ":%02" PRIu64 ":%02" PRIu64 ".%03" PRIu64,
             seconds / 3600, seconds / 60 % 60, seconds % 60,
             snapshot->vm_clock_ns % NSEC_PER_SEC / 1000000);
    if (snapshot->icount != QK_OFFSET_NONE)
        snprintf(icount, sizeof(icount), "%" PRIu64, snapshot->icount);
    TEXT_CLEANUP char *more = freed_column(freed);
    return xprintf(COLUMNS "%s\n", snapshot->id, snapshot->name,
                   qk_format_size(snapshot->vm_state_size, size), date, clock, icount, more);
}

static void add_json(struct rows *list, const struct qk_snapshot_info *snapshot,
                     const uint64_t *freed, unsigned detail)
{
    struct rows *rows = rows_object(list, NULL, NULL);
    if (snapshot->icount != QK_OFFSET_NONE)
        rows_uint(rows, "icount", NULL, snapshot->icount);
    rows_uint(rows, "vm-clock-nsec", NULL, snapshot->vm_clock_ns % NSEC_PER_SEC);
    rows_text(rows, "name", NULL, snapshot->name);
    rows_int(rows, "date-sec", NULL, snapshot->date_sec);
    rows_uint(rows, "date-nsec", NULL, snapshot->date_nsec);
    rows_uint(rows, "vm-clock-sec", NULL, snapshot->vm_clock_ns / NSEC_PER_SEC);
    rows_text(rows, "id", NULL, snapshot->id);
    rows_uint(rows, "vm-state-size", NULL, snapshot->vm_state_size);
    if (detail & SNAPSHOT_SIZES)
        rows_uint(rows, "disk-size", NULL, snapshot->disk_size);
    if (freed)
        rows_uint(rows, "freed-size", NULL, *freed);
}

static int add_one(struct rows *rows, struct rows *list, struct qk_disk *disk, uint32_t index,
                   unsigned detail, struct qk_error *err)
{
    struct qk_snapshot_info snapshot = QK_SNAPSHOT_INFO_INIT;
    uint64_t bytes, *freed = detail & SNAPSHOT_FREED ? &bytes : NULL;
    int ret = qk_disk_snapshot(disk, index, &snapshot, err);
    if (!ret && freed)
        ret = qk_disk_snapshot_freed(disk, index, freed, err);
    if (ret)
        return ret;
    add_json(list, &snapshot, freed, detail);
    TEXT_CLEANUP char *line = snapshot_line(&snapshot, freed);
    rows_block(rows, line);
    return 0;
}

int snapshot_rows(struct rows *rows, struct qk_disk *disk, unsigned detail, struct qk_error *err)
{
    struct qk_info info = QK_INFO_INIT;
    int ret = qk_disk_info(disk, &info, err);
    if (ret || !info.snapshot_count)
        return ret;
    struct rows *list = rows_list(rows, "snapshots", NULL);
    TEXT_CLEANUP char *more = detail & SNAPSHOT_FREED ? xprintf("%12s", "FREED") : xstrdup("");
    TEXT_CLEANUP char *head = xprintf("Snapshot list:\n" COLUMNS "%s\n", "ID", "TAG", "VM SIZE",
                                      "DATE", "VM CLOCK", "ICOUNT", more);
    rows_block(rows, head);
    for (uint32_t i = 0; i < info.snapshot_count && !ret; i++)
        ret = add_one(rows, list, disk, i, detail, err);
    return ret;
}
