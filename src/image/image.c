/*
 * image.c - opening, closing and describing an image. Opening reads the header and L1, and for
 * writing the refcount table; L2 tables and refcount blocks are read when they are needed.
 */
#include "image/image_int.h"

#include "base/bytes.h"

#define SLICE_BYTES_DEFAULT 4096u
/* L2 slices that wait for a writeback, and refcount slices; again as much for the copies that it
 * writes. */
#define DIRTY_MAX_BYTES (8u << 20)

static int judge_features(const struct image *img, struct qk_error *err)
{
    if (img->opts.writable && !img->opts.for_check && img->h.incompatible & INCOMPAT_CORRUPT)
        return qk_fail(err, -EACCES, "qcow2: Image is corrupt; cannot be opened read/write");
    return 0;
}

/* ---- loading ---- */

static int load_l1(struct image *img, struct qk_error *err)
{
    uint64_t needed = geometry_l1_entries(&img->g, img->h.size_bytes);
    uint64_t count = img->h.l1_entries;
    struct where where = {img->file->name, "header", 36};
    if (count < needed && !img->opts.for_check && !img->opts.snapshot)
        return qk_fail_at(err, -EINVAL, &where,
                          "L1 table is too small: %" PRIu64 " entries, %" PRIu64
                          " needed for the disk size",
                          count, needed);
    uint64_t room = round_up(count, 64);
    free(img->l1);
    free(img->l1_dirty);
    img->l1 = calloc(room ? room : 64, sizeof(uint64_t));
    img->l1_dirty = calloc(room / 64 / 64 + 1, sizeof(uint64_t));
    img->l1_count = (uint32_t)count;
    img->l1_any_dirty = false;
    if (!img->l1 || !img->l1_dirty)
        return qk_fail_nomem(err);
    io_event(img->file, "l1_load");
    if (img->opts.for_check && !img->h.l1_off)
        return 0;
    int ret = count ? io_read(img->file, img->h.l1_off, img->l1, count * 8, err) : 0;
    for (uint64_t i = 0; i < count; i++)
        img->l1[i] = load_be64(&img->l1[i]);
    return img->opts.for_check ? 0 : ret;
}

static uint64_t l2_cache_bytes(const struct image *img)
{
    if (img->opts.l2_cache_bytes)
        return img->opts.l2_cache_bytes;
    uint64_t all = div_round_up(img->h.size_bytes, img->g.cluster_bytes) * img->g.l2_entry_bytes;
    return min_u64(round_up(all, img->g.cluster_bytes), IMAGE_L2_CACHE_MAX);
}

static int init_caches(struct image *img, struct qk_error *err)
{
    uint32_t slice = img->opts.l2_slice_bytes ? img->opts.l2_slice_bytes : SLICE_BYTES_DEFAULT;
    slice = (uint32_t)min_u64(slice, img->g.cluster_bytes);
    uint64_t l2_bytes = l2_cache_bytes(img);
    uint64_t rc_bytes = img->opts.refcount_cache_bytes ? img->opts.refcount_cache_bytes
                                                       : IMAGE_REFCOUNT_CACHE_BYTES;
    struct cache_config l2 = {
        .file = img->file,
        .structure = "L2 table",
        .load_event = "l2_load",
        .slice_bytes = slice,
        .table_bytes = img->g.cluster_bytes,
        .max_bytes = l2_bytes,
        .shards = CACHE_SHARDS_MAX,
    };
    struct cache_config rc = {
        .file = img->file,
        .structure = "refcount block",
        .load_event = "refblock_load",
        .slice_bytes = (uint32_t)min_u64(SLICE_BYTES_DEFAULT, img->g.cluster_bytes),
        .table_bytes = img->g.cluster_bytes,
        .max_bytes = rc_bytes,
        .shards = 1,
    };
    img->l2_dirty_limit = (size_t)max_u64(min_u64(l2_bytes / 2, DIRTY_MAX_BYTES), 64u * slice);
    img->refcount_dirty_limit =
        (size_t)(img->opts.refcount_cache_bytes ? rc_bytes / 2 : DIRTY_MAX_BYTES);
    int ret = cache_init(&img->l2, &l2, err);
    return ret < 0 ? ret : cache_init(&img->refcounts, &rc, err);
}

static int measure_file(struct image *img, struct qk_error *err)
{
    uint64_t size;
    int ret = io_size(img->file, &size, err);
    if (ret < 0)
        return ret;
    img->end_clusters = div_round_up(size, img->g.cluster_bytes);
    img->length_clusters = size >> img->g.cluster_bits;
    img->limit_clusters = QCOW2_OFFSET_LIMIT >> img->g.cluster_bits;
    if (!img->file->can_grow)
        img->limit_clusters = size >> img->g.cluster_bits;
    /* Zero bytes are no zeroes where they would be decrypted. */
    bool fresh = img->file->can_grow && img->file->zero_init && !image_is_encrypted(img);
    img->fresh_from = fresh ? img->end_clusters : UINT64_MAX;
    return 0;
}

/* Only an image that is written to needs refcounts. */
static int load_allocator(struct image *img, struct qk_error *err)
{
    if (!img->opts.writable)
        return 0;
    freemap_free(img->free);
    img->free = NULL;
    int ret = reftable_load(img, err);
    if (ret < 0)
        return ret;
    uint64_t end = img->reftable.count << img->g.refblock_bits;
    ret = freemap_new(end, refcount_load_leaf, img, &img->free, err);
    if (ret == 0)
        ret = overlap_load(img, err);
    return ret < 0 ? ret : bitmaps_open(img, err);
}

static int judge_level(const struct image *img, struct qk_error *err)
{
    int max = codec_level_max((enum codec_type)img->h.compression_type);
    if (img->opts.compression_level >= 0 && img->opts.compression_level <= max)
        return 0;
    return qk_fail(err, -EINVAL, "compression-level must be between 0 (the default) and %d", max);
}

static int load_tables(struct image *img, struct qk_error *err)
{
    int ret = judge_features(img, err);
    if (ret == 0)
        ret = judge_level(img, err);
    if (ret == 0)
        ret = crypt_open(img, err);
    if (ret == 0)
        ret = measure_file(img, err);
    if (ret == 0 && img->opts.snapshot)
        ret = snapshot_show(img, img->opts.snapshot, err);
    if (ret == 0)
        ret = load_l1(img, err);
    if (ret == 0)
        ret = init_caches(img, err);
    if (ret == 0)
        ret = load_allocator(img, err);
    bool lazy = img->opts.lazy_refcounts < 0 ? (img->h.compatible & COMPAT_LAZY_REFCOUNTS) != 0
                                             : img->opts.lazy_refcounts > 0;
    img->lazy = img->h.version >= 3 && lazy;
    return ret;
}

static void init_locks(struct image *img)
{
    range_lock_init(&img->ranges);
    l2_shapes_init(&img->shapes);
    pthread_mutex_init(&img->header_lock, NULL);
    pthread_mutex_init(&img->alloc_lock, NULL);
    pthread_mutex_init(&img->flush_lock, NULL);
    pthread_cond_init(&img->flush_done, NULL);
    pthread_rwlock_init(&img->tables_lock, NULL);
    codec_pool_init(&img->codecs);
}

int image_open(struct qk_io *file, const struct image_options *opts, struct image **out,
               struct qk_error *err)
{
    struct image *img = calloc(1, sizeof(*img));
    if (!img)
        return qk_fail_nomem(err);
    img->file = file;
    img->opts = *opts;
    /* What a process before us wrote may not be stable: the first flush covers that, too. */
    img->unsynced = img->data_unsynced = opts->writable;
    init_locks(img);
    int ret = bitmaps_init(img, err);
    if (ret == 0)
        ret = header_io_load(img, err);
    if (ret == 0) {
        img->rc = refcount_ops(img->g.refcount_order);
        img->data = img->g.data_file ? opts->data : file;
        ret = load_tables(img, err);
    }
    if (ret < 0) {
        qk_error_locate(err, WHERE(file->name, NULL, QK_OFFSET_NONE));
        image_abandon(img);
        return ret;
    }
    img->opts.secret = NULL; /* the caller's, for as long as the call */
    img->opts.unlocked = NULL;
    img->opts.snapshot = NULL;
    *out = img;
    return 0;
}

int image_reload(struct image *img, struct qk_error *err)
{
    l2_shapes_forget(&img->shapes);
    cache_destroy(&img->l2);
    cache_destroy(&img->refcounts);
    cluster_run_vec_free(&img->queued_frees);
    memset(img->tails, 0, sizeof(img->tails));
    int ret = header_io_load(img, err);
    return ret < 0 ? ret : load_tables(img, err);
}

/* ---- closing ---- */

/* What flushes leave in memory: refcounts that fell, and those of a lazy image. */
static int write_the_rest(struct image *img, struct qk_error *err)
{
    int ret = image_writeback(img, true, err);
    if (ret == 0)
        ret = image_writeback(img, true, err);
    if (ret == 0 && img->lazy && __atomic_load_n(&img->writing_begun, __ATOMIC_RELAXED))
        ret = image_set_incompatible(img, 0, INCOMPAT_DIRTY, err);
    return ret;
}

/* Without its bitmaps the disk is still worth all its data. */
static int close_writes(struct image *img, struct qk_error *err)
{
    int ret = bitmaps_close(img, err);
    int rest = write_the_rest(img, ret < 0 ? NULL : err);
    return ret < 0 ? ret : rest;
}

int image_close(struct image *img, struct qk_error *err)
{
    int ret = img->opts.writable && !img->corrupt ? close_writes(img, err) : 0;
    image_abandon(img);
    return ret;
}

void image_abandon(struct image *img)
{
    l2_shapes_destroy(&img->shapes);
    cache_destroy(&img->l2);
    cache_destroy(&img->refcounts);
    freemap_free(img->free);
    overlap_destroy(img);
    bitmaps_destroy(img);
    cluster_run_vec_free(&img->queued_frees);
    u32_vec_free(&img->reftable.dirty);
    header_extensions_free(&img->exts);
    extension_fault_vec_free(&img->stored.faults);
    free(img->reftable.entries);
    free(img->l1);
    free(img->l1_dirty);
    free(img->header_cluster);
    free(img->backing_name);
    free(img->backing_format);
    free(img->luks);
    crypt_free(img->crypt);
    range_lock_destroy(&img->ranges);
    pthread_mutex_destroy(&img->header_lock);
    pthread_mutex_destroy(&img->alloc_lock);
    pthread_mutex_destroy(&img->flush_lock);
    pthread_cond_destroy(&img->flush_done);
    pthread_rwlock_destroy(&img->tables_lock);
    codec_pool_destroy(&img->codecs);
    free(img);
}

/* ---- facts ---- */

void image_set_backing(struct image *img, struct qk_io *backing)
{
    img->backing = backing;
}

const struct header *image_header(const struct image *img)
{
    return &img->h;
}

struct header image_header_copy(struct image *img)
{
    LOCK_SCOPE(&img->header_lock);
    return img->h;
}

const struct geometry *image_geometry(const struct image *img)
{
    return &img->g;
}

const struct header_extensions *image_extensions(const struct image *img)
{
    return &img->exts;
}

char *image_data_file_name(struct image *img)
{
    LOCK_SCOPE(&img->header_lock);
    const struct header_extension *ext = header_extensions_find(&img->exts, HEXT_DATA_FILE);
    return ext ? strndup((const char *)ext->data, ext->len) : NULL;
}

const char *image_backing_name(const struct image *img)
{
    return img->backing_name;
}

const char *image_backing_format(const struct image *img)
{
    return img->backing_format;
}

uint64_t image_size(const struct image *img)
{
    return __atomic_load_n(&img->h.size_bytes, __ATOMIC_RELAXED);
}

struct qk_io *image_data_file(const struct image *img)
{
    return img->g.data_file ? img->data : NULL;
}

struct qk_io *image_file(const struct image *img)
{
    return img->file;
}

const struct image_options *image_options_of(const struct image *img)
{
    return &img->opts;
}

bool image_writable(const struct image *img)
{
    return img->opts.writable;
}

bool image_needs_repair(const struct image *img)
{
    return img->h.version >= 3 && img->h.incompatible & INCOMPAT_DIRTY;
}

const uint64_t *image_l1(const struct image *img, uint32_t *entries)
{
    *entries = img->l1_count;
    return img->l1;
}
