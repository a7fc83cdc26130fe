/*
 * driver.c - runs the fuzz target as a plain test: each corpus file as it is, then seeded mutations
 * of it that aim at what the format reads: header fields, table entries, and plain bytes. Each
 * input runs in a child, so that a crash, a hang or a greedy allocation is one failure with a name
 * to repeat it by: fuzz_driver CORPUS MUTATIONS [FILE NUMBER].
 */
#include "base/bytes.h"
#include "fuzz.h"

#include <dirent.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

enum { MAX_FILE = 1 << 20, HANG_SECONDS = 120, MEMORY_BYTES = 512 << 20 };

struct input {
    char name[300];
    uint8_t *bytes;
    size_t size;
};

static uint64_t next(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Values that have broken readers of this format: edges, other structures' places, flags. */
static uint64_t nasty(uint64_t *state, const struct input *in)
{
    const uint64_t cluster = UINT64_C(1) << (load_be32(in->bytes + 20) & 31);
    const uint64_t values[] = {
        0,
        1,
        2,
        3,
        UINT64_MAX,
        UINT64_C(1) << 63,
        UINT64_C(1) << 62,
        UINT64_C(3) << 62,
        cluster,
        2 * cluster,
        cluster - 1,
        cluster | UINT64_C(1) << 63,
        in->size,
        in->size / cluster * cluster,
        UINT64_C(0x7fffffff),
        UINT64_C(1) << 32,
        load_be64(in->bytes + 40),
        load_be64(in->bytes + 48),
        load_be64(in->bytes + 64),
        (UINT64_C(1) << 56) - cluster,
        INT64_MAX,
        INT64_MAX - 511,
        next(state) % in->size,
        next(state),
        next(state) % in->size / cluster * cluster | UINT64_C(1) << 63,
    };

    return values[next(state) % (sizeof(values) / sizeof(values[0]))];
}

/* The bitmap directory that a header extension names, or a table that it names; 0: there is none.
 */
static size_t bitmap_place(uint64_t *state, const struct input *in)
{
    size_t at = load_be32(in->bytes + 4) >= 3 ? load_be32(in->bytes + 100) : 72;
    uint64_t off = 0;

    while (at + 32 <= in->size && load_be32(in->bytes + at) && !off) {
        if (load_be32(in->bytes + at) == UINT32_C(0x23852875))
            off = load_be64(in->bytes + at + 24);
        at += 8 + (load_be32(in->bytes + at + 4) + UINT64_C(7)) / 8 * 8;
    }
    if (off >= in->size || in->size - off < 64)
        return 0;
    if (next(state) % 2) /* the table of the first bitmap */
        off = load_be64(in->bytes + off);
    return off < in->size ? (size_t)off + next(state) % 64 : 0;
}

/* A place to change: the header, an entry of a table that the header names, or anywhere. */
static size_t place(uint64_t *state, const struct input *in)
{
    static const size_t tables[] = {40, 48, 64}; /* L1, refcount table, snapshots */
    uint64_t off = next(state) % in->size;
    uint64_t table;
    size_t bitmap = next(state) % 3 ? 0 : bitmap_place(state, in);

    if (bitmap)
        return bitmap;
    switch (next(state) % 6) {
    case 0:
        return next(state) % 104;
    case 1:
        return 104 + next(state) % 200;
    case 2:
    case 3:
    case 4:
        table = load_be64(in->bytes + tables[next(state) % 3]);
        if (table < in->size && next(state) % 2) /* one step further: an L2 table, a block */
            table = load_be64(in->bytes + (table > in->size - 8 ? 0 : table)) &
                    UINT64_C(0x00fffffffffffe00);
        if (table < in->size)
            off = table + next(state) % 8 * 8;
        break;
    default:
        break;
    }
    return off;
}

static void mutate(uint64_t seed, struct input *in)
{
    uint64_t state = seed * 77777 + 12345;
    unsigned count = 1 + (unsigned)(next(&state) % 3);

    for (unsigned i = 0; i < count; i++) {
        size_t at = place(&state, in);
        unsigned width = 1u << next(&state) % 4; /* 1, 2, 4, 8 bytes */
        uint64_t value = nasty(&state, in);
        at -= at % width;
        if (at + width > in->size)
            continue;
        if (next(&state) % 4 == 0) {
            in->bytes[at] ^= (uint8_t)(1u << next(&state) % 8);
            continue;
        }
        for (unsigned b = 0; b < width; b++)
            in->bytes[at + b] = (uint8_t)(value >> 8 * (width - 1 - b));
    }
    if (next(&state) % 16 == 0)
        in->size = 512 + next(&state) % in->size;
}

/* Runs mutations [*at, count) of in; 0 is the file itself. *at, shared with the parent, names the
 * one that is running. */
static void run_child(const struct input *in, unsigned *at, unsigned count)
{
    struct input copy = *in;

    copy.bytes = malloc(MAX_FILE + 1024);
    for (; *at < count; ++*at) {
        memcpy(copy.bytes, in->bytes, in->size);
        copy.size = in->size;
        if (*at > 0)
            mutate(*at, &copy);
        if (copy.size > in->size)
            copy.size = in->size;
        alarm(HANG_SECONDS);
        LLVMFuzzerTestOneInput(copy.bytes, copy.size);
    }
    free(copy.bytes);
}

static void limit_memory(void)
{
#ifndef SANITIZED
    const struct rlimit limit = {MEMORY_BYTES, MEMORY_BYTES};
    setrlimit(RLIMIT_AS, &limit);
#endif
}

/* Returns the number of inputs that broke something. */
static unsigned run_input(const struct input *in, unsigned *at, unsigned first, unsigned count)
{
    unsigned failed = 0;

    for (*at = first; *at < count; ++*at) {
        int status = 0;
        fflush(NULL);
        pid_t pid = fork();
        if (pid == 0) {
            limit_memory();
            run_child(in, at, count);
            exit(0);
        }
        waitpid(pid, &status, 0);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
            break;
        printf("failed: %s, mutation %u: %s %d\n", in->name, *at,
               WIFSIGNALED(status) ? "signal" : "exit status",
               WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
        if (++failed == 20)
            break;
    }
    return failed;
}

static bool load(const char *folder, const char *name, struct input *in)
{
    char path[600];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    snprintf(in->name, sizeof(in->name), "%s", name);
    FILE *f = fopen(path, "rb");
    if (!f)
        return false;
    in->bytes = calloc(1, MAX_FILE);
    in->size = fread(in->bytes, 1, MAX_FILE, f);
    fclose(f);
    return true;
}

int main(int argc, char **argv)
{
    const char *folder = argc > 1 ? argv[1] : ".";
    unsigned count = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) + 1 : 1;
    const char *only = argc > 3 ? argv[3] : NULL;
    unsigned first = argc > 4 ? (unsigned)strtoul(argv[4], NULL, 10) : 0;
    unsigned *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    unsigned passed = 0, failed = 0;
    struct dirent **list = NULL;
    int files = scandir(folder, &list, NULL, alphasort);

    for (int i = 0; i < files; i++) {
        struct input in = {0};
        if (list[i]->d_name[0] != '.' && (!only || strcmp(only, list[i]->d_name) == 0) &&
            load(folder, list[i]->d_name, &in)) {
            unsigned end = argc > 4 ? first + 1 : count;
            unsigned bad = run_input(&in, at, first, end);
            failed += bad;
            passed += end - first - bad;
            free(in.bytes);
        }
        free(list[i]);
    }
    free(list);
    printf("%u passed, %u failed\n", passed, passed ? failed : failed + 1);
    return passed && !failed ? EXIT_SUCCESS : EXIT_FAILURE;
}
