/*
 * image.h - an open qcow2 image: map, read, write, allocate, copy-on-write, flush, resize, and
 * creating one. Knows nothing of names, formats of other layers or programs: the file, the data
 * file and the backing disk are byte stores that the caller opened and keeps.
 *
 * All functions are MT-safe but open, close, and where said otherwise.
 */
#ifndef QK_IMAGE_IMAGE_H
#define QK_IMAGE_IMAGE_H

#include "codec/cipher.h"
#include "format/entry.h"
#include "format/header.h"
#include "format/luks.h"
#include "image/header_evidence.h"
#include "io/io.h"

struct image;

/* Metadata structures for the overlap check (INV-6), as bits; QEMU's overlap-check.* options. */
enum overlap_bit {
    OVERLAP_MAIN_HEADER = 1u << 0,
    OVERLAP_ACTIVE_L1 = 1u << 1,
    OVERLAP_ACTIVE_L2 = 1u << 2,
    OVERLAP_REFCOUNT_BLOCK = 1u << 3,
    OVERLAP_REFCOUNT_TABLE = 1u << 4,
    OVERLAP_SNAPSHOT_TABLE = 1u << 5,
    OVERLAP_INACTIVE_L1 = 1u << 6,
    OVERLAP_INACTIVE_L2 = 1u << 7,
    OVERLAP_BITMAP_DIRECTORY = 1u << 8,
    OVERLAP_CACHED = 0x17f, /* all that needs no I/O to know: QEMU's default */
    OVERLAP_ALL = 0x1ff,
};

/* A key or passphrase, by the name that the caller gave for it. Never kept, never in an error. */
struct image_secret {
    const char *id;
    const uint8_t *data; /* NULL: there is no secret of that name */
    size_t len;
};

struct snapshot_key; /* snapshots.h */

struct image_options {
    bool writable;
    bool for_check;                /* tolerate corrupt bit and damage that a check can describe */
    bool describe;                 /* only facts will be asked for: no guest data, so that a feature
                                      which concerns that is no obstacle */
    uint64_t l2_cache_bytes;       /* 0: sized to the disk, at most IMAGE_L2_CACHE_MAX */
    uint32_t l2_slice_bytes;       /* 0: 4096, at most a cluster */
    uint64_t refcount_cache_bytes; /* 0: IMAGE_REFCOUNT_CACHE_BYTES */
    uint64_t refcount_window_bytes; /* of blocks that snapshots count at once; 0: enough for 2 TiB
                                       of 64 KiB clusters */
    int lazy_refcounts;             /* -1: as the image says; 0; 1 */
    unsigned overlap;               /* of enum overlap_bit */
    int compression_level;          /* of what is written compressed; 0: the default */
    struct qk_io *data;             /* external data file, borrowed; NULL: there is none, or it
                                       comes with image_set_data */
    const struct image_secret *secret;   /* of an encrypted image; looked at while it is opened;
                                          needless with for_check, ignored with describe */
    const struct image *unlocked;        /* the same image, open already: its key serves */
    const struct snapshot_key *snapshot; /* borrowed for the call: shows that one instead of the
                                            active state, read-only; NULL: none */
    bool discard_to_file;                /* punch holes for freed clusters (discard=unmap) */
};
/* Covers 1 TiB with 64 KiB clusters; taken only as slices are used. */
#define IMAGE_L2_CACHE_MAX         (128u << 20)
#define IMAGE_REFCOUNT_CACHE_BYTES (1u << 20)

/*
 * Reads and validates the header and L1. `file` is borrowed until image_close; `backing` may be
 * NULL (then unallocated reads as zero) and is borrowed too. With writable: an image with the
 * dirty bit is opened but image_needs_repair says so: the caller repairs before the first write.
 * -EINVAL damaged, -ENOTSUP feature (named), -ENOMEM, -EIO.
 */
int image_open(struct qk_io *file, const struct image_options *opts, struct image **out,
               struct qk_error *err);
void image_set_backing(struct image *img, struct qk_io *backing);
/* The external data file, borrowed until image_close; before any guest I/O. */
void image_set_data(struct image *img, struct qk_io *data);
/* Flush, write back, clear the dirty bit, release. img is gone whatever is returned. Exclusive. */
int image_close(struct image *img, struct qk_error *err);
/* Releases img without writing anything (after errors, or for read-only checks). */
void image_abandon(struct image *img);

/* ---- facts ---- */
const struct header *image_header(const struct image *img);
/* As it is at one moment. MT-safe, unlike the pointer above. */
struct header image_header_copy(struct image *img);
const struct geometry *image_geometry(const struct image *img);
const struct header_extensions *image_extensions(const struct image *img);
/* As in the header, to be freed; NULL: none, or no memory. MT-safe, unlike image_extensions. */
char *image_data_file_name(struct image *img);
const char *image_backing_name(const struct image *img);   /* NULL: none */
const char *image_backing_format(const struct image *img); /* NULL: none */
uint64_t image_size(const struct image *img);              /* guest bytes */
struct qk_io *image_file(const struct image *img);
/* The external data file; NULL: there is none, or it is not open. */
struct qk_io *image_data_file(const struct image *img);
bool image_has_data_file(const struct image *img);    /* guest data is in another file */
bool image_data_file_is_raw(const struct image *img); /* whose bytes are the disk's */
const struct image_options *image_options_of(const struct image *img);
bool image_writable(const struct image *img);
bool image_needs_repair(const struct image *img); /* dirty bit set */
/* The active L1, host-endian, borrowed; valid while nothing writes to the image. */
const uint64_t *image_l1(const struct image *img, uint32_t *entries);

/* ---- encryption (luks.c, luks_slots.c) ---- */

/* The LUKS area of an image, as its header says. */
struct image_luks {
    struct luks_pointer area;
    struct luks_header header;
    struct cipher_suite suite;
    const struct hash *hash;
};
/* Borrowed; NULL: not encrypted that way, or damaged (for_check). */
const struct image_luks *image_luks(const struct image *img);

/* Guest data is encrypted by its place in the file, and the key for it is not there. */
bool image_bound_to_place(const struct image *img);
/* Stored bytes of a cluster as they must be to mean the same elsewhere. */
struct moved_bytes {
    uint64_t from, to; /* offsets in the file, of whole sectors */
    uint8_t *out;
    const uint8_t *in;
    size_t len;
};
/* Not for images that are bound to their place. -EIO: the cipher failed. */
int image_move_bytes(struct image *img, const struct moved_bytes *m, struct qk_error *err);

#define LUKS_SLOT_ANY (-1)
#define LUKS_ITER_MS  2000 /* when nothing is said */

/* A change of key slots, as `amend` describes it. */
struct luks_amend {
    bool activate; /* fill a slot; else erase slots */
    bool force;    /* also what may make the image unreadable for ever */
    int slot;      /* LUKS_SLOT_ANY: the first free one; all that old_secret opens */
    bool has_iter_ms;
    uint64_t iter_ms;                                   /* time to spend on a passphrase */
    const struct image_secret *old_secret, *new_secret; /* NULL: not given */
};
/*
 * Fills or erases key slots; the image must be open for writing with its key. Stable on return, and
 * at each instant before every passphrase that is not concerned opens the image. Exclusive with
 * respect to other changes of slots. -EINVAL with QEMU's words, -EPERM, -ENOTSUP: no LUKS.
 */
int image_luks_amend(struct image *img, const struct luks_amend *amend, struct qk_error *err);

/* ---- guest I/O; ranges must lie inside the disk ---- */
int image_readv(struct image *img, guest_off_t off, const struct iovec *iov, int iovcnt,
                struct qk_error *err);
int image_writev(struct image *img, guest_off_t off, const struct iovec *iov, int iovcnt,
                 unsigned flags, struct qk_error *err);
/*
 * A compressed write in two steps, so that many threads compress while the streams are written in
 * order. `data` is a cluster, or less where the disk ends in it. *bytes gets the length of the
 * stream; 0: it would not be smaller, write the data as it is.
 */
int image_compress(struct image *img, struct iovec data, struct iovec stream, size_t *bytes,
                   struct qk_error *err);
/* image_writev with QK_WRITE_COMPRESSED for the cluster at off, whose stream is there already. */
int image_write_stream(struct image *img, guest_off_t off, struct iovec stream,
                       struct qk_error *err);
int image_zero(struct image *img, guest_off_t off, uint64_t len, unsigned flags,
               struct qk_error *err); /* IO_ZERO_* */
int image_discard(struct image *img, guest_off_t off, uint64_t len, struct qk_error *err);
int image_flush(struct image *img, struct qk_error *err);
/* This layer only: flags 0 where the backing decides. host_off and OFFSET as qk_disk_status. */
int image_status(struct image *img, guest_off_t off, uint64_t len, struct qk_extent *extent,
                 struct qk_error *err);
int image_resize(struct image *img, uint64_t size, enum qk_prealloc prealloc, unsigned flags,
                 struct qk_error *err);

/*
 * Names another backing file in the header (NULL: none), in one atomic step; stable on return. What
 * the guest sees is the caller's business: image_set_backing. Exclusive. -EINVAL: too long, or an
 * image whose data file is raw; -ENOSPC: no room in the header cluster.
 */
int image_change_backing(struct image *img, const char *name, const char *format,
                         struct qk_error *err);
/*
 * Gives back all clusters of the disk, so that the backing file decides everywhere; snapshots and
 * machine state keep theirs. Stable on return. A crash on the way leaves some of them. Exclusive.
 */
int image_empty(struct image *img, struct qk_error *err);

/*
 * Changes what the header says of the external data file: its name (NULL: as it is, "": none), and
 * whether it is raw, which can only be taken back. In one atomic step; stable on return. -EINVAL.
 */
int image_change_data_file(struct image *img, const char *name, bool raw, struct qk_error *err);

/* What amend changes; members that say nothing leave it as it is. */
struct amend_params {
    uint32_t version;       /* 2 or 3; 0: as it is */
    uint32_t refcount_bits; /* 1 to 64; 0: as it is */
    int lazy_refcounts;     /* 0 or 1; -1: as it is */
    bool has_size, shrink;  /* shrink: the size may be less than it is */
    uint64_t size;
    const struct qk_progress *progress; /* NULL: none */
};
/*
 * Changes the image's format in steps, each safe by itself and stable before the next
 * (doc/design/resize-amend.md); everything is judged before the first. -EINVAL, -ENOTSUP with
 * QEMU's words; -ECANCELED by progress. Exclusive with respect to other changes of shape.
 */
int image_amend(struct image *img, const struct amend_params *params, struct qk_error *err);
/* Only the judgement. */
int image_amend_judge(struct image *img, const struct amend_params *params, struct qk_error *err);

/* ---- machine state, saved behind the disk (vm_state.c) ---- */
/* Its guest address, behind all that L1 entries of the disk cover; QK_OFFSET_NONE: no room. */
uint64_t image_vm_state_off(const struct image *img);
/* Byte `pos` of it on. What was never written reads as zero. -EFBIG: more than L1 can map. */
int image_vm_state_readv(struct image *img, uint64_t pos, const struct iovec *iov, int iovcnt,
                         struct qk_error *err);
int image_vm_state_writev(struct image *img, uint64_t pos, const struct iovec *iov, int iovcnt,
                          struct qk_error *err);

/* ---- persistent bitmaps; changes are stable on return, and atomic ---- */

struct image_bitmap {
    const char *name;         /* valid until the bitmaps of the image change */
    uint8_t granularity_bits; /* log2 of bytes for one bit; in image_bitmap_add 0: the default */
    bool in_use;              /* as found: not to be trusted */
    bool enabled;
};
/* 0 when the extension is stale. */
uint32_t image_bitmap_count(const struct image *img);
int image_bitmap_info(struct image *img, uint32_t index, struct image_bitmap *info,
                      struct qk_error *err);
/* Bytes that all of them take when they are stored in full, in an image with such clusters. */
int image_bitmaps_measure(struct image *img, uint32_t cluster_bits, uint64_t *bytes,
                          struct qk_error *err);
/* -ENOENT no such bitmap, -ESTALE not to be trusted. */
int image_bitmap_status(struct image *img, const char *name, guest_off_t off, uint64_t len,
                        struct qk_bitmap_extent *extent, struct qk_error *err);
int image_bitmap_add(struct image *img, const struct image_bitmap *want, struct qk_error *err);
int image_bitmap_remove(struct image *img, const char *name, struct qk_error *err);
int image_bitmap_clear(struct image *img, const char *name, struct qk_error *err);
int image_bitmap_enable(struct image *img, const char *name, bool enable, struct qk_error *err);
/* Sets in bitmap `name` what is set in bitmap `source` of `from`, which may be img. */
int image_bitmap_merge(struct image *img, const char *name, struct image *from, const char *source,
                       struct qk_error *err);

/* ---- for check and repair (exclusive use of the image) ---- */

/* The fields as they are in the file: those of an image that is open for a check may be mended. */
const struct header *image_header_in_file(const struct image *img);

/* Beside the fields; of an image that is open for a check, else all zero. */
const struct header_stored *image_header_stored(const struct image *img);

/* Forgets every cached table and re-reads header, L1 and refcount table from the file. */
int image_reload(struct image *img, struct qk_error *err);
/* Sets or clears incompatible feature bits in the header, stable on return. */
int image_set_incompatible(struct image *img, uint64_t set, uint64_t clear, struct qk_error *err);

/* ---- creating (create.c) ---- */

/* How a new image is encrypted. */
struct create_encryption {
    enum crypt_method method;          /* CRYPT_AES: only the secret counts */
    const struct image_secret *secret; /* NULL: none given; image_measure needs none */
    struct cipher_suite suite;
    const struct hash *hash;
    uint64_t iter_ms;
};

struct create_params {
    uint64_t size_bytes;
    uint32_t version;        /* 2 or 3 */
    uint32_t cluster_bits;   /* 9 to 21 */
    uint32_t refcount_order; /* 0 to 6; 4 for version 2 */
    bool lazy_refcounts;     /* version 3 */
    bool extended_l2;
    uint32_t compression_type;
    enum qk_prealloc prealloc;
    const char *backing_file, *backing_format; /* NULL: none */
    const char *data_file; /* name of an external data file, which the caller makes; NULL: none */
    bool data_file_raw;
    bool data_file_stale;                       /* what it holds is not the disk's, and not zero */
    const struct create_encryption *encryption; /* NULL: none */
};

/*
 * Writes a new image into `file`, which is empty or whose content may be lost (it is truncated
 * first where possible). Metadata goes out in large sorted writes; the result is flushed.
 * Parameters are validated: -EINVAL with QEMU's meaning.
 */
int image_create(struct qk_io *file, const struct create_params *params, struct qk_error *err);

/* Bytes that an image with these parameters takes, as qemu-img measure counts: `data_clusters`
 * guest clusters allocated. -EFBIG when too large for the format. */
int image_measure(const struct create_params *params, uint64_t data_clusters, uint64_t *bytes,
                  struct qk_error *err);

#endif
