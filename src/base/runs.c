/*
 * runs.c - the map of runs.h: chunks of runs in order, found by halving; a full chunk is split.
 * What comes in ascending order fills each chunk before the next one begins.
 */
#include "base/runs.h"
#include "base/checked.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_RUNS 128u

struct run_chunk {
    size_t len;
    struct run run[CHUNK_RUNS];
};

static struct run *run_of(const struct runs *runs, const struct run_at *at)
{
    return at->chunk < runs->chunks ? &runs->chunk[at->chunk]->run[at->index] : NULL;
}

struct run *runs_from(const struct runs *runs, uint64_t number, struct run_at *at)
{
    size_t low = 0, high = runs->chunks;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const struct run_chunk *c = runs->chunk[mid];
        if (run_end(&c->run[c->len - 1]) <= number)
            low = mid + 1;
        else
            high = mid;
    }
    *at = (struct run_at){low, 0};
    if (low == runs->chunks)
        return NULL;
    const struct run_chunk *c = runs->chunk[low];
    for (low = 0, high = c->len; low < high;) {
        size_t mid = low + (high - low) / 2;
        if (run_end(&c->run[mid]) <= number)
            low = mid + 1;
        else
            high = mid;
    }
    at->index = low;
    return run_of(runs, at);
}

struct run *runs_next(const struct runs *runs, struct run_at *at)
{
    if (++at->index == runs->chunk[at->chunk]->len)
        *at = (struct run_at){at->chunk + 1, 0};
    return run_of(runs, at);
}

const struct run *runs_find(const struct runs *runs, uint64_t number)
{
    struct run_at at;
    const struct run *run = runs_from(runs, number, &at);
    return run && run->first <= number ? run : NULL;
}

/* An empty chunk in place `i`. */
static int chunk_insert(struct runs *runs, size_t i)
{
    if (runs->chunks == runs->room) {
        size_t room = runs->room ? runs->room + runs->room / 2 : 4;
        struct run_chunk **p = realloc(runs->chunk, room * sizeof(*p));
        if (!p)
            return -ENOMEM;
        runs->chunk = p;
        runs->room = room;
    }
    struct run_chunk *fresh = malloc(sizeof(*fresh));
    if (!fresh)
        return -ENOMEM;
    fresh->len = 0;
    memmove(&runs->chunk[i + 1], &runs->chunk[i], (runs->chunks - i) * sizeof(*runs->chunk));
    runs->chunk[i] = fresh;
    runs->chunks++;
    return 0;
}

/* Room for a run at *at, which moves along. */
static int make_room(struct runs *runs, struct run_at *at)
{
    /* Behind all others is at the end of the last chunk. */
    if (at->chunk == runs->chunks && runs->chunks)
        *at = (struct run_at){runs->chunks - 1, runs->chunk[runs->chunks - 1]->len};
    if (at->chunk < runs->chunks && runs->chunk[at->chunk]->len < CHUNK_RUNS)
        return 0;
    if (chunk_insert(runs, at->chunk + (runs->chunks > 0)) < 0)
        return -ENOMEM;
    if (runs->chunks == 1)
        return 0;
    struct run_chunk *full = runs->chunk[at->chunk], *fresh = runs->chunk[at->chunk + 1];
    bool last = at->chunk + 2 == runs->chunks && at->index == full->len;
    size_t keep = last ? full->len - 1 : full->len / 2;
    fresh->len = full->len - keep;
    memcpy(fresh->run, full->run + keep, fresh->len * sizeof(*fresh->run));
    full->len = keep;
    if (at->index > keep)
        *at = (struct run_at){at->chunk + 1, at->index - keep};
    return 0;
}

static int insert_at(struct runs *runs, struct run_at at, struct run run)
{
    if (make_room(runs, &at) < 0)
        return -ENOMEM;
    struct run_chunk *c = runs->chunk[at.chunk];
    memmove(&c->run[at.index + 1], &c->run[at.index], (c->len - at.index) * sizeof(run));
    c->run[at.index] = run;
    c->len++;
    return 0;
}

static void remove_at(struct runs *runs, struct run_at at)
{
    struct run_chunk *c = runs->chunk[at.chunk];
    memmove(&c->run[at.index], &c->run[at.index + 1], (c->len - at.index - 1) * sizeof(*c->run));
    if (--c->len)
        return;
    free(c);
    runs->chunks--;
    memmove(&runs->chunk[at.chunk], &runs->chunk[at.chunk + 1],
            (runs->chunks - at.chunk) * sizeof(*runs->chunk));
}

int runs_put(struct runs *runs, struct run run)
{
    struct run_at at;
    struct run *before = run.first ? runs_from(runs, run.first - 1, &at) : NULL;
    if (before && run_end(before) == run.first && before->step == run.step &&
        before->value + (uint64_t)before->count * run.step == run.value &&
        run.count <= UINT32_MAX - before->count) {
        before->count += run.count;
        return 0;
    }
    runs_from(runs, run.first, &at);
    return insert_at(runs, at, run);
}

int runs_cut(struct runs *runs, uint64_t first, uint32_t count)
{
    struct run_at at;
    struct run *run = runs_from(runs, first, &at), rest = *run;
    uint32_t head = (uint32_t)(first - run->first), tail = run->count - head - count;
    rest.first = first + count;
    rest.count = tail;
    rest.value += (uint64_t)(head + count) * rest.step;
    if (head && tail) {
        struct run_at behind = {at.chunk, at.index + 1};
        run->count = head;
        int ret = insert_at(runs, behind, rest);
        if (ret < 0)
            runs->chunk[at.chunk]->run[at.index].count = head + count + tail;
        return ret;
    }
    if (head)
        run->count = head;
    else if (tail)
        *run = rest;
    else
        remove_at(runs, at);
    return 0;
}

void runs_free(struct runs *runs)
{
    for (size_t i = 0; i < runs->chunks; i++)
        free(runs->chunk[i]);
    free(runs->chunk);
    *runs = (struct runs){0};
}
