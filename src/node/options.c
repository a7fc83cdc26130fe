/*
 * options.c - the flat dictionary behind options.h. Small sets (tens of keys), so a vector that is
 * searched from the front is all it takes. JSON comes in through libjansson.
 */
#include "node/options.h"
#include "base/checked.h"
#include "base/cleanup.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

/* Deeper nesting than any graph of nodes that can be opened needs. */
enum { JSON_DEPTH_MAX = 512, JSON_KEY_MAX = 4096 };

static void option_clear(struct option *opt)
{
    free(opt->key);
    free(opt->value);
}

void options_free(struct options *opts)
{
    for (size_t i = 0; i < opts->list.len; i++)
        option_clear(&opts->list.ptr[i]);
    option_vec_free(&opts->list);
}

struct option *options_find(const struct options *opts, const char *key)
{
    for (size_t i = 0; i < opts->list.len; i++) {
        if (!strcmp(opts->list.ptr[i].key, key))
            return &opts->list.ptr[i];
    }
    return NULL;
}

static int append(struct options *opts, struct option opt, struct qk_error *err)
{
    if (opt.key && opt.value && option_vec_append(&opts->list, opt) == 0)
        return 0;
    option_clear(&opt);
    return qk_fail_nomem(err);
}

int options_set(struct options *opts, const char *key, const char *value, enum option_kind kind,
                struct qk_error *err)
{
    struct option *old = options_find(opts, key);
    if (!old)
        return append(opts, (struct option){strdup(key), strdup(value), kind, false}, err);
    char *copy = strdup(value);
    if (!copy)
        return qk_fail_nomem(err);
    free(old->value);
    old->value = copy;
    old->kind = kind;
    return 0;
}

int options_add_list(struct options *opts, const char *const *list, struct qk_error *err)
{
    for (; list && *list; list++) {
        const char *equals = strchr(*list, '=');
        CLEANUP_FREE char *key = equals ? strndup(*list, (size_t)(equals - *list)) : strdup(*list);
        if (!key)
            return qk_fail_nomem(err);
        int ret = options_set(opts, key, equals ? equals + 1 : "on", OPTION_TEXT, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int options_add_all(struct options *opts, const struct options *from, struct qk_error *err)
{
    int ret = 0;
    for (size_t i = 0; i < from->list.len && ret == 0; i++) {
        const struct option *opt = &from->list.ptr[i];
        ret = options_set(opts, opt->key, opt->value, opt->kind, err);
    }
    return ret;
}

/* ---- JSON -------------------------------------------------------------------------------- */

struct flatten {
    struct options *out;
    struct qk_error *err;
    unsigned depth;
};

static int flatten_value(const struct flatten *f, const char *key, json_t *value);

static int flatten_object(const struct flatten *f, const char *prefix, json_t *object)
{
    const struct flatten inner = {f->out, f->err, f->depth + 1};
    if (inner.depth > JSON_DEPTH_MAX)
        return qk_fail(f->err, -EINVAL, "JSON options are nested too deeply");
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value)
    {
        char key[JSON_KEY_MAX];
        int n = snprintf(key, sizeof(key), "%s%s%s", prefix, *prefix ? "." : "", name);
        if (n < 0 || (size_t)n >= sizeof(key))
            return qk_fail(f->err, -EINVAL, "JSON option name is too long");
        int ret = flatten_value(&inner, key, value);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int flatten_array(const struct flatten *f, const char *prefix, json_t *array)
{
    const struct flatten inner = {f->out, f->err, f->depth + 1};
    if (inner.depth > JSON_DEPTH_MAX)
        return qk_fail(f->err, -EINVAL, "JSON options are nested too deeply");
    for (size_t i = 0; i < json_array_size(array); i++) {
        char key[JSON_KEY_MAX];
        int n = snprintf(key, sizeof(key), "%s.%zu", prefix, i);
        if (n < 0 || (size_t)n >= sizeof(key))
            return qk_fail(f->err, -EINVAL, "JSON option name is too long");
        int ret = flatten_value(&inner, key, json_array_get(array, i));
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int flatten_value(const struct flatten *f, const char *key, json_t *value)
{
    if (json_is_object(value))
        return flatten_object(f, key, value);
    if (json_is_array(value))
        return flatten_array(f, key, value);
    if (options_find(f->out, key))
        return 0;
    if (json_is_string(value))
        return options_set(f->out, key, json_string_value(value), OPTION_TEXT, f->err);
    if (json_is_boolean(value))
        return options_set(f->out, key, json_is_true(value) ? "on" : "off", OPTION_BOOL, f->err);
    if (json_is_null(value))
        return options_set(f->out, key, "", OPTION_NULL, f->err);
    CLEANUP_FREE char *number = json_dumps(value, JSON_ENCODE_ANY);
    if (!number)
        return qk_fail_nomem(f->err);
    return options_set(f->out, key, number, OPTION_NUMBER, f->err);
}

int options_add_json(struct options *opts, const char *text, struct qk_error *err)
{
    json_error_t why;
    json_t *root = json_loads(text, JSON_DECODE_ANY, &why);
    if (!root)
        return qk_fail(err, -EINVAL, "Could not parse the JSON options: %s", why.text);
    const struct flatten f = {opts, err, 0};
    int ret = json_is_object(root) ? flatten_object(&f, "", root)
                                   : qk_fail(err, -EINVAL, "Invalid JSON object given");
    json_decref(root);
    return ret;
}

/* ---- taking apart ------------------------------------------------------------------------ */

bool options_has_prefix(const struct options *opts, const char *prefix)
{
    for (size_t i = 0; i < opts->list.len; i++) {
        if (!strncmp(opts->list.ptr[i].key, prefix, strlen(prefix)))
            return true;
    }
    return false;
}

const char *options_take(struct options *opts, const char *key)
{
    struct option *opt = options_find(opts, key);
    if (!opt)
        return NULL;
    opt->used = true;
    return opt->value;
}

int option_bad_bool(struct qk_error *err, const char *key)
{
    return qk_fail(err, -EINVAL, "Parameter '%s' expects 'on' or 'off'", key);
}

int option_bad_size(struct qk_error *err, const char *key)
{
    return qk_fail(err, -EINVAL,
                   "Parameter '%s' expects a non-negative number below 2^64\n"
                   "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
                   "and exabytes, respectively.",
                   key);
}

int option_bad_value(struct qk_error *err, const char *value)
{
    return qk_fail(err, -EINVAL, "invalid parameter value: %s", value);
}

int option_parse_bool(const char *text)
{
    static const char *const words[][2] = {
        {"off", "on"}, {"no", "yes"}, {"false", "true"}, {"n", "y"}};
    for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
        for (int value = 0; value < 2; value++) {
            if (!strcmp(text, words[i][value]))
                return value;
        }
    }
    return -EINVAL;
}

int options_take_bool(struct options *opts, const char *key, bool *value, struct qk_error *err)
{
    const char *text = options_take(opts, key);
    if (!text)
        return 0;
    int parsed = option_parse_bool(text);
    if (parsed < 0)
        return option_bad_bool(err, key);
    *value = parsed;
    return 0;
}

int options_take_size(struct options *opts, const char *key, uint64_t *value, struct qk_error *err)
{
    const char *text = options_take(opts, key);
    if (!text)
        return 0;
    return qk_parse_size(text, 'B', value) < 0 ? option_bad_size(err, key) : 0;
}

int options_split(struct options *opts, const char *prefix, struct options *to,
                  struct qk_error *err)
{
    size_t len = strlen(prefix), kept = 0;
    int ret = 0;
    for (size_t i = 0; i < opts->list.len; i++) {
        struct option opt = opts->list.ptr[i];
        if (ret < 0 || strncmp(opt.key, prefix, len)) {
            opts->list.ptr[kept++] = opt;
            continue;
        }
        ret = options_set(to, opt.key + len, opt.value, opt.kind, err);
        option_clear(&opt);
    }
    opts->list.len = kept;
    return ret;
}

const char *options_unused(const struct options *opts)
{
    for (size_t i = 0; i < opts->list.len; i++) {
        if (!opts->list.ptr[i].used)
            return opts->list.ptr[i].key;
    }
    return NULL;
}
