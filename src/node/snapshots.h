/*
 * snapshots.h - the list of internal snapshots of an image, for display (Format, section
 * "Snapshots"). Relies on the header having been validated.
 */
#ifndef QK_NODE_SNAPSHOTS_H
#define QK_NODE_SNAPSHOTS_H

#include "image/image.h"

struct snapshot_row {
    char *id, *name; /* owned */
    uint64_t vm_state_bytes, disk_bytes, vm_clock_ns, icount;
    uint32_t date_sec, date_nsec;
};

struct snapshot_list {
    struct snapshot_row *row;
    uint32_t count;
};

/* Reads the table; memory is bounded by the file's length (INV-4). */
int snapshots_read(const struct image *img, struct snapshot_list **out, struct qk_error *err);
void snapshots_free(struct snapshot_list *list);

#endif
