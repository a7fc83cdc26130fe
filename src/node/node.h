/*
 * node.h - the block graph. A node is a byte store (struct qk_io) that stands for a driver with
 * its children: the qcow2 driver over an image, raw over a file, null, blkdebug. Opening takes a
 * name or an option tree, probes the format, follows backing files as the policy allows (INV-7).
 *
 *     qk_disk -> qcow2 node -- file ----> file node -> file store
 *                    |
 *                    +------- backing --> raw node -- file --> file node -> file store
 *
 * Ownership goes down the arrows: closing a node closes its children. A node is used by many
 * threads at once; opening, closing and resizing are exclusive.
 */
#ifndef QK_NODE_NODE_H
#define QK_NODE_NODE_H

#include "image/image.h"
#include "io/io.h"
#include "node/options.h"

#include <pthread.h>
#include <stdatomic.h>

struct node;
struct node_driver;

/* The public handle of a node, part of it. */
struct qk_disk {
    struct node *node;
};

/* discard=: what happens to requests that say that content is not needed. */
enum node_discard {
    DISCARD_FREE,  /* not said: the format frees its clusters, the file keeps its length */
    DISCARD_UNMAP, /* the file's space is given back too */
    DISCARD_IGNORE,
};

enum node_detect { DETECT_OFF, DETECT_ON, DETECT_UNMAP }; /* detect-zeroes= */

struct node {
    struct qk_io io; /* first, so that a node can be used as a store */
    struct qk_disk handle;
    const struct node_driver *driver;
    struct node *file;     /* child that holds the bytes, NULL: none */
    struct node *data;     /* qcow2: external data file, NULL: none */
    struct node *backing;  /* NULL: none */
    struct node *blank;    /* qcow2: stands in for a backing file that is left closed */
    struct qk_io *store;   /* protocols: the store that is wrapped */
    struct node *debugged; /* blkdebug: what lies below the store, which owns it */
    struct image *image;   /* qcow2 only */
    unsigned flags;        /* QK_OPEN_* as they hold for this node */
    enum node_discard discard;
    enum node_detect detect_zeroes;
    atomic_uint_fast64_t size; /* guest bytes, a multiple of 512 */
    uint64_t raw_off, raw_len; /* raw: window on the file; null: raw_len is the size */
    bool raw_sized;            /* raw: size= was given, the window is fixed */
    bool null_zeroes;          /* null: read-zeroes=on */
    bool probed;               /* the format was found by looking at the content */
    atomic_int sparse_file;    /* see status.c */
    pthread_mutex_t guard;     /* raw, probed: writes to the first sector, one at a time */
    pthread_rwlock_t cor;      /* copy-on-read: copies exclude writes */
    struct options strong;     /* options that the name must show */
    char *exact_name;          /* what opens this node again, NULL: needs json: */
    char *shown_name;          /* exact_name or json:{...} */
    char *base_name;           /* plain file at the bottom, NULL: none; names in it are relative
                                  to this file's directory */
    char *backing_full;        /* backing file name as resolved, NULL: none */
    char *data_file;           /* external data file's name, made by qk_disk_info */
    struct snapshot_vec *snapshots; /* read on first demand */
    pthread_mutex_t shape_lock;     /* the list and `size`, with what changes them in the image */
};

enum node_role { ROLE_DISK, ROLE_FILE, ROLE_BACKING };

/* The images above the one that is being opened, the nearest first: what a loop would meet. */
struct chain_link {
    const struct chain_link *above;
    const char *name;
    uint64_t dev, ino; /* ino 0: not known */
    unsigned depth;
    bool is_data; /* the external data file of an image above */
};

/* What is to be opened. Strings are borrowed, opts belongs to the request. */
struct open_request {
    const char *name;   /* NULL: opts says it all */
    const char *format; /* NULL: opts' "driver", else probe */
    unsigned flags;     /* QK_OPEN_* */
    enum node_role role;
    enum qk_policy policy;
    const struct qk_secrets *secrets;    /* NULL: none */
    const struct snapshot_key *snapshot; /* to show instead of the active state; NULL: none */
    const struct chain_link *above;
    struct options opts;
};

/* Opens what req describes; takes req->opts (they are empty or freed afterwards). */
int node_open(struct open_request *req, struct node **out, struct qk_error *err);
/* NULL is allowed. The node is gone whatever is returned. */
int node_close(struct node *node, struct qk_error *err);

/* Permissions as QEMU locks them for a disk of this driver and these flags, applied downwards. */
int node_lock(struct node *node, enum node_role role, struct qk_error *err);
/* Uses IO_PERM_* `more` beyond that until the next node_lock. */
int node_lock_also(struct node *node, enum node_role role, unsigned more, struct qk_error *err);

/* reopen.c: makes a backing file that was opened read-only writable, with the locks of a writer.
 * discard: what becomes of space that is given back there. On failure nothing has changed. */
int node_make_writable(struct node *node, enum node_discard discard, struct qk_error *err);
/* What a node knows of its own after the store below has become writable, or no longer is. */
void node_note_writable(struct node *node, bool writable);
/* Puts `backing` (NULL: nothing) below the image of node, which owns it from here on. It may be a
 * layer of the chain that was there; what is no longer needed of that is closed. */
int node_replace_backing(struct node *node, struct node *backing, struct qk_error *err);

/* exact_name, shown_name and base_name of a node whose children are open. */
int node_set_names(struct node *node, struct qk_error *err);

/* chain.c: opens the backing file that the image of `node` names, or that req->opts override. */
int chain_open_backing(struct node *node, struct open_request *req, struct qk_error *err);
/* Fills dev and ino of link->name, when that is a file. */
void chain_identify(struct chain_link *link);
/* -ELOOP when `below`, the backing file of `link`, is the file of link or of one above it, or too
 * deep. */
int chain_refuse_loop(const struct chain_link *link, const char *below, struct qk_error *err);
/* Resolves the image's backing name against the node's place. *full: NULL when it has none. */
int chain_backing_name(const struct node *node, const char *name, char **full,
                       struct qk_error *err);

/* The layer below `top` that `name` means: a file name is relative to the layer above it, others
 * are as that layer is shown. NULL: there is none. */
struct node *chain_find_layer(struct node *top, const char *name);
/* -ELOOP when the chain that begins at file `name` has the file of `node` in it. What cannot be
 * opened ends the search. */
int chain_refuse_below(const struct node *node, const char *name, const char *format,
                       struct qk_error *err);

/* status.c */
/* What the layers from node down to the one above `base` say; flags 0 where none of them decides.
 * Where one of them is too short, it decides on zero. */
int node_status_above(struct node *node, const struct node *base, uint64_t off, uint64_t len,
                      struct qk_extent *extent, struct qk_error *err);
int node_status(struct node *node, uint64_t off, uint64_t len, unsigned flags,
                struct qk_extent *extent, struct qk_error *err);
/* This layer only, flags 0 where the backing decides. */
int node_own_status(struct node *node, uint64_t off, uint64_t len, unsigned flags,
                    struct qk_extent *extent, struct qk_error *err);

/* overlay.c: puts a temporary overlay (QK_OPEN_SNAPSHOT) on top of *top. */
int overlay_add(struct node **top, unsigned flags, struct qk_error *err);

static inline uint64_t node_size(const struct node *node)
{
    return atomic_load_explicit(&node->size, memory_order_relaxed);
}

/* Opened for facts only (`info`): what the guest sees is out of reach. */
static inline bool node_only_described(const struct node *node)
{
    return (node->flags & (QK_OPEN_NO_IO | QK_OPEN_RDWR | QK_OPEN_CHECK)) == QK_OPEN_NO_IO;
}

static inline struct node *node_of(struct qk_io *io)
{
    return (struct node *)io;
}

#endif
