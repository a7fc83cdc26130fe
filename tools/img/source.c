/* source.c - see source.h. */
#include "img/source.h"
#include "common/report.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

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
