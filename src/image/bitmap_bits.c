/*
 * bitmap_bits.c - the bits of one bitmap: its table, the chunks on disk and those set since, and
 * runs of equal bits. Bits are set without a lock, so that requests in parallel do not wait for
 * each other; a chunk's memory is taken when its first bit is set.
 */
#include "image/bitmaps.h"

#include "base/bytes.h"

/* ---- the table ---- */

int bitmap_make_table(const struct image *img, struct bitmap *b, struct qk_error *err)
{
    uint64_t chunks = bitmap_table_entries_for(b->bits, img->g.cluster_bytes);
    b->table = calloc(chunks, sizeof(*b->table));
    b->fresh = calloc(chunks, sizeof(*b->fresh));
    if (!b->table || !b->fresh) {
        free(b->table);
        free(b->fresh);
        b->table = NULL;
        b->fresh = NULL;
        return qk_fail_nomem(err);
    }
    b->chunks = (uint32_t)chunks;
    return 0;
}

static int judge_table(const struct image *img, struct bitmap *b, struct qk_error *err)
{
    uint64_t file_bytes;
    int ret = io_size(img->file, &file_bytes, err);
    for (uint32_t i = 0; i < b->chunks && ret == 0; i++) {
        b->table[i] = load_be64(&b->table[i]);
        if (!bitmap_table_entry_valid(b->table[i], img->g.cluster_bytes, file_bytes))
            ret =
                qk_fail_at(err, -EINVAL,
                           WHERE(img->file->name, "bitmap table", b->disk_table + (uint64_t)i * 8),
                           "Could not read bitmap '%s' from image: entry 0x%016" PRIx64
                           " of its table is invalid",
                           b->name, b->table[i]);
    }
    return ret;
}

int bitmap_need_table(const struct image *img, struct bitmap *b, struct qk_error *err)
{
    if (b->table)
        return 0;
    int ret = bitmap_make_table(img, b, err);
    if (ret < 0)
        return ret;
    ret = io_read(img->file, b->disk_table, b->table, (size_t)b->chunks * 8, err);
    if (ret == 0)
        ret = judge_table(img, b, err);
    if (ret < 0) {
        free(b->table);
        free(b->fresh);
        b->table = NULL;
        b->fresh = NULL;
    }
    return ret;
}

/* ---- setting bits ---- */

uint64_t *bitmap_fresh_chunk(const struct image *img, struct bitmap *b, uint64_t index)
{
    uint64_t *chunk = __atomic_load_n(&b->fresh[index], __ATOMIC_ACQUIRE);
    if (chunk)
        return chunk;
    uint64_t *made = calloc(1, img->g.cluster_bytes);
    if (!made)
        return NULL;
    if (__atomic_compare_exchange_n(&b->fresh[index], &chunk, made, false, __ATOMIC_ACQ_REL,
                                    __ATOMIC_ACQUIRE))
        return made;
    free(made);
    return chunk;
}

/* A word that is full already is not written: its cache line stays shared. */
static void set_word(uint64_t *word, uint64_t mask)
{
    if ((__atomic_load_n(word, __ATOMIC_RELAXED) & mask) != mask)
        __atomic_fetch_or(word, mask, __ATOMIC_RELAXED);
}

/* Bits [first, end) of one chunk. */
static void set_bits(uint64_t *chunk, uint64_t first, uint64_t end)
{
    while (first < end) {
        uint64_t n = min_u64(end - first, 64 - first % 64);
        uint64_t mask = n == 64 ? UINT64_MAX : ((UINT64_C(1) << n) - 1) << first % 64;
        set_word(&chunk[first / 64], mask);
        first += n;
    }
}

int bitmap_set_range(const struct image *img, struct bitmap *b, uint64_t off, uint64_t len,
                     struct qk_error *err)
{
    const uint64_t per_chunk = bitmap_chunk_bits(img);
    uint64_t first = off >> b->granularity_bits;
    uint64_t end = min_u64(((off + len - 1) >> b->granularity_bits) + 1, b->bits);
    while (first < end) {
        uint64_t start = round_down(first, per_chunk);
        uint64_t *chunk = bitmap_fresh_chunk(img, b, start / per_chunk);
        if (!chunk)
            return qk_fail_nomem(err);
        uint64_t stop = min_u64(end, start + per_chunk);
        set_bits(chunk, first - start, stop - start);
        first = stop;
    }
    return 0;
}

/* ---- reading bits ---- */

uint64_t bitmap_bits_in_chunk(const struct image *img, const struct bitmap *b, uint64_t index)
{
    return min_u64(bitmap_chunk_bits(img), b->bits - index * bitmap_chunk_bits(img));
}

static void clear_tail(const struct image *img, const struct bitmap *b, uint64_t index,
                       uint8_t *out)
{
    uint64_t bits = bitmap_bits_in_chunk(img, b, index), whole = bits / 8;
    if (bits % 8)
        out[whole++] &= (uint8_t)((1u << bits % 8) - 1);
    memset(out + whole, 0, img->g.cluster_bytes - whole);
}

static int read_disk_chunk(const struct image *img, const struct bitmap *b, uint64_t index,
                           uint8_t *out, struct qk_error *err)
{
    uint64_t entry = b->table[index], off = entry & BITMAP_TABLE_OFFSET;
    int ret = off ? io_read(img->file, off, out, img->g.cluster_bytes, err) : 0;
    if (!off)
        memset(out, entry & BITMAP_TABLE_ONES ? 0xff : 0, img->g.cluster_bytes);
    if (ret == 0)
        clear_tail(img, b, index, out);
    return ret;
}

/* The chunk's 64 bits from bit 64 * w on. */
static uint64_t merged_word(const uint8_t *disk, const uint64_t *fresh, uint64_t w)
{
    uint64_t word;
    memcpy(&word, disk + w * 8, sizeof(word));
    return le64toh(word) | (fresh ? __atomic_load_n(&fresh[w], __ATOMIC_RELAXED) : 0);
}

int bitmap_read_chunk(const struct image *img, const struct bitmap *b, uint64_t index, uint8_t *out,
                      struct qk_error *err)
{
    const uint64_t *fresh = __atomic_load_n(&b->fresh[index], __ATOMIC_ACQUIRE);
    int ret = read_disk_chunk(img, b, index, out, err);
    for (uint64_t w = 0; fresh && ret == 0 && w < img->g.cluster_bytes / 8; w++) {
        uint64_t word = htole64(merged_word(out, fresh, w));
        memcpy(out + w * 8, &word, sizeof(word));
    }
    if (ret == 0 && fresh)
        clear_tail(img, b, index, out);
    return ret;
}

static int need_cached(const struct image *img, struct bitmap *b, uint64_t index,
                       struct qk_error *err)
{
    if (b->cached == index)
        return 0;
    b->cached = BITMAP_NO_CHUNK;
    if (!b->cache)
        b->cache = malloc(img->g.cluster_bytes);
    if (!b->cache)
        return qk_fail_nomem(err);
    int ret = read_disk_chunk(img, b, index, b->cache, err);
    if (ret == 0)
        b->cached = index;
    return ret;
}

/* How many bits from `bit` on (at most `max`, all of one chunk) are `set`. */
static uint64_t run_in_chunk(const struct bitmap *b, const uint64_t *fresh, uint64_t bit,
                             uint64_t max, bool set)
{
    uint64_t n = 0;
    while (n < max) {
        uint64_t at = bit + n;
        uint64_t other = merged_word(b->cache, fresh, at / 64) ^ (set ? UINT64_MAX : 0);
        other >>= at % 64;
        uint64_t run = other ? (uint64_t)__builtin_ctzll(other) : 64 - at % 64;
        n += run;
        if (other)
            break;
    }
    return min_u64(n, max);
}

/* One step of a run: bits from `bit` on that are alike, within one chunk. *set: 1 or 0 asks for
 * such bits, -1 for what the first one is, and gets it. */
static int step(const struct image *img, struct bitmap *b, uint64_t bit, uint64_t *run, int *set,
                struct qk_error *err)
{
    const uint64_t per_chunk = bitmap_chunk_bits(img), index = bit / per_chunk;
    const uint64_t left = bitmap_bits_in_chunk(img, b, index) - bit % per_chunk;
    const uint64_t *fresh = __atomic_load_n(&b->fresh[index], __ATOMIC_ACQUIRE);
    if (!fresh && !(b->table[index] & BITMAP_TABLE_OFFSET)) {
        int all = b->table[index] & BITMAP_TABLE_ONES ? 1 : 0;
        *run = *set < 0 || *set == all ? left : 0;
        *set = *set < 0 ? all : *set;
        return 0;
    }
    int ret = need_cached(img, b, index, err);
    if (ret < 0)
        return ret;
    uint64_t in_chunk = bit % per_chunk;
    if (*set < 0)
        *set = merged_word(b->cache, fresh, in_chunk / 64) >> in_chunk % 64 & 1;
    *run = run_in_chunk(b, fresh, in_chunk, left, *set);
    return 0;
}

int image_bitmap_status(struct image *img, const char *name, guest_off_t off, uint64_t len,
                        struct qk_bitmap_extent *extent, struct qk_error *err)
{
    struct bitmap *b;
    LOCK_SCOPE(&img->bitmaps->lock);
    int ret = bitmaps_load(img, err);
    if (ret == 0)
        ret = bitmaps_find_usable(img, name, &b, err);
    if (ret == 0)
        ret = bitmap_need_table(img, b, err);
    if (ret < 0)
        return ret;
    uint64_t size = image_size(img);
    if (off.v >= size || !len)
        return qk_fail(err, -EINVAL, "offset %" PRIu64 " is not inside the disk", off.v);
    uint64_t end = off.v + min_u64(len, size - off.v), at = off.v;
    int set = -1;
    while (at < end && ret == 0) {
        uint64_t bit = at >> b->granularity_bits, run = 0;
        if (bit >= b->bits)
            break;
        ret = step(img, b, bit, &run, &set, err);
        if (!run)
            break;
        at = min_u64((bit + run) << b->granularity_bits, end);
    }
    *extent = (struct qk_bitmap_extent){off.v, at - off.v, set > 0};
    return ret;
}
