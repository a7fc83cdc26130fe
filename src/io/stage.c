/*
 * stage.c - the filter of stage.h: for each epoch a table from sector numbers to their new bytes.
 * Reading asks the epochs from the last to the first, and then the store below. One lock covers all
 * of it: repairs write from one thread.
 *
 * A sector that no earlier epoch holds is kept as its difference to the store below where that is
 * one word in some places: flags that flip, entries that are cleared, refcounts that repeat. The
 * store below still has the old bytes when the first epoch that holds a sector is carried out,
 * which is the only time that the difference is asked for then.
 */
#include "io/stage.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/vector.h"

#include <string.h>

#define RUN_BYTES ((size_t)1 << 20)

#define WORDS (STAGE_SECTOR / 8u)

enum kind {
    KIND_BYTES, /* as in `bytes` */
    KIND_PUT,   /* the words of `mask` are `word`, the others those of the store below */
    KIND_FLIP,  /* the words of `mask` are those of the store below, `word` exclusive-ored */
};

/* The new bytes of a sector. */
struct sector {
    uint64_t number : 60, kind : 4;
    uint64_t word;
    union {
        uint8_t *bytes;
        uint64_t mask;
    };
};
_Static_assert(WORDS == 64 && sizeof(struct sector) == 24, "a bit for each word");
DEFINE_VECTOR(sector_vec, struct sector)

struct epoch {
    struct sector_vec sectors;
    uint32_t *slots; /* hash table: index into sectors plus one; 0: empty */
    size_t slot_mask;
    uint64_t length; /* of the file when the epoch ends */
};
DEFINE_VECTOR(epoch_vec, struct epoch)

struct stage {
    struct qk_io io;
    struct qk_io *inner;
    pthread_mutex_t lock;
    struct epoch_vec epochs;
    bool ended; /* the last epoch was flushed: the next write begins another */
    uint64_t inner_length, length;
};

static struct stage *stage_of(struct qk_io *io)
{
    return (struct stage *)io;
}

/* ---- sectors ---- */

static size_t slot_of(const struct epoch *e, uint64_t number)
{
    return (size_t)((number * UINT64_C(0x9e3779b97f4a7c15)) >> 20) & e->slot_mask;
}

static struct sector *sector_find(const struct epoch *e, uint64_t number)
{
    if (!e->slots)
        return NULL;
    for (size_t i = slot_of(e, number);; i = (i + 1) & e->slot_mask) {
        if (!e->slots[i])
            return NULL;
        struct sector *s = &e->sectors.ptr[e->slots[i] - 1];
        if (s->number == number)
            return s;
    }
}

static void slot_fill(struct epoch *e, size_t index)
{
    size_t i = slot_of(e, e->sectors.ptr[index].number);
    while (e->slots[i])
        i = (i + 1) & e->slot_mask;
    e->slots[i] = (uint32_t)index + 1;
}

/* Room for one more, at most half full. */
static int slots_grow(struct epoch *e)
{
    if (e->slots && (e->sectors.len + 1) * 2 <= e->slot_mask + 1)
        return 0;
    size_t count = e->slots ? (e->slot_mask + 1) * 2 : 64;
    uint32_t *slots = calloc(count, sizeof(*slots));
    if (!slots || count > UINT32_MAX) {
        free(slots);
        return -ENOMEM;
    }
    free(e->slots);
    e->slots = slots;
    e->slot_mask = count - 1;
    for (size_t i = 0; i < e->sectors.len; i++)
        slot_fill(e, i);
    return 0;
}

static struct sector *sector_add(struct epoch *e, uint64_t number)
{
    const struct sector fresh = {.number = number & ((UINT64_C(1) << 60) - 1)};
    if (slots_grow(e) < 0 || sector_vec_append(&e->sectors, fresh) < 0)
        return NULL;
    slot_fill(e, e->sectors.len - 1);
    return &e->sectors.ptr[e->sectors.len - 1];
}

static void sector_release(struct sector *s)
{
    if (s->kind == KIND_BYTES)
        free(s->bytes);
}

static int sector_get(struct qk_io *inner, const struct sector *s, uint8_t *out,
                      struct qk_error *err)
{
    if (s->kind == KIND_BYTES) {
        memcpy(out, s->bytes, STAGE_SECTOR);
        return 0;
    }
    uint64_t words[WORDS] = {0};
    bool needs_old = s->kind == KIND_FLIP || s->mask != UINT64_MAX;
    int ret = needs_old ? io_read(inner, s->number * STAGE_SECTOR, words, STAGE_SECTOR, err) : 0;
    for (unsigned i = 0; i < WORDS; i++) {
        if (s->mask >> i & 1)
            words[i] = s->kind == KIND_PUT ? s->word : words[i] ^ s->word;
    }
    memcpy(out, words, STAGE_SECTOR);
    return ret;
}

static bool repeats(const uint8_t *bytes)
{
    return !memcmp(bytes, bytes + 8, STAGE_SECTOR - 8);
}

/* The words of `mask` are what makes `words` of `old`: all put to one value, or flipped by one. */
static bool as_difference(struct sector *s, const uint64_t *old, const uint64_t *words)
{
    uint64_t mask = 0, put = 0, flip = 0;
    bool puts = true, flips = true;
    for (unsigned i = 0; i < WORDS; i++) {
        if (old[i] == words[i])
            continue;
        puts &= !mask || words[i] == put;
        flips &= !mask || (old[i] ^ words[i]) == flip;
        put = words[i];
        flip = old[i] ^ words[i];
        mask |= UINT64_C(1) << i;
    }
    if (!puts && !flips)
        return false;
    sector_release(s);
    s->kind = puts ? KIND_PUT : KIND_FLIP;
    s->word = puts ? put : flip;
    s->mask = mask;
    return true;
}

/* `first`: no earlier epoch holds this sector. */
static int sector_set(struct qk_io *inner, struct sector *s, const uint8_t *bytes, bool first)
{
    uint64_t old[WORDS], words[WORDS];
    memcpy(words, bytes, STAGE_SECTOR);
    if (repeats(bytes)) {
        sector_release(s);
        s->kind = KIND_PUT;
        s->word = words[0];
        s->mask = UINT64_MAX;
        return 0;
    }
    if (first && io_read(inner, s->number * STAGE_SECTOR, old, STAGE_SECTOR, NULL) == 0 &&
        as_difference(s, old, words))
        return 0;
    if (s->kind != KIND_BYTES || !s->bytes) {
        uint8_t *fresh = malloc(STAGE_SECTOR);
        if (!fresh)
            return -ENOMEM;
        s->kind = KIND_BYTES;
        s->bytes = fresh;
    }
    memcpy(s->bytes, bytes, STAGE_SECTOR);
    return 0;
}

/* The sector as it is with everything staged; NULL: only the store below has it. */
static const struct sector *sector_latest(const struct stage *s, uint64_t number)
{
    for (size_t i = s->epochs.len; i > 0; i--) {
        const struct sector *found = sector_find(&s->epochs.ptr[i - 1], number);
        if (found)
            return found;
    }
    return NULL;
}

/* ---- reading and writing ---- */

static int stage_preadv(struct qk_io *io, uint64_t off, const struct iovec *iov, int iovcnt,
                        struct qk_error *err)
{
    struct stage *s = stage_of(io);
    LOCK_SCOPE(&s->lock);
    int ret = io_readv(s->inner, off, iov, iovcnt, err);
    uint64_t end = off + iov_total(iov, iovcnt);
    for (uint64_t at = off; ret == 0 && s->epochs.len && at < end;) {
        uint64_t number = at / STAGE_SECTOR, skip = at % STAGE_SECTOR;
        size_t n = (size_t)min_u64(STAGE_SECTOR - skip, end - at);
        const struct sector *found = sector_latest(s, number);
        if (found) {
            uint8_t bytes[STAGE_SECTOR];
            ret = sector_get(s->inner, found, bytes, err);
            iov_from_buf(iov, iovcnt, (size_t)(at - off), bytes + skip, n);
        }
        at += n;
    }
    return ret;
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

/* The sector's bytes before a change of part of it. */
static int sector_now(struct stage *s, uint64_t number, uint8_t *out, struct qk_error *err)
{
    const struct sector *found = sector_latest(s, number);
    if (!found)
        return io_read(s->inner, number * STAGE_SECTOR, out, STAGE_SECTOR, err);
    return sector_get(s->inner, found, out, err);
}

static bool in_earlier_epoch(const struct stage *s, uint64_t number)
{
    for (size_t i = 0; i + 1 < s->epochs.len; i++) {
        if (sector_find(&s->epochs.ptr[i], number))
            return true;
    }
    return false;
}

/* n bytes of one sector, from its byte `skip` on. */
static int sector_write(struct stage *s, uint64_t off, const uint8_t *data, size_t n,
                        struct qk_error *err)
{
    uint64_t number = off / STAGE_SECTOR;
    uint8_t bytes[STAGE_SECTOR];
    int ret = n < STAGE_SECTOR ? sector_now(s, number, bytes, err) : 0;
    if (ret < 0)
        return ret;
    memcpy(bytes + off % STAGE_SECTOR, data, n);
    struct epoch *e = epoch_now(s);
    struct sector *sector = e ? sector_find(e, number) : NULL;
    if (e && !sector)
        sector = sector_add(e, number);
    bool first = !in_earlier_epoch(s, number);
    return !sector || sector_set(s->inner, sector, bytes, first) < 0 ? qk_fail_nomem(err) : 0;
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
    for (uint64_t done = 0; ret == 0 && done < total;) {
        uint8_t data[STAGE_SECTOR];
        size_t n = (size_t)min_u64(STAGE_SECTOR - (off + done) % STAGE_SECTOR, total - done);
        iov_to_buf(iov, iovcnt, (size_t)done, data, n);
        ret = sector_write(s, off + done, data, n, err);
        done += n;
    }
    return ret;
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

static int stage_close(struct qk_io *io, struct qk_error *err)
{
    struct stage *s = stage_of(io);
    (void)err;
    for (size_t i = 0; i < s->epochs.len; i++) {
        struct epoch *e = &s->epochs.ptr[i];
        for (size_t k = 0; k < e->sectors.len; k++)
            sector_release(&e->sectors.ptr[k]);
        sector_vec_free(&e->sectors);
        free(e->slots);
    }
    epoch_vec_free(&s->epochs);
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
    .close = stage_close,
};

int io_stage_open(struct qk_io *inner, struct qk_io **out, struct qk_error *err)
{
    uint64_t length;
    int ret = io_size(inner, &length, err);
    if (ret < 0)
        return ret;
    struct stage *s = calloc(1, sizeof(*s));
    char *name = s ? strdup(inner->name) : NULL;
    if (!name) {
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
    for (size_t i = 0; i < s->epochs.len; i++)
        n += s->epochs.ptr[i].sectors.len;
    return n;
}

static int by_number(const void *a, const void *b)
{
    const struct sector *const *x = a, *const *y = b;
    return (*x)->number < (*y)->number ? -1 : (*x)->number > (*y)->number;
}

static const struct sector **in_order(const struct epoch *e)
{
    const struct sector **list = calloc(e->sectors.len + 1, sizeof(struct sector *));
    for (size_t i = 0; list && i < e->sectors.len; i++)
        list[i] = &e->sectors.ptr[i];
    if (list)
        qsort(list, e->sectors.len, sizeof(struct sector *), by_number);
    return list;
}

struct walk {
    struct qk_io *inner;
    stage_fn *fn;
    void *opaque;
    unsigned epoch;
};

/* The last sector of a file may be shorter than the others. */
static int run_out(const struct walk *w, const struct epoch *e, uint64_t first, uint8_t *buf,
                   size_t sectors, struct qk_error *err)
{
    uint64_t off = first * STAGE_SECTOR;
    struct stage_run run = {w->epoch, off, sectors * STAGE_SECTOR, buf};
    run.len = (size_t)min_u64(run.len, e->length - min_u64(off, e->length));
    return run.len ? w->fn(w->opaque, &run, err) : 0;
}

static int epoch_each(const struct walk *w, const struct epoch *e, struct qk_error *err)
{
    CLEANUP_FREE const struct sector **list = in_order(e);
    CLEANUP_FREE uint8_t *buf = malloc(RUN_BYTES);
    if (!list || !buf)
        return qk_fail_nomem(err);
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < e->sectors.len;) {
        size_t n = 0;
        while (ret == 0 && i + n < e->sectors.len && n < RUN_BYTES / STAGE_SECTOR &&
               list[i + n]->number == list[i]->number + n) {
            ret = sector_get(w->inner, list[i + n], buf + n * STAGE_SECTOR, err);
            n++;
        }
        if (ret == 0)
            ret = run_out(w, e, list[i]->number, buf, n, err);
        i += n;
    }
    return ret;
}

int stage_each(struct qk_io *io, stage_fn *fn, void *opaque, struct qk_error *err)
{
    const struct stage *s = stage_of(io);
    struct walk w = {s->inner, fn, opaque, 0};
    uint64_t length = s->inner_length;
    int ret = 0;
    for (; ret == 0 && w.epoch < s->epochs.len; w.epoch++) {
        const struct epoch *e = &s->epochs.ptr[w.epoch];
        const struct stage_run grow = {w.epoch, e->length, 0, NULL};
        if (e->length > length)
            ret = fn(opaque, &grow, err);
        length = e->length;
        if (ret == 0)
            ret = epoch_each(&w, e, err);
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
