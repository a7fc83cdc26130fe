/*
 * rollback_loss.c - what the guest reads anew when the disk goes back to a snapshot: the active
 * tables, as far as they can be read, against the snapshot's, entry by entry where the tables are
 * not the same. What cannot be read counts as given up. Work is bounded by the tables of the image,
 * however often its L1 tables name them; memory by four clusters.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "check/internal.h"
#include "check/rollback.h"

#define L1_CHUNK 512u

/* One of the two trees, and the last table of it that was read. */
struct tree {
    uint64_t l1_off, l1_entries;
    uint64_t words[L1_CHUNK];
    uint64_t at; /* the table's offset; 0: all zeroes */
    uint8_t *table;
};

struct compare {
    struct check *c;
    struct tree old, new;
    uint64_t disk_bytes, reads; /* reads: that are left */
    struct rollback_loss *loss;
};

static void lose(struct compare *p, uint64_t off, uint64_t bytes)
{
    struct rollback_loss *l = p->loss;
    if (off >= p->disk_bytes)
        return;
    bytes = min_u64(bytes, p->disk_bytes - off);
    unsigned last = l->count ? l->count - 1 : 0;
    if (l->count && (l->off[last] + l->bytes[last] == off || l->count == ROLLBACK_RANGES)) {
        l->bytes[last] = off + bytes - l->off[last];
        return;
    }
    l->off[l->count] = off;
    l->bytes[l->count++] = bytes;
}

/* Entries [first, first + L1_CHUNK), zeroes behind the table's end. False: they cannot be read. */
static bool load_words(struct check *c, struct tree *t, uint64_t first)
{
    uint64_t n = first < t->l1_entries ? min_u64(L1_CHUNK, t->l1_entries - first) : 0;
    memset(t->words, 0, sizeof(t->words));
    if (n && io_read(c->file, t->l1_off + first * 8, t->words, (size_t)n * 8, NULL) < 0)
        return false;
    for (uint64_t i = 0; i < n; i++)
        t->words[i] = be64toh(t->words[i]);
    return true;
}

static bool load_table(struct compare *p, struct tree *t, uint64_t raw)
{
    struct check *c = p->c;
    uint64_t off = l1_entry_host(raw);
    if (off == t->at)
        return true;
    if (off && (!l1_judge(c, raw).usable || !p->reads))
        return false;
    t->at = UINT64_MAX;
    if (off) {
        p->reads--;
        if (io_read(c->file, off, t->table, c->g->cluster_bytes, NULL) < 0)
            return false;
    } else {
        memset(t->table, 0, c->g->cluster_bytes);
    }
    t->at = off;
    return true;
}

static void compare_tables(struct compare *p, uint64_t guest)
{
    const struct geometry *g = p->c->g;
    for (uint32_t i = 0; i < g->l2_entries; i++) {
        struct l2_entry a = l2_entry_load(g, p->old.table, i),
                        b = l2_entry_load(g, p->new.table, i);
        if (((a.raw ^ b.raw) & ~ENTRY_COPIED) || a.bitmap != b.bitmap)
            lose(p, guest + ((uint64_t)i << g->cluster_bits), g->cluster_bytes);
    }
}

static void compare_chunk(struct compare *p, uint64_t first, bool readable)
{
    const uint64_t each = (uint64_t)p->c->g->l2_entries << p->c->g->cluster_bits;
    for (uint64_t i = 0; i < L1_CHUNK && (first + i) * each < p->disk_bytes; i++) {
        uint64_t old = p->old.words[i], new = p->new.words[i];
        if (readable && l1_entry_host(old) == l1_entry_host(new))
            continue;
        if (readable && load_table(p, &p->old, old) && load_table(p, &p->new, new))
            compare_tables(p, (first + i) * each);
        else
            lose(p, (first + i) * each, each);
    }
}

static int compare_all(struct compare *p, struct qk_error *err)
{
    const uint64_t each = (uint64_t)p->c->g->l2_entries << p->c->g->cluster_bits;
    for (uint64_t first = 0; first * each < p->disk_bytes; first += L1_CHUNK) {
        int ret = progress_add(p->c, 0, err);
        if (ret < 0)
            return ret;
        bool readable = load_words(p->c, &p->old, first) && load_words(p->c, &p->new, first);
        compare_chunk(p, first, readable);
    }
    return 0;
}

int rollback_loss(struct check *c, const struct rollback *r, struct rollback_loss *loss,
                  struct qk_error *err)
{
    CLEANUP_FREE uint8_t *tables = calloc(2, c->g->cluster_bytes);
    loss->count = 0;
    if (!tables)
        return qk_fail_nomem(err);
    struct compare p = {.c = c,
                        .old = {r->old_l1_off, r->old_l1_entries, {0}, 0, tables},
                        .new = {r->l1_off, r->l1_entries, {0}, 0, tables + c->g->cluster_bytes},
                        .disk_bytes = max_u64(r->old_disk_bytes, r->disk_bytes),
                        .reads = 4 * (uint64_t)c->tables.len,
                        .loss = loss};
    if (!r->old_l1_entries) {
        lose(&p, 0, p.disk_bytes);
        return 0;
    }
    return compare_all(&p, err);
}
