/*
 * snapshots.h - internal snapshots of an open image: the list, creating, deleting, applying,
 * renaming, and what deleting would free. Each operation holds the whole disk and either happens as
 * a whole, stable when it returns, or not at all (doc/design/snapshots.md). MT-safe.
 */
#ifndef QK_IMAGE_SNAPSHOTS_H
#define QK_IMAGE_SNAPSHOTS_H

#include "format/snapshot.h"
#include "image/image.h"

/* The table as it is in the file; memory is bounded by the file (INV-4). -EINVAL: damaged. Release
 * with snapshots_free_all, also after a failure. */
int image_snapshots(struct image *img, struct snapshot_vec *out, struct qk_error *err);

/* Which snapshot. Members that are NULL do not matter; `either` is an id, or else a name. */
struct snapshot_key {
    const char *id, *name, *either;
};
/* Index of the first that fits; -ENOENT. */
int64_t snapshots_find(const struct snapshot_vec *v, const struct snapshot_key *key);

struct snapshot_params {
    const char *name;
    uint64_t vm_state_bytes; /* of the state that was written before; the disk has it no more */
    uint64_t vm_clock_ns, icount;
    uint32_t date_sec, date_nsec;
};
int image_snapshot_create(struct image *img, const struct snapshot_params *params,
                          struct qk_error *err);
int image_snapshot_delete(struct image *img, const struct snapshot_key *key, struct qk_error *err);
int image_snapshot_apply(struct image *img, const struct snapshot_key *key, struct qk_error *err);
int image_snapshot_rename(struct image *img, const struct snapshot_key *key, const char *name,
                          struct qk_error *err);
/* Bytes of clusters that nothing but the snapshot refers to. */
int image_snapshot_freed(struct image *img, const struct snapshot *s, uint64_t *bytes,
                         struct qk_error *err);

/* ---- between the files of this module ---- */

/* L1 of a snapshot, host-endian, with room for `room` entries at least. */
int snapshot_read_l1(struct image *img, const struct snapshot *s, uint64_t room, uint64_t **l1,
                     struct qk_error *err);
/* The id of the next snapshot, as QEMU counts; at most 20 digits. */
void snapshots_next_id(const struct snapshot_vec *v, char id[21]);
/* All entries as they go to the file, padded to whole clusters. NULL for none. -EFBIG: more than
 * QEMU reads. */
int snapshots_encode(const struct image *img, const struct snapshot_vec *v, uint8_t **out,
                     uint64_t *bytes, struct qk_error *err);

#endif
