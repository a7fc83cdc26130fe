/*
 * bitmaps.h - the persistent bitmaps of an open image, shared by the files that keep them:
 * bitmaps.c (list), bitmap_bits.c (bits of one), bitmaps_track.c (recording changes),
 * bitmaps_store.c (to disk), bitmaps_edit.c (changes of the list). What is on disk when, and why:
 * doc/design/bitmaps.md.
 */
#ifndef QK_IMAGE_BITMAPS_H
#define QK_IMAGE_BITMAPS_H

#include "format/bitmap.h"
#include "image/image_int.h"

#define BITMAP_NOT_ON_DISK SIZE_MAX
#define BITMAP_NO_CHUNK    UINT64_MAX

/*
 * The bits come in chunks, each what one cluster of the file holds. A bit is set when it is set in
 * the chunk on disk or in the one of `fresh`.
 */
struct bitmap {
    char *name;
    uint8_t *extra; /* data that we do not know */
    uint32_t extra_bytes, extra_flag;
    uint8_t granularity_bits;
    bool enabled;
    bool inconsistent; /* found in use: not to be trusted */
    bool foreign;      /* of a kind that we cannot use */
    bool marked;       /* in use on disk, because of us */
    const char *fault; /* the entry is damaged, and this is why; or NULL */

    size_t entry_at;     /* in the directory on disk, or BITMAP_NOT_ON_DISK */
    uint64_t disk_table; /* the table that the entry names */
    uint32_t disk_entries;

    uint64_t bits;
    uint32_t chunks;
    uint64_t *table;                /* entry of each chunk, host-endian; NULL: not read yet */
    uint64_t **fresh;               /* atomic; bits set since then, NULL: none */
    bool changed;                   /* `table` is not the one on disk */
    struct cluster_run_vec dropped; /* named by the table on disk, not by `table` */

    uint64_t cached; /* the chunk whose bits on disk are in `cache` */
    uint8_t *cache;

    uint64_t *new_table; /* while it is being stored */
    uint64_t new_table_off;
};
DEFINE_VECTOR(bitmap_vec, struct bitmap *)

struct bitmap_set {
    pthread_mutex_t lock;
    struct bitmap_vec list; /* changes with the whole disk held and the lock taken */
    bool loaded;
    bool tracking;    /* atomic: enabled bitmaps are marked, changes of the disk are noted */
    uint64_t dir_off; /* on disk, 0: none */
    uint64_t dir_bytes;
    uint8_t *dir; /* its bytes, padded to whole sectors */
};

static inline bool bitmap_usable(const struct bitmap *b)
{
    return !b->inconsistent && !b->foreign && !b->fault;
}

static inline uint64_t bitmap_chunk_bits(const struct image *img)
{
    return (uint64_t)img->g.cluster_bytes * 8;
}

/* ---- bitmaps.c; with the lock held ---- */
int bitmaps_load(struct image *img, struct qk_error *err);
void bitmap_free(struct bitmap *b);
struct bitmap *bitmaps_find(const struct image *img, const char *name);
/* The same, and it can be used: -ENOENT, -ESTALE (inconsistent), -ENOTSUP, -EINVAL (damaged). */
int bitmaps_find_usable(const struct image *img, const char *name, struct bitmap **out,
                        struct qk_error *err);
int bitmap_judge_usable(const struct image *img, const struct bitmap *b, struct qk_error *err);

/* ---- bitmap_bits.c ---- */
/* Memory for table and chunks of b->bits, all clear. */
int bitmap_make_table(const struct image *img, struct bitmap *b, struct qk_error *err);
/* Reads and judges the table, if that has not been done. Lock held. */
int bitmap_need_table(const struct image *img, struct bitmap *b, struct qk_error *err);
/* Sets the bits of a guest range, len > 0. The table is there. -ENOMEM: some are not set. */
int bitmap_set_range(const struct image *img, struct bitmap *b, uint64_t off, uint64_t len,
                     struct qk_error *err);
/* All bits of a chunk, on disk or fresh; those behind the last one are 0. Lock held. */
int bitmap_read_chunk(const struct image *img, const struct bitmap *b, uint64_t index, uint8_t *out,
                      struct qk_error *err);
/* Makes the fresh bits of a chunk, zero if there are none yet. */
uint64_t *bitmap_fresh_chunk(const struct image *img, struct bitmap *b, uint64_t index);
/* How many bits of the chunk there are. */
uint64_t bitmap_bits_in_chunk(const struct image *img, const struct bitmap *b, uint64_t index);

/* ---- bitmaps_track.c; with the lock held ---- */
/* Marks bitmaps on disk as in use, stable on return. */
int bitmaps_mark(struct image *img, bool disabled_too, struct qk_error *err);

/* ---- bitmaps_store.c; with the whole disk and the lock held ---- */
/* Brings the list to the disk, stable on return. last: the image is being closed, nothing stays in
 * use. removed: clusters of bitmaps that are not in the list any more, or NULL. */
int bitmaps_store(struct image *img, bool last, struct cluster_run_vec *removed,
                  struct qk_error *err);

#endif
