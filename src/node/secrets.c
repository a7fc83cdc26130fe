/*
 * secrets.c - named secrets: kept in memory of their own, which is wiped, and told by what QEMU's
 * object "secret" says (data or a file, raw or base64, in plain or encrypted with another secret).
 * No error has anything of a secret's content in it.
 */
#include "node/secrets.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "node/options.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define SECRET_MAX_BYTES (16u << 20) /* of a file */
#define MESSAGE_BLOCK    16

struct secret {
    char *id;
    uint8_t *data; /* one byte more than len */
    size_t len;
};
DEFINE_VECTOR(secret_vec, struct secret)

struct qk_secrets {
    struct secret_vec list;
};

static void secret_free(struct secret *s)
{
    if (s->data)
        explicit_bzero(s->data, s->len);
    free(s->data);
    free(s->id);
    *s = (struct secret){0};
}
#define SECRET_CLEANUP __attribute__((cleanup(secret_free))) struct secret

static int secret_alloc(struct secret *s, size_t len, struct qk_error *err)
{
    s->data = calloc(1, len + 1);
    s->len = len;
    return s->data ? 0 : qk_fail_nomem(err);
}

/* ---- the set ----------------------------------------------------------------------------- */

int qk_secrets_new(struct qk_secrets **out, struct qk_error *err)
{
    *out = calloc(1, sizeof(**out));
    return *out ? 0 : qk_fail_nomem(err);
}

void qk_secrets_free(struct qk_secrets *secrets)
{
    if (!secrets)
        return;
    for (size_t i = 0; i < secrets->list.len; i++)
        secret_free(&secrets->list.ptr[i]);
    secret_vec_free(&secrets->list);
    free(secrets);
}

static const struct secret *find(const struct qk_secrets *secrets, const char *id)
{
    for (size_t i = 0; secrets && i < secrets->list.len; i++)
        if (!strcmp(secrets->list.ptr[i].id, id))
            return &secrets->list.ptr[i];
    return NULL;
}

struct image_secret secrets_find(const struct qk_secrets *secrets, const char *id)
{
    const struct secret *s = find(secrets, id);
    return (struct image_secret){id, s ? s->data : NULL, s ? s->len : 0};
}

/* Takes *s over. */
static int add(struct qk_secrets *secrets, const char *id, struct secret *s, struct qk_error *err)
{
    if (find(secrets, id))
        return qk_fail(err, -EEXIST,
                       "attempt to add duplicate property '%s' to object (type 'container')", id);
    s->id = strdup(id);
    if (!s->id || secret_vec_append(&secrets->list, *s) < 0)
        return qk_fail_nomem(err);
    *s = (struct secret){0};
    return 0;
}

int qk_secrets_add(struct qk_secrets *secrets, const char *id, const void *data, size_t len,
                   struct qk_error *err)
{
    SECRET_CLEANUP s = {0};
    int ret = secret_alloc(&s, len, err);
    if (ret < 0)
        return ret;
    memcpy(s.data, data, len);
    return add(secrets, id, &s, err);
}

/* ---- base64 ------------------------------------------------------------------------------ */

static int base64_value(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}

/* Line ends between the digits count for nothing. */
static int decode_base64(const struct secret *text, struct secret *out, struct qk_error *err)
{
    int ret = secret_alloc(out, text->len / 4 * 3 + 3, err);
    uint32_t bits = 0;
    size_t digits = 0, pads = 0, used = 0;
    for (size_t i = 0; i < text->len && ret == 0; i++) {
        char c = (char)text->data[i];
        int value = base64_value(c);
        if (c == '\n' || c == '\r')
            continue;
        pads += c == '=';
        if (pads ? c != '=' : value < 0)
            return qk_fail(err, -EINVAL, "Base64 data contains invalid characters");
        bits = bits << 6 | (uint32_t)(value < 0 ? 0 : value);
        if (++digits % 4 == 0)
            for (int shift = 16; shift >= 0; shift -= 8)
                out->data[used++] = (uint8_t)(bits >> shift);
    }
    if (ret == 0 && (digits % 4 || pads > 2))
        return qk_fail(err, -EINVAL, "Base64 data is incomplete");
    if (ret == 0) {
        out->len = used - pads;
        out->data[out->len] = 0;
    }
    return ret;
}

/* ---- definitions ------------------------------------------------------------------------- */

static int read_file(const char *name, struct secret *out, struct qk_error *err)
{
    struct stat st;
    CLEANUP_CLOSE int fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return qk_fail_errno(err, -errno, "Unable to read %s: Failed to open file “%s”", name,
                             name);
    int ret = secret_alloc(out, SECRET_MAX_BYTES, err);
    size_t used = 0;
    ssize_t n = 1;
    while (ret == 0 && n > 0 && used < SECRET_MAX_BYTES) {
        n = read(fd, out->data + used, SECRET_MAX_BYTES - used);
        if (n < 0)
            ret = qk_fail_errno(err, -errno, "Unable to read %s", name);
        else
            used += (size_t)n;
    }
    if (ret == 0 && used == SECRET_MAX_BYTES)
        ret = qk_fail(err, -EFBIG, "Unable to read %s: it is no secret of a sensible size", name);
    out->len = used;
    return ret;
}

static const char *text_of(const struct options *opts, const char *key)
{
    const struct option *opt = options_find(opts, key);
    return opt ? opt->value : NULL;
}

static int load(const struct options *opts, struct secret *out, struct qk_error *err)
{
    const char *file = text_of(opts, "file"), *data = text_of(opts, "data");
    if (file && data)
        return qk_fail(err, -EINVAL, "'file' and 'data' are mutually exclusive");
    if (file)
        return read_file(file, out, err);
    if (!data)
        return qk_fail(err, -EINVAL, "Either 'file' or 'data' must be provided");
    int ret = secret_alloc(out, strlen(data), err);
    if (ret == 0)
        memcpy(out->data, data, out->len);
    return ret;
}

static int take_vector(const char *text, uint8_t iv[MESSAGE_BLOCK], struct qk_error *err)
{
    SECRET_CLEANUP bytes = {0};
    if (!text)
        return qk_fail(err, -EINVAL, "IV is required to decrypt secret");
    struct secret encoded = {.data = (uint8_t *)(uintptr_t)text, .len = strlen(text)};
    int ret = decode_base64(&encoded, &bytes, err);
    if (ret == 0 && bytes.len != MESSAGE_BLOCK)
        ret = qk_fail(err, -EINVAL, "IV should be 16 bytes in length not %zu", bytes.len);
    if (ret == 0)
        memcpy(iv, bytes.data, MESSAGE_BLOCK);
    return ret;
}

/* Opens what another secret has sealed: AES-256 in CBC mode, padded to whole blocks. */
static int unseal(const struct qk_secrets *secrets, const struct options *opts, struct secret *s,
                  struct qk_error *err)
{
    const char *keyid = text_of(opts, "keyid");
    const struct secret *key = find(secrets, keyid);
    uint8_t iv[MESSAGE_BLOCK];
    if (!key)
        return qk_fail(err, -EINVAL, "No secret with id '%s'", keyid);
    if (key->len != 32)
        return qk_fail(err, -EINVAL, "Key should be 32 bytes in length");
    int ret = take_vector(text_of(opts, "iv"), iv, err);
    if (ret < 0)
        return ret;
    if (!s->len || s->len % MESSAGE_BLOCK)
        return qk_fail(err, -EINVAL, "Length %zu must be a multiple of block size %d", s->len,
                       MESSAGE_BLOCK);
    if (cipher_open_message(key->data, iv, s->data, s->len) < 0)
        return qk_fail(err, -EIO, "The secret cannot be decrypted");
    unsigned pad = s->data[s->len - 1];
    if (pad > MESSAGE_BLOCK || pad > s->len)
        return qk_fail(err, -EINVAL,
                       "Incorrect number of padding bytes (%u) found on decrypted data", pad);
    s->len -= pad;
    s->data[s->len] = 0;
    return 0;
}

static int judge_keys(struct options *opts, bool *base64, struct qk_error *err)
{
    static const char *const keys[] = {"id", "data", "file", "format", "keyid", "iv"};
    for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
        options_take(opts, keys[i]);
    const char *unknown = options_unused(opts), *format = text_of(opts, "format");
    if (unknown)
        return qk_fail(err, -EINVAL, "Parameter '%s' is unexpected", unknown);
    if (!text_of(opts, "id"))
        return qk_fail(err, -EINVAL, "Parameter 'id' is missing");
    *base64 = format && !strcmp(format, "base64");
    if (format && !*base64 && strcmp(format, "raw"))
        return qk_fail(err, -EINVAL, "Parameter 'format' does not accept value '%s'", format);
    return 0;
}

static int define(struct qk_secrets *secrets, struct options *opts, struct qk_error *err)
{
    SECRET_CLEANUP raw = {0};
    SECRET_CLEANUP decoded = {0};
    bool base64 = false;
    int ret = judge_keys(opts, &base64, err);
    if (ret == 0)
        ret = load(opts, &raw, err);
    if (ret == 0 && base64)
        ret = decode_base64(&raw, &decoded, err);
    struct secret *s = base64 ? &decoded : &raw;
    if (ret == 0 && text_of(opts, "keyid"))
        ret = unseal(secrets, opts, s, err);
    return ret < 0 ? ret : add(secrets, text_of(opts, "id"), s, err);
}

int qk_secrets_define(struct qk_secrets *secrets, const char *const *definition,
                      struct qk_error *err)
{
    struct options opts = {0};
    int ret = options_add_list(&opts, definition, err);
    if (ret == 0)
        ret = define(secrets, &opts, err);
    struct option *data = options_find(&opts, "data");
    if (data)
        explicit_bzero(data->value, strlen(data->value));
    options_free(&opts);
    return ret;
}
