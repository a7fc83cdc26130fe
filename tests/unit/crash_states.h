/*
 * crash_states.h - every state that a power cut can leave of a traced run: every prefix of the log
 * of writes, with the writes that no flush had made stable yet all there, all missing, each one
 * alone, each one missing, and each one torn. And the way back from each of them.
 */
#ifndef QK_CRASH_STATES_H
#define QK_CRASH_STATES_H

#include "base/checked.h"
#include "io/trace.h"
#include "io/undo.h"
#include "test.h"

#define TORN_SECTOR 512u

/* Which of the unstable writes [stable, end) are in the state. */
enum variant { ALL, NONE, ONLY, ALL_BUT, TORN, VARIANTS };

static inline bool part_of(enum variant v, size_t seq, size_t chosen)
{
    switch (v) {
    case NONE:
        return false;
    case ONLY:
        return seq == chosen;
    case ALL_BUT:
        return seq != chosen;
    default:
        return true;
    }
}

/* What `trace` has done to `io`, but for what the variant leaves out. */
static inline void replay_state(struct qk_io *trace, struct qk_io *io, size_t end, enum variant v,
                                size_t chosen)
{
    size_t stable = trace_stable_before(trace, end);
    for (size_t seq = 0; seq < end; seq++) {
        const struct trace_entry *e = trace_get(trace, seq);
        int ret = 0;
        if (seq >= stable && !part_of(v, seq, chosen))
            continue;
        if (v == TORN && seq == chosen && e->kind == TRACE_WRITE && e->len > TORN_SECTOR)
            ret = trace_replay_part(e, 0, e->len / 2 / TORN_SECTOR * TORN_SECTOR, io, NULL);
        else
            ret = trace_replay(e, io, NULL);
        if (ret < 0)
            CHECK_OK(ret);
    }
}

/* A traced run over an image with the content `base`. */
struct traced {
    const uint8_t *base;
    size_t base_bytes;
    struct qk_io *trace;
};

static inline bool is_base(const struct traced *t, struct qk_io *io)
{
    size_t bytes;
    const uint8_t *now = io_mem_data(io, &bytes);
    return bytes == t->base_bytes && !memcmp(now, t->base, bytes);
}

/* The way back from a copy of a state, twice: how often it did not lead to the base. */
static inline unsigned undo_failures(const struct traced *t, struct qk_io *log, struct qk_io *state)
{
    struct undo_result result;
    struct qk_io *io = NULL;
    size_t bytes;
    unsigned failures = 0;
    const uint8_t *now = io_mem_data(state, &bytes);
    CHECK_OK(io_mem_open(now, bytes, 0, &io, NULL));
    for (unsigned i = 0; i < 2; i++)
        failures += undo_restore(log, io, &result, NULL) < 0 || !is_base(t, io);
    io_close(io, NULL);
    return failures;
}

typedef void state_fn(void *opaque, struct qk_io *state);

static inline void one_state(const struct traced *t, size_t end, enum variant v, size_t chosen,
                             struct qk_io **io)
{
    CHECK_OK(io_mem_open(t->base, t->base_bytes, 0, io, NULL));
    replay_state(t->trace, *io, end, v, chosen);
}

static inline void each_state(const struct traced *t, state_fn *judge, void *opaque)
{
    struct qk_io *io = NULL;
    for (size_t end = 0; end <= trace_count(t->trace); end++) {
        for (unsigned v = ALL; v <= NONE; v++) {
            one_state(t, end, (enum variant)v, 0, &io);
            judge(opaque, io);
            io_close(io, NULL);
        }
        for (size_t seq = trace_stable_before(t->trace, end); seq < end; seq++) {
            for (unsigned v = ONLY; v < VARIANTS; v++) {
                one_state(t, end, (enum variant)v, seq, &io);
                judge(opaque, io);
                io_close(io, NULL);
            }
        }
    }
}

#endif
