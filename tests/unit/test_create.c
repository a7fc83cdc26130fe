/*
 * test_create.c - creating images in memory: every cluster accounted for once by an independent
 * walk, over all cluster sizes, widths and preallocations; lengths as qemu-img makes them; what a
 * crash or a failing request at any point leaves behind; measuring, with qemu-img's numbers.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "format/refcount.h"
#include "image/image.h"
#include "io/fault.h"
#include "io/trace.h"
#include "test.h"

#define MiB (UINT64_C(1) << 20)
#define GiB (UINT64_C(1) << 30)

static struct create_params params(uint64_t size, uint32_t cluster_bits, uint32_t order)
{
    return (struct create_params){
        .size_bytes = size, .version = 3, .cluster_bits = cluster_bits, .refcount_order = order};
}

static const char *text_of(const struct create_params *p)
{
    static char text[128];
    snprintf(text, sizeof(text), "size %" PRIu64 ", cluster bits %u, order %u, v%u, prealloc %d%s",
             p->size_bytes, p->cluster_bits, p->refcount_order, p->version, (int)p->prealloc,
             p->extended_l2 ? ", extended" : "");
    return text;
}

/* ---- an independent walk over an image ---- */

struct walk {
    const uint8_t *data;
    size_t len;
    struct header h;
    struct geometry g;
    uint8_t *seen; /* per cluster of the file */
    uint64_t clusters, data_clusters;
    bool sound;
};

static void claim(struct walk *w, uint64_t off, uint64_t bytes)
{
    w->sound &= off % w->g.cluster_bytes == 0;
    for (uint64_t c = off / w->g.cluster_bytes; c * w->g.cluster_bytes < off + bytes; c++) {
        w->sound &= c < w->clusters && !w->seen[c];
        if (c < w->clusters)
            w->seen[c] = 1;
    }
}

/* Zero beyond the end, as a store reads. */
static uint64_t be64_at(const struct walk *w, uint64_t off)
{
    return off + 8 <= w->len ? load_be64(w->data + off) : 0;
}

static void walk_l2(struct walk *w, uint64_t table)
{
    w->sound &= table % w->g.cluster_bytes == 0 && table + w->g.cluster_bytes <= w->len;
    for (uint32_t i = 0; i < w->g.l2_entries && w->sound; i++) {
        struct l2_entry e = l2_entry_load(&w->g, w->data + table, i);
        if (!e.raw)
            continue;
        w->sound &= l2_entry_copied(e) && !e.bitmap && !(e.raw & L2_RESERVED_MASK);
        claim(w, l2_entry_host(e).v, w->g.cluster_bytes);
        w->data_clusters++;
    }
}

static void walk_l1(struct walk *w)
{
    claim(w, w->h.l1_off, (uint64_t)w->h.l1_entries * 8);
    for (uint32_t i = 0; i < w->h.l1_entries && w->sound; i++) {
        uint64_t raw = be64_at(w, w->h.l1_off + 8 * i);
        if (!raw)
            continue;
        w->sound &= (raw & ENTRY_COPIED) && !(raw & L1_RESERVED_MASK);
        claim(w, l1_entry_host(raw), w->g.cluster_bytes);
        walk_l2(w, l1_entry_host(raw));
    }
}

/* Every refcount is 1 for a cluster that was seen, 0 behind; no cluster below the end is free. */
static void walk_refcounts(struct walk *w)
{
    const struct refcount_ops *ops = refcount_ops(w->g.refcount_order);
    const uint64_t per_block = UINT64_C(1) << w->g.refblock_bits;
    uint64_t blocks = w->h.reftable_clusters * (uint64_t)w->g.cluster_bytes / 8;
    claim(w, w->h.reftable_off, w->h.reftable_clusters * (uint64_t)w->g.cluster_bytes);
    for (uint64_t b = 0; b < blocks; b++)
        if (be64_at(w, w->h.reftable_off + 8 * b))
            claim(w, be64_at(w, w->h.reftable_off + 8 * b), w->g.cluster_bytes);
    for (uint64_t c = 0; c < round_up(w->clusters, per_block) && w->sound; c++) {
        uint64_t block = be64_at(w, w->h.reftable_off + 8 * (c / per_block));
        w->sound &= block && range_within(block, w->g.cluster_bytes, w->len);
        if (w->sound)
            w->sound &= ops->get(w->data + block, c % per_block) == (c < w->clusters);
        w->sound &= c >= w->clusters || w->seen[c];
    }
}

static bool walk_image(const uint8_t *data, size_t len, struct walk *w)
{
    *w = (struct walk){.data = data, .len = len, .sound = true};
    if (header_decode(data, len, &w->h, NULL) < 0 || header_validate(&w->h, NULL, len, NULL) < 0)
        return false;
    w->g = geometry_of(&w->h);
    w->clusters = div_round_up(len, w->g.cluster_bytes);
    w->seen = calloc(w->clusters, 1);
    claim(w, 0, w->g.cluster_bytes);
    walk_l1(w);
    /* refcount blocks are claimed before the refcounts are compared with what was seen */
    walk_refcounts(w);
    free(w->seen);
    return w->sound;
}

/* ---- shapes ---- */

static void create_one(const struct create_params *p)
{
    struct qk_io *io;
    struct qk_error err = {0};
    struct walk w;
    size_t len;
    uint64_t measured;
    REQUIRE(io_mem_open(NULL, 0, 0, &io, NULL) == 0);
    int ret = image_create(io, p, &err);
    const uint8_t *data = io_mem_data(io, &len);
    bool all = p->prealloc != QK_PREALLOC_OFF;
    uint64_t guest_clusters = div_round_up(p->size_bytes, UINT64_C(1) << p->cluster_bits);
    if (!CHECK(ret == 0 && walk_image(data, len, &w) &&
               w.data_clusters == (all ? guest_clusters : 0) &&
               w.h.size_bytes == round_up(p->size_bytes, 512)))
        printf("    %s: %s\n", text_of(p), err.text);
    CHECK_OK(image_measure(p, UINT64_MAX, &measured, NULL));
    if (all && p->size_bytes)
        CHECK_EQ(measured, len);
    io_close(io, NULL);
}

static void shapes(void)
{
    static const uint64_t sizes[] = {0, 1, 512, 1000, 65536, 300 * 1024, 3 * MiB + 512};
    for (uint32_t bits = 9; bits <= 21; bits += bits == 9 ? 1 : 2)
        for (uint32_t order = 0; order <= 6; order++)
            for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
                for (unsigned pre = QK_PREALLOC_OFF; pre <= QK_PREALLOC_METADATA; pre++) {
                    struct create_params p = params(sizes[i], bits, order);
                    p.prealloc = (enum qk_prealloc)pre;
                    create_one(&p);
                    p.extended_l2 = bits >= 14;
                    if (p.extended_l2)
                        create_one(&p);
                }
    struct create_params old = params(5 * MiB, 12, 4);
    old.version = 2;
    create_one(&old);
    for (unsigned pre = QK_PREALLOC_METADATA; pre <= QK_PREALLOC_FULL; pre++) {
        old.prealloc = (enum qk_prealloc)pre;
        create_one(&old);
    }
}

/* Lengths of the files that qemu-img create makes. */
static void lengths(void)
{
    static const struct {
        uint64_t size;
        uint32_t cluster_bits, order;
        size_t len;
    } table[] = {
        {0, 9, 4, 1536},
        {1, 9, 4, 1544},
        {MiB, 9, 4, 1792},
        {GiB, 9, 0, 263680},
        {GiB, 9, 4, 264704},
        {GiB, 9, 6, 267776},
        {100 * GiB, 9, 0, 26222080},
        {GiB, 12, 4, 16384},
        {100 * GiB, 12, 6, 421888},
        {0, 16, 4, 196608},
        {MiB, 16, 4, 196616},
        {GiB, 16, 4, 196624},
        {100 * GiB, 16, 0, 198208},
        {100 * GiB, 21, 6, 6291464},
    };
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        struct create_params p = params(table[i].size, table[i].cluster_bits, table[i].order);
        struct qk_io *io;
        size_t len;
        CHECK_OK(io_mem_open(NULL, 0, 0, &io, NULL));
        CHECK_OK(image_create(io, &p, NULL));
        io_mem_data(io, &len);
        if (!CHECK_EQ(len, table[i].len))
            printf("    %s\n", text_of(&p));
        io_close(io, NULL);
    }
}

static void header_contents(void)
{
    struct create_params p = params(10 * MiB, 16, 4);
    struct header_extensions exts;
    struct header h;
    struct qk_io *io;
    size_t len;
    p.lazy_refcounts = p.extended_l2 = true;
    p.compression_type = COMPRESSION_ZSTD;
    p.backing_file = "below.img";
    p.backing_format = "raw";
    p.prealloc = QK_PREALLOC_METADATA;
    CHECK_OK(io_mem_open(NULL, 0, 0, &io, NULL));
    CHECK_OK(image_create(io, &p, NULL));
    const uint8_t *data = io_mem_data(io, &len);
    REQUIRE(header_decode(data, len, &h, NULL) == 0);
    CHECK_EQ(h.incompatible, INCOMPAT_COMPRESSION | INCOMPAT_EXTENDED_L2);
    CHECK_EQ(h.compatible, COMPAT_LAZY_REFCOUNTS);
    CHECK_EQ(h.compression_type, COMPRESSION_ZSTD);
    CHECK_EQ(h.backing_name_len, 9);
    CHECK_MEM(data + h.backing_name_off, "below.img", 9);
    CHECK_OK(header_extensions_decode(data, h.header_bytes, h.backing_name_off, &exts, NULL));
    CHECK_EQ(exts.list.len, 2);
    CHECK_EQ(exts.list.ptr[0].type, HEXT_BACKING_FORMAT);
    CHECK_MEM(exts.list.ptr[0].data, "raw", 3);
    CHECK_EQ(exts.list.ptr[1].type, HEXT_FEATURE_NAMES);
    header_extensions_free(&exts);
    io_close(io, NULL);
}

/* ---- refusals ---- */

static void refuse(const struct create_params *p, int ret, const char *text)
{
    struct qk_io *io;
    struct qk_error err = {0};
    size_t len;
    CHECK_OK(io_mem_open("keep me", 7, 0, &io, NULL));
    CHECK_ERR(image_create(io, p, &err), ret);
    if (!CHECK(strstr(err.text, text) != NULL))
        printf("    \"%s\", expected \"%s\"\n", err.text, text);
    CHECK_MEM(io_mem_data(io, &len), "keep me", 7);
    io_close(io, NULL);
}

static void refusals(void)
{
    char name[1100];
    struct create_params p = params(MiB, 8, 4);
    refuse(&p, -EINVAL, "Cluster size must be a power of two between 512 and 2048k");
    p.cluster_bits = 22;
    refuse(&p, -EINVAL, "Cluster size must be a power of two between 512 and 2048k");
    p = params(MiB, 16, 7);
    refuse(&p, -EINVAL, "Refcount width must be a power of two and may not exceed 64 bits");
    p = params(MiB, 13, 4);
    p.extended_l2 = true;
    refuse(&p, -EINVAL, "only supported with cluster sizes of at least 16384 bytes");
    p = params(MiB, 16, 3);
    p.version = 2;
    refuse(&p, -EINVAL, "Different refcount widths than 16 bits require compatibility level 1.1");
    p.refcount_order = 4;
    p.lazy_refcounts = true;
    refuse(&p, -EINVAL, "Lazy refcounts only supported with compatibility level 1.1");
    p.version = 4;
    refuse(&p, -EINVAL, "version");
    p = params(MiB, 16, 4);
    p.backing_format = "raw";
    refuse(&p, -EINVAL, "Backing format cannot be used without backing file");
    p.backing_file = "x";
    p.prealloc = QK_PREALLOC_METADATA;
    refuse(&p, -EINVAL, "can only be used at the same time if extended_l2 is on");
    p.prealloc = QK_PREALLOC_OFF;
    p.backing_format = "0123456789abcdef";
    refuse(&p, -EINVAL, "Backing format name too long");
    memset(name, 'x', sizeof(name));
    name[1024] = 0;
    p.backing_format = NULL;
    p.backing_file = name;
    refuse(&p, -EINVAL, "Backing file name too long");
    p.cluster_bits = 9;
    name[500] = 0;
    refuse(&p, -ENOSPC, "Could not assign backing file");
}

static void too_large(void)
{
    static const struct {
        uint64_t size;
        uint32_t cluster_bits;
    } cases[] = {
        {128 * GiB + 1, 9},
        {(UINT64_C(2) << 50) + 1, 16},
        {(UINT64_C(2) << 60) + 1, 21},
        {INT64_MAX, 21},
        {UINT64_MAX, 16},
        {UINT64_MAX, 21},
    };
    uint64_t bytes;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct create_params p = params(cases[i].size, cases[i].cluster_bits, 4);
        refuse(&p, -EFBIG, "The image size is too large for file format 'qcow2'");
        CHECK_ERR(image_measure(&p, 0, &bytes, NULL), -EFBIG);
    }
    /* allowed without its clusters, but there is no offset for all of them */
    struct create_params p = params(UINT64_C(1) << 60, 21, 4);
    CHECK_OK(image_measure(&p, 0, &bytes, NULL));
    p.prealloc = QK_PREALLOC_METADATA;
    refuse(&p, -EFBIG, "The image size is too large for file format 'qcow2'");
}

/* ---- stores with old content ---- */

/* Nothing of the old bytes shows up in the tables, and the clusters read as zero by their entries
 * or were zeroed. */
static void device_with_old_content(enum qk_prealloc prealloc, uint32_t version)
{
    struct create_params p = params(3 * MiB, 16, 4);
    size_t len = 4 * MiB;
    uint8_t *junk = malloc(len);
    struct qk_io *io;
    struct walk w;
    p.prealloc = prealloc;
    p.version = version;
    memset(junk, 0xa5, len);
    REQUIRE(io_mem_open(junk, len, len, &io, NULL) == 0);
    io->can_grow = io->zero_init = false;
    CHECK_OK(image_create(io, &p, NULL));
    const uint8_t *data = io_mem_data(io, &len);
    CHECK_EQ(len, 4 * MiB);
    REQUIRE(header_decode(data, len, &w.h, NULL) == 0);
    uint64_t end = prealloc == QK_PREALLOC_OFF ? 4 * 65536 : (5 + 48) * 65536;
    CHECK(walk_image(data, end, &w));
    for (uint64_t i = 0; i < 48 && prealloc != QK_PREALLOC_OFF; i++) {
        struct l2_entry e = l2_entry_load(&w.g, data + 4 * 65536, (uint32_t)i);
        const uint8_t *cluster = data + l2_entry_host(e).v;
        bool zero = l2_entry_kind(&w.g, e, 0) == CLUSTER_ZERO_ALLOC;
        CHECK(zero || (cluster[0] == 0 && memcmp(cluster, cluster + 1, 65535) == 0));
        CHECK_EQ(zero, prealloc == QK_PREALLOC_METADATA && version == 3);
    }
    io_close(io, NULL);
    free(junk);
}

static void device_too_small(void)
{
    struct create_params p = params(3 * MiB, 16, 4);
    struct qk_io *io;
    struct qk_error err;
    size_t len;
    uint8_t *junk = calloc(1, 3 * MiB);
    memcpy(junk, "old", 3);
    CHECK_OK(io_mem_open(junk, 3 * MiB, 3 * MiB, &io, NULL));
    io->can_grow = io->zero_init = false;
    p.prealloc = QK_PREALLOC_FULL;
    CHECK_ERR(image_create(io, &p, &err), -ENOSPC);
    CHECK_STR(err.text, "The image needs 3473408 bytes, but there are only 3145728");
    CHECK_MEM(io_mem_data(io, &len), junk, 3 * MiB);
    io_close(io, NULL);
    free(junk);
}

/* ---- crashes and failures ---- */

static bool has_magic(const uint8_t *data, size_t len)
{
    return len >= 4 && memcmp(data, "QFI\xfb", 4) == 0;
}

/* How long a preallocated image is; the device below it may be longer. */
static size_t image_length(const struct create_params *p)
{
    uint64_t bytes = 0;
    CHECK_OK(image_measure(p, UINT64_MAX, &bytes, NULL));
    return (size_t)bytes;
}

struct crash {
    uint8_t *old; /* the image that was there before */
    size_t old_len, new_len;
    struct qk_io *trace;
    uint64_t rng;
};

/* The old image, then all that the log says is stable, then some of the rest. */
static void crash_state(struct crash *c, size_t end)
{
    struct qk_io *disk;
    struct walk w;
    size_t len;
    REQUIRE(io_mem_open(c->old, c->old_len, 0, &disk, NULL) == 0);
    size_t stable = trace_stable_before(c->trace, end);
    for (size_t i = 0; i < end; i++) {
        c->rng ^= c->rng << 13;
        c->rng ^= c->rng >> 7;
        c->rng ^= c->rng << 17;
        if (i < stable || c->rng % 2)
            CHECK_OK(trace_replay(trace_get(c->trace, i), disk, NULL));
    }
    const uint8_t *data = io_mem_data(disk, &len);
    bool untouched = len == c->old_len && memcmp(data, c->old, len) == 0;
    CHECK(!has_magic(data, len) || untouched ||
          (len >= c->new_len && walk_image(data, c->new_len, &w)));
    io_close(disk, NULL);
}

static void crashes(bool device)
{
    struct create_params p = params(3 * MiB, 14, 4);
    struct crash c = {.rng = UINT64_C(0x9e3779b97f4a7c15)};
    struct qk_io *disk;
    CHECK_OK(io_mem_open(NULL, 0, 0, &disk, NULL));
    p.prealloc = QK_PREALLOC_METADATA;
    CHECK_OK(image_create(disk, &p, NULL));
    const uint8_t *data = io_mem_data(disk, &c.old_len);
    c.old = malloc(c.old_len);
    memcpy(c.old, data, c.old_len);
    CHECK_OK(io_trace_open(disk, &c.trace, NULL));
    if (device)
        c.trace->can_grow = c.trace->zero_init = false;
    p.refcount_order = 6;
    p.size_bytes = 2 * MiB;
    c.new_len = image_length(&p);
    CHECK_OK(image_create(c.trace, &p, NULL));
    for (size_t end = 0; end <= trace_count(c.trace); end++)
        for (unsigned i = 0; i < 40; i++)
            crash_state(&c, end);
    io_close(c.trace, NULL);
    free(c.old);
}

/* The nth request fails, alone or with all that follow, for every n; true when none was left. */
static bool fail_at(uint64_t n, bool always, bool device)
{
    struct create_params p = params(3 * MiB, 14, 4);
    struct qk_io *disk, *io;
    struct walk w;
    size_t len;
    CHECK_OK(io_mem_open(NULL, 0, 0, &disk, NULL));
    CHECK_OK(image_create(disk, &p, NULL));
    if (device)
        CHECK_OK(io_resize(disk, 4 * MiB, QK_PREALLOC_OFF, NULL));
    CHECK_OK(io_fault_open(disk, NULL, &io, NULL));
    if (device)
        io->can_grow = io->zero_init = false;
    p.prealloc = QK_PREALLOC_METADATA;
    const unsigned types =
        1u << FAULT_WRITE | 1u << FAULT_WRITE_ZEROES | 1u << FAULT_FLUSH | 1u << FAULT_RESIZE;
    fault_fail_nth(io, &(struct fault_nth){n, EIO, types, always, true});
    int ret = image_create(io, &p, NULL);
    bool reached = fault_counted(io) >= n;
    const uint8_t *data = io_mem_data(disk, &len);
    CHECK_EQ(ret, reached ? -EIO : 0);
    /* the first request may leave the old image whole; a header that could not be taken back
     * belongs to an image that is whole */
    if (reached && n > 1 && !always)
        CHECK(!has_magic(data, len));
    else if (n > 1 && has_magic(data, len))
        CHECK(walk_image(data, image_length(&p), &w));
    io_close(io, NULL);
    return !reached;
}

static void failures(void)
{
    for (unsigned mode = 0; mode < 4; mode++) {
        uint64_t n = 1;
        while (n < 1000 && !fail_at(n, mode & 1, mode & 2))
            n++;
        CHECK(n > 5 && n < 1000);
    }
}

/* ---- measuring: numbers of qemu-img measure ---- */

static void measures(void)
{
    static const struct {
        uint64_t size, required, full;
        uint32_t cluster_bits, order;
        bool extended;
    } table[] = {
        {1, 327680, 393216, 16, 4, false},
        {65536, 327680, 393216, 16, 4, false},
        {100 * 1024, 327680, 458752, 16, 4, false},
        {GiB, 393216, 1074135040, 16, 4, false},
        {1024 * GiB, 168034304, 1099679662080, 16, 4, false},
        {UINT64_C(2) << 50, 343650009088, 2252143463694336, 16, 4, false},
    };
    uint64_t bytes;
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        struct create_params p = params(table[i].size, table[i].cluster_bits, table[i].order);
        p.extended_l2 = table[i].extended;
        CHECK_OK(image_measure(&p, 0, &bytes, NULL));
        CHECK_EQ(bytes, table[i].required);
        CHECK_OK(image_measure(&p, UINT64_MAX, &bytes, NULL));
        CHECK_EQ(bytes, table[i].full);
        p.prealloc = QK_PREALLOC_METADATA;
        CHECK_OK(image_measure(&p, 1, &bytes, NULL));
        CHECK_EQ(bytes, table[i].required + 65536);
        p.prealloc = QK_PREALLOC_FALLOC;
        CHECK_OK(image_measure(&p, 0, &bytes, NULL));
        CHECK_EQ(bytes, table[i].full);
    }
}

int main(void)
{
    shapes();
    lengths();
    header_contents();
    refusals();
    too_large();
    for (uint32_t version = 2; version <= 3; version++)
        for (unsigned pre = QK_PREALLOC_OFF; pre <= QK_PREALLOC_FULL; pre++)
            device_with_old_content((enum qk_prealloc)pre, version);
    device_too_small();
    crashes(false);
    crashes(true);
    failures();
    measures();
    return TEST_SUMMARY();
}
