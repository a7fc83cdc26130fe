/*
 * fault_rules.c - blkdebug's rules: the names of events, the keys of rules as one table, and the
 * reader of rules files (sections in brackets, lines `key = "value"`). Pure but for reading the
 * file; promises that an error leaves the list as it was plus whole rules only.
 */
#include "io/fault_rules.h"
#include "base/checked.h"
#include "base/cleanup.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

static const char *const event_names[] = {
    "l1_update",
    "l1_grow_alloc_table",
    "l1_grow_write_table",
    "l1_grow_activate_table",
    "l2_load",
    "l2_update",
    "l2_update_compressed",
    "l2_alloc_cow_read",
    "l2_alloc_write",
    "read_aio",
    "read_backing_aio",
    "read_compressed",
    "write_aio",
    "write_compressed",
    "vmstate_load",
    "vmstate_save",
    "cow_read",
    "cow_write",
    "reftable_load",
    "reftable_grow",
    "reftable_update",
    "refblock_load",
    "refblock_update",
    "refblock_update_part",
    "refblock_alloc",
    "refblock_alloc_hookup",
    "refblock_alloc_write",
    "refblock_alloc_write_blocks",
    "refblock_alloc_write_table",
    "refblock_alloc_switch_table",
    "cluster_alloc",
    "cluster_alloc_bytes",
    "cluster_free",
    "flush_to_os",
    "flush_to_disk",
    "pwritev_rmw_head",
    "pwritev_rmw_after_head",
    "pwritev_rmw_tail",
    "pwritev_rmw_after_tail",
    "pwritev",
    "pwritev_zero",
    "pwritev_done",
    "empty_image_prepare",
    "l1_shrink_write_table",
    "l1_shrink_free_l2_clusters",
    "cor_write",
    "cluster_alloc_space",
    "none",
};

static const char *const iotype_names[] = {
    [FAULT_READ] = "read",       [FAULT_WRITE] = "write", [FAULT_WRITE_ZEROES] = "write-zeroes",
    [FAULT_DISCARD] = "discard", [FAULT_FLUSH] = "flush", [FAULT_BLOCK_STATUS] = "block-status",
};

static const char *const group_names[] = {
    [FAULT_INJECT] = "inject-error",
    [FAULT_SET_STATE] = "set-state",
};

static int parse_event(const char *text, int64_t *out);
static int parse_number(const char *text, int64_t *out);
static int parse_switch(const char *text, int64_t *out);
static int parse_iotype(const char *text, int64_t *out);

static const struct rule_key {
    const char *name;
    bool inject, set_state; /* the groups that have it */
    int (*parse)(const char *text, int64_t *out);
    size_t field;
} rule_keys[] = {
    {"event", true, true, parse_event, offsetof(struct fault_rule, event)},
    {"state", true, true, parse_number, offsetof(struct fault_rule, state)},
    {"errno", true, false, parse_number, offsetof(struct fault_rule, error)},
    {"sector", true, false, parse_number, offsetof(struct fault_rule, sector)},
    {"once", true, false, parse_switch, offsetof(struct fault_rule, once)},
    {"immediately", true, false, parse_switch, offsetof(struct fault_rule, immediately)},
    {"iotype", true, false, parse_iotype, offsetof(struct fault_rule, iotypes)},
    {"new_state", false, true, parse_number, offsetof(struct fault_rule, new_state)},
};

const char *fault_event_name(size_t index)
{
    return index < ARRAY_SIZE(event_names) ? event_names[index] : NULL;
}

static int64_t index_of(const char *const *names, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (!strcmp(names[i], name))
            return (int64_t)i;
    }
    return -1;
}

int64_t fault_event_index(const char *name)
{
    return index_of(event_names, ARRAY_SIZE(event_names), name);
}

static int parse_event(const char *text, int64_t *out)
{
    *out = fault_event_index(text);
    return *out < 0 ? -EINVAL : 0;
}

static int parse_iotype(const char *text, int64_t *out)
{
    int64_t type = index_of(iotype_names, ARRAY_SIZE(iotype_names), text);
    if (type < 0)
        return -EINVAL;
    *out = 1 << type;
    return 0;
}

static int parse_number(const char *text, int64_t *out)
{
    char *end;
    errno = 0;
    *out = strtoll(text, &end, 0);
    return errno || end == text || *end ? -EINVAL : 0;
}

static int parse_switch(const char *text, int64_t *out)
{
    static const char *const words[] = {"off", "on", "no", "yes", "false", "true", "n", "y"};
    int64_t word = index_of(words, ARRAY_SIZE(words), text);
    *out = word & 1;
    return word < 0 ? -EINVAL : 0;
}

static int complain_value(const struct rule_key *key, const char *value, struct qk_error *err)
{
    if (key->parse == parse_number)
        return qk_fail(err, -EINVAL, "Parameter '%s' expects a number", key->name);
    if (key->parse == parse_switch)
        return qk_fail(err, -EINVAL, "Parameter '%s' expects 'on' or 'off'", key->name);
    return qk_fail(err, -EINVAL, "invalid parameter value: %s", value);
}

static const struct rule_key *find_key(enum fault_action group, const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(rule_keys); i++) {
        const struct rule_key *key = &rule_keys[i];
        if (!strcmp(key->name, name) && (group == FAULT_INJECT ? key->inject : key->set_state))
            return key;
    }
    return NULL;
}

static int set_key(struct fault_rule *rule, const struct rule_key *key, const char *value,
                   struct qk_error *err)
{
    int64_t *field = (int64_t *)(void *)((char *)rule + key->field);
    return key->parse(value, field) < 0 ? complain_value(key, value, err) : 0;
}

void fault_rule_free(struct fault_rule *rule)
{
    if (rule)
        free(rule->tag);
    free(rule);
}

void fault_rules_clear(struct fault_rules *rules)
{
    for (size_t i = 0; i < rules->len; i++)
        fault_rule_free(rules->ptr[i]);
    fault_rules_free(rules);
}

static struct fault_rule *new_rule(enum fault_action action)
{
    struct fault_rule *rule = calloc(1, sizeof(*rule));
    if (rule)
        *rule = (struct fault_rule){
            .action = action,
            .event = -1,
            .error = EIO,
            .sector = -1,
            .iotypes = 1 << FAULT_READ | 1 << FAULT_WRITE | 1 << FAULT_WRITE_ZEROES |
                       1 << FAULT_DISCARD | 1 << FAULT_FLUSH,
        };
    return rule;
}

/* Takes the rule, also when it refuses it. */
static int append(struct fault_rules *rules, struct fault_rule *rule, struct qk_error *err)
{
    int ret = 0;
    if (rule->event < 0)
        ret = qk_fail(err, -EINVAL, "Missing event name for rule");
    else if (rule->error < 0 || rule->error > INT32_MAX)
        ret = qk_fail(err, -EINVAL, "Parameter 'errno' is out of range");
    else if (fault_rules_append(rules, rule) < 0)
        ret = qk_fail_nomem(err);
    if (ret < 0)
        fault_rule_free(rule);
    return ret;
}

int fault_rules_add(struct fault_rules *rules, const char *group,
                    const struct fault_option *options, size_t count, struct qk_error *err)
{
    int64_t action = index_of(group_names, ARRAY_SIZE(group_names), group);
    if (action < 0)
        return qk_fail(err, -EINVAL, "There is no option group '%s'", group);
    struct fault_rule *rule = new_rule((enum fault_action)action);
    if (!rule)
        return qk_fail_nomem(err);
    for (size_t i = 0; i < count; i++) {
        const struct rule_key *key = find_key(rule->action, options[i].key);
        int ret = key ? set_key(rule, key, options[i].value, err)
                      : qk_fail(err, -EINVAL, "[%s] section doesn't support the option '%s'", group,
                                options[i].key);
        if (ret < 0) {
            fault_rule_free(rule);
            return ret;
        }
    }
    return append(rules, rule, err);
}

/* ---- files ---- */

struct reader {
    struct fault_rules *rules;
    struct fault_rule *rule; /* of the section being read */
    unsigned section_line, line;
};

static int finish_section(struct reader *r, struct qk_error *err)
{
    if (!r->rule)
        return 0;
    unsigned line = r->line;
    r->line = r->section_line;
    int ret = append(r->rules, TAKE(r->rule), err);
    if (ret == 0)
        r->line = line;
    return ret;
}

/* `[group]` or `[group "id"]`; the id is of no use to rules. */
static int start_section(struct reader *r, char *text, struct qk_error *err)
{
    char *end = strchr(text, ']');
    int ret = finish_section(r, err);
    if (ret < 0)
        return ret;
    r->section_line = r->line;
    if (!end || end[1])
        return qk_fail(err, -EINVAL, "parse error");
    *end = '\0';
    char *group = text + 1;
    group[strcspn(group, " \t\"")] = '\0';
    int64_t action = index_of(group_names, ARRAY_SIZE(group_names), group);
    if (action < 0)
        return qk_fail(err, -EINVAL, "There is no option group '%s'", group);
    r->rule = new_rule((enum fault_action)action);
    return r->rule ? 0 : qk_fail_nomem(err);
}

static int read_pair(struct reader *r, char *text, struct qk_error *err)
{
    char *equals = strchr(text, '=');
    if (!equals)
        return qk_fail(err, -EINVAL, "parse error");
    char *value = equals + 1 + strspn(equals + 1, " \t");
    size_t len = strlen(value);
    if (len < 2 || value[0] != '"' || value[len - 1] != '"')
        return qk_fail(err, -EINVAL, "parse error: the value must stand in double quotes");
    value[len - 1] = '\0';
    while (equals > text && isspace((unsigned char)equals[-1]))
        equals--;
    *equals = '\0';
    if (!r->rule)
        return qk_fail(err, -EINVAL, "no group defined");
    const struct rule_key *key = find_key(r->rule->action, text);
    if (!key)
        return qk_fail(err, -EINVAL, "Invalid parameter '%s'", text);
    return set_key(r->rule, key, value + 1, err);
}

static int read_line(struct reader *r, char *text, struct qk_error *err)
{
    text += strspn(text, " \t");
    size_t len = strlen(text);
    while (len && isspace((unsigned char)text[len - 1]))
        text[--len] = '\0';
    if (!*text || *text == '#')
        return 0;
    return *text == '[' ? start_section(r, text, err) : read_pair(r, text, err);
}

int fault_rules_read(struct fault_rules *rules, const char *path, struct qk_error *err)
{
    FILE *file = fopen(path, "re");
    if (!file)
        return qk_fail_errno(err, -errno, "Could not read blkdebug config file");
    struct reader r = {.rules = rules};
    CLEANUP_FREE char *text = NULL;
    size_t size = 0;
    int ret = 0;
    while (ret == 0 && getline(&text, &size, file) >= 0) {
        r.line++;
        ret = read_line(&r, text, err);
    }
    if (ret == 0 && ferror(file))
        ret = qk_fail(err, -EIO, "Could not read blkdebug config file");
    if (ret == 0)
        ret = finish_section(&r, err);
    if (ret < 0)
        qk_error_prefix(err, "%s:%u", path, r.line);
    fault_rule_free(r.rule);
    fclose(file);
    return ret;
}
