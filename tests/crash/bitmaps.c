/*
 * bitmaps.c - crashes and faults of an image with persistent bitmaps. A bitmap has a baseline: the
 * disk when it was made or cleared. In whatever state a power cut or an error leaves the image, a
 * bitmap that is trusted must have a bit for each sector that differs from its baseline; it must be
 * there unless it was removed; a disabled one must be trusted, with exactly its bits; and once the
 * image was closed all of them must be trusted. The model of the guest's data is judged, too.
 *
 *     bitmaps [--states N] [--salt N]
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "io/fault.h"
#include "stage.h"
#include "states.h"
#include "verify.h"

#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { K = 1024, BITMAPS_MAX_LIVE = 5, SHOWN = 4, STEPS = 90 };

/* A span of the log in which something happened: before `start` it had not, from `end` on it has.
 */
struct span {
    size_t start, end;
};

struct baseline {
    struct span at;
    uint8_t *disk; /* max_bytes of it */
};
DEFINE_VECTOR(baseline_vec, struct baseline)
DEFINE_VECTOR(span_vec, struct span)

struct watched {
    char name[16];
    unsigned granularity_bits;
    struct span added, removed; /* removed.start SIZE_MAX: not */
    struct baseline_vec baselines;
    struct span_vec frozen; /* from being disabled to being enabled */
    bool disabled;
    bool loose; /* was disabled and enabled again: has no baseline any more */
};
DEFINE_VECTOR(watched_vec, struct watched)

struct scene {
    struct stage stage;
    struct watched_vec bitmaps;
    struct span_vec clean; /* between a closing and the next change */
    bool closed_clean;
    size_t trusted, untrusted; /* seen in states */
    char text[MODEL_TEXT];
};

static size_t position(struct scene *s)
{
    return trace_count(s->stage.trace);
}

/* ---- what the guest and its backup program do ---- */

/* As it reads, for what a failed write has done is not known. */
static void remember_disk(struct scene *s, struct watched *w, size_t start)
{
    struct recorder *rec = &s->stage.rec;
    struct baseline b = {{start, position(s)}, calloc(1, rec->model.max_bytes)};
    if (!b.disk || baseline_vec_append(&w->baselines, b) < 0)
        abort();
    struct iovec iov = {b.disk, image_size(rec->img)};
    if (image_readv(rec->img, guest_off(0), &iov, 1, NULL) < 0)
        w->loose = true;
}

static struct watched *pick(struct scene *s, bool with_disabled)
{
    struct watched *found = NULL;
    size_t n = 0;
    for (size_t i = 0; i < s->bitmaps.len; i++) {
        struct watched *w = &s->bitmaps.ptr[i];
        if (w->removed.start == SIZE_MAX && (with_disabled || !w->disabled) &&
            rec_random(&s->stage.rec, (uint32_t)++n) == 0)
            found = w;
    }
    return found;
}

static int note(struct scene *s, int ret)
{
    s->stage.rec.errors += ret < 0;
    return ret;
}

static void add(struct scene *s)
{
    struct recorder *rec = &s->stage.rec;
    struct watched w = {.granularity_bits = 9 + rec_random(rec, 5),
                        .removed = {SIZE_MAX, SIZE_MAX}};
    size_t live = 0;
    for (size_t i = 0; i < s->bitmaps.len; i++)
        live += s->bitmaps.ptr[i].removed.start == SIZE_MAX;
    if (live >= BITMAPS_MAX_LIVE)
        return;
    snprintf(w.name, sizeof(w.name), "b%zu", s->bitmaps.len);
    w.added.start = position(s);
    const struct image_bitmap want = {
        .name = w.name, .granularity_bits = (uint8_t)w.granularity_bits, .enabled = true};
    int ret = note(s, image_bitmap_add(rec->img, &want, &rec->error));
    /* One that failed may be there all the same when the switch of the header has failed. */
    w.added.end = ret < 0 ? SIZE_MAX : position(s);
    remember_disk(s, &w, w.added.start);
    if (ret < 0)
        w.removed.start = w.added.start;
    if (watched_vec_append(&s->bitmaps, w) < 0)
        abort();
}

static void drop(struct scene *s)
{
    struct watched *w = pick(s, true);
    size_t start = position(s);
    if (!w)
        return;
    int ret = note(s, image_bitmap_remove(s->stage.rec.img, w->name, &s->stage.rec.error));
    w->removed = (struct span){start, ret < 0 ? SIZE_MAX : position(s)};
}

static void clear(struct scene *s)
{
    struct watched *w = pick(s, false);
    size_t start = position(s);
    if (!w)
        return;
    int ret = note(s, image_bitmap_clear(s->stage.rec.img, w->name, &s->stage.rec.error));
    remember_disk(s, w, start);
    if (ret < 0)
        w->baselines.ptr[w->baselines.len - 1].at.end = SIZE_MAX;
}

static void toggle(struct scene *s)
{
    struct watched *w = pick(s, true);
    if (!w)
        return;
    bool enable = w->disabled;
    if (enable && w->frozen.len)
        w->frozen.ptr[w->frozen.len - 1].end = position(s);
    int ret = note(s, image_bitmap_enable(s->stage.rec.img, w->name, enable, &s->stage.rec.error));
    struct span frozen = {position(s), SIZE_MAX};
    w->loose = true;
    if (ret == 0)
        w->disabled = !enable;
    if (ret == 0 && !enable && span_vec_append(&w->frozen, frozen) < 0)
        abort();
}

static void merge(struct scene *s)
{
    struct watched *to = pick(s, true), *from = pick(s, true);
    if (to && from)
        note(s, image_bitmap_merge(s->stage.rec.img, to->name, s->stage.rec.img, from->name,
                                   &s->stage.rec.error));
}

static void reopen(struct scene *s)
{
    struct recorder *rec = &s->stage.rec;
    int ret = recorder_close(rec);
    struct span clean = {position(s), SIZE_MAX};
    if (recorder_open(rec) == 0 && ret == 0 && span_vec_append(&s->clean, clean) < 0)
        abort();
    s->closed_clean = ret == 0;
}

/* From now on the bitmaps may be in use. */
static void begin_change(struct scene *s)
{
    if (s->clean.len && s->clean.ptr[s->clean.len - 1].end == SIZE_MAX)
        s->clean.ptr[s->clean.len - 1].end = position(s);
}

static void change_disk(struct scene *s, uint32_t what)
{
    struct recorder *rec = &s->stage.rec;
    uint64_t off = rec_random(rec, (uint32_t)rec->model.size);
    uint64_t len = 1 + rec_random(rec, 12 * K);
    if (what < 8)
        rec_write(rec, off, len);
    else if (what < 10)
        rec_zero(rec, off, len, what == 8 ? IO_ZERO_UNMAP : 0);
    else if (what < 12)
        rec_discard(rec, off, 3 * len);
    else if (what < 13)
        rec_write_compressed(rec, off, len);
    else if (rec->model.max_bytes > rec->w->create.size_bytes)
        rec_resize(rec,
                   512 * (uint64_t)(1 + rec_random(rec, (uint32_t)(rec->model.max_bytes / 512))),
                   QK_PREALLOC_OFF);
}

/* Bitmaps have no part in them, and must come through. */
static void snapshot(struct scene *s)
{
    struct recorder *rec = &s->stage.rec;
    if (rec_random(rec, 2))
        rec_snapshot(rec);
    else
        rec_snapshot_delete(rec, rec_random(rec, 3));
}

static void step(struct scene *s)
{
    static void (*const others[])(struct scene *) = {add,   drop,   clear,   toggle,
                                                     merge, reopen, snapshot};
    struct recorder *rec = &s->stage.rec;
    uint32_t what = rec_random(rec, 24);
    if (rec->w->max_bytes && what < 4)
        what = 13; /* where the size changes at all, it does so often */
    if (!rec->img && recorder_open(rec) < 0) {
        rec->errors++;
        return;
    }
    if (what < 14) {
        begin_change(s);
        change_disk(s, what);
    } else if (what < 17) {
        rec_flush(rec);
    } else {
        begin_change(s);
        others[rec_random(rec, ARRAY_SIZE(others))](s);
    }
}

static void drive(struct scene *s)
{
    for (int i = 0; i < 2; i++)
        add(s);
    for (int i = 0; i < STEPS; i++)
        step(s);
    if (s->stage.rec.img)
        reopen(s);
}

/* ---- what may be found ---- */

static bool no(struct scene *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static bool no(struct scene *s, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(s->text, sizeof(s->text), fmt, args);
    va_end(args);
    return false;
}

static bool bit_is_set(struct image *img, const char *name, uint64_t off, bool *set)
{
    struct qk_bitmap_extent extent = {0};
    int ret = image_bitmap_status(img, name, guest_off(off), 1, &extent, NULL);
    *set = extent.dirty;
    return ret == 0;
}

/* The bitmap tells all that differs from the baseline. */
static bool covers(struct scene *s, struct image *img, const struct watched *w,
                   const struct baseline *b, const uint8_t *disk)
{
    for (uint64_t off = 0; off < image_size(img); off += SECTOR) {
        bool set = false;
        size_t len = (size_t)min_u64(SECTOR, image_size(img) - off);
        if (!memcmp(disk + off, b->disk + off, len))
            continue;
        if (!bit_is_set(img, w->name, off, &set))
            return no(s, "%s: cannot be read at %llu", w->name, (unsigned long long)off);
        if (!set)
            return no(s, "%s is trusted and misses the change at %llu", w->name,
                      (unsigned long long)off);
    }
    return true;
}

static bool judge_trusted(struct scene *s, struct image *img, const struct watched *w,
                          const uint8_t *disk, size_t changes)
{
    bool good = true;
    s->trusted++;
    if (w->loose)
        return true;
    /* The last one that is certain, or one that had begun since. */
    for (size_t i = w->baselines.len; i-- > 0;) {
        const struct baseline *b = &w->baselines.ptr[i];
        if (b->at.start >= changes && i > 0)
            continue;
        good = covers(s, img, w, b, disk);
        if (good || b->at.end <= changes)
            return good;
    }
    return good;
}

static bool inside(const struct span_vec *spans, size_t changes)
{
    for (size_t i = 0; i < spans->len; i++)
        if (spans->ptr[i].start <= changes && changes <= spans->ptr[i].end)
            return true;
    return false;
}

/* What is not being changed must be trusted; a disk that is resized concerns the disabled, too. */
static bool must_be_trusted(const struct scene *s, const struct watched *w, size_t changes)
{
    bool resizes = s->stage.rec.w->max_bytes;
    return inside(&s->clean, changes) || (!resizes && inside(&w->frozen, changes));
}

static bool judge_one(struct scene *s, struct image *img, const struct watched *w,
                      const uint8_t *disk, size_t changes)
{
    struct image_bitmap info;
    bool found = false;
    for (uint32_t i = 0; i < image_bitmap_count(img) && !found; i++) {
        if (image_bitmap_info(img, i, &info, NULL) < 0)
            return no(s, "bitmap %u cannot be described", i);
        found = !strcmp(info.name, w->name);
    }
    bool must = w->added.end <= changes && changes <= w->removed.start;
    bool may = w->added.start < changes && changes < w->removed.end;
    if (found ? !may && !must : must)
        return no(s, "%s is %s", w->name, found ? "there" : "lost");
    if (!found)
        return true;
    if (info.in_use && must_be_trusted(s, w, changes))
        return no(s, "%s is in use, and nothing changes it", w->name);
    s->untrusted += info.in_use;
    return info.in_use || judge_trusted(s, img, w, disk, changes);
}

static bool judge_bitmaps(struct scene *s, struct qk_io *mem, size_t changes)
{
    const struct image_options opts = {.lazy_refcounts = -1};
    struct image *img = NULL;
    struct qk_error err = {0};
    if (image_open(mem, &opts, &img, &err) < 0)
        return no(s, "does not open: %s", err.text);
    if (s->stage.rec.backing)
        image_set_backing(img, s->stage.rec.backing);
    uint64_t size = image_size(img);
    CLEANUP_FREE uint8_t *disk = malloc(size + 1);
    bool good = disk && image_readv(img, guest_off(0), &(struct iovec){disk, size}, 1, &err) == 0;
    if (!good)
        no(s, "cannot be read: %s", err.text);
    for (size_t i = 0; i < s->bitmaps.len && good; i++)
        good = judge_one(s, img, &s->bitmaps.ptr[i], disk, changes);
    image_abandon(img);
    return good;
}

static bool judge(struct scene *s, struct qk_io *mem, size_t changes, bool with_oracle)
{
    struct verify_options opts = {.oracle = with_oracle ? "/usr/bin/qemu-img" : NULL};
    stage_judge(&s->stage, model_moment(&s->stage.rec.model, changes), &opts);
    if (opts.oracle && access(opts.oracle, X_OK))
        opts.oracle = NULL;
    return judge_bitmaps(s, mem, changes) && verify_image(mem, &opts, s->text);
}

/* ---- runs ---- */

#define IMAGE(size_, cluster_bits_, order_)                                                        \
    .create.size_bytes = (size_), .create.version = 3, .create.cluster_bits = (cluster_bits_),     \
    .create.refcount_order = (order_),                                                             \
    .options = {.lazy_refcounts = -1, .overlap = OVERLAP_CACHED}

static const struct workload images[] = {
    {"bitmaps-512", IMAGE(256 * K, 9, 4), .seed = 1},
    {"bitmaps-4k", IMAGE(512 * K, 12, 4), .seed = 2},
    {"bitmaps-backing", IMAGE(256 * K, 10, 1), .backing_bytes = 200 * K, .seed = 3},
    {"bitmaps-lazy", IMAGE(256 * K, 9, 6), .create.lazy_refcounts = true, .seed = 4},
    {"bitmaps-resize", IMAGE(256 * K, 9, 4), .max_bytes = 3072 * K, .seed = 5},
    {"bitmaps-64k", IMAGE(1024 * K, 16, 4), .seed = 6},
};

static void scene_free(struct scene *s)
{
    for (size_t i = 0; i < s->bitmaps.len; i++) {
        struct baseline_vec *v = &s->bitmaps.ptr[i].baselines;
        for (size_t n = 0; n < v->len; n++)
            free(v->ptr[n].disk);
        baseline_vec_free(v);
        span_vec_free(&s->bitmaps.ptr[i].frozen);
    }
    watched_vec_free(&s->bitmaps);
    span_vec_free(&s->clean);
    stage_strike(&s->stage);
}

static bool set_scene(struct scene *s, const struct workload *w, uint32_t salt, bool with_fault)
{
    *s = (struct scene){0};
    workload_salt = salt;
    return stage_set(&s->stage, w, with_fault) == 0 && stage_begin(&s->stage) == 0;
}

struct count {
    size_t passed, failed, trusted, untrusted;
};

static void tell(struct count *c, bool good, const struct scene *s, const char *how)
{
    if (good)
        c->passed++;
    else if (c->failed++ < SHOWN)
        printf("failed: %s, salt %u, %s: %s\n", s->stage.rec.w->name, workload_salt, how, s->text);
}

static void crash(const struct workload *w, uint32_t salt, size_t states, struct count *c)
{
    struct scene s;
    struct history h;
    struct builder b;
    char how[80];
    if (!set_scene(&s, w, salt, false))
        abort();
    drive(&s);
    if (s.stage.rec.errors)
        no(&s, "an operation failed without any fault: %s", s.stage.rec.error.text);
    tell(c, s.stage.rec.errors == 0, &s, "the run itself");
    if (history_take(&h, s.stage.trace, s.stage.initial, s.stage.initial_len) < 0)
        abort();
    builder_init(&b, &h);
    uint64_t random = w->seed + salt * UINT64_C(77003);
    for (size_t i = 0; i < states; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        struct state state = {h.changes.len * i / (states - 1), i % 3 ? random | 1 : 0};
        struct qk_io *mem = NULL;
        if (builder_make(&b, state, &mem) < 0)
            abort();
        snprintf(how, sizeof(how), "after %zu changes, seed %llu", state.changes,
                 (unsigned long long)state.seed);
        tell(c, judge(&s, mem, state.changes, i % 60 == 0), &s, how);
        io_close(mem, NULL);
    }
    c->trusted += s.trusted;
    c->untrusted += s.untrusted;
    builder_free(&b);
    history_free(&h);
    scene_free(&s);
}

/* After the fault the program dies, or goes on and closes. False: the run had fewer requests. */
static bool fault(const struct workload *w, const struct fault_nth *nth, bool dies, struct count *c)
{
    struct scene s;
    char how[80];
    if (!set_scene(&s, w, 0, true))
        abort();
    s.stage.rec.whole_sectors = true; /* a failed write leaves each sector old or new */
    fault_fail_nth(s.stage.fault, nth);
    drive(&s);
    bool reached = fault_counted(s.stage.fault) >= nth->nth;
    fault_clear(s.stage.fault);
    struct recorder *rec = &s.stage.rec;
    if (dies && rec->img)
        image_abandon(TAKE(rec->img));
    else if (rec->img)
        recorder_close(rec);
    snprintf(how, sizeof(how), "error %d at request %llu%s%s", nth->error,
             (unsigned long long)nth->nth, nth->always ? " and behind it" : "",
             dies ? ", died" : "");
    /* What a failed operation has done is not known: each span is open. */
    s.clean.len = 0;
    for (size_t i = 0; i < s.bitmaps.len; i++)
        s.bitmaps.ptr[i].frozen.len = 0;
    tell(c, judge(&s, rec->mem, position(&s), false), &s, how);
    c->trusted += s.trusted;
    c->untrusted += s.untrusted;
    scene_free(&s);
    return reached;
}

static void all_faults(const struct workload *w, unsigned every, struct count *c)
{
    unsigned variant = 0;
    bool more = true;
    for (uint64_t n = 1 + w->seed; more; n += every, variant++) {
        const struct fault_nth nth = {
            .nth = n,
            .error = variant % 2 ? ENOSPC : EIO,
            .always = variant % 2,
            .torn = variant % 4 == 0,
            .iotypes = 1u << FAULT_WRITE | 1u << FAULT_FLUSH | 1u << FAULT_READ,
        };
        more = fault(w, &nth, variant % 3 == 0, c);
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"states", required_argument, NULL, 'n'},
                                            {"salt", required_argument, NULL, 's'},
                                            {NULL, 0, NULL, 0}};
    size_t states = 4200 / SLOWER;
    uint32_t salt = 0;
    struct count c = {0};
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) >= 0;) {
        if (o == 'n')
            states = strtoul(optarg, NULL, 0);
        else if (o == 's')
            salt = (uint32_t)strtoul(optarg, NULL, 0);
        else
            return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; i < ARRAY_SIZE(images); i++) {
        for (uint32_t round = 0; round < 3; round++)
            crash(&images[i], salt + round, states / ARRAY_SIZE(images) / 3 + 2, &c);
        all_faults(&images[i], 2 * SLOWER, &c);
    }
    printf("bitmaps seen: %zu trusted, %zu in use\n", c.trusted, c.untrusted);
    printf("%zu passed, %zu failed\n", c.passed, c.failed);
    return c.failed || !c.passed || !c.trusted || !c.untrusted;
}
