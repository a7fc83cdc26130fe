/*
 * create_options.c - the tables of creation options, the check of how values are written, and what
 * they mean. The order of the tables is that of qemu-img's "Formatting" line.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "node/create.h"
#include "node/driver.h"
#include "node/name.h"
#include "node/option_rows.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const struct qk_option_desc qcow2_options[] = {
    {"encryption", SWITCH,
     "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)", NULL,
     false},
    {"encrypt.format", TEXT, "Encrypt the image, format choices: 'aes', 'luks'", NULL, false},
    {"encrypt.key-secret", TEXT, "ID of secret providing qcow AES key or LUKS passphrase", NULL,
     true},
    {"encrypt.cipher-alg", TEXT, "Name of encryption cipher algorithm", NULL, false},
    {"encrypt.cipher-mode", TEXT, "Name of encryption cipher mode", NULL, false},
    {"encrypt.ivgen-alg", TEXT, "Name of IV generator algorithm", NULL, false},
    {"encrypt.ivgen-hash-alg", TEXT, "Name of IV generator hash algorithm", NULL, false},
    {"encrypt.hash-alg", TEXT, "Name of encryption hash algorithm", NULL, false},
    ROW_ITER_TIME,
    {"cluster_size", SIZE, "qcow2 cluster size", NULL, false},
    {"extended_l2", SWITCH, "Extended L2 tables", NULL, false},
    {"preallocation", TEXT, "Preallocation mode (allowed values: off, metadata, falloc, full)",
     NULL, false},
    {"compression_type", TEXT, "Compression method used for image cluster compression", NULL,
     false},
    ROWS_DISK,
    {"keep_data_file", SWITCH, "Use an external data file that exists, with what is in it", NULL,
     false},
    {"data_file_keep", SWITCH, "Another name of keep_data_file", NULL, false},
    ROWS_REFCOUNTS,
};

static const char *const qcow2_implied[] = {"cluster_size=65536",    "extended_l2=off",
                                            "compression_type=zlib", "lazy_refcounts=off",
                                            "refcount_bits=16",      NULL};

static const struct qk_option_desc raw_options[] = {
    {"size", SIZE, "Virtual disk size", NULL, false},
};

static const struct qk_option_desc file_options[] = {
    {"size", SIZE, "Virtual disk size", NULL, false},
    {"nocow", SWITCH, "Turn off copy-on-write (valid only on btrfs)", NULL, false},
    {"preallocation", TEXT, "Preallocation mode (allowed values: off, falloc, full)", NULL, false},
    {"extent_size_hint", SIZE, "Extent size hint for the image file, 0 to disable", NULL, false},
};

static const char *const nothing_implied[] = {NULL};

static const struct create_format formats[] = {
    {"qcow2", qcow2_options, ARRAY_SIZE(qcow2_options), true, qcow2_implied},
    {"raw", raw_options, ARRAY_SIZE(raw_options), true, nothing_implied},
    {"file", file_options, ARRAY_SIZE(file_options), false, nothing_implied},
};

/* ---- tables ------------------------------------------------------------------------------ */

static const struct create_format *find_format(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
        if (!strcmp(formats[i].name, name))
            return &formats[i];
    }
    return NULL;
}

int create_find_format(const char *name, const struct create_format **out, struct qk_error *err)
{
    const struct node_driver *driver = driver_by_name(name);
    *out = find_format(name);
    if (*out)
        return 0;
    if (!driver)
        return qk_fail(err, -EINVAL, "Unknown file format '%s'", name);
    int ret = driver_check_supported(driver, err);
    if (ret < 0)
        return ret;
    return qk_fail(err, -ENOTSUP, "Format driver '%s' does not support image creation", name);
}

const struct qk_option_desc *qk_create_options(const char *format, size_t *count)
{
    const struct create_format *f = find_format(format);
    *count = f ? f->count : 0;
    return f ? f->options : NULL;
}

static const struct qk_option_desc *find_option(const struct qk_option_desc *list, size_t count,
                                                const char *key)
{
    for (size_t i = 0; i < count; i++) {
        if (!strcmp(list[i].name, key))
            return &list[i];
    }
    return NULL;
}

const struct qk_option_desc *create_option_at(const struct create_format *format, size_t index)
{
    if (index < format->count)
        return &format->options[index];
    index -= format->count;
    for (size_t i = 0; format->on_file && i < ARRAY_SIZE(file_options); i++) {
        if (!find_option(format->options, format->count, file_options[i].name) && index-- == 0)
            return &file_options[i];
    }
    return NULL;
}

static const struct qk_option_desc *option_of(const struct create_format *format, const char *key)
{
    const struct qk_option_desc *own = find_option(format->options, format->count, key);
    return own || !format->on_file ? own : find_option(file_options, ARRAY_SIZE(file_options), key);
}

/* ---- how values are written -------------------------------------------------------------- */

/* As QEMU reads numbers: any C base, a sign wraps around. */
static int parse_number(const char *text, uint64_t *value)
{
    char *end;
    errno = 0;
    *value = strtoull(text, &end, 0);
    return errno || end == text || *end ? -EINVAL : 0;
}

static int check_size(struct options *opts, struct option *opt, struct qk_error *err)
{
    uint64_t bytes;
    char text[24];
    if (qk_parse_size(opt->value, 'B', &bytes) < 0)
        return option_bad_size(err, opt->key);
    snprintf(text, sizeof(text), "%" PRIu64, bytes);
    return options_set(opts, opt->key, text, OPTION_TEXT, err);
}

static int check_value(struct create_plan *plan, struct option *opt, struct qk_error *err)
{
    const struct qk_option_desc *desc = option_of(plan->format, opt->key);
    uint64_t number;
    if (!desc)
        return qk_fail(err, -EINVAL, "Invalid parameter '%s'", opt->key);
    if (!strcmp(desc->type, SWITCH) && option_parse_bool(opt->value) < 0)
        return option_bad_bool(err, opt->key);
    if (!strcmp(desc->type, NUMBER) && parse_number(opt->value, &number) < 0)
        return qk_fail(err, -EINVAL, "Parameter '%s' expects a number", opt->key);
    return strcmp(desc->type, SIZE) ? 0 : check_size(&plan->opts, opt, err);
}

static uint64_t number_of(const struct options *opts, const char *key, uint64_t fallback)
{
    const struct option *opt = options_find(opts, key);
    uint64_t value = fallback;
    if (opt)
        parse_number(opt->value, &value);
    return value;
}

static bool is_on(const struct options *opts, const char *key)
{
    const struct option *opt = options_find(opts, key);
    return opt && option_parse_bool(opt->value) > 0;
}

static const char *text_of(const struct options *opts, const char *key)
{
    const struct option *opt = options_find(opts, key);
    return opt ? opt->value : NULL;
}

int create_plan_parse(struct create_plan *plan, const char *format, const char *const *options,
                      struct qk_error *err)
{
    *plan = (struct create_plan){0};
    int ret = create_find_format(format, &plan->format, err);
    if (ret == 0)
        ret = options_add_list(&plan->opts, options, err);
    for (size_t i = 0; ret == 0 && i < plan->opts.list.len; i++)
        ret = check_value(plan, &plan->opts.list.ptr[i], err);
    plan->has_size = options_find(&plan->opts, "size");
    plan->params.size_bytes = number_of(&plan->opts, "size", 0);
    return ret;
}

void create_plan_free(struct create_plan *plan)
{
    options_free(&plan->opts);
}

/* ---- what values mean -------------------------------------------------------------------- */

struct word {
    const char *text;
    unsigned value;
};

static const struct word prealloc_words[] = {{"off", QK_PREALLOC_OFF},
                                             {"metadata", QK_PREALLOC_METADATA},
                                             {"falloc", QK_PREALLOC_FALLOC},
                                             {"full", QK_PREALLOC_FULL},
                                             {NULL, 0}};
static const struct word version_words[] = {
    {"0.10", 2}, {"v2", 2}, {"1.1", 3}, {"v3", 3}, {NULL, 0}};
static const struct word compression_words[] = {
    {"zlib", COMPRESSION_ZLIB}, {"zstd", COMPRESSION_ZSTD}, {NULL, 0}};

/* -1: none of the words. */
static int word_value(const struct word *words, const char *text)
{
    for (; words->text; words++) {
        if (!strcmp(words->text, text))
            return (int)words->value;
    }
    return -1;
}

/* Sets *value when the option is there. `name` is what QEMU calls it when it refuses a value. */
static int take_word(const struct options *opts, const char *key, const char *name,
                     const struct word *words, unsigned *value, struct qk_error *err)
{
    const char *text = text_of(opts, key);
    int found = text ? word_value(words, text) : (int)*value;
    if (found < 0)
        return qk_fail(err, -EINVAL, "Parameter '%s' does not accept value '%s'", name, text);
    *value = (unsigned)found;
    return 0;
}

static int judge_raw(struct create_plan *plan, struct qk_error *err)
{
    const char *text = text_of(&plan->opts, "preallocation");
    int prealloc = text ? word_value(prealloc_words, text) : QK_PREALLOC_OFF;
    if (prealloc < 0)
        return qk_fail(err, -EINVAL, "invalid parameter value: %s", text);
    if (prealloc == QK_PREALLOC_METADATA)
        return qk_fail(err, -ENOTSUP, "Unsupported preallocation mode: metadata");
    plan->params.prealloc = (enum qk_prealloc)prealloc;
    return 0;
}

static int judge_backing(struct create_plan *plan, struct qk_error *err)
{
    struct create_params *p = &plan->params;
    p->backing_file = text_of(&plan->opts, "backing_file");
    p->backing_format = text_of(&plan->opts, "backing_fmt");
    if (p->backing_format && !driver_by_name(p->backing_format))
        return qk_fail(err, -EINVAL, "Parameter 'backing-fmt' does not accept value '%s'",
                       p->backing_format);
    if (p->backing_file && !*p->backing_file)
        return qk_fail(err, -EINVAL, "Expected backing file name, got empty string");
    if (p->backing_file && strlen(p->backing_file) > QCOW2_MAX_BACKING_NAME)
        return qk_fail(err, -EINVAL, "Backing file name is longer than %d bytes",
                       QCOW2_MAX_BACKING_NAME);
    if (p->backing_file && !p->backing_format)
        return qk_fail(err, -EINVAL, "Backing file specified without backing format");
    return 0;
}

/* Keeping a data file makes sense only when what is in it becomes the disk's, or may. */
static int judge_data_file(struct create_plan *plan, struct qk_error *err)
{
    struct create_params *p = &plan->params;
    const char *name = text_of(&plan->opts, "data_file");
    plan->keep_data_file =
        is_on(&plan->opts, "keep_data_file") || is_on(&plan->opts, "data_file_keep");
    p->data_file = name ? name_strip_file(name) : NULL;
    p->data_file_raw = is_on(&plan->opts, "data_file_raw");
    const struct {
        bool wrong;
        const char *text;
    } rules[] = {
        {plan->keep_data_file && !name, "keep_data_file requires data_file"},
        {plan->keep_data_file && p->prealloc > QK_PREALLOC_METADATA,
         "keep_data_file and preallocation of data cannot be used at the same time: it would "
         "overwrite what is to be kept"},
        {plan->keep_data_file && p->prealloc == QK_PREALLOC_OFF && !p->data_file_raw,
         "keep_data_file needs data_file_raw or preallocation=metadata: nothing would show what is "
         "kept"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(rules); i++)
        if (rules[i].wrong)
            return qk_fail(err, -EINVAL, "%s", rules[i].text);
    return 0;
}

static unsigned log2_or(uint64_t value, unsigned otherwise)
{
    return is_power_of_2(value) ? log2_floor(value) : otherwise;
}

static int judge_qcow2(struct create_plan *plan, struct qk_error *err)
{
    const struct options *opts = &plan->opts;
    struct create_params *p = &plan->params;
    unsigned prealloc = QK_PREALLOC_OFF;
    p->version = 3;
    int ret = take_word(opts, "compat", "version", version_words, &p->version, err);
    if (ret == 0)
        ret = create_judge_encryption(plan, err);
    if (ret == 0)
        ret = take_word(opts, "preallocation", "preallocation", prealloc_words, &prealloc, err);
    if (ret == 0)
        ret = take_word(opts, "compression_type", "compression-type", compression_words,
                        &p->compression_type, err);
    if (ret == 0)
        ret = judge_backing(plan, err);
    if (ret < 0)
        return ret;
    p->prealloc = (enum qk_prealloc)prealloc;
    p->cluster_bits = log2_or(number_of(opts, "cluster_size", 65536), 0);
    p->refcount_order = log2_or(number_of(opts, "refcount_bits", 16), UINT32_MAX);
    p->lazy_refcounts = is_on(opts, "lazy_refcounts");
    p->extended_l2 = is_on(opts, "extended_l2");
    ret = judge_data_file(plan, err);
    if (ret < 0)
        return ret;
    uint64_t unused;
    ret = image_measure(p, 0, &unused, err); /* judges the parameters among themselves */
    if (ret == -EFBIG)
        ret = qk_fail(err, -EFBIG,
                      "The image size is too large for file format 'qcow2' (try using "
                      "a larger cluster size)");
    return ret < 0 ? ret : create_judge_secret(plan, err);
}

int create_plan_judge(struct create_plan *plan, struct qk_error *err)
{
    uint64_t size;
    plan->nocow = is_on(&plan->opts, "nocow");
    plan->extent_size_hint = number_of(&plan->opts, "extent_size_hint", 0);
    if (!try_round_up(plan->params.size_bytes, 512, &size) || size > INT64_MAX)
        return qk_fail(err, -EFBIG, "The image size is too large");
    plan->params.size_bytes = size;
    return strcmp(plan->format->name, "qcow2") ? judge_raw(plan, err) : judge_qcow2(plan, err);
}
