/*
 * test_secrets.c - named secrets in each form that they can be given in, and encrypted disks
 * through the public calls: made, opened, described; no error has a secret in it.
 */
#include "qcowkit.h"
#include "test.h"

#include <unistd.h>

static char path[300], file[300];

static int define(struct qk_secrets *set, const char *a, const char *b, const char *c,
                  struct qk_error *err)
{
    const char *const list[] = {"id=s", a, b, c, NULL};
    *err = (struct qk_error){0};
    return qk_secrets_define(set, list, err);
}

static int create(const struct qk_secrets *set, const char *format)
{
    const char *const list[] = {"size=1M", format, "encrypt.key-secret=s", NULL};
    struct qk_create_context context = QK_CREATE_CONTEXT_INIT;
    context.secrets = set;
    return qk_create_with(path, "qcow2", list, &context, NULL);
}

static int open_with(const struct qk_secrets *set, unsigned flags, struct qk_disk **disk,
                     struct qk_error *err)
{
    static const char *const list[] = {"encrypt.key-secret=s", NULL};
    struct qk_open_options options = QK_OPEN_OPTIONS_INIT;
    *err = (struct qk_error){0};
    *disk = NULL;
    options.flags = flags;
    options.format = "qcow2";
    options.secrets = set;
    options.options = set ? list : NULL;
    return qk_disk_open(path, &options, disk, err);
}

static bool opens(const struct qk_secrets *set)
{
    struct qk_disk *disk;
    struct qk_error err;
    int ret = open_with(set, 0, &disk, &err);
    qk_disk_close(disk, NULL);
    return ret == 0;
}

/* Each way to say "geheim". */
static void test_forms(void)
{
    static const char *const forms[][3] = {
        {"data=geheim", NULL, NULL},
        {"data=Z2VoZWlt", "format=base64", NULL},
        {"data=Z2Vo\nZWlt\n", "format=base64", NULL},
        {NULL, "format=raw", NULL},
    };
    struct qk_secrets *set;
    struct qk_error err;
    CHECK_OK(qk_secrets_new(&set, NULL));
    CHECK_OK(qk_secrets_add(set, "s", "geheim", 6, NULL));
    CHECK_OK(create(set, "encrypt.format=aes"));
    CHECK(opens(set));
    qk_secrets_free(set);
    FILE *f = fopen(file, "w");
    REQUIRE(f && fputs("geheim", f) >= 0 && fclose(f) == 0);
    char from_file[320];
    snprintf(from_file, sizeof(from_file), "file=%s", file);
    for (size_t i = 0; i < sizeof(forms) / sizeof(*forms); i++) {
        CHECK_OK(qk_secrets_new(&set, NULL));
        CHECK_OK(define(set, forms[i][0] ? forms[i][0] : from_file, forms[i][1], NULL, &err));
        CHECK(opens(set));
        CHECK_ERR(qk_secrets_add(set, "s", "x", 1, NULL), -EEXIST);
        qk_secrets_free(set);
    }
}

static void test_malformed(void)
{
    static const struct {
        const char *a, *b, *c, *text;
    } rows[] = {
        {NULL, NULL, NULL, "Either 'file' or 'data' must be provided"},
        {"data=topsecret", "file=x", NULL, "'file' and 'data' are mutually exclusive"},
        {"data=topsecret?", "format=base64", NULL, "Base64 data contains invalid characters"},
        {"data=topse", "format=base64", NULL, "Base64 data is incomplete"},
        {"data=topsecret", "format=rot13", NULL,
         "Parameter 'format' does not accept value 'rot13'"},
        {"data=topsecret", "colour=red", NULL, "Parameter 'colour' is unexpected"},
        {"data=topsecret", "keyid=k", NULL, "No secret with id 'k'"},
        {"data=topsecret", "keyid=short", NULL, "Key should be 32 bytes in length"},
        {"data=topsecret", "keyid=long", NULL, "IV is required to decrypt secret"},
        {"data=topsecret", "keyid=long", "iv=aaaa", "IV should be 16 bytes in length not 3"},
        {"data=topsecret", "keyid=long",
         "iv=AAAAAAAAAAAAAAAAAAAAAA==", "Length 9 must be a multiple of block size 16"},
    };
    struct qk_secrets *set;
    struct qk_error err;
    CHECK_OK(qk_secrets_new(&set, NULL));
    CHECK_OK(qk_secrets_add(set, "short", "k", 1, NULL));
    CHECK_OK(qk_secrets_add(set, "long", "0123456789abcdef0123456789abcdef", 32, NULL));
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        CHECK(define(set, rows[i].a, rows[i].b, rows[i].c, &err) < 0);
        CHECK_STR(err.text, rows[i].text);
        CHECK(!memmem(&err, sizeof(err), "topse", 5));
    }
    qk_secrets_free(set);
    qk_secrets_free(NULL);
}

static void test_description(void)
{
    struct qk_encryption_info info = QK_ENCRYPTION_INFO_INIT;
    struct qk_secrets *set;
    struct qk_disk *disk;
    struct qk_error err;
    CHECK_OK(qk_secrets_new(&set, NULL));
    CHECK_OK(qk_secrets_add(set, "s", "geheim", 6, NULL));
    CHECK_OK(create(set, "encrypt.format=luks"));
    CHECK_ERR(open_with(NULL, 0, &disk, &err), -EINVAL);
    CHECK_STR(err.text, "Parameter 'encrypt.key-secret' is required for cipher");
    CHECK_OK(open_with(NULL, QK_OPEN_NO_IO | QK_OPEN_NO_BACKING, &disk, &err));
    REQUIRE(disk);
    CHECK_OK(qk_disk_encryption(disk, &info, NULL));
    CHECK_STR(info.format, "luks");
    CHECK_STR(info.cipher_alg, "aes-256");
    CHECK_STR(info.cipher_mode, "xts");
    CHECK_STR(info.ivgen_alg, "plain64");
    CHECK(!info.ivgen_hash_alg);
    CHECK_STR(info.hash_alg, "sha256");
    CHECK_EQ(strlen(info.uuid), 36);
    CHECK_EQ(info.payload_offset, 2068480);
    CHECK_EQ(info.slot_count, 8);
    CHECK(info.slots[0].active && !info.slots[1].active);
    CHECK_EQ(info.slots[0].stripes, 4000);
    CHECK_EQ(info.slots[1].key_offset, 262144);
    CHECK(info.slots[0].iterations >= 1000 && info.master_key_iterations >= 1000);
    qk_disk_close(disk, NULL);
    qk_secrets_free(set);
    const char *const plain[] = {"size=1M", NULL};
    CHECK_OK(qk_create(path, "qcow2", plain, NULL));
    CHECK_OK(open_with(NULL, QK_OPEN_NO_IO, &disk, &err));
    CHECK_ERR(qk_disk_encryption(disk, &info, NULL), -ENOTSUP);
    qk_disk_close(disk, NULL);
}

int main(void)
{
    const char *dir = getenv("TMPDIR");
    snprintf(path, sizeof(path), "%s/secrets-%d.qcow2", dir ? dir : "/tmp", (int)getpid());
    snprintf(file, sizeof(file), "%s/secrets-%d.txt", dir ? dir : "/tmp", (int)getpid());
    test_forms();
    test_malformed();
    test_description();
    unlink(path);
    unlink(file);
    return TEST_SUMMARY();
}
