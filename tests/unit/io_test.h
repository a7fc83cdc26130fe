/*
 * io_test.h - what the tests of byte stores share: a scratch folder that goes away at exit, a model
 * of a store as a plain byte array with random operations, and checks in a child process.
 */
#ifndef QK_IO_TEST_H
#define QK_IO_TEST_H

#include "base/checked.h"
#include "io/io.h"
#include "test.h"

#include <fcntl.h>
#include <ftw.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char scratch_dir[] = "/tmp/qcowkit-io-XXXXXX";

static int scratch_remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static inline void scratch_remove(void)
{
    nftw(scratch_dir, scratch_remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static inline void scratch_make(void)
{
    if (!mkdtemp(scratch_dir) || chdir(scratch_dir) < 0) {
        printf("cannot make a scratch folder\n");
        exit(1);
    }
    atexit(scratch_remove);
}

static inline uint32_t test_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

/* ---- a store beside its model ---- */

enum { MODEL_MAX = 1 << 20 };

struct model {
    struct qk_io *io;
    uint8_t *bytes; /* MODEL_MAX; zero from len on */
    uint8_t *buf;
    uint64_t len;
    uint64_t random;
};

static inline void model_write(struct model *m, uint64_t off, size_t len)
{
    for (size_t i = 0; i < len; i++)
        m->buf[i] = (uint8_t)test_random(&m->random);
    const struct iovec iov[3] = {{m->buf, len / 3},
                                 {m->buf + len / 3, len / 5},
                                 {m->buf + len / 3 + len / 5, len - len / 3 - len / 5}};
    CHECK_OK(io_writev(m->io, off, iov, 3, test_random(&m->random) % 16 ? 0 : QK_WRITE_FUA, NULL));
    memcpy(m->bytes + off, m->buf, len);
    m->len = max_u64(m->len, len ? off + len : 0);
}

static inline void model_zero(struct model *m, uint64_t off, size_t len)
{
    CHECK_OK(io_zero_or_write(m->io, off, len, test_random(&m->random) & IO_ZERO_UNMAP, NULL));
    memset(m->bytes + off, 0, len);
    m->len = max_u64(m->len, len ? off + len : 0);
}

static inline void model_resize(struct model *m, uint64_t size)
{
    CHECK_OK(io_resize(m->io, size, QK_PREALLOC_OFF, NULL));
    if (size < m->len)
        memset(m->bytes + size, 0, m->len - size);
    m->len = size;
}

static inline void model_read(struct model *m, uint64_t off, size_t len)
{
    memset(m->buf, 0xee, len);
    CHECK_OK(io_read(m->io, off, m->buf, len, NULL));
    CHECK_MEM(m->buf, m->bytes + off, len);
}

static inline void model_step(struct model *m)
{
    uint64_t off = test_random(&m->random) % MODEL_MAX, len = MODEL_MAX - off, size = 0;
    if (test_random(&m->random) % 4)
        len = min_u64(len, test_random(&m->random) % 9000);
    if (test_random(&m->random) % 3 == 0) {
        off = round_down(off, 4096);
        len = round_down(len, 4096);
    }
    unsigned what = test_random(&m->random) % 12;
    if (what < 5)
        model_write(m, off, len);
    else if (what < 7)
        model_zero(m, off, len);
    else if (what < 8)
        model_resize(m, off);
    else
        model_read(m, off, len);
    CHECK_OK(io_size(m->io, &size, NULL));
    CHECK_EQ(size, m->len);
}

/* Every extent that says zero is zero, and the extents cover the store without gap. */
static inline void model_check_status(struct model *m)
{
    for (uint64_t off = 0; off < m->len;) {
        struct qk_extent e = {0};
        REQUIRE(io_status(m->io, off, m->len - off, 0, &e, NULL) == 0);
        REQUIRE(e.off == off && e.len > 0 && e.len <= m->len - off);
        CHECK_EQ(e.host_off, off);
        CHECK_EQ(!!(e.flags & QK_EXTENT_DATA), !(e.flags & QK_EXTENT_ZERO));
        CHECK_EQ(!!(e.flags & QK_EXTENT_EOF), off + e.len == m->len);
        uint64_t i = off;
        while (i < off + e.len && m->bytes[i] == 0)
            i++;
        CHECK(e.flags & QK_EXTENT_DATA || i == off + e.len);
        off += e.len;
    }
}

/* `io` is empty. Runs `steps` random operations against the model. */
static inline void model_run(struct qk_io *io, unsigned steps, uint64_t seed)
{
    struct model m = {
        .io = io, .bytes = calloc(1, MODEL_MAX), .buf = malloc(MODEL_MAX), .random = seed};
    for (unsigned i = 0; i < steps; i++)
        model_step(&m);
    model_check_status(&m);
    model_read(&m, 0, MODEL_MAX);
    CHECK_OK(io_flush(io, NULL));
    free(m.bytes);
    free(m.buf);
}

/* Runs the checks of fn in a child process and adds its counts to ours. */
static inline void in_child(void (*fn)(void))
{
    int fds[2];
    unsigned long counts[3] = {0, 1, 0};
    REQUIRE(pipe(fds) == 0);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        test_passed = test_failed = test_skipped = 0;
        fn();
        const unsigned long mine[3] = {test_passed, test_failed, test_skipped};
        fflush(stdout);
        _exit(write(fds[1], mine, sizeof(mine)) == sizeof(mine) ? 0 : 1);
    }
    close(fds[1]);
    CHECK_EQ(read(fds[0], counts, sizeof(counts)), sizeof(counts));
    close(fds[0]);
    waitpid(pid, NULL, 0);
    test_passed += counts[0];
    test_failed += counts[1];
    test_skipped += counts[2];
}

#endif
