/*
 * problem.h - the table of problems (problems.def) as code, and the sink through which every
 * finding goes: it counts (problem.c), words and hands on (sink.c), and remembers how often each
 * problem was seen, which is what decide() (plan.h) works from.
 */
#ifndef QK_CHECK_PROBLEM_H
#define QK_CHECK_PROBLEM_H

#include "base/error.h"

#include <inttypes.h>
#include <stdarg.h>

enum problem_id {
#define PROBLEM(number_, id_, ...) PROBLEM_##id_,
#include "check/problems.def"
#undef PROBLEM
    PROBLEM_COUNT
};

/* What a repair of a problem does; with ACT_HOLD and ACT_KEEP what looks unreferenced may belong to
 * what is lost. */
enum action {
    ACT_NONE = 0,
    ACT_RAISE = 1u << 0,   /* raise refcounts in place */
    ACT_LOWER = 1u << 1,   /* lower refcounts in place */
    ACT_REBUILD = 1u << 2, /* write a new refcount structure */
    ACT_COPIED = 1u << 3,  /* correct COPIED flags */
    ACT_EDIT_L1 = 1u << 4, /* correct or clear L1 entries */
    ACT_EDIT_L2 = 1u << 5, /* correct or clear L2 entries */
    ACT_EDIT_HEADER = 1u << 6,
    ACT_HOLD = 1u << 7, /* free and reuse nothing */
    ACT_DROP_BITMAPS = 1u << 8,
    ACT_WRITE_SNAPSHOTS = 1u << 9, /* a new table, of the entries that can be used */
    ACT_FILL = 1u << 10,           /* lengthen the file to the end of the tables that it cuts */
    ACT_KEEP = 1u << 11,           /* free nothing that is counted; the rest may be reused */
    ACT_REFUSE = 1u << 15,         /* repair nothing: what is read may mean something else */
};

struct problem_info {
    uint32_t number;
    const char *name, *structure, *format, *explanation;
    enum qk_severity severity;
    enum qk_repair repair;
    unsigned actions;
};
extern const struct problem_info problems[PROBLEM_COUNT];

/* Where a finding is and what was expected there. */
struct finding {
    enum problem_id id;
    uint64_t file_off, guest_off; /* QK_OFFSET_NONE: none */
    uint64_t expected, found;
};

/* What one finding says beside what its kind says. */
struct told {
    enum problem_id id;
    bool repaired;
    enum qk_repair repair;
    unsigned allow;
    unsigned file_bit; /* refcounts may be narrower than a byte */
    uint64_t file_off, guest_off, guest_bytes, expected, found;
    uint64_t args[QK_RUN_NUMBERS]; /* of the problem's format */
    const char *snapshot, *snapshot_name, *bitmap;
};

/* By how much each finding of a run differs from the one before it. */
struct told_step {
    uint64_t file_bits, guest, found, args[QK_RUN_NUMBERS];
};

/* Findings that say the same in equal steps wait here until another comes (sink.c). */
struct told_run {
    uint64_t count; /* 0: none waits */
    struct told first, last;
    struct told_step step;
};

/* What this run repairs nothing for; the other findings need the same choice, or have no repair. */
enum refusal { REFUSED_NOT, REFUSED_WITHOUT_HEADER, REFUSED_ANYHOW };

struct sink {
    const struct qk_check_options *opts;
    struct qk_check_result *result;
    enum refusal refusal;
    uint64_t seen[PROBLEM_COUNT];
    uint64_t open[PROBLEM_COUNT]; /* seen and not repaired */
    /* Whom the next findings concern: who ends a name here calls sink_flush before. */
    const char *snapshot; /* id of the one that is looked at; NULL: none, or not known */
    const char *snapshot_name;
    const char *bitmap;
    uint64_t guest_off;   /* for findings that know none themselves */
    uint64_t range_bytes; /* of the guest, behind it; 0: an entry's worth */
    uint64_t disk_bytes, cluster_bytes, table_bytes; /* of the guest, behind an L2, an L1 entry */
    uint64_t refcount_bits;
    struct qk_cluster_user users[QK_USERS_LISTED];
    unsigned user_count;
    uint64_t user_total;
    struct told_run waiting;
};

/* A new finding. What this run will repair and announce then (edits) is counted only. The
 * arguments are those of the problem's format. */
void sink_found(struct sink *s, const struct finding *f, ...);
/* A finding is repaired: one that sink_found had before, or else one that is new. */
void sink_repaired(struct sink *s, const struct finding *f, ...);
/* Words a finding that sink_found only counted, and that cannot be repaired after all. */
void sink_declined(struct sink *s, const struct finding *f, ...);
/* The same for refcounts: a finding that `clusters` clusters in a row share, the first one
 * `cluster`. */
struct sink_run {
    uint64_t cluster, clusters;
};
void sink_found_run(struct sink *s, const struct finding *f, struct sink_run run);
void sink_repaired_run(struct sink *s, const struct finding *f, struct sink_run run);
void sink_declined_run(struct sink *s, const struct finding *f, struct sink_run run);
/* This problem keeps a run from repairing anything: before the first finding that is told. */
void sink_refuse(struct sink *s, enum problem_id id);
/* All open findings of this problem are repaired, without a line for each. */
void sink_settle(struct sink *s, enum problem_id id);
void sink_settle_one(struct sink *s, enum problem_id id);
void sink_message(struct sink *s, const char *line);
/* Hands on what waits: before anything else is told, and before what it names goes. */
void sink_flush(struct sink *s);

/* ---- between problem.c and sink.c ---- */

/* Which of enum qk_allow a repair that chooses needs (0: there is none), and what kind it is. */
unsigned problem_choices(const struct sink *s, enum problem_id id, enum qk_repair *repair);
/* A finding, or `run` of them, goes to who wants to hear of it. */
void sink_tell(struct sink *s, const struct finding *f, bool repaired, const struct sink_run *run,
               va_list args);

/* opts->fix asks for the repair of this problem, and it needs no decision, or opts->allow has it.
 */
bool problem_fixable(const struct qk_check_options *opts, enum problem_id id);
/* The same, and only because opts->allow has it: what the guest reads may change. */
bool problem_chosen(const struct qk_check_options *opts, enum problem_id id);

#endif
