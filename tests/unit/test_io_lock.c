/*
 * test_io_lock.c - the byte locks: which pairs of openers go together, between two of our stores
 * and between ours and running qemu-io/qemu-img processes ($QCOWKIT_ORACLE, /usr/bin), in both
 * directions; and that changing permissions gives up and takes what it should.
 */
#include "io/file.h"
#include "io_test.h"

#include <signal.h>

enum { R = IO_PERM_READ, W = IO_PERM_WRITE, Z = IO_PERM_RESIZE, ALL = IO_PERM_ALL };

/* The ways in which programs open an image, and the qemu-io arguments for the same. */
static const struct opener {
    const char *what;
    unsigned used, shared;
    bool writable, force_share;
    const char *args[3]; /* of qemu-io; NULL first: qemu-io has no such way */
} openers[] = {
    {"read-write", R | W | Z, ALL & ~(W | Z), true, false, {"-n", NULL}},
    {"read-only", R, ALL & ~(W | Z), false, false, {"-r", NULL}},
    {"force-share", R, ALL & ~(W | Z), false, true, {"-r", "-U", NULL}},
    {"info", 0, ALL & ~(W | Z), false, false, {NULL}},
};
enum { OPENERS = ARRAY_SIZE(openers) };

/* What the second opener is told while the first holds the image; NULL: it may come in. */
static const char *const verdicts[OPENERS][OPENERS] = {
    {"write", "shared \"write", NULL, "shared \"write"},
    {"write", NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL},
    {"write", NULL, NULL, NULL},
};

static int open_as(const struct opener *o, const char *name, struct qk_io **io,
                   struct qk_error *err)
{
    const struct io_file_options opts = {
        .writable = o->writable,
        .locking = true,
        .force_share = o->force_share,
        .used = o->used,
        .shared = o->shared,
    };
    return io_file_open(name, &opts, io, err);
}

static void expected_text(const char *verdict, char *out, size_t size)
{
    bool shared = strstr(verdict, "shared") != NULL;
    snprintf(out, size, "Failed to get %s\nIs another process using the image [image]?",
             shared ? "shared \"write\" lock" : "\"write\" lock");
}

static void check_verdict_at(int line, int ret, const struct qk_error *err, const char *verdict)
{
    char expected[200];
    if (!CHECK_EQ(ret, verdict ? -EAGAIN : 0))
        printf("    of line %d\n", line);
    if (!verdict)
        return;
    expected_text(verdict, expected, sizeof(expected));
    if (!CHECK_STR(err->text, expected))
        printf("    of line %d\n", line);
}

#define check_verdict(...) check_verdict_at(__LINE__, __VA_ARGS__)

static void test_ours_against_ours(void)
{
    for (size_t a = 0; a < OPENERS; a++) {
        for (size_t b = 0; b < OPENERS; b++) {
            struct qk_io *first = NULL, *second = NULL;
            struct qk_error err = {0};
            CHECK_OK(open_as(&openers[a], "image", &first, NULL));
            check_verdict(open_as(&openers[b], "image", &second, &err), &err, verdicts[a][b]);
            CHECK_OK(io_close(second, NULL));
            CHECK_OK(io_close(first, NULL));
        }
    }
}

/* ---- against QEMU ---- */

static const char *oracle(const char *tool)
{
    static char path[4096];
    const char *dir = getenv("QCOWKIT_ORACLE");
    snprintf(path, sizeof(path), "%s/%s", dir ? dir : "/usr/bin", tool);
    return access(path, X_OK) == 0 ? path : NULL;
}

struct process {
    pid_t pid;
    int in, out;
};

static struct process start(const char *const *argv)
{
    struct process p = {0};
    int to[2], from[2];
    if (pipe2(to, O_CLOEXEC) < 0 || pipe2(from, O_CLOEXEC) < 0)
        abort();
    p.pid = fork();
    if (p.pid == 0) {
        dup2(to[0], 0);
        dup2(from[1], 1);
        dup2(from[1], 2);
        execv(argv[0], (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    close(to[0]);
    close(from[1]);
    p.in = to[1];
    p.out = from[0];
    return p;
}

/* Reads until `until` has come or the other side closes. */
static void read_until(struct process *p, char *text, size_t size, const char *until)
{
    size_t len = 0;
    text[0] = '\0';
    while (len + 1 < size && !(until && strstr(text, until))) {
        ssize_t n = read(p->out, text + len, size - 1 - len);
        if (n <= 0)
            return;
        text[len += (size_t)n] = '\0';
    }
}

static int finish(struct process *p)
{
    int status = -1;
    close(p->in);
    close(p->out);
    waitpid(p->pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static struct process start_qemu_io(const struct opener *o)
{
    const char *argv[10] = {oracle("qemu-io"), "-f", "qcow2"};
    int argc = 3;
    for (int i = 0; o->args[i]; i++)
        argv[argc++] = o->args[i];
    argv[argc] = "image";
    return start(argv);
}

/* A qcow2 image in the place of the empty file: QEMU's raw driver shares what qcow2 does not. */
static bool make_image(void)
{
    char text[2000];
    if (!oracle("qemu-io") || !oracle("qemu-img"))
        return false;
    const char *const argv[] = {oracle("qemu-img"), "create", "-f", "qcow2", "image", "1M", NULL};
    struct process qemu = start(argv);
    read_until(&qemu, text, sizeof(text), NULL);
    return CHECK_EQ(finish(&qemu), 0);
}

/* QEMU holds the image, we come. The answer to a read shows that it has the image open. */
static void test_qemu_first(void)
{
    for (size_t a = 0; a < OPENERS; a++) {
        if (!openers[a].args[0])
            continue;
        char text[2000];
        struct process qemu = start_qemu_io(&openers[a]);
        CHECK_EQ(write(qemu.in, "read 0 512\n", 11), 11);
        read_until(&qemu, text, sizeof(text), "ops/sec");
        CHECK(strstr(text, "read 512/512") != NULL);
        for (size_t b = 0; b < OPENERS; b++) {
            struct qk_io *io = NULL;
            struct qk_error err = {0};
            check_verdict(open_as(&openers[b], "image", &io, &err), &err, verdicts[a][b]);
            CHECK_OK(io_close(io, NULL));
        }
        CHECK_EQ(finish(&qemu), 0);
    }
}

static void check_qemu_comes(const char *const *argv, const char *verdict)
{
    char text[4000], expected[200];
    struct process qemu = start(argv);
    close(qemu.in);
    qemu.in = -1;
    read_until(&qemu, text, sizeof(text), NULL);
    CHECK_EQ(finish(&qemu), verdict ? 1 : 0);
    if (verdict)
        expected_text(verdict, expected, sizeof(expected));
    if (!CHECK(verdict ? strstr(text, expected) != NULL : strstr(text, "lock") == NULL))
        printf("    %s: %s\n", verdict ? verdict : "no lock", text);
}

/* We hold the image, QEMU comes. */
static void test_qemu_second(void)
{
    for (size_t a = 0; a < OPENERS; a++) {
        struct qk_io *io = NULL;
        CHECK_OK(open_as(&openers[a], "image", &io, NULL));
        for (size_t b = 0; b < OPENERS; b++) {
            const char *argv[10] = {oracle("qemu-io"), "-f", "qcow2", "-c", "read 0 512"};
            int argc = 5;
            for (int i = 0; openers[b].args[i]; i++)
                argv[argc++] = openers[b].args[i];
            argv[argc] = "image";
            if (openers[b].args[0])
                check_qemu_comes(argv, verdicts[a][b]);
        }
        const char *const info[] = {oracle("qemu-img"), "info", "image", NULL};
        check_qemu_comes(info, verdicts[a][3]);
        const char *const create[] = {
            oracle("qemu-img"), "create", "-f", "qcow2", "image", "4k", NULL};
        check_qemu_comes(create, a == 2 ? NULL : "write");
        CHECK_OK(io_close(io, NULL));
    }
}

/* ---- changing permissions ---- */

static void test_set_perm(void)
{
    const struct opener *rw = &openers[0], *ro = &openers[1];
    struct qk_io *a = NULL, *b = NULL, *c = NULL;
    struct qk_error err = {0};
    struct io_file_options opts = {
        .writable = true, .locking = true, .used = ro->used, .shared = ro->shared};
    CHECK_OK(io_file_open("image", &opts, &a, NULL));
    CHECK_OK(io_file_open("image", &opts, &b, NULL));
    check_verdict(io_set_perm(a, rw->used, rw->shared, &err), &err, "write");
    /* the refused change has left nothing: a third reader comes in, and b can still change */
    CHECK_OK(open_as(ro, "image", &c, NULL));
    CHECK_OK(io_close(c, NULL));
    CHECK_OK(io_close(a, NULL));
    CHECK_OK(io_set_perm(b, rw->used, rw->shared, &err));
    check_verdict(open_as(ro, "image", &c, &err), &err, "shared \"write");
    CHECK_OK(io_set_perm(b, ro->used, ro->shared, &err));
    CHECK_OK(open_as(ro, "image", &c, NULL));
    CHECK_OK(io_close(c, NULL));
    CHECK_OK(io_set_perm(b, 0, IO_PERM_ALL, &err));
    CHECK_OK(open_as(rw, "image", &c, NULL));
    CHECK_ERR(io_set_perm(b, ro->used, ro->shared, &err), -EAGAIN);
    CHECK_OK(io_close(c, NULL));
    CHECK_OK(io_close(b, NULL));
}

/* Of all that start at once, never may two writers hold the image. */
static atomic_int holders, granted;

static void *grab(void *arg)
{
    (void)arg;
    for (int i = 0; i < 200; i++) {
        struct qk_io *io = NULL;
        if (open_as(&openers[0], "image", &io, NULL) < 0)
            continue;
        CHECK_EQ(atomic_fetch_add(&holders, 1), 0);
        atomic_fetch_add(&granted, 1);
        atomic_fetch_sub(&holders, 1);
        CHECK_OK(io_close(io, NULL));
    }
    return NULL;
}

static void test_race(void)
{
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, grab, NULL);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    CHECK(granted > 0);
}

static void test_no_locking(void)
{
    struct qk_io *a = NULL, *b = NULL;
    const struct io_file_options opts = {.writable = true, .used = ALL, .shared = 0};
    CHECK_OK(open_as(&openers[0], "image", &a, NULL));
    CHECK_OK(io_file_open("image", &opts, &b, NULL));
    CHECK_OK(io_set_perm(b, ALL, 0, NULL));
    CHECK_OK(io_close(b, NULL));
    CHECK_OK(io_close(a, NULL));
}

int main(void)
{
    scratch_make();
    signal(SIGPIPE, SIG_IGN);
    int fd = open("image", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, 1 << 20) < 0 || !file_lock_available(fd)) {
        SKIP("no open-file-description locks here");
        return TEST_SUMMARY();
    }
    close(fd);
    test_ours_against_ours();
    test_set_perm();
    test_race();
    test_no_locking();
    if (make_image()) {
        test_qemu_first();
        test_qemu_second();
    } else {
        SKIP("no qemu tools to lock out");
    }
    return TEST_SUMMARY();
}
