/*
 * model.h - what the random-operation tests share: a seeded generator, image shapes, and an open
 * disk beside the plain byte array that it must equal. Public API only. Failures print the shape
 * and the seed, so that a run can be repeated: test_model OPERATIONS SEED.
 */
#ifndef QK_TEST_MODEL_H
#define QK_TEST_MODEL_H

#include "qcowkit.h"
#include "test.h"

#include <unistd.h>

/* ---- generator: splitmix64, the same numbers everywhere ---- */

struct rng {
    uint64_t state;
};

static inline uint64_t rng_next(struct rng *rng)
{
    uint64_t z = rng->state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* 0 <= result < bound */
static inline uint64_t rng_below(struct rng *rng, uint64_t bound)
{
    return rng_next(rng) % bound;
}

static inline void rng_fill(struct rng *rng, uint8_t *buf, size_t len)
{
    uint64_t v = 0;

    for (size_t i = 0; i < len; i++) {
        if (i % 8 == 0)
            v = rng_next(rng);
        buf[i] = (uint8_t)(v >> (i % 8 * 8));
    }
}

/* Bytes that a compressor likes: some are random, most repeat. */
static inline void rng_fill_compressible(struct rng *rng, uint8_t *buf, size_t len)
{
    size_t fresh = 16 + rng_below(rng, len / 2);

    rng_fill(rng, buf, fresh);
    for (size_t i = fresh; i < len; i++)
        buf[i] = buf[i - 16];
}

/* ---- shapes ---- */

enum backing_kind { BACKING_NONE, BACKING_RAW, BACKING_QCOW2, BACKING_SHORTER, BACKING_LONGER };

struct shape {
    const char *create;     /* options beside size and backing file, comma-separated */
    uint32_t cluster_bytes; /* as in `create` */
    uint32_t clusters;      /* guest size; a ragged tail is added */
    enum backing_kind backing;
    const char *open; /* one open option, or NULL */
    bool v2;
};

/* The smallest thing that a discard makes read as zero: a cluster, or a subcluster. */
static inline uint64_t shape_unit(const struct shape *shape)
{
    return strstr(shape->create, "extended_l2=on") ? shape->cluster_bytes / 32
                                                   : shape->cluster_bytes;
}

/* A disk under test with its model. */
struct subject {
    const struct shape *shape;
    uint64_t seed;
    struct rng rng;
    char path[256], base[256];
    struct qk_disk *disk;
    uint8_t *model, *scratch; /* size bytes each */
    uint64_t size;
    _Atomic bool broken; /* a difference was found: the rest of the run would only repeat it */
};

static inline bool subject_ok(struct subject *s, bool held, const char *what,
                              const struct qk_error *err)
{
    atomic_fetch_add(held ? &test_passed : &test_failed, 1);
    if (held)
        return true;
    printf("failed: %s%s%s\n    shape %s, backing %d, seed %" PRIu64 "\n", what,
           err && err->code ? ": " : "", err ? err->text : "", s->shape->create,
           (int)s->shape->backing, s->seed);
    s->broken = true;
    return false;
}

/* Splits the comma list in `text` (changed) behind the `count` entries of list. */
static inline void add_options(char *text, const char **list, size_t count)
{
    for (char *save = NULL, *part = strtok_r(text, ",", &save); part;
         part = strtok_r(NULL, ",", &save))
        list[count++] = part;
    list[count] = NULL;
}

/* The secret "s" of encrypted shapes. */
static inline const struct qk_secrets *model_secrets(void)
{
    static struct qk_secrets *secrets;

    if (!secrets && qk_secrets_new(&secrets, NULL) == 0)
        qk_secrets_add(secrets, "s", "model", 5, NULL);
    return secrets;
}

static inline int create_image(const char *path, const char *format, uint64_t size,
                               const char *options, struct qk_error *err)
{
    char size_text[32], text[1024];
    const char *list[16] = {size_text};

    snprintf(size_text, sizeof(size_text), "size=%" PRIu64, size);
    snprintf(text, sizeof(text), "%s", options);
    add_options(text, list, 1);
    struct qk_create_context context = QK_CREATE_CONTEXT_INIT;
    context.secrets = model_secrets();
    return qk_create_with(path, format, list, &context, err);
}

/* The backing file: random bytes in most of it. Its bytes enter the model. */
static inline bool subject_make_base(struct subject *s)
{
    enum backing_kind kind = s->shape->backing;
    uint64_t size = kind == BACKING_SHORTER  ? s->size / 2 + 100
                    : kind == BACKING_LONGER ? s->size + s->size / 2
                                             : s->size;
    struct qk_open_options open = QK_OPEN_OPTIONS_INIT;
    struct qk_error err = {0};
    struct qk_disk *base = NULL;
    uint64_t from = size / 5;
    uint8_t *bytes = calloc(1, size);

    size &= ~UINT64_C(511);
    uint64_t len = size - from;
    open.flags = QK_OPEN_RDWR;
    open.format = kind == BACKING_RAW ? "raw" : "qcow2";
    rng_fill(&s->rng, bytes + from, len);
    bool done = create_image(s->base, open.format, size, "", &err) == 0 &&
                qk_disk_open(s->base, &open, &base, &err) == 0 &&
                qk_disk_write(base, from, bytes + from, len, 0, &err) == 0;
    if (qk_disk_close(base, done ? &err : NULL) < 0)
        done = false;
    memcpy(s->model, bytes, size < s->size ? size : s->size);
    free(bytes);
    return subject_ok(s, done, "make the backing file", &err);
}

static inline bool subject_open(struct subject *s)
{
    const char *options[3] = {NULL};
    size_t count = 0;
    struct qk_open_options open = QK_OPEN_OPTIONS_INIT;
    struct qk_error err = {0};

    open.flags = QK_OPEN_RDWR;
    open.format = "qcow2";
    if (s->shape->open)
        options[count++] = s->shape->open;
    if (strstr(s->shape->create, "encrypt."))
        options[count++] = "encrypt.key-secret=s";
    open.options = options;
    open.secrets = model_secrets();
    return subject_ok(s, qk_disk_open(s->path, &open, &s->disk, &err) == 0, "open", &err) &&
           subject_ok(s, qk_disk_size(s->disk) == s->size, "size after open", NULL);
}

static inline bool subject_close(struct subject *s)
{
    struct qk_error err = {0};
    int ret = qk_disk_close(s->disk, &err);

    s->disk = NULL;
    return subject_ok(s, ret == 0, "close", &err);
}

/* Creates and opens. The files stand in $TMPDIR under names of `tag`. */
static inline bool subject_start(struct subject *s, const struct shape *shape, const char *tag)
{
    static const char *const base_format[] = {"", "raw", "qcow2", "qcow2", "qcow2"};
    const char *dir = getenv("TMPDIR");
    char options[900];
    struct qk_error err = {0};

    s->shape = shape;
    s->rng.state = s->seed * 1000003 + shape->cluster_bytes;
    s->size = (uint64_t)shape->clusters * shape->cluster_bytes + 1536;
    s->model = calloc(1, 2 * s->size);
    s->scratch = calloc(1, 2 * s->size);
    snprintf(s->path, sizeof(s->path), "%s/model-%s.qcow2", dir ? dir : "/tmp", tag);
    snprintf(s->base, sizeof(s->base), "%s/model-%s.base", dir ? dir : "/tmp", tag);
    if (shape->backing != BACKING_NONE && !subject_make_base(s))
        return false;
    snprintf(options, sizeof(options), "%s", shape->create);
    if (shape->backing != BACKING_NONE)
        snprintf(options, sizeof(options), "%s,backing_file=%s,backing_fmt=%s", shape->create,
                 s->base, base_format[shape->backing]);
    return subject_ok(s, create_image(s->path, "qcow2", s->size, options, &err) == 0, "create",
                      &err) &&
           subject_open(s);
}

static inline void subject_end(struct subject *s)
{
    if (s->disk)
        subject_close(s);
    if (!s->broken) {
        unlink(s->path);
        unlink(s->base);
    } else {
        printf("    the image stays in %s\n", s->path);
    }
    free(s->model);
    free(s->scratch);
}

/*
 * Writes one whole cluster compressed. Where the image holds plain data already, that is refused
 * with EIO, as QEMU does, and nothing changes.
 */
static inline void subject_compress(struct subject *s, struct rng *rng, uint64_t off, uint64_t len)
{
    struct qk_error err = {0};
    uint8_t *bytes = malloc(s->shape->cluster_bytes);

    rng_fill_compressible(rng, bytes, len);
    int ret = qk_disk_write(s->disk, off, bytes, len, QK_WRITE_COMPRESSED, &err);
    if (ret == 0)
        memcpy(s->model + off, bytes, len);
    subject_ok(s, ret == 0 || ret == -EIO, "write compressed", &err);
    free(bytes);
}

/* The whole disk equals the model. */
static inline bool subject_compare(struct subject *s)
{
    struct qk_error err = {0};

    if (!subject_ok(s, qk_disk_read(s->disk, 0, s->scratch, s->size, &err) == 0, "read all", &err))
        return false;
    if (memcmp(s->scratch, s->model, s->size) == 0)
        return subject_ok(s, true, "", NULL);
    uint64_t at = 0;
    while (s->scratch[at] == s->model[at])
        at++;
    printf("first difference at byte %" PRIu64 " of %" PRIu64 ", cluster %" PRIu64 "\n", at,
           s->size, at / s->shape->cluster_bytes);
    return subject_ok(s, false, "content equals the model", NULL);
}

static inline void print_problem(void *opaque, const struct qk_problem *problem)
{
    (void)opaque;
    printf("    check: %s\n", problem->text);
}

/* A check of the closed image finds nothing, and no byte beyond the last used cluster. */
static inline bool subject_check(struct subject *s)
{
    struct qk_open_options open = QK_OPEN_OPTIONS_INIT;
    struct qk_check_options options = QK_CHECK_OPTIONS_INIT;
    struct qk_check_result result = QK_CHECK_RESULT_INIT;
    struct qk_error err = {0};
    struct qk_disk *disk = NULL;

    open.flags = QK_OPEN_CHECK;
    open.format = "qcow2";
    options.on_problem = print_problem;
    bool done = qk_disk_open(s->path, &open, &disk, &err) == 0 &&
                qk_disk_check(disk, &options, &result, &err) == 0;
    qk_disk_close(disk, NULL);
    return subject_ok(s, done, "check", &err) &&
           subject_ok(s, result.corruptions + result.leaks + result.check_errors == 0,
                      "check finds nothing", NULL);
}

#endif
