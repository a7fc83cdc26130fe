/*
 * undo.h - before-images: a filter that lets no byte of its inner store be overwritten or cut off
 * before the old one is stable in an undo log, and the way back.
 *
 * The log (all numbers big-endian) is a head of 64 bytes and records, each a multiple of 16 bytes,
 * with a checksum that also says to which log it belongs and in which place:
 *   BYTE   the old bytes of a range of whole sectors of 512 bytes (the last may be shorter)
 *   ZERO   the same where all of them are zero
 *   SUMS   the checksum of each sector of a range as it will be
 *   SIZE   a length that the store will have
 *   REDY   everything before it is stable: what it announces may happen from here on
 *   DONE   all of it has happened and is stable; the last record
 *   BACK   in the place of DONE while an undo is on
 * So a log that is torn behind its last REDY is whole: what it lacks did not happen.
 *
 * The sums are what makes the way back safe: each sector that was announced must be as it was, or
 * as one of the announced changes left it. Another image, or one that was used since, is refused.
 * Behind DONE there is no mixture, either: all sectors are as the last change left them, or all as
 * they were. (Who uses the image may bring single sectors back to what they were, as a refcount
 * when a cluster that was freed is used again.)
 */
#ifndef QK_IO_UNDO_H
#define QK_IO_UNDO_H

#include "io/io.h"

#define UNDO_SECTOR 512u

/* Both stores are borrowed. `log` must be empty; nothing is written to it before it is needed. */
int io_undo_open(struct qk_io *inner, struct qk_io *log, struct qk_io **out, struct qk_error *err);

/*
 * Announces a write (or, without bytes, that the store will have the length `off`) so that many
 * share one undo_ready. Then they may be done on `inner` itself: the log knows them. A write
 * through the filter announces itself and makes itself ready.
 */
int undo_announce(struct qk_io *io, uint64_t off, const void *bytes, size_t len,
                  struct qk_error *err);
int undo_ready(struct qk_io *io, struct qk_error *err);
/* All that was announced has happened, and is stable. What fails is no loss but of the strict look
 * that this allows. */
void undo_done(struct qk_io *io);

struct undo_result {
    uint64_t sectors; /* that were put back, whether or not they differed */
    uint64_t length;  /* of the store, now as before */
    bool never_begun; /* the log protects nothing: the store was never changed */
};
/*
 * Puts back what `log` holds: bytes and length. The result is stable on return. May be done again,
 * also when it was cut off in the middle. -EINVAL: no log, or a damaged one; -EUCLEAN: `store` is
 * not the one that the log is about, or was changed since; -EACCES: the log says DONE, and cannot
 * be written to; nothing was written then.
 */
int undo_restore(struct qk_io *log, struct qk_io *store, struct undo_result *result,
                 struct qk_error *err);

/* A new, empty file to write a log to; -EEXIST when there is one of that name. Its name is stable
 * on return. */
int undo_file_create(const char *name, struct qk_io **out, struct qk_error *err);

#endif
