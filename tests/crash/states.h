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

enum { STORES = 2 }; /* the image, and its data file */

/* What a store holds before the log begins. */
struct content {
    uint8_t *bytes;
    size_t len;
};

/* A log, and the files before it. */
struct history {
    struct change_vec changes;    /* writes made of whole sectors; owns the data */
    size_t *stable;               /* [n]: changes below it are stable after the first n */
    size_t *store_stable[STORES]; /* the same for the changes of one store */
    struct content initial[STORES];
};

int history_take(struct history *h, struct qk_io *trace, const uint8_t *initial,
                 size_t initial_len);
/* Of an image and its data file, which share a log. */
int history_take_both(struct history *h, struct qk_io *trace, const struct content initial[STORES]);
void history_free(struct history *h);

struct state {
    size_t changes; /* how many had been issued */
    uint64_t seed;  /* 0: all of them are there */
};

/* Builds states of ascending `changes`, keeping the stable part from one to the next. */
struct builder {
    const struct history *h;
    struct qk_io *base[STORES];
    size_t base_changes;
};
int builder_init(struct builder *b, const struct history *h);
void builder_free(struct builder *b);
/* *out is a memory store of the caller. */
int builder_make(struct builder *b, struct state state, struct qk_io **out);
/* The image and its data file. Each keeps its own choice of what was not stable there. */
int builder_make_both(struct builder *b, struct state state, struct qk_io *out[STORES]);

#endif
