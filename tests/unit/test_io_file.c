/*
 * test_io_file.c - the file store: content against a byte array in every cache mode, what it
 * refuses to open, alignment under parallel writers, full disks, file size limits, failed flushes,
 * holes, preallocation, and a loop device when the machine lets us have one.
 */
#include "io/file.h"
#include "io_test.h"

#include <linux/loop.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

static struct qk_io *open_with(const char *name, struct io_file_options opts)
{
    struct qk_io *io = NULL;
    struct qk_error err = {0};
    opts.writable = true;
    opts.create = true;
    if (!CHECK_OK(io_file_open(name, &opts, &io, &err)))
        printf("    %s\n", err.text);
    return io;
}

static struct qk_io *open_plain(const char *name)
{
    return open_with(name, (struct io_file_options){0});
}

/* ---- content ---- */

static void test_model(void)
{
    static const struct io_file_options modes[] = {
        {0},
        {.direct = true},
        {.writethrough = true},
        {.no_flush = true},
        {.direct = true, .writethrough = true},
    };
    for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
        unlink("model");
        struct qk_io *io = open_with("model", modes[i]);
        if (!io)
            continue;
        CHECK(modes[i].direct ? io->alignment > 1 : io->alignment == 1);
        CHECK(io->can_grow && io->zero_init && io->writable);
        model_run(io, modes[i].writethrough ? 300 : 1500, 17 + i);
        CHECK_OK(io_close(io, NULL));
    }
}

/* A device that needs larger blocks than the one under the scratch folder does. */
static void test_model_large_alignment(void)
{
    unlink("model");
    struct qk_io *io = open_with("model", (struct io_file_options){.direct = true});
    REQUIRE(io);
    io->alignment = file_store(io)->mem_alignment = 65536;
    model_run(io, 500, 5);
    CHECK_OK(io_close(io, NULL));
}

static void test_many_vectors(void)
{
    enum { COUNT = 3000 };
    static uint8_t bytes[COUNT * 3], back[COUNT * 3];
    static struct iovec out[COUNT], in[COUNT];
    for (int direct = 0; direct < 2; direct++) {
        unlink("vectors");
        struct qk_io *io = open_with("vectors", (struct io_file_options){.direct = direct});
        for (size_t i = 0; i < COUNT; i++) {
            out[i] = (struct iovec){bytes + 3 * i, 3};
            in[i] = (struct iovec){back + 3 * (COUNT - 1 - i), 3};
            memset(bytes + 3 * i, (int)(i * 7 + 1), 3);
        }
        CHECK_OK(io_writev(io, 12345, out, COUNT, 0, NULL));
        CHECK_OK(io_readv(io, 12345, in, COUNT, NULL));
        for (size_t i = 0; i < COUNT; i++)
            CHECK(!memcmp(bytes + 3 * i, back + 3 * (COUNT - 1 - i), 3));
        CHECK_OK(io_close(io, NULL));
    }
}

static void test_ranges(void)
{
    char c = 1;
    struct qk_io *io = open_plain("ranges");
    CHECK_ERR(io_write(io, INT64_MAX, &c, 1, 0, NULL), -EFBIG);
    CHECK_ERR(io_write(io, UINT64_MAX, &c, 1, 0, NULL), -EFBIG);
    CHECK_ERR(io_read(io, UINT64_MAX, &c, 1, NULL), -EINVAL);
    CHECK_ERR(io_zero(io, UINT64_MAX - 5, 10, 0, NULL), -EFBIG);
    CHECK_ERR(io_discard(io, INT64_MAX, 10, NULL), -EFBIG);
    CHECK_ERR(io_resize(io, UINT64_MAX, QK_PREALLOC_OFF, NULL), -EFBIG);
    CHECK_OK(io_read(io, 1u << 30, &c, 1, NULL));
    CHECK_EQ(c, 0);
    CHECK_OK(io_write(io, 5, NULL, 0, 0, NULL));
    uint64_t size = 1;
    CHECK_OK(io_size(io, &size, NULL));
    CHECK_EQ(size, 0);
    CHECK_OK(io_close(io, NULL));
}

/* ---- opening ---- */

static void check_refused(const char *name, int code, const char *text)
{
    struct qk_io *io = NULL;
    for (int writable = 0; writable < 2; writable++) {
        struct qk_error err = {0};
        CHECK_ERR(io_file_open(name, &(struct io_file_options){.writable = writable}, &io, &err),
                  code);
        CHECK_STR(err.text, text);
        CHECK_STR(err.file, name);
    }
}

static void test_refused_kinds(void)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX, .sun_path = "socket"};
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_OK(bind(sock, (struct sockaddr *)&addr, sizeof(addr)));
    CHECK_OK(mkfifo("fifo", 0600));
    CHECK_OK(mkdir("dir", 0700));
    check_refused("socket", -EINVAL, "'file' driver requires 'socket' to be a regular file");
    check_refused("fifo", -EINVAL, "'file' driver requires 'fifo' to be a regular file");
    check_refused("dir", -EINVAL, "'file' driver requires 'dir' to be a regular file");
    check_refused("/dev/null", -EINVAL, "'file' driver requires '/dev/null' to be a regular file");
    check_refused("missing", -ENOENT, "Could not open 'missing': No such file or directory");
    close(sock);
}

static void test_create_keeps_content(void)
{
    char back[4] = "";
    struct qk_io *io = open_plain("keep");
    CHECK_OK(io_write(io, 0, "abc", 4, 0, NULL));
    CHECK_OK(io_close(io, NULL));
    io = open_plain("keep");
    CHECK_OK(io_read(io, 0, back, 4, NULL));
    CHECK_STR(back, "abc");
    CHECK_OK(io_close(io, NULL));
}

static void test_read_only(void)
{
    struct qk_io *io = NULL;
    struct qk_error err = {0};
    char c;
    CHECK_OK(io_close(open_plain("ro"), NULL));
    CHECK_OK(io_file_open("ro", &(struct io_file_options){0}, &io, NULL));
    CHECK_ERR(io_write(io, 0, "x", 1, 0, &err), -EROFS);
    CHECK_ERR(io_resize(io, 5, QK_PREALLOC_OFF, NULL), -EROFS);
    CHECK_OK(io_read(io, 0, &c, 1, NULL));
    CHECK_OK(io_flush(io, NULL));
    CHECK_STR(err.file, "ro");
    CHECK_OK(io_close(io, NULL));
}

/* ---- parallel misaligned writers ---- */

enum { STRIPE = 100, WRITERS = 8, ROUNDS = 60 };

struct stripes {
    struct qk_io *io;
    unsigned index;
};

/* Each thread owns every WRITERS-th stripe; neighbours share blocks. */
static void *write_stripes(void *arg)
{
    const struct stripes *s = arg;
    uint8_t buf[STRIPE];
    for (unsigned round = 0; round < ROUNDS; round++) {
        memset(buf, (int)(s->index + 1 + round), sizeof(buf));
        for (uint64_t at = s->index; at < 5 * WRITERS; at += WRITERS)
            CHECK_OK(io_write(s->io, at * STRIPE, buf, STRIPE, 0, NULL));
    }
    return NULL;
}

static void test_neighbours(void)
{
    unlink("stripes");
    struct qk_io *io = open_with("stripes", (struct io_file_options){.direct = true});
    pthread_t threads[WRITERS];
    struct stripes args[WRITERS];
    uint64_t size = 0;
    for (unsigned i = 0; i < WRITERS; i++) {
        args[i] = (struct stripes){io, i};
        pthread_create(&threads[i], NULL, write_stripes, &args[i]);
    }
    for (unsigned i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    for (unsigned at = 0; at < 5 * WRITERS; at++) {
        uint8_t buf[STRIPE], expected[STRIPE];
        memset(expected, (int)(at % WRITERS + ROUNDS), STRIPE);
        CHECK_OK(io_read(io, at * STRIPE, buf, STRIPE, NULL));
        CHECK_MEM(buf, expected, STRIPE);
    }
    CHECK_OK(io_size(io, &size, NULL));
    CHECK_EQ(size, 5 * WRITERS * STRIPE);
    CHECK_OK(io_close(io, NULL));
}

/* ---- flushing ---- */

static void *flush_often(void *arg)
{
    for (int i = 0; i < 20; i++) {
        CHECK_OK(io_write(arg, 0, "x", 1, 0, NULL));
        CHECK_OK(io_flush(arg, NULL));
    }
    return NULL;
}

static void test_parallel_flushes(void)
{
    struct qk_io *io = open_plain("flushes");
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, flush_often, io);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    CHECK(file_store(io)->flush.started <= 80);
    CHECK_OK(io_close(io, NULL));
}

/* A pipe in the descriptor's place makes fdatasync fail; then the file comes back. */
static void fail_one_flush(struct qk_io *io, bool then_fails)
{
    struct file_store *file = file_store(io);
    int saved = dup(file->fd), fds[2];
    REQUIRE(pipe(fds) == 0);
    CHECK_OK(io_flush(io, NULL));
    dup2(fds[1], file->fd);
    CHECK_ERR(io_flush(io, NULL), -EINVAL);
    dup2(saved, file->fd);
    struct qk_error err = {0};
    CHECK_EQ(io_flush(io, &err), then_fails ? -EINVAL : 0);
    CHECK_EQ(io_write(io, 0, "x", 1, QK_WRITE_FUA, NULL), then_fails ? -EINVAL : 0);
    CHECK_OK(io_write(io, 0, "x", 1, 0, NULL));
    close(saved);
    close(fds[0]);
    close(fds[1]);
}

static void test_failed_flush(void)
{
    struct qk_io *io = open_plain("failed");
    fail_one_flush(io, true);
    CHECK_OK(io_close(io, NULL));
    io = open_with("failed", (struct io_file_options){.direct = true});
    fail_one_flush(io, false);
    CHECK_OK(io_close(io, NULL));
}

/* ---- space ---- */

static void test_holes(void)
{
    struct qk_io *io = open_plain("holes");
    struct qk_extent e;
    uint64_t allocated = 0;
    CHECK_OK(io_resize(io, 1 << 20, QK_PREALLOC_OFF, NULL));
    CHECK_OK(io_write(io, 512 << 10, "x", 1, 0, NULL));
    CHECK_OK(io_status(io, 100, 1 << 20, 0, &e, NULL));
    CHECK_EQ(e.len, (512 << 10) - 100);
    CHECK_EQ(e.flags, QK_EXTENT_ZERO | QK_EXTENT_ALLOCATED | QK_EXTENT_OFFSET);
    CHECK_OK(io_status(io, 512 << 10, 4, 0, &e, NULL));
    CHECK_EQ(e.len, 4);
    CHECK_EQ(e.flags, QK_EXTENT_DATA | QK_EXTENT_ALLOCATED | QK_EXTENT_OFFSET);
    CHECK_OK(io_status(io, 0, 1 << 20, QK_STATUS_FAST, &e, NULL));
    CHECK_EQ(e.len, 1 << 20);
    CHECK(e.flags & QK_EXTENT_DATA && e.flags & QK_EXTENT_EOF);
    CHECK_OK(io_status(io, 1 << 20, 10, 0, &e, NULL));
    CHECK(e.len == 10 && e.flags & QK_EXTENT_ZERO);
    CHECK_OK(io_allocated(io, &allocated, NULL));
    CHECK(allocated > 0 && allocated < 512 << 10);
    CHECK_OK(io_discard(io, 0, 1 << 20, NULL));
    CHECK_OK(io_allocated(io, &allocated, NULL));
    CHECK_EQ(allocated, 0);
    CHECK_OK(io_close(io, NULL));
}

static void test_prealloc(void)
{
    static const enum qk_prealloc modes[] = {QK_PREALLOC_FALLOC, QK_PREALLOC_FULL};
    for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
        unlink("prealloc");
        struct qk_io *io = open_plain("prealloc");
        uint64_t size = 0, allocated = 0;
        uint8_t bytes[20], zeroes[20] = {0};
        CHECK_OK(io_write(io, 0, "0123456789", 10, 0, NULL));
        CHECK_OK(io_resize(io, 3 << 20, modes[i], NULL));
        CHECK_OK(io_size(io, &size, NULL));
        CHECK_EQ(size, 3 << 20);
        CHECK_OK(io_flush(io, NULL));
        CHECK_OK(io_allocated(io, &allocated, NULL));
        CHECK(allocated >= 3 << 20);
        CHECK_OK(io_read(io, 0, bytes, 20, NULL));
        CHECK_MEM(bytes, "0123456789", 10);
        CHECK_MEM(bytes + 10, zeroes, 10);
        CHECK_ERR(io_resize(io, 100, modes[i], NULL), -ENOTSUP);
        CHECK_ERR(io_resize(io, 4 << 20, QK_PREALLOC_METADATA, NULL), -ENOTSUP);
        CHECK_OK(io_resize(io, 3 << 20, modes[i], NULL));
        CHECK_OK(io_close(io, NULL));
    }
}

/* ---- limits ---- */

static void check_growth_fails(struct qk_io *io, int code, uint64_t old_size)
{
    static const enum qk_prealloc modes[] = {QK_PREALLOC_FALLOC, QK_PREALLOC_FULL};
    for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
        uint64_t size = 0, allocated = 0;
        CHECK_ERR(io_resize(io, 8 << 20, modes[i], NULL), code);
        CHECK_OK(io_size(io, &size, NULL));
        CHECK_EQ(size, old_size);
        CHECK_OK(io_allocated(io, &allocated, NULL));
        CHECK(allocated <= old_size + 65536);
    }
}

static void file_size_limit(void)
{
    static uint8_t bytes[2 << 20], back[4096];
    struct rlimit limit = {1 << 20, 1 << 20};
    signal(SIGXFSZ, SIG_IGN);
    memset(bytes, 5, sizeof(bytes));
    REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    struct qk_io *io = open_plain("limited");
    CHECK_OK(io_write(io, 0, bytes, 4096, 0, NULL));
    CHECK_ERR(io_write(io, 1 << 20, bytes, 4096, 0, NULL), -ENOSPC);
    check_growth_fails(io, -ENOSPC, 4096);
    CHECK_ERR(io_write(io, 4096, bytes, sizeof(bytes) - 4096, 0, NULL), -ENOSPC);
    CHECK_OK(io_read(io, 0, back, 4096, NULL));
    CHECK_MEM(back, bytes, 4096);
    CHECK_OK(io_close(io, NULL));
}

static bool put_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    close(fd);
    return done;
}

/* A tmpfs that nobody else sees; without root, by being root of a user namespace of our own. */
static bool mount_small(const char *dir)
{
    char map[2][40];
    snprintf(map[0], sizeof(map[0]), "0 %u 1", getuid());
    snprintf(map[1], sizeof(map[1]), "0 %u 1", getgid());
    bool root = getuid() == 0;
    if (unshare(CLONE_NEWNS | (root ? 0 : CLONE_NEWUSER)) < 0)
        return false;
    if (!root &&
        !(put_text("/proc/self/setgroups", "deny") && put_text("/proc/self/uid_map", map[0]) &&
          put_text("/proc/self/gid_map", map[1])))
        return false;
    return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 && mkdir(dir, 0700) == 0 &&
           mount("tmpfs", dir, "tmpfs", 0, "size=2m") == 0;
}

static void full_disk(void)
{
    static uint8_t bytes[1 << 20], back[1 << 20];
    if (!mount_small("full")) {
        SKIP("no tmpfs of our own to fill");
        return;
    }
    memset(bytes, 9, sizeof(bytes));
    struct qk_io *io = open_plain("full/file");
    REQUIRE(io);
    CHECK_OK(io_write(io, 0, bytes, sizeof(bytes), 0, NULL));
    check_growth_fails(io, -ENOSPC, sizeof(bytes));
    int ret = 0;
    for (uint64_t i = 1; i < 4 && ret == 0; i++)
        ret = io_write(io, i << 20, bytes, sizeof(bytes), 0, NULL);
    CHECK_EQ(ret, -ENOSPC);
    CHECK_OK(io_read(io, 0, back, sizeof(back), NULL));
    CHECK_MEM(back, bytes, sizeof(bytes));
    CHECK_OK(io_zero(io, 0, sizeof(bytes), IO_ZERO_UNMAP, NULL));
    CHECK_OK(io_close(io, NULL));
}

/* Without the zeroing call (tmpfs) or any hole punching, zeroing still zeroes. */
static void test_zero_without_help(void)
{
    struct qk_io *io = open_plain("helpless");
    char back[8];
    CHECK_OK(io_write(io, 0, "abcdefgh", 8, 0, NULL));
    file_store(io)->no_zero_range = true;
    CHECK_OK(io_zero(io, 2, 2, 0, NULL));
    file_store(io)->no_punch_hole = true;
    CHECK_ERR(io_zero(io, 4, 2, 0, NULL), -ENOTSUP);
    CHECK_ERR(io_zero(io, 4, 2, IO_ZERO_UNMAP, NULL), -ENOTSUP);
    CHECK_ERR(io_discard(io, 4, 2, NULL), -ENOTSUP);
    CHECK_OK(io_read(io, 0, back, 8, NULL));
    CHECK_MEM(back, "ab\0\0efgh", 8);
    CHECK_OK(io_zero_or_write(io, 4, 2, 0, NULL));
    CHECK_OK(io_read(io, 0, back, 8, NULL));
    CHECK_MEM(back, "ab\0\0\0\0gh", 8);
    CHECK_OK(io_close(io, NULL));
}

/* ---- a block device ---- */

/* The device goes away with its last open descriptor. */
static int attach_loop(const char *file, char *name, size_t size)
{
    struct loop_config config = {.info.lo_flags = LO_FLAGS_AUTOCLEAR, .block_size = 512};
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), loop = -1;
    for (int tries = 0; control >= 0 && loop < 0 && tries < 10; tries++) {
        snprintf(name, size, "/dev/loop%d", ioctl(control, LOOP_CTL_GET_FREE));
        loop = open(name, O_RDWR | O_CLOEXEC);
        config.fd = (uint32_t)open(file, O_RDWR | O_CLOEXEC);
        if (loop >= 0 && ioctl(loop, LOOP_CONFIGURE, &config) < 0) {
            close(loop);
            loop = -1;
        }
        close((int)config.fd);
    }
    if (control >= 0)
        close(control);
    return loop;
}

static void check_device(const char *name, bool direct)
{
    static uint8_t back[4096], zeroes[4096];
    struct qk_io *io = open_with(name, (struct io_file_options){.direct = direct});
    struct qk_extent e;
    uint64_t size = 0;
    REQUIRE(io);
    CHECK_STR(io->ops->name, "host_device");
    CHECK(!io->can_grow && !io->zero_init);
    CHECK_OK(io_size(io, &size, NULL));
    CHECK_EQ(size, 1 << 20);
    memset(back, 7, sizeof(back));
    CHECK_OK(io_write(io, (1 << 20) - 4096, back, 4096, 0, NULL));
    CHECK_ERR(io_write(io, (1 << 20) - 4095, back, 4096, 0, NULL), -ENOSPC);
    CHECK_ERR(io_zero(io, (1 << 20) - 512, 1024, 0, NULL), -ENOSPC);
    CHECK_ERR(io_resize(io, 2 << 20, QK_PREALLOC_OFF, NULL), -ENOTSUP);
    CHECK_OK(io_write(io, 100, "hello", 5, 0, NULL));
    CHECK_OK(io_read(io, 98, back, 9, NULL));
    CHECK_MEM(back, "\0\0hello\0\0", 9);
    CHECK_OK(io_read(io, (1 << 20) - 2, back, 4, NULL));
    CHECK_MEM(back, "\7\7\0\0", 4);
    CHECK_OK(io_zero_or_write(io, (1 << 20) - 4096, 4096, direct ? IO_ZERO_UNMAP : 0, NULL));
    CHECK_OK(io_zero_or_write(io, 100, 5, 0, NULL));
    CHECK_OK(io_read(io, (1 << 20) - 4096, back, 4096, NULL));
    CHECK_MEM(back, zeroes, 4096);
    CHECK_OK(io_read(io, 0, back, 4096, NULL));
    CHECK_MEM(back, zeroes, 4096);
    CHECK_OK(io_discard(io, 4096, 8192, NULL));
    CHECK_OK(io_status(io, 0, UINT64_MAX, 0, &e, NULL));
    CHECK(e.len == 1 << 20 && e.flags & QK_EXTENT_DATA);
    CHECK_OK(io_flush(io, NULL));
    CHECK_OK(io_close(io, NULL));
}

static void test_device(void)
{
    char name[32];
    struct qk_io *io = open_plain("disk");
    CHECK_OK(io_resize(io, 1 << 20, QK_PREALLOC_OFF, NULL));
    CHECK_OK(io_close(io, NULL));
    int loop = attach_loop("disk", name, sizeof(name));
    if (loop < 0) {
        SKIP("no loop device");
        return;
    }
    check_device(name, false);
    check_device(name, true);
    close(loop);
}

int main(void)
{
    scratch_make();
    test_model();
    test_model_large_alignment();
    test_many_vectors();
    test_ranges();
    test_refused_kinds();
    test_create_keeps_content();
    test_read_only();
    test_neighbours();
    test_parallel_flushes();
    test_failed_flush();
    test_holes();
    test_prealloc();
    in_child(file_size_limit);
    in_child(full_disk);
    test_zero_without_help();
    test_device();
    return TEST_SUMMARY();
}
