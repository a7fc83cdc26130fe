/* verify.c - see verify.h. Three judges: our check, fsck.c, and for some states qemu-img. */
#include "verify.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/check.h"
#include "fsck.h"

#include <fcntl.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

struct verification {
    struct qk_io *mem;
    const struct verify_options *opts;
    char *text; /* MODEL_TEXT bytes */
};

static bool __attribute__((format(printf, 2, 3))) no(struct verification *v, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(v->text, MODEL_TEXT, fmt, args);
    va_end(args);
    return false;
}

static struct image *open_image(struct verification *v, bool writable)
{
    const struct image_options opts = {
        .writable = writable,
        .for_check = true,
        .data = v->opts->data,
        .l2_cache_bytes = 64 << 10,
        .refcount_cache_bytes = 64 << 10,
        .lazy_refcounts = -1,
        .overlap = OVERLAP_CACHED,
        .secret = &workload_secret,
    };
    struct image *img = NULL;
    struct qk_error err = {0};
    if (image_open(v->mem, &opts, &img, &err) < 0) {
        no(v, "does not open: %s", err.text);
        return NULL;
    }
    if (v->opts->backing)
        image_set_backing(img, v->opts->backing);
    return img;
}

static void keep_first(void *opaque, const struct qk_problem *problem)
{
    char *text = opaque;
    if (!*text && problem->severity != QK_SEVERITY_LEAK)
        snprintf(text, 200, "%s", problem->text);
}

/* Our check: nothing but leaks. */
static bool check(struct verification *v, struct image *img, unsigned fix, const char *when)
{
    char first[200] = "";
    const struct qk_check_options opts = {.struct_size = sizeof(opts),
                                          .fix = fix,
                                          .threads = 1,
                                          .on_problem = keep_first,
                                          .opaque = first};
    struct qk_check_result result = QK_CHECK_RESULT_INIT;
    struct qk_error err = {0};
    int ret = check_image(img, &opts, &result, &err);
    if (ret < 0)
        return no(v, "%s: check ends with: %s", when, err.text);
    if (result.corruptions || result.check_errors)
        return no(v, "%s: check finds %llu corruptions, %llu errors: %s", when,
                  (unsigned long long)result.corruptions, (unsigned long long)result.check_errors,
                  first);
    return true;
}

/* The second judge. */
static bool second_check(struct verification *v, const char *when)
{
    size_t len = 0;
    const uint8_t *bytes = io_mem_data(v->mem, &len);
    struct fsck fsck;
    if (!fsck_run(bytes, len, &fsck))
        return no(v, "%s: no longer an image", when);
    if (fsck.corruptions)
        return no(v, "%s: %llu corruptions: %s", when, (unsigned long long)fsck.corruptions,
                  fsck.text);
    return true;
}

/* A dirty or damaged image is repaired in its place; then its bit must be gone for fsck to count.
 */
static bool repair_it(struct verification *v)
{
    struct image *img = open_image(v, true);
    if (!img)
        return false;
    struct qk_error err = {0};
    if (!check(v, img, QK_FIX_LEAKS | QK_FIX_ERRORS, "repair")) {
        image_abandon(img);
        return false;
    }
    if (image_set_incompatible(img, 0, INCOMPAT_DIRTY, &err) < 0 || image_close(img, &err) < 0)
        return no(v, "closing after the repair: %s", err.text);
    return true;
}

/* A raw data file is the disk. */
static bool raw_is_the_disk(struct verification *v, struct image *img)
{
    uint64_t size = image_size(img);
    if (!image_data_file_is_raw(img) || v->opts->unborn)
        return true;
    CLEANUP_FREE uint8_t *disk = malloc(size + 1), *raw = malloc(size + 1);
    struct qk_error err = {0};
    if (!disk || !raw)
        abort();
    if (image_readv(img, guest_off(0), &(struct iovec){disk, size}, 1, &err) < 0 ||
        io_read(v->opts->data, 0, raw, size, &err) < 0)
        return no(v, "reading disk and data file: %s", err.text);
    uint64_t at = 0;
    while (at < size && disk[at] == raw[at])
        at++;
    return at == size ||
           no(v, "the raw data file differs from the disk at %llu", (unsigned long long)at);
}

static bool look(struct verification *v, const char *when)
{
    if (!second_check(v, when))
        return false;
    struct image *img = open_image(v, false);
    if (!img)
        return false;
    bool good =
        check(v, img, 0, when) &&
        (v->opts->unborn || recorder_verify(img, v->opts->model, v->opts->at, v->text) == 0) &&
        raw_is_the_disk(v, img);
    image_abandon(img);
    return good &&
           (v->opts->unborn || recorder_verify_snapshots(v->mem, v->opts->backing, v->opts->model,
                                                         v->opts->at, v->text));
}

/* ---- what happens next ---- */

static bool write_more(struct verification *v, struct image *img, uint8_t *disk, uint64_t size)
{
    struct qk_error err = {0};
    for (uint32_t i = 0; i < 12; i++) {
        uint64_t off = round_down(size / 12 * i + i * 700, SECTOR);
        uint64_t len = off < size ? min_u64(1024, size - off) : 0;
        model_pattern(0x10000 + i, off, disk + off, len);
        if (image_writev(img, guest_off(off), &(struct iovec){disk + off, len}, 1, 0, &err) < 0)
            return no(v, "writing again: %s", err.text);
    }
    return true;
}

static bool same(struct verification *v, const uint8_t *disk, uint64_t size)
{
    CLEANUP_FREE uint8_t *now = malloc(size + 1);
    struct image *img = open_image(v, false);
    if (!img || !now)
        return false;
    int ret = image_readv(img, guest_off(0), &(struct iovec){now, size}, 1, NULL);
    image_abandon(img);
    if (ret < 0 || memcmp(now, disk, size) != 0)
        return no(v, "after more writes the disk has wrong content");
    return second_check(v, "after more writes");
}

/* Writes to the image as if nothing had happened: what the tables call free is overwritten now. */
static bool go_on(struct verification *v)
{
    struct image *img = open_image(v, true);
    struct qk_error err = {0};
    if (!img)
        return false;
    uint64_t size = image_size(img);
    CLEANUP_FREE uint8_t *disk = malloc(size + 1);
    if (!disk || image_readv(img, guest_off(0), &(struct iovec){disk, size}, 1, &err) < 0 ||
        !write_more(v, img, disk, size)) {
        image_abandon(img);
        return false;
    }
    if (image_close(img, &err) < 0)
        return no(v, "closing after more writes: %s", err.text);
    return same(v, disk, size);
}

/* ---- the third judge ---- */

extern char **environ;

static int run_quietly(const char *const *argv)
{
    posix_spawn_file_actions_t quiet;
    pid_t pid;
    int status = -1;
    posix_spawn_file_actions_init(&quiet);
    posix_spawn_file_actions_addopen(&quiet, 1, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&quiet, 2, "/dev/null", O_WRONLY, 0);
    int ret = posix_spawn(&pid, argv[0], &quiet, NULL, (char *const *)(uintptr_t)argv, environ);
    posix_spawn_file_actions_destroy(&quiet);
    if (ret == 0)
        waitpid(pid, &status, 0);
    return ret == 0 && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Exit status 3 is leaks. */
static bool ask_oracle(struct verification *v)
{
    char name[] = "/tmp/qcowkit-crash-XXXXXX";
    size_t len = 0;
    const uint8_t *bytes = io_mem_data(v->mem, &len);
    if (v->opts->data) /* qemu-img looks for the file itself */
        return true;
    int fd = mkstemp(name);
    bool written = fd >= 0 && write(fd, bytes, len) == (ssize_t)len;
    close(fd);
    char image[sizeof(name) + 64], secret[64];
    snprintf(secret, sizeof(secret), "secret,id=s,data=%.*s", (int)workload_secret.len,
             (const char *)workload_secret.data);
    snprintf(image, sizeof(image), "driver=qcow2,encrypt.key-secret=s,file.filename=%s", name);
    const char *const argv[] = {v->opts->oracle, "check",        "-q",  "--object",
                                secret,          "--image-opts", image, NULL};
    int status = written ? run_quietly(argv) : -1;
    unlink(name);
    return status == 0 || status == 3 || no(v, "qemu-img check exits with %d", status);
}

bool verify_image(struct qk_io *mem, const struct verify_options *opts, char text[MODEL_TEXT])
{
    struct verification v = {mem, opts, text};
    size_t len = 0;
    const uint8_t *bytes = io_mem_data(mem, &len);
    struct fsck fsck;
    if (!fsck_run(bytes, len, &fsck))
        return opts->unborn || no(&v, "not an image");
    bool repair = fsck.dirty || opts->damaged;
    if (repair && !repair_it(&v))
        return false;
    if (!look(&v, repair ? "after the repair" : "after the crash"))
        return false;
    if (opts->oracle && !ask_oracle(&v))
        return false;
    return !opts->go_on || go_on(&v);
}
