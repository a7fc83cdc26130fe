/*
 * test_header_mend.c - a header as a check reads it (header_mend.c): which value each impossible
 * field gets; that a sound header stays as it is; that whatever the bytes are, what comes out is a
 * header that the check accepts; and header extensions that cannot be as they are.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "header_test.h"
#include "test.h"

static const struct header_field *field_of(const char *name)
{
    for (size_t i = 0; i < header_field_count; i++) {
        if (!strcmp(header_fields[i].name, name))
            return &header_fields[i];
    }
    printf("no field %s\n", name);
    abort();
}

static void put(uint8_t *bytes, const char *name, uint64_t value)
{
    const struct header_field *f = field_of(name);
    for (uint32_t i = 0; i < f->bytes; i++)
        bytes[f->off + i] = (uint8_t)(value >> 8 * (f->bytes - 1 - i));
}

static uint64_t get(const uint8_t *bytes, const char *name)
{
    const struct header_field *f = field_of(name);
    uint64_t value = 0;
    for (uint32_t i = 0; i < f->bytes; i++)
        value = value << 8 | bytes[f->off + i];
    return value;
}

static void read_mended(const uint8_t *bytes, uint8_t out[QCOW2_FULL_HEADER_BYTES])
{
    const struct header_reading r = {3, 16, 0};
    struct header h;
    memset(out, 0, QCOW2_FULL_HEADER_BYTES);
    CHECK_OK(header_read_as(bytes, QCOW2_FULL_HEADER_BYTES, &r, &h, NULL));
    header_encode(&h, out);
}

/* A field with a bad value, and what another one (or itself) is read as then. */
static const struct {
    const char *bad;
    uint64_t value;
    const char *field;
    uint64_t expected;
} cases[] = {
    {"header_bytes", 0, "header_bytes", 112}, /* what follows is zero, as padding is */
    {"header_bytes", 109, "header_bytes", 112},
    {"header_bytes", 1u << 31, "header_bytes", 112},
    {"header_bytes", 65536, "header_bytes", 65536},
    {"refcount_order", 7, "refcount_order", 4},
    {"refcount_order", 7, "reftable_off", 0},
    {"refcount_order", 6, "refcount_order", 6},
    {"refcount_order", 6, "reftable_off", 0x10000},
    {"reftable_off", 0x10100, "reftable_off", 0},
    {"reftable_off", 0x10100, "reftable_clusters", 0},
    {"reftable_off", UINT64_C(1) << 63, "reftable_off", 0},
    {"reftable_clusters", 0, "reftable_off", 0},
    {"reftable_clusters", 129, "reftable_clusters", 0},
    {"reftable_clusters", 128, "reftable_clusters", 128},
    {"l1_off", 0x30008, "l1_off", 0},
    {"l1_off", INT64_MAX - 65535, "l1_off", INT64_MAX - 65535},
    {"l1_off", (uint64_t)INT64_MAX + 1, "l1_off", 0},
    {"l1_entries", UINT32_MAX, "l1_entries", 2},
    {"l1_entries", 4194304, "l1_entries", 4194304},
    {"l1_entries", 1, "l1_entries", 1}, /* whether there are more is for the check to say */
    {"size_bytes", UINT64_MAX, "size_bytes", UINT64_C(1) << 30},
    {"size_bytes", UINT64_C(1) << 40, "size_bytes", UINT64_C(1) << 40},
    {"backing_name_off", 65537, "backing_name_off", 0},
    {"backing_name_off", 65536, "backing_name_off", 65536},
    {"backing_name_len", 1024, "backing_name_len", 0},
    {"compression_type", 2, "compression_type", 0},
    {"compression_type", 1, "incompatible", 8}, /* the type decides */
    {"incompatible", 8, "incompatible", 0},
    {"incompatible", UINT64_C(1) << 40 | 3, "incompatible", 3},
    {"crypt_method", 3, "crypt_method", 0},
    {"crypt_method", 2, "crypt_method", 2},
};

static void fields_mended(void)
{
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        uint8_t bytes[QCOW2_FULL_HEADER_BYTES] = {0}, out[QCOW2_FULL_HEADER_BYTES];
        header_encode(&sound_header, bytes);
        put(bytes, cases[i].bad, cases[i].value);
        read_mended(bytes, out);
        if (!CHECK_EQ(get(out, cases[i].field), cases[i].expected))
            printf("    %s = 0x%" PRIx64 ": %s\n", cases[i].bad, cases[i].value, cases[i].field);
    }
}

/* Without anything behind byte 104 but an extension, the header ends there. */
static void short_header_length(void)
{
    uint8_t bytes[QCOW2_FULL_HEADER_BYTES] = {0}, out[QCOW2_FULL_HEADER_BYTES];
    header_encode(&sound_header, bytes);
    put(bytes, "header_bytes", 5);
    store_be32(bytes + 104, HEXT_FEATURE_NAMES);
    read_mended(bytes, out);
    CHECK_EQ(get(out, "header_bytes"), 104);
    CHECK_EQ(get(out, "incompatible"), 0); /* the extension's first byte is no compression type */
}

/* All that may stand in a header. */
static struct header full_header(void)
{
    struct header h = sound_header;
    h.cluster_bits = 21;
    h.size_bytes = UINT64_C(1) << 40;
    h.l1_off = 6 << 20;
    h.reftable_off = 2 << 20;
    h.refcount_order = 0;
    h.incompatible = INCOMPAT_KNOWN;
    h.autoclear = 3;
    h.backing_name_off = 600;
    h.backing_name_len = 1023;
    h.crypt_method = 2;
    h.compression_type = 1;
    h.snapshot_count = 70000;
    h.snapshots_off = 3;
    return h;
}

static struct header old_header(void)
{
    struct header h = sound_header;
    h.version = 2;
    h.cluster_bits = 9;
    h.size_bytes = 1 << 20;
    h.l1_entries = 32;
    h.l1_off = 0x600;
    h.reftable_off = 0x200;
    h.header_bytes = 72;
    return h;
}

static void sound_stays(void)
{
    const struct header variants[] = {sound_header, old_header(), full_header()};
    for (size_t i = 0; i < ARRAY_SIZE(variants); i++) {
        uint8_t bytes[QCOW2_FULL_HEADER_BYTES] = {0}, out[QCOW2_FULL_HEADER_BYTES] = {0};
        struct header_reading r = {variants[i].version, variants[i].cluster_bits, 0};
        struct header h;
        header_encode(&variants[i], bytes);
        CHECK(header_reading_possible(&r, variants[i].incompatible));
        CHECK_OK(header_read_as(bytes, sizeof(bytes), &r, &h, NULL));
        header_encode(&h, out);
        CHECK_MEM(out, bytes, variants[i].header_bytes);
        CHECK_EQ(header_likely_version(bytes, sizeof(bytes)), variants[i].version);
    }
}

/* ---- readings ---- */

static void readings(void)
{
    static const struct {
        struct header_reading r;
        uint64_t features;
        bool possible;
    } list[] = {
        {{3, 9, 0}, 0, true},
        {{3, 8, 0}, 0, false},
        {{3, 21, 0}, 0, true},
        {{3, 22, 0}, 0, false},
        {{3, UINT32_MAX, 0}, 0, false},
        {{2, 9, 0}, UINT64_MAX, true}, /* version 2 has no features */
        {{2, 9, INCOMPAT_DATA_FILE}, 0, false},
        {{1, 16, 0}, 0, false},
        {{4, 16, 0}, 0, false},
        {{3, 13, 0}, INCOMPAT_EXTENDED_L2, false},
        {{3, 14, 0}, INCOMPAT_EXTENDED_L2, true},
        {{3, 13, INCOMPAT_EXTENDED_L2}, 0, false},
        {{3, 13, INCOMPAT_EXTENDED_L2}, INCOMPAT_EXTENDED_L2, true},
    };
    for (size_t i = 0; i < ARRAY_SIZE(list); i++)
        CHECK_EQ(header_reading_possible(&list[i].r, list[i].features), list[i].possible);
}

static void likely_versions(void)
{
    static const struct {
        uint32_t order, header_bytes, version;
    } list[] = {
        {4, 104, 3}, {4, 112, 3}, {0, 512, 3}, {7, 104, 3}, {7, 0, 2},          {0, 0, 2},
        {0, 103, 2}, {0, 520, 2}, {0, 108, 2}, {4, 0, 3},   {6, UINT32_MAX, 3}, {0x636f7732, 72, 2},
    };
    for (size_t i = 0; i < ARRAY_SIZE(list); i++) {
        uint8_t bytes[QCOW2_FULL_HEADER_BYTES] = {0};
        header_encode(&sound_header, bytes);
        put(bytes, "refcount_order", list[i].order);
        put(bytes, "header_bytes", list[i].header_bytes);
        CHECK_EQ(header_likely_version(bytes, sizeof(bytes)), list[i].version);
        CHECK_EQ(header_likely_version(bytes, 103), 2);
    }
}

/* ---- whatever the bytes are ---- */

static void promised(const uint8_t *bytes, const struct header_reading *r)
{
    struct header h, again;
    struct qk_error err = {0};
    if (!header_reading_possible(r, load_be64(bytes + 72)))
        return;
    CHECK_OK(header_read_as(bytes, QCOW2_FULL_HEADER_BYTES, r, &h, NULL));
    if (!CHECK_OK(header_validate_for_check(&h, NULL, &err)))
        printf("    %s\n", err.text);
    again = h;
    header_mend(&again, bytes, QCOW2_FULL_HEADER_BYTES);
    CHECK_MEM((const uint8_t *)&again, (const uint8_t *)&h, sizeof(h));
}

static void whatever_the_bytes_are(void)
{
    static const uint64_t values[] = {
        0,          1,          7,         8,          63,         64,
        104,        511,        512,       65535,      65536,      65537,
        INT32_MAX,  UINT32_MAX, INT64_MAX, UINT64_MAX, 1ull << 32, 1ull << 56,
        1ull << 62, 1ull << 63, 0x30000,   0x30001,
    };
    for (size_t f = 0; f < header_field_count; f++) {
        for (size_t v = 0; v < ARRAY_SIZE(values) * header_field_count; v++) {
            uint8_t bytes[QCOW2_FULL_HEADER_BYTES] = {0};
            header_encode(&sound_header, bytes);
            put(bytes, header_fields[f].name, values[v % ARRAY_SIZE(values)]);
            put(bytes, header_fields[v / ARRAY_SIZE(values)].name, values[(v * 7) % 22]);
            for (uint32_t bits = 9; bits <= 21; bits += 4) {
                promised(bytes, &(const struct header_reading){2, bits, 0});
                promised(bytes, &(const struct header_reading){3, bits, 0});
                promised(bytes, &(const struct header_reading){3, bits, INCOMPAT_EXTENDED_L2});
                promised(bytes, &(const struct header_reading){3, bits, INCOMPAT_DATA_FILE});
            }
        }
    }
}

/* ---- extensions ---- */

static void known_lengths(void)
{
    uint8_t bytes[128] = {0};
    struct header_extensions exts;
    struct extension_fault_vec faults = {0};
    store_be32(bytes, HEXT_CRYPTO);
    store_be32(bytes + 4, UINT32_MAX);
    bytes[8] = 77;
    store_be32(bytes + 24, HEXT_BACKING_FORMAT);
    store_be32(bytes + 28, 3);
    CHECK_OK(header_extensions_decode_for_check(bytes, 0, sizeof(bytes), &exts, &faults, NULL));
    CHECK_EQ(faults.len, 1);
    CHECK(faults.ptr[0].known && faults.ptr[0].off == 0 && faults.ptr[0].right_len == 16 &&
          faults.ptr[0].len == UINT32_MAX);
    CHECK_EQ(exts.list.len, 2);
    CHECK(exts.list.ptr[0].len == 16 && exts.list.ptr[0].data[0] == 77);
    CHECK_EQ(exts.list.ptr[1].type, HEXT_BACKING_FORMAT);
    header_extensions_free(&exts);
    extension_fault_vec_free(&faults);
}

/* What comes before the damaged one is kept, for every place where the area can end. */
static void lists_that_are_cut(void)
{
    uint8_t bytes[64] = {0};
    store_be32(bytes, 0x12345678);
    store_be32(bytes + 4, 4);
    store_be32(bytes + 16, HEXT_BITMAPS);
    store_be32(bytes + 20, 7);
    for (size_t end = 0; end <= sizeof(bytes); end++) {
        struct header_extensions exts;
        struct extension_fault_vec faults = {0};
        CHECK_OK(header_extensions_decode_for_check(bytes, 0, end, &exts, &faults, NULL));
        CHECK_EQ(exts.list.len, end < 12 ? 0 : end < 48 ? 1 : 2);
        bool fault = end > 0 && (end < 12 || end > 16);
        /* From byte 48 on the list goes on with an end marker, or half of one. */
        CHECK_EQ(faults.len, fault + (end > 48 && end < 56));
        if (faults.len && end < 48)
            CHECK(!faults.ptr[0].known && faults.ptr[0].off == (end < 12 ? 0 : 16));
        header_extensions_free(&exts);
        extension_fault_vec_free(&faults);
    }
}

int main(void)
{
    fields_mended();
    short_header_length();
    sound_stays();
    readings();
    likely_versions();
    whatever_the_bytes_are();
    known_lengths();
    lists_that_are_cut();
    return TEST_SUMMARY();
}
