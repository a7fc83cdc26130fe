/*
 * reshape.h - one step from an image's old shape to a new one: another active L1, other snapshots,
 * and the refcounts and COPIED flags that go with them, made valid by one write of the header
 * (doc/design/snapshots.md). The caller says what the new shape is; this does the rest. Relies on
 * the whole disk being held.
 */
#ifndef QK_IMAGE_RESHAPE_H
#define QK_IMAGE_RESHAPE_H

#include "image/shadow.h"
#include "image/snapshots.h"

struct reshape {
    struct image *img;
    /* What the caller fills in. */
    struct l2_table_vec come, go; /* tables to which references come and go */
    uint64_t *l1;                 /* the new active L1, host-endian, flags are ignored; owned */
    uint64_t l1_entries;
    uint64_t disk_bytes;
    struct snapshot_vec *snapshots; /* the new list; borrowed */
    struct snapshot *fresh;         /* the one among them whose L1 is `fresh_l1`; NULL: none */
    const uint64_t *fresh_l1;       /* borrowed */
    struct cluster_run gone_l1;     /* the L1 of one that goes */
    bool drops_last;                /* which was the last of the list */
    /* What is made of it. */
    struct shadow sh;
    struct shadow_tree trees[2];
    struct l2_table_vec active, moved; /* tables of the new active L1; those with new flags */
    struct cluster_run_vec moved_to;   /* in the order of `moved` */
    struct cluster_run l1_at, fresh_at, snapshots_at; /* count 0: none, or it stays */
    uint8_t *snapshot_bytes;
    uint64_t snapshot_clusters;
    bool judged; /* counted, and found sound: `sh` and `moved` say what will be */
};

/* Until nothing waits in memory and no writeback runs: what the file has is all there is. Then
 * alloc_lock is held and writebacks wait, until image_thaw. On failure nothing is held. */
int image_freeze(struct image *img, struct qk_error *err);
void image_thaw(struct image *img);

/* The frozen image gets its new shape, stable on return, or keeps the old one. */
int reshape_run(struct reshape *r, struct qk_error *err);
/* After a reshape_run that found no space, for a shape that is the old one less a snapshot, no
 * longer frozen: the same result with hardly any space, by way of an image that is marked dirty.
 * -ENOSPC: there is not even that; the image is unchanged. After another failure the snapshot may
 * be gone and the image dirty, which the error says. */
int reshape_in_place(struct reshape *r, struct qk_error *err);
void reshape_end(struct reshape *r);

/* ---- between the files of this module ---- */

/* Gives L2 entries the COPIED flags that fit the new counts; returns whether any changed. */
bool reshape_set_flags(const struct reshape *r, uint8_t *bytes, size_t len);
/* Writes the header's first sector, stable on return, or has the old one in memory. */
int reshape_switch_header(struct image *img, const struct header *h, struct qk_error *err);

#endif
