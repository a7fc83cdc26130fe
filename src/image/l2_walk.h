/*
 * l2_walk.h - all L2 tables below an L1, as work on whole tables needs them (snapshots, shrinking,
 * counting): each distinct table once, in the order of the file, read in large pieces from the file
 * itself. Relies on a writeback before (what the caches hold is on the medium) and on the whole
 * disk being held; tables and entries are validated as they are met (INV-4). Memory: 16 bytes for
 * each table, and the pieces of L2_WALK_BYTES.
 */
#ifndef QK_IMAGE_L2_WALK_H
#define QK_IMAGE_L2_WALK_H

#include "image/image_int.h"

#define L2_WALK_BYTES (512u << 10) /* at least a cluster; stays in the processor's cache */

struct l2_table {
    uint64_t off;      /* in the file */
    uint32_t l1_index; /* of the first entry that names it */
    uint32_t uses;     /* L1 entries that name it: 1, but in an odd image */
};
DEFINE_VECTOR(l2_table_vec, struct l2_table)

/* The distinct tables that `count` L1 entries (host-endian) name, sorted by offset. -EIO: one is
 * unaligned or beyond the end of the file. *out is empty or to be freed by the caller. */
int l2_tables_of(struct image *img, const uint64_t *l1, uint64_t count, struct l2_table_vec *out,
                 struct qk_error *err);
/* The same for the active L1 and those of all snapshots. */
int l2_tables_all(struct image *img, struct l2_table_vec *out, struct qk_error *err);
/* The table at `off`; NULL: none of these. */
const struct l2_table *l2_tables_find(const struct l2_table_vec *tables, uint64_t off);

/* `bytes` is a cluster of big-endian entries; it may be changed, nobody else sees it. */
typedef int (*l2_table_visit)(void *opaque, const struct l2_table *table, uint8_t *bytes,
                              struct qk_error *err);
/* Reads the tables and visits each, in the order of the vector, which is sorted. Ends at the first
 * visit that does not return 0, with what that returned. */
int l2_tables_visit(struct image *img, const struct l2_table_vec *tables, l2_table_visit visit,
                    void *opaque, struct qk_error *err);

/* Host clusters in the image file that entries refer to. */
typedef int (*l2_run_fn)(void *opaque, struct cluster_run run, struct qk_error *err);
/* The references of one table's entries, in their order: neighbours are joined to one run, each
 * compressed cluster is one of its own. Guest clusters in an external data file are left out. */
int l2_table_runs(struct image *img, const struct l2_table *table, const uint8_t *bytes,
                  l2_run_fn fn, void *opaque, struct qk_error *err);

/* shrink.c: on stable storage the active L1 names these tables no more; gives back the reference to
 * each and those that its entries had. */
int l2_tables_drop(struct image *img, const struct l2_table_vec *tables, struct qk_error *err);

#endif
