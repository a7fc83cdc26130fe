/* overlap.h - the set of metadata places that overlap.c looks into and overlap_load.c fills. */
#ifndef QK_IMAGE_OVERLAP_H
#define QK_IMAGE_OVERLAP_H

#include "image/image_int.h"

struct table_place {
    uint64_t cluster; /* 0: free place (the header's cluster is never a table's) */
    unsigned kinds;
};

struct byte_range {
    uint64_t off, len;
    unsigned kind;
};
DEFINE_VECTOR(byte_range_vec, struct byte_range)

/* Guarded by img->tables_lock. */
struct table_set {
    struct table_place *places;
    size_t count, mask;           /* places used, and their number less one */
    struct byte_range_vec ranges; /* snapshot table, inactive L1 tables, LUKS area */
};

#endif
