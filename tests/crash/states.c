/* states.c - see states.h. */
#include "states.h"
#include "base/checked.h"

#include <stdint.h>
#include <string.h>

enum { SECTOR = 512 };

static struct qk_io *new_mem(const uint8_t *bytes, size_t len)
{
    struct qk_io *io = NULL;
    if (io_mem_open(bytes, len, 0, &io, NULL) < 0)
        abort();
    return io;
}

/* A part of a sector that is written or zeroed changes the sector as a whole: the change gets the
 * bytes around it, as they are at that moment. */
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
    e->kind = TRACE_WRITE;
    e->off = off;
    e->len = end - off;
    e->data = copy;
}

/* After each change: what is stable, of each store and of all. */
static void note_stable(struct history *h, size_t n, const struct trace_entry *e)
{
    h->stable[n + 1] = SIZE_MAX;
    for (unsigned s = 0; s < STORES; s++) {
        bool covered = e->kind == TRACE_FLUSH && e->store == s;
        h->store_stable[s][n + 1] = covered ? e->covers : h->store_stable[s][n];
        if (h->initial[s].bytes)
            h->stable[n + 1] = min_u64(h->stable[n + 1], h->store_stable[s][n + 1]);
    }
}

static int history_alloc(struct history *h, size_t count, const struct content initial[STORES])
{
    int ret = change_vec_reserve(&h->changes, count);
    h->stable = calloc(count + 1, sizeof(*h->stable));
    for (unsigned s = 0; s < STORES; s++) {
        const struct content *from = &initial[s];
        h->store_stable[s] = calloc(count + 1, sizeof(*h->stable));
        h->initial[s] = (struct content){from->bytes ? malloc(from->len + 1) : NULL, from->len};
        if (!h->store_stable[s] || (from->bytes && !h->initial[s].bytes))
            return -ENOMEM;
        if (from->bytes)
            memcpy(h->initial[s].bytes, from->bytes, from->len);
    }
    return h->stable ? ret : -ENOMEM;
}

int history_take_both(struct history *h, struct qk_io *trace, const struct content initial[STORES])
{
    size_t count = trace_count(trace);
    struct qk_io *live[STORES];
    *h = (struct history){0};
    int ret = history_alloc(h, count, initial);
    for (unsigned s = 0; s < STORES; s++)
        live[s] = new_mem(initial[s].bytes, initial[s].len);
    for (size_t i = 0; i < count && ret == 0; i++) {
        struct trace_entry e = *trace_get(trace, i);
        ret = trace_replay(&e, live[e.store], NULL);
        bool parts = e.kind == TRACE_ZERO && (e.off | e.len) % SECTOR;
        if (ret == 0 && (e.kind == TRACE_WRITE || parts))
            widen(&e, live[e.store]);
        h->changes.ptr[h->changes.len++] = e;
        note_stable(h, i, &e);
    }
    for (unsigned s = 0; s < STORES; s++)
        io_close(live[s], NULL);
    return ret;
}

int history_take(struct history *h, struct qk_io *trace, const uint8_t *initial, size_t initial_len)
{
    const struct content contents[STORES] = {{(uint8_t *)(uintptr_t)initial, initial_len}};
    return history_take_both(h, trace, contents);
}

void history_free(struct history *h)
{
    for (size_t i = 0; i < h->changes.len; i++) {
        if (h->changes.ptr[i].kind == TRACE_WRITE)
            free((void *)(uintptr_t)h->changes.ptr[i].data);
    }
    change_vec_free(&h->changes);
    free(h->stable);
    for (unsigned s = 0; s < STORES; s++) {
        free(h->store_stable[s]);
        free(h->initial[s].bytes);
    }
}

int builder_init(struct builder *b, const struct history *h)
{
    *b = (struct builder){.h = h};
    for (unsigned s = 0; s < STORES; s++)
        b->base[s] = new_mem(h->initial[s].bytes, h->initial[s].len);
    return 0;
}

void builder_free(struct builder *b)
{
    for (unsigned s = 0; s < STORES; s++)
        io_close(b->base[s], NULL);
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
                       struct qk_io *const target[STORES])
{
    uint64_t random = state.seed;
    uint32_t keep[STORES] = {1 + draw(&random, 15)};
    int ret = 0;
    keep[1] = b->h->initial[1].bytes ? 1 + draw(&random, 15) : 0;
    for (size_t i = from; i < state.changes && ret == 0; i++) {
        const struct trace_entry *e = &b->h->changes.ptr[i];
        bool stable = i < b->h->store_stable[e->store][state.changes];
        bool stays =
            stable || (e->fua && i + 1 < state.changes) || draw(&random, 16) < keep[e->store];
        bool torn = stays && !stable && !e->fua && e->kind == TRACE_WRITE && e->len > SECTOR &&
                    draw(&random, 4) == 0;
        if (torn)
            ret = replay_torn(e, &random, target[e->store]);
        else if (stays)
            ret = trace_replay(e, target[e->store], NULL);
    }
    return ret;
}

int builder_make_both(struct builder *b, struct state state, struct qk_io *out[STORES])
{
    size_t stable = b->h->stable[state.changes];
    int ret = 0;
    for (; b->base_changes < stable && ret == 0; b->base_changes++) {
        const struct trace_entry *e = &b->h->changes.ptr[b->base_changes];
        ret = trace_replay(e, b->base[e->store], NULL);
    }
    for (unsigned s = 0; s < STORES; s++) {
        size_t len = 0;
        const uint8_t *bytes = io_mem_data(b->base[s], &len);
        out[s] = new_mem(bytes, len);
    }
    if (ret == 0 && state.seed)
        return replay_some(b, state, stable, out);
    for (size_t i = stable; i < state.changes && ret == 0; i++)
        ret = trace_replay(&b->h->changes.ptr[i], out[b->h->changes.ptr[i].store], NULL);
    return ret;
}

int builder_make(struct builder *b, struct state state, struct qk_io **out)
{
    struct qk_io *both[STORES];
    int ret = builder_make_both(b, state, both);
    *out = both[0];
    io_close(both[1], NULL);
    return ret;
}
