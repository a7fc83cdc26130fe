/*
 * header_choose.c - which header a check takes the first bytes of a file for. The fields on which
 * the meaning of every table depends (version, cluster size, extended L2 entries, data file) are
 * believed when the tables confirm them. When they do not, each other value of one of these fields
 * is tried, and one that the tables confirm is taken if no other could be meant as well. Without
 * such a one the fields are believed as far as an image can have them.
 *
 * Promises at most 56 looks of bounded work (header_evidence.c), one at a sound image; that
 * what it gives can be used without further checks of the header (INV-4); and that a header which
 * is possible is read as something else only against its own tables.
 */
#include "image/header_evidence.h"

#include "base/bytes.h"
#include "base/checked.h"

#define MAX_READINGS         56u
#define CLUSTER_BITS_UNKNOWN 16u

struct choice {
    struct header_reading reading;
    struct header h;
    struct evidence e;
    bool unknown_features;
};

struct choosing {
    struct qk_io *file;
    const uint8_t *first;
    size_t len;
    uint64_t features; /* incompatible ones, as in a header of version 3 */
    struct choice tried[MAX_READINGS];
    unsigned count;
};

/* Too little is broken to believe that the header is. */
static bool confirmed(const struct evidence *e)
{
    return e->broken * 4 <= e->facts;
}

/* Nearly nothing is broken; without refcounts most cluster sizes would do. */
static bool convincing(const struct evidence *e)
{
    return !e->blind && e->facts >= 4 && e->broken * 16 <= e->facts;
}

/* The same where refcounts tell nothing: all tables fit, and clusters are seen to have this size.
 * With a smaller one no two clusters would lie side by side, with a larger one places are not
 * aligned. */
static bool steady(const struct evidence *e)
{
    return e->facts >= 7 && !e->misfit && e->adjacent;
}

/* Adds a reading that an image can have. */
static int try(struct choosing *c, struct header_reading r, struct qk_error *err)
{
    struct choice *t = &c->tried[c->count];
    if (!header_reading_possible(&r, c->features) || c->count == MAX_READINGS)
        return 0;
    *t = (struct choice){.reading = r};
    t->unknown_features = r.version >= 3 && c->features & ~(uint64_t)INCOMPAT_KNOWN;
    int ret = header_read_as(c->first, c->len, &r, &t->h, err);
    if (ret == 0)
        ret = header_evidence(c->file, &t->h, &t->e, err);
    c->count += ret == 0;
    return ret;
}

static const uint64_t flips[] = {INCOMPAT_EXTENDED_L2, INCOMPAT_DATA_FILE};

static int try_sizes(struct choosing *c, struct header_reading base, struct qk_error *err)
{
    struct header_reading r = base;
    int ret = 0;
    for (r.cluster_bits = QCOW2_MIN_CLUSTER_BITS;
         ret == 0 && r.cluster_bits <= QCOW2_MAX_CLUSTER_BITS; r.cluster_bits++) {
        if (r.cluster_bits != base.cluster_bits)
            ret = try(c, r, err);
    }
    return ret;
}

static bool is_extension_type(uint32_t type)
{
    static const uint32_t types[] = {HEXT_FEATURE_NAMES, HEXT_BACKING_FORMAT, HEXT_BITMAPS,
                                     HEXT_CRYPTO, HEXT_DATA_FILE};
    for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
        if (type == types[i])
            return true;
    }
    return false;
}

/* Behind such a header are extensions, their end, or the backing file's name, and no feature bits.
 */
static bool may_be_version_2(const struct choosing *c)
{
    return !c->features || is_extension_type((uint32_t)(c->features >> 32)) ||
           load_be64(c->first + 8) == QCOW2_V2_HEADER_BYTES;
}

/* Every reading that differs from `base` in one field. */
static int try_others(struct choosing *c, struct header_reading base, struct qk_error *err)
{
    struct header_reading r = base;
    r.version = header_likely_version(c->first, c->len);
    bool other = r.version != base.version && (r.version == 3 || may_be_version_2(c));
    int ret = other ? try(c, r, err) : 0;
    if (ret == 0)
        ret = try_sizes(c, base, err);
    r = base;
    for (size_t i = 0; ret == 0 && i < ARRAY_SIZE(flips); i++) {
        r.flipped = flips[i];
        ret = try(c, r, err);
    }
    return ret;
}

/* No cluster size fits: a feature may be wrong as well. */
static int try_pairs(struct choosing *c, struct header_reading base, struct qk_error *err)
{
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < ARRAY_SIZE(flips); i++) {
        base.flipped = flips[i];
        ret = try_sizes(c, base, err);
    }
    return ret;
}

static uint64_t held(const struct evidence *e)
{
    return e->facts - e->broken;
}

/* Nothing speaks against the larger cluster size, and clusters lie side by side with that alone:
 * what is aligned to large clusters is to small ones, too, and partly counted. */
static bool taller(const struct choice *t, const struct choice *other)
{
    return t->reading.cluster_bits > other->reading.cluster_bits && steady(&t->e) && !t->e.broken &&
           !other->e.adjacent;
}

/* Other entries in the same clusters, some of which make no sense. */
static bool plainer(const struct choice *t, const struct choice *other)
{
    return t->reading.cluster_bits == other->reading.cluster_bits && !t->e.broken &&
           other->e.misfit && !convincing(&other->e) && held(&t->e) > held(&other->e);
}

/* The one that convinces most, when no other might be meant: one for which nearly as much speaks.
 */
static const struct choice *winner(const struct choosing *c, const struct choice *own,
                                   bool unknown_features)
{
    const struct choice *best = NULL;
    unsigned rivals = 0;
    for (unsigned i = 0; i < c->count; i++) {
        const struct choice *t = &c->tried[i];
        if ((!t->unknown_features || unknown_features) && convincing(&t->e) &&
            (!best || held(&t->e) > held(&best->e)))
            best = t;
    }
    for (unsigned i = 0; best && i < c->count; i++) {
        const struct choice *t = &c->tried[i];
        rivals += t != best && t != own && !taller(best, t) && !plainer(best, t) &&
                  (!t->unknown_features || unknown_features) &&
                  (convincing(&t->e) ||
                   (!t->e.blind && confirmed(&t->e) && held(&t->e) * 2 >= held(&best->e)));
    }
    return rivals ? NULL : best;
}

/* Behind a header of version 2 there is one of version 3, which says something else. No version 3
 * has the type of an extension for feature bits: that is an extension of version 2. */
static bool version_3_behind(const struct choosing *c)
{
    uint8_t type[4];
    if (header_likely_version(c->first, c->len) != 3 ||
        is_extension_type((uint32_t)(c->features >> 32)))
        return false;
    if (c->features || load_be64(c->first + 88) || load_be32(c->first + 96) != 4)
        return true;
    if (io_read(c->file, load_be32(c->first + 100), type, sizeof(type), NULL) < 0)
        return false;
    return is_extension_type(load_be32(type));
}

/* What the file says is not given up for less than it has; and the cluster size, with which more or
 * less of the file is looked at, only against its own tables. */
static bool better(const struct choice *t, const struct choice *own)
{
    uint32_t size = t->reading.cluster_bits, own_size = own->reading.cluster_bits;
    bool same_size = size == own_size;
    /* What is aligned to large clusters is to small ones, too, and says nothing for them. */
    if (size < own_size && !own->e.unaligned)
        return false;
    return !confirmed(&own->e) || taller(t, own) ||
           (same_size && !t->e.broken && held(&t->e) > held(&own->e));
}

/* The one that is steady; NULL: none, or several. */
static const struct choice *steady_one(const struct choosing *c)
{
    const struct choice *found = NULL;
    unsigned n = 0;
    for (unsigned i = 0; i < c->count; i++) {
        if (steady(&c->tried[i].e)) {
            found = &c->tried[i];
            n++;
        }
    }
    return n == 1 ? found : NULL;
}

static bool fits(const struct evidence *e)
{
    return e->misfit * 4 <= e->facts;
}

/* After all were tried; `possible`: the first one is what the file says. */
static const struct choice *best_of(const struct choosing *c, bool possible)
{
    const struct choice *own = possible ? &c->tried[0] : NULL;
    const struct choice *best = winner(c, own, false), *only = steady_one(c);
    if (best && (!own || own->unknown_features || better(best, own)))
        return best;
    if (own && !own->e.blind && (confirmed(&own->e) || (best && !own->unknown_features)))
        return own;
    best = winner(c, own, true);
    if (best || (own && steady(&own->e)))
        return best ? best : own;
    return only && (!own || own->e.blind || !fits(&own->e)) ? only : own;
}

/* Without refcounts, what is chosen does not fit, and something else would. */
static bool doubtful(const struct choosing *c, const struct choice *best)
{
    if (!best->e.blind || fits(&best->e))
        return false;
    for (unsigned i = 0; i < c->count; i++) {
        const struct choice *t = &c->tried[i];
        bool smaller = t->reading.cluster_bits < best->reading.cluster_bits;
        if (fits(&t->e) && held(&t->e) >= held(&best->e) && (!smaller || best->e.unaligned))
            return true;
    }
    return false;
}

/* *best NULL: nothing can be read. */
static int choose(struct choosing *c, const struct choice **best, struct qk_error *err)
{
    struct header_reading own = {load_be32(c->first + 4), load_be32(c->first + 20), 0};
    bool disguised = own.version == 2 && version_3_behind(c);
    if (disguised || (own.version != 2 && own.version != 3))
        own.version = header_likely_version(c->first, c->len);
    int ret = try(c, own, err);
    bool possible = c->count == 1;
    *best = possible ? &c->tried[0] : NULL;
    if (ret < 0 || (possible && convincing(&c->tried[0].e) && !c->tried[0].unknown_features))
        return ret;
    ret = try_others(c, own, err);
    *best = ret < 0 ? NULL : best_of(c, possible);
    if (ret == 0 && (!*best || (possible && *best == &c->tried[0] && !steady(&(*best)->e)))) {
        ret = try_pairs(c, own, err);
        *best = ret < 0 ? NULL : best_of(c, possible);
    }
    return ret;
}

/* Without a cluster size there are no tables. */
static void read_nothing(struct header *h, uint32_t version)
{
    *h = (struct header){.version = version,
                         .cluster_bits = CLUSTER_BITS_UNKNOWN,
                         .refcount_order = 4,
                         .header_bytes =
                             version == 2 ? QCOW2_V2_HEADER_BYTES : QCOW2_FULL_HEADER_BYTES};
}

static int no_image(struct qk_error *err)
{
    return qk_fail_at(err, -EINVAL, WHERE(NULL, "header", 0), "Image is not in qcow2 format");
}

int header_choose(struct qk_io *file, const uint8_t *first, size_t len, struct header *h,
                  struct header_stored *stored, struct qk_error *err)
{
    struct choosing c = {.file = file, .first = first, .len = len};
    const struct choice *best;
    if (len < QCOW2_V2_HEADER_BYTES)
        return no_image(err);
    if (len >= QCOW2_V3_HEADER_BYTES)
        c.features = load_be64(first + 72);
    stored->magic_wrong = load_be32(first) != QCOW2_MAGIC;
    int ret = choose(&c, &best, err);
    if (ret < 0)
        return ret;
    if (stored->magic_wrong && !(best && (convincing(&best->e) || steady(&best->e))))
        return no_image(err);
    stored->unreadable = !best;
    stored->doubtful = best && doubtful(&c, best);
    if (best)
        *h = best->h;
    else
        read_nothing(h, header_likely_version(first, len));
    ret = header_decode_as(first, len, h->version, &stored->fields, err);
    if (ret == 0 && h->version >= 3)
        stored->fields.compression_type =
            h->header_bytes > QCOW2_V3_HEADER_BYTES ? first[QCOW2_V3_HEADER_BYTES] : 0;
    return ret;
}
