/*
 * blkdebug_node.c - the protocol "blkdebug": the fault store over any other node, as a name
 * (blkdebug:CONFIG:IMAGE) or as options (image.*, inject-error.N.*, set-state.N.*, limits).
 */
#include "base/checked.h"
#include "base/cleanup.h"
#include "io/fault.h"
#include "node/driver.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

/* Rules in an option tree are numbered from 0; a few dozen is more than tests need. */
enum { RULES_MAX = 1024, RULE_OPTIONS_MAX = 16 };

static int parse_name(const char *name, struct options *opts, struct qk_error *err)
{
    static const char prefix[] = "blkdebug:";
    if (strncmp(name, prefix, strlen(prefix)))
        return options_set(opts, "x-image", name, OPTION_TEXT, err);
    name += strlen(prefix);
    const char *colon = strchr(name, ':');
    if (!colon)
        return qk_fail(err, -EINVAL, "blkdebug requires both config file and image path");
    CLEANUP_FREE char *config = strndup(name, (size_t)(colon - name));
    if (!config)
        return qk_fail_nomem(err);
    int ret = *config ? options_set(opts, "config", config, OPTION_TEXT, err) : 0;
    return ret == 0 ? options_set(opts, "x-image", colon + 1, OPTION_TEXT, err) : ret;
}

static int open_image(struct node *node, struct open_request *req, struct node **out,
                      struct qk_error *err)
{
    struct open_request child = {
        .name = options_take(&req->opts, "x-image"),
        .flags = node->flags & ~(unsigned)(QK_OPEN_COPY_ON_READ | QK_OPEN_SNAPSHOT),
        .role = ROLE_FILE,
        .policy = req->policy,
        .above = req->above,
    };
    const char *reference = options_take(&req->opts, "image");
    if (reference)
        return qk_fail(err, -EINVAL, "Cannot find device='%s' nor node-name='%s'", reference,
                       reference);
    if (!child.name && !options_has_prefix(&req->opts, "image."))
        return qk_fail(err, -EINVAL, "A block device must be specified for \"image\"");
    int ret = options_split(&req->opts, "image.", &child.opts, err);
    if (ret < 0) {
        options_free(&child.opts);
        return ret;
    }
    return node_open(&child, out, err);
}

/* Rule number n of a group; *found says whether there is one. */
static int add_rule(struct node *node, struct open_request *req, const char *group, unsigned n,
                    bool *found, struct qk_error *err)
{
    struct fault_option rule[RULE_OPTIONS_MAX];
    size_t count = 0;
    char prefix[48];
    size_t len = (size_t)snprintf(prefix, sizeof(prefix), "%s.%u.", group, n);
    for (size_t i = 0; i < req->opts.list.len; i++) {
        struct option *opt = &req->opts.list.ptr[i];
        if (strncmp(opt->key, prefix, len))
            continue;
        if (count == RULE_OPTIONS_MAX)
            return qk_fail(err, -EINVAL, "too many options in blkdebug rule %s.%u", group, n);
        rule[count++] = (struct fault_option){opt->key + len, opt->value};
        opt->used = true;
    }
    *found = count > 0;
    return count ? fault_add_rule(node->store, group, rule, count, err) : 0;
}

static int add_rules(struct node *node, struct open_request *req, const char *group,
                     struct qk_error *err)
{
    bool found = true;
    int ret = 0;
    for (unsigned n = 0; n < RULES_MAX && found && ret == 0; n++)
        ret = add_rule(node, req, group, n, &found, err);
    return ret;
}

static int set_limits(struct node *node, struct open_request *req, struct qk_error *err)
{
    struct fault_option limits[RULE_OPTIONS_MAX];
    size_t count = 0;
    for (size_t i = 0; i < req->opts.list.len && count < RULE_OPTIONS_MAX; i++) {
        struct option *opt = &req->opts.list.ptr[i];
        if (!fault_is_limit(opt->key))
            continue;
        limits[count++] = (struct fault_option){opt->key, opt->value};
        opt->used = true;
    }
    return count ? fault_set_limits(node->store, limits, count, err) : 0;
}

static int name_after(struct node *node, const struct node *image, const char *config)
{
    if (image->base_name && !(node->base_name = strdup(image->base_name)))
        return -ENOMEM;
    if (!image->exact_name)
        return 0;
    if (asprintf(&node->exact_name, "blkdebug:%s:%s", config ? config : "", image->exact_name) >= 0)
        return 0;
    node->exact_name = NULL;
    return -ENOMEM;
}

static int blkdebug_open(struct node *node, struct open_request *req, struct qk_error *err)
{
    struct node *image;
    const char *config = options_take(&req->opts, "config");
    int ret = open_image(node, req, &image, err);
    if (ret < 0)
        return ret;
    node->debugged = image;
    ret = name_after(node, image, config);
    if (ret < 0) {
        node_close(image, NULL);
        return qk_fail_nomem(err);
    }
    ret = io_fault_open(&image->io, config, &node->store, err); /* owns image from here on */
    if (ret == 0)
        ret = add_rules(node, req, "inject-error", err);
    if (ret == 0)
        ret = add_rules(node, req, "set-state", err);
    if (ret == 0)
        ret = set_limits(node, req, err);
    if (ret < 0)
        return ret;
    node_take_limits(node);
    return 0;
}

static const char *const blkdebug_strong[] = {
    "config",         "inject-error.",  "set-state.",  "align",       "max-transfer",
    "opt-write-zero", "max-write-zero", "opt-discard", "max-discard", NULL};

const struct node_driver blkdebug_driver = {
    .name = "blkdebug",
    .kind = DRIVER_PROTOCOL,
    .prefix = "blkdebug",
    .strong = blkdebug_strong,
    .parse_name = parse_name,
    .open = blkdebug_open,
    .ops = &node_pass_ops,
};
