/*
 * test_header.c - the image header: where each field lies (written down from the specification),
 * there and back, each field's bad values with the error that names it, header extensions kept
 * byte for byte, and the header cluster as QEMU lays it out.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "header_test.h"
#include "test.h"

#define FILE_BYTES (UINT64_C(1) << 20)

static void field_places(void)
{
    static const struct header_field spec[] = {
        {NULL, "version", 4, 4},
        {NULL, "backing_file_offset", 8, 8},
        {NULL, "backing_file_size", 16, 4},
        {NULL, "cluster_bits", 20, 4},
        {NULL, "size", 24, 8},
        {NULL, "crypt_method", 32, 4},
        {NULL, "l1_size", 36, 4},
        {NULL, "l1_table_offset", 40, 8},
        {NULL, "refcount_table_offset", 48, 8},
        {NULL, "refcount_table_clusters", 56, 4},
        {NULL, "nb_snapshots", 60, 4},
        {NULL, "snapshots_offset", 64, 8},
        {NULL, "incompatible_features", 72, 8},
        {NULL, "compatible_features", 80, 8},
        {NULL, "autoclear_features", 88, 8},
        {NULL, "refcount_order", 96, 4},
        {NULL, "header_length", 100, 4},
        {NULL, "compression_type", 104, 1},
    };
    CHECK_EQ(header_field_count, ARRAY_SIZE(spec));
    for (size_t i = 0; i < header_field_count; i++) {
        CHECK_STR(header_fields[i].spec_name, spec[i].spec_name);
        CHECK_EQ(header_fields[i].off, spec[i].off);
        CHECK_EQ(header_fields[i].bytes, spec[i].bytes);
    }
}

static void round_trip(uint32_t version, uint32_t header_bytes)
{
    uint8_t bytes[128], again[128];
    struct header h;
    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 37 + 11);
    store_be32(bytes, QCOW2_MAGIC);
    store_be32(bytes + 4, version);
    if (version == 3)
        store_be32(bytes + 100, header_bytes);
    memset(bytes + 105, 0, 7); /* padding behind the compression type */
    REQUIRE(header_decode(bytes, sizeof(bytes), &h, NULL) == 0);
    memset(again, 0xee, sizeof(again));
    header_encode(&h, again);
    size_t written = version == 2 ? 72 : min_u64(header_bytes, 112);
    CHECK_MEM(again, bytes, written);
    CHECK_EQ(again[written], 0xee);
    CHECK_EQ(h.l1_off, load_be64(bytes + 40));
    CHECK_EQ(h.snapshot_count, load_be32(bytes + 60));
    CHECK_EQ(h.compression_type, version == 3 && header_bytes > 104 ? bytes[104] : 0);
    if (version == 2) {
        CHECK_EQ(h.refcount_order, 4);
        CHECK_EQ(h.header_bytes, 72);
        CHECK(!h.incompatible && !h.compatible && !h.autoclear);
    }
}

static void decode_refuses(void)
{
    uint8_t bytes[128] = {0};
    struct header h, sound = sound_header;
    struct qk_error err;
    CHECK_ERR(header_decode(bytes, sizeof(bytes), &h, &err), -EINVAL);
    CHECK_STR(err.text, "Image is not in qcow2 format");
    header_encode(&sound, bytes);
    CHECK_OK(header_decode(bytes, sizeof(bytes), &h, NULL));
    for (size_t len = 0; len <= 104; len++)
        CHECK_ERR(header_decode(bytes, len, &h, NULL), -EINVAL);
    CHECK_OK(header_decode(bytes, 112, &h, NULL));
    store_be32(bytes + 100, 104);
    CHECK_OK(header_decode(bytes, 104, &h, NULL));
    for (uint32_t v = 0; v < 300; v++) {
        store_be32(bytes + 4, v);
        int ret = header_decode(bytes, sizeof(bytes), &h, &err);
        CHECK_EQ(ret, v == 2 || v == 3 ? 0 : -ENOTSUP);
        if (ret < 0)
            CHECK(strstr(err.text, "Unsupported qcow2 version") && err.offset == 4);
    }
}

/* ---- bad values ---- */

struct bad {
    const char *field; /* that is set, by its name in the specification */
    uint64_t value;
    int ret;
    const char *text;   /* that the error has */
    const char *blamed; /* field that the error names, when not `field` */
    bool check_too;     /* a check refuses it as well */
};

static const struct bad bads[] = {
    {"backing_file_offset", 0x10001, -EINVAL, "Invalid backing file offset", NULL, true},
    {"backing_file_offset", UINT64_MAX, -EINVAL, "Invalid backing file offset", NULL, true},
    {"backing_file_offset", 80, -EINVAL, "Invalid backing file offset", NULL, false},
    {"cluster_bits", 0, -EINVAL, "Unsupported cluster size: 2^0", NULL, true},
    {"cluster_bits", 8, -EINVAL, "Unsupported cluster size: 2^8", NULL, true},
    {"cluster_bits", 22, -EINVAL, "Unsupported cluster size: 2^22", NULL, true},
    {"cluster_bits", 64, -EINVAL, "Unsupported cluster size: 2^64", NULL, true},
    {"cluster_bits", UINT32_MAX, -EINVAL, "Unsupported cluster size: 2^4294967295", NULL, true},
    {"size", (UINT64_C(1) << 30) + 1, -EINVAL, "L1 table is too small", "l1_size", false},
    {"size", UINT64_C(1) << 62, -EFBIG, "Image is too big", NULL, true},
    {"size", UINT64_MAX, -EFBIG, "Image is too big", NULL, true},
    {"crypt_method", 3, -EINVAL, "Unsupported encryption method 3", NULL, true},
    {"crypt_method", UINT32_MAX, -EINVAL, "Unsupported encryption method 4294967295", NULL, true},
    {"l1_size", 0, -EINVAL, "L1 table is too small", NULL, false},
    {"l1_size", 1, -EINVAL, "L1 table is too small", NULL, false},
    {"l1_size", (32 << 20) / 8 + 1, -EINVAL, "Active L1 table too large", NULL, true},
    {"l1_size", UINT32_MAX, -EINVAL, "Active L1 table too large", NULL, true},
    {"l1_size", 0x1a001, -EINVAL, "Active L1 table offset invalid", "l1_table_offset", false},
    {"l1_table_offset", 0, -EINVAL, "Active L1 table offset invalid", NULL, false},
    {"l1_table_offset", 0x30001, -EINVAL, "Active L1 table offset invalid", NULL, true},
    {"l1_table_offset", 0x38000, -EINVAL, "Active L1 table offset invalid", NULL, true},
    {"l1_table_offset", FILE_BYTES, -EINVAL, "Active L1 table offset invalid", NULL, false},
    {"l1_table_offset", UINT64_C(1) << 63, -EINVAL, "Active L1 table offset invalid", NULL, true},
    {"l1_table_offset", UINT64_MAX - 0xffff, -EINVAL, "Active L1 table offset inv", NULL, true},
    {"refcount_table_offset", 0, -EINVAL, "Reference count table offset invalid", NULL, false},
    {"refcount_table_offset", 512, -EINVAL, "Reference count table offset invalid", NULL, true},
    {"refcount_table_offset", FILE_BYTES, -EINVAL, "Reference count table offset", NULL, false},
    {"refcount_table_offset", UINT64_MAX - 0xffff, -EINVAL, "Reference count tab", NULL, true},
    {"refcount_table_clusters", 0, -EINVAL, "does not contain a reference count", NULL, false},
    {"refcount_table_clusters", 16, -EINVAL, "Reference count table offset invalid",
     "refcount_table_offset", false},
    {"refcount_table_clusters", 129, -EINVAL, "Reference count table too large", NULL, true},
    {"refcount_table_clusters", UINT32_MAX, -EINVAL, "Reference count table too la", NULL, true},
    {"nb_snapshots", 1, -EINVAL, "Snapshot table offset invalid", "snapshots_offset", false},
    {"nb_snapshots", 65537, -EINVAL, "Snapshot table too large", NULL, false},
    {"nb_snapshots", UINT32_MAX, -EINVAL, "Snapshot table too large", NULL, false},
    {"snapshots_offset", 1, -EINVAL, "Snapshot table offset invalid", NULL, false},
    {"snapshots_offset", UINT64_MAX, -EINVAL, "Snapshot table offset invalid", NULL, false},
    {"incompatible_features", 1 << 3, -EINVAL, "feature bit must not be set", NULL, true},
    {"incompatible_features", 1 << 5, -ENOTSUP,
     "Unsupported qcow2 feature(s): Unknown incompatible feature: 20", "", true},
    {"incompatible_features", UINT64_C(1) << 63, -ENOTSUP,
     "Unsupported qcow2 feature(s): Unknown incompatible feature: 8000000000000000", "", true},
    {"autoclear_features", 2, -EINVAL, "data-file-raw requires a data file", NULL, false},
    {"refcount_order", 7, -EINVAL, "may not exceed 64 bits", NULL, true},
    {"refcount_order", UINT32_MAX, -EINVAL, "may not exceed 64 bits", NULL, true},
    {"header_length", 0, -EINVAL, "qcow2 header too short", NULL, true},
    {"header_length", 103, -EINVAL, "qcow2 header too short", NULL, true},
    {"header_length", 105, -EINVAL, "qcow2 header length invalid", NULL, true},
    {"header_length", 0x10008, -EINVAL, "qcow2 header exceeds cluster size", NULL, true},
    {"header_length", UINT32_MAX, -EINVAL, "qcow2 header exceeds cluster size", NULL, true},
    {"compression_type", 1, -EINVAL, "feature bit must be set", NULL, true},
    {"compression_type", 2, -ENOTSUP, "unknown compression type: 2", NULL, true},
    {"compression_type", 255, -ENOTSUP, "unknown compression type: 255", NULL, true},
};

static const struct header_field *field_named(const char *spec_name)
{
    for (size_t i = 0; i < header_field_count; i++)
        if (strcmp(header_fields[i].spec_name, spec_name) == 0)
            return &header_fields[i];
    return NULL;
}

static void poke(uint8_t *bytes, const struct header_field *f, uint64_t value)
{
    if (f->bytes == 8)
        store_be64(bytes + f->off, value);
    else if (f->bytes == 4)
        store_be32(bytes + f->off, (uint32_t)value);
    else
        bytes[f->off] = (uint8_t)value;
}

static void check_bad(const struct bad *bad)
{
    struct header h = sound_header;
    struct qk_error err = {0};
    uint8_t bytes[112] = {0};
    header_encode(&h, bytes);
    poke(bytes, field_named(bad->field), bad->value);
    REQUIRE(header_decode(bytes, sizeof(bytes), &h, NULL) == 0);
    const struct header_field *blamed =
        field_named(bad->blamed && *bad->blamed ? bad->blamed : bad->field);
    bool named = (bad->blamed && !*bad->blamed);
    int ret = header_validate(&h, NULL, FILE_BYTES, &err);
    if (!CHECK(ret == bad->ret && err.code == -ret && strstr(err.text, bad->text) &&
               err.offset == blamed->off && (named || strstr(err.text, blamed->spec_name)) &&
               strcmp(err.structure, "header") == 0))
        printf("    %s = 0x%" PRIx64 ": %d, %s\n", bad->field, bad->value, ret, err.text);
    CHECK_EQ(header_validate(&h, NULL, FILE_BYTES, NULL), bad->ret);
    if (!CHECK((header_validate_for_check(&h, NULL, NULL) < 0) == bad->check_too))
        printf("    %s = 0x%" PRIx64 " when checking\n", bad->field, bad->value);
}

/* Each single field of 0xff bytes is refused, or known to be harmless. */
static void all_ones(void)
{
    static const char *const harmless[] = {"backing_file_size", "compatible_features"};
    for (size_t i = 1; i < header_field_count; i++) {
        struct header h = sound_header;
        uint8_t bytes[112] = {0};
        bool expect_ok = false;
        header_encode(&h, bytes);
        memset(bytes + header_fields[i].off, 0xff, header_fields[i].bytes);
        REQUIRE(header_decode(bytes, sizeof(bytes), &h, NULL) == 0);
        for (size_t k = 0; k < ARRAY_SIZE(harmless); k++)
            expect_ok |= strcmp(harmless[k], header_fields[i].spec_name) == 0;
        if (!CHECK((header_validate(&h, NULL, FILE_BYTES, NULL) == 0) == expect_ok))
            printf("    %s\n", header_fields[i].spec_name);
    }
}

static void backing_names(void)
{
    struct header h = sound_header;
    struct qk_error err;
    h.backing_name_off = 0x200;
    h.backing_name_len = 1023;
    CHECK_OK(header_validate(&h, NULL, FILE_BYTES, NULL));
    h.backing_name_len = 1024;
    CHECK_ERR(header_validate(&h, NULL, FILE_BYTES, &err), -EINVAL);
    CHECK_STR(err.text, "Backing file name too long: backing_file_size is 1024, "
                        "expected at most 1023");
    h.backing_name_off = 0x10000 - 10;
    h.backing_name_len = 10;
    CHECK_OK(header_validate(&h, NULL, FILE_BYTES, NULL));
    h.backing_name_len = 11;
    CHECK_ERR(header_validate(&h, NULL, FILE_BYTES, NULL), -EINVAL);
    h.version = 2;
    h.header_bytes = 72;
    h.backing_name_off = 72;
    CHECK_OK(header_validate(&h, NULL, FILE_BYTES, NULL));
}

static void sound_variants(void)
{
    struct header h = sound_header;
    CHECK_OK(header_validate(&h, NULL, FILE_BYTES, NULL));
    CHECK_OK(header_validate_for_check(&h, NULL, NULL));
    /* an L1 table may end where the file does */
    CHECK_OK(header_validate(&h, NULL, 0x30010, NULL));
    CHECK_ERR(header_validate(&h, NULL, 0x3000f, NULL), -EINVAL);
    h.incompatible = INCOMPAT_COMPRESSION | INCOMPAT_DIRTY | INCOMPAT_CORRUPT;
    h.compression_type = COMPRESSION_ZSTD;
    h.autoclear = ~UINT64_C(2);
    h.compatible = UINT64_MAX;
    CHECK_OK(header_validate(&h, NULL, FILE_BYTES, NULL));
    h = sound_header;
    h.size_bytes = 0;
    h.l1_entries = 0;
    h.l1_off = 0;
    CHECK_OK(header_validate(&h, NULL, FILE_BYTES, NULL));
    h = sound_header;
    h.incompatible = INCOMPAT_EXTENDED_L2;
    h.l1_entries = 4;
    CHECK_OK(header_validate(&h, NULL, FILE_BYTES, NULL));
    h.l1_entries = 3;
    CHECK_ERR(header_validate(&h, NULL, FILE_BYTES, NULL), -EINVAL);
    h.cluster_bits = 13;
    CHECK_ERR(header_validate(&h, NULL, FILE_BYTES, NULL), -EINVAL);
}

static void unknown_feature_names(void)
{
    uint8_t table[2 * 48] = {0, 5, 'q', 'u', 'a', '\n', 'n'};
    struct header h = sound_header;
    struct header_extensions exts = {0};
    struct qk_error err;
    char name[47];
    table[48 + 1] = 7;
    memset(table + 50, 'x', 46);
    header_extension_vec_append(&exts.list,
                                (struct header_extension){HEXT_FEATURE_NAMES, 95, table});
    h.incompatible = 1u << 5 | 1u << 9;
    CHECK_ERR(header_validate(&h, &exts, FILE_BYTES, &err), -ENOTSUP);
    CHECK_STR(err.text, "Unsupported qcow2 feature(s): qua?n, Unknown incompatible feature: 200");
    CHECK_STR(feature_name(&exts, 0, 5, name), "qua?n");
    CHECK(!feature_name(&exts, 0, 7, name)); /* its entry is cut short */
    exts.list.ptr[0].len = 96;
    CHECK_STR(feature_name(&exts, 0, 7, name), "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");
    CHECK_STR(feature_name(&exts, 0, 0, name), "dirty bit");
    CHECK_STR(feature_name(NULL, 1, 0, name), "lazy refcounts");
    CHECK_STR(feature_name(NULL, 2, 1, name), "raw external data");
    CHECK(!feature_name(NULL, 1, 5, name));
    header_extensions_free(&exts);
}

/* ---- extensions ---- */

static void extensions_kept(void)
{
    static const uint8_t odd[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    uint8_t cluster[512], unknown[8] = {9, 8, 7, 6, 5, 4, 3, 2};
    struct header h = sound_header;
    struct header_extensions exts = {0}, back;
    static const struct header_extension list[] = {
        {HEXT_BACKING_FORMAT, 5, (const uint8_t *)"qcow2"},
        {0xdeadbeef, sizeof(odd), odd},
        {0x12345678, 0, NULL},
        {0xdeadbeef, 8, odd},
    };
    for (size_t i = 0; i < ARRAY_SIZE(list); i++)
        header_extension_vec_append(&exts.list, list[i]);
    h.header_bytes = 120;
    CHECK_OK(header_layout(&(struct header_layout){&h, unknown, &exts, "below.qcow2", 0}, cluster,
                           sizeof(cluster), NULL));
    CHECK_MEM(cluster + 112, unknown, 8);
    CHECK_EQ(h.backing_name_len, 11);
    CHECK_MEM(cluster + h.backing_name_off, "below.qcow2", 11);
    CHECK_EQ(load_be64(cluster + 8), h.backing_name_off);
    CHECK_OK(header_extensions_decode(cluster, 120, h.backing_name_off, &back, NULL));
    CHECK_EQ(back.list.len, ARRAY_SIZE(list));
    for (size_t i = 0; i < back.list.len; i++) {
        CHECK_EQ(back.list.ptr[i].type, list[i].type);
        CHECK_EQ(back.list.ptr[i].len, list[i].len);
        CHECK(!list[i].len || memcmp(back.list.ptr[i].data, list[i].data, list[i].len) == 0);
    }
    CHECK(header_extensions_find(&back, 0x12345678) == &back.list.ptr[2]);
    CHECK(!header_extensions_find(&back, HEXT_BITMAPS));
    header_extensions_free(&back);
    header_extensions_free(&exts);
}

static void extensions_refused(void)
{
    static const struct {
        uint32_t type, len;
        size_t room; /* behind the type and length */
        int ret;
    } cases[] = {
        {0x11111111, 16, 16, 0},
        {0x11111111, 17, 16, -EINVAL},
        {0x11111111, UINT32_MAX, 16, -EINVAL},
        {0x11111111, UINT32_MAX - 7, 400, -EINVAL},
        {HEXT_END, UINT32_MAX, 16, -EINVAL},
        {HEXT_BACKING_FORMAT, 15, 40, 0},
        {HEXT_BACKING_FORMAT, 16, 40, -EINVAL},
        {HEXT_BITMAPS, 24, 40, 0},
        {HEXT_BITMAPS, 23, 40, -EINVAL},
        {HEXT_BITMAPS, 25, 40, -EINVAL},
        {HEXT_CRYPTO, 16, 40, 0},
        {HEXT_CRYPTO, 8, 40, -EINVAL},
        {HEXT_DATA_FILE, 40, 40, 0},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct header_extensions exts;
        struct qk_error err = {0};
        uint8_t *bytes = calloc(1, 8 + cases[i].room);
        store_be32(bytes, cases[i].type);
        store_be32(bytes + 4, cases[i].len);
        int ret = header_extensions_decode(bytes, 0, 8 + cases[i].room, &exts, &err);
        CHECK_EQ(ret, cases[i].ret);
        CHECK_STR(err.structure, ret < 0 ? "header extension" : "");
        header_extensions_free(&exts);
        free(bytes);
    }
}

/* The last extension may end anywhere in the area, its padding cut off; half a head may not. */
static void extension_area_ends(void)
{
    uint8_t bytes[32] = {0x11, 0x11, 0x11, 0x11, 0, 0, 0, 5};
    struct header_extensions exts;
    for (size_t end = 0; end <= 32; end++) {
        int ret = header_extensions_decode(bytes, 0, end, &exts, NULL);
        bool sound = end == 0 || (end >= 13 && end <= 16) || end >= 24;
        CHECK_EQ(ret, sound ? 0 : -EINVAL);
        CHECK_EQ(exts.list.len, sound && end ? 1 : 0);
        header_extensions_free(&exts);
    }
}

/* The header that qemu-img create writes for a 1 MiB disk. */
static void as_qemu_writes_it(void)
{
    static const char *const names[] = {
        "dirty bit",        "corrupt bit",         "external data file",
        "compression type", "extended L2 entries", "lazy refcounts",
        "bitmaps",          "raw external data"};
    static const uint8_t kinds[] = {0, 0, 0, 0, 0, 1, 2, 2}, bits[] = {0, 1, 2, 3, 4, 0, 0, 1};
    uint8_t expected[512] = {0}, cluster[512];
    struct header h = sound_header;
    struct header_extensions exts = {0};
    size_t len;
    memcpy(expected, "QFI\xfb\0\0\0\3", 8);
    memcpy(expected + 20, "\0\0\0\x10\0\0\0\0\x40\0\0\0", 12);
    memcpy(expected + 36, "\0\0\0\2\0\0\0\0\0\3\0\0\0\0\0\0\0\1\0\0\0\0\0\1", 24);
    memcpy(expected + 96, "\0\0\0\4\0\0\0\x70", 8);
    memcpy(expected + 112, "\x68\x03\xf8\x57\0\0\1\x80", 8);
    for (size_t i = 0; i < 8; i++) {
        expected[120 + 48 * i] = kinds[i];
        expected[121 + 48 * i] = bits[i];
        memcpy(expected + 122 + 48 * i, names[i], strlen(names[i]));
    }
    const uint8_t *table = feature_name_table(&len);
    CHECK_EQ(len, 384);
    header_extension_vec_append(
        &exts.list, (struct header_extension){HEXT_FEATURE_NAMES, (uint32_t)len, table});
    CHECK_OK(header_layout(&(struct header_layout){&h, NULL, &exts, NULL, 0}, cluster, 512, NULL));
    CHECK_MEM(cluster, expected, 512);
    CHECK_EQ(h.backing_name_off, 0);
    /* one more byte finds no room */
    CHECK_ERR(header_layout(&(struct header_layout){&h, NULL, &exts, "x", 0}, cluster, 512, NULL),
              -ENOSPC);
    CHECK_ERR(header_layout(&(struct header_layout){&h, NULL, &exts, NULL, 0}, cluster, 511, NULL),
              -ENOSPC);
    header_extensions_free(&exts);
}

static void long_backing_names(void)
{
    char name[1100];
    uint8_t cluster[2048];
    struct header h = sound_header;
    memset(name, 'n', sizeof(name));
    name[1023] = 0;
    CHECK_OK(header_layout(&(struct header_layout){&h, NULL, NULL, name, 0}, cluster, 2048, NULL));
    CHECK_EQ(h.backing_name_off, 120);
    CHECK_EQ(h.backing_name_len, 1023);
    CHECK_ERR(header_layout(&(struct header_layout){&h, NULL, NULL, name, 0}, cluster, 1142, NULL),
              -ENOSPC);
    CHECK_OK(header_layout(&(struct header_layout){&h, NULL, NULL, name, 0}, cluster, 1143, NULL));
    name[1023] = 'n';
    name[1024] = 0;
    CHECK_ERR(header_layout(&(struct header_layout){&h, NULL, NULL, name, 0}, cluster, 2048, NULL),
              -EINVAL);
}

int main(void)
{
    field_places();
    round_trip(2, 72);
    for (uint32_t bytes = 104; bytes <= 128; bytes += 8)
        round_trip(3, bytes);
    decode_refuses();
    for (size_t i = 0; i < ARRAY_SIZE(bads); i++)
        check_bad(&bads[i]);
    all_ones();
    backing_names();
    sound_variants();
    unknown_feature_names();
    extensions_kept();
    extensions_refused();
    extension_area_ends();
    as_qemu_writes_it();
    long_backing_names();
    return TEST_SUMMARY();
}
