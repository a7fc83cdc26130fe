/*
 * crash_states.h - every state that a power cut can leave of a traced run: every prefix of the log
 * of writes, with the writes that no flush had made stable yet all there, all missing, each one
 * alone, each one missing, and each one torn.
 */
#ifndef QK_CRASH_STATES_H
#define QK_CRASH_STATES_H

#include "base/checked.h"
#include "io/trace.h"
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
