/*
 * spill.h - a growing stretch of bytes that keeps at most SPILL_MEMORY of itself in memory, and the
 * rest in a file without a name. Where no such file can be made or it finds no room, all stays in
 * memory: a full disk must not stop who frees space. Not thread-safe.
 */
#ifndef QK_IO_SPILL_H
#define QK_IO_SPILL_H

#include "base/error.h"

#define SPILL_MEMORY (UINT64_C(8) << 20)

struct spill {
    char *beside; /* a file whose folder takes the nameless one; NULL: none is made */
    int fd;       /* -1: there is none */
    bool in_vain; /* no file, or no room in it */
    uint8_t **block;
    size_t blocks, room;
    size_t first;       /* the blocks before it are in the file */
    uint64_t len, most; /* most: of it in memory; may be set after spill_init */
};

int spill_init(struct spill *s, const char *beside, struct qk_error *err);
void spill_free(struct spill *s);
/* *pos: where they are. */
int spill_append(struct spill *s, const void *bytes, size_t len, uint64_t *pos,
                 struct qk_error *err);
/* Of a range that was appended. */
int spill_read(const struct spill *s, uint64_t pos, void *out, size_t len, struct qk_error *err);
int spill_write(struct spill *s, uint64_t pos, const void *bytes, size_t len, struct qk_error *err);

#endif
