/*
 * header.h - the image header, its extensions and the geometry that follows from it (Format,
 * sections "Header", "Additional fields", "Header extensions", "Feature name table"). Pure: bytes
 * in, structs out, and back.
 */
#ifndef QK_FORMAT_HEADER_H
#define QK_FORMAT_HEADER_H

#include "base/error.h"
#include "base/vector.h"

#include <stdbool.h>

#define QCOW2_MAGIC                  UINT32_C(0x514649fb)
#define QCOW2_V2_HEADER_BYTES        72
#define QCOW2_V3_HEADER_BYTES        104 /* without the optional fields */
#define QCOW2_FULL_HEADER_BYTES      112 /* with the compression type, padded */
#define QCOW2_MIN_CLUSTER_BITS       9
#define QCOW2_MAX_CLUSTER_BITS       21
#define MIN_EXTENDED_L2_CLUSTER_BITS 14
#define QCOW2_MAX_REFCOUNT_ORDER     6
#define QCOW2_MAX_BACKING_NAME       1023
#define QCOW2_MAX_L1_BYTES           (32u << 20) /* QEMU's limits, kept for interchange */
#define QCOW2_MAX_REFTABLE_BYTES     (8u << 20)
#define QCOW2_MAX_SNAPSHOTS          65536
#define QCOW2_OFFSET_LIMIT           (UINT64_C(1) << 56) /* host offsets have 56 bits */

enum incompatible_feature {
    INCOMPAT_DIRTY = 1u << 0,
    INCOMPAT_CORRUPT = 1u << 1,
    INCOMPAT_DATA_FILE = 1u << 2,
    INCOMPAT_COMPRESSION = 1u << 3,
    INCOMPAT_EXTENDED_L2 = 1u << 4,
    INCOMPAT_KNOWN = 31u,
};
enum compatible_feature { COMPAT_LAZY_REFCOUNTS = 1u << 0, COMPAT_KNOWN = 1u };
enum autoclear_feature {
    AUTOCLEAR_BITMAPS = 1u << 0,
    AUTOCLEAR_DATA_FILE_RAW = 1u << 1,
    AUTOCLEAR_KNOWN = 3u
};

enum crypt_method { CRYPT_NONE = 0, CRYPT_AES = 1, CRYPT_LUKS = 2 };
enum compression_type { COMPRESSION_ZLIB = 0, COMPRESSION_ZSTD = 1 };

/* header extension types */
#define HEXT_END            UINT32_C(0)
#define HEXT_BACKING_FORMAT UINT32_C(0xe2792aca)
#define HEXT_FEATURE_NAMES  UINT32_C(0x6803f857)
#define HEXT_BITMAPS        UINT32_C(0x23852875)
#define HEXT_CRYPTO         UINT32_C(0x0537be77)
#define HEXT_DATA_FILE      UINT32_C(0x44415441)

/* All fixed fields. Version 2 images read with the defaults that the specification gives. */
struct header {
    uint32_t version;
    uint64_t backing_name_off;
    uint32_t backing_name_len;
    uint32_t cluster_bits;
    uint64_t size_bytes;
    uint32_t crypt_method;
    uint32_t l1_entries;
    uint64_t l1_off;
    uint64_t reftable_off;
    uint32_t reftable_clusters;
    uint32_t snapshot_count;
    uint64_t snapshots_off;
    uint64_t incompatible, compatible, autoclear;
    uint32_t refcount_order;
    uint32_t header_bytes;
    uint32_t compression_type;
};

/* Reads the fixed fields from the first len bytes of the file (len >= 104 when the file has them),
 * checking only magic, version, and that the fields are there. Nothing else is judged. */
int header_decode(const void *bytes, size_t len, struct header *h, struct qk_error *err);

/* The same as a header of version 2 or 3, whatever magic and version say. h->version is what the
 * field holds. */
int header_decode_as(const void *bytes, size_t len, uint32_t version, struct header *h,
                     struct qk_error *err);

/* Judges the fields as QEMU does on open: cluster_bits, refcount_order, header_bytes, crypt_method,
 * unknown incompatible bits (named by `names`, nullable), alignment and limits of every table,
 * against file_bytes. The error names the field, its offset in the header and what was expected. */
struct header_extensions;
int header_validate(const struct header *h, const struct header_extensions *names,
                    uint64_t file_bytes, struct qk_error *err);

/* The same for a check, which must see damaged images: only what makes the image unreadable as a
 * whole is refused (geometry, unknown features, tables that no memory bound allows). What lies
 * beyond the file's end, a missing refcount table and the snapshot table are let through. */
int header_validate_for_check(const struct header *h, const struct header_extensions *names,
                              struct qk_error *err);

/* Which header a check takes the bytes for: fields on which the meaning of all tables depends. */
struct header_reading {
    uint32_t version, cluster_bits;
    uint64_t flipped; /* incompatible features that are taken to be the other way */
};
/* Some image could have such a header. `features` are the incompatible ones. */
bool header_reading_possible(const struct header_reading *r, uint64_t features);
/* The version whose fixed fields these bytes look like. */
uint32_t header_likely_version(const uint8_t *bytes, size_t len);
/* The fields under a reading, mended, and without features that are not known. */
int header_read_as(const uint8_t *bytes, size_t len, const struct header_reading *r,
                   struct header *h, struct qk_error *err);

/* What a check reads instead of fields that no image could be opened with: the value that others
 * determine, or none. `bytes` are the first len of the file, as for header_decode; h has a possible
 * version, and no feature that is not known. */
void header_mend(struct header *h, const uint8_t *bytes, size_t len);

/* Names of the incompatible features in `bits`, for people. */
#define FEATURE_LIST_BYTES 900u
void header_feature_list(const struct header_extensions *names, uint64_t bits, char *buf,
                         size_t size);

/* Writes the fixed fields: 72 bytes for version 2, else h->header_bytes (bytes past 112 are left
 * as they are in out). */
void header_encode(const struct header *h, uint8_t *out);

/* The offset of a field in the header, for errors, tests and damage fixtures; e.g. "l1_off" -> 40.
 */
struct header_field {
    const char *name;      /* member name in struct header */
    const char *spec_name; /* name in the specification */
    uint32_t off, bytes;
};
extern const struct header_field header_fields[];
extern const size_t header_field_count;

/* ---- extensions ---- */

struct header_extension {
    uint32_t type;
    uint32_t len;
    const uint8_t *data; /* into the bytes that were given, or the caller's */
};
DEFINE_VECTOR(header_extension_vec, struct header_extension)

struct header_extensions {
    struct header_extension_vec list; /* in file order, without the end marker */
};

/* Parses extensions in bytes[start, end). Known types are checked for their length limits only.
 * The data pointers point into bytes, which must live as long. */
int header_extensions_decode(const uint8_t *bytes, size_t start, size_t end,
                             struct header_extensions *out, struct qk_error *err);
void header_extensions_free(struct header_extensions *exts);

/* An extension that cannot be as it is. Of some types the length is known; any other one hides
 * where the next extension begins, so the list ends there. */
struct extension_fault {
    size_t off;         /* of the extension in the file */
    uint32_t type, len; /* as found */
    uint32_t right_len; /* with `known` */
    bool known;
    bool again; /* its type was there before, and said something else */
};
DEFINE_VECTOR(extension_fault_vec, struct extension_fault)
/* The same for a check: what can be told apart, and what is wrong with the rest. -ENOMEM. */
int header_extensions_decode_for_check(const uint8_t *bytes, size_t start, size_t end,
                                       struct header_extensions *out,
                                       struct extension_fault_vec *faults, struct qk_error *err);
/* The last one of a type: what QEMU believes, too. NULL when there is none. */
const struct header_extension *header_extensions_find(const struct header_extensions *exts,
                                                      uint32_t type);

/* Name of a feature bit: from the image's own table, else from the specification, else NULL.
 * kind: 0 incompatible, 1 compatible, 2 autoclear. buf gets the name (46 bytes + NUL). */
const char *feature_name(const struct header_extensions *exts, unsigned kind, unsigned bit,
                         char buf[47]);
/* The feature name table that QEMU writes: length in bytes, data static. */
const uint8_t *feature_name_table(size_t *len);

/*
 * Lays out a complete header cluster: fixed fields (with the bytes of `unknown_fields` behind 112
 * when header_bytes says so), extensions in the given order, end marker, backing file name
 * (sets h->backing_name_off/len; NULL: none). -ENOSPC when it does not fit in `size`. out is
 * zeroed first.
 */
struct header_layout {
    struct header *h;
    const uint8_t *unknown_fields; /* header_bytes - 112 bytes, or NULL */
    const struct header_extensions *exts;
    const char *backing_name;
    size_t name_from; /* the name stands at this offset or later */
};
int header_layout(const struct header_layout *layout, uint8_t *out, size_t size,
                  struct qk_error *err);

/* ---- geometry: everything that derives from cluster size, refcount width and entry size ---- */

struct geometry {
    uint32_t cluster_bits;
    uint32_t cluster_bytes;
    uint32_t l2_entry_bytes; /* 8, or 16 with extended L2 entries */
    uint32_t l2_bits;        /* log2 of the entries in one L2 table */
    uint32_t l2_entries;
    uint32_t subclusters;     /* per cluster: 1, or 32 */
    uint32_t subcluster_bits; /* log2 of the subcluster's bytes */
    uint32_t refcount_order;
    uint32_t refcount_bits;
    uint32_t refblock_bits; /* log2 of the refcounts in one refcount block */
    uint64_t refcount_max;
    uint32_t csize_shift; /* compressed descriptor, section "Compressed Clusters" */
    uint64_t csize_mask;  /* after the shift */
    uint64_t coffset_mask;
    bool zero_flag; /* bit 0 of a standard L2 entry means "reads as zero" */
    bool data_file; /* guest data is in an external file: offset 0 can be data */
};

/* h must have valid cluster_bits and refcount_order. */
struct geometry geometry_of(const struct header *h);

/* L1 entries needed for size_bytes. */
uint64_t geometry_l1_entries(const struct geometry *g, uint64_t size_bytes);

#endif
