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

/* The field at `off` is wrong when its value is `now`, and right with `good`. What is written are
 * the bits that differ: several problems may sit in one field. */
struct field_problem {
    enum problem_id id;
    uint32_t off, bytes;
    uint64_t now, good;
    enum wording { TELL_VALUES, TELL_FEATURES, TELL_EXTENSION, TELL_DOUBT } wording;
};
DEFINE_VECTOR(field_vec, struct field_problem)

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
        bool searched = (!have || !c->view.l1_off) && need * 8 <= QCOW2_MAX_L1_BYTES;
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

/* Memory that is short keeps a problem from being seen: that is told by who looks at `failed`. */
struct fields {
    struct field_vec list;
    bool failed;
};

static void add(struct fields *f, struct field_problem p)
{
    if (p.now != p.good)
        f->failed |= field_vec_append(&f->list, p) < 0;
}

static void backing_problem(const struct check *c, struct fields *f)
{
    const struct header *raw = &c->raw, *view = &c->view;
    uint64_t off = raw->backing_name_off;
    enum problem_id inside = raw->backing_name_len ? PROBLEM_BACKING_INSIDE : PROBLEM_BACKING_STRAY;
    bool outside = off != view->backing_name_off || raw->backing_name_len != view->backing_name_len;
    if (outside || (off && off < view->header_bytes))
        add(f, (struct field_problem){outside ? PROBLEM_BACKING_OUTSIDE : inside,
                                      HEADER_BACKING_OFF, 8, off, 0, TELL_VALUES});
}

/* Bits of the incompatible features: those that are not known, and those that the tables
 * contradict.
 */
static void feature_problems(const struct check *c, struct fields *f)
{
    static const struct {
        enum problem_id id;
        uint64_t bits;
        enum wording wording;
    } kinds[] = {
        {PROBLEM_FEATURE_UNKNOWN, ~(uint64_t)INCOMPAT_KNOWN, TELL_FEATURES},
        {PROBLEM_FEATURE_EXTENDED_L2, INCOMPAT_EXTENDED_L2, TELL_VALUES},
        {PROBLEM_FEATURE_DATA_FILE, INCOMPAT_DATA_FILE, TELL_VALUES},
    };
    uint64_t raw = c->raw.incompatible, wrong = raw ^ c->view.incompatible;
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
        add(f, (struct field_problem){kinds[i].id, HEADER_INCOMPATIBLE_OFF, 8, raw,
                                      raw ^ (wrong & kinds[i].bits), kinds[i].wording});
}

static void compression_problems(const struct check *c, struct fields *f)
{
    const struct header *raw = &c->raw, *view = &c->view;
    uint64_t wrong = (raw->incompatible ^ view->incompatible) & INCOMPAT_COMPRESSION;
    if (!c->compression_known)
        return;
    add(f, (struct field_problem){PROBLEM_COMPRESSION, HEADER_COMPRESSION_OFF, 1,
                                  raw->compression_type, view->compression_type, TELL_VALUES});
    add(f, (struct field_problem){PROBLEM_COMPRESSION, HEADER_INCOMPATIBLE_OFF, 8,
                                  raw->incompatible, raw->incompatible ^ wrong, TELL_VALUES});
}

/* The place that the extension gives is one of a LUKS header. */
static bool luks_is_there(const struct check *c)
{
    static const uint8_t magic[8] = {'L', 'U', 'K', 'S', 0xba, 0xbe, 0, 1};
    const struct header_extension *ext =
        header_extensions_find(image_extensions(c->img), HEXT_CRYPTO);
    uint8_t bytes[sizeof(magic)];
    return ext && io_read(c->file, load_be64(ext->data), bytes, sizeof(bytes), NULL) == 0 &&
           !memcmp(bytes, magic, sizeof(magic));
}

static void crypt_problem(const struct check *c, struct fields *f)
{
    uint32_t method = c->raw.crypt_method;
    if (luks_is_there(c))
        add(f, (struct field_problem){PROBLEM_CRYPT_METHOD, HEADER_CRYPT_OFF, 4, method, CRYPT_LUKS,
                                      TELL_VALUES});
    else if (method > CRYPT_LUKS)
        add(f, (struct field_problem){PROBLEM_CRYPT_METHOD_LOST, HEADER_CRYPT_OFF, 4, method, 0,
                                      TELL_VALUES});
}

/* An extension of no known length becomes the end of the list. */
static void extension_problems(const struct check *c, struct fields *f)
{
    const struct extension_fault_vec *faults = &image_header_stored(c->img)->faults;
    for (size_t i = 0; i < faults->len; i++) {
        const struct extension_fault *e = &faults->ptr[i];
        uint32_t off = (uint32_t)e->off;
        if (e->again)
            add(f,
                (struct field_problem){PROBLEM_EXTENSION_TWICE, off, 4, e->type, 0, TELL_VALUES});
        else if (e->known)
            add(f, (struct field_problem){PROBLEM_EXTENSION_LENGTH, off + 4, 4, e->len,
                                          e->right_len, TELL_VALUES});
        else
            add(f, (struct field_problem){PROBLEM_EXTENSION_DAMAGED, off, 8,
                                          (uint64_t)e->type << 32 | e->len, 0, TELL_EXTENSION});
    }
}

static void bitmaps_problem(const struct check *c, struct fields *f)
{
    const struct header_extension *ext =
        header_extensions_find(image_extensions(c->img), HEXT_BITMAPS);
    if (!ext || ext->len < 8 || !(c->raw.autoclear & AUTOCLEAR_BITMAPS))
        return;
    uint32_t off = (uint32_t)bitmaps_extension_place(c);
    if (off)
        add(f, (struct field_problem){PROBLEM_BITMAPS_RESERVED, off + 4, 4,
                                      load_be32(ext->data + 4), 0, TELL_VALUES});
}

/* Neither the disk's size nor the number of L1 entries can be: nothing tells either. */
static bool sizes_lost(const struct check *c)
{
    const struct header *raw = &c->raw;
    return raw->size_bytes != c->view.size_bytes && raw->l1_entries != c->view.l1_entries &&
           (!raw->l1_entries || raw->l1_entries > QCOW2_MAX_L1_BYTES / 8);
}

static void doubt_problems(const struct check *c, struct fields *f)
{
    if (image_header_stored(c->img)->doubtful)
        add(f, (struct field_problem){PROBLEM_HEADER_DOUBTFUL, HEADER_CLUSTER_BITS_OFF, 4, 1, 0,
                                      TELL_DOUBT});
    if (sizes_lost(c))
        add(f,
            (struct field_problem){PROBLEM_HEADER_DOUBTFUL, HEADER_SIZE_OFF, 8, 1, 0, TELL_DOUBT});
}

static void size_problems(const struct check *c, struct fields *f)
{
    const struct header *raw = &c->raw, *view = &c->view;
    add(f, (struct field_problem){PROBLEM_HEADER_LENGTH, HEADER_LENGTH_OFF, 4, raw->header_bytes,
                                  view->header_bytes, TELL_VALUES});
    if (sizes_lost(c))
        return;
    add(f, (struct field_problem){PROBLEM_DISK_SIZE, HEADER_SIZE_OFF, 8, raw->size_bytes,
                                  view->size_bytes, TELL_VALUES});
    add(f, (struct field_problem){PROBLEM_L1_SIZE, HEADER_L1_ENTRIES_OFF, 4, raw->l1_entries,
                                  view->l1_entries, TELL_VALUES});
    if (view->l1_off && view->l1_off == c->l1_found)
        add(f, (struct field_problem){PROBLEM_L1_TABLE_MISPLACED, HEADER_L1_OFF, 8, raw->l1_off,
                                      view->l1_off, TELL_VALUES});
}

static struct fields fields_judge(const struct check *c)
{
    const struct header *raw = &c->raw, *view = &c->view;
    struct fields f = {0};
    uint64_t autoclear = raw->autoclear & ~(uint64_t)AUTOCLEAR_DATA_FILE_RAW;
    if (c->magic != QCOW2_MAGIC)
        add(&f, (struct field_problem){PROBLEM_MAGIC, HEADER_MAGIC_OFF, 4, c->magic, QCOW2_MAGIC,
                                       TELL_VALUES});
    if (image_header_stored(c->img)->unreadable) {
        add(&f, (struct field_problem){PROBLEM_HEADER_UNREADABLE, HEADER_CLUSTER_BITS_OFF, 4,
                                       raw->cluster_bits, UINT64_MAX, TELL_VALUES});
        return f;
    }
    add(&f, (struct field_problem){PROBLEM_VERSION, HEADER_VERSION_OFF, 4, raw->version,
                                   view->version, TELL_VALUES});
    add(&f, (struct field_problem){PROBLEM_CLUSTER_BITS, HEADER_CLUSTER_BITS_OFF, 4,
                                   raw->cluster_bits, view->cluster_bits, TELL_VALUES});
    feature_problems(c, &f);
    compression_problems(c, &f);
    if (!c->data_file)
        add(&f, (struct field_problem){PROBLEM_AUTOCLEAR_RAW, HEADER_AUTOCLEAR_OFF, 8,
                                       raw->autoclear, autoclear, TELL_VALUES});
    backing_problem(c, &f);
    size_problems(c, &f);
    crypt_problem(c, &f);
    extension_problems(c, &f);
    bitmaps_problem(c, &f);
    doubt_problems(c, &f);
    return f;
}

static bool refused_by(const struct check *c, enum problem_id id)
{
    bool allowed = problem_fixable(c->opts, id) &&
                   (id != PROBLEM_FEATURE_UNKNOWN || c->sound_without_features);
    return (problems[id].actions & ACT_REFUSE) && !allowed;
}

bool header_refuses(struct check *c)
{
    struct fields f = fields_judge(c);
    bool refuses = false;
    for (size_t i = 0; i < f.list.len; i++)
        refuses |= refused_by(c, f.list.ptr[i].id);
    field_vec_free(&f.list);
    return refuses || f.failed;
}

typedef void sink_fn(struct sink *s, const struct finding *f, ...);

static void tell(struct check *c, const struct field_problem *p, sink_fn *to)
{
    const struct finding f = {p->id, p->off, QK_OFFSET_NONE, p->good, p->now};
    char names[FEATURE_LIST_BYTES];
    if (p->wording == TELL_EXTENSION) {
        to(&c->sink, &f, p->now >> 32, p->now & UINT32_MAX);
    } else if (p->wording == TELL_DOUBT) {
        to(&c->sink, &f,
           p->off == HEADER_SIZE_OFF ? "no size of the disk follows from them"
                                     : "another cluster size or feature would fit as well");
    } else if (p->wording == TELL_FEATURES) {
        header_feature_list(image_extensions(c->img), p->now & ~p->good, names, sizeof(names));
        to(&c->sink, &f, names);
    } else {
        to(&c->sink, &f, p->now, p->good);
    }
}

void compression_report(struct check *c)
{
    struct fields f = {0};
    compression_problems(c, &f);
    for (size_t i = 0; i < f.list.len; i++)
        tell(c, &f.list.ptr[i], sink_found);
    field_vec_free(&f.list);
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
    bool unreadable = image_header_stored(c->img)->unreadable;
    if (!c->rollback && !unreadable)
        judge_sizes(c);
    struct fields f = fields_judge(c);
    for (size_t i = 0; i < f.list.len; i++) {
        if (refused_by(c, f.list.ptr[i].id))
            sink_refuse(&c->sink, f.list.ptr[i].id);
    }
    for (size_t i = 0; i < f.list.len; i++)
        tell(c, &f.list.ptr[i], sink_found);
    field_vec_free(&f.list);
    if (f.failed)
        return qk_fail_nomem(err);
    if (unreadable)
        return 0;
    refcount_fields(c);
    return count_inside(c, 0, c->g->cluster_bytes, err);
}

static int field_edit(struct check *c, const struct field_problem *p, struct qk_error *err)
{
    bool name = (p->id == PROBLEM_BACKING_INSIDE || p->id == PROBLEM_BACKING_OUTSIDE) &&
                c->raw.backing_name_len;
    const struct step what = {.action = "correct field",
                              .structure = "header",
                              .lost = name ? "the name of the backing file" : NULL};
    uint8_t field[8], change[8];
    store_be64(change, (p->now ^ p->good) << (64 - 8 * p->bytes));
    int ret = io_read(c->file, p->off, field, p->bytes, err);
    if (ret < 0)
        return ret;
    for (uint32_t i = 0; i < p->bytes; i++)
        field[i] ^= change[i];
    const struct plan_bytes bytes = {p->off, field, p->bytes};
    ret = plan_write(c, &what, &bytes, err);
    if (ret == 0)
        tell(c, p, sink_repaired);
    return ret;
}

int header_edit(struct check *c, struct qk_error *err)
{
    struct fields f = fields_judge(c);
    int ret = f.failed ? qk_fail_nomem(err) : 0;
    for (size_t i = 0; ret == 0 && i < f.list.len; i++) {
        if (problem_fixable(c->opts, f.list.ptr[i].id))
            ret = field_edit(c, &f.list.ptr[i], err);
    }
    field_vec_free(&f.list);
    return ret;
}
