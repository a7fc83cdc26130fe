/*
 * model.h - what a guest may find on its disk, as a list of versions per sector. Each operation
 * gets a number, and the content of every sector that it writes is unique to (operation, sector),
 * so that old content of another place can never pass for right. After a crash or an error a
 * sector may show its last version that is certain and covered by a flush, or any later one of an
 * operation that had begun. Sectors have 512 bytes and change as a whole.
 */
#ifndef QK_CRASH_MODEL_H
#define QK_CRASH_MODEL_H

#include "base/vector.h"

#include <stdbool.h>

enum { SECTOR = 512, MODEL_TEXT = 400 };

struct version {
    uint32_t op;
    bool sure;     /* the operation succeeded: older versions are gone once it is stable */
    uint64_t hash; /* of the sector's bytes; for the disk's size: the size itself */
};
DEFINE_VECTOR(version_vec, struct version)

struct op {
    size_t start, end; /* entries in the log of changes before and after it */
    bool flush;        /* a flush that succeeded: covers the operations before it */
};
DEFINE_VECTOR(op_vec, struct op)

/* A snapshot as it has to be. */
struct model_snapshot {
    uint32_t id;
    uint64_t size;
    uint8_t *bytes;
};
DEFINE_VECTOR(model_snapshot_vec, struct model_snapshot)

struct model {
    uint8_t *live; /* the disk as it reads now, max_bytes */
    uint64_t size, max_bytes;
    uint64_t first, end; /* sectors that this model speaks of: all, or those of one thread */
    struct version_vec *sectors;
    struct version_vec sizes;
    struct model_snapshot_vec snapshots;
    struct version_vec lists; /* of snapshots: a hash of all that is in them */
    struct op_vec ops;
};

/* Operation 0, a flush, is the beginning. */
void model_init(struct model *m, uint64_t size, uint64_t max_bytes);
void model_free(struct model *m);
/* The content before all operations: `bytes` of the backing file, zeroes behind them. */
void model_base(struct model *m, const uint8_t *bytes, uint64_t len);
/* Fills buf with the content that operation `op` writes at off. */
void model_pattern(uint32_t op, uint64_t off, uint8_t *buf, size_t len);
uint32_t model_next_op(const struct model *m);
/* The next operation has ended: its place in the log. */
void model_op(struct model *m, struct op op);
/* The operation (numbered as by model_next_op) puts bytes, or zeroes when NULL, at off. */
void model_put(struct model *m, uint64_t off, const uint8_t *bytes, uint64_t len, bool sure);
void model_resize(struct model *m, uint64_t size, bool sure);

/* The next operation takes a snapshot, drops one, or puts its content back on the disk. What is not
 * sure leaves the model as it was, but allows the result. */
void model_snapshot_take(struct model *m, uint32_t id, bool sure);
void model_snapshot_drop(struct model *m, size_t index, bool sure);
void model_snapshot_apply(struct model *m, size_t index, bool sure);
/* Adds a snapshot to the hash of a list, which begins as 0. */
uint64_t model_list_hash(uint64_t hash, uint32_t id, const uint8_t *bytes, uint64_t size);

/* The program has lost what no flush had covered (a close that failed): nobody was promised it. */
void model_lose_unflushed(struct model *m);

/* What is certain at a moment: operations below `flushed` are stable, those from `begun` on have
 * not begun. */
struct moment {
    uint32_t flushed, begun;
};
/* The moment when the first `changes` entries of the log had been issued. */
struct moment model_moment(const struct model *m, size_t changes);
/* All that has been done so far, flushed or not. */
struct moment model_now(const struct model *m);
bool model_size_allowed(const struct model *m, struct moment at, uint64_t size);
bool model_list_allowed(const struct model *m, struct moment at, uint64_t hash);
bool model_sector_allowed(const struct model *m, struct moment at, uint64_t sector,
                          const uint8_t *bytes);
/* One line about a sector that is not allowed. */
void model_describe(const struct model *m, struct moment at, uint64_t sector, const uint8_t *bytes,
                    char text[MODEL_TEXT]);

#endif
