/*
 * test_model.c - thousands of random operations on images of many shapes, each compared with a
 * plain byte array, reopened and checked on the way. Fixed seeds; `test_model OPERATIONS SEED` runs
 * another course.
 */
#include "model.h"

#define LUKS "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1,"

static const struct shape shapes[] = {
    {"cluster_size=512", 512, 700, BACKING_NONE, NULL, false},
    {"cluster_size=512,refcount_bits=1", 512, 700, BACKING_RAW, "l2-cache-size=2048", false},
    {"cluster_size=512,refcount_bits=64", 512, 300, BACKING_QCOW2, NULL, false},
    {"cluster_size=512,compat=0.10", 512, 300, BACKING_SHORTER, NULL, true},
    {"cluster_size=1024,refcount_bits=2", 1024, 300, BACKING_LONGER, NULL, false},
    {"cluster_size=4096", 4096, 200, BACKING_SHORTER, NULL, false},
    {"cluster_size=4096,refcount_bits=8,lazy_refcounts=on", 4096, 200, BACKING_NONE, NULL, false},
    {"cluster_size=4096,preallocation=metadata", 4096, 150, BACKING_NONE, NULL, false},
    {"cluster_size=4096,compat=0.10", 4096, 150, BACKING_NONE, NULL, true},
    {"cluster_size=65536", 65536, 40, BACKING_QCOW2, NULL, false},
    {"cluster_size=65536,refcount_bits=4,lazy_refcounts=on", 65536, 40, BACKING_RAW, NULL, false},
    {"cluster_size=65536,refcount_bits=32", 65536, 40, BACKING_NONE, "discard=unmap", false},
    {"cluster_size=65536,compat=0.10", 65536, 30, BACKING_LONGER, NULL, true},
    {"cluster_size=65536,compression_type=zstd", 65536, 40, BACKING_SHORTER, NULL, false},
    {"cluster_size=2097152", 2097152, 4, BACKING_SHORTER, NULL, false},
    {"extended_l2=on,cluster_size=16384", 16384, 60, BACKING_NONE, NULL, false},
    {"extended_l2=on,cluster_size=16384,refcount_bits=1", 16384, 60, BACKING_QCOW2,
     "l2-cache-entry-size=512", false},
    {"extended_l2=on,cluster_size=16384,preallocation=metadata", 16384, 60, BACKING_NONE,
     "discard=unmap", false},
    {"extended_l2=on,cluster_size=32768,lazy_refcounts=on", 32768, 40, BACKING_SHORTER, NULL,
     false},
    {"extended_l2=on,cluster_size=65536,compression_type=zstd", 65536, 30, BACKING_RAW, NULL,
     false},
    {"extended_l2=on,cluster_size=65536,preallocation=metadata", 65536, 30, BACKING_LONGER, NULL,
     false},
    {"extended_l2=on,cluster_size=2097152", 2097152, 4, BACKING_QCOW2, NULL, false},
    {LUKS "cluster_size=512", 512, 300, BACKING_SHORTER, NULL, false},
    {LUKS "cluster_size=4096,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,"
          "preallocation=metadata",
     4096, 150, BACKING_NONE, "discard=unmap", false},
    {LUKS "cluster_size=65536,encrypt.cipher-alg=aes-128", 65536, 30, BACKING_RAW, NULL, false},
    {LUKS "cluster_size=16384,extended_l2=on", 16384, 60, BACKING_QCOW2, NULL, false},
    {LUKS "cluster_size=4096,compat=0.10", 4096, 100, BACKING_NONE, NULL, true},
    {"encrypt.format=aes,encrypt.key-secret=s,cluster_size=4096", 4096, 150, BACKING_LONGER, NULL,
     false},
};

struct range {
    uint64_t off, len;
};

/* A range inside the disk; ends love the edges of clusters and subclusters. */
static struct range random_range(struct subject *s)
{
    uint64_t c = rng_below(&s->rng, 2) ? s->shape->cluster_bytes : shape_unit(s->shape);
    uint64_t longest = rng_below(&s->rng, 8) == 0 ? s->size / 3 : 3 * c;
    struct range r = {rng_below(&s->rng, s->size), 1 + rng_below(&s->rng, longest)};

    if (rng_below(&s->rng, 2))
        r.off -= r.off % c;
    if (rng_below(&s->rng, 2))
        r.len = (r.len + c - 1) / c * c;
    if (rng_below(&s->rng, 8) == 0 && r.off > 0)
        r.off--;
    if (rng_below(&s->rng, 16) == 0)
        r.len = 1;
    if (r.len > s->size - r.off)
        r.len = s->size - r.off;
    return r;
}

/* Cuts buf into up to 4 pieces; returns their number. */
static int random_iov(struct subject *s, uint8_t *buf, size_t len, struct iovec iov[4])
{
    int count = 0;

    while (count < 3 && len > 1) {
        size_t piece = 1 + rng_below(&s->rng, len - 1);
        iov[count++] = (struct iovec){buf, piece};
        buf += piece;
        len -= piece;
    }
    iov[count++] = (struct iovec){buf, len};
    return count;
}

static void do_write(struct subject *s)
{
    struct range r = random_range(s);
    struct qk_error err = {0};
    unsigned flags = rng_below(&s->rng, 32) == 0 ? QK_WRITE_FUA : 0;
    struct iovec iov[4];
    int ret;

    if (rng_below(&s->rng, 10) == 0)
        memset(s->model + r.off, 0, r.len);
    else
        rng_fill(&s->rng, s->model + r.off, r.len);
    if (rng_below(&s->rng, 3) == 0) {
        int count = random_iov(s, s->model + r.off, r.len, iov);
        ret = qk_disk_writev(s->disk, r.off, iov, count, flags, &err);
    } else {
        ret = qk_disk_write(s->disk, r.off, s->model + r.off, r.len, flags, &err);
    }
    subject_ok(s, ret == 0, "write", &err);
}

static void do_read(struct subject *s)
{
    struct range r = random_range(s);
    struct qk_error err = {0};
    struct iovec iov[4];
    int ret;

    memset(s->scratch, 0xee, r.len);
    if (rng_below(&s->rng, 3) == 0) {
        int count = random_iov(s, s->scratch, r.len, iov);
        ret = qk_disk_readv(s->disk, r.off, iov, count, &err);
    } else {
        ret = qk_disk_read(s->disk, r.off, s->scratch, r.len, &err);
    }
    if (subject_ok(s, ret == 0, "read", &err))
        subject_ok(s, memcmp(s->scratch, s->model + r.off, r.len) == 0, "read equals the model",
                   NULL);
}

static void do_zero(struct subject *s)
{
    struct range r = random_range(s);
    struct qk_error err = {0};
    unsigned flags = rng_below(&s->rng, 2) ? QK_WRITE_UNMAP : 0;

    memset(s->model + r.off, 0, r.len);
    subject_ok(s, qk_disk_write_zeroes(s->disk, r.off, r.len, flags, &err) == 0, "write zeroes",
               &err);
}

/* Whether a discarded unit at `at` may show its old bytes: version 2 over a backing file, what the
 * end of the disk cuts, and a subcluster of a cluster that was not discarded as a whole. */
static bool may_keep(const struct subject *s, struct range r, uint64_t at)
{
    uint64_t c = s->shape->cluster_bytes, start = at / c * c;

    return (s->shape->v2 && s->shape->backing != BACKING_NONE) || s->size - start < c ||
           start < r.off || start + c > r.off + r.len;
}

/* Whole clusters read as zero afterwards, subclusters do or are unchanged. */
static void do_discard(struct subject *s)
{
    struct range r = random_range(s);
    uint64_t unit = shape_unit(s->shape), end = r.off + r.len;
    struct qk_error err = {0};

    if (!subject_ok(s, qk_disk_discard(s->disk, r.off, r.len, &err) == 0, "discard", &err))
        return;
    for (uint64_t at = (r.off + unit - 1) / unit * unit; at < end; at += unit) {
        uint64_t n = s->size - at < unit ? s->size - at : unit;
        if (at + n > end)
            break;
        memset(s->scratch, 0, n);
        uint8_t *now = s->scratch + n;
        if (!subject_ok(s, qk_disk_read(s->disk, at, now, n, &err) == 0, "read", &err))
            return;
        if (memcmp(now, s->scratch, n) == 0)
            memset(s->model + at, 0, n);
        else if (!subject_ok(s, may_keep(s, r, at), "a discarded cluster reads as zero", NULL))
            return;
    }
}

static void do_status(struct subject *s)
{
    struct range r = random_range(s);
    struct qk_extent e;
    struct qk_error err = {0};
    int ret = qk_disk_status(s->disk, r.off, r.len, 0, &e, &err);

    if (!subject_ok(s, ret == 0, "status", &err))
        return;
    subject_ok(s, e.off == r.off && e.len > 0 && e.len <= r.len, "an extent of the range", NULL);
    if (s->broken || !(e.flags & QK_EXTENT_ZERO))
        return;
    memset(s->scratch, 0, e.len);
    subject_ok(s, memcmp(s->scratch, s->model + e.off, e.len) == 0,
               "what is said to be zero is zero", NULL);
}

static void do_compress(struct subject *s)
{
    uint64_t c = s->shape->cluster_bytes, off = rng_below(&s->rng, s->size) / c * c;

    subject_compress(s, &s->rng, off, s->size - off < c ? s->size - off : c);
}

static void do_flush(struct subject *s)
{
    struct qk_error err = {0};

    subject_ok(s, qk_disk_flush(s->disk, &err) == 0, "flush", &err);
}

static void do_reopen(struct subject *s)
{
    if (subject_close(s) && subject_check(s) && subject_open(s))
        subject_compare(s);
}

/* Grows by a ragged amount, up to twice the first size. */
static void do_grow(struct subject *s)
{
    uint64_t limit = 2 * ((uint64_t)s->shape->clusters * s->shape->cluster_bytes + 1536);
    uint64_t size = (s->size + rng_below(&s->rng, 2 * s->shape->cluster_bytes) + 512) / 512 * 512;
    struct qk_error err = {0};

    if (size > limit)
        return;
    memset(s->model + s->size, 0, size - s->size);
    s->size = size;
    subject_ok(s, qk_disk_resize(s->disk, size, QK_PREALLOC_OFF, 0, &err) == 0, "grow", &err);
    subject_ok(s, qk_disk_size(s->disk) == size, "size after growing", NULL);
}

static const struct {
    void (*run)(struct subject *s);
    unsigned weight;
} operations[] = {
    {do_write, 35}, {do_read, 20}, {do_zero, 10},  {do_discard, 12}, {do_compress, 7},
    {do_status, 6}, {do_flush, 4}, {do_reopen, 1}, {do_grow, 1},
};

static void one_operation(struct subject *s)
{
    uint64_t pick = rng_below(&s->rng, 96);

    for (size_t i = 0; i < sizeof(operations) / sizeof(operations[0]); i++) {
        if (pick < operations[i].weight) {
            operations[i].run(s);
            return;
        }
        pick -= operations[i].weight;
    }
}

static void run_shape(const struct shape *shape, unsigned long count, uint64_t seed)
{
    struct subject s = {.seed = seed};
    char tag[64];

    snprintf(tag, sizeof(tag), "%d-%zu", (int)getpid(), (size_t)(shape - shapes));
    if (subject_start(&s, shape, tag)) {
        for (unsigned long i = 0; i < count && !s.broken; i++)
            one_operation(&s);
        if (!s.broken)
            do_reopen(&s);
    }
    subject_end(&s);
}

int main(int argc, char **argv)
{
    unsigned long count = argc > 1 ? strtoul(argv[1], NULL, 10) : 1500;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;

    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
        run_shape(&shapes[i], shapes[i].cluster_bytes > 65536 ? count / 5 : count, seed);
    return TEST_SUMMARY();
}
