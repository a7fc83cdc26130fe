/*
 * cmd_snapshot.c - `snapshot`: listing, creating, applying, deleting and renaming the internal
 * snapshots of an image. Relies on qk_disk_snapshot_* for the work; here is which snapshot a text
 * means, and how qemu-img says what went wrong.
 */
#include "common/report.h"
#include "common/snapshot.h"
#include "img/commands.h"
#include "img/snapshot_rows.h"

#include <errno.h>
#include <string.h>

enum { OPT_RENAME = OPT_LOCAL, OPT_TO, OPT_FREED };

static const struct opt_desc options[] = {
    {'l', NULL, NULL, "list the snapshots", OPT_KIND_FLAG, NULL, 0, 0, NULL},
    {'c', NULL, "NAME", "create a snapshot", OPT_KIND_TEXT, NULL, 0, 0, NULL},
    {'a', NULL, "SNAPSHOT", "apply one: the disk becomes what it was then", OPT_KIND_TEXT, NULL, 0,
     0, NULL},
    {'d', NULL, "SNAPSHOT", "delete one", OPT_KIND_TEXT, NULL, 0, 0, NULL},
    {OPT_RENAME, "rename", "SNAPSHOT", "give one another name (--to)", OPT_KIND_TEXT, NULL, 0, 0,
     NULL},
    {OPT_TO, "to", "NAME", "the new name for --rename", OPT_KIND_TEXT, NULL, 0, 0, NULL},
    {OPT_FREED, "freed", NULL, "list also how much deleting each one would free", OPT_KIND_FLAG,
     NULL, 0, 0, NULL},
    OPT_ROW_OUTPUT,
    OPT_ROW_IMAGE_OPTS,
    OPT_ROW_OBJECT,
    OPT_SHARE,
    OPT_QUIET,
    OPT_END,
};

static const struct cmd_text examples[] = {
    {"snapshot -c monday disk.qcow2", "keep the disk's present content under a name"},
    {"snapshot -l --freed disk.qcow2", "list the snapshots and what each one holds alone"},
    {"snapshot -a monday disk.qcow2", "go back; what was written since is lost"},
    {"snapshot -d snapshot.id=3 disk.qcow2", "delete the snapshot with that id"},
    {"snapshot --rename monday --to before-upgrade disk.qcow2", "rename one"},
    {NULL, NULL},
};

const struct cmd_desc desc_snapshot = {
    .name = "snapshot",
    .summary = "list, create, apply, delete or rename internal snapshots",
    .operands = "FILENAME",
    .options = options,
    .examples = examples,
};

/* ---- which one --------------------------------------------------------------------------- */

typedef int (*change_fn)(struct qk_disk *disk, const char *id, const char *name, void *opaque,
                         struct qk_error *err);

/* What is to be done with the snapshot that is meant. */
struct change {
    change_fn fn;
    void *opaque;
    bool name_first; /* a plain text is a name before it is an id, as where qemu-img deletes */
};

static int change_chosen(struct qk_disk *disk, const struct snapshot_choice *c,
                         const struct change *change, struct qk_error *err)
{
    if (!c->either)
        return change->fn(disk, c->id, c->name, change->opaque, err);
    for (int i = 0; i < 2; i++) {
        bool by_name = (i == 0) == change->name_first;
        int ret = change->fn(disk, by_name ? NULL : c->either, by_name ? c->either : NULL,
                             change->opaque, err);
        if (ret != -ENOENT)
            return ret;
    }
    return -ENOENT;
}

/* ---- the actions ------------------------------------------------------------------------- */

static int list(struct qk_disk *disk, const struct opts *opts)
{
    static const char *const order[] = {"snapshots", SNAPSHOT_KEYS, NULL};
    ROWS_CLEANUP struct rows rows = {0};
    struct qk_error err = {0};
    unsigned detail = opts_given(opts, OPT_FREED) ? SNAPSHOT_FREED : 0;
    int ret = snapshot_rows(&rows, disk, detail | SNAPSHOT_SIZES, &err);
    if (ret) {
        report_failure(&err, "Could not list the snapshots");
        return ret;
    }
    if (opts_json(opts) && !rows.count)
        rows_list(&rows, "snapshots", NULL);
    if (opts_json(opts))
        rows_print_json(&rows, stdout, order);
    else
        rows_print(&rows, stdout, 0);
    return 0;
}

static int create(struct qk_disk *disk, const struct opts *opts)
{
    struct qk_snapshot_options o = QK_SNAPSHOT_OPTIONS_INIT;
    struct qk_error err = {0};
    o.name = opts_string(opts, 'c');
    int ret = qk_disk_snapshot_create(disk, &o, &err);
    if (ret == -ENOTSUP)
        report_error("Could not create snapshot '%s': %d (%s)", o.name, ret, strerror(-ret));
    else if (ret)
        report_failure(&err, "Could not create snapshot '%s'", o.name);
    return ret;
}

static int change_apply(struct qk_disk *disk, const char *id, const char *name, void *opaque,
                        struct qk_error *err)
{
    (void)opaque;
    return qk_disk_snapshot_apply(disk, id, name, err);
}

static int apply(struct qk_disk *disk, const struct opts *opts)
{
    SNAPSHOT_CLEANUP struct snapshot_choice choice;
    struct qk_error err = {0};
    const char *text = opts_string(opts, 'a');
    const struct change change = {change_apply, NULL, false};
    if (snapshot_choice_parse(text, &choice) >= 0)
        return -EINVAL;
    int ret = change_chosen(disk, &choice, &change, &err);
    if (ret == -ENOENT)
        report_error("Could not apply snapshot '%s': Failed to load snapshot: %s", text,
                     strerror(ENOENT));
    else if (ret)
        report_failure(&err, "Could not apply snapshot '%s'", text);
    return ret;
}

static int change_delete(struct qk_disk *disk, const char *id, const char *name, void *opaque,
                         struct qk_error *err)
{
    struct qk_info info = QK_INFO_INIT;
    (void)opaque;
    /* A format without snapshots has none of that name. */
    if (!qk_disk_info(disk, &info, NULL) && !info.snapshot_count)
        return -ENOENT;
    return qk_disk_snapshot_delete(disk, id, name, err);
}

static int delete (struct qk_disk *disk, const struct opts *opts)
{
    SNAPSHOT_CLEANUP struct snapshot_choice choice;
    struct qk_error err = {0};
    const char *text = opts_string(opts, 'd');
    const struct change change = {change_delete, NULL, true};
    if (snapshot_choice_parse(text, &choice) >= 0)
        return -EINVAL;
    int ret = change_chosen(disk, &choice, &change, &err);
    if (ret == -ENOENT)
        report_error("Could not delete snapshot '%s': snapshot not found", text);
    else if (ret)
        report_failure(&err, "Could not delete snapshot '%s'", text);
    return ret;
}

static int change_name(struct qk_disk *disk, const char *id, const char *name, void *opaque,
                       struct qk_error *err)
{
    return qk_disk_snapshot_rename(disk, id, name, *(const char **)opaque, err);
}

static int rename_one(struct qk_disk *disk, const struct opts *opts)
{
    SNAPSHOT_CLEANUP struct snapshot_choice choice;
    struct qk_error err = {0};
    const char *text = opts_string(opts, OPT_RENAME), *to = opts_string(opts, OPT_TO);
    const struct change change = {change_name, &to, true};
    if (snapshot_choice_parse(text, &choice) >= 0)
        return -EINVAL;
    int ret = change_chosen(disk, &choice, &change, &err);
    if (ret)
        report_failure(&err, "Could not rename snapshot '%s'", text);
    return ret;
}

static const struct action {
    int id;
    int (*run)(struct qk_disk *disk, const struct opts *opts);
    bool writes;
} actions[] = {
    {'l', list, false},
    {'c', create, true},
    {'a', apply, true},
    {'d', delete, true},
    {OPT_RENAME, rename_one, true},
};

/* *action: NULL when none is asked for, which is no error in qemu-img either. */
static int choose(const struct opts *opts, const struct action **action)
{
    unsigned given = 0;
    *action = NULL;
    for (size_t i = 0; i < sizeof(actions) / sizeof(*actions); i++) {
        if (!opts_given(opts, actions[i].id))
            continue;
        *action = &actions[i];
        given++;
    }
    if (given > 1)
        return usage_error("Cannot mix '-l', '-a', '-c', '-d'");
    if (opts_given(opts, OPT_RENAME) != opts_given(opts, OPT_TO))
        return usage_error("--rename SNAPSHOT and --to NAME belong together");
    return -1;
}

int cmd_snapshot(int argc, char **argv)
{
    OPTS_CLEANUP struct opts opts;
    const struct action *action;
    int status = opts_parse(&desc_snapshot, argc, argv, &opts);
    if (status < 0)
        status = choose(&opts, &action);
    if (status >= 0)
        return status;
    if (opts.operand_count != 1)
        return usage_error("Expecting one image file name");
    struct image_request request = image_request_from(&opts);
    request.flags |= action && action->writes ? QK_OPEN_RDWR | QK_OPEN_UNMAP : 0;
    struct qk_disk *disk = NULL;
    if (open_image(opts.operand[0], &request, &disk))
        return 1;
    int ret = action ? action->run(disk, &opts) : 0;
    if (request.flags & QK_OPEN_RDWR)
        status = close_image(disk);
    else
        drop_image(&disk);
    return ret || status > 0 ? 1 : 0;
}
