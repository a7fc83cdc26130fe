/*
 * qcow2_options.c - taking the qcow2 driver's options apart: each key one row. Keys that choose
 * something this engine does by itself are checked and have no effect.
 */
#include "node/qcow2_options.h"
#include "base/checked.h"
#include "node/secrets.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

/* Cache sizes as given; 0: not given. */
struct cache_sizes {
    bool has_total, has_l2, has_refcount;
    uint64_t total, l2, refcount, l2_entry;
};

struct taken {
    struct image_options *image;
    struct cache_sizes cache;
    bool lazy_refcounts, pass_request, pass_snapshot, pass_other, no_unref;
    uint64_t clean_interval, compression_level;
};

enum row_type { ROW_BOOL, ROW_SIZE };

static const struct option_row {
    const char *key;
    enum row_type type;
    size_t member;
} rows[] = {
    {"lazy-refcounts", ROW_BOOL, offsetof(struct taken, lazy_refcounts)},
    {"pass-discard-request", ROW_BOOL, offsetof(struct taken, pass_request)},
    {"pass-discard-snapshot", ROW_BOOL, offsetof(struct taken, pass_snapshot)},
    {"pass-discard-other", ROW_BOOL, offsetof(struct taken, pass_other)},
    {"discard-no-unref", ROW_BOOL, offsetof(struct taken, no_unref)},
    {"cache-size", ROW_SIZE, offsetof(struct taken, cache.total)},
    {"l2-cache-size", ROW_SIZE, offsetof(struct taken, cache.l2)},
    {"l2-cache-entry-size", ROW_SIZE, offsetof(struct taken, cache.l2_entry)},
    {"refcount-cache-size", ROW_SIZE, offsetof(struct taken, cache.refcount)},
    {"cache-clean-interval", ROW_SIZE, offsetof(struct taken, clean_interval)},
    {"compression-level", ROW_SIZE, offsetof(struct taken, compression_level)},
};

static const struct overlap_row {
    const char *key;
    unsigned bit;
} overlap_rows[] = {
    {"overlap-check.main-header", OVERLAP_MAIN_HEADER},
    {"overlap-check.active-l1", OVERLAP_ACTIVE_L1},
    {"overlap-check.active-l2", OVERLAP_ACTIVE_L2},
    {"overlap-check.refcount-block", OVERLAP_REFCOUNT_BLOCK},
    {"overlap-check.refcount-table", OVERLAP_REFCOUNT_TABLE},
    {"overlap-check.snapshot-table", OVERLAP_SNAPSHOT_TABLE},
    {"overlap-check.inactive-l1", OVERLAP_INACTIVE_L1},
    {"overlap-check.inactive-l2", OVERLAP_INACTIVE_L2},
    {"overlap-check.bitmap-directory", OVERLAP_BITMAP_DIRECTORY},
};

static const struct overlap_template {
    const char *name;
    unsigned bits;
} overlap_templates[] = {
    {"none", 0},
    {"constant", OVERLAP_MAIN_HEADER | OVERLAP_ACTIVE_L1 | OVERLAP_REFCOUNT_TABLE |
                     OVERLAP_SNAPSHOT_TABLE | OVERLAP_BITMAP_DIRECTORY},
    {"cached", OVERLAP_CACHED},
    {"all", OVERLAP_ALL},
};

static int take_rows(struct options *opts, struct taken *t, struct qk_error *err)
{
    int ret = 0;
    for (size_t i = 0; i < ARRAY_SIZE(rows) && ret == 0; i++) {
        void *member = (char *)t + rows[i].member;
        if (rows[i].type == ROW_BOOL)
            ret = options_take_bool(opts, rows[i].key, member, err);
        else
            ret = options_take_size(opts, rows[i].key, member, err);
    }
    return ret;
}

static int take_overlap(struct options *opts, unsigned *bits, struct qk_error *err)
{
    const char *template = options_take(opts, "overlap-check.template");
    const char *direct = options_take(opts, "overlap-check");
    if (direct && template && strcmp(direct, template))
        return qk_fail(err, -EINVAL,
                       "Conflicting values for qcow2 options 'overlap-check' ('%s') "
                       "and 'overlap-check.template' ('%s')",
                       direct, template);
    if (!template)
        template = direct ? direct : "cached";
    size_t i = 0;
    while (i < ARRAY_SIZE(overlap_templates) && strcmp(overlap_templates[i].name, template))
        i++;
    if (i == ARRAY_SIZE(overlap_templates))
        return qk_fail(err, -EINVAL,
                       "Unsupported value '%s' for qcow2 option 'overlap-check'. "
                       "Allowed are any of the following: none, constant, cached, "
                       "all",
                       template);
    *bits = overlap_templates[i].bits;
    for (i = 0; i < ARRAY_SIZE(overlap_rows); i++) {
        bool on = *bits & overlap_rows[i].bit;
        int ret = options_take_bool(opts, overlap_rows[i].key, &on, err);
        if (ret < 0)
            return ret;
        *bits = on ? *bits | overlap_rows[i].bit : *bits & ~overlap_rows[i].bit;
    }
    return 0;
}

/* cache-size is shared: the L2 cache gets what the refcount cache does not need. */
static int set_caches(const struct cache_sizes *c, struct image_options *out, struct qk_error *err)
{
    if (c->has_total && c->has_l2 && c->has_refcount)
        return qk_fail(err, -EINVAL,
                       "cache-size, l2-cache-size and refcount-cache-size may not be "
                       "set at the same time");
    if (c->has_total && c->has_l2 && c->l2 > c->total)
        return qk_fail(err, -EINVAL, "l2-cache-size may not exceed cache-size");
    if (c->has_total && c->has_refcount && c->refcount > c->total)
        return qk_fail(err, -EINVAL, "refcount-cache-size may not exceed cache-size");
    uint64_t l2 = c->l2, refcount = c->refcount;
    if (c->has_total && c->has_l2)
        refcount = c->total - l2;
    else if (c->has_total && c->has_refcount)
        l2 = c->total - refcount;
    else if (c->has_total) {
        refcount = c->total / 5;
        l2 = c->total - refcount;
    }
    out->l2_cache_bytes = l2;
    out->l2_slice_bytes = (uint32_t)min_u64(c->l2_entry, UINT32_MAX);
    out->refcount_cache_bytes = refcount;
    return 0;
}

void qcow2_take_encryption(struct open_request *req, struct qcow2_encryption *out)
{
    const char *id = options_take(&req->opts, "encrypt.key-secret");
    out->format = options_take(&req->opts, "encrypt.format");
    out->secret = id ? secrets_find(req->secrets, id) : (struct image_secret){0};
}

int qcow2_judge_encryption(const struct node *node, const struct qcow2_encryption *wish,
                           struct qk_error *err)
{
    static const char *const formats[] = {[CRYPT_AES] = "aes", [CRYPT_LUKS] = "luks"};
    uint32_t method = image_header(node->image)->crypt_method;
    if (!wish->format || (method && !strcmp(formats[method], wish->format)))
        return 0;
    if (!method)
        return qk_fail(err, -EINVAL,
                       "No encryption in image header, but options specified format '%s'",
                       wish->format);
    return qk_fail(err, -EINVAL, "Header reported '%s' encryption format but options specify '%s'",
                   formats[method], wish->format);
}

int qcow2_take_options(struct node *node, struct options *opts, struct image_options *out,
                       struct qk_error *err)
{
    struct taken t = {.image = out};
    bool has_lazy = options_find(opts, "lazy-refcounts");
    t.cache.has_total = options_find(opts, "cache-size");
    t.cache.has_l2 = options_find(opts, "l2-cache-size");
    t.cache.has_refcount = options_find(opts, "refcount-cache-size");
    t.pass_request = node->discard == DISCARD_UNMAP;
    int ret = take_rows(opts, &t, err);
    if (ret == 0)
        ret = take_overlap(opts, &out->overlap, err);
    if (ret == 0)
        ret = set_caches(&t.cache, out, err);
    out->lazy_refcounts = has_lazy ? t.lazy_refcounts : -1;
    out->discard_to_file = t.pass_request;
    out->compression_level = (int)min_u64(t.compression_level, INT_MAX);
    return ret;
}
