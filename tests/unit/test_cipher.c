/*
 * test_cipher.c - sector ciphers, key derivation and the anti-forensic splitter against published
 * vectors, and against themselves: every suite that is accepted gives back what it encrypted, in
 * any grouping of sectors, and differs from sector to sector.
 */
#include "base/checked.h"
#include "codec/cipher.h"
#include "codec/kdf.h"
#include "test.h"

#define SECTORS 5

static void from_hex(const char *hex, uint8_t *out)
{
    for (size_t i = 0; hex[2 * i]; i++)
        sscanf(hex + 2 * i, "%2hhx", &out[i]);
}

/* The first block of sector `sector` of zeroes or of the given plain text. */
struct vector {
    const char *cipher, *key, *plain, *expected;
    uint64_t sector;
    enum cipher_mode mode;
};

static const struct vector vectors[] = {
    /* FIPS 197, appendix C */
    {"aes-128", "000102030405060708090a0b0c0d0e0f", "00112233445566778899aabbccddeeff",
     "69c4e0d86a7b0430d8cdb78070b4c55a", 0, CIPHER_ECB},
    {"aes-192", "000102030405060708090a0b0c0d0e0f1011121314151617",
     "00112233445566778899aabbccddeeff", "dda97ca4864cdfe06eaf70a0ec0d7191", 0, CIPHER_ECB},
    {"aes-256", "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
     "00112233445566778899aabbccddeeff", "8ea2b7ca516745bfeafc49904b496089", 0, CIPHER_ECB},
    /* RFC 2144, appendix B.1 */
    {"cast5-128", "0123456712345678234567893456789a", "0123456789abcdef", "238b4fe5847e44b2", 0,
     CIPHER_ECB},
    /* The Twofish paper, with zero keys */
    {"twofish-128", "00000000000000000000000000000000", "00000000000000000000000000000000",
     "9f589f5cf6122c32b6bfec2f2ae8c35a", 0, CIPHER_ECB},
    {"twofish-192", "0123456789abcdeffedcba98765432100011223344556677",
     "00000000000000000000000000000000", "cfd1d2e5a9be9cdf501f13b892bd2248", 0, CIPHER_ECB},
    {"twofish-256", "0123456789abcdeffedcba987654321000112233445566778899aabbccddeeff",
     "00000000000000000000000000000000", "37527be0052334b89f0cfccae87cfa20", 0, CIPHER_ECB},
    /* IEEE 1619, vectors 1, 2 (data unit 0x3333333333 is not 512 bytes there, but its first block
     * does not depend on that) and 4 */
    {"aes-128", "0000000000000000000000000000000000000000000000000000000000000000",
     "00000000000000000000000000000000", "917cf69ebd68b2ec9b9fe9a3eadda692", 0, CIPHER_XTS},
    {"aes-128", "1111111111111111111111111111111122222222222222222222222222222222",
     "44444444444444444444444444444444", "c454185e6a16936e39334038acef838b", 0x3333333333,
     CIPHER_XTS},
    {"aes-128", "2718281828459045235360287471352631415926535897932384626433832795",
     "000102030405060708090a0b0c0d0e0f", "27a7479befa1d476489f308cd4cfa6e2", 0, CIPHER_XTS},
};

static void test_vectors(void)
{
    for (size_t i = 0; i < ARRAY_SIZE(vectors); i++) {
        const struct vector *v = &vectors[i];
        struct cipher_suite suite = {cipher_by_name(v->cipher), v->mode, IVGEN_PLAIN64, NULL};
        uint8_t key[CIPHER_KEY_MAX_BYTES], bytes[CIPHER_SECTOR_BYTES] = {0}, expected[16];
        struct sector_cipher *c;
        REQUIRE(suite.cipher);
        if (cipher_suite_judge(&suite, NULL) < 0) {
            SKIP("a cipher that the build does not have");
            continue;
        }
        from_hex(v->key, key);
        from_hex(v->plain, bytes);
        from_hex(v->expected, expected);
        REQUIRE(sector_cipher_new(&suite, key, &c, NULL) == 0);
        struct sector_run run = {v->sector, bytes, bytes, sizeof(bytes)};
        CHECK_OK(sector_cipher_encrypt(c, &run));
        CHECK_MEM(bytes, expected, strlen(v->expected) / 2);
        sector_cipher_free(c);
    }
}

static void fill(uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++)
        p[i] = (uint8_t)(i * 31 + i / 256);
}

/* There and back; one sector at a time gives the same; numbers matter where the mode has any. */
static void round_trip(const struct cipher_suite *suite)
{
    uint8_t key[CIPHER_KEY_MAX_BYTES], plain[SECTORS * 512], all[SECTORS * 512], one[512];
    struct sector_cipher *c;
    struct qk_error err = {0};
    fill(key, sizeof(key));
    memset(plain, 0x42, sizeof(plain));
    REQUIRE(sector_cipher_new(suite, key, &c, &err) == 0);
    CHECK_OK(sector_cipher_encrypt(c, &(struct sector_run){7, all, plain, sizeof(plain)}));
    for (unsigned i = 0; i < SECTORS; i++) {
        sector_cipher_encrypt(c, &(struct sector_run){7 + i, one, plain, 512});
        CHECK_MEM(one, all + 512 * i, 512);
    }
    CHECK(memcmp(all, plain, sizeof(plain)) != 0);
    CHECK_EQ(memcmp(all, all + 512, 512) != 0, suite->mode != CIPHER_ECB);
    CHECK_OK(sector_cipher_decrypt(c, &(struct sector_run){7, all, all, sizeof(all)}));
    CHECK_MEM(all, plain, sizeof(plain));
    sector_cipher_free(c);
}

static void test_suites(void)
{
    static const char *const names[] = {"aes-128",     "aes-192",     "aes-256",     "cast5-128",
                                        "serpent-128", "serpent-192", "serpent-256", "twofish-128",
                                        "twofish-192", "twofish-256"};
    static const char *const hashes[] = {"sha256", "sha1", "md5", "sha512"};
    unsigned accepted = 0;
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        for (int mode = 0; mode < CIPHER_MODES; mode++)
            for (int ivgen = 0; ivgen < IVGENS; ivgen++)
                for (size_t h = 0; h < (ivgen == IVGEN_ESSIV ? ARRAY_SIZE(hashes) : 1); h++) {
                    struct cipher_suite suite = {cipher_by_name(names[i]), (enum cipher_mode)mode,
                                                 (enum cipher_ivgen)ivgen, hash_by_name(hashes[h])};
                    REQUIRE(suite.cipher && suite.ivgen_hash);
                    if (cipher_suite_judge(&suite, NULL) < 0)
                        continue;
                    round_trip(&suite);
                    accepted++;
                }
    CHECK(accepted > 100);
}

static void test_refusals(void)
{
    struct qk_error err = {0};
    struct cipher_suite suite = {cipher_by_name("cast5-128"), CIPHER_XTS, IVGEN_PLAIN64, NULL};
    CHECK_ERR(cipher_suite_judge(&suite, &err), -ENOTSUP);
    CHECK_STR(err.text, "Unsupported cipher mode xts");
    suite = (struct cipher_suite){cipher_by_name("aes-256"), CIPHER_CBC, IVGEN_ESSIV,
                                  hash_by_name("sha1")};
    CHECK_ERR(cipher_suite_judge(&suite, &err), -ENOTSUP);
    CHECK_STR(err.text, "No AES cipher with key size 20 available");
    suite.ivgen_hash = NULL;
    CHECK_ERR(cipher_suite_judge(&suite, &err), -EINVAL);
    CHECK(!cipher_by_name("des"));
    CHECK(!cipher_by_family("aes", 20));
    CHECK_EQ(cipher_mode_by_name("gcm"), CIPHER_MODES);
    CHECK_EQ(cipher_ivgen_by_name("benbi"), IVGENS);
}

/* RFC 6070 and RFC 7914 */
static void test_pbkdf2(void)
{
    static const struct {
        const char *hash, *secret, *salt, *expected;
        uint32_t iterations;
    } rows[] = {
        {"sha1", "password", "salt", "0c60c80f961f0e71f3a9b524af6012062fe037a6", 1},
        {"sha1", "password", "salt", "4b007901b765489abead49d926f721d065a429c1", 4096},
        {"sha256", "passwd", "salt",
         "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc"
         "49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783",
         1},
        {"sha256", "Password", "NaCl",
         "4ddcd8f60b98be21830cee5ef22701f9641a4418d04c0414aeff08876b34ab56"
         "a1d425a1225833549adb841b51c9b3176a272bdebba1d078478f62b397f33c8d",
         80000},
    };
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        uint8_t expected[64], out[64];
        size_t len = strlen(rows[i].expected) / 2;
        from_hex(rows[i].expected, expected);
        struct kdf_input in = {hash_by_name(rows[i].hash),
                               {(void *)(uintptr_t)rows[i].secret, strlen(rows[i].secret)},
                               {(void *)(uintptr_t)rows[i].salt, strlen(rows[i].salt)},
                               rows[i].iterations};
        CHECK_OK(kdf_derive(&in, (struct iovec){out, len}));
        CHECK_MEM(out, expected, len);
    }
    struct kdf_input none = {hash_by_name("sha1"), {NULL, 0}, {(char[]){"salt"}, 4}, 1};
    uint8_t out[20];
    CHECK_OK(kdf_derive(&none, (struct iovec){out, 20}));
    none.iterations = 0;
    CHECK_ERR(kdf_derive(&none, (struct iovec){out, 20}), -EINVAL);
}

static void test_iterations(void)
{
    uint32_t few, many;
    CHECK_OK(kdf_iterations(hash_by_name("sha256"), 64, 0, 1000, &few));
    CHECK_EQ(few, 1000);
    CHECK_OK(kdf_iterations(hash_by_name("sha256"), 64, UINT64_MAX, 1000, &many));
    CHECK_EQ(many, KDF_ITERATIONS_MAX);
}

/* Every stripe is needed; no stripe looks like the key. */
static void test_splitter(void)
{
    static const char *const hashes[] = {"md5", "sha1", "sha256", "sha384", "ripemd160"};
    static uint8_t split[64 * 50];
    for (size_t i = 0; i < ARRAY_SIZE(hashes); i++) {
        struct af_shape shape = {hash_by_name(hashes[i]), 56, 50};
        uint8_t key[64], back[64];
        fill(key, sizeof(key));
        CHECK_OK(af_split(&shape, key, split));
        CHECK_OK(af_merge(&shape, split, back));
        CHECK_MEM(back, key, shape.key_bytes);
        CHECK(!memmem(split, sizeof(split), key, 8));
        split[shape.key_bytes * 17 + 3] ^= 1;
        CHECK_OK(af_merge(&shape, split, back));
        CHECK(memcmp(back, key, shape.key_bytes) != 0);
    }
}

int main(void)
{
    test_vectors();
    test_suites();
    test_refusals();
    test_pbkdf2();
    test_iterations();
    test_splitter();
    return TEST_SUMMARY();
}
