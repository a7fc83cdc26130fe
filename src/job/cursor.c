/*
 * cursor.c - see cursor.h. Neighbouring extents with the same meaning are joined up to a limit, so
 * that an image in many small extents is still read in large requests.
 */
#include "job/cursor.h"
#include "base/checked.h"

#define JOIN_BYTES (UINT64_C(8) << 20)

static int look_up(const struct cursor *cursor, uint64_t off, struct qk_extent *extent,
                   struct qk_error *err)
{
    uint64_t len = cursor->size - off;
    int ret = qk_disk_status(cursor->disk, off, len, cursor->status, extent, err);
    if (ret < 0)
        return ret;
    if (!extent->len || extent->len > len)
        return qk_fail(err, -EIO, "block status at offset %llu has an impossible length",
                       (unsigned long long)off);
    return 0;
}

int cursor_seek(struct cursor *cursor, uint64_t off, struct qk_error *err)
{
    if (off >= cursor->begin && off < cursor->end)
        return 0;
    struct qk_extent extent;
    int ret = look_up(cursor, off, &extent, err);
    if (ret < 0)
        return ret;
    cursor->begin = off;
    cursor->end = off + extent.len;
    cursor->flags = extent.flags;
    while (cursor->end < cursor->size && cursor->end - off < JOIN_BYTES) {
        /* what cannot be looked up now is reported when the walk gets there */
        if (look_up(cursor, cursor->end, &extent, NULL) < 0 ||
            (extent.flags ^ cursor->flags) & CURSOR_MEANING)
            break;
        cursor->end += extent.len;
    }
    return 0;
}
