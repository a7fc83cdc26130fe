/* source.c - see source.h. */
#include "img/source.h"
#include "common/report.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

static bool has_snapshot(struct qk_disk *disk, const char *wanted)
{
    struct qk_info info = QK_INFO_INIT;
    if (qk_disk_info(disk, &info, NULL) < 0)
        return false;
    for (uint32_t i = 0; i < info.snapshot_count; i++) {
        struct qk_snapshot_info snapshot = QK_SNAPSHOT_INFO_INIT;
        if (qk_disk_snapshot(disk, i, &snapshot, NULL) == 0 &&
            (!strcmp(snapshot.id, wanted) || !strcmp(snapshot.name, wanted)))
            return true;
    }
    return false;
}

int source_open(const char *name, const struct image_request *request, struct qk_disk **out)
{
    if (!request->snapshot)
        return open_image(name, request, out);
    struct image_request active = *request;
    struct qk_disk *disk = NULL;
    active.snapshot = NULL;
    int ret = open_image(name, &active, &disk);
    if (ret < 0)
        return ret;
    bool there = has_snapshot(disk, request->snapshot);
    drop_image(&disk);
    if (there)
        return open_image(name, request, out);
    report_error("Failed to load snapshot: Can't find snapshot");
    return -ENOENT;
}

static bool same_file(const char *a, const char *b)
{
    struct stat x, y;
    return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino &&
           !S_ISCHR(x.st_mode);
}

bool source_is_target(struct qk_disk *source, const char *target)
{
    for (; source; source = qk_disk_backing(source)) {
        struct qk_info info = QK_INFO_INIT;
        if (qk_disk_info(source, &info, NULL) < 0)
            continue;
        bool is_data = info.data_file_full && same_file(info.data_file_full, target);
        if (!is_data && !same_file(info.name, target))
            continue;
        report_error("'%s' and '%s' are the same file: it would be overwritten while it is read",
                     is_data ? info.data_file_full : info.name, target);
        return true;
    }
    return false;
}

static bool check_keys(const struct keyvals *list)
{
    for (size_t i = 0; i < list->count; i++) {
        const char *item = list->item[i];
        int len = (int)strcspn(item, "=");
        if (strncmp(item, "snapshot.id=", 12) != 0 && strncmp(item, "snapshot.name=", 14) != 0) {
            report_error("Invalid parameter '%.*s'", len, item);
            return false;
        }
    }
    return true;
}

int source_parse_snapshot(const char *text, char **snapshot)
{
    *snapshot = NULL;
    if (!text)
        return -1;
    if (strncmp(text, "snapshot.", strlen("snapshot.")) != 0) {
        *snapshot = xstrdup(text);
        return -1;
    }
    KEYVALS_CLEANUP struct keyvals list = {0};
    if (!keyvals_add_list(&list, text) || !check_keys(&list)) {
        report_error("Failed in parsing snapshot param '%s'", text);
        return 1;
    }
    const char *id = keyvals_get(&list, "snapshot.id");
    *snapshot = xstrdup(id ? id : keyvals_get(&list, "snapshot.name"));
    return -1;
}
