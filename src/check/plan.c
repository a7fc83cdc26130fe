/*
 * plan.c - from findings to a plan: which kinds of repair this run does. One place decides; the
 * table of problems says what each problem needs. Upholds: nothing is freed, and no space reused,
 * while something that names clusters could not be read (ACT_HOLD).
 */
#include "base/checked.h"
#include "check/internal.h"

/* This pass counts what the snapshots name that the header leaves out: none of it looks free. */
static bool counted_in(const struct check *c, enum problem_id id)
{
    return id == PROBLEM_SNAPSHOT_COUNT && c->snapshots_more && !problem_fixable(c->opts, id);
}

static unsigned wanted_actions(const struct check *c)
{
    unsigned actions = ACT_NONE;
    for (unsigned id = 0; id < PROBLEM_COUNT; id++) {
        if (!c->sink.seen[id])
            continue;
        if (problem_fixable(c->opts, (enum problem_id)id))
            actions |= problems[id].actions & ~(unsigned)(ACT_HOLD | ACT_KEEP);
        else if (!counted_in(c, (enum problem_id)id))
            actions |= problems[id].actions & ACT_HOLD;
    }
    return actions;
}

/* Damage that makes lowering refcounts pointless: the allocator would run into it. */
static bool rebuild_needed(const struct check *c)
{
    return c->sink.seen[PROBLEM_REFCOUNT_ZERO] || c->sink.seen[PROBLEM_REFTABLE_RESERVED] ||
           c->sink.seen[PROBLEM_REFTABLE_UNALIGNED] || c->sink.seen[PROBLEM_REFBLOCK_SHARED] ||
           c->sink.seen[PROBLEM_REFTABLE_UNREADABLE] || c->sink.seen[PROBLEM_REFTABLE_RANGE] ||
           c->sink.seen[PROBLEM_REFTABLE_PLACE] || c->sink.seen[PROBLEM_REFCOUNT_ORDER];
}

/* Refcounts that the file does not give: a damaged block, or none where clusters are in use. */
bool block_unknown(const struct check *c, uint64_t b)
{
    enum block_state state = block_state(c, b);
    if (c->table_lost || b >= c->reftable.len)
        return c->table_lost || c->tail_mismatch;
    return state == BLOCK_BAD || (state == BLOCK_NONE && (c->blocks[b] & BLOCK_MISMATCH));
}

static bool blocks_unknown(const struct check *c)
{
    for (size_t i = 0; i < c->reftable.len; i++) {
        if (block_unknown(c, i))
            return true;
    }
    return c->tail_mismatch || c->sink.seen[PROBLEM_REFTABLE_UNREADABLE] ||
           c->sink.seen[PROBLEM_REFTABLE_OUTSIDE] || c->sink.seen[PROBLEM_REFTABLE_RANGE] ||
           c->sink.seen[PROBLEM_REFTABLE_PLACE] || c->sink.seen[PROBLEM_REFCOUNT_ORDER];
}

/* What all else means was chosen in this run: if the choice is wrong, or bytes of the guest were
 * taken for a table, all that is true looks leaked. */
static bool meaning_chosen(const struct check *c)
{
    static const enum problem_id ids[] = {PROBLEM_L1_TABLE_MISPLACED, PROBLEM_VERSION,
                                          PROBLEM_CLUSTER_BITS,       PROBLEM_FEATURE_EXTENDED_L2,
                                          PROBLEM_FEATURE_DATA_FILE,  PROBLEM_DISK_SIZE};
    for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
        if (c->sink.seen[ids[i]])
            return true;
    }
    return false;
}

/* An L1 entry is damaged, though it names a cluster of the file: what lies there is no table, or
 * something else as well, or the table of another entry. The true table and what it names look
 * leaked then. (Where the refcount table claims the cluster, too, its content tells which is
 * wrong.)
 */
bool tables_wrong(const struct check *c)
{
    bool wrong = c->wild_table;
    for (size_t i = 0; i < c->tables.len && !wrong; i++) {
        const struct l2_table *t = &c->tables.ptr[i];
        wrong = t->active > 1 ||
                (refmap_count(&c->refs, t->cluster) > t->refs && !block_at(c, t->cluster));
    }
    return wrong;
}

static bool tables_hold(const struct check *c)
{
    return tables_wrong(c) && !c->rollback && !(c->opts->allow & QK_ALLOW_ENTRIES);
}

/* What lies behind the end of a cut file is what its entries name, and no leak. */
static bool cut_explains(const struct check *c)
{
    return c->cut.sure || c->cut.reach <= c->cut.counted << c->g->cluster_bits;
}

/* Entries with this problem lead nowhere; a cluster that looks leaked may be what they named. Not
 * with an external data file, which has them, nor in the run that goes back: what looks leaked then
 * is what the damaged tables named. */
static bool entries_astray(const struct check *c, enum problem_id id)
{
    return c->sink.seen[id] && (problems[id].actions & ACT_KEEP) && !c->data_file && !c->rollback &&
           !(id == PROBLEM_L2_OUTSIDE && cut_explains(c));
}

static bool entries_keep(const struct check *c)
{
    for (unsigned id = 0; id < PROBLEM_COUNT; id++) {
        if (entries_astray(c, (enum problem_id)id) &&
            !problem_fixable(c->opts, (enum problem_id)id))
            return true;
    }
    return false;
}

/* What this run gives up is not overwritten in it, nor what refcounts do not tell of. */
static bool spare_given_up(const struct check *c)
{
    bool spare = false, room = file_can_grow(c) && !c->no_growth;
    for (unsigned id = 0; id < PROBLEM_COUNT; id++) {
        spare |= c->sink.seen[id] && (problems[id].actions & ACT_HOLD) &&
                 !counted_in(c, (enum problem_id)id);
        spare |= room && entries_astray(c, (enum problem_id)id) &&
                 (problem_fixable(c->opts, (enum problem_id)id) || blocks_unknown(c));
    }
    return spare;
}

static void keep_leaks(struct check *c)
{
    c->actions = (c->actions & ~(unsigned)ACT_LOWER) | ACT_HOLD;
    c->result->leaks_kept = true;
    if (c->sink.seen[PROBLEM_REFCOUNT_HIGH])
        sink_message(&c->sink, "Leaked clusters are kept: they may belong to what is damaged");
}

int plan_decide(struct check *c, struct qk_error *err)
{
    bool keep = entries_keep(c);
    c->actions = wanted_actions(c);
    c->spare |= spare_given_up(c);
    c->result->leaks_kept =
        keep || (c->actions & ACT_HOLD) || (c->sink.seen[PROBLEM_REFCOUNT_HIGH] && tables_hold(c));
    if (!c->opts->fix)
        return 0;
    if (rebuild_needed(c) && !(c->opts->fix & QK_FIX_ERRORS)) {
        c->result->check_errors++;
        sink_message(&c->sink, "ERROR need to rebuild refcount structures");
        return qk_fail_at(err, -EIO, WHERE(c->file->name, "refcount table", c->h->reftable_off),
                          "need to rebuild refcount structures, which only a repair of all "
                          "errors does");
    }
    if ((c->actions & ACT_FILL) && !cut_can_fill(c))
        c->actions = (c->actions & ~(unsigned)ACT_FILL) | ACT_HOLD;
    if (tables_hold(c) || (meaning_chosen(c) && c->sink.seen[PROBLEM_REFCOUNT_HIGH]))
        c->actions |= ACT_HOLD;
    if (counted_in(c, PROBLEM_SNAPSHOT_COUNT))
        sink_message(&c->sink, "The new refcounts count the snapshots that the header leaves out: "
                               "what they name may be theirs");
    bool hold = c->actions & ACT_HOLD;
    if (hold || keep)
        keep_leaks(c);
    /* Refcounts of zero where there are references show that the others tell nothing either. */
    bool unknown = blocks_unknown(c) || c->sink.seen[PROBLEM_REFCOUNT_ZERO];
    if (hold && (c->actions & ACT_REBUILD) && unknown) {
        c->actions = (c->actions & ~(unsigned)ACT_REBUILD) | ACT_RAISE;
        sink_message(&c->sink, "The refcount structure is not rebuilt: what is damaged may own "
                               "clusters that look free");
    }
    return 0;
}

uint64_t plan_target(const struct check *c, uint64_t cluster, uint64_t stored)
{
    uint64_t reference = reference_of(c, cluster);
    if (reference > stored)
        return c->actions & (ACT_RAISE | ACT_REBUILD) ? reference : stored;
    return c->actions & ACT_LOWER ? reference : stored;
}
