/*
 * stage.h - a filter that changes nothing: it keeps what is written in memory, shows it to who
 * reads, and carries it out later, all of it or nothing. Work that is done over a stage is a plan,
 * and what the plan does is what was staged.
 *
 * A flush ends an epoch: what was written before it must be stable before anything that follows is
 * written. Within an epoch order means nothing, so writes to one sector of 512 bytes are merged.
 * Memory: at most SPILL_MEMORY (spill.h) for bytes, and 48 for each stretch of sectors that are one
 * behind the other, or all the same.
 */
#ifndef QK_IO_STAGE_H
#define QK_IO_STAGE_H

#include "io/io.h"

#define STAGE_SECTOR 512u

/* `inner` is borrowed, and read only. What is too much for memory goes to a nameless file in the
 * folder of the file `beside`; NULL: to none. */
int io_stage_open(struct qk_io *inner, const char *beside, struct qk_io **out,
                  struct qk_error *err);

/* Nothing was written or grown. */
bool stage_empty(struct qk_io *io);
/* Whole sectors that would be written, counted once for each epoch. */
uint64_t stage_sectors(struct qk_io *io);

/* One stretch of bytes that is written at once; the next one of a higher epoch comes after a flush.
 * bytes NULL: the file gets the length `off`. */
struct stage_run {
    unsigned epoch;
    uint64_t off;
    size_t len;
    const uint8_t *bytes;
};
/* Calls fn for everything that is staged, in order; within an epoch by offset. */
typedef int stage_fn(void *opaque, const struct stage_run *run, struct qk_error *err);
int stage_each(struct qk_io *io, stage_fn *fn, void *opaque, struct qk_error *err);
/* Carries it out on `target`, which has the content that `inner` had; it may be `inner`. */
int stage_commit(struct qk_io *io, struct qk_io *target, struct qk_error *err);

#endif
