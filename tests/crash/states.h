/*
 * states.h - what a crash can leave of a file, from the log of its changes. A state is the file
 * with all changes that a flush has made stable and some of the others: all of them (the prefix),
 * or a random choice of whole and torn ones. Sectors of 512 bytes are never torn.
 */
#ifndef QK_CRASH_STATES_H
#define QK_CRASH_STATES_H

#include "base/vector.h"
#include "io/trace.h"

DEFINE_VECTOR(change_vec, struct trace_entry)

/* A log, and the file before it. */
struct history {
    struct change_vec changes; /* writes made of whole sectors; owns the data */
    size_t *stable;            /* [n]: changes below it are stable after the first n */
    uint8_t *initial;
    size_t initial_len;
};

int history_take(struct history *h, struct qk_io *trace, const uint8_t *initial,
                 size_t initial_len);
void history_free(struct history *h);

struct state {
    size_t changes; /* how many had been issued */
    uint64_t seed;  /* 0: all of them are there */
};

/* Builds states of ascending `changes`, keeping the stable part from one to the next. */
struct builder {
    const struct history *h;
    struct qk_io *base;
    size_t base_changes;
};
int builder_init(struct builder *b, const struct history *h);
void builder_free(struct builder *b);
/* *out is a memory store of the caller. */
int builder_make(struct builder *b, struct state state, struct qk_io **out);

#endif
