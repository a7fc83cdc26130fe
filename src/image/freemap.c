/*
 * freemap.c - the free clusters of a file as a sparse tree. A slot of the tree stands for a
 * power-of-two range of clusters and knows the free run at its start, at its end, and the longest
 * one inside, so that the lowest fit is found by one walk down. Ranges that are alike throughout
 * take no memory: free, used, or unknown. Unknown counts as free until a search wants to use it;
 * then it is loaded and the search starts again, which keeps the answer the lowest (INV-5): what
 * is loaded can only take candidates away.
 *
 *      UNKNOWN --load--> FREE | USED | LEAF (4096 bits)        NODE = 16 slots of any kind
 *
 * Relies on the load callback; promises that a change either happens as a whole or not at all:
 * everything that needs memory is done first (split), the change itself (fill) cannot fail.
 */
#include "image/freemap.h"

#include "base/checked.h"
#include "base/cleanup.h"

#include <string.h>

#define LEAF_SHIFT  12u
#define LEAF_WORDS  (FREEMAP_LEAF / 64)
#define FANOUT_BITS 4u
#define FANOUT      (1u << FANOUT_BITS)
#define ROOT_SHIFT  48u
#define MAP_END     (UINT64_C(1) << ROOT_SHIFT)

_Static_assert(FREEMAP_LEAF == 1u << LEAF_SHIFT, "leaf size");
_Static_assert((ROOT_SHIFT - LEAF_SHIFT) % FANOUT_BITS == 0, "levels end at leaves");

enum slot_kind { SLOT_FREE, SLOT_USED, SLOT_UNKNOWN, SLOT_NODE, SLOT_LEAF };

/* Lengths of free runs inside a range. */
struct runs {
    uint64_t prefix, suffix, longest;
};

struct slot {
    struct runs runs;
    enum slot_kind kind;
    union {
        struct node *node;
        uint64_t *bits; /* 1: used */
    } u;
};

struct node {
    struct slot slots[FANOUT];
};

struct freemap {
    struct slot root;
    freemap_load_fn load;
    void *opaque;
};

/* A slot with the range it stands for. */
struct place {
    struct slot *slot;
    uint64_t base;
    unsigned shift;
};

static uint64_t span_of(struct place p)
{
    return UINT64_C(1) << p.shift;
}

static struct place child_of(struct place p, unsigned i)
{
    unsigned shift = p.shift - FANOUT_BITS;
    return (struct place){&p.slot->u.node->slots[i], p.base + ((uint64_t)i << shift), shift};
}

static unsigned child_index(struct place p, uint64_t cluster)
{
    return (unsigned)((cluster - p.base) >> (p.shift - FANOUT_BITS));
}

static struct place root_of(struct freemap *map)
{
    return (struct place){&map->root, 0, ROOT_SHIFT};
}

/* ---- free runs ---- */

/* Puts b behind a; the spans tell whether a run goes through. */
static struct runs runs_join(struct runs a, uint64_t a_span, struct runs b, uint64_t b_span)
{
    return (struct runs){
        .prefix = a.prefix == a_span ? a_span + b.prefix : a.prefix,
        .suffix = b.suffix == b_span ? b_span + a.suffix : b.suffix,
        .longest = max_u64(max_u64(a.longest, b.longest), a.suffix + b.prefix),
    };
}

static uint64_t longest_in_word(uint64_t freed)
{
    uint64_t n = 0;
    for (; freed; freed &= freed << 1)
        n++;
    return n;
}

static struct runs runs_of_word(uint64_t used)
{
    if (!used)
        return (struct runs){64, 64, 64};
    return (struct runs){(uint64_t)__builtin_ctzll(used), (uint64_t)__builtin_clzll(used),
                         longest_in_word(~used)};
}

static struct runs runs_of_bits(const uint64_t *bits)
{
    struct runs runs = {0};
    uint64_t span = 0;
    for (unsigned i = 0; i < LEAF_WORDS; i++, span += 64)
        runs = runs_join(runs, span, runs_of_word(bits[i]), 64);
    return runs;
}

static struct runs runs_of_node(const struct node *node, unsigned shift)
{
    uint64_t child_span = UINT64_C(1) << (shift - FANOUT_BITS), span = 0;
    struct runs runs = {0};
    for (unsigned i = 0; i < FANOUT; i++, span += child_span)
        runs = runs_join(runs, span, node->slots[i].runs, child_span);
    return runs;
}

/* ---- slots ---- */

static void slot_release(struct slot *slot)
{
    if (slot->kind == SLOT_NODE) {
        for (unsigned i = 0; i < FANOUT; i++)
            slot_release(&slot->u.node->slots[i]);
        free(slot->u.node);
    } else if (slot->kind == SLOT_LEAF) {
        free(slot->u.bits);
    }
    slot->u.node = NULL;
}

static void slot_set_alike(struct place p, enum slot_kind kind)
{
    uint64_t n = kind == SLOT_USED ? 0 : span_of(p);
    slot_release(p.slot);
    *p.slot = (struct slot){.runs = {n, n, n}, .kind = kind};
}

/* Recomputes the runs of a leaf or node that was changed; one that is alike throughout becomes a
 * plain slot again. */
static void slot_settle(struct place p)
{
    if (p.slot->kind == SLOT_LEAF) {
        p.slot->runs = runs_of_bits(p.slot->u.bits);
        if (p.slot->runs.longest == FREEMAP_LEAF)
            slot_set_alike(p, SLOT_FREE);
        else if (!p.slot->runs.longest)
            slot_set_alike(p, SLOT_USED);
        return;
    }
    const struct slot *slots = p.slot->u.node->slots;
    enum slot_kind kind = slots[0].kind;
    bool alike = kind < SLOT_NODE;
    for (unsigned i = 1; i < FANOUT && alike; i++)
        alike = slots[i].kind == kind;
    if (alike)
        slot_set_alike(p, kind);
    else
        p.slot->runs = runs_of_node(p.slot->u.node, p.shift);
}

static int expand_to_leaf(struct slot *slot)
{
    uint64_t *bits = malloc(FREEMAP_LEAF / 8);
    if (!bits)
        return -ENOMEM;
    memset(bits, slot->kind == SLOT_USED ? 0xff : 0, FREEMAP_LEAF / 8);
    slot->kind = SLOT_LEAF;
    slot->u.bits = bits;
    return 0;
}

/* Gives a slot that is alike throughout its own children; its meaning stays the same. */
static int expand(struct place p)
{
    if (p.shift == LEAF_SHIFT)
        return expand_to_leaf(p.slot);
    struct node *node = calloc(1, sizeof(*node));
    if (!node)
        return -ENOMEM;
    enum slot_kind kind = p.slot->kind;
    p.slot->kind = SLOT_NODE;
    p.slot->u.node = node;
    for (unsigned i = 0; i < FANOUT; i++)
        slot_set_alike(child_of(p, i), kind);
    return 0;
}

/* Makes `at` the border of two slots, or a position inside a leaf's bits. */
static int split(struct freemap *map, uint64_t at)
{
    struct place p = root_of(map);
    while (at > p.base && at < p.base + span_of(p)) {
        if (p.slot->kind < SLOT_NODE && expand(p) < 0)
            return -ENOMEM;
        if (p.slot->kind == SLOT_LEAF)
            break;
        p = child_of(p, child_index(p, at));
    }
    return 0;
}

static void bits_fill(uint64_t *bits, uint64_t lo, uint64_t hi, bool used)
{
    while (lo < hi) {
        uint64_t n = min_u64(64 - lo % 64, hi - lo);
        uint64_t mask = UINT64_MAX >> (64 - n) << (lo % 64);
        bits[lo / 64] = used ? bits[lo / 64] | mask : bits[lo / 64] & ~mask;
        lo += n;
    }
}

/* What a range becomes: free, used, or (exactly one leaf) these bits, which are handed over. */
struct fill {
    uint64_t lo, hi;
    enum slot_kind kind;
    uint64_t *bits;
};

/* Carries out a fill whose borders were split; cannot fail. */
static void fill(struct place p, const struct fill *f)
{
    uint64_t lo = max_u64(f->lo, p.base), hi = min_u64(f->hi, p.base + span_of(p));
    if (lo >= hi)
        return;
    if (hi - lo == span_of(p)) {
        slot_set_alike(p, f->kind);
        if (!f->bits)
            return;
        p.slot->kind = SLOT_LEAF;
        p.slot->u.bits = f->bits;
    } else if (p.slot->kind == SLOT_LEAF) {
        bits_fill(p.slot->u.bits, lo - p.base, hi - p.base, f->kind == SLOT_USED);
    } else {
        for (unsigned i = child_index(p, lo); i <= child_index(p, hi - 1); i++)
            fill(child_of(p, i), f);
    }
    slot_settle(p);
}

static int split_and_fill(struct freemap *map, const struct fill *f)
{
    if (split(map, f->lo) < 0 || split(map, f->hi) < 0)
        return -ENOMEM;
    fill(root_of(map), f);
    return 0;
}

/* The smallest slot around a cluster. */
static struct place place_of(struct freemap *map, uint64_t cluster)
{
    struct place p = root_of(map);
    while (p.slot->kind == SLOT_NODE)
        p = child_of(p, child_index(p, cluster));
    return p;
}

/* ---- loading ---- */

/* Loads the leaf around `cluster` when it is unknown. */
static int load_leaf(struct freemap *map, uint64_t cluster, struct qk_error *err)
{
    if (place_of(map, cluster).slot->kind != SLOT_UNKNOWN)
        return 0;
    uint64_t base = round_down(cluster, FREEMAP_LEAF);
    CLEANUP_FREE uint64_t *bits = calloc(LEAF_WORDS, sizeof(*bits));
    if (!bits)
        return qk_fail_nomem(err);
    int ret = map->load(map->opaque, base >> LEAF_SHIFT, bits, err);
    if (ret < 0)
        return ret;
    struct fill f = {base, base + FREEMAP_LEAF, SLOT_FREE, bits};
    if (split_and_fill(map, &f) < 0)
        return qk_fail_nomem(err);
    bits = NULL; /* now the tree's */
    return 0;
}

/* ---- public ---- */

int freemap_new(uint64_t end, freemap_load_fn load, void *opaque, struct freemap **out,
                struct qk_error *err)
{
    struct freemap *map = calloc(1, sizeof(*map));
    if (!map)
        return qk_fail_nomem(err);
    map->load = load;
    map->opaque = opaque;
    slot_set_alike(root_of(map), SLOT_UNKNOWN);
    struct fill beyond = {round_up(min_u64(end, MAP_END), FREEMAP_LEAF), MAP_END, SLOT_FREE, NULL};
    if (split_and_fill(map, &beyond) < 0) {
        freemap_free(map);
        return qk_fail_nomem(err);
    }
    *out = map;
    return 0;
}

void freemap_free(struct freemap *map)
{
    if (map)
        slot_release(&map->root);
    free(map);
}

static int too_far(struct qk_error *err)
{
    return qk_fail(err, -EFBIG, "No room for clusters below the largest offset of the format");
}

int freemap_set(struct freemap *map, uint64_t start, uint64_t n, bool used, struct qk_error *err)
{
    if (!range_within(start, n, MAP_END))
        return too_far(err);
    if (!n)
        return 0;
    uint64_t end = start + n;
    int ret = is_aligned(start, FREEMAP_LEAF) ? 0 : load_leaf(map, start, err);
    if (ret == 0 && !is_aligned(end, FREEMAP_LEAF))
        ret = load_leaf(map, end, err);
    if (ret < 0)
        return ret;
    struct fill f = {start, end, used ? SLOT_USED : SLOT_FREE, NULL};
    return split_and_fill(map, &f) < 0 ? qk_fail_nomem(err) : 0;
}

static bool bit_is_set(const uint64_t *bits, uint64_t i)
{
    return bits[i / 64] >> (i % 64) & 1;
}

int freemap_is_used(struct freemap *map, uint64_t cluster, bool *used, struct qk_error *err)
{
    if (cluster >= MAP_END)
        return too_far(err);
    int ret = load_leaf(map, cluster, err);
    if (ret < 0)
        return ret;
    struct place p = place_of(map, cluster);
    *used = p.slot->kind == SLOT_LEAF ? bit_is_set(p.slot->u.bits, cluster - p.base)
                                      : p.slot->kind == SLOT_USED;
    return 0;
}

/* ---- searching ---- */

/* First bit at or after `at` that is `used`; FREEMAP_LEAF when there is none. */
static uint64_t bits_next(const uint64_t *bits, uint64_t at, bool used)
{
    while (at < FREEMAP_LEAF) {
        uint64_t word = (used ? bits[at / 64] : ~bits[at / 64]) >> (at % 64);
        if (word)
            return at + (uint64_t)__builtin_ctzll(word);
        at = round_down(at, 64) + 64;
    }
    return FREEMAP_LEAF;
}

/* The first run of n inside a leaf that has one. */
static uint64_t bits_find(const uint64_t *bits, uint64_t n)
{
    uint64_t at = 0, end = 0;
    for (;; at = end) {
        at = bits_next(bits, at, false);
        end = bits_next(bits, at, true);
        if (end - at >= n || at >= FREEMAP_LEAF)
            return at;
    }
}

/* Lowest run of n that is not known to be used. */
static uint64_t find_candidate(struct freemap *map, uint64_t n)
{
    struct place p = root_of(map);
    uint64_t before = 0; /* free clusters right in front of p */
    if (p.slot->runs.longest < n)
        return MAP_END;
    while (p.slot->kind == SLOT_NODE) {
        for (unsigned i = 0; i < FANOUT; i++) {
            struct place c = child_of(p, i);
            const struct runs *runs = &c.slot->runs;
            if (before + runs->prefix >= n)
                return c.base - before;
            if (runs->longest >= n) {
                p = c;
                break;
            }
            before = runs->prefix == span_of(c) ? before + span_of(c) : runs->suffix;
        }
    }
    return p.base + (p.slot->kind == SLOT_LEAF ? bits_find(p.slot->u.bits, n) : 0);
}

/* Loads what is unknown of [start, end), up to the first leaf that turns out to hold something.
 * *confirmed: nothing had to be loaded, or all that was is free. */
static int confirm(struct freemap *map, uint64_t start, uint64_t end, bool *confirmed,
                   struct qk_error *err)
{
    *confirmed = true;
    while (start < end && *confirmed) {
        struct place p = place_of(map, start);
        if (p.slot->kind == SLOT_UNKNOWN) {
            int ret = load_leaf(map, start, err);
            if (ret < 0)
                return ret;
            p = place_of(map, start);
            *confirmed = p.slot->kind == SLOT_FREE;
        }
        start = p.slot->kind == SLOT_UNKNOWN ? start : p.base + span_of(p);
    }
    return 0;
}

int freemap_find(struct freemap *map, uint64_t n, uint64_t *start, struct qk_error *err)
{
    for (;;) {
        uint64_t at = find_candidate(map, n);
        bool confirmed;
        if (!range_within(at, n, MAP_END))
            return too_far(err);
        int ret = confirm(map, at, at + n, &confirmed, err);
        if (ret < 0)
            return ret;
        if (confirmed) {
            *start = at;
            return 0;
        }
    }
}

int freemap_find_any(struct freemap *map, uint64_t n, uint64_t *start, uint64_t *len,
                     struct qk_error *err)
{
    int ret = freemap_find(map, 1, start, err);
    if (ret < 0)
        return ret;
    uint64_t at = *start, end = at + min_u64(n, MAP_END - at);
    while (at < end) {
        ret = load_leaf(map, at, err);
        if (ret < 0)
            return ret;
        struct place p = place_of(map, at);
        if (p.slot->kind == SLOT_USED)
            break;
        uint64_t p_end = p.base + span_of(p), next = p_end;
        if (p.slot->kind == SLOT_LEAF)
            next = p.base + bits_next(p.slot->u.bits, at - p.base, true);
        at = next;
        if (next < p_end)
            break;
    }
    *len = min_u64(at, end) - *start;
    return 0;
}

/* ---- the end ---- */

/* One more than the highest bit set below `limit`; 0: none. */
static uint64_t bits_end(const uint64_t *bits, uint64_t limit)
{
    for (uint64_t i = div_round_up(limit, 64); i-- > 0;) {
        uint64_t left = limit - i * 64;
        uint64_t word = bits[i] & (left < 64 ? (UINT64_C(1) << left) - 1 : UINT64_MAX);
        if (word)
            return i * 64 + log2_floor(word) + 1;
    }
    return 0;
}

int freemap_used_end(struct freemap *map, uint64_t *end, struct qk_error *err)
{
    int ret = 0;
    while (*end && ret == 0) {
        struct place p = place_of(map, *end - 1);
        if (p.slot->kind == SLOT_USED)
            break;
        if (p.slot->kind == SLOT_UNKNOWN) {
            ret = load_leaf(map, *end - 1, err);
            continue;
        }
        uint64_t last = p.slot->kind == SLOT_LEAF ? bits_end(p.slot->u.bits, *end - p.base) : 0;
        *end = p.base + last;
        if (last)
            break;
    }
    return ret;
}
