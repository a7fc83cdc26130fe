/*
 * image_int.h - what an open image is made of, shared by the files of this room only.
 * Locks and their order: doc/design/ordering.md.
 */
#ifndef QK_IMAGE_IMAGE_INT_H
#define QK_IMAGE_IMAGE_INT_H

#include "base/checked.h"
#include "base/cleanup.h"
#include "codec/codec.h"
#include "format/refcount.h"
#include "image/cache.h"
#include "image/freemap.h"
#include "image/image.h"
#include "image/l2_shapes.h"
#include "image/range_lock.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Host clusters [first, first + count). */
struct cluster_run {
    uint64_t first, count;
    bool fresh; /* set by allocation: never written, reads as zero */
};
DEFINE_VECTOR(cluster_run_vec, struct cluster_run)
DEFINE_VECTOR(u32_vec, uint32_t)

/* The refcount table in memory, guarded by alloc_lock. */
struct reftable {
    uint64_t *entries; /* host-endian */
    uint64_t count;    /* entries that the table on disk has room for */
    uint64_t off;
    struct u32_vec dirty; /* entries to write, when the table has not moved */
    bool moved;           /* the whole table is to be written at `off`, then the header */
};

/* Contexts and buffers for compressed clusters: one request takes a set, and gives it back. */
#define CODEC_IDLE_MAX 16
struct codec_pool {
    pthread_mutex_t lock;
    struct workspace *idle[CODEC_IDLE_MAX];
    unsigned count;
};

/* How many host clusters with room at their end the allocator of compressed bytes remembers. */
#define PACK_TAILS 8

struct crypt;

struct bitmap_set; /* bitmaps.h */

struct image {
    struct qk_io *file;    /* all metadata, and compressed streams */
    struct qk_io *data;    /* guest bytes: `file`, or the external data file */
    struct qk_io *backing; /* NULL: unallocated reads as zero */
    struct image_options opts;
    struct header h;
    struct header_stored stored; /* for_check: what the header really holds */
    struct geometry g;
    const struct refcount_ops *rc;
    uint8_t *header_cluster; /* as on disk */
    struct header_extensions exts;
    char *backing_name, *backing_format;
    pthread_mutex_t header_lock;

    struct range_lock ranges;

    uint64_t *l1; /* host-endian; entries are read and set atomically */
    uint32_t l1_count;
    uint64_t *l1_dirty; /* bit per 512-byte sector; alloc_lock */
    bool l1_any_dirty;
    struct cache l2;
    struct l2_shapes shapes;
    size_t l2_dirty_limit, refcount_dirty_limit; /* bytes */

    pthread_mutex_t alloc_lock;
    struct reftable reftable;
    struct cache refcounts;
    struct freemap *free;
    struct cluster_run_vec queued_frees;
    uint64_t limit_clusters;    /* first cluster past the end of a file that cannot grow */
    uint64_t end_clusters;      /* one past the highest cluster allocated or found */
    uint64_t fresh_from;        /* clusters from here on read as zero until they are written */
    uint64_t tails[PACK_TAILS]; /* first free byte behind compressed ones; 0: none */
    struct codec_pool codecs;
    struct bitmap_set *bitmaps;
    struct image_luks *luks; /* NULL: no LUKS, or for_check and damaged */
    struct crypt *crypt;     /* NULL: not encrypted, or open without a key */

    pthread_mutex_t flush_lock;
    pthread_cond_t flush_done;
    uint64_t flush_started, flush_finished; /* counts, guarded by flush_lock */
    bool flush_running;
    int flush_result; /* of the last finished one */
    struct qk_error flush_error;
    bool unsynced;      /* atomic: written to the file since the last barrier */
    bool data_unsynced; /* the same for an external data file */
    bool data_uncut;    /* which could not be made shorter with the disk; the disk is held */

    uint64_t length_clusters; /* the file is known to reach this far; flush_lock holder */
    struct table_set *tables; /* overlap.c; NULL: not writable */
    pthread_rwlock_t tables_lock;

    bool writing_begun;        /* atomic: header is prepared for writes */
    bool lazy;                 /* refcounts are written at close only, dirty bit is set */
    bool header_uncertain;     /* atomic: a write of the header failed, see header_io_restore */
    uint64_t uncertain_sector; /* of the header cluster */
    bool corrupt;              /* atomic: overlap found; no more writes */
};

/* ---- refcount.c: all with alloc_lock held ---- */
int reftable_load(struct image *img, struct qk_error *err);
/* Host offset of refcount block `block`, 0 when there is none; validated. */
int refblock_offset(struct image *img, uint64_t block, uint64_t *off, struct qk_error *err);
int refcount_get(struct image *img, uint64_t cluster, uint64_t *value, struct qk_error *err);
/* +1 or -1 on each; the blocks exist. On failure those done are undone. */
int refcount_add(struct image *img, struct cluster_run run, int delta, struct qk_error *err);
/* Appends the clusters of the run whose refcount is 0. */
int refcount_zero_runs(struct image *img, struct cluster_run run, struct cluster_run_vec *out,
                       struct qk_error *err);
int refcount_load_leaf(void *img, uint64_t leaf, uint64_t used[FREEMAP_LEAF / 64],
                       struct qk_error *err);

/* ---- reftable_grow.c ---- */
/* Makes a refcount block for every cluster of the run, growing the table when needed. */
int refblocks_cover(struct image *img, struct cluster_run run, struct qk_error *err);
/* How many clusters a larger table takes that has room for so many entries. -EFBIG */
int reftable_clusters(const struct image *img, uint64_t entries, uint64_t *clusters,
                      struct qk_error *err);

/* ---- alloc.c ---- */
/* `want` clusters in the lowest run that fits; refcount 1. With a file that cannot grow and no
 * such run, fewer: run->count says how many. Takes alloc_lock. */
int alloc_clusters(struct image *img, uint64_t want, struct cluster_run *run, struct qk_error *err);
/* The same with alloc_lock held, and exactly `count` or -ENOSPC. */
int alloc_exact(struct image *img, uint64_t count, struct cluster_run *run, struct qk_error *err);
/* Gives back clusters that nothing ever referred to. Takes alloc_lock. */
void alloc_undo(struct image *img, struct cluster_run run);
/* The lowest free run for metadata of the allocator itself: marks it used, no refcount yet. */
int alloc_reserve(struct image *img, uint64_t count, struct cluster_run *run, struct qk_error *err);
/* The same for `want` clusters or, in a file that cannot grow, fewer: run->count says how many. */
int alloc_reserve_some(struct image *img, uint64_t want, struct cluster_run *run,
                       struct qk_error *err);
void alloc_unreserve(struct image *img, struct cluster_run run);
/* The lowest free clusters, at least one and at most `want` in one run; marked as by reserve. */
int alloc_reserve_lowest(struct image *img, uint64_t want, struct cluster_run *run,
                         struct qk_error *err);
/* The clusters get content: what is behind them may be fresh still, they are not. */
void alloc_note_used(struct image *img, struct cluster_run run);
/* A hole in the file where free clusters are, when that is wanted. */
void alloc_punch(struct image *img, struct cluster_run run);
/* Cuts free clusters off the end of the file, when it ends at freed_end. alloc_lock held. */
void alloc_trim_end(struct image *img, uint64_t freed_end);
/* Room for `bytes` (less than a cluster) compressed ones at *off, beside others where the refcounts
 * allow it: each host cluster that they touch has one reference more. Takes alloc_lock. */
int alloc_bytes(struct image *img, uint64_t bytes, uint64_t *off, struct qk_error *err);
/* Gives back bytes that nothing ever referred to. Takes alloc_lock. */
void alloc_bytes_undo(struct image *img, uint64_t off, uint64_t bytes);
/* The clusters are free, or no longer for compressed bytes alone. alloc_lock held. */
void pack_forget(struct image *img, struct cluster_run run);
/* Queues one reference less on each cluster for after the next writeback. Takes alloc_lock. */
int free_queue(struct image *img, struct cluster_run run, struct qk_error *err);
int free_queue_locked(struct image *img, struct cluster_run run, struct qk_error *err);
/* Applies frees whose removal is stable. Takes alloc_lock. */
int free_release(struct image *img, const struct cluster_run_vec *runs, struct qk_error *err);

/* ---- l2.c ---- */
struct map_extent {
    enum cluster_kind kind;
    uint64_t len;          /* guest bytes */
    uint64_t host;         /* file offset of the first byte, when the kind has a host cluster */
    bool copied;           /* every cluster of the extent has refcount 1 */
    struct l2_entry entry; /* of the first cluster */
};
/* The longest extent of one kind at `off`, at most len bytes and one L2 slice; contiguous in the
 * file when it has host clusters. */
int image_map(struct image *img, guest_off_t off, uint64_t len, struct map_extent *ext,
              struct qk_error *err);
/* Changes an L1 entry; the next writeback writes it. alloc_lock held, or the whole disk. */
void l1_set(struct image *img, uint64_t index, uint64_t raw);
/* Host offset of the L2 table for `off`, allocated or copied when it is not ours alone. */
int l2_table_writable(struct image *img, guest_off_t off, uint64_t *table_off,
                      struct qk_error *err);
/* How a mapping changes: new entry for an old one. Returns false to leave it as it is. */
typedef bool (*l2_change_fn)(void *opaque, uint64_t index, struct l2_entry old,
                             struct l2_entry *entry);
/* Puts an L1 entry in memory, to be written by the next writeback. alloc_lock held. */
void l1_set(struct image *img, uint64_t index, uint64_t raw);
/* What standard entries become that lose what they refer to. */
struct l2_fill {
    uint64_t raw;    /* refers to nothing */
    bool keep_empty; /* entries of 0 stay so */
};
/* As l2_change, for many whole clusters of an image with standard entries. */
int l2_fill(struct image *img, guest_off_t off, uint64_t clusters, struct l2_fill fill,
            struct qk_error *err);
/* Applies fn to `clusters` guest clusters from off on; clusters that lose their host cluster (or
 * compressed bytes) by it are queued as frees. `index` counts from 0. */
int l2_change(struct image *img, guest_off_t off, uint64_t clusters, l2_change_fn fn, void *opaque,
              struct qk_error *err);

/* ---- data.c ---- */
/* Where guest bytes are: as the guest counts, and in img->data. */
struct data_place {
    guest_off_t guest;
    uint64_t host;
};
int data_readv(struct image *img, struct data_place at, const struct iovec *iov, int iovcnt,
               struct qk_error *err);
int data_writev(struct image *img, struct data_place at, const struct iovec *iov, int iovcnt,
                struct qk_error *err);
/* -EBADF, with a text: guest data is asked for, and its file is not open. */
int data_missing(const struct image *img, struct qk_error *err);
/* Makes an external data file stable; nothing to do when there is none. */
int data_sync(struct image *img, struct qk_error *err);

/* ---- data_file.c ---- */
/* Host clusters for guest data: alloc_clusters, or in an external data file the places that belong
 * to the guest clusters anyway. data_undo as alloc_undo. */
int data_alloc(struct image *img, uint64_t guest_cluster, uint64_t want, struct cluster_run *run,
               struct qk_error *err);
void data_undo(struct image *img, struct cluster_run run);
/* The entries no longer name these bytes: an external data file may give back their space. */
void data_discard(struct image *img, guest_off_t off, uint64_t len);
/* Zeroes and discards with image_data_file_is_raw: made in the file's bytes, not in entries. */
int data_raw_zero(struct image *img, guest_off_t off, uint64_t len, unsigned flags,
                  struct qk_error *err);
int data_raw_discard(struct image *img, guest_off_t off, uint64_t len, struct qk_error *err);
/* Nothing is written behind the disk's end: the data file is as long as the disk. */
bool data_ends_with_disk(const struct image *img);
/* The length of an external data file, before the disk grows and after it has shrunk. */
int data_grow(struct image *img, uint64_t size, enum qk_prealloc prealloc, struct qk_error *err);
int data_shrink(struct image *img, uint64_t size, struct qk_error *err);
/* Growing a disk on a raw data file maps what is added: its bytes are there. */
enum qk_prealloc data_growth(const struct image *img, enum qk_prealloc prealloc);

/* ---- crypt.c ---- */
/* Copies the key. by_guest: sectors are numbered as the guest counts, else as img->data does. */
int crypt_new(const struct cipher_suite *suite, const uint8_t *key, bool by_guest,
              struct crypt **out, struct qk_error *err);
void crypt_free(struct crypt *c);
const uint8_t *crypt_key(const struct crypt *c);
int crypt_clone(const struct crypt *c, struct crypt **out, struct qk_error *err);
/* With img->crypt. A write of less than whole sectors needs the clusters held exclusively. */
int crypt_readv(struct image *img, struct data_place at, const struct iovec *iov, int iovcnt,
                struct qk_error *err);
int crypt_writev(struct image *img, struct data_place at, const struct iovec *iov, int iovcnt,
                 struct qk_error *err);
/* -EACCES, with a text: the image is encrypted, and was opened without its key. */
int crypt_locked(const struct image *img, struct qk_error *err);

/* ---- crypt_open.c ---- */
/* What the header says of encryption; with a secret also the key. */
int crypt_open(struct image *img, struct qk_error *err);

static inline bool image_is_encrypted(const struct image *img)
{
    return img->h.crypt_method != CRYPT_NONE;
}

/* ---- compressed.c ---- */
/* A part of a request: `len` bytes of the iovec, from byte `skip` on. */
struct piece {
    const struct iovec *iov;
    int iovcnt;
    size_t skip, len;
};
/* Fills the piece from the compressed cluster of ext, at guest offset off. -EIO when its stream is
 * not sound. */
int compressed_read(struct image *img, guest_off_t off, const struct map_extent *ext,
                    const struct piece *p, struct qk_error *err);
/* image_writev with QK_WRITE_COMPRESSED. */
int compressed_write(struct image *img, guest_off_t off, const struct iovec *iov, int iovcnt,
                     struct qk_error *err);
void codec_pool_init(struct codec_pool *pool);
void codec_pool_destroy(struct codec_pool *pool);
/* The image has another compression type now. Nobody is using one. */
void codec_pool_empty(struct image *img);

/* ---- writing ---- */
/* The range lies in the disk, the image is prepared for writes, and the bitmaps know that guest
 * data in the range will change. The caller holds the range. */
int image_check_writable(struct image *img, guest_off_t off, uint64_t len, struct qk_error *err);
/* Before the first change: autoclear bits, dirty bit for lazy refcounts. */
int image_begin_writing(struct image *img, struct qk_error *err);
/* Asks for a writeback when much metadata is dirty. */
int image_throttle(struct image *img, struct qk_error *err);
/* Points guest clusters at the new host clusters of the run, with no subcluster filled; takes back
 * what it could not link. */
int image_link(struct image *img, uint64_t guest_cluster, struct cluster_run run,
               struct qk_error *err);
/* image_writev and image_zero with the range held exclusively, without looking at the disk's size.
 */
int image_write_held(struct image *img, guest_off_t off, const struct iovec *iov, int iovcnt,
                     struct qk_error *err);
int image_zero_held(struct image *img, guest_off_t off, uint64_t len, unsigned flags,
                    struct qk_error *err);
int image_zero_bytes_held(struct image *img, uint64_t off, uint64_t len, struct qk_error *err);
/* Reads guest bytes without taking the range: the caller holds it. */
int image_read_held(struct image *img, guest_off_t off, const struct iovec *iov, int iovcnt,
                    struct qk_error *err);

/* ---- resize.c ---- */
/* L1 gets room for `count` entries; the caller holds the whole disk. */
int l1_grow(struct image *img, uint64_t count, struct qk_error *err);
uint64_t l1_clusters(const struct image *img, uint64_t entries);
/* Header fields of L1 and size, in one sector; stable on return. Takes header_lock. */
int header_set_l1(struct image *img, uint64_t l1_off, uint32_t l1_entries, uint64_t size,
                  struct qk_error *err);
/* What guest bytes behind the disk's end hold, in [off, end) of one cluster, becomes zero. */
int image_zero_behind(struct image *img, uint64_t off, uint64_t end, struct qk_error *err);

/* ---- preallocate.c ---- */
/* Gives every guest cluster in [first, end), which holds nothing, a host cluster that reads as
 * zero. The caller holds the whole disk. */
int image_preallocate(struct image *img, uint64_t first, uint64_t end, enum qk_prealloc prealloc,
                      struct qk_error *err);

/* ---- shrink.c ---- */
/* The caller holds the whole disk; size is less than the disk's. */
int image_shrink_held(struct image *img, uint64_t size, struct qk_error *err);

/* ---- vm_state.c ---- */
/* Before the disk grows to `size` bytes: machine state that would become part of it is zeroed. The
 * caller holds the whole disk. */
int image_vm_state_forget(struct image *img, uint64_t size, struct qk_error *err);

/* ---- snapshot_table.c ---- */
/* The image, which is being opened to be read, shows the snapshot from here on. -ENOENT */
int snapshot_show(struct image *img, const struct snapshot_key *key, struct qk_error *err);

/* ---- flush.c ---- */
/* Writes all metadata in its order; final: also the refcounts of a lazy image. */
int image_writeback(struct image *img, bool final, struct qk_error *err);
/* Waits for one that runs; others wait until it is resumed. */
void writeback_pause(struct image *img);
void writeback_resume(struct image *img);

/* ---- header_io.c ---- */
int header_io_load(struct image *img, struct qk_error *err);
/* *h is the image's header from here on. header_lock held. */
void header_adopt(struct image *img, const struct header *h);
/* Writes the first sector from img->h. header_lock held. */
int header_io_write(struct image *img, struct qk_error *err);
/* What a header cluster says beside the fields; the extensions' data is borrowed from it. */
struct header_words {
    struct header_extensions exts;
    char *backing_name, *backing_format;
};
/* Of `cluster`, whose fields are h. To be freed also after a failure. */
int header_words_parse(struct image *img, const struct header *h, const uint8_t *cluster,
                       struct header_words *out, struct qk_error *err);
void header_words_free(struct header_words *words);
/* They are the image's from here on. */
void header_words_adopt(struct image *img, struct header_words *words);

/* ---- header_switch.c ---- */
/* After a write of the header that failed, with img->h as it was before: the file may show either,
 * so what was before is written again, in the sector of 512 bytes. header_lock held. */
void header_io_restore(struct image *img, uint64_t sector);
/* When that failed, too: tries anew. Before this succeeds nothing else is written, so that clusters
 * which only one of the two headers knows stay as they are. */
int header_io_settle(struct image *img, struct qk_error *err);
/* What changes beyond the fixed fields. Members that are NULL stay as they are. */
struct header_change {
    const struct header *fixed;              /* all of them, version and header_bytes included */
    const struct header_extension *exts;     /* each replaces the one of its type, or is added */
    size_t ext_count;                        /* data NULL: the extension goes */
    uint64_t autoclear_set, autoclear_clear; /* bits of that field; cleared first */
    const char *backing_name;                /* "": none */
};
/*
 * Switches the header from one state to another with one write of its first sector; what does not
 * fit there (a backing file name, feature names) is stable before, at bytes that the old state does
 * not use. -ENOSPC when that cannot be, nothing changed then. Stable on return. Takes header_lock;
 * img->h, exts, backing_name and backing_format follow.
 */
int header_io_switch(struct image *img, const struct header_change *change, struct qk_error *err);

/* ---- bitmaps.c, bitmaps_track.c, bitmaps_store.c (doc/design/bitmaps.md) ---- */
int bitmaps_init(struct image *img, struct qk_error *err);
void bitmaps_destroy(struct image *img);
/* Forgets the list; for an image that is open for writing reads and judges the directory. */
int bitmaps_open(struct image *img, struct qk_error *err);
/* Stores what was recorded; nothing stays in use. Before the last writeback. Exclusive. */
int bitmaps_close(struct image *img, struct qk_error *err);
/* There is an extension that nobody may trust. */
bool bitmaps_stale(const struct image *img);
/* Guest data in the range is about to change (or to look different: a snapshot that is applied).
 * The caller holds the range. The first one marks the enabled bitmaps on disk, stable on return. */
int bitmaps_note(struct image *img, guest_off_t off, uint64_t len, struct qk_error *err);
/* Guest data will change that nobody can note, as in a repair: enabled bitmaps are not trusted any
 * more. Stable on return. */
int bitmaps_distrust(struct image *img, struct qk_error *err);
/* Around every change of the disk's size; the caller holds the whole disk. Before: all bitmaps are
 * marked on disk, for they may then have any size; -ENOTSUP when one could not follow. After the
 * new size is stable: they follow it, in memory; what was added is dirty. */
int bitmaps_before_resize(struct image *img, uint64_t size, struct qk_error *err);
int bitmaps_after_resize(struct image *img, uint64_t old_size, struct qk_error *err);

/* ---- overlap.c ---- */
/* INV-6: -EIO, and the image marked corrupt, when [off, off + len) hits metadata other than of
 * the kinds in `own`. */
int overlap_check(struct image *img, unsigned own, uint64_t off, uint64_t len,
                  struct qk_error *err);
/* Learns the tables of the image. */
int overlap_load(struct image *img, struct qk_error *err);
/* A table now lives in these clusters (kind: one of enum overlap_bit), or no longer. -ENOMEM */
int overlap_note(struct image *img, struct cluster_run run, unsigned kind);
void overlap_forget(struct image *img, struct cluster_run run);
void overlap_destroy(struct image *img);

/* ---- small helpers ---- */
static inline uint64_t image_cluster_of(const struct image *img, uint64_t bytes)
{
    return bytes >> img->g.cluster_bits;
}

static inline uint64_t image_l1_index(const struct image *img, guest_off_t off)
{
    return off.v >> (img->g.cluster_bits + img->g.l2_bits);
}

static inline uint32_t image_l2_index(const struct image *img, guest_off_t off)
{
    return (uint32_t)(off.v >> img->g.cluster_bits) & (img->g.l2_entries - 1);
}

/* A subcluster of that kind reads as zero without a look at its store. */
static inline bool image_kind_is_zero(const struct image *img, enum cluster_kind kind)
{
    bool unallocated = kind == CLUSTER_UNALLOCATED || kind == CLUSTER_UNALLOCATED_ALLOC;
    return kind == CLUSTER_ZERO_PLAIN || kind == CLUSTER_ZERO_ALLOC ||
           (unallocated && !img->backing);
}

static inline uint64_t l1_load(const struct image *img, uint64_t index)
{
    return __atomic_load_n(&img->l1[index], __ATOMIC_ACQUIRE);
}

static inline void image_note_unsynced(struct image *img)
{
    __atomic_store_n(&img->unsynced, true, __ATOMIC_RELEASE);
}

static inline void image_note_unsynced_data(struct image *img)
{
    if (img->g.data_file)
        __atomic_store_n(&img->data_unsynced, true, __ATOMIC_RELEASE);
    else
        image_note_unsynced(img);
}

static inline void image_note_end(struct image *img, uint64_t end_clusters)
{
    if (end_clusters > img->end_clusters)
        __atomic_store_n(&img->end_clusters, end_clusters, __ATOMIC_RELAXED);
}

/* The whole disk, exclusively. */
static inline void image_drain(struct image *img, struct range_hold *hold)
{
    *hold = (struct range_hold){.first = 0, .end = UINT64_MAX, .exclusive = true};
    range_acquire(&img->ranges, hold);
}

#endif
