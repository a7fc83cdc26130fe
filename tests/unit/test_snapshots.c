/*
 * test_snapshots.c - entries of the snapshot table as bytes; then random writes and snapshots
 * against a model, at every refcount width and several cluster sizes, after each step a check that
 * finds nothing at all; what deleting frees, to the cluster; refusals that change nothing; deleting
 * where nothing is free.
 */
#include "base/bytes.h"
#include "check/check.h"
#include "image/image_int.h"
#include "image/snapshots.h"
#include "test.h"

enum { KIB = 1024, SNAPSHOTS_MAX = 6 };

static uint64_t rng_state = UINT64_C(0x9e3779b97f4a7c15);

static uint32_t below(uint32_t n)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33) % n;
}

/* ---- bytes ---- */

static void round_trip(uint32_t extra_bytes, uint32_t version, bool same)
{
    uint8_t bytes[2048] = {0}, again[2048];
    const struct snapshot_defaults defaults = {version, 1234 * 512};
    struct snapshot s;
    size_t used;
    store_be64(bytes, 0x123400);
    store_be32(bytes + 8, 77);
    store_be16(bytes + 12, 2);
    store_be16(bytes + 14, 5);
    store_be32(bytes + 16, 11);
    store_be32(bytes + 20, 12);
    store_be64(bytes + 24, 13);
    store_be32(bytes + 32, 14);
    store_be32(bytes + 36, extra_bytes);
    for (uint32_t i = 0; i < extra_bytes; i++)
        bytes[40 + i] = (uint8_t)(i * 7 + 1);
    memcpy(bytes + 40 + extra_bytes, "42named", 7);
    size_t len = (47 + extra_bytes + 7) / 8 * 8;
    if (!CHECK_OK(snapshot_decode(bytes, sizeof(bytes), &defaults, &s, &used, NULL)))
        return;
    CHECK_EQ(used, len);
    CHECK_STR(s.id, "42");
    CHECK_STR(s.name, "named");
    CHECK_EQ(s.disk_bytes, extra_bytes >= 16 ? load_be64(bytes + 48) : 1234 * 512);
    CHECK(s.vm_state_bytes == (extra_bytes >= 8 ? load_be64(bytes + 40) : 14));
    memset(again, 0xee, sizeof(again));
    snapshot_encode(&s, version, again);
    if (same) {
        CHECK_EQ(snapshot_bytes(&s, version), len);
        CHECK_MEM(again, bytes, len);
    } else {
        CHECK_EQ(load_be32(again + 36), SNAPSHOT_EXTRA_KNOWN_BYTES);
        CHECK_MEM(again + 40, bytes + 40, extra_bytes);
        CHECK_EQ(load_be64(again + 48), 1234 * 512);
        CHECK_MEM(again + 64, "42named", 7);
    }
    snapshot_free(&s);
    for (size_t cut = 0; cut < 47 + extra_bytes; cut++)
        CHECK_EQ(snapshot_decode(bytes, cut, &defaults, &s, &used, NULL), -EINVAL);
}

static void test_bytes(void)
{
    static const uint32_t extras[] = {16, 24, 25, 32, 100, 1024};
    for (size_t i = 0; i < ARRAY_SIZE(extras); i++) {
        round_trip(extras[i], 2, true);
        round_trip(extras[i], 3, true);
    }
    round_trip(0, 2, true);
    round_trip(8, 2, true);
    round_trip(0, 3, false);
    round_trip(8, 3, false);
    uint8_t large[2048] = {0};
    struct snapshot s;
    size_t used;
    store_be32(large + 36, 1025);
    CHECK_EQ(
        snapshot_decode(large, sizeof(large), &(struct snapshot_defaults){3, 0}, &s, &used, NULL),
        -EINVAL);
}

/* ---- an image in memory, and what it should hold ---- */

struct kept {
    char name[16];
    uint8_t *bytes;
};

struct world {
    struct qk_io *io;
    struct image *img;
    uint64_t size;
    uint8_t *disk;
    struct kept kept[SNAPSHOTS_MAX];
    unsigned count, named;
    const char *what; /* for failures */
};

static struct image *open_it(struct world *w, const struct snapshot_key *key)
{
    const struct image_options opts = {.writable = !key,
                                       .lazy_refcounts = -1,
                                       .overlap = OVERLAP_ALL,
                                       .snapshot = key,
                                       .l2_cache_bytes = 64 * KIB,
                                       .refcount_cache_bytes = 64 * KIB,
                                       .refcount_window_bytes = below(2) ? 512 : 0};
    struct image *img = NULL;
    struct qk_error err = {0};
    if (image_open(w->io, &opts, &img, &err) < 0)
        printf("    opening: %s\n", err.text);
    return img;
}

static bool begin(struct world *w, const struct create_params *p, const char *what)
{
    *w = (struct world){.size = p->size_bytes, .disk = calloc(1, p->size_bytes), .what = what};
    return CHECK_OK(io_mem_open(NULL, 0, 0, &w->io, NULL)) &&
           CHECK_OK(image_create(w->io, p, NULL)) && CHECK((w->img = open_it(w, NULL)) != NULL);
}

static void end(struct world *w)
{
    if (w->img)
        CHECK_OK(image_close(w->img, NULL));
    for (unsigned i = 0; i < w->count; i++)
        free(w->kept[i].bytes);
    free(w->disk);
    io_close(w->io, NULL);
}

static bool shows(struct image *img, const uint8_t *bytes, uint64_t size)
{
    uint8_t *now = malloc(size + 1);
    bool same = image_size(img) == size &&
                image_readv(img, guest_off(0), &(struct iovec){now, size}, 1, NULL) == 0 &&
                memcmp(now, bytes, size) == 0;
    free(now);
    return same;
}

static void say_first(void *opaque, const struct qk_problem *p)
{
    if (!(*(unsigned *)opaque)++)
        printf("    %s\n", p->text);
}

static void check_leaks(struct world *w, uint64_t leaks)
{
    unsigned found = 0;
    struct qk_check_options opts = QK_CHECK_OPTIONS_INIT;
    struct qk_check_result result = QK_CHECK_RESULT_INIT;
    opts.on_problem = say_first;
    opts.opaque = &found;
    opts.threads = 1;
    struct image *img = NULL;
    const struct image_options io = {.for_check = true, .lazy_refcounts = -1};
    if (!CHECK_OK(image_open(w->io, &io, &img, NULL)))
        return;
    CHECK_OK(check_image(img, &opts, &result, NULL));
    image_abandon(img);
    if (!CHECK(!result.corruptions && result.leaks == leaks && !result.check_errors))
        printf("    %s: %u snapshots\n", w->what, w->count);
}

/* Not even leaks. */
static void check_clean(struct world *w)
{
    check_leaks(w, 0);
}

static void verify(struct world *w)
{
    CHECK_OK(image_close(w->img, NULL));
    check_clean(w);
    for (unsigned i = 0; i < w->count; i++) {
        const struct snapshot_key key = {.name = w->kept[i].name};
        struct image *img = open_it(w, &key);
        if (!CHECK(img && shows(img, w->kept[i].bytes, w->size)))
            printf("    %s: snapshot %s\n", w->what, w->kept[i].name);
        if (img)
            image_abandon(img);
    }
    w->img = open_it(w, NULL);
    CHECK(w->img && shows(w->img, w->disk, w->size));
}

/* ---- steps ---- */

static void write_at(struct world *w, uint64_t off, uint64_t len, uint8_t byte)
{
    memset(w->disk + off, byte, len);
    CHECK_OK(image_writev(w->img, guest_off(off), &(struct iovec){w->disk + off, len}, 1, 0, NULL));
}

static void change(struct world *w)
{
    uint64_t off = below((uint32_t)w->size / 512) * UINT64_C(512);
    uint64_t len = min_u64(512 * (uint64_t)(1 + below(200)), w->size - off);
    if (below(5)) {
        write_at(w, off, len, (uint8_t)(1 + below(255)));
        return;
    }
    memset(w->disk + off, 0, len);
    CHECK_OK(image_zero(w->img, guest_off(off), len, IO_ZERO_UNMAP, NULL));
}

static int take(struct world *w)
{
    struct kept *k = &w->kept[w->count];
    snprintf(k->name, sizeof(k->name), "n%u", w->named++);
    const struct snapshot_params params = {.name = k->name};
    int ret = image_snapshot_create(w->img, &params, NULL);
    if (ret < 0)
        return ret;
    k->bytes = malloc(w->size);
    memcpy(k->bytes, w->disk, w->size);
    w->count++;
    return 0;
}

static uint64_t used_clusters(struct world *w)
{
    struct cluster_run all = {0, w->img->end_clusters, false};
    struct cluster_run_vec zero = {0};
    uint64_t used = all.count;
    CHECK_OK(image_writeback(w->img, true, NULL));
    pthread_mutex_lock(&w->img->alloc_lock);
    CHECK_OK(refcount_zero_runs(w->img, all, &zero, NULL));
    pthread_mutex_unlock(&w->img->alloc_lock);
    for (size_t i = 0; i < zero.len; i++)
        used -= zero.ptr[i].count;
    cluster_run_vec_free(&zero);
    return used << w->img->g.cluster_bits;
}

static uint64_t table_bytes(struct world *w)
{
    struct snapshot_vec list;
    uint64_t bytes = 0;
    CHECK_OK(image_snapshots(w->img, &list, NULL));
    for (size_t i = 0; i < list.len; i++)
        bytes += snapshot_entry_bytes(&list.ptr[i].fixed);
    snapshots_free_all(&list);
    return round_up(bytes, w->img->g.cluster_bytes);
}

/* What was foretold is freed, beside the clusters of the table of snapshots. */
static void drop(struct world *w, unsigned i)
{
    const struct snapshot_key key = {.name = w->kept[i].name};
    struct snapshot_vec list;
    uint64_t foretold = 0;
    CHECK_OK(image_snapshots(w->img, &list, NULL));
    int64_t at = snapshots_find(&list, &key);
    if (CHECK(at >= 0))
        CHECK_OK(image_snapshot_freed(w->img, &list.ptr[at], &foretold, NULL));
    snapshots_free_all(&list);
    uint64_t before = used_clusters(w) - table_bytes(w);
    CHECK_OK(image_snapshot_delete(w->img, &key, NULL));
    if (!CHECK_EQ(before - (used_clusters(w) - table_bytes(w)), foretold))
        printf("    %s\n", w->what);
    free(w->kept[i].bytes);
    w->kept[i] = w->kept[--w->count];
}

static void apply(struct world *w, unsigned i)
{
    const struct snapshot_key key = {.name = w->kept[i].name};
    int ret = image_snapshot_apply(w->img, &key, NULL);
    if (ret == -ERANGE)
        return;
    if (CHECK_OK(ret))
        memcpy(w->disk, w->kept[i].bytes, w->size);
}

static void snapshot_step(struct world *w)
{
    unsigned i = w->count ? below(w->count) : 0;
    if (w->count < SNAPSHOTS_MAX && below(2)) {
        int ret = take(w);
        CHECK(ret == 0 || ret == -ERANGE);
    } else if (w->count && below(2)) {
        drop(w, i);
    } else if (w->count) {
        apply(w, i);
    }
}

static void test_model(uint32_t version, uint32_t cluster_bits, uint32_t order, bool extended)
{
    char what[80];
    struct world w;
    const struct create_params p = {.size_bytes = (UINT64_C(40) << cluster_bits) + 512 * 7,
                                    .version = version,
                                    .cluster_bits = cluster_bits,
                                    .refcount_order = order,
                                    .extended_l2 = extended};
    snprintf(what, sizeof(what), "version %u, cluster bits %u, refcount order %u%s", version,
             cluster_bits, order, extended ? ", extended" : "");
    if (!begin(&w, &p, what))
        return;
    for (unsigned step = 0; step < 24; step++) {
        for (uint32_t n = below(5); n; n--)
            change(&w);
        snapshot_step(&w);
        if (step % 2)
            verify(&w);
        if (!w.img)
            break;
    }
    end(&w);
}

/* ---- refusals ---- */

static uint8_t *copy_file(struct world *w, size_t *len)
{
    const uint8_t *bytes = io_mem_data(w->io, len);
    uint8_t *copy = malloc(*len);
    memcpy(copy, bytes, *len);
    return copy;
}

static void expect_untouched(struct world *w, const uint8_t *before, size_t before_len)
{
    size_t len;
    const uint8_t *now = io_mem_data(w->io, &len);
    CHECK_EQ(len, before_len);
    CHECK_MEM(now, before, before_len < len ? before_len : len);
}

/* Snapshots until a refcount is at its limit: the next one is refused, and says what would do. */
static void test_full_refcounts(uint32_t order)
{
    struct world w;
    const struct create_params p = {
        .size_bytes = 64 * KIB, .version = 3, .cluster_bits = 12, .refcount_order = order};
    struct qk_error err = {0};
    char width[40];
    size_t len;
    if (!begin(&w, &p, "full refcounts"))
        return;
    write_at(&w, 0, 8 * KIB, 1);
    for (unsigned i = 0; i < (1u << (1u << order)) - 2; i++) {
        if (!CHECK_OK(image_snapshot_create(w.img, &(struct snapshot_params){.name = "x"}, NULL)))
            break;
    }
    CHECK_OK(image_writeback(w.img, true, NULL));
    CHECK_OK(image_writeback(w.img, true, NULL));
    uint8_t *before = copy_file(&w, &len);
    const struct snapshot_params params = {.name = "one too many"};
    CHECK_EQ(image_snapshot_create(w.img, &params, &err), -ERANGE);
    snprintf(width, sizeof(width), "refcount_bits=%u", 2u << order);
    if (!CHECK(strstr(err.text, width) != NULL))
        printf("    %s\n", err.text);
    expect_untouched(&w, before, len);
    free(before);
    CHECK(shows(w.img, w.disk, w.size));
    write_at(&w, 4 * KIB, 4 * KIB, 2);
    CHECK_OK(image_close(w.img, NULL));
    w.img = NULL;
    check_clean(&w);
    end(&w);
}

/* A count that a crash has left too high does not hide that a table is the disk's alone. */
static void test_leaked_table(void)
{
    struct world w;
    if (!begin(&w,
               &(struct create_params){
                   .size_bytes = 64 * KIB, .version = 3, .cluster_bits = 12, .refcount_order = 4},
               "leaked table"))
        return;
    write_at(&w, 0, 32 * KIB, 1);
    CHECK_OK(take(&w));
    struct cluster_run table = {l1_entry_host(w.img->l1[0]) >> 12, 1, false};
    pthread_mutex_lock(&w.img->alloc_lock);
    CHECK_OK(refcount_add(w.img, table, 1, NULL));
    pthread_mutex_unlock(&w.img->alloc_lock);
    const struct snapshot_key key = {.name = w.kept[0].name};
    CHECK_OK(image_snapshot_delete(w.img, &key, NULL));
    CHECK_OK(image_close(w.img, NULL));
    check_leaks(&w, 1);
    w.img = open_it(&w, NULL);
    CHECK(w.img && shows(w.img, w.disk, w.size));
    end(&w);
}

static void test_names(void)
{
    struct world w;
    const struct create_params p = {
        .size_bytes = 64 * KIB, .version = 3, .cluster_bits = 9, .refcount_order = 4};
    char *name = calloc(1, SNAPSHOT_TEXT_MAX + 2);
    if (!begin(&w, &p, "names"))
        return;
    memset(name, 'n', SNAPSHOT_TEXT_MAX + 1);
    CHECK_EQ(image_snapshot_create(w.img, &(struct snapshot_params){.name = name}, NULL), -EINVAL);
    name[SNAPSHOT_TEXT_MAX] = '\0';
    CHECK_OK(image_snapshot_create(w.img, &(struct snapshot_params){.name = name}, NULL));
    CHECK_OK(image_snapshot_create(w.img, &(struct snapshot_params){.name = ""}, NULL));
    const struct snapshot_key second = {.id = "2"}, none = {.id = "2", .name = name};
    CHECK_EQ(image_snapshot_delete(w.img, &none, NULL), -ENOENT);
    CHECK_OK(image_snapshot_rename(w.img, &second, "1", NULL));
    struct snapshot_vec list;
    CHECK_OK(image_snapshots(w.img, &list, NULL));
    CHECK_EQ(list.len, 2);
    /* A text is an id before it is a name. */
    CHECK_EQ(snapshots_find(&list, &(struct snapshot_key){.either = "1"}), 0);
    CHECK_EQ(snapshots_find(&list, &(struct snapshot_key){.name = "1"}), 1);
    CHECK_EQ(snapshots_find(&list, &(struct snapshot_key){.either = "3"}), -ENOENT);
    CHECK_STR(list.ptr[0].name, name);
    snapshots_free_all(&list);
    free(name);
    end(&w);
}

/* Machine state goes with the snapshot, and comes back with it. */
static void test_machine_state(void)
{
    struct world w;
    const struct create_params p = {
        .size_bytes = 64 * KIB, .version = 3, .cluster_bits = 10, .refcount_order = 4};
    uint8_t state[5000], read[5000];
    struct iovec iov = {read, sizeof(read)};
    if (!begin(&w, &p, "machine state"))
        return;
    memset(state, 0x5a, sizeof(state));
    write_at(&w, 0, 10 * KIB, 3);
    CHECK_OK(image_vm_state_writev(w.img, 0, &(struct iovec){state, sizeof(state)}, 1, NULL));
    const struct snapshot_params params = {.name = "s", .vm_state_bytes = sizeof(state)};
    CHECK_OK(image_snapshot_create(w.img, &params, NULL));
    CHECK_OK(image_vm_state_readv(w.img, 0, &iov, 1, NULL));
    CHECK_EQ(read[0] | read[4999], 0);
    CHECK(shows(w.img, w.disk, w.size));
    verify(&w);
    const struct snapshot_key key = {.name = "s"};
    CHECK_OK(image_snapshot_apply(w.img, &key, NULL));
    CHECK_OK(image_vm_state_readv(w.img, 0, &iov, 1, NULL));
    CHECK_MEM(read, state, sizeof(state));
    verify(&w);
    struct snapshot_vec list;
    CHECK_OK(image_snapshots(w.img, &list, NULL));
    CHECK_EQ(list.ptr[0].vm_state_bytes, sizeof(state));
    snapshots_free_all(&list);
    CHECK_OK(image_snapshot_delete(w.img, &key, NULL));
    verify(&w);
    end(&w);
}

/* A file that cannot grow and has no room: refused, and nothing has changed. */
static void test_no_room(void)
{
    struct world w;
    const struct create_params p = {
        .size_bytes = 128 * KIB, .version = 2, .cluster_bits = 9, .refcount_order = 4};
    size_t len;
    if (!begin(&w, &p, "no room"))
        return;
    write_at(&w, 0, 100 * KIB, 4);
    CHECK_OK(image_close(w.img, NULL));
    w.io->can_grow = false;
    w.img = open_it(&w, NULL);
    REQUIRE(w.img);
    uint8_t *before = copy_file(&w, &len);
    CHECK_EQ(image_snapshot_create(w.img, &(struct snapshot_params){.name = "x"}, NULL), -ENOSPC);
    CHECK_OK(image_close(w.img, NULL));
    expect_untouched(&w, before, len);
    free(before);
    w.io->can_grow = true;
    w.img = open_it(&w, NULL);
    CHECK_EQ(take(&w), 0);
    verify(&w);
    end(&w);
}

/* ---- deleting on a full device ---- */

/* A device of the file's size; or, when it grows, a file on a file system that is full. */
static bool shut_in(struct world *w, bool grows)
{
    struct qk_io *io = NULL;
    size_t len;
    CHECK_OK(image_close(w->img, NULL));
    w->img = NULL;
    const uint8_t *bytes = io_mem_data(w->io, &len);
    if (!CHECK_OK(io_mem_open(bytes, len, len, &io, NULL)))
        return false;
    io_close(w->io, NULL);
    w->io = io;
    io->can_grow = grows;
    w->img = open_it(w, NULL);
    return CHECK(w->img != NULL);
}

/* Writes until there is not one cluster left; returns where there was none. */
static uint64_t fill(struct world *w)
{
    uint64_t cluster = w->img->g.cluster_bytes, off = 0;
    uint8_t *bytes = malloc(cluster);
    memset(bytes, 0x77, cluster);
    for (; off + cluster <= w->size; off += cluster) {
        struct iovec iov = {bytes, cluster};
        int ret = image_writev(w->img, guest_off(off), &iov, 1, 0, NULL);
        if (ret == 0)
            ret = image_writeback(w->img, true, NULL);
        if (ret == -ENOSPC)
            break;
        CHECK_OK(ret);
        memcpy(w->disk + off, bytes, cluster);
    }
    free(bytes);
    CHECK_OK(image_writeback(w->img, true, NULL));
    CHECK_OK(image_writeback(w->img, true, NULL));
    return off;
}

/* In place: the refcount table stays where it is. */
static void drop_in_place(struct world *w, unsigned i)
{
    const struct snapshot_key key = {.name = w->kept[i].name};
    struct qk_error err = {0};
    uint64_t table = w->img->h.reftable_off;
    if (!CHECK_OK(image_snapshot_delete(w->img, &key, &err)))
        printf("    %s: %s\n", w->what, err.text);
    CHECK_EQ(w->img->h.reftable_off, table);
    CHECK(w->img->lazy || !image_needs_repair(w->img));
    free(w->kept[i].bytes);
    for (w->count--; i < w->count; i++)
        w->kept[i] = w->kept[i + 1];
    verify(w);
}

/* All but the last need a place for the list; what is refused changes nothing. */
static void expect_no_place(struct world *w, const char *text)
{
    const struct snapshot_key key = {.name = w->kept[0].name};
    struct qk_error err = {0};
    size_t len;
    uint8_t *before = copy_file(w, &len);
    CHECK_EQ(image_snapshot_delete(w->img, &key, &err), -ENOSPC);
    if (!CHECK(strstr(err.text, text) != NULL))
        printf("    %s: %s\n", w->what, err.text);
    CHECK_OK(image_writeback(w->img, true, NULL));
    expect_untouched(w, before, len);
    free(before);
}

static void free_a_cluster(struct world *w)
{
    uint64_t cluster = w->img->g.cluster_bytes;
    memset(w->disk, 0, cluster);
    CHECK_OK(image_zero(w->img, guest_off(0), cluster, IO_ZERO_UNMAP, NULL));
    CHECK_OK(image_writeback(w->img, true, NULL));
    CHECK_OK(image_writeback(w->img, true, NULL));
}

static bool three_snapshots(struct world *w, const struct create_params *p, const char *what)
{
    if (!begin(w, p, what))
        return false;
    uint64_t cluster = w->img->g.cluster_bytes;
    /* One bit cannot share anything: an empty disk has snapshots all the same. */
    bool shares = p->refcount_order > 0;
    if (shares)
        write_at(w, 0, 20 * cluster, 1);
    for (unsigned i = 0; i < 3; i++) {
        if (p->refcount_order == 1) /* counts to 3 */
            write_at(w, 0, 20 * cluster, (uint8_t)(2 + i));
        else if (shares)
            write_at(w, i * 4 * cluster, 6 * cluster, (uint8_t)(2 + i));
        CHECK_OK(take(w));
    }
    if (!shares)
        write_at(w, 0, 20 * cluster, 1);
    return true;
}

static void test_full_device(const struct create_params *shape, bool grows)
{
    char what[100];
    struct world w;
    struct create_params p = *shape;
    p.size_bytes = UINT64_C(120) << p.cluster_bits;
    p.version = 3;
    snprintf(what, sizeof(what), "full, cluster bits %u, refcount order %u, grows %d",
             p.cluster_bits, p.refcount_order, grows);
    if (three_snapshots(&w, &p, what) && shut_in(&w, grows)) {
        fill(&w);
        expect_no_place(&w, "('n2') can be deleted");
        drop_in_place(&w, 2);
        CHECK(fill(&w) > 0);
        free_a_cluster(&w);
        drop_in_place(&w, 0);
        fill(&w);
        drop_in_place(&w, 0);
    }
    end(&w);
}

static void test_full_old_version(void)
{
    struct world w;
    const struct create_params p = {
        .size_bytes = 60 * KIB, .version = 2, .cluster_bits = 9, .refcount_order = 4};
    if (three_snapshots(&w, &p, "full, version 2") && shut_in(&w, false)) {
        fill(&w);
        expect_no_place(&w, "compat=1.1");
        verify(&w);
    }
    end(&w);
}

static void test_full_devices(void)
{
    static const uint32_t cluster_bits[] = {9, 12, 16};
    for (uint32_t i = 0; i < 2 * ARRAY_SIZE(cluster_bits); i++)
        for (uint32_t order = 0; order <= 6; order++) {
            const struct create_params p = {.cluster_bits = cluster_bits[i / 2],
                                            .refcount_order = order,
                                            .lazy_refcounts = order == 4};
            test_full_device(&p, i % 2);
        }
    test_full_device(
        &(struct create_params){.cluster_bits = 14, .refcount_order = 4, .extended_l2 = true},
        false);
    test_full_old_version();
}

int main(void)
{
    static const uint32_t cluster_bits[] = {9, 10, 12, 16};
    test_bytes();
    for (size_t c = 0; c < ARRAY_SIZE(cluster_bits); c++) {
        for (uint32_t order = 0; order <= 6; order++)
            test_model(3, cluster_bits[c], order, false);
        test_model(2, cluster_bits[c], 4, false);
    }
    test_model(3, 14, 4, true);
    test_model(3, 16, 1, true);
    for (uint32_t order = 0; order <= 2; order++)
        test_full_refcounts(order);
    test_leaked_table();
    test_names();
    test_machine_state();
    test_no_room();
    test_full_devices();
    return TEST_SUMMARY();
}
