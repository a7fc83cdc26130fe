/*
 * problem.c - the table of problems, and the sink: counting of findings. Called from one thread
 * at a time. Promises that result->corruptions, leaks and check_errors are what is still open.
 */
#include "check/problem.h"
#include "base/checked.h"

#include <stdarg.h>

const struct problem_info problems[PROBLEM_COUNT] = {
#define PROBLEM(number_, id_, name_, structure_, severity_, repair_, actions_, format_, why_)      \
    [PROBLEM_##id_] = {.number = (number_),                                                        \
                       .name = (name_),                                                            \
                       .structure = (structure_),                                                  \
                       .format = format_,                                                          \
                       .explanation = why_,                                                        \
                       .severity = QK_SEVERITY_##severity_,                                        \
                       .repair = QK_REPAIR_##repair_,                                              \
                       .actions = (actions_)},
#include "check/problems.def"
#undef PROBLEM
};

/* Which of enum qk_allow a repair that chooses needs; 0: there is none. */
static const uint8_t choices[PROBLEM_COUNT] = {
    [PROBLEM_L1_RESERVED] = QK_ALLOW_ENTRIES,
    [PROBLEM_L1_UNALIGNED] = QK_ALLOW_ENTRIES,
    [PROBLEM_L1_OUTSIDE] = QK_ALLOW_ENTRIES,
    [PROBLEM_L1_TABLE_TWICE] = QK_ALLOW_ENTRIES,
    [PROBLEM_L1_TABLE_OUTSIDE] = QK_ALLOW_L1,
    [PROBLEM_L1_CUT] = QK_ALLOW_L1,
    [PROBLEM_L1_RUIN] = QK_ALLOW_L1,
    [PROBLEM_L2_ORPHAN] = QK_ALLOW_L1,
    [PROBLEM_L2_CUT] = QK_ALLOW_ENTRIES,
    [PROBLEM_L2_COMPRESSED_CUT] = QK_ALLOW_ENTRIES,
    [PROBLEM_L2_DATA_FILE_CUT] = QK_ALLOW_ENTRIES,
    [PROBLEM_L2_RESERVED] = QK_ALLOW_ENTRIES,
    [PROBLEM_L2_UNALIGNED] = QK_ALLOW_ENTRIES,
    [PROBLEM_L2_OUTSIDE] = QK_ALLOW_ENTRIES,
    [PROBLEM_L2_COMPRESSED_DATA_FILE] = QK_ALLOW_ENTRIES,
    [PROBLEM_L2_COMPRESSED_BITMAP] = QK_ALLOW_ENTRIES,
    [PROBLEM_L2_BITMAP_CONTRADICTS] = QK_ALLOW_ENTRIES,
    [PROBLEM_L2_BITMAP_UNALLOCATED] = QK_ALLOW_ENTRIES,
    [PROBLEM_L2_DATA_FILE_OFFSET] = QK_ALLOW_ENTRIES,
    [PROBLEM_L1_TABLE_MISPLACED] = QK_ALLOW_HEADER,
    [PROBLEM_SNAPSHOT_ENTRY] = QK_ALLOW_SNAPSHOTS,
    [PROBLEM_SNAPSHOT_COUNT] = QK_ALLOW_SNAPSHOTS,
    [PROBLEM_BACKING_OUTSIDE] = QK_ALLOW_HEADER,
    [PROBLEM_BACKING_INSIDE] = QK_ALLOW_HEADER,
    [PROBLEM_DISK_SIZE] = QK_ALLOW_HEADER,
    [PROBLEM_VERSION] = QK_ALLOW_HEADER,
    [PROBLEM_CLUSTER_BITS] = QK_ALLOW_HEADER,
    [PROBLEM_FEATURE_UNKNOWN] = QK_ALLOW_HEADER,
    [PROBLEM_FEATURE_EXTENDED_L2] = QK_ALLOW_HEADER,
    [PROBLEM_FEATURE_DATA_FILE] = QK_ALLOW_HEADER,
    [PROBLEM_CRYPT_METHOD] = QK_ALLOW_HEADER,
    [PROBLEM_EXTENSION_DAMAGED] = QK_ALLOW_HEADER,
    [PROBLEM_SNAPSHOT_TABLE] = QK_ALLOW_SNAPSHOTS,
    [PROBLEM_SNAPSHOT_L1_UNALIGNED] = QK_ALLOW_SNAPSHOTS,
    [PROBLEM_SNAPSHOT_L1_LARGE] = QK_ALLOW_SNAPSHOTS,
    [PROBLEM_SNAPSHOT_DATA_FILE] = QK_ALLOW_SNAPSHOTS,
    [PROBLEM_SNAPSHOT_L1_OUTSIDE] = QK_ALLOW_SNAPSHOTS,
    [PROBLEM_BITMAP_DIRECTORY] = QK_ALLOW_BITMAPS,
    [PROBLEM_BITMAP_TABLE] = QK_ALLOW_BITMAPS,
    [PROBLEM_BITMAP_ENTRY] = QK_ALLOW_BITMAPS,
    [PROBLEM_REFCOUNT_LOW] = QK_ALLOW_COPIES,
    [PROBLEM_METADATA_SHARED] = QK_ALLOW_COPIES,
    [PROBLEM_SNAPSHOT_SOUND] = QK_ALLOW_ROLLBACK,
    [PROBLEM_ROLLBACK_LOSS] = QK_ALLOW_ROLLBACK,
};

bool problem_fixable(const struct qk_check_options *opts, enum problem_id id)
{
    const struct problem_info *p = &problems[id];
    unsigned need = p->severity == QK_SEVERITY_LEAK ? QK_FIX_LEAKS : QK_FIX_ERRORS;
    return (p->repair == QK_REPAIR_SAFE || (opts->allow & choices[id])) && (opts->fix & need);
}

bool problem_chosen(const struct qk_check_options *opts, enum problem_id id)
{
    return problems[id].repair != QK_REPAIR_SAFE && problem_fixable(opts, id);
}

void sink_refuse(struct sink *s, enum problem_id id)
{
    /* Features that are not known go only where nothing else is wrong. */
    bool hopeless = !choices[id] || id == PROBLEM_FEATURE_UNKNOWN;
    if (hopeless)
        s->refusal = REFUSED_ANYHOW;
    else if (!s->refusal)
        s->refusal = REFUSED_WITHOUT_HEADER;
}

/* Nothing is repaired while it is not sure what the tables mean, whatever else is allowed. */
static unsigned refused_choices(const struct sink *s, enum problem_id id, enum qk_repair *repair)
{
    const bool safe = *repair == QK_REPAIR_SAFE;
    if (s->refusal == REFUSED_ANYHOW || *repair == QK_REPAIR_NONE) {
        *repair = QK_REPAIR_NONE;
        return 0;
    }
    if (safe)
        *repair = QK_REPAIR_ASK;
    return QK_ALLOW_HEADER | (safe ? 0u : choices[id]);
}

/* An L1 table that lies behind the end is given up, or else named where the search has found it;
 * entries are given up beside a table that is a ruin only with it. */
unsigned problem_choices(const struct sink *s, enum problem_id id, enum qk_repair *repair)
{
    unsigned ruin = QK_ALLOW_ENTRIES | QK_ALLOW_L1;
    *repair = problems[id].repair;
    if (id == PROBLEM_L1_TABLE_OUTSIDE && s->seen[PROBLEM_L1_TABLE_MISPLACED]) {
        *repair = QK_REPAIR_ASK;
        return QK_ALLOW_HEADER;
    }
    if (s->refusal && id != PROBLEM_FEATURE_UNKNOWN && choices[id] != QK_ALLOW_ROLLBACK)
        return refused_choices(s, id, repair);
    return s->seen[PROBLEM_L1_RUIN] && (choices[id] & ruin) ? ruin : choices[id];
}

static uint64_t *open_counter(struct qk_check_result *r, enum qk_severity severity)
{
    switch (severity) {
    case QK_SEVERITY_LEAK:
        return &r->leaks;
    case QK_SEVERITY_CORRUPTION:
        return &r->corruptions;
    case QK_SEVERITY_ERROR:
        return &r->check_errors;
    case QK_SEVERITY_NONE:
        break;
    }
    return NULL;
}

static void note(struct sink *s, enum problem_id id, uint64_t n)
{
    s->seen[id] += n;
    s->open[id] += n;
    uint64_t *counter = open_counter(s->result, problems[id].severity);
    if (counter)
        *counter += n;
}

void sink_found(struct sink *s, const struct finding *f, ...)
{
    note(s, f->id, 1);
    const unsigned announced_by_repair = ACT_EDIT_L1 | ACT_EDIT_L2 | ACT_EDIT_HEADER;
    if ((problems[f->id].actions & announced_by_repair) && problem_fixable(s->opts, f->id))
        return;
    va_list args;
    va_start(args, f);
    sink_tell(s, f, false, NULL, args);
    va_end(args);
}

static void close_finding(struct sink *s, enum problem_id id, uint64_t n)
{
    enum qk_severity severity = problems[id].severity;
    uint64_t *counter = open_counter(s->result, severity);
    if (counter)
        *counter -= n;
    s->open[id] -= n;
    if (severity == QK_SEVERITY_LEAK)
        s->result->leaks_fixed += n;
    else if (severity == QK_SEVERITY_CORRUPTION)
        s->result->corruptions_fixed += n;
}

void sink_repaired(struct sink *s, const struct finding *f, ...)
{
    if (!s->open[f->id])
        note(s, f->id, 1);
    close_finding(s, f->id, 1);
    va_list args;
    va_start(args, f);
    sink_tell(s, f, true, NULL, args);
    va_end(args);
}

void sink_declined(struct sink *s, const struct finding *f, ...)
{
    va_list args;
    va_start(args, f);
    sink_tell(s, f, false, NULL, args);
    va_end(args);
}

static void tell_these(struct sink *s, const struct finding *f, bool repaired,
                       const struct sink_run *run, ...)
{
    va_list args;
    va_start(args, run);
    sink_tell(s, f, repaired, run, args);
    va_end(args);
}

static void tell_run(struct sink *s, const struct finding *f, bool repaired, struct sink_run run)
{
    tell_these(s, f, repaired, &run, run.cluster, f->found, f->expected);
}

void sink_found_run(struct sink *s, const struct finding *f, struct sink_run run)
{
    note(s, f->id, run.clusters);
    tell_run(s, f, false, run);
}

void sink_repaired_run(struct sink *s, const struct finding *f, struct sink_run run)
{
    if (s->open[f->id] < run.clusters)
        note(s, f->id, run.clusters - s->open[f->id]);
    close_finding(s, f->id, run.clusters);
    tell_run(s, f, true, run);
}

void sink_declined_run(struct sink *s, const struct finding *f, struct sink_run run)
{
    tell_run(s, f, false, run);
}

void sink_settle(struct sink *s, enum problem_id id)
{
    close_finding(s, id, s->open[id]);
}

void sink_settle_one(struct sink *s, enum problem_id id)
{
    if (s->open[id])
        close_finding(s, id, 1);
}

void sink_message(struct sink *s, const char *line)
{
    sink_flush(s);
    if (s->opts->on_message)
        s->opts->on_message(s->opts->opaque, line);
}
