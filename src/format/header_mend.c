/*
 * header_mend.c - a header as a check reads it: fields with which no image could be opened get the
 * value that other fields determine, or one that says "none". What the fields really hold stays in
 * the file, where the check compares and reports it. Pure; promises that the tables which the
 * result names are aligned, of bounded size and below 2^63, or not there.
 */
#include "format/header.h"

#include "base/bytes.h"
#include "base/checked.h"

#define REFCOUNT_ORDER_OFF     96
#define HEADER_BYTES_OFF       100
#define DEFAULT_REFCOUNT_ORDER 4
#define LIKELY_HEADER_BYTES    512 /* none is longer so far, and text is larger as a number */

/* The additional fields behind byte 104 are there when one is in use, or when what would be the
 * first extension is zero, as padding is. */
static uint32_t likely_header_bytes(const struct header *h, const uint8_t *bytes, size_t len)
{
    if (len < QCOW2_FULL_HEADER_BYTES)
        return QCOW2_V3_HEADER_BYTES;
    bool padded = load_be64(bytes + QCOW2_V3_HEADER_BYTES) == 0;
    return padded || (h->incompatible & INCOMPAT_COMPRESSION) ? QCOW2_FULL_HEADER_BYTES
                                                              : QCOW2_V3_HEADER_BYTES;
}

static bool header_bytes_possible(const struct header *h)
{
    return h->header_bytes >= QCOW2_V3_HEADER_BYTES && is_aligned(h->header_bytes, 8) &&
           h->header_bytes <= UINT32_C(1) << h->cluster_bits;
}

/* The field decides which others there are, so these are read again. */
static void mend_header_bytes(struct header *h, const uint8_t *bytes, size_t len)
{
    uint8_t copy[QCOW2_FULL_HEADER_BYTES] = {0};
    if (h->version < 3 || header_bytes_possible(h))
        return;
    uint32_t likely = likely_header_bytes(h, bytes, len);
    memcpy(copy, bytes, min_u64(len, sizeof(copy)));
    store_be32(copy + HEADER_BYTES_OFF, likely);
    struct header again;
    header_decode_as(copy, sizeof(copy), h->version, &again, NULL);
    h->header_bytes = likely;
    h->compression_type = again.compression_type;
}

static bool table_possible(const struct header *h, uint64_t off, uint64_t bytes, uint64_t max)
{
    return off && bytes && bytes <= max && is_aligned(off, UINT64_C(1) << h->cluster_bits) &&
           range_within(off, bytes, INT64_MAX);
}

/* Where neither it nor the number of L1 entries can be, both are those of one cluster of entries.
 */
static void mend_size(struct header *h, const struct geometry *g)
{
    unsigned each = g->l2_bits + g->cluster_bits;
    if (h->size_bytes <= INT64_MAX && geometry_l1_entries(g, h->size_bytes) <= INT32_MAX)
        return;
    if (!h->l1_entries || h->l1_entries > QCOW2_MAX_L1_BYTES / 8)
        h->l1_entries = g->cluster_bytes / 8;
    h->size_bytes = min_u64(h->l1_entries, INT64_MAX >> each) << each;
}

static void mend_tables(struct header *h, const struct geometry *g)
{
    uint64_t need = geometry_l1_entries(g, h->size_bytes);
    if (h->l1_entries > QCOW2_MAX_L1_BYTES / 8)
        h->l1_entries = (uint32_t)min_u64(need, QCOW2_MAX_L1_BYTES / 8);
    if (h->l1_off && !table_possible(h, h->l1_off, max_u64(h->l1_entries, 1) * 8, UINT32_MAX))
        h->l1_off = 0;
    if (!table_possible(h, h->reftable_off, (uint64_t)h->reftable_clusters << h->cluster_bits,
                        QCOW2_MAX_REFTABLE_BYTES))
        h->reftable_off = h->reftable_clusters = 0;
}

/* The type decides; one that is not known could not be read anyway. */
static void mend_compression(struct header *h)
{
    if (h->compression_type > COMPRESSION_ZSTD)
        h->compression_type = COMPRESSION_ZLIB;
    h->incompatible &= ~(uint64_t)INCOMPAT_COMPRESSION;
    if (h->compression_type != COMPRESSION_ZLIB)
        h->incompatible |= INCOMPAT_COMPRESSION;
}

static void mend_backing(struct header *h)
{
    uint64_t cluster = UINT64_C(1) << h->cluster_bits;
    if (h->backing_name_off > cluster ||
        h->backing_name_len > min_u64(QCOW2_MAX_BACKING_NAME, cluster - h->backing_name_off))
        h->backing_name_off = h->backing_name_len = 0;
}

void header_mend(struct header *h, const uint8_t *bytes, size_t len)
{
    if (h->cluster_bits < QCOW2_MIN_CLUSTER_BITS || h->cluster_bits > QCOW2_MAX_CLUSTER_BITS)
        return;
    mend_header_bytes(h, bytes, len);
    if (h->refcount_order > QCOW2_MAX_REFCOUNT_ORDER) {
        h->refcount_order = DEFAULT_REFCOUNT_ORDER;
        h->reftable_off = h->reftable_clusters = 0; /* its numbers mean nothing */
    }
    const struct geometry g = geometry_of(h);
    mend_size(h, &g);
    mend_tables(h, &g);
    mend_backing(h);
    mend_compression(h);
    if (h->crypt_method > CRYPT_LUKS)
        h->crypt_method = CRYPT_NONE;
}

/* ---- readings ---- */

bool header_reading_possible(const struct header_reading *r, uint64_t features)
{
    bool extended = r->version >= 3 && ((features ^ r->flipped) & INCOMPAT_EXTENDED_L2);
    uint32_t least = extended ? MIN_EXTENDED_L2_CLUSTER_BITS : QCOW2_MIN_CLUSTER_BITS;
    return (r->version == 2 || r->version == 3) && (r->version == 3 || !r->flipped) &&
           r->cluster_bits >= least && r->cluster_bits <= QCOW2_MAX_CLUSTER_BITS;
}

/* Version 2 has extensions, zeroes or a name where the additional fields are in version 3. */
uint32_t header_likely_version(const uint8_t *bytes, size_t len)
{
    if (len < QCOW2_V3_HEADER_BYTES)
        return 2;
    uint32_t order = load_be32(bytes + REFCOUNT_ORDER_OFF);
    uint32_t header_bytes = load_be32(bytes + HEADER_BYTES_OFF);
    bool fits = header_bytes >= QCOW2_V3_HEADER_BYTES && is_aligned(header_bytes, 8) &&
                header_bytes <= LIKELY_HEADER_BYTES;
    /* Either field tells it, for the other may be the one that is damaged. */
    return fits || (order && order <= QCOW2_MAX_REFCOUNT_ORDER) ? 3 : 2;
}

int header_read_as(const uint8_t *bytes, size_t len, const struct header_reading *r,
                   struct header *h, struct qk_error *err)
{
    int ret = header_decode_as(bytes, len, r->version, h, err);
    if (ret < 0)
        return ret;
    h->version = r->version;
    h->cluster_bits = r->cluster_bits;
    h->incompatible = (h->incompatible ^ r->flipped) & INCOMPAT_KNOWN;
    header_mend(h, bytes, len);
    return 0;
}
