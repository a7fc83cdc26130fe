/*
 * test_check_faults.c - the Nth read, write or flush of a repair fails, for every N, once or from
 * then on: the repair never claims a success that is none, no guest data is lost, and a repair
 * afterwards ends clean.
 */
#include "check_test.h"

struct nth_io {
    struct qk_io io;
    struct qk_io *inner;
    int64_t left; /* operations before the one that fails */
    bool always;  /* all after it fail too */
    int code;
    atomic_bool hit;
};

static int fault(struct qk_io *io, struct qk_error *err)
{
    struct nth_io *n = (struct nth_io *)io;
    int64_t left = __atomic_fetch_sub(&n->left, 1, __ATOMIC_RELAXED);
    if (left > 0 || (left < 0 && !n->always))
        return 0;
    n->hit = true;
    return qk_fail(err, n->code, "injected");
}

static int nth_preadv(struct qk_io *io, uint64_t off, const struct iovec *iov, int n,
                      struct qk_error *err)
{
    int ret = fault(io, err);
    return ret < 0 ? ret : io_readv(((struct nth_io *)io)->inner, off, iov, n, err);
}

static int nth_pwritev(struct qk_io *io, uint64_t off, const struct iovec *iov, int n,
                       unsigned flags, struct qk_error *err)
{
    int ret = fault(io, err);
    return ret < 0 ? ret : io_writev(((struct nth_io *)io)->inner, off, iov, n, flags, err);
}

static int nth_flush(struct qk_io *io, struct qk_error *err)
{
    int ret = fault(io, err);
    return ret < 0 ? ret : io_flush(((struct nth_io *)io)->inner, err);
}

static int nth_size(struct qk_io *io, uint64_t *size, struct qk_error *err)
{
    return io_size(((struct nth_io *)io)->inner, size, err);
}

static int nth_resize(struct qk_io *io, uint64_t size, enum qk_prealloc p, struct qk_error *err)
{
    int ret = fault(io, err);
    return ret < 0 ? ret : io_resize(((struct nth_io *)io)->inner, size, p, err);
}

static const struct qk_io_ops nth_ops = {
    .name = "nth",
    .preadv = nth_preadv,
    .pwritev = nth_pwritev,
    .flush = nth_flush,
    .size = nth_size,
    .resize = nth_resize,
};

/* What is wrong, and what may be done about it. */
struct scene {
    bool structure; /* the refcount structure, too */
    bool way_back;  /* an entry that leads nowhere, and a snapshot */
};

static unsigned allowed(const struct scene *s)
{
    return s->way_back ? QK_ALLOW_ROLLBACK : 0;
}

/* What the repair must not lose. */
static bool intact(const struct scene *s, struct qk_io *io)
{
    return s->way_back ? snapshot_intact(io, "saved") : data_intact(io);
}

static void damage(struct qk_io *io, const struct scene *s)
{
    if (s->way_back)
        write_be64(io, l2_place(io, 7), ENTRY_COPIED | UINT64_C(1) << 40);
    write_be64(io, l2_place(io, 30), read_be64(io, l2_place(io, 4)));
    write_be64(io, l2_place(io, 6), read_be64(io, l2_place(io, 6)) & ~ENTRY_COPIED);
    set_refcount(io, host_cluster(io, 9), 3);
    write_be64(io, 72, INCOMPAT_DIRTY);
    if (s->structure)
        set_refcount(io, 0, 0);
}

/* What the repair said, against what is there. False when the fault was never reached. */
static bool one_fault(const struct scene *s, struct nth_io nth, const uint8_t *base, size_t bytes)
{
    struct qk_io *mem = NULL;
    struct findings f;
    struct qk_check_result said, is;
    CHECK_OK(io_mem_open(base, bytes, 0, &mem, NULL));
    int64_t n = nth.left;
    nth.inner = mem;
    nth.left = INT64_MAX;
    struct image *img = open_for_check(&nth.io, true);
    nth.left = n;
    int ret = run_allowing(img, QK_FIX_LEAKS | QK_FIX_ERRORS, allowed(s), &f, &said);
    image_abandon(img);
    CHECK(intact(s, mem));
    CHECK_OK(check_store(mem, 0, &f, &is));
    if (ret == 0 && !said.check_errors)
        CHECK_EQ(is.corruptions + is.leaks, said.corruptions + said.leaks);
    CHECK_OK(check_allowing(mem, QK_FIX_LEAKS | QK_FIX_ERRORS, allowed(s), &f, &is));
    CHECK_EQ(is.corruptions + is.leaks + is.check_errors, 0);
    CHECK_EQ(read_be64(mem, 72), 0);
    CHECK(intact(s, mem));
    io_close(mem, NULL);
    return nth.hit;
}

static void test_faults(const struct scene *s, bool always, int code)
{
    static char name[] = "nth";
    struct nth_io nth = {.io = {.ops = &nth_ops,
                                .name = name,
                                .alignment = 1,
                                .writable = true,
                                .can_grow = true,
                                .zero_init = true},
                         .always = always,
                         .code = code};
    struct qk_io *io = s->way_back ? make_saved_image(12, 4) : make_image(12, 4);
    size_t bytes;
    damage(io, s);
    const uint8_t *base = io_mem_data(io, &bytes);
    while (one_fault(s, nth, base, bytes))
        nth.left++;
    CHECK(nth.left > 10);
    io_close(io, NULL);
}

int main(void)
{
    static const int codes[] = {-EIO, -ENOSPC};
    for (unsigned i = 0; i < 16; i++) {
        const struct scene scene = {.structure = i & 1, .way_back = i & 8};
        test_faults(&scene, i & 2, codes[i >> 2 & 1]);
    }
    return TEST_SUMMARY();
}
