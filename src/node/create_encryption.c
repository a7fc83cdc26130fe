/*
 * create_encryption.c - what encrypt.* mean when an image is made. Each name of an algorithm is one
 * row; what is left out has QEMU's default.
 */
#include "base/checked.h"
#include "node/create.h"
#include "node/secrets.h"

#include <stdlib.h>
#include <string.h>

static const char *text_of(const struct options *opts, const char *key)
{
    const struct option *opt = options_find(opts, key);
    return opt ? opt->value : NULL;
}

/* ---- names of algorithms ----------------------------------------------------------------- */

static bool take_cipher(struct create_encryption *e, const char *name)
{
    e->suite.cipher = cipher_by_name(name);
    return e->suite.cipher;
}

static bool take_mode(struct create_encryption *e, const char *name)
{
    e->suite.mode = cipher_mode_by_name(name);
    return e->suite.mode != CIPHER_MODES;
}

static bool take_ivgen(struct create_encryption *e, const char *name)
{
    e->suite.ivgen = cipher_ivgen_by_name(name);
    return e->suite.ivgen != IVGENS;
}

static bool take_ivgen_hash(struct create_encryption *e, const char *name)
{
    e->suite.ivgen_hash = hash_by_name(name);
    return e->suite.ivgen_hash;
}

static bool take_hash(struct create_encryption *e, const char *name)
{
    e->hash = hash_by_name(name);
    return e->hash;
}

static const struct {
    const char *key, *fallback;
    bool (*take)(struct create_encryption *e, const char *name);
} names[] = {
    {"encrypt.cipher-alg", "aes-256", take_cipher},
    {"encrypt.cipher-mode", "xts", take_mode},
    {"encrypt.ivgen-alg", "plain64", take_ivgen},
    {"encrypt.ivgen-hash-alg", NULL, take_ivgen_hash},
    {"encrypt.hash-alg", "sha256", take_hash},
};

static int bad_name(struct qk_error *err, const char *key, const char *value)
{
    if (!strcmp(value, "des") || !strcmp(value, "3des"))
        return qk_fail(err, -ENOTSUP, "Algorithm '%s' not supported", value);
    return qk_fail(err, -EINVAL, "Parameter '%s' does not accept value '%s'",
                   key + strlen("encrypt."), value);
}

static int judge_luks(struct create_plan *plan, struct qk_error *err)
{
    struct create_encryption *e = &plan->encryption;
    const char *iter_time = text_of(&plan->opts, "encrypt.iter-time");
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        const char *value = text_of(&plan->opts, names[i].key);
        if (!value)
            value = names[i].fallback;
        if (value && !names[i].take(e, value))
            return bad_name(err, names[i].key, value);
    }
    if (e->suite.ivgen == IVGEN_ESSIV && !e->suite.ivgen_hash)
        e->suite.ivgen_hash = hash_by_name("sha256");
    e->iter_ms = iter_time ? strtoull(iter_time, NULL, 0) : LUKS_ITER_MS;
    return cipher_suite_judge(&e->suite, err);
}

/* ---- the whole --------------------------------------------------------------------------- */

/* The AES format leaves no choice. */
static int judge_aes(const struct create_plan *plan, struct qk_error *err)
{
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (text_of(&plan->opts, names[i].key))
            return qk_fail(err, -EINVAL, "Parameter '%s' is unexpected", names[i].key);
    if (text_of(&plan->opts, "encrypt.iter-time"))
        return qk_fail(err, -EINVAL, "Parameter 'encrypt.iter-time' is unexpected");
    return 0;
}

/* "encryption=on" is an old way to say "encrypt.format=aes". */
static int take_format(const struct create_plan *plan, const char **format, struct qk_error *err)
{
    const char *alias = text_of(&plan->opts, "encryption");
    *format = text_of(&plan->opts, "encrypt.format");
    if (alias && *format)
        return qk_fail(
            err, -EINVAL,
            "'encrypt.format' and its alias 'encryption' can't be used at the same time");
    if (alias && option_parse_bool(alias) > 0)
        *format = "aes";
    if (!*format && options_has_prefix(&plan->opts, "encrypt."))
        return qk_fail(err, -EINVAL, "Parameter 'encrypt.format' is missing");
    if (*format && strcmp(*format, "aes") && strcmp(*format, "luks"))
        return qk_fail(err, -EINVAL, "Parameter 'format' does not accept value '%s'", *format);
    return 0;
}

int create_judge_encryption(struct create_plan *plan, struct qk_error *err)
{
    const char *format;
    int ret = take_format(plan, &format, err);
    if (ret < 0 || !format)
        return ret;
    struct create_encryption *e = &plan->encryption;
    bool luks = !strcmp(format, "luks");
    *e = (struct create_encryption){.method = luks ? CRYPT_LUKS : CRYPT_AES};
    ret = luks ? judge_luks(plan, err) : judge_aes(plan, err);
    plan->params.encryption = e;
    return ret;
}

int create_judge_secret(struct create_plan *plan, struct qk_error *err)
{
    const char *id = text_of(&plan->opts, "encrypt.key-secret");
    if (!plan->params.encryption)
        return 0;
    if (!id)
        return qk_fail(err, -EINVAL, "Parameter 'encrypt.key-secret' is required for cipher");
    plan->secret = secrets_find(plan->secrets, id);
    plan->encryption.secret = &plan->secret;
    return 0;
}
