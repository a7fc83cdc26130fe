/*
 * workloads.c - what the simulated guests do: each row of the table is an image and a function
 * that drives it. Small clusters and disks, so that refcount blocks, tables and caches change often
 * and a state takes a millisecond to check.
 */
#include "base/checked.h"
#include "recorder.h"

enum { K = 1024, M = 1024 * K };

/* ---- what they do ---- */

static uint64_t somewhere(struct recorder *rec, uint32_t align)
{
    return round_down(rec_random(rec, (uint32_t)rec->model.size), align);
}

static void write_some(struct recorder *rec, uint32_t align, uint32_t max)
{
    uint64_t off = somewhere(rec, align);
    rec_write(rec, off, align * (uint64_t)(1 + rec_random(rec, max / align)));
}

static void run_alloc(struct recorder *rec)
{
    for (int i = 0; i < 120; i++) {
        write_some(rec, 512, 6 * K);
        if (i % 11 == 10)
            rec_flush(rec);
    }
}

/* Bytes, not sectors. */
static void run_overwrite(struct recorder *rec)
{
    rec_write(rec, 0, rec->model.size / 2);
    rec_flush(rec);
    for (int i = 0; i < 160; i++) {
        write_some(rec, 1, 3 * K);
        if (i % 13 == 12)
            rec_flush(rec);
    }
}

static void run_zero(struct recorder *rec)
{
    for (int i = 0; i < 160; i++) {
        uint64_t off = somewhere(rec, 512);
        if (i % 2)
            rec_zero(rec, off, 512 * (1 + rec_random(rec, 24)), i % 4 == 1 ? IO_ZERO_UNMAP : 0);
        else
            write_some(rec, 512, 8 * K);
        if (i % 9 == 8)
            rec_flush(rec);
    }
}

/* Frees here what is written there right after: freed clusters must not come back too early. */
static void run_discard_reuse(struct recorder *rec)
{
    rec_write(rec, 0, rec->model.size / 2);
    rec_flush(rec);
    for (int i = 0; i < 150; i++) {
        rec_discard(rec, somewhere(rec, 2 * K), 2 * K * (1 + rec_random(rec, 4)));
        write_some(rec, 2 * K, 8 * K);
        if (i % 10 == 9)
            rec_flush(rec);
    }
}

/* Few operations: each state derives a key. */
static void run_luks(struct recorder *rec)
{
    for (int i = 0; i < 12; i++) {
        write_some(rec, 1, 6 * K);
        if (i % 5 == 4)
            rec_flush(rec);
    }
}

/* Sequential writes until blocks and table have grown several times. */
static void run_refcount_growth(struct recorder *rec)
{
    uint64_t step = rec->model.size / 96;
    for (uint64_t off = 0; off < rec->model.size; off += step) {
        rec_write(rec, off, step);
        if (off / step % 7 == 6)
            rec_flush(rec);
    }
    rec_flush(rec);
    rec_discard(rec, 0, rec->model.size / 2);
    rec_flush(rec);
    for (int i = 0; i < 30; i++)
        write_some(rec, 512, 16 * K);
    rec_flush(rec);
}

static void run_resize(struct recorder *rec)
{
    for (int i = 0; i < 14; i++) {
        for (int n = 0; n < 6; n++)
            write_some(rec, 512, 8 * K);
        if (i % 3 == 1)
            rec_flush(rec);
        uint64_t more = 512 * (uint64_t)(1 + rec_random(rec, 200));
        rec_resize(rec, min_u64(rec->model.size + more, rec->model.max_bytes),
                   i % 4 == 3 && !rec->backing ? QK_PREALLOC_METADATA : QK_PREALLOC_OFF);
    }
    rec_flush(rec);
}

/* Far enough for the L1 table to need more clusters, twice. */
static void run_grow_far(struct recorder *rec)
{
    for (int i = 0; i < 10; i++) {
        for (int n = 0; n < 4; n++)
            write_some(rec, 512, 8 * K);
        rec_resize(rec, min_u64(rec->model.size + 700 * K, rec->model.max_bytes), QK_PREALLOC_OFF);
        rec_discard(rec, somewhere(rec, 512), 64 * K);
    }
    rec_flush(rec);
}

static void use_disk(struct recorder *rec)
{
    for (int n = 0; n < 4; n++)
        write_some(rec, 512, 6 * K);
    rec_discard(rec, somewhere(rec, 512), 12 * K);
    rec_zero(rec, somewhere(rec, 512), 4 * K, 0);
    if (rec_random(rec, 3) == 0)
        rec_flush(rec);
}

/* Every refcount width, from and to others. */
static void run_amend_width(struct recorder *rec)
{
    for (unsigned i = 0; i < 14; i++) {
        use_disk(rec);
        rec_amend(rec, &(struct amend_params){.refcount_bits = 1u << (i * 3 + i / 7) % 7,
                                              .lazy_refcounts = -1});
    }
    use_disk(rec);
    rec_flush(rec);
}

/* Between the versions, with zero clusters of all kinds on the way down. */
static void run_amend_version(struct recorder *rec)
{
    for (unsigned i = 0; i < 8; i++) {
        struct amend_params p = {.version = i % 2 ? 3 : 2, .lazy_refcounts = -1};
        p.refcount_bits = i % 2 ? 1u << rec_random(rec, 7) : 16;
        use_disk(rec);
        rec_zero(rec, somewhere(rec, 512), 40 * K, i & 2 ? IO_ZERO_UNMAP : 0);
        if (i % 4 == 3)
            p.lazy_refcounts = i == 3;
        rec_amend(rec, &p);
        if (i == 4)
            rec_reopen(rec);
    }
    use_disk(rec);
    rec_flush(rec);
}

/* Up and down, by bytes, clusters and whole tables. */
static void run_shrink(struct recorder *rec)
{
    for (int i = 0; i < 24; i++) {
        for (int n = 0; n < 5; n++)
            write_some(rec, 512, 24 * K);
        if (i % 5 == 1)
            rec_discard(rec, somewhere(rec, 512), 16 * K);
        if (i % 3 == 1)
            rec_flush(rec);
        uint64_t size =
            512 * (uint64_t)(1 + rec_random(rec, (uint32_t)(rec->model.max_bytes / 512)));
        rec_resize(rec, size, i % 6 == 3 && !rec->backing ? QK_PREALLOC_METADATA : QK_PREALLOC_OFF);
    }
    rec_flush(rec);
}

static void run_mixed(struct recorder *rec)
{
    for (int i = 0; i < 220; i++) {
        uint32_t what = rec_random(rec, 20);
        uint64_t off = somewhere(rec, what % 3 ? 512 : 1);
        uint64_t len = 1 + rec_random(rec, what == 0 ? 60 * K : 6 * K);
        if (what < 11)
            rec_write(rec, off, what < 8 ? round_up(len, 512) : len);
        else if (what < 13)
            rec_zero(rec, off, len, what == 11 ? IO_ZERO_UNMAP : 0);
        else if (what < 16)
            rec_discard(rec, off, len * 2);
        else if (what < 18)
            rec_flush(rec);
        else if (what < 19)
            write_some(rec, 512, 1 * K);
        else if (rec_random(rec, 3) == 0)
            rec_reopen(rec);
    }
}

/* Many closings: header bits, the dirty bit of lazy refcounts. */
static void run_reopen(struct recorder *rec)
{
    for (int i = 0; i < 16; i++) {
        for (int n = 0; n < 6; n++)
            write_some(rec, 512, 5 * K);
        if (i % 3 == 0)
            rec_discard(rec, somewhere(rec, 512), 16 * K);
        if (i % 4 == 2)
            rec_flush(rec);
        rec_reopen(rec);
    }
}

/* A cache of a few slices: metadata goes out between flushes. */
static void run_tiny_cache(struct recorder *rec)
{
    for (int i = 0; i < 150; i++) {
        write_some(rec, 512, 4 * K);
        if (i % 5 == 4)
            rec_discard(rec, somewhere(rec, 512), 4 * K);
        if (i % 40 == 39)
            rec_flush(rec);
    }
}

/* Compressed clusters share host clusters; writes to them unpack, discards free parts. */
static void run_compressed(struct recorder *rec)
{
    for (int i = 0; i < 140; i++) {
        uint32_t what = rec_random(rec, 10);
        uint64_t off = somewhere(rec, 512);
        if (what < 5)
            rec_write_compressed(rec, off, 1 + rec_random(rec, 12 * K));
        else if (what < 7)
            rec_write(rec, off, 512 * (1 + rec_random(rec, 12)));
        else if (what < 8)
            rec_discard(rec, off, 16 * K);
        else if (what < 9)
            rec_zero(rec, off, 512 * (1 + rec_random(rec, 20)), 0);
        else
            rec_flush(rec);
    }
}

/* Snapshots between writes of every kind; most are taken, and kept, for a while. */
static void snapshot_something(struct recorder *rec)
{
    uint32_t what = rec_random(rec, 12), which = rec_random(rec, 4);
    if (what < 5)
        rec_snapshot(rec);
    else if (what < 8)
        rec_snapshot_delete(rec, which);
    else if (what < 11)
        rec_snapshot_apply(rec, which);
    else
        rec_snapshot_rename(rec, which);
}

static void change_something(struct recorder *rec)
{
    uint32_t what = rec_random(rec, 10);
    if (what < 6)
        write_some(rec, 512, 12 * K);
    else if (what < 8)
        rec_discard(rec, somewhere(rec, 512), 512 * (1 + rec_random(rec, 40)));
    else if (what < 9)
        rec_zero(rec, somewhere(rec, 512), 512 * (1 + rec_random(rec, 40)), IO_ZERO_UNMAP);
    else
        rec_write_compressed(rec, somewhere(rec, 512), 1 + rec_random(rec, 12 * K));
}

static void run_snapshots(struct recorder *rec)
{
    for (int i = 0; i < 26; i++) {
        for (uint32_t n = rec_random(rec, 7); n; n--)
            change_something(rec);
        snapshot_something(rec);
        if (i % 9 == 8)
            rec_reopen(rec);
    }
}

/* Each is deleted when nothing is free (the last of the list) or one place for a list of the
 * others. */
static void run_snapshot_full(struct recorder *rec)
{
    for (uint32_t i = 0; i < 14; i++) {
        for (uint32_t n = 1 + rec_random(rec, 5); n; n--)
            change_something(rec);
        if (rec->model.snapshots.len < 3) {
            rec_snapshot(rec);
            continue;
        }
        uint32_t which = rec_random(rec, (uint32_t)rec->model.snapshots.len);
        rec_fill(rec, which + 1 < rec->model.snapshots.len);
        rec_snapshot_delete(rec, which);
        rec_reopen(rec);
    }
    rec_flush(rec);
}

/* The image changes its shape between them: refcounts that say how much is shared, the version that
 * says how large snapshots are, the size. */
static void run_snapshot_shapes(struct recorder *rec)
{
    for (unsigned i = 0; i < 18; i++) {
        struct amend_params p = {.version = i % 6 == 4 ? 2 : 3, .lazy_refcounts = -1};
        p.refcount_bits = p.version == 2 ? 16 : 8u << rec_random(rec, 4);
        for (uint32_t n = rec_random(rec, 5); n; n--)
            change_something(rec);
        snapshot_something(rec);
        if (i % 2 == 0)
            rec_amend(rec, &p);
    }
    rec_flush(rec);
}

static void run_snapshot_shrink(struct recorder *rec)
{
    for (unsigned i = 0; i < 20; i++) {
        for (uint32_t n = rec_random(rec, 5); n; n--)
            change_something(rec);
        snapshot_something(rec);
        uint32_t most = (uint32_t)(rec->model.max_bytes / 512);
        if (i % 2)
            rec_resize(rec, 512 * (uint64_t)(1 + rec_random(rec, most)), QK_PREALLOC_OFF);
    }
    rec_flush(rec);
}

/* The disk grows between them. */
static void run_snapshot_sizes(struct recorder *rec)
{
    for (int i = 0; i < 20; i++) {
        for (uint32_t n = rec_random(rec, 5); n; n--)
            change_something(rec);
        snapshot_something(rec);
        if (i % 4 == 1)
            rec_resize(rec,
                       min_u64(rec->model.size + 512 * (uint64_t)(1 + rec_random(rec, 300)),
                               rec->model.max_bytes),
                       QK_PREALLOC_OFF);
    }
    rec_flush(rec);
}

/* The repair at the beginning is what matters here. */
static void run_after_repair(struct recorder *rec)
{
    for (int i = 0; i < 20; i++)
        write_some(rec, 512, 4 * K);
    rec_reopen(rec);
}

/* ---- encryption ---- */

const struct image_secret workload_secret = {"s", (const uint8_t *)"crash", 5};

/* The old format derives no key, so that opening it takes no time. */
static const struct create_encryption aes = {.method = CRYPT_AES, .secret = &workload_secret};
static struct create_encryption luks = {
    .method = CRYPT_LUKS, .secret = &workload_secret, .iter_ms = 1};

/* Names of ciphers are looked up before main() begins. */
static void __attribute__((constructor)) find_cipher(void)
{
    luks.suite = (struct cipher_suite){cipher_by_name("aes-128"), CIPHER_CBC, IVGEN_PLAIN64, NULL};
    luks.hash = hash_by_name("sha1");
}

/* ---- on which images ---- */

/* Short names for a row's image: size, version, cluster bits, refcount order. */
#define IMAGE(size_, version_, cluster_bits_, order_)                                              \
    .create.size_bytes = (size_), .create.version = (version_),                                    \
    .create.cluster_bits = (cluster_bits_), .create.refcount_order = (order_),                     \
    .options = {.lazy_refcounts = -1, .overlap = OVERLAP_CACHED}

/* With an external data file for a disk of up to max_ bytes. */
#define DATA(max_) .create.data_file = "data", .max_bytes = (max_), .options.discard_to_file = true
/* One that is the disk for readers that know nothing of the tables. */
#define RAW_DATA(max_) DATA(max_), .create.data_file_raw = true
/* With subclusters: of a sector in the smallest clusters, which hold them. */
#define SUBCLUSTERS(size_, cluster_bits_, order_)                                                  \
    IMAGE(size_, 3, cluster_bits_, order_), .create.extended_l2 = true

const struct workload workloads[] = {
    {"alloc", IMAGE(512 * K, 3, 9, 4), .seed = 1, .run = run_alloc},
    {"alloc-4k", IMAGE(1 * M, 3, 12, 4), .seed = 2, .run = run_alloc},
    {"overwrite", IMAGE(256 * K, 3, 11, 4), .seed = 3, .run = run_overwrite},
    {"zero", IMAGE(256 * K, 3, 11, 4), .seed = 4, .run = run_zero},
    {"zero-backing", IMAGE(256 * K, 3, 10, 3), .backing_bytes = 200 * K, .seed = 5,
     .run = run_zero},
    {"discard-reuse", IMAGE(256 * K, 3, 11, 4), .seed = 6, .run = run_discard_reuse},
    {"discard-v2", IMAGE(256 * K, 2, 11, 4), .seed = 7, .run = run_discard_reuse},
    {"discard-backing", IMAGE(256 * K, 3, 11, 4), .backing_bytes = 256 * K, .seed = 8,
     .run = run_discard_reuse},
    {"discard-v2-backing", IMAGE(256 * K, 2, 11, 4), .backing_bytes = 256 * K, .seed = 9,
     .run = run_discard_reuse},
    {"refcount-growth", IMAGE(2560 * K, 3, 9, 6), .seed = 10, .run = run_refcount_growth},
    {"refcount-growth-1", IMAGE(1 * M, 3, 9, 0), .seed = 11, .run = run_refcount_growth},
    {"cow", IMAGE(512 * K, 3, 13, 4), .backing_bytes = 500 * K, .seed = 12, .run = run_alloc},
    {"resize", IMAGE(64 * K, 3, 9, 5), .max_bytes = 1 * M, .seed = 13, .run = run_resize},
    {"resize-backing", IMAGE(64 * K, 3, 10, 1), .max_bytes = 1 * M, .backing_bytes = 300 * K,
     .seed = 14, .run = run_resize},
    {"resize-far", IMAGE(1 * M, 3, 9, 4), .max_bytes = 8 * M, .seed = 25, .run = run_grow_far},
    {"shrink", IMAGE(256 * K, 3, 9, 4), .max_bytes = 512 * K, .seed = 40, .run = run_shrink},
    {"shrink-far", IMAGE(6 * M, 3, 9, 3), .max_bytes = 8 * M, .seed = 41, .run = run_shrink},
    {"shrink-v2", IMAGE(256 * K, 2, 10, 4), .max_bytes = 512 * K, .seed = 42, .run = run_shrink},
    {"shrink-backing", IMAGE(256 * K, 3, 12, 1), .max_bytes = 512 * K, .backing_bytes = 400 * K,
     .seed = 43, .run = run_shrink},
    {"shrink-v2-backing", IMAGE(256 * K, 2, 9, 4), .max_bytes = 512 * K, .backing_bytes = 300 * K,
     .seed = 44, .run = run_shrink},
    {"shrink-lazy", IMAGE(256 * K, 3, 9, 6), .create.lazy_refcounts = true, .max_bytes = 512 * K,
     .seed = 45, .run = run_shrink},
    {"aes-overwrite", IMAGE(256 * K, 3, 11, 4), .create.encryption = &aes, .seed = 71,
     .run = run_overwrite},
    {"aes-zero-backing", IMAGE(256 * K, 3, 10, 3), .create.encryption = &aes,
     .backing_bytes = 200 * K, .seed = 72, .run = run_zero},
    {"aes-mixed", IMAGE(384 * K, 3, 12, 4), .create.encryption = &aes, .backing_bytes = 300 * K,
     .seed = 73, .run = run_mixed},
    {"aes-prealloc", IMAGE(256 * K, 3, 10, 4), .create.encryption = &aes,
     .create.prealloc = QK_PREALLOC_METADATA, .seed = 74, .run = run_discard_reuse},
    {"aes-resize", IMAGE(64 * K, 3, 9, 5), .create.encryption = &aes, .max_bytes = 1 * M,
     .seed = 75, .run = run_resize},
    {"luks-create", IMAGE(128 * K, 3, 12, 4), .create.encryption = &luks, .logs_creation = true,
     .seed = 76, .run = run_luks},
    {"amend-width", IMAGE(512 * K, 3, 9, 4), .seed = 50, .run = run_amend_width},
    {"amend-width-2k", IMAGE(1 * M, 3, 11, 0), .seed = 51, .run = run_amend_width},
    {"amend-width-64k", IMAGE(4 * M, 3, 16, 6), .seed = 52, .run = run_amend_width},
    {"amend-width-device", IMAGE(256 * K, 3, 9, 4), .device_bytes = 1 * M, .seed = 53,
     .run = run_amend_width},
    {"amend-version", IMAGE(512 * K, 3, 9, 4), .seed = 54, .run = run_amend_version},
    {"amend-version-backing", IMAGE(512 * K, 3, 12, 4), .backing_bytes = 400 * K, .seed = 55,
     .run = run_amend_version},
    {"amend-version-v2", IMAGE(512 * K, 2, 10, 4), .seed = 56, .run = run_amend_version},
    {"lazy-growth", IMAGE(2560 * K, 3, 9, 6), .create.lazy_refcounts = true, .seed = 26,
     .run = run_refcount_growth},
    {"device", IMAGE(512 * K, 3, 9, 4), .device_bytes = 2 * M, .logs_creation = true, .seed = 27,
     .run = run_mixed},
    {"device-prealloc", IMAGE(256 * K, 3, 10, 4), .create.prealloc = QK_PREALLOC_METADATA,
     .device_bytes = 1 * M, .logs_creation = true, .seed = 28, .run = run_discard_reuse},
    {"lazy", IMAGE(512 * K, 3, 9, 4), .create.lazy_refcounts = true, .seed = 15, .run = run_reopen},
    {"lazy-mixed", IMAGE(256 * K, 3, 10, 4), .create.lazy_refcounts = true,
     .backing_bytes = 100 * K, .seed = 16, .run = run_mixed},
    {"prealloc-metadata", IMAGE(512 * K, 3, 10, 4), .create.prealloc = QK_PREALLOC_METADATA,
     .seed = 17, .run = run_mixed},
    {"create", IMAGE(512 * K, 3, 9, 4), .logs_creation = true, .seed = 18, .run = run_reopen},
    {"create-prealloc", IMAGE(512 * K, 3, 9, 2), .create.prealloc = QK_PREALLOC_FULL,
     .logs_creation = true, .seed = 19, .run = run_alloc},
    {"mixed", IMAGE(384 * K, 3, 9, 4), .seed = 20, .run = run_mixed},
    {"mixed-v2", IMAGE(384 * K, 2, 10, 4), .backing_bytes = 300 * K, .seed = 21, .run = run_mixed},
    {"mixed-64k", IMAGE(2 * M, 3, 16, 4), .seed = 22, .run = run_mixed},
    {"mixed-punch", IMAGE(384 * K, 3, 12, 2), .options.discard_to_file = true, .seed = 23,
     .run = run_mixed},
    {"tiny-cache", IMAGE(512 * K, 3, 9, 4), .options.l2_cache_bytes = 2 * K,
     .options.l2_slice_bytes = 512, .options.refcount_cache_bytes = 2 * K, .seed = 24,
     .run = run_tiny_cache},
    {"compressed", IMAGE(256 * K, 3, 12, 4), .seed = 29, .run = run_compressed},
    {"compressed-backing", IMAGE(256 * K, 3, 11, 4), .backing_bytes = 200 * K, .seed = 30,
     .run = run_compressed},
    {"compressed-64k", IMAGE(1 * M, 2, 16, 4), .seed = 31, .run = run_compressed},
    {"compressed-lazy", IMAGE(128 * K, 3, 10, 4), .create.lazy_refcounts = true, .seed = 32,
     .run = run_compressed},
    {"snapshot-2", IMAGE(128 * K, 3, 9, 1), .seed = 60, .run = run_snapshots},
    {"snapshot-4", IMAGE(192 * K, 3, 10, 2), .seed = 61, .run = run_snapshots},
    {"snapshot-8", IMAGE(256 * K, 3, 12, 3), .seed = 62, .run = run_snapshots},
    {"snapshot-16", IMAGE(256 * K, 3, 9, 4), .seed = 63, .run = run_snapshots},
    {"snapshot-32", IMAGE(256 * K, 3, 9, 5), .backing_bytes = 200 * K, .seed = 64,
     .run = run_snapshots},
    {"snapshot-64", IMAGE(256 * K, 3, 9, 6), .seed = 65, .run = run_snapshots},
    {"snapshot-1", IMAGE(128 * K, 3, 10, 0), .seed = 66, .run = run_snapshots},
    {"snapshot-v2", IMAGE(256 * K, 2, 9, 4), .seed = 67, .run = run_snapshots},
    {"snapshot-v2-64k", IMAGE(1 * M, 2, 16, 4), .seed = 68, .run = run_snapshots},
    {"snapshot-lazy", IMAGE(256 * K, 3, 10, 4), .create.lazy_refcounts = true, .seed = 69,
     .run = run_snapshots},
    {"snapshot-punch", IMAGE(256 * K, 3, 11, 4), .options.discard_to_file = true, .seed = 70,
     .run = run_snapshots},
    {"snapshot-device", IMAGE(192 * K, 3, 10, 4), .device_bytes = 3 * M, .seed = 71,
     .run = run_snapshots},
    {"snapshot-full", IMAGE(192 * K, 3, 10, 4), .device_bytes = 3 * M, .seed = 77,
     .run = run_snapshot_full},
    {"snapshot-full-4", IMAGE(192 * K, 3, 9, 2), .device_bytes = 3 * M, .backing_bytes = 100 * K,
     .seed = 78, .run = run_snapshot_full},
    {"snapshot-full-64", IMAGE(512 * K, 3, 12, 6), .device_bytes = 6 * M, .seed = 79,
     .run = run_snapshot_full},
    {"snapshot-full-lazy", IMAGE(192 * K, 3, 10, 4), .create.lazy_refcounts = true,
     .device_bytes = 3 * M, .seed = 80, .run = run_snapshot_full},
    {"snapshot-amend", IMAGE(192 * K, 3, 9, 4), .seed = 73, .run = run_snapshot_shapes},
    {"snapshot-amend-backing", IMAGE(256 * K, 3, 12, 4), .backing_bytes = 200 * K, .seed = 74,
     .run = run_snapshot_shapes},
    {"snapshot-shrink", IMAGE(256 * K, 3, 9, 4), .max_bytes = 512 * K, .seed = 75,
     .run = run_snapshot_shrink},
    {"snapshot-shrink-backing", IMAGE(256 * K, 3, 11, 3), .max_bytes = 512 * K,
     .backing_bytes = 300 * K, .seed = 76, .run = run_snapshot_shrink},
    {"snapshot-windows", IMAGE(384 * K, 3, 9, 6), .options.refcount_window_bytes = 512, .seed = 73,
     .run = run_snapshots},
    {"snapshot-extended", IMAGE(1 * M, 3, 14, 4), .create.extended_l2 = true, .seed = 74,
     .run = run_snapshots},
    {"snapshot-sizes", IMAGE(64 * K, 3, 9, 4), .max_bytes = 512 * K, .seed = 72,
     .run = run_snapshot_sizes},
    {"data", IMAGE(384 * K, 3, 9, 4), DATA(384 * K), .seed = 60, .run = run_mixed},
    {"data-4k", IMAGE(512 * K, 3, 12, 1), DATA(600 * K), .seed = 61, .run = run_zero},
    {"data-backing", IMAGE(256 * K, 3, 11, 4), DATA(256 * K), .backing_bytes = 200 * K, .seed = 62,
     .run = run_discard_reuse},
    {"data-resize", IMAGE(64 * K, 3, 9, 4), DATA(1 * M), .seed = 63, .run = run_resize},
    {"data-shrink", IMAGE(256 * K, 3, 12, 4), DATA(512 * K), .seed = 64, .run = run_shrink},
    {"data-lazy", IMAGE(256 * K, 3, 10, 4), DATA(256 * K), .create.lazy_refcounts = true,
     .seed = 65, .run = run_mixed},
    {"data-sub", SUBCLUSTERS(512 * K, 14, 4), DATA(600 * K), .seed = 160, .run = run_mixed},
    {"data-sub-backing", SUBCLUSTERS(512 * K, 15, 4), DATA(512 * K), .backing_bytes = 400 * K,
     .seed = 161, .run = run_zero},
    {"data-sub-shrink", SUBCLUSTERS(256 * K, 14, 4), DATA(512 * K), .seed = 162, .run = run_shrink},
    {"data-raw-sub", SUBCLUSTERS(512 * K, 14, 4), RAW_DATA(512 * K), .seed = 163, .run = run_mixed},
    {"data-aes", IMAGE(256 * K, 3, 11, 4), DATA(256 * K), .create.encryption = &aes, .seed = 164,
     .run = run_mixed},
    {"data-aes-resize", IMAGE(64 * K, 3, 11, 4), DATA(1 * M), .create.encryption = &aes,
     .seed = 165, .run = run_resize},
    {"data-raw", IMAGE(384 * K, 3, 9, 4), RAW_DATA(384 * K), .seed = 66, .run = run_mixed},
    {"data-raw-zero", IMAGE(256 * K, 3, 12, 4), RAW_DATA(256 * K), .seed = 67, .run = run_zero},
    {"data-raw-resize", IMAGE(64 * K, 3, 10, 4), RAW_DATA(1 * M), .seed = 68, .run = run_resize},
    {"data-raw-shrink", IMAGE(256 * K, 3, 9, 6), RAW_DATA(512 * K), .seed = 69, .run = run_shrink},
    {"sub", SUBCLUSTERS(512 * K, 14, 4), .seed = 80, .run = run_mixed},
    {"sub-64k", SUBCLUSTERS(1 * M, 16, 4), .backing_bytes = 1 * M, .seed = 81, .run = run_alloc},
    {"sub-overwrite", SUBCLUSTERS(512 * K, 15, 1), .seed = 82, .run = run_overwrite},
    {"sub-zero", SUBCLUSTERS(512 * K, 14, 4), .backing_bytes = 400 * K, .seed = 83,
     .run = run_zero},
    {"sub-discard", SUBCLUSTERS(512 * K, 14, 4), .seed = 84, .run = run_discard_reuse},
    {"sub-discard-backing", SUBCLUSTERS(512 * K, 14, 4), .backing_bytes = 500 * K,
     .options.discard_to_file = true, .seed = 85, .run = run_discard_reuse},
    {"sub-resize", SUBCLUSTERS(64 * K, 14, 4), .max_bytes = 1 * M, .seed = 86, .run = run_resize},
    {"sub-shrink", SUBCLUSTERS(256 * K, 14, 4), .max_bytes = 512 * K, .backing_bytes = 300 * K,
     .seed = 87, .run = run_shrink},
    {"sub-prealloc", SUBCLUSTERS(512 * K, 14, 4), .create.prealloc = QK_PREALLOC_METADATA,
     .backing_bytes = 400 * K, .seed = 88, .run = run_mixed},
    {"sub-device", SUBCLUSTERS(256 * K, 14, 4), .create.prealloc = QK_PREALLOC_METADATA,
     .device_bytes = 2 * M, .logs_creation = true, .seed = 89, .run = run_mixed},
    {"sub-lazy", SUBCLUSTERS(256 * K, 14, 4), .create.lazy_refcounts = true, .seed = 90,
     .run = run_reopen},
    {"sub-tiny-cache", SUBCLUSTERS(1 * M, 14, 4), .options.l2_cache_bytes = 16 * K,
     .options.l2_slice_bytes = 512, .backing_bytes = 200 * K, .seed = 91, .run = run_tiny_cache},
    {"sub-compressed", SUBCLUSTERS(256 * K, 14, 4), .backing_bytes = 200 * K, .seed = 92,
     .run = run_compressed},
    {"sub-snapshots", SUBCLUSTERS(384 * K, 14, 4), .backing_bytes = 300 * K, .seed = 93,
     .run = run_snapshots},
    {"sub-amend", SUBCLUSTERS(512 * K, 14, 4), .seed = 94, .run = run_amend_width},
    {"sub-aes", SUBCLUSTERS(384 * K, 14, 4), .create.encryption = &aes, .backing_bytes = 300 * K,
     .seed = 98, .run = run_mixed},
    {"sub-aes-prealloc", SUBCLUSTERS(384 * K, 14, 4), .create.encryption = &aes,
     .create.prealloc = QK_PREALLOC_METADATA, .seed = 99, .run = run_zero},
    {"sub-aes-data", SUBCLUSTERS(256 * K, 14, 4), DATA(512 * K), .create.encryption = &aes,
     .seed = 100, .run = run_shrink},
    {"repair-dirty", IMAGE(384 * K, 3, 9, 4), .create.lazy_refcounts = true, .damage = DAMAGE_DIRTY,
     .seed = 33, .run = run_after_repair},
    {"repair-dirty-growth", IMAGE(4608 * K, 3, 9, 6), .create.lazy_refcounts = true,
     .damage = DAMAGE_DIRTY, .seed = 34, .run = run_after_repair},
    {"repair-blocks", IMAGE(384 * K, 3, 9, 4), .damage = DAMAGE_BLOCKS, .seed = 35,
     .run = run_after_repair},
    {"repair-table", IMAGE(384 * K, 3, 9, 4), .damage = DAMAGE_TABLE, .seed = 36,
     .run = run_after_repair},
    {"repair-refcounts", IMAGE(384 * K, 3, 10, 4), .damage = DAMAGE_REFCOUNTS, .seed = 37,
     .run = run_after_repair},
};
const size_t workload_count = ARRAY_SIZE(workloads);
uint32_t workload_salt;
