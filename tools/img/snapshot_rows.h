/*
 * snapshot_rows.h - the list of an image's snapshots, as `info` and `snapshot -l` print it.
 */
#ifndef TOOLS_IMG_SNAPSHOT_ROWS_H
#define TOOLS_IMG_SNAPSHOT_ROWS_H

#include "common/rows.h"
#include "qcowkit.h"

/* The order of a snapshot's keys in JSON. */
#define SNAPSHOT_KEYS                                                                              \
    "icount", "vm-clock-nsec", "name", "date-sec", "date-nsec", "vm-clock-sec", "id",              \
        "vm-state-size"

enum snapshot_detail {
    SNAPSHOT_FREED = 1u << 0, /* what deleting each would free */
    SNAPSHOT_SIZES = 1u << 1, /* JSON only: the size of each one's disk */
};

/* Adds the snapshots, when there are any, as "snapshots". detail: of enum snapshot_detail. */
int snapshot_rows(struct rows *rows, struct qk_disk *disk, unsigned detail, struct qk_error *err);

#endif
