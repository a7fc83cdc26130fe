/*
 * recorder.h - runs a workload on an image that lies in memory behind a stack of filters, and keeps
 * the model of what the guest has done. Operations may fail (injected faults): the model then
 * allows the old and the new content, and `errors` counts.
 */
#ifndef QK_CRASH_RECORDER_H
#define QK_CRASH_RECORDER_H

#include "image/image.h"
#include "model.h"

/* Sanitizers make everything several times slower: less of it by default. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SLOWER = 5 };
#else
enum { SLOWER = 1 };
#endif

/* What is wrong with the image that a workload starts with; opening it repairs it first. */
enum damage {
    DAMAGE_NONE,
    DAMAGE_DIRTY,     /* a lazy image that was not closed */
    DAMAGE_BLOCKS,    /* refcount blocks full of zeroes */
    DAMAGE_TABLE,     /* a refcount table full of zeroes */
    DAMAGE_REFCOUNTS, /* refcounts of 3 where there is one reference or none */
};

struct recorder;

struct workload {
    const char *name;
    struct create_params create;
    struct image_options options; /* writable is set by the recorder */
    uint64_t max_bytes;           /* of the disk, after resizing */
    uint64_t backing_bytes;       /* 0: no backing file */
    uint32_t seed;
    uint64_t device_bytes; /* not 0: a device of this size, full of old bytes */
    bool logs_creation;    /* crashes during creation are part of it */
    enum damage damage;
    void (*run)(struct recorder *rec);
};
extern const struct workload workloads[];
extern const size_t workload_count;
extern const struct image_secret workload_secret; /* of encrypted images */
extern uint32_t workload_salt; /* added to all seeds: other runs of the same workloads */

struct recorder {
    const struct workload *w;
    bool whole_sectors;    /* round operations to sectors: a failed one then leaves each sector
                              old or new */
    struct qk_io *file;    /* what the image is opened on: top of the filters */
    struct qk_io *mem;     /* the bottom of them */
    struct qk_io *backing; /* NULL: none */
    struct qk_io *data;    /* as file, of a data file; NULL: none */
    struct qk_io *data_mem;
    bool damaged;      /* to be repaired before it is opened */
    struct image *img; /* NULL: closed, or opening failed */
    struct model model;
    uint64_t random;
    void (*guard)(bool enters); /* called around each call of the engine; or NULL */
    size_t (*log_position)(struct recorder *rec); /* NULL: there is no log */
    unsigned errors;                              /* operations that failed */
    struct qk_error error;                        /* of the last of them */
};

/* Makes the backing store and the model; the recorder's file and mem come from the caller. */
void recorder_init(struct recorder *rec, const struct workload *w);
/* Writes the new image (through rec->file) and opens it. Negative on failure. */
int recorder_create(struct recorder *rec);
/* Opens rec->file for writing; what is dirty or was made damaged is repaired first. */
int recorder_open(struct recorder *rec);
/* Counts as a flush when it succeeds. */
int recorder_close(struct recorder *rec);
/* Frees model and backing; closes an open image without writing. Not file and mem. */
void recorder_free(struct recorder *rec);

uint32_t rec_random(struct recorder *rec, uint32_t below);
int rec_write(struct recorder *rec, uint64_t off, uint64_t len);
/* Whole clusters around the range, discarded first, compressible content, stored compressed. */
int rec_write_compressed(struct recorder *rec, uint64_t off, uint64_t len);
int rec_zero(struct recorder *rec, uint64_t off, uint64_t len, unsigned flags);
int rec_discard(struct recorder *rec, uint64_t off, uint64_t len);
int rec_flush(struct recorder *rec);
int rec_resize(struct recorder *rec, uint64_t size, enum qk_prealloc prealloc);
/* The disk's content stays the same. */
int rec_amend(struct recorder *rec, const struct amend_params *params);
int rec_reopen(struct recorder *rec);
/* Snapshots by their place in the list; what does not fit is done by none. */
int rec_snapshot(struct recorder *rec);
int rec_snapshot_delete(struct recorder *rec, size_t index);
int rec_snapshot_apply(struct recorder *rec, size_t index);
int rec_snapshot_rename(struct recorder *rec, size_t index);
/* Until the image is opened anew no more than `left` clusters of the device are free. */
void rec_fill(struct recorder *rec, uint64_t left);

/* Reads the whole disk and compares with what is allowed at the moment. Returns the number of
 * wrong sectors, the first one described in text. */
unsigned recorder_verify(struct image *img, const struct model *m, struct moment at,
                         char text[MODEL_TEXT]);

/* The same for the snapshots, which are opened one after the other. */
bool recorder_verify_snapshots(struct qk_io *file, struct qk_io *backing, const struct model *m,
                               struct moment at, char text[MODEL_TEXT]);

#endif
