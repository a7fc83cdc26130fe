/*
 * test_base.c - checked arithmetic at its edges, sizes as people write and read them (the tables
 * hold what qemu-img answers), error texts, vectors, byte order.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/vector.h"
#include "test.h"

#define EI UINT64_C(0xfffffffffffffff0)

static void arithmetic(void)
{
    uint64_t v;
    CHECK(try_add_u64(UINT64_MAX - 1, 1, &v) && v == UINT64_MAX);
    CHECK(!try_add_u64(UINT64_MAX, 1, &v));
    CHECK(try_mul_u64(UINT64_C(1) << 32, UINT32_MAX, &v) && v == UINT64_C(0xffffffff00000000));
    CHECK(!try_mul_u64(UINT64_C(1) << 32, UINT64_C(1) << 32, &v));
    CHECK(try_round_up(UINT64_MAX - 511, 512, &v) && v == UINT64_MAX - 511);
    CHECK(!try_round_up(UINT64_MAX - 510, 512, &v));
    CHECK_EQ(round_up(0, 512), 0);
    CHECK_EQ(round_up(1, 512), 512);
    CHECK_EQ(round_down(1023, 512), 512);
    CHECK(div_round_up(UINT64_MAX, 2) == UINT64_C(1) << 63);
    CHECK_EQ(div_round_up(0, 7), 0);
    CHECK_EQ(div_round_up(14, 7), 2);
    CHECK_EQ(div_round_up(15, 7), 3);
    CHECK_EQ(min_u64(3, 4) * 10 + max_u64(3, 4), 34);
    CHECK(is_power_of_2(UINT64_C(1) << 63) && is_power_of_2(1));
    CHECK(!is_power_of_2(0) && !is_power_of_2(3));
    CHECK(is_aligned(1024, 512) && !is_aligned(1025, 512));
    CHECK_EQ(log2_floor(1), 0);
    CHECK_EQ(log2_floor(UINT64_MAX), 63);
    CHECK_EQ(log2_floor(4095), 11);
}

static void ranges(void)
{
    CHECK(range_within(0, 10, 10) && range_within(10, 0, 10));
    CHECK(!range_within(1, 10, 10) && !range_within(11, 0, 10));
    CHECK(!range_within(EI, 32, UINT64_MAX)); /* would wrap */
    CHECK(!range_within(5, UINT64_MAX, 10));
    CHECK(ranges_overlap(0, 10, 9, 1) && ranges_overlap(9, 1, 0, 10));
    CHECK(!ranges_overlap(0, 10, 10, 5) && !ranges_overlap(10, 5, 0, 10));
    CHECK(!ranges_overlap(0, 10, 5, 0));
    CHECK(ranges_overlap(EI, UINT64_MAX, UINT64_MAX, 1));
    CHECK(!ranges_overlap(0, 1, EI, 16));
}

static void parse_sizes(void)
{
    static const struct {
        const char *text;
        int ret;
        uint64_t bytes;
    } table[] = {
        {"0", 0, 0},
        {"1", 0, 1},
        {"1b", 0, 1},
        {"1B", 0, 1},
        {"1.", 0, 1},
        {"1.0", 0, 1},
        {"+5", 0, 5},
        {" 1k", 0, 1024},
        {"1k", 0, 1024},
        {"1K", 0, 1024},
        {"1.k", 0, 1024},
        {"1.00k", 0, 1024},
        {"1.5k", 0, 1536},
        {"0.1k", 0, 102},
        {"0.0001k", 0, 0},
        {"1M", 0, UINT64_C(1) << 20},
        {"1G", 0, UINT64_C(1) << 30},
        {"1T", 0, UINT64_C(1) << 40},
        {"1P", 0, UINT64_C(1) << 50},
        {"1e", 0, UINT64_C(1) << 60},
        {"1.5E", 0, UINT64_C(3) << 59},
        {"0.1T", 0, 109951162778},
        {"1.99999999999G", 0, UINT64_C(2) << 30},
        {"3.0000000000000000001k", 0, 3072},
        {"010", 0, 10},
        {"0x10", 0, 16},
        {"0X1F", 0, 31},
        {"0x5e", 0, 94},
        {"0x5B", 0, 91},
        {"0x10k", 0, 16384},
        {"7E", 0, UINT64_C(7) << 60},
        {"8191P", 0, UINT64_C(8191) << 50},
        {"9223372036854775807", 0, INT64_MAX},
        {"0x7fffffffffffffff", 0, INT64_MAX},
        {"8E", -ERANGE, 0},
        {"9223372036854775808", -ERANGE, 0},
        {"18446744073709551616", -ERANGE, 0},
        {"0xffffffffffffffff", -ERANGE, 0},
        {"99999999E", -ERANGE, 0},
        {"", -EINVAL, 0},
        {"k", -EINVAL, 0},
        {".", -EINVAL, 0},
        {".5k", -EINVAL, 0},
        {"0.5", -EINVAL, 0},
        {"1.5", -EINVAL, 0},
        {"1.5b", -EINVAL, 0},
        {"-1", -EINVAL, 0},
        {"-0", -EINVAL, 0},
        {"+-5", -EINVAL, 0},
        {"1e3", -EINVAL, 0},
        {"1E3", -EINVAL, 0},
        {"1e+3", -EINVAL, 0},
        {"1.1e3", -EINVAL, 0},
        {"10Q", -EINVAL, 0},
        {"1kk", -EINVAL, 0},
        {"1KiB", -EINVAL, 0},
        {"1k1", -EINVAL, 0},
        {"1 k", -EINVAL, 0},
        {"1k ", -EINVAL, 0},
        {"1,5k", -EINVAL, 0},
        {"0x", -EINVAL, 0},
        {"0x1.8k", -EINVAL, 0},
        {"0x1p3", -EINVAL, 0},
        {"0b1", -EINVAL, 0},
        {"nan", -EINVAL, 0},
        {"inf", -EINVAL, 0},
    };
    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        uint64_t bytes = 0;
        int ret = qk_parse_size(table[i].text, 'B', &bytes);
        if (!CHECK(ret == table[i].ret && (ret < 0 || bytes == table[i].bytes)))
            printf("    \"%s\": %d, %" PRIu64 "\n", table[i].text, ret, bytes);
    }
}

static void parse_sizes_in_units(void)
{
    uint64_t bytes;
    CHECK_OK(qk_parse_size("3", 'M', &bytes));
    CHECK_EQ(bytes, 3 << 20);
    CHECK_OK(qk_parse_size("1.5", 'G', &bytes));
    CHECK_EQ(bytes, UINT64_C(3) << 29);
    CHECK_OK(qk_parse_size("3k", 'M', &bytes));
    CHECK_EQ(bytes, 3072);
    CHECK_ERR(qk_parse_size("3", 'x', &bytes), -EINVAL);
}

static void print_sizes(void)
{
    static const struct {
        uint64_t bytes;
        const char *text;
    } table[] = {
        {0, "0 B"},
        {1, "1 B"},
        {512, "512 B"},
        {1024, "1 KiB"},
        {1536, "1.5 KiB"},
        {102400, "100 KiB"},
        {1000448, "977 KiB"},
        {1024000, "0.977 MiB"},
        {1024512, "0.977 MiB"},
        {1048576, "1 MiB"},
        {1572864, "1.5 MiB"},
        {104857600, "100 MiB"},
        {1072693248, "0.999 GiB"},
        {1073741824, "1 GiB"},
        {123456789504, "115 GiB"},
        {UINT64_C(1) << 40, "1 TiB"},
        {5000000000000, "4.55 TiB"},
        {UINT64_C(1) << 60, "1 EiB"},
        {UINT64_MAX, "16 EiB"},
    };
    char buf[QK_SIZE_TEXT_MAX];
    for (size_t i = 0; i < ARRAY_SIZE(table); i++)
        CHECK_STR(qk_format_size(table[i].bytes, buf), table[i].text);
}

static void errors(void)
{
    struct qk_error err;
    char expected[128];
    CHECK_ERR(qk_fail(&err, -EINVAL, "value %d", 7), -EINVAL);
    CHECK_EQ(err.code, EINVAL);
    CHECK_STR(err.text, "value 7");
    CHECK(err.offset == QK_OFFSET_NONE && !err.file[0] && !err.structure[0]);
    CHECK_ERR(qk_fail_at(&err, -EIO, WHERE("a.qcow2", "L2 table", 0x50000), "cannot read"), -EIO);
    CHECK_STR(err.file, "a.qcow2");
    CHECK_STR(err.structure, "L2 table");
    CHECK_EQ(err.offset, 0x50000);
    CHECK_ERR(qk_error_prefix(&err, "disk %s", "x"), -EIO);
    CHECK_STR(err.text, "disk x: cannot read");
    CHECK_EQ(err.offset, 0x50000);
    CHECK_ERR(qk_fail_errno(&err, -ENOENT, "Could not open '%s'", "x"), -ENOENT);
    snprintf(expected, sizeof(expected), "Could not open 'x': %s", strerror(ENOENT));
    CHECK_STR(err.text, expected);
    CHECK_ERR(qk_fail_nomem(&err), -ENOMEM);
    CHECK_EQ(err.code, ENOMEM);
    CHECK_ERR(qk_fail(NULL, -EINVAL, "x"), -EINVAL);
    CHECK_ERR(qk_fail_at(NULL, -EINVAL, WHERE(NULL, NULL, 0), "x"), -EINVAL);
    CHECK_ERR(qk_fail_errno(NULL, -EPERM, "x"), -EPERM);
}

static void errors_located_and_cut(void)
{
    struct qk_error err;
    char big[3000];
    qk_fail_at(&err, -EINVAL, WHERE(NULL, "header", 20), "bad");
    qk_error_locate(&err, WHERE("a", "file", 0));
    CHECK_STR(err.file, "a");
    CHECK_STR(err.structure, "header");
    CHECK_EQ(err.offset, 20);
    qk_error_locate(&err, WHERE("b", "other", 1));
    CHECK_STR(err.file, "a");
    qk_error_locate(NULL, WHERE("b", "other", 1));
    memset(big, 'x', sizeof(big) - 1);
    big[sizeof(big) - 1] = 0;
    qk_fail_at(&err, -EINVAL, WHERE(big, big, 0), "%s", big);
    CHECK_EQ(strlen(err.text), sizeof(err.text) - 1);
    CHECK_EQ(strlen(err.file), sizeof(err.file) - 1);
    CHECK_EQ(strlen(err.structure), sizeof(err.structure) - 1);
    qk_error_prefix(&err, "%s", big);
    CHECK_EQ(strlen(err.text), sizeof(err.text) - 1);
    qk_fail_errno(&err, -EIO, "%s", big);
    CHECK_EQ(strlen(err.text), sizeof(err.text) - 1);
}

DEFINE_VECTOR(u64_vector, uint64_t)

static void vectors(void)
{
    struct u64_vector v = {0};
    for (uint64_t i = 0; i < 1000; i++)
        CHECK_OK(u64_vector_append(&v, i * i));
    CHECK_EQ(v.len, 1000);
    CHECK(v.cap >= 1000 && v.cap < 2000);
    for (uint64_t i = 0; i < 1000; i += 37)
        CHECK_EQ(v.ptr[i], i * i);
    CHECK_ERR(u64_vector_reserve(&v, SIZE_MAX / 4), -ENOMEM);
    CHECK_EQ(v.len, 1000);
    CHECK_EQ(v.ptr[999], 999 * 999);
    u64_vector_free(&v);
    CHECK(!v.ptr && !v.len && !v.cap);
}

static void byte_order(void)
{
    uint8_t buf[9] = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    CHECK_EQ(load_be16(buf + 1), 0x0102);
    CHECK_EQ(load_be32(buf + 1), 0x01020304);
    CHECK_EQ(load_be64(buf + 1), 0x0102030405060708);
    store_be64(buf, UINT64_C(0xfedcba9876543210));
    CHECK_MEM(buf, "\xfe\xdc\xba\x98\x76\x54\x32\x10\x08", 9);
    store_be32(buf + 3, 0xa0b0c0d0);
    store_be16(buf + 7, 0x1122);
    CHECK_MEM(buf, "\xfe\xdc\xba\xa0\xb0\xc0\xd0\x11\x22", 9);
}

int main(void)
{
    arithmetic();
    ranges();
    parse_sizes();
    parse_sizes_in_units();
    print_sizes();
    errors();
    errors_located_and_cut();
    vectors();
    byte_order();
    CHECK_STR(qk_version(), "0.1.0");
    return TEST_SUMMARY();
}
