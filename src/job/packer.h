/*
 * packer.h - the compressing half of a conversion: a worker compresses the clusters in its buffer
 * while others do the same, and later writes the streams, in order when the job is ordered. The
 * target is then the same file, byte for byte, whatever the number of threads.
 */
#ifndef QK_JOB_PACKER_H
#define QK_JOB_PACKER_H

#include "job/pool.h"
#include "node/node.h"

struct packer {
    struct qk_disk *target;
    struct image *image; /* NULL: nothing is compressed */
    uint64_t target_size;
    size_t cluster, chunk; /* bytes */
};

/* -ENOTSUP when the target's format holds no compressed clusters. */
int packer_init(struct packer *packer, struct qk_disk *target, struct qk_error *err);

/* Size of a worker's buffer: its data first, then the packer's own. */
size_t packer_buffer_bytes(const struct packer *packer);

/* A range of target bytes whose data is in the worker's buffer. */
struct packer_range {
    uint64_t off, len;
    bool keep_zeroes; /* clusters of zeroes are written as data */
};

/* Compresses the range's whole clusters. */
int packer_compress(const struct packer *packer, struct job_worker *worker,
                    struct packer_range range, struct qk_error *err);

/* Writes the range; `zero` is called for the clusters of zeroes. */
typedef int (*packer_zero)(void *opaque, uint64_t off, uint64_t len, struct qk_error *err);
struct packer_zeroes {
    packer_zero write;
    void *opaque;
};
int packer_write(const struct packer *packer, struct job_worker *worker, struct packer_range range,
                 const struct packer_zeroes *zeroes, struct qk_error *err);

#endif
