/*
 * test_codec.c - the codecs by themselves: what is compressed comes back, at every cluster size and
 * level; deflate streams fit QEMU's 4 KiB window; streams that are cut, longer, changed or random
 * never write beyond the cluster and never pass for another one.
 */
#include "base/checked.h"
#include "codec/codec.h"
#include "test.h"

#include <zlib.h>
#include <zstd.h>

#define CLUSTER_MAX (2u << 20)
#define CANARY      0xa5
#define CANARIES    64u

static uint8_t *data, *stream, *back; /* two clusters each, and canaries */

static uint32_t next(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

/* ---- what is compressed ---- */

static void fill_zero(uint8_t *p, size_t len)
{
    memset(p, 0, len);
}

static void fill_ramp(uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++)
        p[i] = (uint8_t)(i / 7);
}

/* Words from a small book, so that there are matches near and far. */
static void fill_words(uint8_t *p, size_t len)
{
    uint64_t state = len;
    for (size_t i = 0; i < len;) {
        uint32_t word = next(&state) % 4000;
        for (uint32_t n = 2 + word % 9, k = 0; k < n && i < len; k++)
            p[i++] = (uint8_t)('a' + word * (k + 3) % 26);
    }
}

/* The same random bytes again, just within and just beyond 4 KiB. */
static void fill_echo(uint8_t *p, size_t len)
{
    uint64_t state = 5;
    for (size_t i = 0; i < len; i++)
        p[i] = i >= 4096 && i / 9000 % 2   ? p[i - 4096]
               : i >= 4097 && i / 5000 % 2 ? p[i - 4097]
                                           : (uint8_t)next(&state);
}

static void fill_random(uint8_t *p, size_t len)
{
    uint64_t state = 1;
    for (size_t i = 0; i < len; i++)
        p[i] = (uint8_t)next(&state);
}

static void (*const fills[])(uint8_t *p, size_t len) = {fill_zero, fill_ramp, fill_words, fill_echo,
                                                        fill_random};

/* ---- there and back ---- */

static struct codec *open_codec(enum codec_type type, int level)
{
    struct codec *codec = NULL;
    CHECK_OK(codec_new(type, level, &codec));
    return codec;
}

static int decompress(struct codec *codec, size_t stream_len, size_t len)
{
    memset(back + len, CANARY, CANARIES);
    int ret =
        codec_decompress(codec, (struct iovec){stream, stream_len}, (struct iovec){back, len});
    for (size_t i = 0; i < CANARIES; i++)
        if (back[len + i] != CANARY)
            return -EFAULT;
    return ret;
}

/* zlib with QEMU's window, byte by byte, so that it has nothing but the window to look back at. */
static void check_window(size_t stream_len, size_t len)
{
    z_stream z = {.next_in = stream, .avail_in = (uInt)stream_len};
    int ret = inflateInit2(&z, -12);
    for (size_t i = 0; i < len && ret == Z_OK; i++) {
        z.next_out = back + i;
        z.avail_out = 1;
        ret = inflate(&z, Z_SYNC_FLUSH);
    }
    CHECK(ret == Z_OK || ret == Z_STREAM_END);
    CHECK_EQ(z.total_out, len);
    CHECK(memcmp(back, data, len) == 0);
    inflateEnd(&z);
}

static size_t there_and_back(struct codec *codec, size_t len)
{
    size_t used = 0;
    int ret =
        codec_compress(codec, (struct iovec){data, len}, (struct iovec){stream, len - 1}, &used);
    if (ret == -ENOSPC)
        return 0;
    CHECK_OK(ret);
    CHECK(used && used < len);
    memset(stream + used, 0xff, 600); /* the rest of the last sector may hold anything */
    CHECK_OK(decompress(codec, used, len));
    CHECK(memcmp(back, data, len) == 0);
    CHECK_OK(decompress(codec, used + 600, len));
    CHECK(memcmp(back, data, len) == 0);
    return used;
}

static void test_sizes(enum codec_type type)
{
    for (int level = 0; level <= codec_level_max(type); level++) {
        struct codec *codec = open_codec(type, level);
        for (size_t len = 512; len <= CLUSTER_MAX; len *= level > 3 || len > 10000 ? 16 : 2) {
            for (size_t i = 0; i < ARRAY_SIZE(fills); i++) {
                fills[i](data, len);
                size_t used = there_and_back(codec, len);
                CHECK(used || fills[i] == fill_random || fills[i] == fill_echo || len <= 1024);
                CHECK(!used || fills[i] != fill_random);
                if (type == CODEC_DEFLATE && used && len <= 65536)
                    check_window(used, len);
            }
        }
        codec_free(codec);
    }
}

/* ---- bad streams ---- */

static void test_wrong_size(struct codec *codec, size_t used, size_t len)
{
    CHECK_ERR(decompress(codec, used, len - 1), -EOVERFLOW);
    CHECK_ERR(decompress(codec, used, len / 2), -EOVERFLOW);
    int ret = decompress(codec, used, len + 1);
    CHECK(ret == -ENODATA || ret == -EBADMSG);
}

/* Without its end, a stream fails or gives the same bytes. */
static void test_cut(struct codec *codec, size_t used, size_t len)
{
    size_t passed = 0;
    for (size_t n = 0; n < used; n++) {
        int ret = decompress(codec, n, len);
        CHECK(ret == -ENODATA || ret == -EBADMSG || (ret == 0 && memcmp(back, data, len) == 0));
        passed += ret == 0;
    }
    CHECK(passed <= 2);
}

static void test_changed(struct codec *codec, size_t used, size_t len)
{
    uint64_t state = used;
    for (int i = 0; i < 3000; i++) {
        size_t at = next(&state) % used;
        uint8_t old = stream[at];
        stream[at] ^= (uint8_t)(1u << next(&state) % 8);
        int ret = decompress(codec, used, len);
        CHECK(ret == 0 || ret == -ENODATA || ret == -EBADMSG || ret == -EOVERFLOW);
        stream[at] = old;
    }
    CHECK_OK(decompress(codec, used, len)); /* the contexts have survived all that */
    CHECK(memcmp(back, data, len) == 0);
}

static void test_garbage(struct codec *codec, size_t len)
{
    uint64_t state = len;
    for (int i = 0; i < 3000; i++) {
        size_t n = next(&state) % 2000;
        for (size_t k = 0; k < n; k++)
            stream[k] = (uint8_t)(i % 4 ? next(&state) : next(&state) & 3);
        if (i % 2) /* far enough to look like a frame */
            memcpy(stream, "\x28\xb5\x2f\xfd", 4);
        int ret = decompress(codec, n, len);
        CHECK(ret == 0 || ret == -ENODATA || ret == -EBADMSG || ret == -EOVERFLOW);
    }
}

static void test_bad(enum codec_type type)
{
    struct codec *codec = open_codec(type, 0);
    for (size_t len = 512; len <= 65536; len *= 8) {
        fill_words(data, len);
        size_t used = there_and_back(codec, len);
        if (!used)
            continue;
        test_wrong_size(codec, used, len);
        if (len <= 4096)
            test_cut(codec, used, len);
        test_changed(codec, used, len);
        test_garbage(codec, len);
    }
    codec_free(codec);
}

/* ---- what other writers make ---- */

static size_t deflate_with(int window, int flush, size_t len)
{
    z_stream z = {
        .next_in = data, .avail_in = (uInt)len, .next_out = stream, .avail_out = 2 * CLUSTER_MAX};
    CHECK_EQ(deflateInit2(&z, 9, Z_DEFLATED, window, 8, Z_DEFAULT_STRATEGY), Z_OK);
    CHECK(deflate(&z, flush) >= Z_OK);
    size_t used = z.total_out;
    deflateEnd(&z);
    return used;
}

/* QEMU reads a complete cluster whose stream has no end mark; a larger window does no harm. */
static void test_foreign_deflate(void)
{
    struct codec *codec = open_codec(CODEC_DEFLATE, 0);
    size_t len = 65536;
    fill_words(data, len);
    CHECK_OK(decompress(codec, deflate_with(-12, Z_SYNC_FLUSH, len), len));
    CHECK(memcmp(back, data, len) == 0);
    CHECK_OK(decompress(codec, deflate_with(-15, Z_FINISH, len), len));
    CHECK(memcmp(back, data, len) == 0);
    CHECK_ERR(decompress(codec, deflate_with(-12, Z_SYNC_FLUSH, len), len - 1), -EOVERFLOW);
    CHECK_ERR(decompress(codec, deflate_with(-12, Z_SYNC_FLUSH, len), len + 1), -ENODATA);
    codec_free(codec);
}

static void test_foreign_zstd(void)
{
    struct codec *codec = open_codec(CODEC_ZSTD, 0);
    size_t len = 65536, half = len / 2, room = 2 * CLUSTER_MAX;
    fill_words(data, len);
    static const uint8_t skippable[] = {0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3};
    memcpy(stream, skippable, sizeof(skippable));
    size_t used = sizeof(skippable);
    used += ZSTD_compress(stream + used, room - used, data, half, 1);
    used += ZSTD_compress(stream + used, room - used, data + half, half, 5);
    CHECK_OK(decompress(codec, used, len));
    CHECK(memcmp(back, data, len) == 0);
    CHECK_ERR(decompress(codec, used, len - 1), -EOVERFLOW);
    CHECK(decompress(codec, used, len + 1) < 0);
    codec_free(codec);
}

static void test_levels(void)
{
    struct codec *codec = NULL;
    for (int type = 0; type < CODEC_TYPES; type++) {
        int max = codec_level_max((enum codec_type)type);
        CHECK(max >= 9);
        CHECK_ERR(codec_new((enum codec_type)type, max + 1, &codec), -EINVAL);
        CHECK_ERR(codec_new((enum codec_type)type, -1, &codec), -EINVAL);
    }
    CHECK_ERR(codec_new(CODEC_TYPES, 0, &codec), -EINVAL);
    codec_free(NULL);
    CHECK(strcmp(codec_reason(-ENODATA), codec_reason(-EBADMSG)) != 0);
}

int main(void)
{
    size_t room = 2 * CLUSTER_MAX + CANARIES;
    data = malloc(room);
    stream = malloc(room);
    back = malloc(room);
    test_levels();
    for (int type = 0; type < CODEC_TYPES; type++) {
        test_sizes((enum codec_type)type);
        test_bad((enum codec_type)type);
    }
    test_foreign_deflate();
    test_foreign_zstd();
    free(data);
    free(stream);
    free(back);
    return TEST_SUMMARY();
}
