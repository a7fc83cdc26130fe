/*
 * header_io.c - reading the header cluster of an open image and changing its fixed fields. Fields
 * are always written together, as the one sector that holds them, so that a change is atomic.
 */
#include "image/image_int.h"

#define HEADER_SECTOR 512

static char *copy_text(const uint8_t *data, size_t len)
{
    char *s = malloc(len + 1);
    if (s) {
        memcpy(s, data, len);
        s[len] = 0;
    }
    return s;
}

static int parse_backing_name(const struct image *img, const struct header *h,
                              const uint8_t *cluster, struct header_words *out,
                              struct qk_error *err)
{
    const struct header_extension *fmt = header_extensions_find(&out->exts, HEXT_BACKING_FORMAT);
    if (fmt && !(out->backing_format = copy_text(fmt->data, fmt->len)))
        return qk_fail_nomem(err);
    if (!h->backing_name_off || !h->backing_name_len)
        return 0;
    if (!range_within(h->backing_name_off, h->backing_name_len, img->g.cluster_bytes))
        return qk_fail_at(err, -EINVAL, WHERE(img->file->name, "header", 8),
                          "Invalid backing file offset: name of %" PRIu32 " bytes at %" PRIu64
                          " leaves the first cluster",
                          h->backing_name_len, h->backing_name_off);
    out->backing_name = copy_text(cluster + h->backing_name_off, h->backing_name_len);
    return out->backing_name ? 0 : qk_fail_nomem(err);
}

static int parse_extensions(struct image *img, const struct header *h, const uint8_t *cluster,
                            struct header_words *out, struct qk_error *err)
{
    size_t start = h->version >= 3 ? h->header_bytes : QCOW2_V2_HEADER_BYTES;
    size_t end = img->g.cluster_bytes;
    if (h->backing_name_off > start && h->backing_name_off < end)
        end = (size_t)h->backing_name_off;
    if (img->opts.for_check)
        return header_extensions_decode_for_check(cluster, start, end, &out->exts,
                                                  &img->stored.faults, err);
    int ret = header_extensions_decode(cluster, start, end, &out->exts, err);
    if (ret < 0)
        qk_error_locate(err, WHERE(img->file->name, "header extensions", start));
    return ret;
}

int header_words_parse(struct image *img, const struct header *h, const uint8_t *cluster,
                       struct header_words *out, struct qk_error *err)
{
    int ret = parse_extensions(img, h, cluster, out, err);
    return ret < 0 ? ret : parse_backing_name(img, h, cluster, out, err);
}

void header_words_free(struct header_words *words)
{
    header_extensions_free(&words->exts);
    free(words->backing_name);
    free(words->backing_format);
}

/* Requests look without a lock at the size, and at fields that nothing changes while they run: what
 * stays is not written. */
void header_adopt(struct image *img, const struct header *h)
{
    char *to = (char *)&img->h;
    const char *from = (const char *)h;
    pthread_rwlock_wrlock(&img->tables_lock);
    __atomic_store_n(&img->h.size_bytes, h->size_bytes, __ATOMIC_RELAXED);
    for (size_t i = 0; i < sizeof(*h); i += sizeof(uint32_t))
        if (memcmp(to + i, from + i, sizeof(uint32_t)) != 0)
            memcpy(to + i, from + i, sizeof(uint32_t));
    pthread_rwlock_unlock(&img->tables_lock);
}

/* A text that says the same stays where it is: others may have been given it. */
static void adopt_text(char **text, char **fresh)
{
    if (*text && *fresh && strcmp(*text, *fresh) == 0)
        return;
    char *old = *text;
    if (old != *fresh)
        *text = *fresh;
    *fresh = old;
}

void header_words_adopt(struct image *img, struct header_words *words)
{
    struct header_extensions old = img->exts;
    img->exts = words->exts;
    words->exts = old;
    adopt_text(&img->backing_name, &words->backing_name);
    adopt_text(&img->backing_format, &words->backing_format);
    header_words_free(words);
    *words = (struct header_words){0};
}

/* The fields: as they are, or as a check takes them to be. */
static int load_fields(struct image *img, uint64_t file_bytes, struct qk_error *err)
{
    uint8_t first[QCOW2_FULL_HEADER_BYTES];
    size_t len = (size_t)min_u64(file_bytes, sizeof(first));
    int ret = io_read(img->file, 0, first, sizeof(first), err);
    if (ret < 0)
        return ret;
    if (img->opts.for_check) {
        extension_fault_vec_free(&img->stored.faults);
        img->stored = (struct header_stored){0};
        return header_choose(img->file, first, len, &img->h, &img->stored, err);
    }
    ret = header_decode(first, len, &img->h, err);
    /* Without a sane cluster size there is no header cluster to read names from. */
    if (ret == 0 && (img->h.cluster_bits < QCOW2_MIN_CLUSTER_BITS ||
                     img->h.cluster_bits > QCOW2_MAX_CLUSTER_BITS ||
                     img->h.refcount_order > QCOW2_MAX_REFCOUNT_ORDER ||
                     img->h.header_bytes > UINT32_C(1) << img->h.cluster_bits))
        ret = header_validate(&img->h, NULL, file_bytes, err);
    return ret;
}

int header_io_load(struct image *img, struct qk_error *err)
{
    uint64_t file_bytes;
    int ret = io_size(img->file, &file_bytes, err);
    if (ret == 0)
        ret = load_fields(img, file_bytes, err);
    if (ret < 0)
        return ret;
    img->g = geometry_of(&img->h);
    free(img->header_cluster);
    img->header_cluster = aligned_alloc(4096, round_up(img->g.cluster_bytes, 4096));
    if (!img->header_cluster)
        return qk_fail_nomem(err);
    /* those of before point into the cluster of before */
    struct header_words words = {0};
    ret = io_read(img->file, 0, img->header_cluster, img->g.cluster_bytes, err);
    if (ret == 0)
        ret = parse_extensions(img, &img->h, img->header_cluster, &words, err);
    if (ret == 0)
        ret = img->opts.for_check ? header_validate_for_check(&img->h, &words.exts, err)
                                  : header_validate(&img->h, &words.exts, file_bytes, err);
    if (ret == 0)
        ret = parse_backing_name(img, &img->h, img->header_cluster, &words, err);
    header_words_adopt(img, &words);
    return ret;
}

const struct header *image_header_in_file(const struct image *img)
{
    return img->opts.for_check ? &img->stored.fields : &img->h;
}

const struct header_stored *image_header_stored(const struct image *img)
{
    return &img->stored;
}

int header_io_write(struct image *img, struct qk_error *err)
{
    header_encode(&img->h, img->header_cluster);
    int ret = io_write(img->file, 0, img->header_cluster, HEADER_SECTOR, 0, err);
    image_note_unsynced(img);
    return ret;
}

/* header_lock held */
static int write_sector(struct image *img, uint64_t sector, struct qk_error *err)
{
    header_encode(&img->h, img->header_cluster);
    uint64_t off = sector * HEADER_SECTOR;
    int ret = io_write(img->file, off, img->header_cluster + off, HEADER_SECTOR, 0, err);
    image_note_unsynced(img);
    return ret < 0 ? ret : io_flush(img->file, err);
}

void header_io_restore(struct image *img, uint64_t sector)
{
    bool stable = write_sector(img, sector, NULL) == 0;
    img->uncertain_sector = sector;
    __atomic_store_n(&img->header_uncertain, !stable, __ATOMIC_RELEASE);
}

int header_io_settle(struct image *img, struct qk_error *err)
{
    if (!__atomic_load_n(&img->header_uncertain, __ATOMIC_ACQUIRE))
        return 0;
    LOCK_SCOPE(&img->header_lock);
    int ret = write_sector(img, img->uncertain_sector, err);
    if (ret == 0)
        __atomic_store_n(&img->header_uncertain, false, __ATOMIC_RELEASE);
    return ret;
}

int image_set_incompatible(struct image *img, uint64_t set, uint64_t clear, struct qk_error *err)
{
    LOCK_SCOPE(&img->header_lock);
    uint64_t old = img->h.incompatible;
    img->h.incompatible = (old | set) & ~clear;
    if (img->h.incompatible == old)
        return 0;
    int ret = header_io_write(img, err);
    if (ret == 0)
        ret = io_flush(img->file, err);
    if (ret < 0)
        img->h.incompatible = old;
    return ret;
}

/* Autoclear bits of features that this version does not keep up to date go with the first write
 * (Format, "autoclear_features"); the dirty bit is there before the first lazy refcount. */
int image_begin_writing(struct image *img, struct qk_error *err)
{
    if (__atomic_load_n(&img->corrupt, __ATOMIC_RELAXED))
        return qk_fail_at(err, -EIO, WHERE(img->file->name, "header", QK_OFFSET_NONE),
                          "the image is corrupt: it is not written to any more");
    int settled = header_io_settle(img, err);
    if (settled < 0 || __atomic_load_n(&img->writing_begun, __ATOMIC_ACQUIRE))
        return settled;
    if (!img->opts.writable)
        return qk_fail_at(err, -EROFS, WHERE(img->file->name, NULL, QK_OFFSET_NONE),
                          "opened read-only");
    LOCK_SCOPE(&img->header_lock);
    /* who came first may be reading the fields by now */
    if (__atomic_load_n(&img->writing_begun, __ATOMIC_ACQUIRE))
        return 0;
    uint64_t autoclear = img->h.autoclear, incompatible = img->h.incompatible;
    img->h.autoclear &= AUTOCLEAR_BITMAPS | (img->g.data_file ? AUTOCLEAR_DATA_FILE_RAW : 0);
    if (img->lazy)
        img->h.incompatible |= INCOMPAT_DIRTY;
    int ret = 0;
    if (img->h.autoclear != autoclear || img->h.incompatible != incompatible) {
        ret = header_io_write(img, err);
        if (ret == 0)
            ret = io_flush(img->file, err);
    }
    if (ret < 0) {
        img->h.autoclear = autoclear;
        img->h.incompatible = incompatible;
    } else {
        __atomic_store_n(&img->writing_begun, true, __ATOMIC_RELEASE);
    }
    return ret;
}
