/*
 * create.c - making a new image, and measuring one that is not made. The place of everything is
 * computed first; then each table is generated piece by piece from the layout alone, so that
 * memory does not grow with the image and every write is large and behind the one before:
 *
 *     header | refcount table | refcount blocks | L1 | LUKS | L2 tables | guest data
 *
 * The last two are there with preallocation only, LUKS with encryption. Relies on the store;
 * promises that no cluster below the end is free (INV-5), and that the file has no valid header
 * before all else is stable: an old header goes first, the new one comes last.
 */
#include "image/image.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "format/refcount.h"
#include "image/luks.h"

#include <inttypes.h>

#define PIECE_BYTES                  (1u << 20)
#define SECTOR_BYTES                 512u
#define BUFFER_ALIGN                 4096u
#define MAX_BACKING_FORMAT           15
#define MIN_EXTENDED_L2_CLUSTER_BITS 14
/* QEMU leaves the table of feature names out where it would fill much of the header cluster. */
#define FEATURE_NAMES_MIN_CLUSTER_BITS 13

struct layout {
    struct header h;
    struct geometry g;
    uint64_t refblocks, l2_tables, data_clusters; /* counts */
    uint64_t mapped_clusters; /* with an L2 entry: data_clusters, or those in a data file */
    uint64_t refblocks_off, l2_off, data_off; /* beside those in the header */
    struct luks_pointer luks;                 /* bytes 0: none */
    uint64_t clusters;                        /* in use, all at the start of the file */
    uint64_t file_bytes;
    bool data_is_stale; /* L2 entries carry the zero flag, as the clusters hold old bytes */
};

/* ---- parameters ---- */

static int check_params(const struct create_params *p, struct qk_error *err)
{
    const bool v2 = p->version == 2;
    const struct {
        bool wrong;
        const char *text;
    } rules[] = {
        {p->version != 2 && p->version != 3, "The version must be 2 or 3"},
        {v2 && p->extended_l2, "Extended L2 entries are only supported with compatibility level "
                               "1.1 and above (use version=v3 or greater)"},
        {p->cluster_bits < QCOW2_MIN_CLUSTER_BITS || p->cluster_bits > QCOW2_MAX_CLUSTER_BITS,
         "Cluster size must be a power of two between 512 and 2048k"},
        {p->extended_l2 && p->cluster_bits < MIN_EXTENDED_L2_CLUSTER_BITS,
         "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes"},
        {p->refcount_order > QCOW2_MAX_REFCOUNT_ORDER,
         "Refcount width must be a power of two and may not exceed 64 bits"},
        {p->compression_type > COMPRESSION_ZSTD, "Unknown compression type"},
        {v2 && p->lazy_refcounts, "Lazy refcounts only supported with compatibility level 1.1 and "
                                  "above (use version=v3 or greater)"},
        {v2 && p->refcount_order != 4,
         "Different refcount widths than 16 bits require compatibility level 1.1 or above (use "
         "version=v3 or greater)"},
        {v2 && p->compression_type != COMPRESSION_ZLIB,
         "Non-zlib compression type is only supported with compatibility level 1.1 and above (use "
         "version=v3 or greater)"},
        {p->prealloc != QK_PREALLOC_OFF && p->backing_file && !p->extended_l2,
         "Backing file and preallocation can only be used at the same time if extended_l2 is on"},
        {p->prealloc != QK_PREALLOC_OFF && p->encryption && v2,
         "Preallocation of an encrypted image is only supported with compatibility level 1.1 and "
         "above (use version=v3 or greater)"},
        {p->data_file_raw && !p->data_file, "data-file-raw requires data-file"},
        {v2 && p->data_file,
         "External data files are only supported with compatibility level 1.1 and above (use "
         "version=v3 or greater)"},
        {p->data_file_raw && p->backing_file,
         "Backing file and data-file-raw cannot be used at the same time"},
        {p->data_file && strlen(p->data_file) > QCOW2_MAX_BACKING_NAME, "Data file name too long"},
        {p->backing_format && !p->backing_file,
         "Backing format cannot be used without backing file"},
        {p->backing_format && strlen(p->backing_format) > MAX_BACKING_FORMAT,
         "Backing format name too long"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(rules); i++)
        if (rules[i].wrong)
            return qk_fail(err, -EINVAL, "%s", rules[i].text);
    return 0;
}

/* ---- layout ---- */

/* Header fields that do not depend on where things are. */
static struct header new_header(const struct create_params *p)
{
    return (struct header){
        .version = p->version,
        .cluster_bits = p->cluster_bits,
        .size_bytes = p->size_bytes,
        .crypt_method = p->encryption ? p->encryption->method : CRYPT_NONE,
        .incompatible = (p->compression_type ? INCOMPAT_COMPRESSION : 0) |
                        (p->extended_l2 ? INCOMPAT_EXTENDED_L2 : 0) |
                        (p->data_file ? INCOMPAT_DATA_FILE : 0),
        .compatible = p->lazy_refcounts ? COMPAT_LAZY_REFCOUNTS : 0,
        .autoclear = p->data_file_raw ? AUTOCLEAR_DATA_FILE_RAW : 0,
        .refcount_order = p->refcount_order,
        .header_bytes = p->version == 2 ? QCOW2_V2_HEADER_BYTES : QCOW2_FULL_HEADER_BYTES,
        .compression_type = p->compression_type,
    };
}

/* Adds the clusters that count `l->clusters` clusters and themselves. The numbers stay far below
 * 64 bits: the L1 table's limit bounds what there is to count. */
static void add_refcounts(struct layout *l)
{
    const uint64_t per_block = UINT64_C(1) << l->g.refblock_bits;
    const uint64_t others = l->clusters;
    uint64_t before, table = 0;
    do {
        before = l->clusters;
        l->refblocks = div_round_up(l->clusters, per_block);
        table = div_round_up(l->refblocks * 8, l->g.cluster_bytes);
        l->clusters = others + table + l->refblocks;
    } while (l->clusters != before);
    l->h.reftable_clusters = (uint32_t)table;
}

/* The length of the LUKS area follows from the length of the key. */
static uint64_t luks_bytes(const struct create_params *p)
{
    if (!p->encryption || p->encryption->method != CRYPT_LUKS)
        return 0;
    struct luks_header h = {.key_bytes = cipher_suite_key_bytes(&p->encryption->suite)};
    luks_place(&h);
    return (uint64_t)h.payload_sector * LUKS_SECTOR_BYTES;
}

/* Counts what an image takes, with or without its guest data. False: too large for an L1 table. */
static bool count_clusters(const struct create_params *p, bool with_data, struct layout *l)
{
    *l = (struct layout){.h = new_header(p)};
    l->g = geometry_of(&l->h);
    uint64_t l1_entries = geometry_l1_entries(&l->g, p->size_bytes);
    if (l1_entries > QCOW2_MAX_L1_BYTES / 8 ||
        !try_round_up(p->size_bytes, SECTOR_BYTES, &l->h.size_bytes))
        return false;
    l->h.l1_entries = (uint32_t)l1_entries;
    if (with_data) {
        l->l2_tables = l1_entries;
        l->mapped_clusters = div_round_up(l->h.size_bytes, l->g.cluster_bytes);
        l->data_clusters = p->data_file ? 0 : l->mapped_clusters;
    }
    l->luks.bytes = luks_bytes(p);
    l->clusters = 1 + div_round_up(l->luks.bytes, l->g.cluster_bytes) +
                  div_round_up(l1_entries * 8, l->g.cluster_bytes) + l->l2_tables +
                  l->data_clusters;
    add_refcounts(l);
    return true;
}

/* Gives everything its place. */
static void place(struct layout *l)
{
    const uint64_t cluster_bytes = l->g.cluster_bytes;
    const uint64_t l1_bytes = (uint64_t)l->h.l1_entries * 8;
    l->h.reftable_off = cluster_bytes;
    l->refblocks_off = l->h.reftable_off + l->h.reftable_clusters * cluster_bytes;
    const uint64_t l1_off = l->refblocks_off + l->refblocks * cluster_bytes;
    l->h.l1_off = l1_bytes ? l1_off : 0;
    l->luks.off = round_up(l1_off + l1_bytes, cluster_bytes);
    l->l2_off = round_up(l->luks.off + l->luks.bytes, cluster_bytes);
    l->data_off = l->l2_off + l->l2_tables * cluster_bytes;
    /* behind an L1 table at the end nothing is needed, not even the rest of its cluster */
    l->file_bytes = l->l2_tables || l->luks.bytes ? l->data_off + l->data_clusters * cluster_bytes
                                                  : l1_off + l1_bytes;
    /* Encrypted, no bytes that lie there would read as zero. */
    l->data_is_stale = l->h.crypt_method != CRYPT_NONE && l->g.zero_flag;
}

static int make_layout(const struct create_params *p, struct layout *l, struct qk_error *err)
{
    bool raw = p->data_file_raw && !p->encryption; /* the disk is what is in the file */
    bool fits = count_clusters(p, p->prealloc != QK_PREALLOC_OFF || raw, l);
    if (fits)
        place(l);
    l->data_is_stale |= p->data_file_stale && !raw;
    if (!fits || l->file_bytes > QCOW2_OFFSET_LIMIT ||
        (uint64_t)l->h.reftable_clusters << l->g.cluster_bits > QCOW2_MAX_REFTABLE_BYTES)
        return qk_fail(err, -EFBIG,
                       "The image size is too large for file format 'qcow2' (try using a larger "
                       "cluster size)");
    return 0;
}

int image_measure(const struct create_params *params, uint64_t data_clusters, uint64_t *bytes,
                  struct qk_error *err)
{
    struct layout l;
    int ret = check_params(params, err);
    struct create_params inside = *params;
    inside.data_file = NULL; /* the sizes are those of both files together */
    if (ret < 0)
        return ret;
    if (!count_clusters(&inside, true, &l))
        return qk_fail(err, -EFBIG,
                       "The image size is too large (try using a larger cluster size)");
    bool all = params->prealloc == QK_PREALLOC_FALLOC || params->prealloc == QK_PREALLOC_FULL;
    uint64_t data = all ? l.data_clusters : min_u64(data_clusters, l.data_clusters);
    *bytes = (l.clusters - l.data_clusters + data) << l.g.cluster_bits;
    return 0;
}

/* ---- generating the tables ---- */

/* Bytes [at, at + len) of a table; both are multiples of 16, buf is zero. */
typedef void (*table_piece_fn)(const struct layout *l, uint64_t at, uint8_t *buf, size_t len);

/* How many of the `count` entries in a piece belong to the first `all` of the table. */
static size_t entries_in_piece(uint64_t first, size_t count, uint64_t all)
{
    return all > first ? (size_t)min_u64(count, all - first) : 0;
}

static void reftable_piece(const struct layout *l, uint64_t at, uint8_t *buf, size_t len)
{
    uint64_t first = at / 8;
    size_t n = entries_in_piece(first, len / 8, l->refblocks);
    for (size_t i = 0; i < n; i++)
        store_be64(buf + 8 * i, l->refblocks_off + ((first + i) << l->g.cluster_bits));
}

static void refblock_piece(const struct layout *l, uint64_t at, uint8_t *buf, size_t len)
{
    const struct refcount_ops *ops = refcount_ops(l->g.refcount_order);
    size_t n =
        entries_in_piece(at * 8 / l->g.refcount_bits, len * 8 / l->g.refcount_bits, l->clusters);
    for (size_t i = 0; i < n; i++)
        ops->set(buf, i, 1);
}

static void l1_piece(const struct layout *l, uint64_t at, uint8_t *buf, size_t len)
{
    uint64_t first = at / 8;
    size_t n = entries_in_piece(first, len / 8, l->l2_tables);
    for (size_t i = 0; i < n; i++)
        store_be64(buf + 8 * i, ENTRY_COPIED | (l->l2_off + ((first + i) << l->g.cluster_bits)));
}

/* Subclusters stay unallocated, though their cluster is there: a backing file shows through, and
 * old bytes of a device do not. */
static void l2_piece(const struct layout *l, uint64_t at, uint8_t *buf, size_t len)
{
    const uint32_t entry_bytes = l->g.l2_entry_bytes;
    const uint64_t flags = ENTRY_COPIED | (l->data_is_stale ? ENTRY_ZERO : 0);
    uint64_t first = at / entry_bytes;
    size_t n = entries_in_piece(first, len / entry_bytes, l->mapped_clusters);
    /* In an external data file each guest cluster is at its own offset. */
    uint64_t host = l->g.data_file ? 0 : l->data_off;
    bool filled = l->g.subclusters > 1 && l->h.autoclear & AUTOCLEAR_DATA_FILE_RAW &&
                  l->h.crypt_method == CRYPT_NONE;
    for (size_t i = 0; i < n; i++) {
        store_be64(buf + entry_bytes * i, flags | (host + ((first + i) << l->g.cluster_bits)));
        if (filled)
            store_be64(buf + entry_bytes * i + 8, UINT32_MAX);
    }
}

/* ---- writing ---- */

struct target {
    struct qk_io *file;
    bool fresh;   /* what was not written reads as zero, and the length can be set */
    uint8_t *buf; /* PIECE_BYTES */
    const struct new_luks *luks;
};

struct table {
    uint64_t off;
    uint64_t bytes;      /* to the end of its last cluster */
    uint64_t used_bytes; /* behind these there are only zeroes */
    table_piece_fn piece;
};

static int write_table(const struct target *t, const struct layout *l, const struct table *table,
                       struct qk_error *err)
{
    /* zeroes at a table's end need no write in a file that starts as a hole, unless space is to
     * be reserved */
    uint64_t bytes =
        t->fresh && !l->l2_tables ? round_up(table->used_bytes, SECTOR_BYTES) : table->bytes;
    for (uint64_t at = 0; at < bytes; at += PIECE_BYTES) {
        size_t len = (size_t)min_u64(PIECE_BYTES, bytes - at);
        memset(t->buf, 0, len);
        if (at < table->used_bytes)
            table->piece(l, at, t->buf, len);
        int ret = io_write(t->file, table->off + at, t->buf, len, 0, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int write_tables(const struct target *t, const struct layout *l, struct qk_error *err)
{
    const uint64_t cluster_bytes = l->g.cluster_bytes;
    const uint64_t l1_end = l->l2_tables || l->luks.bytes ? l->luks.off : l->file_bytes;
    const struct table tables[] = {
        {l->h.reftable_off, l->h.reftable_clusters * cluster_bytes, l->refblocks * 8,
         reftable_piece},
        {l->refblocks_off, l->refblocks * cluster_bytes,
         div_round_up(l->clusters * l->g.refcount_bits, 8), refblock_piece},
        {l->h.l1_off, l->h.l1_off ? l1_end - l->h.l1_off : 0, l->l2_tables * 8, l1_piece},
        {l->l2_off, l->l2_tables * cluster_bytes, l->mapped_clusters * l->g.l2_entry_bytes,
         l2_piece},
    };
    for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
        int ret = write_table(t, l, &tables[i], err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* The guest data of a preallocated image on a store with old content. */
static int clear_old_data(const struct target *t, struct layout *l, enum qk_prealloc prealloc,
                          struct qk_error *err)
{
    uint64_t bytes = l->data_clusters << l->g.cluster_bits;
    if (!bytes || t->fresh || (l->g.subclusters > 1 && prealloc == QK_PREALLOC_METADATA))
        return 0;
    if (l->g.zero_flag && prealloc == QK_PREALLOC_METADATA) {
        l->data_is_stale = true;
        return 0;
    }
    return io_zero_or_write(t->file, l->data_off, bytes, 0, err);
}

/* A store that cannot grow has to be large enough; told before anything in it is touched. */
static int check_room(struct qk_io *file, const struct layout *l, struct qk_error *err)
{
    uint64_t have;
    int ret = file->can_grow ? 0 : io_size(file, &have, err);
    if (ret < 0 || file->can_grow || have >= l->file_bytes)
        return ret;
    return qk_fail(err, -ENOSPC, "The image needs %" PRIu64 " bytes, but there are only %" PRIu64,
                   l->file_bytes, have);
}

/*
 * Gets rid of the old content, or at least of its header, and learns what the store can do. An
 * old header must be gone for good before its tables are overwritten.
 */
static int start_over(struct target *t, struct qk_error *err)
{
    uint64_t old_bytes;
    int ret = io_size(t->file, &old_bytes, err);
    if (ret < 0)
        return ret;
    struct qk_error why;
    ret = t->file->can_grow ? io_resize(t->file, 0, QK_PREALLOC_OFF, &why) : -ENOTSUP;
    t->fresh = ret == 0 && t->file->zero_init;
    if (ret < 0 && ret != -ENOTSUP) {
        if (err)
            *err = why;
        return ret;
    }
    if (!old_bytes)
        return 0;
    if (ret < 0)
        ret = io_zero_or_write(t->file, 0, min_u64(old_bytes, SECTOR_BYTES), 0, err);
    return ret < 0 ? ret : io_flush(t->file, err);
}

/* Makes the file as long as it has to be, with the space that was asked for, before anything is
 * written: a full disk shows early. */
static int reserve(const struct target *t, const struct layout *l, enum qk_prealloc prealloc,
                   struct qk_error *err)
{
    enum qk_prealloc mode = prealloc == QK_PREALLOC_METADATA ? QK_PREALLOC_OFF : prealloc;
    if (!t->fresh)
        return 0;
    /* what is written anyway needs no zeroes below it */
    int ret = mode == QK_PREALLOC_FULL && l->l2_tables
                  ? io_resize(t->file, l->data_off, QK_PREALLOC_OFF, err)
                  : 0;
    return ret < 0 ? ret : io_resize(t->file, l->file_bytes, mode, err);
}

/* A store that grows by writes only: its last byte decides the length. */
static int settle_length(const struct target *t, const struct layout *l, struct qk_error *err)
{
    uint64_t have;
    int ret = io_size(t->file, &have, err);
    if (ret < 0 || have >= l->file_bytes)
        return ret;
    return io_write(t->file, l->file_bytes - 1, "", 1, 0, err);
}

/* ---- the header ---- */

static int add_extension(struct header_extensions *exts, uint32_t type, const void *data,
                         size_t len)
{
    return header_extension_vec_append(&exts->list,
                                       (struct header_extension){type, (uint32_t)len, data});
}

static int make_header(const struct create_params *p, struct layout *l, uint8_t *cluster,
                       struct qk_error *err)
{
    struct header_extensions exts = {0};
    uint8_t pointer[LUKS_POINTER_BYTES];
    size_t names_len;
    const uint8_t *names = feature_name_table(&names_len);
    int ret = 0;
    if (p->backing_format)
        ret =
            add_extension(&exts, HEXT_BACKING_FORMAT, p->backing_format, strlen(p->backing_format));
    if (ret == 0 && p->data_file)
        ret = add_extension(&exts, HEXT_DATA_FILE, p->data_file, strlen(p->data_file));
    luks_pointer_encode(l->luks, pointer);
    if (ret == 0 && l->luks.bytes)
        ret = add_extension(&exts, HEXT_CRYPTO, pointer, sizeof(pointer));
    if (ret == 0 && p->version >= 3 && p->cluster_bits >= FEATURE_NAMES_MIN_CLUSTER_BITS)
        ret = add_extension(&exts, HEXT_FEATURE_NAMES, names, names_len);
    if (ret < 0) {
        qk_fail_nomem(err);
    } else {
        ret = header_layout(&(struct header_layout){&l->h, NULL, &exts, p->backing_file, 0},
                            cluster, l->g.cluster_bytes, err);
        if (ret < 0 && p->backing_file)
            qk_error_prefix(err, "Could not assign backing file '%.256s'", p->backing_file);
    }
    header_extensions_free(&exts);
    return ret;
}

/* All but the first sector goes out before the barrier, so that the header appears at once. */
static int write_header_rest(const struct target *t, const struct layout *l, const uint8_t *cluster,
                             struct qk_error *err)
{
    size_t end = l->g.cluster_bytes;
    while (t->fresh && !l->l2_tables && end > SECTOR_BYTES && !cluster[end - 1])
        end--;
    if (end == SECTOR_BYTES)
        return 0;
    return io_write(t->file, SECTOR_BYTES, cluster + SECTOR_BYTES, end - SECTOR_BYTES, 0, err);
}

static int write_header_sector(struct qk_io *file, const uint8_t *cluster, struct qk_error *err)
{
    static const uint8_t zeroes[SECTOR_BYTES];
    int ret = io_write(file, 0, cluster, SECTOR_BYTES, 0, err);
    if (ret == 0)
        ret = io_flush(file, err);
    if (ret < 0)
        io_write(file, 0, zeroes, sizeof(zeroes), 0, NULL); /* what failed must not look made */
    return ret;
}

/* ---- encryption ---- */

/* Made before anything is touched: deriving keys takes seconds. */
struct new_luks {
    struct image_luks luks;
    struct luks_material slot0; /* bytes NULL: there is no LUKS */
};

static void new_luks_free(struct new_luks *n)
{
    luks_material_free(&n->slot0);
}

static int make_encryption(const struct create_params *p, const struct layout *l,
                           struct new_luks *n, struct qk_error *err)
{
    uint8_t key[CIPHER_KEY_MAX_BYTES];
    struct passphrase pass;
    if (!p->encryption)
        return 0;
    int ret = luks_passphrase(p->encryption->secret, &pass, err);
    if (ret < 0 || !l->luks.bytes)
        return ret;
    ret = luks_begin(&n->luks, p->encryption, &n->slot0, key, err);
    explicit_bzero(key, sizeof(key));
    n->luks.area = l->luks;
    return ret;
}

static int write_luks(const struct target *t, const struct new_luks *n, struct qk_error *err)
{
    uint8_t bytes[LUKS_HEADER_BYTES];
    const struct luks_pointer area = n->luks.area;
    if (!n->slot0.bytes)
        return 0;
    int ret = t->fresh ? 0 : io_zero_or_write(t->file, area.off, area.bytes, 0, err);
    luks_encode(&n->luks.header, bytes);
    if (ret == 0)
        ret = io_write(t->file, area.off, bytes, sizeof(bytes), 0, err);
    return ret < 0 ? ret : luks_write_material(t->file, &n->luks, 0, &n->slot0, err);
}

/* Everything but the header's first sector. */
static int write_body(struct target *t, struct layout *l, enum qk_prealloc prealloc,
                      const uint8_t *header, struct qk_error *err)
{
    int ret = start_over(t, err);
    if (ret == 0)
        ret = reserve(t, l, prealloc, err);
    if (ret == 0)
        ret = clear_old_data(t, l, prealloc, err);
    if (ret == 0)
        ret = write_tables(t, l, err);
    if (ret == 0)
        ret = write_luks(t, t->luks, err);
    if (ret == 0)
        ret = write_header_rest(t, l, header, err);
    if (ret == 0)
        ret = settle_length(t, l, err);
    return ret < 0 ? ret : io_flush(t->file, err);
}

int image_create(struct qk_io *file, const struct create_params *params, struct qk_error *err)
{
    struct layout l;
    int ret = check_params(params, err);
    if (ret == 0)
        ret = make_layout(params, &l, err);
    if (ret < 0)
        return ret;
    CLEANUP_FREE uint8_t *header =
        aligned_alloc(BUFFER_ALIGN, max_u64(l.g.cluster_bytes, BUFFER_ALIGN));
    CLEANUP_FREE uint8_t *piece = aligned_alloc(BUFFER_ALIGN, PIECE_BYTES);
    __attribute__((cleanup(new_luks_free))) struct new_luks luks = {0};
    if (!header || !piece)
        return qk_fail_nomem(err);
    struct target t = {.file = file, .buf = piece, .luks = &luks};
    ret = make_header(params, &l, header, err);
    if (ret == 0)
        ret = check_room(file, &l, err);
    if (ret == 0)
        ret = make_encryption(params, &l, &luks, err);
    if (ret == 0)
        ret = write_body(&t, &l, params->prealloc, header, err);
    return ret < 0 ? ret : write_header_sector(file, header, err);
}
