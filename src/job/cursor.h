/*
 * cursor.h - walking over the extents of one disk in ascending order, each looked up once and
 * handed out in as many parts as the caller likes. Used by one thread at a time.
 */
#ifndef QK_JOB_CURSOR_H
#define QK_JOB_CURSOR_H

#include "base/error.h"

/* Extents that differ in nothing else are one. */
#define CURSOR_MEANING                                                                             \
    ((unsigned)(QK_EXTENT_DATA | QK_EXTENT_ZERO | QK_EXTENT_ALLOCATED | QK_EXTENT_OFFSET))

struct cursor {
    struct qk_disk *disk;
    uint64_t size;       /* of the disk when the walk began */
    unsigned status;     /* of enum qk_status_flag */
    uint64_t begin, end; /* the extent known now; empty at first */
    unsigned flags;      /* its flags, of enum qk_extent_flag */
};

static inline struct cursor cursor_of(struct qk_disk *disk, unsigned status)
{
    return (struct cursor){.disk = disk, .size = qk_disk_size(disk), .status = status};
}

/* Fills in the extent around `off`, which lies inside the disk. */
int cursor_seek(struct cursor *cursor, uint64_t off, struct qk_error *err);

/* Bytes from off (where the cursor stands) to the extent's end. */
static inline uint64_t cursor_left(const struct cursor *cursor, uint64_t off)
{
    return cursor->end - off;
}

#endif
