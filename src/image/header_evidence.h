/*
 * header_evidence.h - whether the tables of a file are what a header says, from a few samples; and
 * which header a check takes the first bytes of a file for, when they cannot be believed.
 */
#ifndef QK_IMAGE_HEADER_EVIDENCE_H
#define QK_IMAGE_HEADER_EVIDENCE_H

#include "format/header.h"
#include "io/io.h"

struct evidence {
    uint64_t facts, broken; /* statements of the format that were looked at, and do not hold */
    uint64_t unaligned;     /* offsets that were looked at, and are at no cluster of this size */
    uint64_t misfit; /* of the broken ones, those that are no matter of the refcount structure */
    bool adjacent;   /* clusters one behind the other on the disk are so in the file, too */
    bool blind;      /* without refcounts: not even the header is counted */
};
/* Reads the L1 table and a few of the tables that it names; h is mended. -ENOMEM. What cannot be
 * read is broken. */
int header_evidence(struct qk_io *file, const struct header *h, struct evidence *e,
                    struct qk_error *err);

/* What the header of an image that was opened for a check holds, beside what it is read as. */
struct header_stored {
    struct header fields; /* laid out as the version that it is read as */
    bool magic_wrong;
    bool unreadable; /* nothing tells the cluster size: all tables are taken to be missing */
    bool doubtful;   /* the tables contradict the header, and do not tell what it should be */
    struct extension_fault_vec faults;
};

/* Chooses how to read the header: as it is when its tables confirm it, else with the one field
 * changed that makes them do so. `first` are the first len bytes of the file. -EINVAL: neither
 * magic nor tables say that this is an image. */
int header_choose(struct qk_io *file, const uint8_t *first, size_t len, struct header *h,
                  struct header_stored *stored, struct qk_error *err);

#endif
