/*
 * rollback.c - the run that brings the disk back to a snapshot: everything is counted as it will be
 * (the snapshot's tables once for it and once for the disk, the damaged tables not at all), and the
 * writes follow from that as in any repair. Order (INV-1, INV-8): a copy of the snapshot's L1 table
 * is written into clusters that nothing names or counts; flags that would be wrong are taken off;
 * refcounts go up, or a new refcount structure is written; flush; one sector of the header names
 * the table, its size, the disk's size, and the new refcount structure; flush; what is too high now
 * goes down, unless something else holds it.
 */
#include "check/rollback.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"

/* ---- before the run ---- */

/* Both the header's fields and what they should be: there is nothing to say about them any more. */
void rollback_begin(struct check *c)
{
    const struct rollback *r = c->rollback;
    if (!r)
        return;
    uint64_t need = geometry_l1_entries(c->g, r->disk_bytes);
    c->view.l1_off = c->raw.l1_off = r->l1_off;
    c->view.size_bytes = c->raw.size_bytes = r->disk_bytes;
    c->view.l1_entries = c->raw.l1_entries = (uint32_t)max_u64(need, r->l1_entries);
    c->sink.disk_bytes = r->disk_bytes;
    c->named_end = r->named_end;
    c->spare =
        true; /* what looks free may belong to the damaged tables until the header is written */
    c->guest_changes = c->disk_resized = true;
}

/* No cluster of the disk is its own: the snapshot has all of them. */
void rollback_trim_l1(struct check *c)
{
    if (!c->rollback)
        return;
    c->l1_entries = (uint32_t)min_u64(c->l1_entries, c->rollback->l1_entries);
    for (uint32_t i = 0; i < c->l1_entries; i++)
        c->l1[i] = l1_entry_host(c->l1[i]) ? c->l1[i] & ~ENTRY_COPIED : 0;
}

/* ---- the place of the new table ---- */

static bool is_free(struct check *c, uint64_t cluster)
{
    uint64_t stored;
    return block_state(c, cluster >> c->g->refblock_bits) == BLOCK_GOOD &&
           !refmap_count(&c->refs, cluster) && stored_refcount(c, cluster, &stored, NULL) == 0 &&
           !stored;
}

/* Free clusters below the end, when refcounts can be believed to tell them. */
static bool find_hole(struct check *c, struct refmap_span *span)
{
    uint64_t run = 0, whole = c->file_bytes >> c->g->cluster_bits;
    if (c->rollback->zero_refcounts || c->sink.seen[PROBLEM_REFCOUNT_ZERO])
        return false;
    for (uint64_t i = 1; i < whole; i++) {
        run = is_free(c, i) ? run + 1 : 0;
        if (run == span->count) {
            span->first = i + 1 - run;
            return true;
        }
    }
    return false;
}

/* Their refcounts go up with all others. */
static int take_hole(struct check *c, struct refmap_span span, struct qk_error *err)
{
    c->actions |= ACT_RAISE;
    for (uint64_t i = span.first; i < span.first + span.count; i++)
        c->blocks[i >> c->g->refblock_bits] |= BLOCK_MISMATCH;
    return refmap_add(&c->refs, span, 1, 0) < 0 ? qk_fail_nomem(err) : 0;
}

/* Growing past what entries name behind the end would make it look like data of zeroes. */
static bool below_what_is_named(const struct check *c, uint64_t clusters)
{
    uint64_t end = c->clusters + clusters, old = c->rollback->named_from;
    return (!c->named_from || end <= c->named_from) && (!old || end <= old);
}

/* Behind the end, if it can be: space that looks free may belong to something damaged. */
static int find_place(struct check *c, struct refmap_span *span, struct qk_error *err)
{
    uint64_t bytes = max_u64((uint64_t)c->h->l1_entries * 8, 1), named_end = c->named_end;
    bool can_grow = c->file->can_grow && !c->no_room;
    span->count = div_round_up(bytes, c->g->cluster_bytes);
    if (can_grow && below_what_is_named(c, span->count)) {
        c->named_end = 0;
        int ret = clusters_place(c, bytes, span, err);
        c->named_end = named_end;
        return ret;
    }
    if (find_hole(c, span))
        return take_hole(c, *span, err);
    if (can_grow && !c->no_growth)
        return clusters_place(c, bytes, span, err);
    return qk_fail_at(err, -ENOSPC, WHERE(c->file->name, "L1 table", QK_OFFSET_NONE),
                      "no free clusters for an L1 table of %" PRIu64 " bytes", bytes);
}

static int write_l1(struct check *c, struct refmap_span span, struct qk_error *err)
{
    const struct step what = {.action = "copy the snapshot's table",
                              .structure = "L1 table",
                              .count = max_u64(c->l1_entries, 1)};
    size_t bytes = (size_t)(span.count << c->g->cluster_bits);
    CLEANUP_FREE uint64_t *words = calloc(1, bytes);
    if (!words)
        return qk_fail_nomem(err);
    for (uint32_t i = 0; i < c->l1_entries; i++)
        words[i] = htobe64(c->l1[i]);
    const struct plan_bytes w = {span.first << c->g->cluster_bits, words, bytes};
    return plan_write(c, &what, &w, err);
}

/* A new refcount structure makes the file grow, too. */
static bool hides_damage(const struct check *c, struct refmap_span span)
{
    uint64_t from = c->rollback->named_from;
    bool grows = span.first + span.count > c->file_bytes >> c->g->cluster_bits;
    return from && ((c->actions & ACT_REBUILD) || (grows && span.first + span.count > from));
}

int rollback_place(struct check *c, struct qk_error *err)
{
    struct refmap_span span = {0};
    if (!c->rollback)
        return 0;
    int ret = find_place(c, &span, err);
    block_cache_drop(c);
    if (ret == 0 && hides_damage(c, span))
        ret = rollback_write_mark(c, err);
    if (ret == 0)
        ret = write_l1(c, span, err);
    if (ret < 0)
        return ret;
    c->view.l1_off = span.first << c->g->cluster_bits;
    if (c->copied_suspect)
        ret = copied_expect(c, err);
    return ret < 0 ? ret : plan_barrier(c, err);
}

/* ---- the header ---- */

/* Steps that write nothing themselves: what the header's new fields give up. */
static int note_loss(struct check *c, struct qk_error *err)
{
    CLEANUP_FREE struct rollback_loss *loss = malloc(sizeof(*loss));
    int ret = loss ? rollback_loss(c, c->rollback, loss, err) : qk_fail_nomem(err);
    for (unsigned i = 0; ret == 0 && i < loss->count; i++) {
        const struct step what = {.action = "give up what was written since the snapshot",
                                  .structure = "guest data",
                                  .count = 1,
                                  .off = HEADER_L1_OFF,
                                  .lost_off = loss->off[i],
                                  .lost_bytes = loss->bytes[i],
                                  .epoch = c->epoch};
        ret = plan_note(c, &what, err);
    }
    return ret;
}

/* All in one sector, and in one epoch, so that they change at once. */
int rollback_link(struct check *c, struct qk_error *err)
{
    const struct {
        uint32_t off, bytes;
        uint64_t value;
    } fields[] = {{HEADER_SIZE_OFF, 8, c->h->size_bytes},
                  {HEADER_L1_ENTRIES_OFF, 4, c->h->l1_entries},
                  {HEADER_L1_OFF, 8, c->h->l1_off}};
    struct step what = {.action = "name the snapshot's tables", .structure = "header"};
    const uint64_t steps = c->steps.count;
    int ret = c->rollback ? note_loss(c, err) : 0;
    const char *lost = c->steps.count > steps ? c->rollback->since : NULL;
    for (size_t i = 0; c->rollback && ret == 0 && i < ARRAY_SIZE(fields); i++) {
        uint8_t bytes[8], old[8] = {0};
        size_t skip = 8 - fields[i].bytes;
        what.lost = fields[i].off == HEADER_L1_OFF ? lost : NULL;
        store_be64(bytes, fields[i].value);
        const struct plan_bytes w = {fields[i].off, bytes + skip, fields[i].bytes};
        ret = io_read(c->file, w.off, old + skip, w.len, err);
        if (ret == 0 && load_be64(old) != fields[i].value)
            ret = plan_write(c, &what, &w, err);
    }
    return ret;
}
