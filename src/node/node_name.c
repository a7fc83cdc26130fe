/*
 * node_name.c - how an open node is called: by the file name that opens it again where there is
 * one, else by a json: name with the options that make it another disk. Names that people see and
 * the place that relative names in an image start from both come from here.
 */
#include "base/cleanup.h"
#include "node/driver.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

static json_t *option_json(const struct option *opt)
{
    switch (opt->kind) {
    case OPTION_NUMBER:
    case OPTION_BOOL:
        if (!strcmp(opt->value, "on") || !strcmp(opt->value, "off"))
            return json_boolean(!strcmp(opt->value, "on"));
        return json_loads(opt->value, JSON_DECODE_ANY, NULL);
    case OPTION_NULL:
        return json_null();
    default:
        return json_string(opt->value);
    }
}

static bool set_option(json_t *object, const struct option *opt)
{
    return !json_object_set_new(object, opt->key, option_json(opt));
}

/* Some options stand before the driver in the names that QEMU shows; ours read the same. */
static bool shown_first(const char *key)
{
    return !strcmp(key, "offset") || !strcmp(key, "read-zeroes");
}

static bool set_options(json_t *object, const struct options *opts, bool first)
{
    bool ok = true;
    for (size_t i = 0; ok && i < opts->list.len; i++) {
        if (shown_first(opts->list.ptr[i].key) == first)
            ok = set_option(object, &opts->list.ptr[i]);
    }
    return ok;
}

/* Driver, options that matter and children, as an object. NULL: no memory. */
static json_t *describe(const struct node *node)
{
    json_t *object = json_object();
    bool ok = object && set_options(object, &node->strong, true);
    if (ok && node->debugged)
        ok = !json_object_set_new(object, "image", describe(node->debugged));
    ok = ok && !json_object_set_new(object, "driver", json_string(node->driver->name));
    ok = ok && set_options(object, &node->strong, false);
    if (ok && node->file)
        ok = !json_object_set_new(object, "file", describe(node->file));
    if (ok)
        return object;
    json_decref(object);
    return NULL;
}

/* A format on a protocol is opened by the protocol's name, unless options change what it shows. */
static int set_exact_name(struct node *node)
{
    const char *exact = NULL;
    const struct option *filename = options_find(&node->strong, "filename");
    if (node->exact_name || node->driver == &blkdebug_driver) {
        if (node->strong.list.len > (options_find(&node->strong, "config") ? 1u : 0u)) {
            free(node->exact_name);
            node->exact_name = NULL;
        }
        return 0;
    }
    if (filename)
        exact = filename->value;
    else if (node->strong.list.len)
        exact = NULL;
    else if (node->file && driver_is_protocol(node->file->driver))
        exact = node->file->exact_name;
    else if (node->driver == &null_co_driver || node->driver == &null_aio_driver)
        exact = node->driver == &null_co_driver ? "null-co://" : "null-aio://";
    node->exact_name = exact ? strdup(exact) : NULL;
    return exact && !node->exact_name ? -ENOMEM : 0;
}

static int set_base_name(struct node *node)
{
    const char *base = NULL;
    if (node->base_name)
        return 0;
    if (node->file)
        base = node->file->base_name;
    else if (options_find(&node->strong, "filename"))
        base = options_find(&node->strong, "filename")->value;
    node->base_name = base ? strdup(base) : NULL;
    return base && !node->base_name ? -ENOMEM : 0;
}

int node_set_names(struct node *node, struct qk_error *err)
{
    int ret = set_exact_name(node);
    if (ret == 0)
        ret = set_base_name(node);
    if (ret < 0)
        return qk_fail_nomem(err);
    if (node->exact_name) {
        node->shown_name = strdup(node->exact_name);
        return node->shown_name ? 0 : qk_fail_nomem(err);
    }
    json_t *object = describe(node);
    CLEANUP_FREE char *text = object ? json_dumps(object, JSON_PRESERVE_ORDER) : NULL;
    json_decref(object);
    if (!text || asprintf(&node->shown_name, "json:%s", text) < 0) {
        node->shown_name = NULL;
        return qk_fail_nomem(err);
    }
    return 0;
}
