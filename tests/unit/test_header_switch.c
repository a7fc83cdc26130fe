/*
 * test_header_switch.c - changing the header in one step: after every prefix of the writes, with
 * any of those that no flush covers left out or torn between sectors, the header is the old one or
 * the new one, in all its parts.
 */
#include "image/image_int.h"
#include "io/trace.h"
#include "test.h"

#include <stdlib.h>

enum { ROUNDS = 400, EXTENSIONS = 5, NAME_MAX_BYTES = 200 };

static const uint32_t types[EXTENSIONS] = {HEXT_BACKING_FORMAT, HEXT_BITMAPS, HEXT_CRYPTO,
                                           0x11223344, 0x55667788};
static const uint32_t lengths[EXTENSIONS] = {5, 24, 16, 100, 700};

/* What a header says, in a form that can be compared. */
struct said {
    uint64_t l1_off, size;
    char name[NAME_MAX_BYTES + 1];
    int ext[EXTENSIONS]; /* fill byte, -1: none, -2: a mixture */
};

static int fill_byte(const struct header_extension *e)
{
    for (uint32_t i = 1; i < e->len; i++)
        if (e->data[i] != e->data[0])
            return -2;
    return e->data[0];
}

static struct said say(const uint8_t *cluster, size_t size)
{
    struct said s = {0};
    struct header h;
    struct header_extensions exts;
    CHECK_OK(header_decode(cluster, size, &h, NULL));
    size_t end = h.backing_name_off ? h.backing_name_off : size;
    CHECK_OK(header_extensions_decode(cluster, h.header_bytes, end, &exts, NULL));
    s.l1_off = h.l1_off;
    s.size = h.size_bytes;
    if (h.backing_name_off)
        memcpy(s.name, cluster + h.backing_name_off, h.backing_name_len);
    for (int i = 0; i < EXTENSIONS; i++) {
        const struct header_extension *e = header_extensions_find(&exts, types[i]);
        s.ext[i] = e ? fill_byte(e) : -1;
    }
    header_extensions_free(&exts);
    return s;
}

static bool same(const struct said *a, const struct said *b)
{
    return a->l1_off == b->l1_off && a->size == b->size && !strcmp(a->name, b->name) &&
           !memcmp(a->ext, b->ext, sizeof(a->ext));
}

/* One change of the header: what was before, what both states say, and where its log begins. */
struct seen {
    struct qk_io *trace;
    size_t from;
    const uint8_t *before;
    size_t size;
    struct said both[2];
};

/* One state after a power cut behind entry `end`: stable entries are there, others in part. */
static void expect_old_or_new(const struct seen *seen, size_t end)
{
    struct qk_io *disk;
    size_t len, stable = trace_stable_before(seen->trace, end);
    CHECK_OK(io_mem_open(seen->before, seen->size, 0, &disk, NULL));
    for (size_t i = seen->from; i < end; i++) {
        const struct trace_entry *e = trace_get(seen->trace, i);
        for (uint64_t at = 0; at < e->len && e->kind == TRACE_WRITE; at += 512)
            if (i < stable || rand() % 2)
                CHECK_OK(trace_replay_part(e, at, 512, disk, NULL));
    }
    struct said now = say(io_mem_data(disk, &len), seen->size);
    CHECK(same(&now, &seen->both[0]) || same(&now, &seen->both[1]));
    io_close(disk, NULL);
}

struct wish {
    struct header fixed;
    uint8_t data[EXTENSIONS][1024];
    struct header_extension exts[EXTENSIONS];
    char name[NAME_MAX_BYTES + 1];
    struct header_change change;
};

static void make_wish(struct wish *w, const struct image *img)
{
    *w = (struct wish){.fixed = img->h, .change = {.exts = w->exts}};
    if (rand() % 2) {
        w->fixed.size_bytes = img->h.size_bytes ^ 512;
        w->change.fixed = &w->fixed;
    }
    for (int i = 0; i < EXTENSIONS; i++) {
        if (rand() % 3)
            continue;
        memset(w->data[i], rand() % 200 + 1, lengths[i]);
        w->exts[w->change.ext_count++] =
            (struct header_extension){types[i], lengths[i], rand() % 3 ? w->data[i] : NULL};
    }
    if (rand() % 3 == 0) {
        memset(w->name, 'a' + rand() % 26, (size_t)(rand() % NAME_MAX_BYTES));
        w->change.backing_name = w->name;
    }
}

/* The new header says what was wished for, and the old one in everything else. */
static void expect_wish(const struct wish *w, const struct said both[2])
{
    struct said want = both[0];
    if (w->change.fixed)
        want.size = w->fixed.size_bytes;
    if (w->change.backing_name)
        strcpy(want.name, w->name);
    for (size_t k = 0; k < w->change.ext_count; k++)
        for (int i = 0; i < EXTENSIONS; i++)
            if (types[i] == w->exts[k].type)
                want.ext[i] = w->exts[k].data ? w->exts[k].data[0] : -1;
    CHECK(same(&want, &both[1]));
}

static struct qk_io *new_image(uint32_t cluster_bits, struct qk_io **trace)
{
    struct create_params p = {.size_bytes = 1 << 20,
                              .version = 3,
                              .cluster_bits = cluster_bits,
                              .refcount_order = 4,
                              .backing_file = "below",
                              .backing_format = "qcow2"};
    struct qk_io *mem;
    CHECK_OK(io_mem_open(NULL, 0, 0, &mem, NULL));
    CHECK_OK(image_create(mem, &p, NULL));
    CHECK_OK(io_trace_open(mem, trace, NULL));
    return mem;
}

/* Returns whether the change was possible. */
static bool one_change(struct image *img, struct qk_io *mem, struct qk_io *trace)
{
    size_t len, size = img->g.cluster_bytes;
    uint8_t *before = malloc(size);
    memcpy(before, io_mem_data(mem, &len), size);
    struct seen seen = {trace, trace_count(trace), before, size, {{0}}};
    struct wish w;
    make_wish(&w, img);
    int ret = header_io_switch(img, &w.change, NULL);
    CHECK(ret == 0 || ret == -ENOSPC);
    seen.both[0] = say(before, size);
    seen.both[1] = say(io_mem_data(mem, &len), size);
    if (ret == 0)
        expect_wish(&w, seen.both);
    else
        CHECK(!memcmp(before, io_mem_data(mem, &len), size));
    size_t count = trace_count(trace);
    for (size_t end = seen.from; end <= count; end++)
        for (int k = 0; k < 8; k++)
            expect_old_or_new(&seen, end);
    /* The last entry is the flush that makes all before it stable. */
    if (ret == 0)
        CHECK_EQ(trace_stable_before(trace, count), count - 1);
    free(before);
    return ret == 0;
}

static void run(uint32_t cluster_bits)
{
    struct qk_io *trace, *mem = new_image(cluster_bits, &trace);
    struct image_options opts = {.writable = true, .lazy_refcounts = -1};
    struct image *img;
    int done = 0;
    CHECK_OK(image_open(trace, &opts, &img, NULL));
    for (int i = 0; i < ROUNDS; i++)
        done += one_change(img, mem, trace);
    CHECK(done > ROUNDS / 8);
    image_abandon(img);
    io_close(trace, NULL);
}

int main(void)
{
    srand(5);
    run(9);
    run(12);
    run(16);
    return TEST_SUMMARY();
}
