/*
 * amend.c - qk_disk_amend: the table of options, how their values are written, and which part of
 * the image each concerns. All of it is judged before the first part changes.
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "node/driver.h"
#include "node/name.h"
#include "node/option_rows.h"
#include "node/secrets.h"

#include <inttypes.h>
#include <string.h>

static const struct qk_option_desc qcow2_options[] = {
    {"encrypt.state", TEXT, "Select new state of affected keyslots (active/inactive)", NULL, true},
    {"encrypt.keyslot", NUMBER, "Select a single keyslot to modify explicitly", NULL, true},
    {"encrypt.old-secret", TEXT, "Select all keyslots that match this password", NULL, true},
    {"encrypt.new-secret", TEXT,
     "New secret to set in the matching keyslots. Empty string to erase", NULL, true},
    ROW_ITER_TIME,
    ROWS_DISK,
    ROWS_REFCOUNTS,
};

struct amendment {
    struct node *node;
    struct options opts;
    const struct qk_amend_settings *settings;
    struct amend_params params;
    bool has_raw, raw;
    const char *data_file; /* NULL: as it is */
    bool has_keys;
    struct luks_amend keys;
    struct image_secret old_secret, new_secret;
};

const struct qk_option_desc *qk_amend_options(const char *format, size_t *count)
{
    bool known = !strcmp(format, "qcow2");
    *count = known ? ARRAY_SIZE(qcow2_options) : 0;
    return known ? qcow2_options : NULL;
}

/* ---- how values are written ---- */

static bool is_of_creation(const char *key)
{
    size_t count;
    const struct qk_option_desc *list = qk_create_options("qcow2", &count);
    for (size_t i = 0; i < count; i++)
        if (!strcmp(list[i].name, key))
            return true;
    return false;
}

static int parse_number(const char *text, uint64_t *value)
{
    char *end;
    errno = 0;
    *value = strtoull(text, &end, 0);
    return errno || end == text || *end ? -EINVAL : 0;
}

static int check_value(const struct option *opt, struct qk_error *err)
{
    const struct qk_option_desc *desc = NULL;
    for (size_t i = 0; i < ARRAY_SIZE(qcow2_options) && !desc; i++)
        if (!strcmp(qcow2_options[i].name, opt->key))
            desc = &qcow2_options[i];
    if (!desc)
        return qk_fail(
            err, -EINVAL, "Invalid parameter '%s'%s", opt->key,
            is_of_creation(opt->key) ? "\nThis option is only supported for image creation" : "");
    uint64_t unused;
    if (!strcmp(desc->type, SWITCH) && option_parse_bool(opt->value) < 0)
        return option_bad_bool(err, opt->key);
    if (!strcmp(desc->type, NUMBER) && parse_number(opt->value, &unused) < 0)
        return qk_fail(err, -EINVAL, "Parameter '%s' expects a number", opt->key);
    if (!strcmp(desc->type, SIZE) && qk_parse_size(opt->value, 'B', &unused) < 0)
        return option_bad_size(err, opt->key);
    return 0;
}

static const char *text_of(const struct amendment *a, const char *key)
{
    const struct option *opt = options_find(&a->opts, key);
    return opt ? opt->value : NULL;
}

static bool number_of(const struct amendment *a, const char *key, uint64_t *value)
{
    const char *text = text_of(a, key);
    return text && parse_number(text, value) == 0;
}

/* ---- what they mean ---- */

static int take_version(struct amendment *a, struct qk_error *err)
{
    static const struct {
        const char *text;
        uint32_t version;
    } words[] = {{"0.10", 2}, {"v2", 2}, {"1.1", 3}, {"v3", 3}};
    const char *text = text_of(a, "compat");
    for (size_t i = 0; text && i < ARRAY_SIZE(words); i++)
        if (!strcmp(words[i].text, text))
            a->params.version = words[i].version;
    if (text && !a->params.version)
        return qk_fail(err, -EINVAL, "Unknown compatibility level %s", text);
    return 0;
}

static int take_width(struct amendment *a, struct qk_error *err)
{
    uint64_t bits;
    if (!number_of(a, "refcount_bits", &bits))
        return 0;
    if (bits > 64 || !is_power_of_2(bits))
        return qk_fail(err, -EINVAL,
                       "Refcount width must be a power of two and may not exceed 64 bits");
    a->params.refcount_bits = (uint32_t)bits;
    return 0;
}

static bool same_text(const char *a, const char *b)
{
    return a && b ? !strcmp(a, b) : a == b;
}

/* Only what the image says anyway, name and format, is accepted, as in QEMU. */
static int judge_backing(const struct amendment *a, struct qk_error *err)
{
    const char *name = text_of(a, "backing_file"), *format = text_of(a, "backing_fmt");
    const char *has_name = image_backing_name(a->node->image);
    const char *has_format = image_backing_format(a->node->image);
    if ((name || format) && !(same_text(name, has_name) && same_text(format, has_format)))
        return qk_fail(err, -EINVAL,
                       "Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.");
    return 0;
}

static int take_data_file(struct amendment *a, struct qk_error *err)
{
    const struct image *img = a->node->image;
    const char *raw = text_of(a, "data_file_raw");
    bool was_raw = image_header(img)->autoclear & AUTOCLEAR_DATA_FILE_RAW;
    a->data_file = text_of(a, "data_file");
    if (a->data_file)
        a->data_file = name_strip_file(a->data_file);
    a->has_raw = raw != NULL;
    a->raw = raw ? option_parse_bool(raw) > 0 : was_raw;
    if (a->data_file && !image_geometry(img)->data_file)
        return qk_fail(err, -EINVAL,
                       "data-file can only be set for images that use an external data file");
    if (a->has_raw && a->raw && !was_raw)
        return qk_fail(err, -EINVAL, "data-file-raw cannot be set on existing images");
    return 0;
}

static const struct image_secret *find_secret(const struct amendment *a, const char *key,
                                              struct image_secret *secret)
{
    const char *id = text_of(a, key);
    if (!id)
        return NULL;
    *secret = secrets_find(a->settings->secrets, id);
    return secret;
}

static int take_keys(struct amendment *a, struct qk_error *err)
{
    const char *state = text_of(a, "encrypt.state");
    uint64_t slot = 0;
    a->has_keys = options_has_prefix(&a->opts, "encrypt.");
    if (!a->has_keys)
        return 0;
    if (image_header(a->node->image)->crypt_method == CRYPT_NONE)
        return qk_fail(err, -EINVAL, "Can't amend encryption options - encryption not present");
    if (!image_luks(a->node->image))
        return qk_fail(err, -ENOTSUP, "Only LUKS encryption options can be amended");
    if (!state)
        return qk_fail(err, -EINVAL, "Parameter 'state' is missing");
    a->keys.activate = !strcmp(state, "active");
    if (!a->keys.activate && strcmp(state, "inactive"))
        return qk_fail(err, -EINVAL, "Parameter 'state' does not accept value '%s'", state);
    a->keys.force = a->settings->flags & QK_AMEND_FORCE;
    a->keys.slot = LUKS_SLOT_ANY;
    if (number_of(a, "encrypt.keyslot", &slot))
        a->keys.slot = slot > INT32_MAX ? INT32_MAX : (int)slot;
    a->keys.has_iter_ms = number_of(a, "encrypt.iter-time", &a->keys.iter_ms);
    a->keys.old_secret = find_secret(a, "encrypt.old-secret", &a->old_secret);
    a->keys.new_secret = find_secret(a, "encrypt.new-secret", &a->new_secret);
    return 0;
}

static int take_all(struct amendment *a, struct qk_error *err)
{
    const char *lazy = text_of(a, "lazy_refcounts"), *size = text_of(a, "size");
    a->params.lazy_refcounts = lazy ? option_parse_bool(lazy) > 0 : -1;
    a->params.shrink = a->settings->flags & QK_AMEND_FORCE;
    a->params.progress = &a->settings->progress;
    a->params.has_size = size && qk_parse_size(size, 'B', &a->params.size) == 0;
    int ret = take_version(a, err);
    if (ret == 0)
        ret = take_width(a, err);
    if (ret == 0)
        ret = judge_backing(a, err);
    if (ret == 0)
        ret = take_data_file(a, err);
    return ret < 0 ? ret : take_keys(a, err);
}

/* ---- doing it ---- */

static int change(struct amendment *a, struct qk_error *err)
{
    struct image *img = a->node->image;
    int ret = image_amend_judge(img, &a->params, err);
    if (ret == 0 && (a->data_file || a->has_raw))
        ret = image_change_data_file(img, a->data_file, a->raw, err);
    if (ret == 0 && a->has_keys)
        ret = image_luks_amend(img, &a->keys, err);
    if (ret == 0)
        ret = image_amend(img, &a->params, err);
    atomic_store(&a->node->size, round_up(image_size(img), 512));
    return ret;
}

int qk_disk_amend(struct qk_disk *disk, const char *const *options,
                  const struct qk_amend_settings *settings, struct qk_error *err)
{
    static const struct qk_amend_settings nothing = QK_AMEND_SETTINGS_INIT;
    struct amendment a = {.node = disk->node, .settings = settings ? settings : &nothing};
    if (!a.node->image)
        return qk_fail(err, -ENOTSUP, "Format driver '%s' does not support option amendment",
                       a.node->driver->name);
    if (!a.node->io.writable)
        return qk_fail(err, -EROFS, "opened read-only");
    int ret = options_add_list(&a.opts, options, err);
    for (size_t i = 0; i < a.opts.list.len && ret == 0; i++)
        ret = check_value(&a.opts.list.ptr[i], err);
    if (ret == 0)
        ret = take_all(&a, err);
    if (ret == 0)
        ret = change(&a, err);
    options_free(&a.opts);
    return ret;
}
