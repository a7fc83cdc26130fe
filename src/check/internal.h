/*
 * internal.h - what the phases of a check share. The order of phases, and what each relies on:
 *
 *   roots     header, L1 tables, snapshot table, bitmaps, encryption header -> references counted,
 *             the distinct L2 tables collected
 *   walk      L2 tables, in parallel -> references counted, damaged tables marked
 *   refblocks refcount table -> its blocks counted and judged
 *   report    what roots and walk have marked is read again and reported in order
 *   compare   counts against refcount blocks, in parallel; differences marked, then reported
 *   decide    findings -> plan (plan.h)
 *   apply     plan -> writes (apply.c, rebuild.c)
 *   copied    COPIED flags of the active tables against the refcounts as they are then
 *
 * Parallel phases only mark; all reporting is sequential, in the order of the structures, from a
 * second read of what was marked. So a sound image is read once, findings take no memory, and the
 * output does not depend on the number of threads.
 */
#ifndef QK_CHECK_INTERNAL_H
#define QK_CHECK_INTERNAL_H

#include "base/vector.h"
#include "check/check.h"
#include "check/problem.h"
#include "check/refmap.h"
#include "check/rollback.h"
#include "format/bitmap.h"
#include "format/refcount.h"
#include "io/spill.h"

#include <stdatomic.h>

DEFINE_VECTOR(u64_vec, uint64_t)
struct snapshot_fixed;

/* Header fields that a repair writes (section "Header"): the table's offset and clusters together.
 */
#define HEADER_MAGIC_OFF          0u
#define HEADER_VERSION_OFF        4u
#define HEADER_BACKING_OFF        8u
#define HEADER_BACKING_LEN_OFF    16u
#define HEADER_CLUSTER_BITS_OFF   20u
#define HEADER_SIZE_OFF           24u
#define HEADER_CRYPT_OFF          32u
#define HEADER_L1_ENTRIES_OFF     36u
#define HEADER_L1_OFF             40u
#define HEADER_REFTABLE_OFF       48u
#define HEADER_SNAPSHOTS_OFF      60u
#define HEADER_INCOMPATIBLE_OFF   72u
#define HEADER_AUTOCLEAR_OFF      88u
#define HEADER_REFCOUNT_ORDER_OFF 96u
#define HEADER_LENGTH_OFF         100u
#define HEADER_COMPRESSION_OFF    104u

enum l2_flag {
    L2_BAD = 1u << 0,     /* has entries to report */
    L2_UNREAD = 1u << 1,  /* could not be read */
    L2_SUSPECT = 1u << 2, /* COPIED flags need a look (data file only) */
    L2_REPORTED = 1u << 3,
    L2_COPIED_DONE = 1u << 4,
    L2_ONE_PLACE = 1u << 6, /* fits one of the active L1 entries that name it: twice.c */
    L2_TAIL = 1u << 7,      /* names the cluster that the end of the file lies in */
    L2_HURT = 1u << 5,      /* some of its problems are not repaired without loss or choice */
};

/* One distinct L2 table, however many L1 entries name it. */
struct l2_table {
    uint64_t cluster;
    uint64_t refs;     /* L1 entries that name it, of all L1 tables */
    uint32_t active;   /* of those, in the active L1 */
    uint32_t first_l1; /* index in the active L1: lowest, or of L2_ONE_PLACE; UINT32_MAX: none */
    uint8_t flags;     /* enum l2_flag */
    uint16_t snapshot; /* one that has it, and where in its L1; see struct owner */
    uint32_t snapshot_l1;
};
DEFINE_VECTOR(l2_vec, struct l2_table)

/* The snapshot that a place in the file belongs to. */
struct owner {
    uint16_t snapshot; /* its place among those that can be used, from 1; 0: none, or not known */
    uint32_t l1_index;
};
struct snapshot_text {
    char id[64], name[256];
};

/* Who names a cluster that is counted for fewer. */
struct shared_user {
    const char *structure;
    uint64_t file_off, guest_off;
    uint16_t snapshot;
};
struct shared_cluster {
    uint64_t cluster, total; /* references to it */
    unsigned listed;
    struct shared_user users[QK_USERS_LISTED];
};
DEFINE_VECTOR(shared_vec, struct shared_cluster)

/* Entries of an L2 table whose clusters cannot be read; of one, from byte `skip` on. */
struct lost_run {
    uint64_t table; /* its cluster */
    uint32_t first, count, skip;
};
DEFINE_VECTOR(lost_run_vec, struct lost_run)

/* One bitmap: where its entry is in the directory, and its table in the file. */
struct bitmap_note {
    uint64_t at, bytes, table_off, table_bytes;
    bool bad;
};
DEFINE_VECTOR(bitmap_vec, struct bitmap_note)

/* What a repair gives up that has a name: see lost.c. */
struct lost {
    uint64_t count, named;
    size_t len;
    char names[512], text[640];
};

/* One step of the plan, as struct qk_plan_step tells it. */
struct step {
    const char *action, *structure;
    uint64_t count; /* 0: one */
    uint64_t lost_off, lost_bytes;
    uint64_t off, bytes, from, to;
    const char *lost; /* static, or of struct check */
    unsigned epoch;
    bool has_values;
};

/* The plan: as many as damaged entries, at worst, so what is too much for memory goes to a file. */
struct steps {
    struct spill bytes; /* struct step, one behind the other */
    uint64_t count;
    unsigned last_epoch; /* of the last one */
};
#define STEPS_MEMORY (UINT64_C(1) << 20)

/* An active L2 entry whose cluster has more users than its refcount says. */
struct cluster_user {
    uint64_t cluster, copy; /* copy 0: it keeps the cluster */
    uint32_t table, index;  /* of check.tables; the entry in it */
};
DEFINE_VECTOR(user_vec, struct cluster_user)

/* What a repair does with the bitmaps: nothing; names a directory of the good ones beside the old
 * one; writes it in the old one's place, where no other can be had; has no bitmaps any more. */
enum bitmaps_way { BITMAPS_STAY = 0, BITMAPS_BESIDE, BITMAPS_IN_PLACE, BITMAPS_GONE };

/* Compressed clusters of which the last sector is there in part: those that were tried. */
#define CUT_STREAMS 512u
struct cut_streams {
    pthread_mutex_t lock;
    unsigned count;
    struct {
        uint64_t off, bytes;
        bool bad;
    } tried[CUT_STREAMS];
};

/* A file that ends too early: see cut.c. */
struct cut {
    uint64_t names, reach;         /* references that lead behind the end, and how far */
    uint64_t counted;              /* refcounts go up to this cluster; 0: not behind the end */
    bool torn;                     /* a table is cut */
    bool held;                     /* and cannot be given up */
    bool sure;                     /* it is no single wild entry */
    uint64_t fill_end;             /* where the tables that are given up end */
    uint64_t entry_bytes;          /* of the table that the end lies in; 0: none */
    uint64_t lost_off, lost_bytes; /* of the disk, by that */
};

enum block_state {
    BLOCK_NONE = 0, /* no block: every refcount in its range is zero */
    BLOCK_GOOD,
    BLOCK_BAD, /* unaligned, outside, shared or unreadable: refcounts unknown */
};
enum block_flag {
    BLOCK_STATE = 3u, /* mask of enum block_state */
    BLOCK_MISMATCH = 1u << 2,
    BLOCK_COUNTED = 1u << 3, /* the block's cluster is counted as referenced */
    BLOCK_UNREAD = 1u << 4,  /* could not be read, which is not reported yet */
};

struct block_cache_slot {
    uint64_t off; /* 0: empty */
    uint8_t *bytes;
};
#define BLOCK_CACHE_SLOTS 8u

struct check {
    struct image *img;
    struct qk_io *file;     /* the image's file; during a repair the stage over it */
    struct qk_io *stage;    /* of a repair */
    struct qk_io *undo_log; /* NULL: opts->undo_file says where, if at all */
    uint32_t magic;
    struct header raw;      /* the fields as they are in the file */
    struct header view;     /* as they are read: with what others determine (header_mend) */
    const struct header *h; /* = &view */
    const struct geometry *g;
    const struct refcount_ops *ops;
    const struct qk_check_options *opts;
    struct qk_check_options fewer_choices; /* than those given, while c->opts is this */
    struct qk_check_result *result;
    struct sink sink;
    unsigned threads;

    uint64_t file_bytes;
    uint64_t clusters;      /* of the file, a partial last one included */
    bool data_file;         /* guest clusters lie in another file */
    bool compression_known; /* c->view says how clusters are compressed */
    bool
        sound_without_features; /* a look has found nothing wrong but features that are not known */
    const struct rollback *rollback; /* the disk goes back to this snapshot; NULL: it does not */
    struct way_back way_back;        /* what a look says about that */

    struct refmap refs;
    uint64_t *l1; /* active L1, host-endian */
    uint32_t l1_entries;
    struct l1_search *search; /* while it is on */
    uint64_t l1_found;        /* where a table lies that may be the active L1; 0: no such */
    bool header_only; /* its tables contradict the header: nothing else is written in this run */
    bool l1_bad;      /* the active L1 has entries to report */
    bool snapshot_l1_bad;         /* a snapshot's L1 has */
    bool tables_bad;              /* an L2 table has */
    atomic_uint_fast64_t orphan;  /* the lowest leaked L2 table so far */
    bool wild_table;              /* a cluster that an L1 entry names holds no table */
    struct l2_vec tables;         /* sorted by cluster once roots is done */
    struct u64_vec snapshot_l1;   /* pairs: offset, bytes */
    struct u64_vec snapshot_kept; /* pairs: offset and bytes of the entries that can be used */
    struct snapshot_range *snapshot_ranges;        /* their L1 tables by place */
    struct refmap_span snapshot_old, snapshot_new; /* clusters of the table; the new one */

    struct u64_vec reftable;     /* host-endian */
    uint8_t *blocks;             /* enum block_state | block_flag, for each entry of reftable */
    struct u64_vec block_places; /* clusters of the blocks that are counted, ascending */
    bool copied_suspect;         /* some COPIED flag may be wrong */
    bool tail_mismatch;          /* clusters in use behind what the refcount table covers */
    bool table_lost;             /* there, refcounts are not zero but unknown */
    uint64_t highest;            /* one more than the highest cluster in use */
    struct block_cache_slot cache[BLOCK_CACHE_SLOTS];

    unsigned actions;         /* what is to be done: enum action */
    bool wanting;             /* a report asks only whom it will tell about */
    struct shared_vec shared; /* and this is who shares then */
    struct snapshot_text label, user_labels[QK_USERS_LISTED];
    struct bitmap_vec bitmaps;           /* entries of the directory */
    struct u64_vec bitmap_faults;        /* where words of their tables are damaged, ascending */
    struct bitmaps_extension bitmap_dir; /* as the header names it; zero: none that can be */
    uint32_t bitmaps_kept;
    uint64_t bitmaps_bytes; /* of the kept entries */
    bool bitmaps_lost;      /* the directory cannot be followed */
    bool bitmaps_uncounting;
    enum bitmaps_way bitmaps_way;  /* what becomes of them in this repair */
    struct refmap_span bitmap_new; /* the new directory */
    struct cut cut;
    struct lost_run_vec lost_runs;
    bool lost_more;                 /* than these */
    struct u64_vec snapshot_behind; /* pairs: L1 offset, entries; of what looks like more of them */
    uint32_t snapshots_found;       /* of these, those that are alive */
    bool snapshots_guessed;         /* refcounts do not say so: they are lost */
    uint32_t snapshots_more;        /* those that this run takes into the table */
    struct u64_vec snapshot_gone;   /* entries of snapshots whose L1 table cannot be found */
    struct cut_streams *cut_streams;
    uint64_t data_bytes; /* of the external data file; UINT64_MAX: none, or not known */
    bool guest_changes;  /* this repair changes what the guest reads: no bitmap knows of it */
    bool disk_resized;   /* and the size of its disk */
    bool spare; /* free clusters may belong to what was given up: new ones go behind the end */
    struct steps steps; /* the plan: how */
    struct lost lost_snapshots, lost_bitmaps;
    struct user_vec users; /* those that get copies, and who shares with them */
    uint64_t copy_from;    /* no free cluster before this one */
    unsigned epoch;
    uint64_t named_end;  /* entries that stay name clusters behind the file's end, up to this one */
    uint64_t named_from; /* and from this one on; 0: none are */
    bool no_growth;      /* the file was found to have no room to grow */
    bool no_room;        /* the file system has none */
    bool in_place;       /* nor where nothing is stored in it */
    bool out_of_room;    /* found out just now */

    pthread_mutex_t lock; /* result counters and progress while threads run */
    bool cancelled;
    uint64_t work_done, work_total;
    unsigned round, rounds; /* of the run, work_total each */
};

/* ---- parallel.c ---- */

/* Runs fn for items 0 to items - 1 on the check's threads, each with a scratch buffer of its own.
 * Ends at the first error, which it returns. */
struct parallel_job {
    uint64_t items;
    size_t scratch_bytes;
    int (*fn)(struct check *c, uint64_t item, void *scratch, struct qk_error *err);
    /* Tells the file what this item will read; called once for each, some items ahead. May be NULL.
     */
    void (*will_read)(struct check *c, uint64_t item);
};
int parallel_for(struct check *c, const struct parallel_job *job, struct qk_error *err);
/* Adds to the progress and asks whether to go on: -ECANCELED. MT-safe. */
int progress_add(struct check *c, uint64_t done, struct qk_error *err);
/* Is at `done` of `total` of the round that follows the look. Does not ask. */
void progress_write(struct check *c, uint64_t done, uint64_t total);

/* ---- range.c ---- */

/* Clusters of [off, off + bytes). False when the range ends a cluster or more past the file's end
 * (an image may end inside its last cluster). */
bool range_span(const struct check *c, uint64_t off, uint64_t bytes, struct refmap_span *span);
/* The end of the hole at `off`, or of the data there; `end` at most. MT-safe. */
uint64_t extent_end(const struct check *c, uint64_t off, uint64_t end, bool *hole);
/* Counts a reference to a range that is known to lie in the file. */
/* An entry that stays as it is names a range behind the file's end: nothing new is put there. */
void outside_named(struct check *c, uint64_t off, uint64_t bytes);
int count_inside(struct check *c, uint64_t off, uint64_t bytes, struct qk_error *err);
/* Counts `times` references to the range, or reports `outside`. */
struct root {
    uint64_t off, bytes, times;
    enum problem_id outside;
};
int count_root(struct check *c, const struct root *root, struct qk_error *err);

/* Calls fn for each piece of the file that is covered by a range (pairs of offset and bytes, in
 * any order, overlapping at will), with the number of ranges that cover it: every byte is read
 * once. Words are host-endian. */
struct sweep {
    struct u64_vec *ranges;
    enum problem_id unreadable; /* PROBLEM_COUNT: that is told already */
    bool drop;                  /* without fn: references are taken off, not counted */
    bool before;                /* what is read is as it was before this run changed it */
    int (*fn)(struct check *c, const uint64_t *words, size_t n, const struct root *piece,
              struct qk_error *err);
};
int sweep_ranges(struct check *c, const struct sweep *sweep, struct qk_error *err);
/* Counts a reference to each cluster for each of the ranges that touches it. */
int cover_ranges(struct check *c, struct u64_vec *ranges, struct qk_error *err);
/* Takes these references off again. */
int uncover_ranges(struct check *c, struct u64_vec *ranges, struct qk_error *err);

/* ---- lost.c ---- */

void lost_note(struct lost *lost, const char *name);
/* "snapshots 1 (a), 2 (b) and 3 more", of `count` in all; NULL: none. Valid as long as *lost. */
const char *lost_text(struct lost *lost, const char *kind, uint64_t count);

/* ---- lost.c ---- */

void lost_note(struct lost *lost, const char *name);
/* "snapshots 1 (a), 2 (b) and 3 more", of `count` in all; NULL: none. Valid as long as *lost. */
const char *lost_text(struct lost *lost, const char *kind, uint64_t count);

/* ---- cut.c ---- */

/* The range ends behind the file; one of no bytes is nowhere. */
bool cut_through(const struct check *c, uint64_t off, uint64_t bytes);
bool cut_table(const struct check *c, uint64_t cluster);
/* The cluster of guest data at `off` is there in part. */
bool cut_data(const struct check *c, uint64_t off);
/* The first entry of a table at `off` that is not all there. */
uint32_t cut_first_lost(const struct check *c, uint64_t off, uint32_t entry_bytes);
/* An L2 table as it was read: half an entry is none. */
void cut_clean(const struct check *c, uint64_t cluster, uint8_t *table);
/* A finding of this kind is about a range that leads behind the end. */
void cut_named(struct check *c, enum problem_id id, uint64_t off, uint64_t bytes);
/* The end lies in this compressed cluster, so that it cannot be read. MT-safe. */
bool cut_stream(const struct check *c, uint64_t off, uint64_t bytes);
/* A table that the end lies in. */
struct cut_off_table {
    enum problem_id id;
    uint64_t off, bytes, guest_off;
    uint32_t entry_bytes;
    bool active, alone; /* alone: nothing else lies in its clusters */
};
void cut_found(struct check *c, const struct cut_off_table *t);
/* An active L1 table of which not even the last cluster begins in the file. */
int cut_l1_count(struct check *c, struct qk_error *err);
int cut_report(struct check *c, struct qk_error *err);
bool cut_can_fill(const struct check *c);
int cut_fill(struct check *c, struct qk_error *err);
int cut_uncount(struct check *c, struct qk_error *err);

/* ---- cost.c ---- */

/* For findings that cost something of the guest, as they are reported. */
void cost_note(struct check *c, struct lost_run run);
int cost_tell(struct check *c, struct qk_error *err);

/* ---- header.c ---- */

int header_collect(struct check *c, struct qk_error *err);
/* Something is wrong that this run may not repair, and that leaves in doubt what all else means. */
bool header_refuses(struct check *c);
/* What c->view says of compression now, against the file. */
void compression_report(struct check *c);
int header_edit(struct check *c, struct qk_error *err);
/* What the file says about the table's place cannot be. */
bool l1_misplaced(const struct check *c);

/* ---- compression.c ---- */

/* Type and feature bit contradict each other: c->view gets what the compressed clusters say, and it
 * is reported. Relies on the L2 tables being known. */
int compression_judge(struct check *c, struct qk_error *err);
/* How a stream is compressed that begins with these four bytes: as the header says, or where it
 * contradicts itself, as the stream looks. */
enum compression_type compression_of(const struct check *c, const uint8_t *stream);

/* ---- l1_search.c ---- */

/* Looks through the file for the one table that can be the active L1 (check.l1_found), when the
 * header gives it no possible place; and uses it when that is allowed. Relies on the snapshots' L1
 * tables being known. */
struct l1_search;
int l1_search(struct check *c, struct qk_error *err);

/* ---- orphans.c ---- */

/* Looks for an L2 table among the leaked clusters, when nothing that was found explains one. */
int orphans_find(struct check *c, struct qk_error *err);

/* ---- roots.c, snapshots.c, bitmaps.c ---- */

int roots_collect(struct check *c, struct qk_error *err);
int snapshots_collect(struct check *c, struct qk_error *err);
int bitmaps_collect(struct check *c, struct qk_error *err);
/* As the directory has it; "" when it cannot be read. */
void bitmap_name(struct check *c, const struct bitmap_note *b, char name[BITMAP_NAME_MAX + 1]);
/* Drops those that cannot be used: before the refcounts, and after them. */
int bitmaps_drop(struct check *c, struct qk_error *err);
int bitmaps_link(struct check *c, struct qk_error *err);
/* Takes off what the tables of all bitmaps name, and these themselves; or those of the bad ones. */
int bitmaps_uncount(struct check *c, bool bad_only, struct qk_error *err);
/* Where the extension's data is in the file; 0: not where the header's layout says. */
uint64_t bitmaps_extension_place(const struct check *c);
/* Before what the guest reads changes: bitmaps that track changes (with `disabled_too` all) are
 * marked as in use, stable before what follows; where the directory cannot be written, the bit goes
 * that says that any are right. bitmaps_before_changes: when c->guest_changes asks for it. */
int check_distrust_bitmaps(struct check *c, bool disabled_too, struct qk_error *err);
int bitmaps_before_changes(struct check *c, struct qk_error *err);
/* ---- snapshots_judge.c ---- */

/* Why the entry at `off`, which lies in the file, cannot be one; NULL: it can. */
const char *snapshot_nonsense(const struct check *c, uint64_t off, const struct snapshot_fixed *f);
/* Its L1 table has room for the disk as it is now: then it may be the size of the disk in the entry
 * that is wrong. */
bool snapshot_of_this_disk(const struct check *c, const struct snapshot_fixed *f);
/* Behind the table that ends at `off`; later, which of them the header's count leaves out. */
int snapshots_behind_note(struct check *c, uint64_t off, struct qk_error *err);
int snapshots_behind_judge(struct check *c, struct qk_error *err);
void snapshots_behind_found(struct check *c, uint32_t count);

/* ---- snapshots.c ---- */

/* A table without what cannot be used: before the refcounts, after them, and instead of that. */
int snapshots_place(struct check *c, struct qk_error *err);
int snapshots_link(struct check *c, struct qk_error *err);
void snapshots_forget(struct check *c);
/* Takes references off each cluster of a range; lowers nothing yet. */
void references_drop(struct check *c, struct refmap_span span, uint64_t times);
bool file_can_grow(const struct check *c);
/* Clusters for something new behind the end of the file, counted: as references, and by a refcount
 * that is stable or by the new structure that this asks for. */
int clusters_place(struct check *c, uint64_t bytes, struct refmap_span *span, struct qk_error *err);
/* What an L1 entry is and what is wrong with it. */
struct l1_verdict {
    bool usable; /* names a table that can be read */
    unsigned problem_count;
    enum problem_id problems[2];
};
struct l1_verdict l1_judge(const struct check *c, uint64_t raw);
/* The same, of an entry of the active table. */
struct l1_verdict l1_judge_active(const struct check *c, uint64_t index, uint64_t raw);
/* Reports L1 entries and, in their order, the L2 tables that the walk has marked. */
int roots_report(struct check *c, struct qk_error *err);

/* ---- twice.c ---- */

/* With an external data file: of each L2 table that several active L1 entries name, which one of
 * them its entries fit. Relies on the tables being known. */
int twice_named(struct check *c, struct qk_error *err);

/* ---- walk.c ---- */

int walk_tables(struct check *c, struct qk_error *err);
/* Sorts the tables and makes one of those that are the same. */
void tables_compact(struct l2_vec *v);
/* NULL: no such table */
struct l2_table *table_find(const struct check *c, uint64_t cluster);

/* What one L2 entry is and what is wrong with it. */
#define VERDICT_MAX 4u
struct l2_verdict {
    bool allocated, compressed;
    bool counted; /* bytes [off, off + bytes) of this file are referenced */
    uint64_t off, bytes;
    unsigned problem_count;
    enum problem_id problems[VERDICT_MAX];
};
/* guest: where the entry's cluster is on the disk; QK_OFFSET_NONE: not known. */
void l2_judge(const struct check *c, struct l2_entry e, uint64_t guest, struct l2_verdict *v);

/* ---- table_report.c ---- */

int table_report(struct check *c, struct l2_table *t, struct qk_error *err);
/* Rewrites entries whose repair needs no decision. */
int table_edit(struct check *c, struct l2_table *t, void *buf, struct qk_error *err);
uint64_t table_guest_off(const struct check *c, const struct l2_table *t, uint32_t index);

/* The same, or the place in a snapshot that has the table. */
uint64_t table_place(const struct check *c, const struct l2_table *t, uint32_t index);

/* ---- users.c ---- */

int snapshot_ranges_init(struct check *c, struct qk_error *err);
/* Whose L1 table has these bytes. */
struct owner snapshot_at(const struct check *c, uint64_t off);
bool in_snapshot_l1(const struct check *c, uint64_t off);
void snapshot_label(struct check *c, uint16_t snapshot, struct snapshot_text *text);
/* The same, of the entry at this place in the file; and the size of its disk. */
void snapshot_entry_label(struct check *c, uint64_t off, struct snapshot_text *text);
uint64_t snapshot_disk_bytes(struct check *c, uint64_t entry_off);
/* Asks for the users of a cluster; finds them. */
int users_want(struct check *c, uint64_t cluster, struct qk_error *err);
int users_find(struct check *c, struct qk_error *err);
/* What the findings that follow concern. */
void sink_of_snapshot(struct check *c, uint16_t snapshot);
void sink_of_cluster(struct check *c, uint64_t cluster);
void sink_of_nothing(struct check *c);

/* ---- shared.c ---- */

/* Tells of the image's own tables that lie in a cluster with further users. While c->wanting, asks
 * for these users. */
void shared_report(struct check *c);

/* ---- refblocks.c, compare.c ---- */

int refblocks_collect(struct check *c, struct qk_error *err);
uint64_t block_clusters(const struct check *c); /* refcounts in one block */
/* The next block index from b on that has a block or clusters in use; UINT64_MAX: none. */
uint64_t block_next(const struct check *c, uint64_t b);
enum block_state block_state(const struct check *c, uint64_t b);
/* A block lies in the cluster, of this refcount table; whether or not it is a good one. */
bool block_at(const struct check *c, uint64_t cluster);
int compare_run(struct check *c, struct qk_error *err);
/* The refcount in the file. -ENOENT: its block is damaged or unreadable, which is reported. */
int stored_refcount(struct check *c, uint64_t cluster, uint64_t *value, struct qk_error *err);
void block_cache_drop(struct check *c);
/* What sixteen equal refcounts look like in a block, for counts 0 to 3. */
struct patterns {
    uint8_t bytes[4][128];
    size_t group_bytes;
};
void patterns_init(const struct check *c, struct patterns *p);
/* The count that all clusters of a group share, at most 3 and as the width allows, with its raw
 * word; -1: they differ. */
int group_value(const struct check *c, uint64_t first, uint64_t *word);
/* Clusters in a row of block b whose refcounts differ from their counts, all in the same way. */
struct refcount_run {
    uint64_t first, clusters; /* in the block */
    uint64_t stored, count;
};
/* The next such run behind *run, of the block's first n clusters; block NULL: all are zero. */
bool refcount_run_next(const struct check *c, uint64_t b, const uint8_t *block, uint64_t n,
                       struct refcount_run *run);
/* Where a cluster's refcount is in the file; QK_OFFSET_NONE: there is no block. */
uint64_t refcount_place(const struct check *c, uint64_t cluster);
enum problem_id refcount_problem(uint64_t stored, uint64_t reference);
/* Some cluster has a mark that does not fit its count: with refcounts that equal the counts, COPIED
 * flags are wrong. */
bool marks_suspect(const struct check *c);
/* The reference count as a refcount of this width can express it. */
uint64_t reference_of(const struct check *c, uint64_t cluster);

/* ---- plan.c, apply.c, rebuild.c, copied.c ---- */

int plan_decide(struct check *c, struct qk_error *err);
/* The refcounts of block b are lost: those that are read as zero, too. */
bool block_unknown(const struct check *c, uint64_t b);
/* An L1 entry names a wrong cluster of the file. */
bool tables_wrong(const struct check *c);
/* What a refcount is to become under the plan. */
uint64_t plan_target(const struct check *c, uint64_t cluster, uint64_t stored);
int apply_refcounts(struct check *c, struct qk_error *err);
int apply_edits(struct check *c, struct qk_error *err);
int rebuild_run(struct check *c, struct qk_error *err);
int copied_run(struct check *c, struct qk_error *err);
/* The same against what was counted, before the refcounts are written: flags only go. */
int copied_expect(struct check *c, struct qk_error *err);
/* Lowers what is too high in place. */
int refcounts_lower(struct check *c, struct qk_error *err);

/* ---- copies.c ---- */

/* Before the refcounts: makes copies. After them: names them. Instead of that: gives them up. */
int copies_place(struct check *c, struct qk_error *err);
int copies_link(struct check *c, struct qk_error *err);
void copies_forget(struct check *c);
/* One of the image's own tables lies there. */
bool is_metadata(const struct check *c, uint64_t cluster);

/* ---- steps.c ---- */

/* Writes as a step of the plan, of which `what` says action, structure, count and loss. */
struct plan_bytes {
    uint64_t off;
    const void *bytes;
    size_t len;
};
int plan_write(struct check *c, const struct step *what, const struct plan_bytes *w,
               struct qk_error *err);
/* A step that writes nothing itself. */
int plan_note(struct check *c, const struct step *step, struct qk_error *err);
/* Ends an epoch: what was written before is stable before what comes after is written. */
int plan_barrier(struct check *c, struct qk_error *err);
/* Hands the steps on. */
int plan_tell(struct check *c, struct qk_error *err);
/* Writes the part of a table that differs from `old`; both have `bytes` bytes at `off`. Entries of
 * `entry_bytes` that change are counted. */
struct table_write {
    uint64_t off;
    size_t bytes, entry_bytes;
    const void *old, *new;
};
int write_changed(struct check *c, const struct step *what, const struct table_write *w,
                  struct qk_error *err);
/* Carries the stage out, saving what it overwrites. */
int plan_carry_out(struct check *c, struct qk_error *err);

#endif
