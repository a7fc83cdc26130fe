/*
 * rollback.h - bringing the disk back to an internal snapshot when the active tables are damaged.
 * Two runs of the check share it: a look finds the damage and the snapshots that would do; the
 * repair is a run over the image as it will be, with the snapshot's tables as the active ones
 * (doc/design/check.md, "Rolling back").
 */
#ifndef QK_CHECK_ROLLBACK_H
#define QK_CHECK_ROLLBACK_H

#include "base/error.h"

#include <stdbool.h>

struct check;

#define ROLLBACK_SINCE "what was written since snapshot "

/* A snapshot whose tables can be the active ones. */
struct rollback {
    uint64_t entry_off; /* of its entry in the snapshot table; 0: none */
    uint64_t l1_off, disk_bytes;
    uint32_t l1_entries, date_sec, date_nsec;
    uint16_t snapshot; /* its place among those that can be used, from 1 */
    bool named;        /* it was asked for by its id or name */
    /* Of the damaged image, as the look saw it: */
    uint64_t old_l1_off, old_disk_bytes, named_from, named_end, overflows;
    uint32_t old_l1_entries;
    uint64_t mark_off; /* where rollback_write_mark writes; 0: the damage lasts without it */
    const char *mark_structure;
    bool zero_refcounts; /* refcounts of zero say nothing there */
    char since[200];     /* ROLLBACK_SINCE and rollback_text */
};

/* "1 (monday) of 2026-11-21 08:00:00", cut off where names are long. */
static inline const char *rollback_text(const struct rollback *r)
{
    return r->since + sizeof(ROLLBACK_SINCE) - 1;
}

#define ROLLBACK_CANDIDATES 8u

/* What a look says about going back. */
struct way_back {
    bool damaged; /* the active tables are, beyond what is repaired without loss */
    const char
        *refused; /* why not to the snapshot that was asked for; NULL: it can be, or none was */
    bool unknown; /* there is no such snapshot */
    unsigned count;
    struct rollback candidates[ROLLBACK_CANDIDATES]; /* the newest ones first */
};

/* Last part of a look. Reports the snapshots that would do, and what going back would give up. */
int rollback_survey(struct check *c, struct qk_error *err);
/* Last part of the look of a run that rolls back: -EUCLEAN: the snapshot is damaged, too; -ERANGE:
 * its clusters cannot be counted once more. */
int rollback_judge(struct check *c, struct qk_error *err);

/* The header as it will be, before the run; the snapshot's table as the active one. */
void rollback_begin(struct check *c);
void rollback_trim_l1(struct check *c);
/* Writes the new L1 table beside everything; names it in the header. Nothing without a rollback. */
int rollback_place(struct check *c, struct qk_error *err);
int rollback_link(struct check *c, struct qk_error *err);

/* ---- rollback_mark.c ---- */

/* Notes in the candidates what keeps the damage from looking sound when the file grows. */
int rollback_find_mark(struct check *c, struct qk_error *err);
/* Before the file grows past what damaged entries name: in an epoch of its own. */
int rollback_write_mark(struct check *c, struct qk_error *err);

/* ---- rollback_loss.c ---- */

/* Guest ranges that read anew when the disk goes back, in order; past the limit the last one grows.
 */
#define ROLLBACK_RANGES 64u
struct rollback_loss {
    uint64_t off[ROLLBACK_RANGES], bytes[ROLLBACK_RANGES];
    unsigned count;
};
int rollback_loss(struct check *c, const struct rollback *r, struct rollback_loss *loss,
                  struct qk_error *err);

#endif
