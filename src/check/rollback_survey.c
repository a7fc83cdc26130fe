/*
 * rollback_survey.c - whether the active tables are damaged, and which snapshots the disk could be
 * brought back to: those whose own L1 and L2 tables are sound. Runs at the end of a look, when all
 * is counted and reported; without damage to the active tables it reads nothing. A snapshot is
 * judged by its L1 table and what the walk found in its L2 tables; that nothing else lies in them
 * is known for certain when the run that rolls back has counted everything anew (rollback_judge).
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"
#include "check/rollback.h"
#include "format/snapshot.h"

#include <stdio.h>
#include <time.h>

#define L1_CHUNK 512u

/* ---- the active tables ---- */

static bool hurts(const struct l1_verdict *v)
{
    for (unsigned i = 0; i < v->problem_count; i++) {
        if (problems[v->problems[i]].repair != QK_REPAIR_SAFE)
            return true;
    }
    return false;
}

/* An active entry names a cluster of it. */
static bool marked(const struct check *c, struct refmap_span span)
{
    for (uint64_t i = 0; i < span.count; i++) {
        if (refmap_marks(&c->refs, span.first + i))
            return true;
    }
    return false;
}

static bool range_marked(const struct check *c, uint64_t off, uint64_t bytes)
{
    struct refmap_span span;
    return range_span(c, off, bytes, &span) && marked(c, span);
}

static bool any_seen(const struct check *c, enum problem_id first, enum problem_id last)
{
    for (unsigned id = first; id <= last; id++) {
        if (c->sink.seen[id])
            return true;
    }
    return false;
}

/* Tables with entries that name metadata are no better than those with impossible ones. As far as
 * users were listed: the run that goes back looks at all of them. */
static void tables_of_shared_metadata(struct check *c)
{
    for (size_t i = 0; i < c->shared.len; i++) {
        const struct shared_cluster *s = &c->shared.ptr[i];
        for (unsigned u = 0; u < s->listed && is_metadata(c, s->cluster); u++) {
            struct l2_table *t = table_find(c, s->users[u].file_off >> c->g->cluster_bits);
            if (t && t->cluster != s->cluster)
                t->flags |= L2_HURT;
        }
    }
}

/* Tables that overlap would be looked at again and again, and none of them can be sound. */
static bool l1_tables_fit(const struct check *c)
{
    uint64_t sum = 0;
    for (size_t i = 0; i + 1 < c->snapshot_l1.len; i += 2)
        sum += round_up(c->snapshot_l1.ptr[i + 1], c->g->cluster_bytes);
    return sum <= round_up(c->file_bytes, c->g->cluster_bytes);
}

/* A structure that is damaged itself may be what lies in the wrong place. */
static bool metadata_named(const struct check *c)
{
    if (range_marked(c, c->h->l1_off, (uint64_t)c->l1_entries * 8))
        return true;
    if (!any_seen(c, PROBLEM_REFTABLE_RESERVED, PROBLEM_REFCOUNT_ORDER) &&
        range_marked(c, c->h->reftable_off,
                     (uint64_t)c->h->reftable_clusters << c->g->cluster_bits))
        return true;
    if (any_seen(c, PROBLEM_SNAPSHOT_TABLE, PROBLEM_SNAPSHOT_L1_OUTSIDE) || c->snapshot_l1_bad ||
        !l1_tables_fit(c))
        return false;
    if (marked(c, c->snapshot_old))
        return true;
    for (size_t i = 0; i + 1 < c->snapshot_l1.len; i += 2) {
        if (range_marked(c, c->snapshot_l1.ptr[i], c->snapshot_l1.ptr[i + 1]))
            return true;
    }
    return false;
}

static bool table_contested(const struct check *c, const struct l2_table *t)
{
    unsigned marks = refmap_marks(&c->refs, t->cluster);
    if (!t->active)
        return marks && !(t->flags & L2_BAD);
    bool more = refmap_count(&c->refs, t->cluster) > t->refs;
    return t->active > 1 || marks || (more && (c->rollback || !t->snapshot));
}

static bool tables_damaged(const struct check *c)
{
    for (size_t i = 0; i < c->tables.len; i++) {
        const struct l2_table *t = &c->tables.ptr[i];
        bool hurt = (t->flags & (L2_UNREAD | L2_HURT)) || cut_table(c, t->cluster);
        if ((t->active && hurt) || table_contested(c, t))
            return true;
    }
    return false;
}

/* Two entries of the active tables name one cluster that fewer are counted for. */
static bool shared_by_active(const struct check *c)
{
    for (size_t i = 0; i < c->shared.len; i++) {
        const struct shared_cluster *s = &c->shared.ptr[i];
        unsigned active = 0;
        for (unsigned u = 0; u < s->listed; u++)
            active += s->users[u].guest_off != QK_OFFSET_NONE && !s->users[u].snapshot;
        if (active > 1 && refmap_marks(&c->refs, s->cluster))
            return true;
    }
    return false;
}

static bool active_damaged(const struct check *c)
{
    const uint64_t *seen = c->sink.seen;
    /* The table was found, and naming it gives up nothing. */
    if (seen[PROBLEM_L1_TABLE_MISPLACED] && (c->opts->allow & QK_ALLOW_HEADER))
        return false;
    if (seen[PROBLEM_L1_TABLE_OUTSIDE] || seen[PROBLEM_L1_TABLE_MISPLACED] ||
        seen[PROBLEM_L1_TABLE_LOST] || seen[PROBLEM_L1_RUIN] || seen[PROBLEM_L1_OF_SNAPSHOT])
        return true;
    if (seen[PROBLEM_L1_UNREADABLE] && c->h->l1_entries && !c->l1_entries)
        return true;
    if (!c->rollback && cut_through(c, c->h->l1_off, (uint64_t)c->h->l1_entries * 8))
        return true;
    for (uint32_t i = 0; i < c->l1_entries; i++) {
        struct l1_verdict v = l1_judge(c, c->l1[i]);
        if (hurts(&v))
            return true;
    }
    return tables_damaged(c) || metadata_named(c) || shared_by_active(c);
}

/* ---- a snapshot ---- */

static bool words_sound(struct check *c, const uint64_t *words, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t raw = be64toh(words[i]);
        struct l1_verdict v = l1_judge(c, raw);
        if (hurts(&v))
            return false;
        const struct l2_table *t =
            v.usable ? table_find(c, l1_entry_host(raw) >> c->g->cluster_bits) : NULL;
        if (!v.usable)
            continue;
        bool alone = t && (refmap_count(&c->refs, t->cluster) == t->refs ||
                           refmap_marks(&c->refs, t->cluster));
        if (!alone || (t->flags & (L2_UNREAD | L2_HURT)) || cut_table(c, t->cluster))
            return false;
    }
    return true;
}

/* The disk itself may have that table, which it then leaves. */
static bool l1_cluster_sound(const struct check *c, const struct rollback *r, uint64_t cluster)
{
    uint64_t active = c->h->l1_off == r->l1_off ? (uint64_t)c->l1_entries * 8 : 0;
    bool both = (cluster << c->g->cluster_bits) - r->l1_off < active;
    return refmap_count(&c->refs, cluster) == 1u + both || refmap_marks(&c->refs, cluster);
}

static const char *l1_fault(struct check *c, const struct rollback *r)
{
    uint64_t words[L1_CHUNK], bytes = (uint64_t)r->l1_entries * 8;
    struct refmap_span span;
    if (!range_span(c, r->l1_off, bytes, &span) || cut_through(c, r->l1_off, bytes))
        return "its L1 table reaches past the end of the file";
    for (uint64_t i = 0; i < span.count; i++) {
        if (!l1_cluster_sound(c, r, span.first + i))
            return "something else lies in its L1 table";
    }
    for (uint64_t at = 0; at < bytes; at += sizeof(words)) {
        size_t len = (size_t)min_u64(sizeof(words), bytes - at);
        if (io_read(c->file, r->l1_off + at, words, len, NULL) < 0)
            return "its L1 table cannot be read";
        if (!words_sound(c, words, len / 8))
            return "its tables are damaged, too";
    }
    return NULL;
}

static const char *size_fault(const struct check *c, const struct rollback *r)
{
    if (r->disk_bytes > INT64_MAX ||
        geometry_l1_entries(c->g, r->disk_bytes) * 8 > QCOW2_MAX_L1_BYTES)
        return "its disk size is impossible";
    if (!r->l1_entries && r->disk_bytes)
        return "it has no L1 table";
    if (c->h->version < 3 && r->disk_bytes != c->h->size_bytes)
        return "its disk has another size, which images of version 2 cannot go back to";
    return NULL;
}

static void name_it(struct check *c, struct rollback *r)
{
    time_t date = (time_t)r->date_sec;
    struct snapshot_text label;
    struct tm tm = {0};
    char when[40] = "";
    snapshot_label(c, r->snapshot, &label);
    if (localtime_r(&date, &tm))
        strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &tm);
    snprintf(r->since, sizeof(r->since), ROLLBACK_SINCE "%.30s (%.80s) of %s", label.id, label.name,
             when);
}

/* Fills *r from entry i of those that can be used. */
static const char *candidate_fault(struct check *c, size_t i, struct rollback *r)
{
    uint8_t head[SNAPSHOT_FIXED_BYTES + SNAPSHOT_V3_EXTRA_BYTES];
    uint64_t off = c->snapshot_kept.ptr[2 * i];
    size_t len = (size_t)min_u64(sizeof(head), c->snapshot_kept.ptr[2 * i + 1]);
    if (!range_within(off, c->snapshot_kept.ptr[2 * i + 1], c->file_bytes) ||
        io_read(c->file, off, head, len, NULL) < 0)
        return "its entry cannot be read";
    struct snapshot_fixed f = snapshot_fixed_decode(head);
    if (!f.l1_off || !f.id_bytes) /* as where a table was cut off */
        return "its entry is empty";
    bool has_size = f.extra_bytes >= SNAPSHOT_V3_EXTRA_BYTES && len == sizeof(head);
    *r = (struct rollback){
        .entry_off = off,
        .l1_off = f.l1_off,
        .disk_bytes = has_size ? load_be64(head + SNAPSHOT_FIXED_BYTES + 8) : c->h->size_bytes,
        .l1_entries = f.l1_entries,
        .date_sec = f.date_sec,
        .date_nsec = f.date_nsec,
        .snapshot = (uint16_t)(i + 1),
        .old_l1_off = c->h->l1_off,
        .old_l1_entries = c->h->l1_off ? c->l1_entries : 0,
        .old_disk_bytes = c->h->size_bytes,
        .named_from = c->named_from,
        .named_end = c->named_end,
        .overflows = c->sink.seen[PROBLEM_REFCOUNT_OVERFLOW],
        .zero_refcounts = c->sink.seen[PROBLEM_REFCOUNT_ZERO] != 0,
    };
    name_it(c, r);
    const char *why = size_fault(c, r);
    return why ? why : l1_fault(c, r);
}

/* ---- which one ---- */

static bool text_is(struct check *c, uint64_t off, uint32_t bytes, const char *text)
{
    uint8_t buf[256];
    if (strlen(text) != bytes)
        return false;
    for (uint32_t at = 0; at < bytes; at += sizeof(buf)) {
        size_t len = (size_t)min_u64(sizeof(buf), bytes - at);
        if (io_read(c->file, off + at, buf, len, NULL) < 0 || memcmp(buf, text + at, len) != 0)
            return false;
    }
    return true;
}

static bool entry_is(struct check *c, size_t i, const char *text, bool by_name)
{
    uint8_t head[SNAPSHOT_FIXED_BYTES];
    uint64_t off = c->snapshot_kept.ptr[2 * i];
    if (io_read(c->file, off, head, sizeof(head), NULL) < 0)
        return false;
    struct snapshot_fixed f = snapshot_fixed_decode(head);
    off += sizeof(head) + f.extra_bytes;
    return text_is(c, by_name ? off + f.id_bytes : off, by_name ? f.name_bytes : f.id_bytes, text);
}

/* As `snapshot -a` takes it: an id, else a name. SIZE_MAX: there is none. */
static size_t find_named(struct check *c, const char *text)
{
    for (unsigned by_name = 0; by_name < 2; by_name++) {
        for (size_t i = 0; i < c->snapshot_kept.len / 2; i++) {
            if (entry_is(c, i, text, by_name))
                return i;
        }
    }
    return SIZE_MAX;
}

static bool newer(const struct rollback *a, const struct rollback *b)
{
    if (a->date_sec != b->date_sec)
        return a->date_sec > b->date_sec;
    return a->date_nsec != b->date_nsec ? a->date_nsec > b->date_nsec : a->snapshot > b->snapshot;
}

static void candidate_add(struct way_back *w, struct rollback r)
{
    for (unsigned i = 0; i < w->count; i++) {
        if (newer(&r, &w->candidates[i])) {
            struct rollback older = w->candidates[i];
            w->candidates[i] = r;
            r = older;
        }
    }
    if (w->count < ROLLBACK_CANDIDATES)
        w->candidates[w->count++] = r;
}

static void choose_named(struct check *c)
{
    struct way_back *w = &c->way_back;
    size_t i = find_named(c, c->opts->rollback);
    w->unknown = i == SIZE_MAX;
    w->refused = i == SIZE_MAX ? "there is none of that id or name that can be used"
                               : candidate_fault(c, i, &w->candidates[0]);
    w->candidates[0].named = true;
    w->count = !w->refused;
}

/* ---- telling ---- */

static void tell_candidate(struct check *c, const struct rollback *r)
{
    const struct finding f = {PROBLEM_SNAPSHOT_SOUND, r->entry_off, QK_OFFSET_NONE, 0, r->date_sec};
    sink_of_snapshot(c, r->snapshot);
    sink_found(&c->sink, &f, rollback_text(r));
    sink_of_nothing(c);
}

static int tell_loss(struct check *c, const struct rollback *r, struct qk_error *err)
{
    CLEANUP_FREE struct rollback_loss *loss = malloc(sizeof(*loss));
    int ret = loss ? rollback_loss(c, r, loss, err) : qk_fail_nomem(err);
    for (unsigned i = 0; ret == 0 && i < loss->count; i++) {
        const struct finding f = {PROBLEM_ROLLBACK_LOSS, QK_OFFSET_NONE, loss->off[i], 0, 0};
        sink_of_snapshot(c, r->snapshot);
        c->sink.range_bytes = loss->bytes[i];
        sink_found(&c->sink, &f, loss->off[i], loss->off[i] + loss->bytes[i] - 1, rollback_text(r));
        c->sink.range_bytes = 0;
        sink_of_nothing(c);
    }
    return ret;
}

static void survey_all(struct check *c)
{
    for (size_t i = 0; i < c->snapshot_kept.len / 2; i++) {
        struct rollback r;
        if (candidate_fault(c, i, &r))
            continue;
        tell_candidate(c, &r);
        candidate_add(&c->way_back, r);
    }
}

/* The tables may mean something else than what was read. */
static bool header_doubtful(const struct check *c)
{
    for (unsigned id = 0; id < PROBLEM_COUNT; id++) {
        if (c->sink.seen[id] && (problems[id].actions & ACT_REFUSE))
            return true;
    }
    return false;
}

int rollback_survey(struct check *c, struct qk_error *err)
{
    struct way_back *w = &c->way_back;
    bool wanted = c->opts->allow & QK_ALLOW_ROLLBACK;
    if (c->rollback || !(wanted || c->opts->on_problem) || header_doubtful(c))
        return 0;
    w->damaged = active_damaged(c);
    if (!w->damaged)
        return 0;
    tables_of_shared_metadata(c);
    if (!c->data_file && l1_tables_fit(c))
        survey_all(c);
    if (wanted && c->opts->rollback)
        choose_named(c);
    if (!w->count)
        return 0;
    int ret = rollback_find_mark(c, err);
    return ret < 0 ? ret : tell_loss(c, &w->candidates[0], err);
}

static bool own_l1_shared(const struct check *c)
{
    struct refmap_span span;
    if (!range_span(c, c->rollback->l1_off, (uint64_t)c->rollback->l1_entries * 8, &span))
        return true;
    for (uint64_t i = 0; i < span.count; i++) {
        if (refmap_count(&c->refs, span.first + i) != 1)
            return true;
    }
    return false;
}

int rollback_judge(struct check *c, struct qk_error *err)
{
    const struct where where = {c->file->name, "snapshot table",
                                c->rollback ? c->rollback->entry_off : 0};
    if (!c->rollback)
        return 0;
    if (active_damaged(c) || own_l1_shared(c))
        return qk_fail_at(err, -EUCLEAN, &where, "its tables are damaged, too");
    if (c->sink.seen[PROBLEM_REFCOUNT_OVERFLOW] > c->rollback->overflows)
        return qk_fail_at(err, -ERANGE, &where,
                          "refcounts of %u bit%s cannot count its clusters once more; `amend -o "
                          "refcount_bits` makes them wider",
                          c->g->refcount_bits, c->g->refcount_bits == 1 ? "" : "s");
    return 0;
}
