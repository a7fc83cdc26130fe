/*
 * header.c - part of phase 1: header fields that contradict each other or the file, and their
 * repair. The fields are read as header_mend (format/header.h) leaves them, `check.view`; here the
 * number of L1 entries and the disk's size are held against each other and the table. Where the
 * view differs from the file (`check.raw`), the file has a wrong field; its repair writes the
 * view's. What makes an image unreadable as a whole was refused when it was opened.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"

/* The field at `off` is wrong when its value is `now`, and right with `good`. */
struct field_problem {
    enum problem_id id;
    uint32_t off, bytes;
    uint64_t now, good;
};
#define FIELD_PROBLEMS_MAX 8

/* ---- the L1 table's size and the disk's ---- */

/* All entries from `first` on are possible ones. */
static bool entries_possible(const struct check *c, uint64_t first, uint64_t end)
{
    uint64_t off = c->view.l1_off, bytes = end * 8;
    if (!off || first > end || bytes > QCOW2_MAX_L1_BYTES ||
        !range_within(off, bytes, c->file_bytes))
        return false;
    CLEANUP_FREE uint64_t *words = malloc(bytes + 1);
    if (!words || io_read(c->file, off, words, bytes, NULL) < 0)
        return false;
    for (uint64_t i = first; i < end; i++) {
        struct l1_verdict v = l1_judge(c, be64toh(words[i]));
        if (v.problem_count)
            return false;
    }
    return true;
}

static bool rest_of_cluster_zero(const struct check *c, uint64_t entries)
{
    uint64_t at = c->view.l1_off + entries * 8, end = round_up(at, c->g->cluster_bytes);
    for (uint8_t word[8]; at < end; at += sizeof(word)) {
        if (io_read(c->file, at, word, sizeof(word), NULL) < 0 || load_be64(word))
            return false;
    }
    return true;
}

/* More entries are needed than the header says: they are there, or the disk is not that large. */
static void judge_sizes(struct check *c)
{
    unsigned each = c->g->l2_bits + c->g->cluster_bits;
    uint64_t need = geometry_l1_entries(c->g, c->view.size_bytes), have = c->view.l1_entries;
    if (have < need) {
        bool searched = !c->view.l1_off && need * 8 <= QCOW2_MAX_L1_BYTES;
        if (searched || entries_possible(c, have, need))
            c->view.l1_entries = (uint32_t)need;
        else
            c->view.size_bytes = have << each;
    } else if (have > need && need && !range_within(c->view.l1_off, have * 8, c->file_bytes) &&
               entries_possible(c, 0, need) && rest_of_cluster_zero(c, need)) {
        c->view.l1_entries = (uint32_t)need;
    }
}

/* ---- fields ---- */

static void add(struct field_problem *list, size_t *n, struct field_problem p)
{
    if (p.now != p.good)
        list[(*n)++] = p;
}

static void backing_problem(const struct check *c, struct field_problem *list, size_t *n)
{
    uint64_t off = c->raw.backing_name_off;
    if (off != c->view.backing_name_off || c->raw.backing_name_len != c->view.backing_name_len)
        add(list, n,
            (struct field_problem){PROBLEM_BACKING_OUTSIDE, HEADER_BACKING_OFF, 8, off, 0});
    else if (off && off < c->view.header_bytes)
        add(list, n,
            (struct field_problem){c->raw.backing_name_len ? PROBLEM_BACKING_INSIDE
                                                           : PROBLEM_BACKING_STRAY,
                                   HEADER_BACKING_OFF, 8, off, 0});
}

static size_t field_problems(const struct check *c, struct field_problem list[FIELD_PROBLEMS_MAX])
{
    const struct header *raw = &c->raw, *view = &c->view;
    size_t n = 0;
    if (!c->data_file)
        add(list, &n,
            (struct field_problem){PROBLEM_AUTOCLEAR_RAW, HEADER_AUTOCLEAR_OFF, 8, raw->autoclear,
                                   raw->autoclear & ~(uint64_t)AUTOCLEAR_DATA_FILE_RAW});
    backing_problem(c, list, &n);
    add(list, &n,
        (struct field_problem){PROBLEM_HEADER_LENGTH, HEADER_LENGTH_OFF, 4, raw->header_bytes,
                               view->header_bytes});
    add(list, &n,
        (struct field_problem){PROBLEM_DISK_SIZE, HEADER_SIZE_OFF, 8, raw->size_bytes,
                               view->size_bytes});
    add(list, &n,
        (struct field_problem){PROBLEM_L1_SIZE, HEADER_L1_ENTRIES_OFF, 4, raw->l1_entries,
                               view->l1_entries});
    if (view->l1_off && view->l1_off == c->l1_found)
        add(list, &n,
            (struct field_problem){PROBLEM_L1_TABLE_MISPLACED, HEADER_L1_OFF, 8, raw->l1_off,
                                   view->l1_off});
    return n;
}

/* Their repair is that of the refcount structure. */
static void refcount_fields(struct check *c)
{
    const struct header *raw = &c->raw, *view = &c->view;
    const struct finding order = {PROBLEM_REFCOUNT_ORDER, HEADER_REFCOUNT_ORDER_OFF, QK_OFFSET_NONE,
                                  view->refcount_order, raw->refcount_order};
    const struct finding place = {PROBLEM_REFTABLE_PLACE, HEADER_REFTABLE_OFF, QK_OFFSET_NONE, 0,
                                  raw->reftable_off};
    if (raw->refcount_order != view->refcount_order)
        sink_found(&c->sink, &order, (uint64_t)raw->refcount_order, (uint64_t)view->refcount_order);
    else if (!view->reftable_off)
        sink_found(&c->sink, &place, raw->reftable_off, (uint64_t)raw->reftable_clusters);
}

int header_collect(struct check *c, struct qk_error *err)
{
    struct field_problem list[FIELD_PROBLEMS_MAX];
    judge_sizes(c);
    size_t n = field_problems(c, list);
    for (size_t i = 0; i < n; i++) {
        const struct finding f = {list[i].id, list[i].off, QK_OFFSET_NONE, list[i].good,
                                  list[i].now};
        sink_found(&c->sink, &f, list[i].now, list[i].good);
        c->guest_changes |= problem_chosen(c->opts, f.id);
        c->disk_resized |= f.id == PROBLEM_DISK_SIZE && problem_chosen(c->opts, f.id);
    }
    refcount_fields(c);
    return count_inside(c, 0, c->g->cluster_bytes, err);
}

int header_edit(struct check *c, struct qk_error *err)
{
    struct field_problem list[FIELD_PROBLEMS_MAX];
    size_t n = field_problems(c, list);
    for (size_t i = 0; i < n; i++) {
        if (!problem_fixable(c->opts, list[i].id))
            continue;
        uint8_t field[8];
        if (list[i].bytes == 8)
            store_be64(field, list[i].good);
        else
            store_be32(field, (uint32_t)list[i].good);
        static const struct step what = {.action = "correct field", .structure = "header"};
        const struct plan_bytes bytes = {list[i].off, field, list[i].bytes};
        int ret = plan_write(c, &what, &bytes, err);
        if (ret < 0)
            return ret;
        const struct finding f = {list[i].id, list[i].off, QK_OFFSET_NONE, list[i].good,
                                  list[i].now};
        sink_repaired(&c->sink, &f, list[i].now, list[i].good);
    }
    return 0;
}
