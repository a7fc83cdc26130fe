/*
 * cmd_state.c - which image is open and how: open, reopen, close, flush, info.
 */
#include "common/image_info.h"
#include "common/open.h"
#include "common/report.h"
#include "io/io.h"
#include "io/request.h"
#include "io/words.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What each -o says, in order. */
static int add_options(struct keyvals *list, const struct args *args)
{
    const char *text;
    for (size_t i = 0; (text = opts_nth(&args->opts, 'o', i)); i++) {
        if (!keyvals_add_list(list, text)) {
            report_error("Invalid option list: %s", text);
            return -EINVAL;
        }
    }
    keyvals_complete(list);
    return 0;
}

int do_open(struct session *session, const struct args *args)
{
    struct image_spec spec = {.flags = SPEC_DEFAULT_FLAGS};
    int ret = spec_take_modes(&spec, &args->opts);
    if (!ret)
        ret = add_options(&spec.options, args);
    if (!ret && args->count > 1)
        ret = command_usage(args->command);
    if (!ret && session->disk) {
        report_error("file open already, try 'help close'");
        ret = -EBUSY;
    }
    if (ret) {
        image_spec_free(&spec);
        return ret;
    }
    spec.name = args->count ? xstrdup(args->operand[0]) : NULL;
    return session_open(session, &spec);
}

/* ---- reopen ------------------------------------------------------------------------------ */

static void copy_spec(struct image_spec *to, const struct image_spec *from)
{
    *to = *from;
    to->name = from->name ? xstrdup(from->name) : NULL;
    to->format = from->format ? xstrdup(from->format) : NULL;
    to->options = (struct keyvals){0};
    for (size_t i = 0; i < from->options.count; i++) {
        TEXT_CLEANUP char *key = xstrdup(from->options.item[i]);
        char *equals = strchr(key, '=');
        if (equals)
            *equals++ = '\0';
        keyvals_add(&to->options, key, equals ? equals : "");
    }
}

/* What may change while an image is in use; all else belongs to the image or its place. */
static bool may_change(const char *key)
{
    static const char *const keys[] = {
        "cache.direct",          "cache.no-flush", "cache-clean-interval", "cache-size",
        "detect-zeroes",         "discard",        "l2-cache-entry-size",  "l2-cache-size",
        "lazy-refcounts",        "overlap-check",  "pass-discard-other",   "pass-discard-request",
        "pass-discard-snapshot", "read-only",      "refcount-cache-size",
    };
    for (size_t i = 0; i < sizeof(keys) / sizeof(*keys); i++) {
        if (!strcmp(keys[i], key))
            return true;
    }
    return !strncmp(key, "overlap-check.", strlen("overlap-check."));
}

static int change_options(struct image_spec *spec, const struct keyvals *changes)
{
    for (size_t i = 0; i < changes->count; i++) {
        TEXT_CLEANUP char *key = xstrdup(changes->item[i]);
        char *value = strchr(key, '=');
        *value++ = '\0';
        if (!may_change(key)) {
            report_error("Cannot change the option '%s'", key);
            return -EINVAL;
        }
        keyvals_remove(&spec->options, key);
        keyvals_add(&spec->options, key, value);
    }
    return 0;
}

static const char *reopen_conflict(const struct args *args, const struct keyvals *changes)
{
    bool access = args_given(args, 'r') || args_given(args, 'w');
    if (args_given(args, 'r') && args_given(args, 'w'))
        return "Only one -r/-w option may be given";
    if (access && keyvals_get(changes, "read-only"))
        return "Cannot set both -r/-w and 'read-only'";
    if (args_given(args, 'c') &&
        (keyvals_get(changes, "cache.direct") || keyvals_get(changes, "cache.no-flush")))
        return "Cannot set both -c and the cache options";
    return NULL;
}

/* -r and -w replace what an option said before, as does -c. */
static int change_modes(struct image_spec *spec, const struct args *args)
{
    if (args_given(args, 'r') || args_given(args, 'w')) {
        keyvals_remove(&spec->options, "read-only");
        spec->flags &= ~(unsigned)QK_OPEN_RDWR;
        spec->flags |= args_given(args, 'w') ? QK_OPEN_RDWR : 0u;
    }
    if (!args_given(args, 'c'))
        return 0;
    keyvals_remove(&spec->options, "cache.direct");
    keyvals_remove(&spec->options, "cache.no-flush");
    return spec_set_cache(spec, args_value(args, 'c'));
}

/* Closes and opens anew, since one program cannot hold an image's locks twice. */
static int swap(struct session *session, struct image_spec *fresh)
{
    if (session->spec.flags & QK_OPEN_SNAPSHOT) {
        report_error("A temporary overlay cannot be reopened");
        image_spec_free(fresh);
        return -ENOTSUP;
    }
    struct image_spec before;
    copy_spec(&before, &session->spec);
    int ret = session_close(session);
    if (!ret)
        ret = session_open(session, fresh);
    if (ret && !session->disk)
        session_open(session, &before);
    image_spec_free(fresh);
    image_spec_free(&before);
    return ret;
}

int do_reopen(struct session *session, const struct args *args)
{
    KEYVALS_CLEANUP struct keyvals changes = {0};
    struct image_spec fresh;
    int ret = add_options(&changes, args);
    if (ret)
        return ret;
    if (args->count)
        return command_usage(args->command);
    const char *text = reopen_conflict(args, &changes);
    if (text) {
        report_error("%s", text);
        return -EINVAL;
    }
    if (!args->opts.value_count) /* nothing changes */
        return do_flush(session, args);
    copy_spec(&fresh, &session->spec);
    ret = change_modes(&fresh, args);
    if (!ret)
        ret = change_options(&fresh, &changes);
    if (!ret)
        return swap(session, &fresh);
    image_spec_free(&fresh);
    return ret;
}

/* ---- the rest ---------------------------------------------------------------------------- */

int do_close(struct session *session, const struct args *args)
{
    (void)args;
    return session_close(session);
}

int do_flush(struct session *session, const struct args *args)
{
    (void)args;
    struct qk_error err = {0};
    int ret = qk_disk_flush(session->disk, &err);
    if (ret)
        report_failure(&err, "flush failed");
    return ret;
}

int do_info(struct session *session, const struct args *args)
{
    (void)args;
    struct qk_info info = QK_INFO_INIT;
    struct qk_error err = {0};
    int ret = qk_disk_info(session->disk, &info, &err);
    if (ret) {
        report_qk(&err);
        return ret;
    }
    char cluster[AMOUNT_TEXT_MAX], state[AMOUNT_TEXT_MAX];
    printf("format name: %s\ncluster size: %s\nvm state offset: %s\n", info.format,
           amount_text(info.cluster_size, cluster), amount_text((double)info.vm_state_off, state));
    ROWS_CLEANUP struct rows rows = {0};
    ret = image_info_specific(&rows, session->disk, &info, &err);
    if (ret)
        report_qk(&err);
    else
        rows_print(&rows, stdout, 0);
    return ret;
}
