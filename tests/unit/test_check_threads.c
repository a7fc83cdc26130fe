/*
 * test_check_threads.c - the check with many threads over an image with many batches of L2 tables
 * and of refcount blocks, with damage of many kinds in each: what is found, what is planned and
 * what a repair leaves is the same, to the byte, whether one thread does the work or eight; also
 * where several checks run at once; and cancelling ends all of it, wherever they are. Under the
 * thread sanitizer it is the test of every phase that uses threads.
 */
#include "check_test.h"
#include "page_store.h"

#include <pthread.h>
#include <stdarg.h>

#define CLUSTER      512u
#define ENTRIES      64u   /* of an L2 table, and refcounts of a block */
#define BATCH        2048u /* of these, in 1 MiB */
#define BATCHES      8u
#define GUEST_BYTES  ((uint64_t)BATCHES * BATCH * ENTRIES * CLUSTER)
#define FIX          (QK_FIX_LEAKS | QK_FIX_ERRORS)
#define MANY_THREADS 8u

/* ---- what a check says ---- */

struct talk {
    char *text;
    size_t len, room;
    unsigned by_number[MAX_NUMBER]; /* a run counts as one */
    uint64_t first[MAX_NUMBER];     /* file_off of the first one */
};

__attribute__((format(printf, 2, 3))) static void say(struct talk *t, const char *format, ...)
{
    va_list args;
    if (t->room - t->len < 4096) {
        t->room = t->room * 2 + 65536;
        t->text = realloc(t->text, t->room);
    }
    va_start(args, format);
    t->len += (size_t)vsnprintf(t->text + t->len, t->room - t->len, format, args);
    va_end(args);
}

static void say_problem(struct talk *t, const struct qk_problem *p)
{
    unsigned number = p->number < MAX_NUMBER ? p->number : 0;
    if (!t->by_number[number]++)
        t->first[number] = p->file_off;
    say(t,
        "%u %s | %u %" PRIx64 " %" PRIx64 "+%" PRIx64 " %" PRIx64 " %" PRIx64 " %s %u of %" PRIu64,
        p->number, p->text, p->repaired, p->file_off, p->guest_off, p->guest_bytes, p->expected,
        p->found, p->snapshot ? p->snapshot : "-", p->user_count, p->user_total);
    for (unsigned i = 0; i < p->user_count; i++)
        say(t, " (%s %" PRIx64 " %" PRIx64 ")", p->users[i].structure, p->users[i].file_off,
            p->users[i].guest_off);
    say(t, "\n");
}

static void on_problem(void *opaque, const struct qk_problem *p)
{
    say_problem(opaque, p);
}

static bool on_run(void *opaque, const struct qk_problem *p, const struct qk_problem_run *run)
{
    say(opaque, "run of %" PRIu64 " by %" PRIx64 " %" PRIx64 " %" PRIx64 ": ", run->count,
        run->file_bits_step, run->guest_step, run->found_step);
    say_problem(opaque, p);
    return true;
}

static void on_message(void *opaque, const char *line)
{
    say(opaque, "%s\n", line);
}

static void on_step(void *opaque, const struct qk_plan_step *s)
{
    say(opaque,
        "step %u %s %s %" PRIx64 "+%" PRIx64 " %" PRIu64 " %" PRIx64 " %" PRIx64 " %" PRIx64
        "+%" PRIx64 " %s\n",
        s->epoch, s->action, s->structure, s->file_off, s->bytes, s->count, s->from, s->to,
        s->lost_off, s->lost_bytes, s->lost ? s->lost : "-");
}

static void on_loss(void *opaque, const struct qk_check_loss *l)
{
    say(opaque, "loss %s %" PRIu64 " of %" PRIu64 " in %" PRIu64 "\n",
        l->snapshot ? l->snapshot : "-", l->bytes, l->disk_bytes, l->range_total);
}

static void say_result(struct talk *t, int ret, const struct qk_check_result *r)
{
    say(t,
        "end %d: %" PRIu64 " %" PRIu64 " %" PRIu64 " fixed %" PRIu64 " %" PRIu64 " end %" PRIx64
        " clusters %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " steps %" PRIu64 " lost %" PRIu64
        " kept %u\n",
        ret, r->corruptions, r->leaks, r->check_errors, r->corruptions_fixed, r->leaks_fixed,
        r->image_end_off, r->total_clusters, r->allocated_clusters, r->fragmented_clusters,
        r->compressed_clusters, r->steps, r->lost_bytes, r->leaks_kept);
}

/* ---- the image ---- */

struct world {
    struct page_store *store;
    uint64_t l1_off, reftable_off;
    uint64_t old_table[BATCHES]; /* L2 tables that only the snapshot has */
};

static uint64_t get(const struct world *w, uint64_t off)
{
    return read_be64(&w->store->io, off);
}

static void put(const struct world *w, uint64_t off, uint64_t value)
{
    write_be64(&w->store->io, off, value);
}

/* The place of an entry, and what is to be there instead. */
static void change(const struct world *w, uint64_t off, uint64_t clear, uint64_t set)
{
    put(w, off, (get(w, off) & ~clear) | set);
}

static uint64_t l1_place(const struct world *w, unsigned table)
{
    return w->l1_off + 8 * (uint64_t)table;
}

static uint64_t table_off(const struct world *w, unsigned table)
{
    return get(w, l1_place(w, table)) & L1_OFFSET_MASK;
}

static uint64_t entry_place(const struct world *w, unsigned table, unsigned entry)
{
    return table_off(w, table) + 8 * (uint64_t)entry;
}

static uint64_t data_off(const struct world *w, unsigned table, unsigned entry)
{
    return get(w, entry_place(w, table, entry)) & L2_OFFSET_MASK;
}

static uint64_t refcount_off(const struct world *w, uint64_t off)
{
    uint64_t cluster = off / CLUSTER;
    return get(w, w->reftable_off + cluster / ENTRIES * 8) + cluster % ENTRIES * 8;
}

static void make_bad(const struct world *w, uint64_t off)
{
    REQUIRE(w->store->bad_count < BAD_MOST);
    w->store->bad[w->store->bad_count++] = round_down(off, CLUSTER);
}

static void find_tables(struct world *w)
{
    w->l1_off = get(w, 40);
    w->reftable_off = get(w, 48);
}

/* Tables of a batch that are damaged: somewhere in the middle, elsewhere in each. */
static unsigned table_of(unsigned batch)
{
    return batch * BATCH + 300 + 151 * batch;
}

static struct world base_world(void)
{
    const struct create_params params = {.size_bytes = GUEST_BYTES,
                                         .version = 3,
                                         .cluster_bits = 9,
                                         .refcount_order = 6,
                                         .prealloc = QK_PREALLOC_METADATA};
    struct world w = {.store = page_store_new()};
    CHECK_OK(image_create(&w.store->io, &params, NULL));
    find_tables(&w);
    CHECK(w.store->length / CLUSTER / ENTRIES > BATCHES * BATCH);
    return w;
}

/* A snapshot has all of it; since then, the disk has written in each batch. */
static void add_snapshot(struct world *w)
{
    const struct image_options opts = {.writable = true, .lazy_refcounts = -1};
    const struct snapshot_params params = {.name = "saved", .date_sec = 1000};
    uint8_t buf[CLUSTER] = {1};
    struct iovec iov = {buf, sizeof(buf)};
    struct image *img = NULL;
    struct snapshot_vec list = {0};
    CHECK_OK(image_open(&w->store->io, &opts, &img, NULL));
    CHECK_OK(image_snapshot_create(img, &params, NULL));
    for (unsigned k = 0; k < BATCHES; k++) {
        uint64_t guest = (uint64_t)table_of(k) * ENTRIES * CLUSTER;
        CHECK_OK(image_writev(img, guest_off(guest), &iov, 1, 0, NULL));
    }
    CHECK_OK(image_snapshots(img, &list, NULL));
    for (unsigned k = 0; list.len && k < BATCHES; k++)
        w->old_table[k] = get(w, list.ptr[0].fixed.l1_off + 8 * table_of(k)) & L1_OFFSET_MASK;
    snapshots_free_all(&list);
    CHECK_OK(image_close(img, NULL));
    find_tables(w);
}

/* ---- damage ---- */

/* A compressed cluster of one sector, which is the whole of a cluster: nothing is wrong with it. */
static void compress(const struct world *w, uint64_t place)
{
    change(w, place, ENTRY_COPIED, ENTRY_COMPRESSED);
}

/* Refcounts, COPIED flags and clusters with two users. */
static void damage_counts(struct world *w)
{
    for (unsigned k = 0; k < BATCHES; k++) {
        unsigned t = table_of(k), other = table_of((k + 3) % BATCHES);
        put(w, refcount_off(w, data_off(w, t, 5)), 3);
        put(w, refcount_off(w, data_off(w, t, 6)), 0);
        change(w, entry_place(w, t, 7), ENTRY_COPIED, 0);
        change(w, entry_place(w, t, 8), 0, ENTRY_COMPRESSED);
        put(w, entry_place(w, t, 9), get(w, entry_place(w, other, 10)));
        compress(w, entry_place(w, t, 11));
        change(w, l1_place(w, t + 1), ENTRY_COPIED, 0);
    }
}

/* And blocks of them that cannot be read, in every batch. */
static void damage_blocks(struct world *w)
{
    damage_counts(w);
    for (unsigned k = 0; k < BATCHES; k++) {
        for (unsigned i = 0; i < 3; i++)
            make_bad(w, get(w, w->reftable_off + 8 * (k * BATCH + 77 + (uint64_t)i * 500)));
    }
}

/* Entries that lead nowhere, or to tables; tables that cannot be read. */
static void damage_entries(struct world *w)
{
    damage_counts(w);
    for (unsigned k = 0; k < BATCHES; k++) {
        unsigned t = table_of(k) + 10;
        change(w, entry_place(w, t, 5), 0, 2);
        put(w, entry_place(w, t, 6), ENTRY_COPIED | UINT64_C(1) << 40);
        put(w, entry_place(w, t, 7), ENTRY_COPIED | table_off(w, (t + BATCH) % (BATCHES * BATCH)));
        make_bad(w, table_off(w, t + 2));
        change(w, l1_place(w, t + 3), 0, 2);
        put(w, l1_place(w, t + 4), ENTRY_COPIED | UINT64_C(1) << 40);
    }
}

static void damage_orphans(struct world *w)
{
    for (unsigned k = BATCHES; k-- > 0;)
        put(w, l1_place(w, table_of(k)), 0);
}

/* Where the table ends something else begins: otherwise a row of clusters beside it, of which most
 * are the table's, could be it as well. */
static void damage_l1(struct world *w)
{
    uint64_t behind = table_off(w, 0);
    CHECK_EQ(behind, w->l1_off + (uint64_t)BATCHES * BATCH * 8);
    put(w, w->l1_off, 0);
    for (unsigned i = 0; i < ENTRIES; i++)
        put(w, behind + 8 * (uint64_t)i, UINT64_MAX);
    put(w, 40, 0);
}

static void damage_snapshot(struct world *w)
{
    add_snapshot(w);
    damage_counts(w);
    for (unsigned k = 0; k < BATCHES; k++) {
        change(w, entry_place(w, table_of(k), 12), 0, ENTRY_COPIED);
        put(w, w->old_table[k] + 8 * 20, UINT64_C(1) << 40);
        put(w, w->old_table[k] + 8 * 21, get(w, w->old_table[k] + 8 * 22));
    }
}

/* The end is lost, and lies in what compressed clusters name. */
static void damage_cut(struct world *w)
{
    w->store->length -= 3000 * CLUSTER + 100;
    uint64_t last = round_down(w->store->length, CLUSTER);
    for (unsigned k = 0; k < BATCHES; k++) {
        put(w, entry_place(w, table_of(k), 3), ENTRY_COMPRESSED | (last + 8 * k));
        put(w, entry_place(w, table_of(k), 4), ENTRY_COMPRESSED | (last + 16));
    }
}

static const struct scene {
    const char *name;
    void (*damage)(struct world *w);
    unsigned allow;
    unsigned numbers[8]; /* that are found */
    bool mended;         /* a repair leaves nothing */
} scenes[] = {
    {"counts", damage_counts, QK_ALLOW_COPIES, {1, 2, 3, 24, 34, 35}, true},
    {"blocks", damage_blocks, QK_ALLOW_COPIES, {1, 2, 3, 5, 24, 34, 35}, true},
    {"entries", damage_entries, QK_ALLOW_ENTRIES, {2, 20, 22, 30, 33, 35, 40, 80}, false},
    {"orphans", damage_orphans, 0, {3, 47}, false},
    {"lost L1", damage_l1, QK_ALLOW_HEADER, {27}, false},
    {"snapshot", damage_snapshot, QK_ALLOW_COPIES | QK_ALLOW_ENTRIES, {1, 2, 3, 33, 34}, true},
    {"cut", damage_cut, QK_ALLOW_ENTRIES, {33, 43}, true},
};

/* ---- checks ---- */

struct run {
    const struct scene *scene;
    struct page_store *store;
    unsigned fix, threads;
    bool plan_only;
    struct talk talk;
    struct qk_check_result result;
    int ret;
};

/* The spots go bad once the image is open: opening needs the header and the L1. */
static void *check(void *opaque)
{
    struct run *r = opaque;
    struct qk_check_options opts = QK_CHECK_OPTIONS_INIT;
    unsigned bad_count = r->store->bad_count;
    opts.fix = r->fix;
    opts.plan_only = r->plan_only;
    opts.allow = r->fix ? r->scene->allow : 0;
    opts.threads = r->threads;
    opts.on_problem = on_problem;
    opts.on_run = on_run;
    opts.on_message = on_message;
    opts.on_step = on_step;
    opts.on_loss = on_loss;
    opts.opaque = &r->talk;
    r->store->bad_count = 0;
    struct image *img = open_for_check(&r->store->io, r->fix && !r->plan_only);
    r->store->bad_count = bad_count;
    r->ret = img ? check_image(img, &opts, &r->result, NULL) : -EINVAL;
    say_result(&r->talk, r->ret, &r->result);
    image_abandon(img);
    return NULL;
}

static bool same_talk(const struct run *a, const struct run *b, const char *what)
{
    size_t at = 0, line = 0;
    if (CHECK(a->talk.len == b->talk.len && !memcmp(a->talk.text, b->talk.text, a->talk.len)))
        return true;
    for (; at < a->talk.len && at < b->talk.len && a->talk.text[at] == b->talk.text[at]; at++)
        line = a->talk.text[at] == '\n' ? at + 1 : line;
    printf("    %s, %s:\n    %.300s\n    %.300s\n", a->scene->name, what, a->talk.text + line,
           b->talk.text + line);
    return false;
}

static void expect_found(const struct run *look)
{
    for (unsigned i = 0; i < ARRAY_SIZE(look->scene->numbers) && look->scene->numbers[i]; i++) {
        unsigned number = look->scene->numbers[i];
        if (!CHECK(look->talk.by_number[number]))
            printf("    %s: nothing was found under %u\n", look->scene->name, number);
    }
}

/* Once with one thread and once with many, each over a store of its own. */
static struct run check_both(const struct scene *scene, struct page_store *store, unsigned fix,
                             bool plan_only)
{
    struct run one = {.scene = scene,
                      .store = page_store_copy(store),
                      .fix = fix,
                      .plan_only = plan_only,
                      .threads = 1};
    struct run many = one;
    many.store = page_store_copy(store);
    many.threads = MANY_THREADS;
    check(&one);
    check(&many);
    CHECK_OK(one.ret);
    same_talk(&one, &many, plan_only ? "plan" : fix ? "repair" : "look");
    CHECK_EQ(page_store_differs(one.store, many.store), PAGES);
    CHECK_EQ(one.store->length, many.store->length);
    CHECK_EQ(one.store->writes > 0, fix && !plan_only && one.result.steps > 0);
    free(many.talk.text);
    page_store_free(many.store);
    return one;
}

static void run_free(struct run *r)
{
    free(r->talk.text);
    page_store_free(r->store);
}

static struct world damaged(const struct world *base, const struct scene *scene)
{
    struct world w = *base;
    w.store = page_store_copy(base->store);
    scene->damage(&w);
    w.store->writes = 0;
    return w;
}

static void test_scene(const struct world *base, const struct scene *scene)
{
    struct world w = damaged(base, scene);
    struct run look = check_both(scene, w.store, 0, false);
    struct run plan = check_both(scene, w.store, FIX, true);
    struct run repair = check_both(scene, w.store, FIX, false);
    struct run again = check_both(scene, repair.store, 0, false);
    expect_found(&look);
    CHECK(repair.result.steps > 0 || !scene->mended);
    CHECK_EQ(plan.result.steps, repair.result.steps);
    const struct qk_check_result *left = &again.result;
    if (!CHECK_EQ(!(left->corruptions + left->leaks + left->check_errors), scene->mended))
        printf("    %s:\n%.2000s\n", scene->name, again.talk.text);
    if (scene->damage == damage_orphans)
        CHECK_EQ(look.talk.first[47], table_off(base, table_of(0)));
    run_free(&look);
    run_free(&plan);
    run_free(&repair);
    run_free(&again);
    page_store_free(w.store);
}

/* ---- several at once ---- */

#define AT_ONCE 4u

static void test_at_once(const struct world *base)
{
    struct run alone[AT_ONCE], together[AT_ONCE];
    struct world w[AT_ONCE];
    pthread_t thread[AT_ONCE];
    for (unsigned i = 0; i < AT_ONCE; i++) {
        w[i] = damaged(base, &scenes[i]);
        alone[i] = (struct run){.scene = &scenes[i], .fix = FIX, .threads = 2};
        together[i] = alone[i];
        together[i].threads = 4;
        alone[i].store = page_store_copy(w[i].store);
        together[i].store = page_store_copy(w[i].store);
        check(&alone[i]);
    }
    for (unsigned i = 0; i < AT_ONCE; i++)
        CHECK_OK(pthread_create(&thread[i], NULL, check, &together[i]));
    for (unsigned i = 0; i < AT_ONCE; i++)
        pthread_join(thread[i], NULL);
    for (unsigned i = 0; i < AT_ONCE; i++) {
        same_talk(&alone[i], &together[i], "at once");
        CHECK_EQ(page_store_differs(alone[i].store, together[i].store), PAGES);
        run_free(&alone[i]);
        run_free(&together[i]);
        page_store_free(w[i].store);
    }
}

/* ---- cancelling ---- */

struct patience {
    unsigned calls, most; /* the call that cancels */
    uint64_t last;
    bool back; /* it went back, or behind its end */
};

static int lose_patience(void *opaque, uint64_t done, uint64_t total)
{
    struct patience *p = opaque;
    p->back |= done < p->last || done > total;
    p->last = done;
    return ++p->calls >= p->most;
}

/* Nobody is asked again, and nothing is written, though threads were in the middle of it. */
static bool cancel_at(struct page_store *store, unsigned most)
{
    struct patience p = {.most = most};
    struct qk_check_options opts = QK_CHECK_OPTIONS_INIT;
    struct qk_check_result r;
    struct image *img = open_for_check(&store->io, true);
    opts.threads = MANY_THREADS;
    opts.fix = FIX;
    opts.progress = (struct qk_progress){lose_patience, &p};
    int ret = check_image(img, &opts, &r, NULL);
    image_abandon(img);
    CHECK(!p.back);
    if (p.calls < most)
        return false;
    CHECK_ERR(ret, -ECANCELED);
    CHECK_EQ(p.calls, most);
    CHECK_EQ(store->writes, 0);
    return true;
}

static void test_cancel(const struct world *base)
{
    struct world w = damaged(base, &scenes[0]);
    for (unsigned most = 1; most <= 2 * BATCHES; most += 3)
        CHECK(cancel_at(w.store, most));
    page_store_free(w.store);
}

int main(void)
{
    struct world base = base_world();
    for (size_t i = 0; i < ARRAY_SIZE(scenes); i++)
        test_scene(&base, &scenes[i]);
    test_at_once(&base);
    test_cancel(&base);
    page_store_free(base.store);
    return TEST_SUMMARY();
}
