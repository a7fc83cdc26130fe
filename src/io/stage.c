/*
 * stage.c - the filter of stage.h: for each epoch a map from sectors to their new bytes (runs.h):
 * sectors that repeat one word of eight bytes, as the blocks of a new refcount structure do, are a
 * run of that word; the others are a run of places in one stretch of bytes, of which only the end
 * is in memory (spill.h). Reading asks the store below, and then the epochs from the first to the
 * last. One lock covers all of it: repairs write from one thread.
 */
#include "io/stage.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/runs.h"
#include "base/vector.h"
#include "io/spill.h"

#include <string.h>

#define RUN_BYTES ((size_t)1 << 20)

/* The step of a run: its value is a word that each sector repeats, or a place in the spill. */
enum { STEP_WORD = 0, STEP_BYTES = STAGE_SECTOR };

struct epoch {
    struct runs sectors;
    uint64_t length; /* of the file when the epoch ends */
};
DEFINE_VECTOR(epoch_vec, struct epoch)

struct stage {
    struct qk_io io;
    struct qk_io *inner;
    pthread_mutex_t lock;
    struct epoch_vec epochs;
    struct spill spill;
    bool ended; /* the last epoch was flushed: the next write begins another */
    uint64_t inner_length, length;
};

static struct stage *stage_of(struct qk_io *io)
{
    return (struct stage *)io;
}

/* ---- sectors ---- */

static void fill(uint8_t *out, uint64_t word, size_t sectors)
{
    for (size_t i = 0; i < sectors * STAGE_SECTOR; i += sizeof(word))
        memcpy(out + i, &word, sizeof(word));
}

/* `count` sectors from `number` on, all of them in the run. */
static int sectors_get(const struct stage *s, const struct run *run, uint64_t number, size_t count,
                       uint8_t *out, struct qk_error *err)
{
    if (run->step == STEP_BYTES)
        return spill_read(&s->spill, run->value + (number - run->first) * STAGE_SECTOR, out,
                          count * STAGE_SECTOR, err);
    fill(out, run->value, count);
    return 0;
}

/* What sectors are to hold: the bytes, or in each of them nothing but the word. */
struct content {
    const uint8_t *bytes;
    uint64_t word;
};

static int put_new(struct stage *s, struct epoch *e, struct run run, struct content to,
                   struct qk_error *err)
{
    run.value = to.word;
    run.step = to.bytes ? STEP_BYTES : STEP_WORD;
    int ret = to.bytes ? spill_append(&s->spill, to.bytes, (size_t)run.count * STAGE_SECTOR,
                                      &run.value, err)
                       : 0;
    if (ret < 0)
        return ret;
    return runs_put(&e->sectors, run) < 0 ? qk_fail_nomem(err) : 0;
}

/* Sectors that have a place in the spill keep it. */
static int put_over_bytes(struct stage *s, uint64_t place, uint32_t count, struct content to,
                          struct qk_error *err)
{
    if (to.bytes)
        return spill_write(&s->spill, place, to.bytes, (size_t)count * STAGE_SECTOR, err);
    uint8_t sector[STAGE_SECTOR];
    int ret = 0;
    fill(sector, to.word, 1);
    for (uint32_t i = 0; ret == 0 && i < count; i++)
        ret =
            spill_write(&s->spill, place + (uint64_t)i * STAGE_SECTOR, sector, sizeof(sector), err);
    return ret;
}

/* As many of `want` as lie within one run, or before the next one; *done says how many. */
static int put_some(struct stage *s, struct epoch *e, struct run want, struct content to,
                    struct qk_error *err)
{
    struct run_at at;
    const struct run *old = runs_from(&e->sectors, want.first, &at);
    if (!old || old->first > want.first)
        return put_new(s, e, want, to, err);
    if (old->step == STEP_BYTES)
        return put_over_bytes(s, old->value + (want.first - old->first) * STAGE_SECTOR, want.count,
                              to, err);
    if (!to.bytes && to.word == old->value)
        return 0;
    if (runs_cut(&e->sectors, want.first, want.count) < 0)
        return qk_fail_nomem(err);
    return put_new(s, e, want, to, err);
}

static int put(struct stage *s, uint64_t first, uint64_t count, struct content to,
               struct qk_error *err)
{
    struct epoch *e = &s->epochs.ptr[s->epochs.len - 1];
    int ret = 0;
    while (ret == 0 && count) {
        struct run_at at;
        const struct run *old = runs_from(&e->sectors, first, &at);
        uint64_t end = !old ? UINT64_MAX : old->first > first ? old->first : run_end(old);
        const struct run some = {first, (uint32_t)min_u64(min_u64(count, end - first), 1u << 20), 0,
                                 0};
        ret = put_some(s, e, some, to, err);
        first += some.count;
        count -= some.count;
        if (to.bytes)
            to.bytes += (size_t)some.count * STAGE_SECTOR;
    }
    return ret;
}

static bool repeats(const uint8_t *sector, uint64_t *word)
{
    memcpy(word, sector, sizeof(*word));
    return !memcmp(sector, sector + sizeof(*word), STAGE_SECTOR - sizeof(*word));
}

/* How many sectors from the first on repeat its word; 0: it repeats none. */
static uint64_t repeating(const uint8_t *bytes, uint64_t count, uint64_t *word)
{
    uint64_t n = 1;
    if (!repeats(bytes, word))
        return 0;
    while (n < count && !memcmp(bytes, bytes + n * STAGE_SECTOR, STAGE_SECTOR))
        n++;
    return n;
}

static int put_all(struct stage *s, uint64_t first, uint64_t count, const uint8_t *bytes,
                   struct qk_error *err)
{
    int ret = 0;
    for (uint64_t i = 0, n; ret == 0 && i < count; i += n) {
        uint64_t word;
        const uint8_t *at = bytes + i * STAGE_SECTOR;
        n = repeating(at, count - i, &word);
        struct content to = {NULL, word};
        if (!n) {
            to.bytes = at;
            for (n = 1; i + n < count && !repeats(at + n * STAGE_SECTOR, &word);)
                n++;
        }
        ret = put(s, first + i, n, to, err);
    }
    return ret;
}

/* ---- reading and writing ---- */

/* A window of the file as a buffer. */
struct window {
    uint64_t off, end;
    const struct iovec *iov;
    int iovcnt;
};

static int overlay_run(const struct stage *s, const struct run *run, const struct window *w,
                       struct qk_error *err)
{
    uint8_t buf[8 * STAGE_SECTOR];
    uint64_t at = max_u64(w->off, run->first * STAGE_SECTOR);
    uint64_t end = min_u64(w->end, run_end(run) * STAGE_SECTOR);
    int ret = 0;
    while (ret == 0 && at < end) {
        uint64_t number = at / STAGE_SECTOR, skip = at % STAGE_SECTOR;
        size_t sectors = (size_t)min_u64(8, div_round_up(end, STAGE_SECTOR) - number);
        size_t n = (size_t)min_u64(sectors * STAGE_SECTOR - skip, end - at);
        ret = sectors_get(s, run, number, sectors, buf, err);
        iov_from_buf(w->iov, w->iovcnt, (size_t)(at - w->off), buf + skip, n);
        at += n;
    }
    return ret;
}

static int read_locked(const struct stage *s, uint64_t off, const struct iovec *iov, int iovcnt,
                       struct qk_error *err)
{
    const struct window w = {off, off + iov_total(iov, iovcnt), iov, iovcnt};
    int ret = io_readv(s->inner, off, iov, iovcnt, err);
    for (size_t i = 0; i < s->epochs.len; i++) {
        struct run_at at;
        const struct runs *sectors = &s->epochs.ptr[i].sectors;
        const struct run *run = runs_from(sectors, off / STAGE_SECTOR, &at);
        for (; ret == 0 && run && run->first * STAGE_SECTOR < w.end; run = runs_next(sectors, &at))
            ret = overlay_run(s, run, &w, err);
    }
    return ret;
}

static int stage_preadv(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                        struct qk_error *err)
{
    struct stage *s = stage_of(io);
    LOCK_SCOPE(&s->lock);
    return read_locked(s, off, iov, iovcnt, err);
}

static struct epoch *epoch_now(struct stage *s)
{
    if (!s->epochs.len || s->ended) {
        const struct epoch fresh = {.length = s->length};
        if (epoch_vec_append(&s->epochs, fresh) < 0)
            return NULL;
        s->ended = false;
    }
    return &s->epochs.ptr[s->epochs.len - 1];
}

static int set_length(struct stage *s, uint64_t length, struct qk_error *err)
{
    if (length <= s->length)
        return 0;
    if (!s->io.can_grow)
        return qk_fail_errno(err, -ENOSPC, "the store cannot grow");
    struct epoch *e = epoch_now(s);
    if (!e)
        return qk_fail_nomem(err);
    s->length = e->length = length;
    return 0;
}

/* Whole sectors, of which the first and the last may have bytes that stay. */
static int write_sectors(struct stage *s, uint64_t off, const struct iovec *iov, int iovcnt,
                         struct qk_error *err)
{
    uint64_t total = iov_total(iov, iovcnt), first = off / STAGE_SECTOR;
    uint64_t count = div_round_up(off + total, STAGE_SECTOR) - first;
    CLEANUP_FREE uint8_t *bytes = malloc((size_t)count * STAGE_SECTOR);
    if (!bytes || !epoch_now(s))
        return qk_fail_nomem(err);
    struct iovec head = {bytes, STAGE_SECTOR};
    struct iovec tail = {bytes + (count - 1) * STAGE_SECTOR, STAGE_SECTOR};
    int ret = 0;
    if (off % STAGE_SECTOR)
        ret = read_locked(s, first * STAGE_SECTOR, &head, 1, err);
    if (ret == 0 && (off + total) % STAGE_SECTOR)
        ret = read_locked(s, (first + count - 1) * STAGE_SECTOR, &tail, 1, err);
    if (ret < 0)
        return ret;
    iov_to_buf(iov, iovcnt, 0, bytes + off % STAGE_SECTOR, (size_t)total);
    return put_all(s, first, count, bytes, err);
}

static int stage_pwritev(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                         unsigned flags, struct qk_error *err)
{
    struct stage *s = stage_of(io);
    (void)flags;
    LOCK_SCOPE(&s->lock);
    uint64_t total = iov_total(iov, iovcnt);
    if (total > INT64_MAX || off > INT64_MAX - total)
        return qk_fail(err, -EFBIG, "write past the largest offset");
    int ret = set_length(s, off + total, err);
    return ret < 0 || !total ? ret : write_sectors(s, off, iov, iovcnt, err);
}

static int stage_flush(struct qk_io *io, struct qk_error *err)
{
    struct stage *s = stage_of(io);
    (void)err;
    LOCK_SCOPE(&s->lock);
    s->ended = true;
    return 0;
}

static int stage_size(struct qk_io *io, uint64_t *size, struct qk_error *err)
{
    struct stage *s = stage_of(io);
    (void)err;
    LOCK_SCOPE(&s->lock);
    *size = s->length;
    return 0;
}

static int stage_resize(struct qk_io *io, uint64_t size, enum qk_prealloc prealloc,
                        struct qk_error *err)
{
    struct stage *s = stage_of(io);
    LOCK_SCOPE(&s->lock);
    if (size < s->length || prealloc != QK_PREALLOC_OFF)
        return qk_fail(err, -ENOTSUP, "a stage can only grow");
    return set_length(s, size, err);
}

static void stage_will_read(struct qk_io *io, uint64_t off, uint64_t len)
{
    io_will_read(stage_of(io)->inner, off, len);
}

static int stage_close(struct qk_io *io, struct qk_error *err)
{
    struct stage *s = stage_of(io);
    (void)err;
    for (size_t i = 0; i < s->epochs.len; i++)
        runs_free(&s->epochs.ptr[i].sectors);
    epoch_vec_free(&s->epochs);
    spill_free(&s->spill);
    pthread_mutex_destroy(&s->lock);
    free(s->io.name);
    free(s);
    return 0;
}

static const struct qk_io_ops stage_ops = {
    .name = "stage",
    .preadv = stage_preadv,
    .pwritev = stage_pwritev,
    .flush = stage_flush,
    .size = stage_size,
    .resize = stage_resize,
    .will_read = stage_will_read,
    .close = stage_close,
};

int io_stage_open(struct qk_io *inner, const char *beside, struct qk_io **out, struct qk_error *err)
{
    uint64_t length;
    int ret = io_size(inner, &length, err);
    if (ret < 0)
        return ret;
    struct stage *s = calloc(1, sizeof(*s));
    char *name = s ? strdup(inner->name) : NULL;
    if (!name || spill_init(&s->spill, beside, NULL) < 0) {
        free(name);
        free(s);
        return qk_fail_nomem(err);
    }
    s->io = *inner;
    s->io.ops = &stage_ops;
    s->io.name = name;
    s->io.writable = true;
    s->inner = inner;
    s->inner_length = s->length = length;
    pthread_mutex_init(&s->lock, NULL);
    *out = &s->io;
    return 0;
}

/* ---- what is staged ---- */

bool stage_empty(struct qk_io *io)
{
    return !stage_of(io)->epochs.len;
}

uint64_t stage_sectors(struct qk_io *io)
{
    const struct stage *s = stage_of(io);
    uint64_t n = 0;
    for (size_t i = 0; i < s->epochs.len; i++) {
        struct run_at at;
        const struct runs *sectors = &s->epochs.ptr[i].sectors;
        for (const struct run *run = runs_from(sectors, 0, &at); run; run = runs_next(sectors, &at))
            n += run->count;
    }
    return n;
}

struct walk {
    const struct stage *s;
    stage_fn *fn;
    void *opaque;
    unsigned epoch;
    uint8_t *buf; /* RUN_BYTES */
    uint64_t first;
    size_t have; /* sectors from `first` on are in it */
};

/* The last sector of a file may be shorter than the others. */
static int run_out(struct walk *w, struct qk_error *err)
{
    uint64_t off = w->first * STAGE_SECTOR, length = w->s->epochs.ptr[w->epoch].length;
    struct stage_run run = {w->epoch, off, w->have * STAGE_SECTOR, w->buf};
    run.len = (size_t)min_u64(run.len, length - min_u64(off, length));
    w->have = 0;
    return run.len ? w->fn(w->opaque, &run, err) : 0;
}

static int walk_run(struct walk *w, const struct run *run, struct qk_error *err)
{
    int ret = 0;
    for (uint64_t number = run->first; ret == 0 && number < run_end(run);) {
        if (w->have && (w->have == RUN_BYTES / STAGE_SECTOR || w->first + w->have != number))
            ret = run_out(w, err);
        if (!w->have)
            w->first = number;
        size_t n = (size_t)min_u64(RUN_BYTES / STAGE_SECTOR - w->have, run_end(run) - number);
        if (ret == 0)
            ret = sectors_get(w->s, run, number, n, w->buf + w->have * STAGE_SECTOR, err);
        w->have += n;
        number += n;
    }
    return ret;
}

static int epoch_each(struct walk *w, struct qk_error *err)
{
    struct run_at at;
    const struct runs *sectors = &w->s->epochs.ptr[w->epoch].sectors;
    const struct run *run = runs_from(sectors, 0, &at);
    int ret = 0;
    for (; ret == 0 && run; run = runs_next(sectors, &at))
        ret = walk_run(w, run, err);
    return ret == 0 && w->have ? run_out(w, err) : ret;
}

int stage_each(struct qk_io *io, stage_fn *fn, void *opaque, struct qk_error *err)
{
    const struct stage *s = stage_of(io);
    CLEANUP_FREE uint8_t *buf = malloc(RUN_BYTES);
    struct walk w = {.s = s, .fn = fn, .opaque = opaque, .buf = buf};
    uint64_t length = s->inner_length;
    int ret = buf ? 0 : qk_fail_nomem(err);
    for (; ret == 0 && w.epoch < s->epochs.len; w.epoch++) {
        const struct epoch *e = &s->epochs.ptr[w.epoch];
        const struct stage_run grow = {w.epoch, e->length, 0, NULL};
        if (e->length > length)
            ret = fn(opaque, &grow, err);
        length = e->length;
        if (ret == 0)
            ret = epoch_each(&w, err);
    }
    return ret;
}

struct commit {
    struct qk_io *target;
    unsigned epoch;
};

/* Some stores grow by being written to, and in no other way. */
static int grow(struct qk_io *target, uint64_t length, struct qk_error *err)
{
    static const uint8_t zero;
    int ret = io_resize(target, length, QK_PREALLOC_OFF, err);
    return ret == -ENOTSUP ? io_write(target, length - 1, &zero, 1, 0, err) : ret;
}

static int commit_run(void *opaque, const struct stage_run *run, struct qk_error *err)
{
    struct commit *c = opaque;
    int ret = 0;
    if (run->epoch != c->epoch)
        ret = io_flush(c->target, err);
    c->epoch = run->epoch;
    if (ret < 0)
        return ret;
    if (!run->bytes)
        return grow(c->target, run->off, err);
    return io_write(c->target, run->off, run->bytes, run->len, 0, err);
}

int stage_commit(struct qk_io *io, struct qk_io *target, struct qk_error *err)
{
    struct commit c = {.target = target};
    int ret = stage_each(io, commit_run, &c, err);
    return ret < 0 ? ret : io_flush(target, err);
}
