/*
 * qcowkit.h - the public API of libqcowkit, a qcow2 engine that lives outside any emulator.
 *
 * Conventions, valid for every function unless its comment says otherwise:
 *  - Returns 0 (or a count) on success and a negative errno value on failure.
 *  - The last parameter `err` may be NULL; otherwise it is filled on failure and left alone on
 *    success. It is owned by the caller and needs no release.
 *  - Offsets, lengths and sizes are in bytes and need no alignment.
 *  - Structs that callers fill start with `struct_size`; set them up with their *_INIT macro, so
 *    that fields added by a later version read as zero.
 *  - Thread-safety is said per function: "MT-safe" may run in many threads at once on one object;
 *    "exclusive" needs that no other call is running on the same object.
 *  - The library never prints, never exits, installs no signal handler, keeps no global state.
 *
 * "Format" below is QEMU's docs/interop/qcow2, cited by section name.
 */
#ifndef QCOWKIT_H
#define QCOWKIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QK_VERSION_MAJOR 0
#define QK_VERSION_MINOR 1
#define QK_VERSION_PATCH 0

#if defined(__GNUC__)
#define QK_API                 __attribute__((visibility("default")))
#define QK_PRINTF(fmt_, args_) __attribute__((format(printf, fmt_, args_)))
#else
#define QK_API
#define QK_PRINTF(fmt_, args_)
#endif

/* What the *_INIT macros are made of. */
#define QK_SIZED(type_)                                                                            \
    {                                                                                              \
        .struct_size = sizeof(type_)                                                               \
    }

/* "0.1.0": the version of the library that runs, which may be newer than this header. MT-safe. */
QK_API const char *qk_version(void);

/* ---- errors ----------------------------------------------------------------------------- */

#define QK_OFFSET_NONE UINT64_MAX

/* What went wrong and where. Filled by the call that failed; strings are cut to fit. */
struct qk_error {
    int code;           /* positive errno value */
    char text[1024];    /* one line for a person, without the file's name in front */
    char file[512];     /* the image or data file concerned, "" if none */
    char structure[64]; /* e.g. "L2 table", "header", "" if none */
    uint64_t offset;    /* byte offset of the structure in that file, QK_OFFSET_NONE if none */
};

/* ---- sizes ------------------------------------------------------------------------------ */

/* Parses "64k", "1.5G", "0x200": digits, optional fraction, optional suffix of B K M G T P E (any
 * case, powers of 1024). A number without a suffix is in units of the suffix `unit` ('B' for
 * bytes). -EINVAL for anything else, -ERANGE above INT64_MAX. MT-safe. */
QK_API int qk_parse_size(const char *text, char unit, uint64_t *bytes);

/* Writes "64 KiB", "1.5 GiB" (3 significant digits, as qemu-img does). Returns buf. MT-safe. */
#define QK_SIZE_TEXT_MAX 32
QK_API char *qk_format_size(uint64_t bytes, char buf[QK_SIZE_TEXT_MAX]);

/* ---- secrets ---------------------------------------------------------------------------- */

/* Keys and passphrases by name. What is added is kept in memory that qk_secrets_free wipes, appears
 * in no error, and is looked at only while a call runs that is given the set. */
struct qk_secrets;

/* An empty set; release with qk_secrets_free. -ENOMEM. MT-safe. */
QK_API int qk_secrets_new(struct qk_secrets **out, struct qk_error *err);
/* Wipes and releases; NULL is allowed. Exclusive. */
QK_API void qk_secrets_free(struct qk_secrets *secrets);
/* Adds a copy of len bytes. -EEXIST: there is one of that name. Exclusive. */
QK_API int qk_secrets_add(struct qk_secrets *secrets, const char *id, const void *data, size_t len,
                          struct qk_error *err);
/* Adds what QEMU's object "secret" describes, a NULL-terminated list of "key=value": id; data or
 * file; format=raw (default) or base64; keyid and iv when the content is encrypted (AES-256-CBC, iv
 * in base64) with the secret keyid of the set. -EINVAL, -EEXIST, errors of reading. Exclusive. */
QK_API int qk_secrets_define(struct qk_secrets *secrets, const char *const *definition,
                             struct qk_error *err);

/* ---- progress --------------------------------------------------------------------------- */

/* How long work reports and is stopped. report() is called from one thread at a time, with done
 * <= total; a return value other than 0 cancels the work, which then ends with -ECANCELED. */
struct qk_progress {
    int (*report)(void *opaque, uint64_t done, uint64_t total);
    void *opaque;
};

/* ---- opening ---------------------------------------------------------------------------- */

/* A disk as a guest sees it: an image of any format with the chain of backing files below it. */
struct qk_disk;

enum qk_open_flag {
    QK_OPEN_RDWR = 1u << 0,          /* also write; default is read-only */
    QK_OPEN_NO_BACKING = 1u << 1,    /* do not open the backing file; unallocated reads as zero */
    QK_OPEN_FORCE_SHARE = 1u << 2,   /* -U: read while another program writes; excludes RDWR */
    QK_OPEN_DIRECT = 1u << 3,        /* bypass the page cache (O_DIRECT) */
    QK_OPEN_NO_FLUSH = 1u << 4,      /* cache=unsafe: flushes do nothing, a power cut loses data */
    QK_OPEN_WRITETHROUGH = 1u << 5,  /* each write is stable before it returns */
    QK_OPEN_UNMAP = 1u << 6,         /* pass discards on to the file (punch holes) */
    QK_OPEN_CHECK = 1u << 7,         /* for qk_disk_check: tolerate damage, no repair on open */
    QK_OPEN_NO_IO = 1u << 8,         /* metadata only (info): no guest data will be read */
    QK_OPEN_SNAPSHOT = 1u << 9,      /* -s: writes go to a temporary overlay */
    QK_OPEN_COPY_ON_READ = 1u << 10, /* -C: what is read from below is kept in the top image */
    QK_OPEN_ZERO_TARGET = 1u << 11,  /* for a write-only conversion target: backing is not needed */
    QK_OPEN_NO_SHARE = 1u << 12,     /* no other program may write meanwhile, to raw images either;
                                        FORCE_SHARE outweighs it */
};

/* Which names found inside an image may be followed (INV-7). */
enum qk_policy {
    QK_POLICY_FILES = 0, /* default: backing and data files that are plain local file names */
    QK_POLICY_NONE,      /* nothing: an image that names another file cannot be opened fully */
    QK_POLICY_ALL,       /* also protocol and json: names; only for trusted images */
};

struct qk_open_options {
    size_t struct_size;
    unsigned flags; /* of enum qk_open_flag */
    enum qk_policy policy;
    const char *format;         /* "qcow2", "raw", ...; NULL: probe */
    const char *const *options; /* NULL-terminated "key=value", dotted keys as in --image-opts:
                                   "l2-cache-size=4M", "file.locking=off"; NULL: none */
    const char *snapshot;       /* id, or else name, of an internal snapshot to show read-only: its
                                   content, and its size; or NULL */
    const struct qk_secrets *secrets; /* that options name ("encrypt.key-secret=ID"), for as long as
                                         the call; or NULL */
    const char *snapshot_id, *snapshot_name; /* the same for one that has both (NULL: any) */
};
#define QK_OPEN_OPTIONS_INIT QK_SIZED(struct qk_open_options)

/* Opens `name`: a file name, "json:{...}", "blkdebug:config:image", "nbd:..."; NULL when `opts`
 * has a full description ("driver=qcow2", "file.filename=a.qcow2").
 * A raw image that was not asked for by format is write-protected in its first sector against
 * becoming something else by probing, as QEMU does.
 * Errors: -ENOENT, -EACCES, -EAGAIN (locked by another program), -EINVAL (damaged or unknown),
 * -ENOTSUP (the image uses a feature this version has not; `err` names it), -ELOOP (backing loop).
 * On success *out is owned by the caller; release with qk_disk_close. MT-safe. */
QK_API int qk_disk_open(const char *name, const struct qk_open_options *opts, struct qk_disk **out,
                        struct qk_error *err);

/* Flushes, writes what is pending, releases locks and memory. The handle is gone whatever is
 * returned; an error says that the last writes may not be stable. NULL is allowed. Exclusive. */
QK_API int qk_disk_close(struct qk_disk *disk, struct qk_error *err);

/* ---- reading and writing ---------------------------------------------------------------- */

enum qk_write_flag {
    QK_WRITE_FUA = 1u << 0,         /* stable when the call returns */
    QK_WRITE_UNMAP = 1u << 1,       /* write_zeroes: may free the space */
    QK_WRITE_NO_FALLBACK = 1u << 2, /* write_zeroes: -ENOTSUP rather than writing zero bytes */
    QK_WRITE_COMPRESSED = 1u << 3,  /* write: whole clusters, stored compressed */
};

/* The guest-visible size in bytes. MT-safe. */
QK_API uint64_t qk_disk_size(struct qk_disk *disk);

/* Reads len bytes at off into buf (or into the iovec). -EINVAL when the range leaves the disk,
 * -EIO and others from below. On failure the buffer's content is undefined. MT-safe. */
QK_API int qk_disk_read(struct qk_disk *disk, uint64_t off, void *buf, size_t len,
                        struct qk_error *err);
QK_API int qk_disk_readv(struct qk_disk *disk, uint64_t off, const struct iovec *iov, int iovcnt,
                         struct qk_error *err);

/* Writes len bytes at off. Returns once a read would see them; they are stable after the next
 * qk_disk_flush that returns 0 (or with QK_WRITE_FUA). -EROFS, -ENOSPC, -EIO, -EINVAL (range).
 * On failure the range may hold old or new bytes, everything else is untouched. MT-safe;
 * overlapping writes end in one of the two orders per cluster. */
QK_API int qk_disk_write(struct qk_disk *disk, uint64_t off, const void *buf, size_t len,
                         unsigned flags, struct qk_error *err);
QK_API int qk_disk_writev(struct qk_disk *disk, uint64_t off, const struct iovec *iov, int iovcnt,
                          unsigned flags, struct qk_error *err);

/* Makes the range read as zero, without data where the format can. As qk_disk_write. MT-safe. */
QK_API int qk_disk_write_zeroes(struct qk_disk *disk, uint64_t off, uint64_t len, unsigned flags,
                                struct qk_error *err);

/* Says that the range's content is not needed; whole clusters are freed and read as zero (version
 * 2 images with a backing file keep them). A hint: partial clusters are left alone, but for whole
 * subclusters, which read as zero. MT-safe. */
QK_API int qk_disk_discard(struct qk_disk *disk, uint64_t off, uint64_t len, struct qk_error *err);

/* Machine state, saved behind the disk (Format, "Snapshots"): byte `off` of it on. What was never
 * written reads as zero; the disk's content and size do not change, but a disk that grows over it
 * takes its place. -ENOTSUP for formats without, -EFBIG beyond what the image can map. MT-safe. */
QK_API int qk_disk_read_vm_state(struct qk_disk *disk, uint64_t off, void *buf, size_t len,
                                 struct qk_error *err);
QK_API int qk_disk_write_vm_state(struct qk_disk *disk, uint64_t off, const void *buf, size_t len,
                                  struct qk_error *err);

/* Makes everything that completed before the call stable. MT-safe; concurrent calls merge. */
QK_API int qk_disk_flush(struct qk_disk *disk, struct qk_error *err);

/* ---- block status ----------------------------------------------------------------------- */

enum qk_extent_flag {
    QK_EXTENT_DATA = 1u << 0,      /* bytes are stored */
    QK_EXTENT_ZERO = 1u << 1,      /* reads as zero */
    QK_EXTENT_ALLOCATED = 1u << 2, /* the content is decided by a layer of the chain */
    QK_EXTENT_OFFSET = 1u << 3,    /* host_off and file are valid */
    QK_EXTENT_COMPRESSED = 1u << 4,
    QK_EXTENT_EOF = 1u << 5, /* the extent ends at the end of the disk */
};

struct qk_extent {
    uint64_t off, len; /* guest range in bytes, len > 0 */
    uint64_t host_off; /* in `file` */
    const char *file;  /* name of the file that holds the bytes; valid until the disk closes */
    unsigned flags;    /* of enum qk_extent_flag */
    unsigned depth;    /* layer that decides: 0 the disk itself, 1 its backing file, ... */
};

enum qk_status_flag {
    QK_STATUS_TOP = 1u << 0,  /* only the top layer: what it does not decide has no flags */
    QK_STATUS_FAST = 1u << 1, /* do not ask the file system for holes inside data */
};

/* Describes the longest known extent that starts at off, at most len bytes. -EINVAL when off is
 * not inside the disk. MT-safe. */
QK_API int qk_disk_status(struct qk_disk *disk, uint64_t off, uint64_t len, unsigned flags,
                          struct qk_extent *extent, struct qk_error *err);

/* ---- creating and resizing -------------------------------------------------------------- */

enum qk_prealloc { QK_PREALLOC_OFF, QK_PREALLOC_METADATA, QK_PREALLOC_FALLOC, QK_PREALLOC_FULL };

/* One option of a format's `-o`, as printed by `create -o help`. Static storage. */
struct qk_option_desc {
    const char *name;
    const char *type; /* "str", "size", "num", "bool (on/off)" */
    const char *help;
    const char *default_text; /* NULL: none shown */
    bool amendable;
};

/* The options that `format` can be created with; *count gets their number. NULL: unknown format,
 * or one that cannot be created. Static storage. MT-safe. */
QK_API const struct qk_option_desc *qk_create_options(const char *format, size_t *count);

/* Creates image file `name`. `options` is a NULL-terminated list of "key=value" with the keys of
 * qk_create_options ("size=10G", "cluster_size=64k", "backing_file=...", ...), or NULL. The size
 * may be left out when a backing file is given, which is then opened for it. An existing file is
 * replaced, after its lock was taken; a block device is kept and must be large enough. MT-safe.
 * Errors: -EINVAL (option), -EAGAIN (locked), -ENOSPC, -EFBIG. A failed creation removes a file
 * that it has made. */
QK_API int qk_create(const char *name, const char *format, const char *const *options,
                     struct qk_error *err);

/* What a creation may need beside options. */
struct qk_create_context {
    size_t struct_size;
    const struct qk_secrets *secrets; /* for encrypt.key-secret; or NULL */
};
#define QK_CREATE_CONTEXT_INIT QK_SIZED(struct qk_create_context)
/* qk_create with a context, which may be NULL. */
QK_API int qk_create_with(const char *name, const char *format, const char *const *options,
                          const struct qk_create_context *context, struct qk_error *err);

/* What qemu-img does before it says "Formatting ...": checks how each value is written, opens the
 * backing file for its size (QK_CREATE_UNCHECKED_BACKING: leaves it alone), fills in the defaults
 * that qemu-img shows. *resolved gets a NULL-terminated list of "key=value" in the order in which
 * qemu-img prints it, with sizes in bytes, fit for qk_create; release with qk_options_free.
 * Creates nothing. Errors as qk_create. MT-safe. */
enum qk_create_flag { QK_CREATE_UNCHECKED_BACKING = 1u << 0 };
QK_API int qk_create_resolve(const char *name, const char *format, const char *const *options,
                             unsigned flags, char ***resolved, struct qk_error *err);
/* Releases what qk_create_resolve gave; NULL is allowed. MT-safe. */
QK_API void qk_options_free(char **list);

/* Changes the virtual size. Growing gives zeroes, also over a longer backing file; shrinking needs
 * QK_RESIZE_SHRINK and is the new size in one step, the space is given back after that. `prealloc`
 * is for what is added. -EINVAL: smaller without the flag; -ENOTSUP: the format, or a mode that
 * it has not, or another size of a version 2 image with snapshots; -EFBIG, -ENOSPC, -EROFS.
 * Exclusive with respect to data in the range that goes away; otherwise MT-safe. */
enum qk_resize_flag { QK_RESIZE_SHRINK = 1u << 0 };
QK_API int qk_disk_resize(struct qk_disk *disk, uint64_t size, enum qk_prealloc prealloc,
                          unsigned flags, struct qk_error *err);

/* ---- information ------------------------------------------------------------------------ */

/* What is known of an open disk. Strings belong to the disk. */
struct qk_info {
    size_t struct_size;
    const char *name;   /* as QEMU would print it */
    const char *format; /* "qcow2", "raw", ... */
    uint64_t virtual_size;
    uint64_t actual_size;  /* bytes that the file occupies; QK_OFFSET_NONE: unknown */
    uint64_t file_length;  /* bytes to the file's end; QK_OFFSET_NONE: unknown */
    uint32_t cluster_size; /* 0: the format has none */
    bool read_only, encrypted, dirty;
    bool zero_init; /* unallocated reads as zero (not a device with old content) */
    bool can_zero, can_discard;
    const char *backing_file;   /* as written in the image; NULL: none */
    const char *backing_full;   /* resolved against the image's place; NULL: none or unresolvable */
    const char *backing_format; /* NULL: not given */
    uint32_t snapshot_count, bitmap_count;
    uint64_t vm_state_off; /* where vmstate begins in guest address space */
    struct qk_info_qcow2 { /* only for format "qcow2" */
        uint32_t version;  /* 2 or 3 */
        uint32_t refcount_bits;
        const char *compression_type;
        bool lazy_refcounts, corrupt, extended_l2, data_file_raw;
        const char *data_file;                        /* NULL: none */
        const char *encryption;                       /* NULL, "aes", "luks" */
        uint64_t incompatible, compatible, autoclear; /* feature bits, raw */
    } qcow2;
    bool probed;                /* format by probing; a raw image then guards its first sector */
    const char *data_file_full; /* the external data file that is open; NULL: none */
    const char *file_name;   /* of the child that holds the format's bytes; NULL: there is none */
    const char *file_driver; /* "file", "host_device", "blkdebug", ... */
};
#define QK_INFO_INIT QK_SIZED(struct qk_info)

/* Fills info (set up with QK_INFO_INIT) with what is known. Reads no guest data. MT-safe. */
QK_API int qk_disk_info(struct qk_disk *disk, struct qk_info *info, struct qk_error *err);

/* The layer below, NULL at the bottom. Belongs to `disk`: do not close it. MT-safe. */
QK_API struct qk_disk *qk_disk_backing(struct qk_disk *disk);

/* How a disk is encrypted. Strings belong to the disk; those that do not apply are NULL. */
struct qk_encryption_info {
    size_t struct_size;
    const char *format; /* "luks"; "aes": nothing else is known */
    const char *cipher_alg, *cipher_mode, *ivgen_alg, *ivgen_hash_alg, *hash_alg, *uuid;
    uint64_t payload_offset;
    uint32_t master_key_iterations;
    unsigned slot_count;
    struct qk_key_slot {
        bool active;
        uint32_t iterations, stripes;
        uint64_t key_offset;
    } slots[8];
};
#define QK_ENCRYPTION_INFO_INIT QK_SIZED(struct qk_encryption_info)
/* Needs no secret (QK_OPEN_NO_IO). -ENOTSUP: not encrypted. MT-safe. */
QK_API int qk_disk_encryption(struct qk_disk *disk, struct qk_encryption_info *info,
                              struct qk_error *err);

/* ---- internal snapshots ----------------------------------------------------------------- */

/* One internal snapshot (Format, "Snapshots"). Strings belong to the disk, until its snapshots are
 * changed. */
struct qk_snapshot_info {
    size_t struct_size;
    const char *id, *name;
    uint64_t vm_state_size, disk_size, vm_clock_ns, icount; /* icount QK_OFFSET_NONE: not stored */
    int64_t date_sec;
    uint32_t date_nsec;
};
#define QK_SNAPSHOT_INFO_INIT QK_SIZED(struct qk_snapshot_info)
/* index counts from 0 up to qk_info.snapshot_count. -EINVAL: there is none. MT-safe. */
QK_API int qk_disk_snapshot(struct qk_disk *disk, uint32_t index, struct qk_snapshot_info *info,
                            struct qk_error *err);
/* Bytes in the file that nothing but this snapshot uses: what deleting it would free. Reads only
 * tables that no other snapshot shares. MT-safe. */
QK_API int qk_disk_snapshot_freed(struct qk_disk *disk, uint32_t index, uint64_t *bytes,
                                  struct qk_error *err);

/* Changing snapshots. Each call happens as a whole and is stable when it returns 0, or not at all;
 * other calls on the disk wait meanwhile. Snapshots are named by id and name: one that is NULL does
 * not matter, the first snapshot that fits is meant. -ENOENT: there is none. -ENOTSUP: not for this
 * format, or for images with an external data file. -ERANGE: the image's refcount_bits cannot
 * express how often clusters would be shared (the error says which width would do). -EROFS,
 * -ENOSPC. MT-safe. */
struct qk_snapshot_options {
    size_t struct_size;
    const char *name;       /* need not be unique */
    uint64_t vm_state_size; /* of machine state that qk_disk_write_vm_state wrote: it goes to the
                               snapshot, the disk has none then; 0: none */
    uint64_t vm_clock_ns, icount;
    int64_t date_sec; /* 0: now */
    uint32_t date_nsec;
};
#define QK_SNAPSHOT_OPTIONS_INIT QK_SIZED(struct qk_snapshot_options)
/* Keeps the disk's present content under a name. */
QK_API int qk_disk_snapshot_create(struct qk_disk *disk, const struct qk_snapshot_options *opts,
                                   struct qk_error *err);
/* Clusters that nothing else uses are free then. */
QK_API int qk_disk_snapshot_delete(struct qk_disk *disk, const char *id, const char *name,
                                   struct qk_error *err);
/* The disk becomes what it was in the snapshot, which stays. Its size may change (not in version 2:
 * -ENOTSUP). -EBUSY: the image has persistent bitmaps, which would describe another disk. */
QK_API int qk_disk_snapshot_apply(struct qk_disk *disk, const char *id, const char *name,
                                  struct qk_error *err);
/* new_name need not be unique. */
QK_API int qk_disk_snapshot_rename(struct qk_disk *disk, const char *id, const char *name,
                                   const char *new_name, struct qk_error *err);

/* ---- persistent bitmaps ----------------------------------------------------------------- */

/* One persistent bitmap (Format, "Bitmaps extension"). Strings belong to the disk, until its
 * bitmaps are changed. */
struct qk_bitmap_info {
    size_t struct_size;
    const char *name;
    uint64_t granularity; /* guest bytes that one bit stands for */
    bool in_use;          /* a program had it open and did not write it back: not to be trusted */
    bool enabled;         /* records writes once the image is opened for writing */
};
#define QK_BITMAP_INFO_INIT QK_SIZED(struct qk_bitmap_info)
/* index counts from 0 up to qk_info.bitmap_count. -EINVAL for no such bitmap or a malformed
 * directory. MT-safe. */
QK_API int qk_disk_bitmap(struct qk_disk *disk, uint32_t index, struct qk_bitmap_info *info,
                          struct qk_error *err);

/* A guest range whose bits in a bitmap are alike. */
struct qk_bitmap_extent {
    uint64_t off, len; /* bytes, len > 0; borders inside the disk are those of whole bits */
    bool dirty;        /* written to while the bitmap was enabled */
};
/* The longest range from off on, at most len bytes, that is dirty or clean as a whole in bitmap
 * `name`. What is written meanwhile may be there or not. Reads no guest data.
 * -ENOENT no such bitmap; -ESTALE it was in use and is not to be trusted; -EINVAL off is not inside
 * the disk, or the bitmap is damaged; -EIO. MT-safe. (Format, "Bitmaps".) */
QK_API int qk_disk_bitmap_status(struct qk_disk *disk, const char *name, uint64_t off, uint64_t len,
                                 struct qk_bitmap_extent *extent, struct qk_error *err);

/* Changes of the persistent bitmaps of a qcow2 image of version 3, opened for writing. Each waits
 * for the requests that run, is atomic, and is stable when it returns 0; a failed one has changed
 * nothing (a merge may have made ranges dirty in memory). All are MT-safe. Common errors: -ENOENT
 * no such bitmap; -ESTALE it was in use and can only be removed; -ENOTSUP the format, or the
 * version of the image, has no bitmaps; -EROFS, -ENOSPC, -EIO. */
enum qk_bitmap_flag { QK_BITMAP_DISABLED = 1u << 0 }; /* does not record writes */
/* Adds an empty bitmap. name: 1 to 1023 bytes. granularity: a power of two from 512 to 2 GiB, 0 for
 * the cluster size within 4 KiB and 64 KiB. -EEXIST, -EINVAL; -EFBIG: over 512 MiB of bits, or more
 * than 65535 bitmaps. */
QK_API int qk_disk_bitmap_add(struct qk_disk *disk, const char *name, uint64_t granularity,
                              unsigned flags, struct qk_error *err);
/* Removes it, also one that is not to be trusted. */
QK_API int qk_disk_bitmap_remove(struct qk_disk *disk, const char *name, struct qk_error *err);
/* Makes all ranges clean. */
QK_API int qk_disk_bitmap_clear(struct qk_disk *disk, const char *name, struct qk_error *err);
/* Writes from now on are recorded, or not. */
QK_API int qk_disk_bitmap_enable(struct qk_disk *disk, const char *name, struct qk_error *err);
QK_API int qk_disk_bitmap_disable(struct qk_disk *disk, const char *name, struct qk_error *err);
/* Makes dirty in bitmap `name` of disk what is dirty in bitmap `source_name` of `source`, which may
 * be the same disk, or another one of the same size; granularities may differ. -EINVAL: the sizes
 * do. */
QK_API int qk_disk_bitmap_merge(struct qk_disk *disk, const char *name, struct qk_disk *source,
                                const char *source_name, struct qk_error *err);

/* ---- amending --------------------------------------------------------------------------- */

/* The options that qk_disk_amend takes for `format`; *count gets their number. NULL: none. Static
 * storage. MT-safe. */
QK_API const struct qk_option_desc *qk_amend_options(const char *format, size_t *count);

/* FORCE: also what loses data or keys for good (a smaller size, erasing the last key slot). */
enum qk_amend_flag { QK_AMEND_FORCE = 1u << 0 };

struct qk_amend_settings {
    size_t struct_size;
    unsigned flags;                   /* of enum qk_amend_flag */
    const struct qk_secrets *secrets; /* for encrypt.*-secret; or NULL */
    struct qk_progress progress;
};
#define QK_AMEND_SETTINGS_INIT QK_SIZED(struct qk_amend_settings)

/* Changes options of the image of `disk`, opened with QK_OPEN_RDWR: a NULL-terminated list of
 * "key=value" with the keys of qk_amend_options. All is judged before anything changes; then the
 * steps (version up, refcount width, names, key slots, size, lazy refcounts, version down) follow
 * one another, each safe against crashes and errors by itself and stable before the next: a
 * failure leaves the image valid, with the content it had. `settings` may be NULL. Another refcount
 * width takes room for the new refcount blocks in the file, and memory for the refcount table and
 * 4 MiB. -EINVAL: unknown or wrong option, a refcount that does not fit (the cluster is named);
 * -ENOTSUP: format, or a feature that the older version does not have; -ENOSPC, -ECANCELED.
 * Exclusive. (Format, "Header".) */
QK_API int qk_disk_amend(struct qk_disk *disk, const char *const *options,
                         const struct qk_amend_settings *settings, struct qk_error *err);

/* ---- check and repair ------------------------------------------------------------------- */

/* NONE: a note, counted nowhere. ERROR: it could not be read, so there may be more damage. */
enum qk_severity { QK_SEVERITY_NONE, QK_SEVERITY_LEAK, QK_SEVERITY_CORRUPTION, QK_SEVERITY_ERROR };
/* What `fix` does about a finding: nothing; repairs it without loss; gives up what is damaged, or
 * decides between several ways, where `allow` has it. */
enum qk_repair { QK_REPAIR_NONE, QK_REPAIR_SAFE, QK_REPAIR_LOSSY, QK_REPAIR_ASK };

/* One of those who name a cluster. */
struct qk_cluster_user {
    size_t struct_size;
    const char *structure; /* "guest data", "L2 table", "header", ... */
    uint64_t file_off;     /* of the entry that names it, or of the structure that lies in it */
    uint64_t guest_off;    /* QK_OFFSET_NONE: none */
    const char *snapshot;  /* id; NULL: the active disk, or none */
};
#define QK_USERS_LISTED 8u

/* One finding. Name, structure, explanation are static; the rest is valid during the callback. */
struct qk_problem {
    size_t struct_size;
    uint32_t number;         /* stable, never reused: see `qcowkit check --explain` */
    const char *name;        /* e.g. "refcount-too-low" */
    const char *structure;   /* e.g. "refcount block" */
    const char *text;        /* one line, as qemu-img prints it where qemu-img knows the problem */
    const char *explanation; /* what it means, in a sentence or a few; of each kind the same */
    enum qk_severity severity;
    enum qk_repair repair;    /* of this finding in this image; a kind may have another elsewhere */
    bool repaired;            /* this run has repaired it */
    uint64_t file_off;        /* of the damaged bytes; QK_OFFSET_NONE: none */
    uint64_t guest_off;       /* QK_OFFSET_NONE: none */
    uint64_t expected, found; /* the value that belongs there, if known, and the one there */
    const char *snapshot;     /* id of the snapshot that it concerns; NULL: none, or not known */
    const char *snapshot_name;
    uint64_t guest_bytes; /* behind guest_off, of the disk; 0: none */
    /* Who shares a cluster that is counted for fewer: the first ones, and the number of references;
     * told for the first few hundred clusters. */
    const struct qk_cluster_user *users;
    unsigned user_count; /* at most QK_USERS_LISTED; 0: nobody, or not known */
    uint64_t user_total;
    unsigned allow;     /* of enum qk_allow: what lets a repair do more than `fix`; 0: nothing */
    const char *bitmap; /* name of the bitmap that it concerns; NULL: none, or not known */
};

#define QK_RUN_NUMBERS 4
#define QK_RUN_LEAST   16 /* fewer are told one by one */
/* How `count` findings in a row differ: number i, from 0 on, has the first one's values and i times
 * their steps, modulo 2^64; file_off and (file_bit + i * file_bits_step) / 8. */
struct qk_problem_run {
    size_t struct_size;
    uint64_t count, file_bits_step, guest_step, found_step; /* of file_off, guest_off, found */
    unsigned file_bit, number_count;
    struct qk_run_number {        /* in the text, in its order: those that differ */
        unsigned at, width, base; /* of its digits in the first one's; 10 or 16 */
        uint64_t value, step;
    } numbers[QK_RUN_NUMBERS];
};

/* One step of a repair. Strings are static, but `lost`, which is valid in the callback only. */
struct qk_plan_step {
    size_t struct_size;
    const char *action;       /* e.g. "raise refcounts", "clear entry" */
    const char *structure;    /* e.g. "refcount block" */
    uint64_t file_off, bytes; /* what is written; in one epoch with its neighbours */
    uint64_t count;           /* of the values in it that change */
    bool has_values;          /* at most 8 bytes: they are big-endian numbers */
    uint64_t from, to;
    uint64_t lost_off, lost_bytes; /* guest range that is given up; QK_OFFSET_NONE, 0: none */
    unsigned epoch;   /* steps of a higher epoch are written after all of a lower one are stable */
    const char *lost; /* what else is given up, e.g. "snapshot 1 (monday)"; NULL: nothing */
};

/* Repairs that choose, and are never implied by `fix`. */
enum qk_allow {
    QK_ALLOW_COPIES = 1u << 0,    /* guest clusters that share a cluster get one each */
    QK_ALLOW_ENTRIES = 1u << 1,   /* L1 and L2 entries that lead nowhere are cleared */
    QK_ALLOW_SNAPSHOTS = 1u << 2, /* impossible entries are dropped, uncounted ones taken in */
    QK_ALLOW_BITMAPS = 1u << 3,   /* bitmaps that cannot be used are dropped */
    QK_ALLOW_HEADER = 1u << 4,    /* header fields get the likely value, or none */
    QK_ALLOW_ROLLBACK = 1u << 5,  /* damaged active tables: the disk goes back to a snapshot */
    QK_ALLOW_L1 = 1u << 6,        /* what is lost of an L1 table as a whole is given up */
};

enum qk_fix { QK_FIX_LEAKS = 1u << 0, QK_FIX_ERRORS = 1u << 1 };

#define QK_LOSS_RANGES 16u

struct qk_guest_range {
    uint64_t off, bytes;
};
/* What of a disk cannot be read any more; where a table is lost, all that it could describe. */
struct qk_check_loss {
    size_t struct_size;
    const char *snapshot, *snapshot_name; /* NULL: the disk as it is now */
    uint64_t bytes, disk_bytes;
    const struct qk_guest_range *ranges; /* the first ones, ascending */
    unsigned range_count;                /* of these, at most QK_LOSS_RANGES */
    uint64_t range_total;                /* of all */
    bool at_least; /* there was more than could be remembered, and `bytes` leaves it out */
};

struct qk_check_options {
    size_t struct_size;
    unsigned fix;     /* of enum qk_fix; 0: only look (needs no write access) */
    unsigned threads; /* 0: as many as cores */
    void (*on_problem)(void *opaque, const struct qk_problem *problem); /* one call at a time */
    void (*on_message)(void *opaque, const char *line); /* e.g. "Rebuilding refcount structure" */
    void *opaque;
    struct qk_progress progress;
    unsigned allow; /* of enum qk_allow; only with fix */
    bool plan_only; /* tell what `fix` would do, and write nothing; needs no write access */
    /* The plan, in order, before anything of it is written. */
    void (*on_step)(void *opaque, const struct qk_plan_step *step);
    /* A new file that takes what the repair overwrites, for qk_undo; made only when something is
     * written. NULL: none. What cannot be saved is not overwritten. */
    const char *undo_file;
    /* QK_RUN_LEAST findings or more that differ by equal steps, as the first of them and the steps.
     * False: on_problem is called for each of them, as it is where this is NULL. */
    bool (*on_run)(void *opaque, const struct qk_problem *first, const struct qk_problem_run *run);
    /* For QK_ALLOW_ROLLBACK: id or name of the snapshot; NULL: the newest sound one. -ENOENT,
     * -EUCLEAN, -ERANGE: it must go there and cannot; nothing was changed. */
    const char *rollback;
    /* What the damage costs: a call for the disk, and for each snapshot, of which something cannot
     * be read any more; after the findings and before the plan. */
    void (*on_loss)(void *opaque, const struct qk_check_loss *loss);
};
#define QK_CHECK_OPTIONS_INIT QK_SIZED(struct qk_check_options)

struct qk_check_result {
    size_t struct_size;
    uint64_t corruptions, leaks; /* still there when the call returned */
    uint64_t corruptions_fixed, leaks_fixed;
    uint64_t check_errors;  /* places that could not be read */
    uint64_t image_end_off; /* end of the highest used cluster */
    uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters;
    uint64_t steps;  /* of the plan */
    bool undo_saved; /* opts->undo_file was written */
    /* With opts->on_loss: bytes of the disk that cannot be read any more; snapshots like that. */
    uint64_t lost_bytes, lossy_snapshots;
    /* A repair lowers no refcount: what looks leaked may belong to what is damaged. */
    bool leaks_kept;
};
#define QK_CHECK_RESULT_INIT QK_SIZED(struct qk_check_result)

/* Looks for damage in the top image of `disk` (opened with QK_OPEN_CHECK) and repairs what
 * opts->fix asks for; opts may be NULL. Its callbacks come from one thread at a time, and make no
 * calls on `disk`. A finding is no error: the call returns 0 when it got to the end, and
 * result->check_errors counts what it could not read. Memory: 16 MiB and 8 MiB for each TiB of
 * 64 KiB clusters, 12 MiB more for a repair. -ENOTSUP: the format has no check; -EROFS: `fix`, and
 * the disk was not opened for writing; -EEXIST: opts->undo_file is there; -EIO: also
 * QK_FIX_LEAKS alone where refcounts have to be rebuilt; -ENOSPC, -ECANCELED; those of
 * opts->rollback. A repair that fails before its first write has changed nothing; one that fails
 * later can be repeated, or taken back with qk_undo. Exclusive. */
QK_API int qk_disk_check(struct qk_disk *disk, const struct qk_check_options *opts,
                         struct qk_check_result *result, struct qk_error *err);

struct qk_undo_result {
    size_t struct_size;
    uint64_t bytes;   /* that were put back */
    uint64_t length;  /* of the file, again */
    bool never_begun; /* the repair had changed nothing yet, and nothing was done */
};
#define QK_UNDO_RESULT_INIT QK_SIZED(struct qk_undo_result)

/* Gives file `name`, or what a json: name makes of a file, back the bytes and the length that it
 * had before the repair which wrote `undo_file`; also after a repair or an undo that was cut off.
 * May be repeated. -EINVAL: no undo file, or a damaged one; -EUCLEAN: it is about another image, or
 * the image was changed since the repair: then, too, nothing was written. -EACCES: the undo file
 * cannot be written to, and has to note that an undo has begun. -EAGAIN: another program uses the
 * image. MT-safe. */
QK_API int qk_undo(const char *name, const char *undo_file, struct qk_undo_result *result,
                   struct qk_error *err);

/* ---- jobs ------------------------------------------------------------------------------- */

enum qk_convert_flag {
    QK_CONVERT_TARGET_IS_ZERO = 1u << 0, /* the target already reads as zero */
    QK_CONVERT_SALVAGE = 1u << 1,        /* unreadable ranges become zeroes */
    QK_CONVERT_COMPRESS = 1u << 2,
    QK_CONVERT_TARGET_BACKING = 1u << 3, /* target has a backing file: copy what differs from it */
    QK_CONVERT_OUT_OF_ORDER = 1u << 4,   /* writes need not be ascending (-W) */
};

struct qk_convert_options {
    size_t struct_size;
    unsigned flags;
    unsigned threads;            /* workers; 0: as many as cores, at most 16 */
    uint64_t sparse_bytes;       /* zero runs of at least this many bytes are not written; 0: only
                                    what the source says is zero is skipped, and all is allocated */
    uint64_t rate_bytes_per_sec; /* 0: unlimited */
    const struct qk_disk *target_backing; /* the target's backing disk, opened apart, or NULL */
    struct qk_progress progress;
    void (*on_salvage)(void *opaque, uint64_t off, uint64_t len, const struct qk_error *why);
    void *opaque;
};
#define QK_CONVERT_OPTIONS_INIT                                                                    \
    {                                                                                              \
        .struct_size = sizeof(struct qk_convert_options), .sparse_bytes = 4096                     \
    }

/* Copies the concatenation of `count` sources into target, which must be at least as large, and
 * flushes it. Memory is bounded by threads x 4 MiB, with QK_CONVERT_COMPRESS threads x 6 clusters
 * more. -ECANCELED; errors of either side. The target's content is undefined after a failure. */
QK_API int qk_convert(struct qk_disk *const *sources, size_t count, struct qk_disk *target,
                      const struct qk_convert_options *opts, struct qk_error *err);

enum qk_commit_flag {
    QK_COMMIT_KEEP = 1u << 0, /* leave the disk's own image as it is, do not empty it */
};

struct qk_commit_options {
    size_t struct_size;
    const char *base; /* the layer of the chain that gets the data; NULL: the backing file */
    unsigned flags;   /* of enum qk_commit_flag */
    unsigned threads; /* workers; 0: as many as cores, at most 16 */
    uint64_t rate_bytes_per_sec; /* 0: unlimited */
    struct qk_progress progress;
};
#define QK_COMMIT_OPTIONS_INIT QK_SIZED(struct qk_commit_options)

/* Writes into layer `base` what the layers above it hold, until it shows the same as `disk`; it is
 * enlarged when it is smaller. Then, without QK_COMMIT_KEEP and when `base` is the backing file,
 * the image of `disk`, opened with QK_OPEN_RDWR, is emptied; over another layer it is left as it
 * is, and so are the layers between, whose content may be no use on their own any more.
 * The image keeps all its data until that in `base` is stable, so that what failed or was cut off
 * can be done again. `base` stays open for writing until the disk is closed. Memory is bounded by
 * threads x 2 MiB. -EINVAL: no backing file; -ENOENT: no such layer; -EAGAIN: another program uses
 * base; -EACCES, -EROFS: it cannot be written; -ECANCELED. Exclusive. */
QK_API int qk_commit(struct qk_disk *disk, const struct qk_commit_options *options,
                     struct qk_error *err);

enum qk_rebase_flag {
    QK_REBASE_HEADER_ONLY = 1u << 0, /* believe that the content is the same; open nothing */
    QK_REBASE_COMPRESS = 1u << 1,    /* what has to be copied is stored compressed */
};

struct qk_rebase_options {
    size_t struct_size;
    unsigned flags;             /* of enum qk_rebase_flag */
    const char *backing_file;   /* as it shall stand in the image; NULL, "": none */
    const char *backing_format; /* needed when there is a backing file */
    unsigned open_flags;        /* for opening it: of enum qk_open_flag, e.g. QK_OPEN_DIRECT */
    enum qk_policy policy;      /* for names inside it */
    unsigned threads;           /* workers; 0: as many as cores, at most 16 */
    struct qk_progress progress;
};
#define QK_REBASE_OPTIONS_INIT QK_SIZED(struct qk_rebase_options)

/* Gives the image of `disk`, opened with QK_OPEN_RDWR, another backing file. Where the old and the
 * new one differ and the image decides nothing, it first gets the old content, stable before the
 * header changes in one step; so a guest sees the same before, after, and at any crash between. A
 * new backing file that rests on the image itself is refused (-ELOOP).
 * With QK_REBASE_HEADER_ONLY the disk goes on to show what it was opened with until it is closed.
 * Memory is bounded by threads x 4 MiB. -EINVAL (format missing, name too long), -ENOSPC (no room
 * in the image or in its header), errors of opening and I/O, -ECANCELED. Exclusive. */
QK_API int qk_rebase(struct qk_disk *disk, const struct qk_rebase_options *options,
                     struct qk_error *err);

struct qk_compare_result {
    size_t struct_size;
    bool equal;
    enum qk_compare_why {
        QK_COMPARE_SAME,
        QK_COMPARE_CONTENT,
        QK_COMPARE_SIZE,
        QK_COMPARE_ALLOCATION,
        QK_COMPARE_NO_STATUS,
        QK_COMPARE_NO_READ /* the call failed: at block status, at reading */
    } why;
    uint64_t off;      /* of the first difference */
    bool size_differs; /* the longer one was compared with zeroes beyond the shorter's end */
};
#define QK_COMPARE_RESULT_INIT QK_SIZED(struct qk_compare_result)

/* Compares what guests see. strict: sizes and allocation must agree too. MT-safe. */
QK_API int qk_compare(struct qk_disk *a, struct qk_disk *b, bool strict,
                      const struct qk_progress *progress, struct qk_compare_result *result,
                      struct qk_error *err);

struct qk_measure_result {
    size_t struct_size;
    uint64_t required;        /* file size when only what is allocated now is copied */
    uint64_t fully_allocated; /* file size when every guest byte is written */
    uint64_t bitmaps;         /* QK_OFFSET_NONE: not known */
};
#define QK_MEASURE_RESULT_INIT QK_SIZED(struct qk_measure_result)

/* How large a `format` image with `options` (as qk_create) would be that holds `source`, or an
 * empty one of the options' size when source is NULL. Creates nothing. MT-safe. */
QK_API int qk_measure(struct qk_disk *source, const char *format, const char *const *options,
                      struct qk_measure_result *result, struct qk_error *err);

/* ---- breakpoints ------------------------------------------------------------------------ */

/* For tests: the next request of a disk over blkdebug that comes to `event` ("l2_load",
 * "write_aio", ...) stops there, under the name `tag`, until it is resumed or the breakpoint is
 * removed; the call that made the request waits meanwhile. -ENOTSUP: the disk is not over blkdebug;
 * -ENOENT: no such event. MT-safe. */
QK_API int qk_disk_set_break(struct qk_disk *disk, const char *event, const char *tag,
                             struct qk_error *err);
/* Removes it and lets its requests go on. -ENOENT: no such tag. MT-safe. */
QK_API int qk_disk_remove_break(struct qk_disk *disk, const char *tag, struct qk_error *err);
/* Lets a stopped request go on. -ENOENT: none has stopped under that name. MT-safe. */
QK_API int qk_disk_resume(struct qk_disk *disk, const char *tag, struct qk_error *err);
/* 1 when a request has stopped under that name, else 0. MT-safe. */
QK_API int qk_disk_is_stopped(struct qk_disk *disk, const char *tag, struct qk_error *err);

#ifdef __cplusplus
}
#endif
#endif
