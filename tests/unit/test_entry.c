/*
 * test_entry.c - geometry for every cluster size and width, L1 and L2 entries of every form, with
 * and without subclusters, and the compressed descriptor at every cluster size.
 */
#include "base/checked.h"
#include "format/entry.h"
#include "test.h"

static struct geometry geometry(uint32_t version, uint32_t cluster_bits, uint64_t incompatible)
{
    struct header h = {.version = version,
                       .cluster_bits = cluster_bits,
                       .refcount_order = 4,
                       .incompatible = incompatible};
    return geometry_of(&h);
}

static void geometry_values(void)
{
    for (uint32_t bits = 9; bits <= 21; bits++) {
        struct geometry g = geometry(3, bits, 0);
        CHECK_EQ(g.cluster_bytes, 1 << bits);
        CHECK_EQ(g.l2_entries, (1 << bits) / 8);
        CHECK_EQ(1u << g.l2_bits, g.l2_entries);
        CHECK_EQ(g.subclusters, 1);
        CHECK_EQ(g.subcluster_bits, bits);
        CHECK_EQ(1u << g.refblock_bits, (1 << bits) / 2);
        for (uint32_t order = 0; order <= 6; order++) {
            struct header h = {.version = 3, .cluster_bits = bits, .refcount_order = order};
            g = geometry_of(&h);
            CHECK_EQ(UINT64_C(1) << g.refblock_bits, (UINT64_C(8) << bits) / (1u << order));
            CHECK(g.refcount_max == (order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << order)) - 1));
        }
    }
    struct geometry g = geometry(3, 16, INCOMPAT_EXTENDED_L2);
    CHECK_EQ(g.l2_entry_bytes, 16);
    CHECK_EQ(g.l2_entries, 4096);
    CHECK_EQ(g.subclusters, 32);
    CHECK_EQ(g.subcluster_bits, 11);
    CHECK(!g.zero_flag && !geometry(2, 16, 0).zero_flag && geometry(3, 16, 0).zero_flag);
}

static void l1_sizes(void)
{
    struct geometry g = geometry(3, 16, 0); /* 512 MiB per L2 table */
    CHECK_EQ(geometry_l1_entries(&g, 0), 0);
    CHECK_EQ(geometry_l1_entries(&g, 1), 1);
    CHECK_EQ(geometry_l1_entries(&g, UINT64_C(512) << 20), 1);
    CHECK_EQ(geometry_l1_entries(&g, (UINT64_C(512) << 20) + 1), 2);
    CHECK_EQ(geometry_l1_entries(&g, UINT64_MAX), UINT64_C(1) << 35);
    g = geometry(3, 9, 0);
    CHECK_EQ(geometry_l1_entries(&g, UINT64_C(128) << 30), 4 << 20);
    g = geometry(3, 21, INCOMPAT_EXTENDED_L2);
    CHECK_EQ(geometry_l1_entries(&g, UINT64_C(1) << 60), (UINT64_C(1) << 60) / (UINT64_C(1) << 38));
}

#define OFF UINT64_C(0x00123456789a0000)

static void standard_kinds(void)
{
    static const struct {
        uint32_t version;
        uint64_t incompatible, raw;
        enum cluster_kind kind;
    } cases[] = {
        {3, 0, 0, CLUSTER_UNALLOCATED},
        {3, 0, OFF, CLUSTER_NORMAL},
        {3, 0, OFF | ENTRY_COPIED, CLUSTER_NORMAL},
        {3, 0, ENTRY_ZERO, CLUSTER_ZERO_PLAIN},
        {3, 0, ENTRY_ZERO | ENTRY_COPIED, CLUSTER_ZERO_PLAIN},
        {3, 0, OFF | ENTRY_ZERO, CLUSTER_ZERO_ALLOC},
        {3, 0, OFF | ENTRY_ZERO | ENTRY_COPIED, CLUSTER_ZERO_ALLOC},
        {3, 0, ENTRY_COPIED, CLUSTER_UNALLOCATED},
        {3, 0, L2_RESERVED_MASK, CLUSTER_UNALLOCATED},
        {3, 0, ENTRY_COMPRESSED | 0x5001, CLUSTER_COMPRESSED},
        {3, 0, ENTRY_COMPRESSED, CLUSTER_COMPRESSED},
        {3, 0, UINT64_MAX, CLUSTER_COMPRESSED},
        {2, 0, 0, CLUSTER_UNALLOCATED},
        {2, 0, OFF | ENTRY_COPIED, CLUSTER_NORMAL},
        {2, 0, ENTRY_ZERO, CLUSTER_INVALID},
        {2, 0, OFF | ENTRY_ZERO, CLUSTER_INVALID},
        {2, 0, ENTRY_COMPRESSED | 0x5001, CLUSTER_COMPRESSED},
        {3, INCOMPAT_DATA_FILE, ENTRY_COPIED, CLUSTER_NORMAL},
        {3, INCOMPAT_DATA_FILE, ENTRY_COPIED | ENTRY_ZERO, CLUSTER_ZERO_ALLOC},
        {3, INCOMPAT_DATA_FILE, 0, CLUSTER_UNALLOCATED},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct geometry g = geometry(cases[i].version, 16, cases[i].incompatible);
        struct l2_entry e = {cases[i].raw, UINT64_MAX};
        enum cluster_kind kind;
        CHECK_EQ(l2_entry_kind(&g, e, 0), cases[i].kind);
        CHECK_EQ(l2_entry_run(&g, e, 0, &kind), 1);
        CHECK_EQ(kind, cases[i].kind);
    }
}

/* What the specification says of one subcluster, or of the whole entry when it is invalid. */
static enum cluster_kind spec_subcluster(bool host, uint64_t bitmap, uint32_t sub)
{
    bool any_allocated = false, any_both = false;
    for (uint32_t i = 0; i < 32; i++) {
        bool a = bitmap >> i & 1, z = bitmap >> (32 + i) & 1;
        any_allocated |= a;
        any_both |= a && z;
    }
    if (host ? any_both : any_allocated)
        return CLUSTER_INVALID;
    if (bitmap >> (32 + sub) & 1)
        return host ? CLUSTER_ZERO_ALLOC : CLUSTER_ZERO_PLAIN;
    if (bitmap >> sub & 1)
        return CLUSTER_NORMAL;
    return host ? CLUSTER_UNALLOCATED_ALLOC : CLUSTER_UNALLOCATED;
}

static void check_extended(uint64_t raw, uint64_t bitmap)
{
    struct geometry g = geometry(3, 16, INCOMPAT_EXTENDED_L2);
    struct l2_entry e = {raw, bitmap};
    bool host = raw & L2_OFFSET_MASK, sound = true;
    for (uint32_t sub = 0; sub < 32; sub++) {
        enum cluster_kind expected = spec_subcluster(host, bitmap, sub), kind;
        uint32_t run = 1;
        while (sub + run < 32 && spec_subcluster(host, bitmap, sub + run) == expected)
            run++;
        sound &= l2_entry_kind(&g, e, sub) == expected;
        sound &= l2_entry_run(&g, e, sub, &kind) == run && kind == expected;
    }
    if (!CHECK(sound))
        printf("    raw 0x%" PRIx64 ", bitmap 0x%" PRIx64 "\n", raw, bitmap);
}

static void extended_kinds(void)
{
    uint64_t state = 88172645463325252u;
    for (uint32_t i = 0; i < 64; i++) {
        check_extended(OFF, UINT64_C(1) << i);
        check_extended(0, UINT64_C(1) << i);
        check_extended(OFF | ENTRY_COPIED, ~(UINT64_C(1) << i) & UINT32_MAX);
        check_extended(OFF, UINT64_MAX << 32 << i % 32);
        check_extended(OFF | ENTRY_ZERO, UINT64_MAX << i);
    }
    for (uint32_t i = 0; i < 2000; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        uint32_t allocated = (uint32_t)state & (uint32_t)(state >> 8);
        uint64_t zero = (uint32_t)(state >> 32) & ~allocated;
        check_extended(OFF, zero << 32 | allocated);
        check_extended(0, zero << 32);
        check_extended(OFF, state);
    }
    struct geometry g = geometry(3, 16, INCOMPAT_EXTENDED_L2);
    enum cluster_kind kind;
    struct l2_entry compressed = {ENTRY_COMPRESSED | 0x5001, 0};
    CHECK_EQ(l2_entry_run(&g, compressed, 5, &kind), 27);
    CHECK_EQ(kind, CLUSTER_COMPRESSED);
}

/* ---- changing subclusters ---- */

static void touched_subclusters(void)
{
    static const uint64_t places[] = {0,     1,     2047,  2048,  2049,   4096,
                                      63488, 65535, 65536, 65537, 131072, 3 * 65536};
    const uint64_t flags[] = {0, INCOMPAT_EXTENDED_L2};
    for (size_t n = 0; n < 2 * ARRAY_SIZE(places) * ARRAY_SIZE(places); n++) {
        struct geometry g = geometry(3, 16, flags[n % 2]);
        uint64_t off = places[n / 2 % ARRAY_SIZE(places)];
        uint64_t end = places[n / 2 / ARRAY_SIZE(places)], expected = 0;
        const uint64_t size = 65536 / g.subclusters;
        for (uint32_t sub = 0; sub < g.subclusters; sub++) {
            uint64_t start = 65536 + sub * size;
            expected |= (uint64_t)(off < end && off < start + size && end > start) << sub;
        }
        if (off <= end)
            CHECK_EQ(subclusters_touched(&g, 1, off, end), expected);
    }
}

/* Each subcluster on its own: which are filled have data, the others keep what they show. */
static void check_filled(uint64_t raw, uint64_t bitmap, uint32_t filled)
{
    struct geometry g = geometry(3, 16, INCOMPAT_EXTENDED_L2);
    struct l2_entry old = {raw, bitmap}, e = l2_entry_filled(&g, old, 2 * OFF, filled);
    bool right = e.raw == (2 * OFF | ENTRY_COPIED);
    for (uint32_t sub = 0; sub < 32; sub++) {
        enum cluster_kind kind = spec_subcluster(true, bitmap, sub);
        if (filled >> sub & 1)
            kind = CLUSTER_NORMAL;
        right &= l2_entry_kind(&g, e, sub) == kind;
    }
    CHECK(right);
}

static void check_zeroed(uint64_t raw, uint64_t bitmap, uint32_t zeroed)
{
    struct geometry g = geometry(3, 16, INCOMPAT_EXTENDED_L2);
    struct l2_entry old = {raw, bitmap}, e = l2_entry_zeroed(&g, old, zeroed);
    bool right = e.raw == raw;
    for (uint32_t sub = 0; sub < 32; sub++) {
        enum cluster_kind kind = spec_subcluster(raw != 0, bitmap, sub);
        if (zeroed >> sub & 1)
            kind = raw ? CLUSTER_ZERO_ALLOC : CLUSTER_ZERO_PLAIN;
        right &= l2_entry_kind(&g, e, sub) == kind;
    }
    CHECK(right);
    CHECK_EQ(l2_entry_stored(&g, e), (uint32_t)bitmap & ~zeroed);
}

static void changed_subclusters(void)
{
    uint64_t state = 362436069;
    for (uint32_t i = 0; i < 2000; i++) {
        state = state * UINT64_C(6364136223846793005) + 1442695040888963407;
        uint32_t allocated = (uint32_t)(state >> 8), mask = (uint32_t)(state >> 24);
        uint64_t zero = ~allocated & (uint32_t)(state >> 32);
        check_filled(OFF | ENTRY_COPIED, zero << 32 | allocated, mask);
        check_filled(0, zero << 32, mask);
        check_zeroed(OFF, zero << 32 | allocated, mask);
        check_zeroed(0, zero << 32, mask);
    }
    struct geometry g = geometry(3, 16, INCOMPAT_EXTENDED_L2), standard = geometry(3, 16, 0);
    struct l2_entry compressed = {ENTRY_COMPRESSED | 0x5001, 7}; /* its bitmap means nothing */
    CHECK_EQ(l2_entry_stored(&g, compressed), UINT32_MAX);
    CHECK_EQ(l2_entry_stored(&standard, compressed), 1);
    CHECK_EQ(l2_entry_filled(&g, compressed, OFF, UINT32_MAX).bitmap, UINT32_MAX);
    CHECK_EQ(l2_entry_filled(&standard, (struct l2_entry){ENTRY_ZERO, 0}, OFF, 1).raw,
             OFF | ENTRY_COPIED);
    CHECK_EQ(l2_entry_zeroed(&standard, (struct l2_entry){OFF, 0}, 1).raw, OFF | ENTRY_ZERO);
    CHECK_EQ(l2_entry_stored(&standard, (struct l2_entry){OFF, 0}), 1);
    CHECK_EQ(l2_entry_stored(&standard, (struct l2_entry){OFF | ENTRY_ZERO, 0}), 0);
}

static void load_and_store(void)
{
    static const uint64_t flags[] = {0, INCOMPAT_EXTENDED_L2};
    for (size_t f = 0; f < ARRAY_SIZE(flags); f++) {
        struct geometry g = geometry(3, 14, flags[f]);
        uint8_t *table = calloc(1, g.cluster_bytes);
        for (uint32_t i = 0; i < g.l2_entries; i += g.l2_entries - 1) {
            struct l2_entry e = {OFF | ENTRY_COPIED | i, UINT64_C(0x0123456789abcdef)};
            l2_entry_store(&g, table, i, e);
            struct l2_entry back = l2_entry_load(&g, table, i);
            CHECK(back.raw == e.raw);
            CHECK(back.bitmap == (flags[f] ? e.bitmap : 0));
        }
        CHECK_MEM(table, "\x80\x12\x34\x56\x78\x9a\0\0", 8);
        CHECK_MEM(table + 8, flags[f] ? "\x01\x23\x45\x67\x89\xab\xcd\xef" : "\0\0\0\0\0\0\0\0", 8);
        free(table);
    }
}

static void offsets(void)
{
    struct geometry g = geometry(3, 16, 0);
    struct l2_entry e = {OFF | ENTRY_COPIED | ENTRY_ZERO, 0};
    CHECK(l2_entry_host(e).v == OFF);
    CHECK(l2_entry_copied(e) && !l2_entry_copied((struct l2_entry){OFF, 0}));
    CHECK(l2_entry_offset_valid(&g, e));
    e.raw |= 512;
    CHECK(!l2_entry_offset_valid(&g, e));
    CHECK(l1_entry_host(UINT64_MAX) == UINT64_C(0x00fffffffffffe00));
    CHECK(((L1_OFFSET_MASK | ENTRY_COPIED) ^ L1_RESERVED_MASK) == UINT64_MAX);
    CHECK(((L2_OFFSET_MASK | ENTRY_COPIED | ENTRY_COMPRESSED | ENTRY_ZERO) ^ L2_RESERVED_MASK) ==
          UINT64_MAX);
    CHECK((REFTABLE_OFFSET_MASK ^ REFTABLE_RESERVED_MASK) == UINT64_MAX);
}

/* ---- compressed ---- */

static void compressed_there_and_back(const struct geometry *g, uint64_t off, uint32_t bytes)
{
    uint64_t raw, first = off / 512 * 512, end = round_up(off + bytes, 512);
    REQUIRE(compressed_encode(g, (struct compressed_extent){off, bytes}, &raw) == 0);
    struct compressed_extent back = compressed_decode(g, raw);
    CHECK(back.off == off);
    CHECK_EQ(back.bytes, end - off); /* to the end of the last sector */
    CHECK(!(raw & ENTRY_COPIED) && (raw & ENTRY_COMPRESSED));
    /* as the specification words it: x = 62 - (cluster_bits - 8) bits of offset, then the number
     * of sectors behind the first */
    unsigned x = 62 - (g->cluster_bits - 8);
    CHECK((raw & ((UINT64_C(1) << x) - 1)) == off);
    CHECK_EQ((raw & ~ENTRY_COMPRESSED) >> x, (end - first) / 512 - 1);
}

static void compressed_descriptors(void)
{
    for (uint32_t bits = 9; bits <= 21; bits++) {
        struct geometry g = geometry(3, bits, 0);
        uint64_t max_off = (UINT64_C(1) << (62 - (bits - 8))) - 1, raw = 7;
        uint32_t max_bytes = 2u << bits; /* from the start of a sector */
        for (uint32_t into = 0; into < 512; into += 73) {
            compressed_there_and_back(&g, into, 1);
            compressed_there_and_back(&g, 0x10000 + into, 512 - into);
            compressed_there_and_back(&g, 0x10000 + into, 513 - into);
            compressed_there_and_back(&g, 0x10000 + into, g.cluster_bytes);
            compressed_there_and_back(&g, 0x10000 + into, max_bytes - into);
            struct compressed_extent big = {0x10000 + into, max_bytes - into + 1};
            CHECK_ERR(compressed_encode(&g, big, &raw), -EFBIG);
        }
        compressed_there_and_back(&g, max_off, 1);
        compressed_there_and_back(&g, max_off - 511, 512);
        CHECK_ERR(compressed_encode(&g, (struct compressed_extent){max_off + 1, 1}, &raw), -EFBIG);
        CHECK_ERR(compressed_encode(&g, (struct compressed_extent){UINT64_MAX, 1}, &raw), -EFBIG);
        CHECK_ERR(compressed_encode(&g, (struct compressed_extent){512, 0}, &raw), -EFBIG);
        CHECK_EQ(raw, 7); /* failures leave it alone */
        /* anything at all decodes to bounded values */
        struct compressed_extent any = compressed_decode(&g, UINT64_MAX);
        CHECK(any.off == max_off);
        CHECK_EQ(any.bytes, max_bytes - 511);
    }
}

int main(void)
{
    geometry_values();
    l1_sizes();
    standard_kinds();
    extended_kinds();
    touched_subclusters();
    changed_subclusters();
    load_and_store();
    offsets();
    compressed_descriptors();
    return TEST_SUMMARY();
}
