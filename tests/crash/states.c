/* states.c - see states.h. */
#include "states.h"
#include "base/checked.h"

#include <string.h>

enum { SECTOR = 512 };

static struct qk_io *new_mem(const uint8_t *bytes, size_t len)
{
    struct qk_io *io = NULL;
    if (io_mem_open(bytes, len, 0, &io, NULL) < 0)
        abort();
    return io;
}

/* A part of a sector that is written changes the sector as a whole: the change gets the bytes
 * around it, as they are at that moment. */
static void widen(struct trace_entry *e, struct qk_io *live)
{
    size_t len = 0;
    const uint8_t *bytes = io_mem_data(live, &len);
    uint64_t off = round_down(e->off, SECTOR);
    uint64_t end = max_u64(e->off + e->len, min_u64(round_up(e->off + e->len, SECTOR), len));
    uint8_t *copy = malloc(end - off);
    if (!copy)
        abort();
    memcpy(copy, bytes + off, end - off);
    e->off = off;
    e->len = end - off;
    e->data = copy;
}

int history_take(struct history *h, struct qk_io *trace, const uint8_t *initial, size_t initial_len)
{
    size_t count = trace_count(trace);
    struct qk_io *live = new_mem(initial, initial_len);
    *h = (struct history){.initial_len = initial_len};
    h->initial = malloc(initial_len + 1);
    h->stable = calloc(count + 1, sizeof(*h->stable));
    int ret = h->initial && h->stable ? change_vec_reserve(&h->changes, count) : -ENOMEM;
    if (ret == 0 && initial_len)
        memcpy(h->initial, initial, initial_len);
    for (size_t i = 0; i < count && ret == 0; i++) {
        struct trace_entry e = *trace_get(trace, i);
        ret = trace_replay(&e, live, NULL);
        if (ret == 0 && e.kind == TRACE_WRITE)
            widen(&e, live);
        h->changes.ptr[h->changes.len++] = e;
        h->stable[i + 1] = e.kind == TRACE_FLUSH ? e.covers : h->stable[i];
    }
    io_close(live, NULL);
    return ret;
}

void history_free(struct history *h)
{
    for (size_t i = 0; i < h->changes.len; i++) {
        if (h->changes.ptr[i].kind == TRACE_WRITE)
            free((void *)(uintptr_t)h->changes.ptr[i].data);
    }
    change_vec_free(&h->changes);
    free(h->stable);
    free(h->initial);
}

int builder_init(struct builder *b, const struct history *h)
{
    *b = (struct builder){.h = h, .base = new_mem(h->initial, h->initial_len)};
    return 0;
}

void builder_free(struct builder *b)
{
    io_close(b->base, NULL);
}

static uint32_t draw(uint64_t *random, uint32_t below)
{
    *random = *random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*random >> 33) % below;
}

/* Some sectors of a write: its head, its tail, or any of them. */
static int replay_torn(const struct trace_entry *e, uint64_t *random, struct qk_io *target)
{
    uint64_t sectors = div_round_up(e->len, SECTOR);
    uint64_t cut = draw(random, (uint32_t)min_u64(sectors, UINT32_MAX)) * (uint64_t)SECTOR;
    uint32_t way = draw(random, 3);
    if (way == 0)
        return trace_replay_part(e, 0, cut, target, NULL);
    if (way == 1)
        return trace_replay_part(e, cut, e->len - cut, target, NULL);
    for (uint64_t at = 0; at < e->len; at += SECTOR) {
        int ret = draw(random, 2)
                      ? trace_replay_part(e, at, min_u64(SECTOR, e->len - at), target, NULL)
                      : 0;
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* Each change is kept with the same chance, which differs from state to state. */
static int replay_some(const struct builder *b, struct state state, size_t from,
                       struct qk_io *target)
{
    uint64_t random = state.seed;
    uint32_t keep = 1 + draw(&random, 15);
    int ret = 0;
    for (size_t i = from; i < state.changes && ret == 0; i++) {
        const struct trace_entry *e = &b->h->changes.ptr[i];
        bool stays = (e->fua && i + 1 < state.changes) || draw(&random, 16) < keep;
        bool torn =
            stays && !e->fua && e->kind == TRACE_WRITE && e->len > SECTOR && draw(&random, 4) == 0;
        if (torn)
            ret = replay_torn(e, &random, target);
        else if (stays)
            ret = trace_replay(e, target, NULL);
    }
    return ret;
}

int builder_make(struct builder *b, struct state state, struct qk_io **out)
{
    size_t stable = b->h->stable[state.changes], len = 0;
    int ret = 0;
    for (; b->base_changes < stable && ret == 0; b->base_changes++)
        ret = trace_replay(&b->h->changes.ptr[b->base_changes], b->base, NULL);
    const uint8_t *bytes = io_mem_data(b->base, &len);
    *out = new_mem(bytes, len);
    if (ret == 0 && state.seed)
        return replay_some(b, state, stable, *out);
    for (size_t i = stable; i < state.changes && ret == 0; i++)
        ret = trace_replay(&b->h->changes.ptr[i], *out, NULL);
    return ret;
}
