/*
 * test_luks.c - encrypted images: the LUKS header as bytes and judged; opening with right, wrong
 * and no passphrase; that nothing but ciphertext reaches the store; writers of parts of one sector;
 * key slots, and what a crash leaves of them at each point.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "check/check.h"
#include "image/image.h"
#include "io/trace.h"
#include "test.h"

#include <pthread.h>

enum { SIZE = 1 << 20, ROOM = 32 << 20 };

static const struct image_secret *secret(const char *text)
{
    static struct image_secret list[16];
    static unsigned next;
    struct image_secret *s = &list[next++ % ARRAY_SIZE(list)];
    *s = (struct image_secret){"s", (const uint8_t *)text, strlen(text)};
    return s;
}

static struct create_encryption wish(const char *pass)
{
    return (struct create_encryption){
        .method = CRYPT_LUKS,
        .secret = secret(pass),
        .suite = {cipher_by_name("aes-256"), CIPHER_XTS, IVGEN_PLAIN64, NULL},
        .hash = hash_by_name("sha256"),
        .iter_ms = 1,
    };
}

/* A new image in memory; open it with open_with. */
static struct qk_io *make(const struct create_encryption *e, uint32_t cluster_bits)
{
    const struct create_params params = {.size_bytes = SIZE,
                                         .version = 3,
                                         .cluster_bits = cluster_bits,
                                         .refcount_order = 4,
                                         .encryption = e};
    struct qk_io *mem = NULL;
    struct qk_error err = {0};
    CHECK_OK(io_mem_open(NULL, 0, ROOM, &mem, &err));
    if (!CHECK(image_create(mem, &params, &err) == 0))
        printf("    %s\n", err.text);
    return mem;
}

static int open_with(struct qk_io *io, const struct image_secret *s, struct image **img,
                     struct qk_error *err)
{
    const struct image_options opts = {
        .writable = true, .lazy_refcounts = -1, .overlap = OVERLAP_CACHED, .secret = s};
    *img = NULL;
    return image_open(io, &opts, img, err);
}

static int write_at(struct image *img, uint64_t off, const void *buf, size_t len)
{
    struct iovec iov = {(void *)(uintptr_t)buf, len};
    return image_writev(img, guest_off(off), &iov, 1, 0, NULL);
}

static int read_at(struct image *img, uint64_t off, void *buf, size_t len)
{
    struct iovec iov = {buf, len};
    return image_readv(img, guest_off(off), &iov, 1, NULL);
}

/* ---- the header ---- */

static struct luks_header sample(void)
{
    struct luks_header h = {.cipher = "aes", .mode = "xts-plain64", .hash = "sha256"};
    h.key_bytes = 64;
    h.iterations = 1234;
    strcpy(h.uuid, "3854a017-d101-48d6-8273-66e2a88c2af5");
    luks_place(&h);
    h.slots[2].active = true;
    h.slots[2].iterations = 99;
    return h;
}

static void test_header_bytes(void)
{
    uint8_t bytes[LUKS_HEADER_BYTES], again[LUKS_HEADER_BYTES];
    struct luks_header h = sample(), back;
    luks_encode(&h, bytes);
    CHECK_MEM(bytes, "LUKS\xba\xbe\0\1aes", 12);
    CHECK_EQ(load_be32(bytes + 108), 64);
    CHECK_EQ(load_be32(bytes + 208 + 48 * 2), 0x00ac71f3);
    CHECK_EQ(load_be32(bytes + 208), 0xdead);
    CHECK_EQ(load_be32(bytes + 208 + 40), 8);
    CHECK_OK(luks_decode(bytes, &back, NULL));
    luks_encode(&back, again);
    CHECK_MEM(again, bytes, sizeof(bytes));
    CHECK_STR(back.uuid, h.uuid);
    CHECK_EQ((uint64_t)back.payload_sector * 512, 2068480);
    CHECK_EQ(luks_state_sector(0), 0);
    CHECK_EQ(luks_state_sector(6), 0);
    CHECK_EQ(luks_state_sector(7), 1);
}

static void test_header_judged(void)
{
    const uint64_t area = 2068480;
    struct qk_error err = {0};
    struct luks_header h = sample();
    CHECK_OK(luks_validate(&h, area, &err));
    CHECK_ERR(luks_validate(&h, area - 1, NULL), -EINVAL);
    static const struct {
        const char *text;
        int slot, stripes;
        uint32_t sector, key_bytes, iterations;
    } rows[] = {
        {"Keyslot 3 is corrupted (stripes == 0)", 3, 0, 1520, 64, 1},
        {"Keyslot 7 is overlapping with the encrypted payload", 7, 4000, 4000, 64, 1},
        {"Keyslots 0 and 1 are overlapping in the header", 0, 4000, 400, 64, 1},
        {"Keyslot 0 is overlapping with the LUKS header", 0, 4000, 1, 64, 1},
        {"Keyslot 0 is overlapping with the encrypted payload", 0, -1, 8, 64, 1},
        {"Keyslot 0 is overlapping with the encrypted payload", 0, 4000, 8, UINT32_MAX, 1},
        {"The LUKS master key has no bytes", 0, 4000, 8, 0, 1},
        {"LUKS key iteration count is zero", 0, 4000, 8, 64, 0},
    };
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        h = sample();
        h.slots[rows[i].slot].stripes = (uint32_t)rows[i].stripes;
        h.slots[rows[i].slot].first_sector = rows[i].sector;
        h.key_bytes = rows[i].key_bytes;
        h.iterations = rows[i].iterations;
        CHECK_ERR(luks_validate(&h, area, &err), -EINVAL);
        CHECK_STR(err.text, rows[i].text);
    }
}

static void test_header_malformed(void)
{
    uint8_t bytes[LUKS_HEADER_BYTES];
    static const struct {
        unsigned off;
        uint8_t value;
        const char *text;
    } rows[] = {
        {0, 'M', "Volume is not in LUKS format"},
        {7, 2, "LUKS version 2 is not supported"},
        {208, 1, "Keyslot 0 state (active/disable) is corrupted"},
    };
    struct luks_header h = sample(), back;
    struct qk_error err = {0};
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        luks_encode(&h, bytes);
        bytes[rows[i].off] = rows[i].value;
        CHECK(luks_decode(bytes, &back, &err) < 0);
        CHECK_STR(err.text, rows[i].text);
    }
    luks_encode(&h, bytes);
    memset(bytes + 40, 'x', 32);
    CHECK_ERR(luks_decode(bytes, &back, &err), -EINVAL);
    CHECK_STR(err.text, "LUKS header cipher mode is not NUL terminated");
}

/* ---- opening ---- */

static void test_passphrases(void)
{
    const struct create_encryption e = wish("open sesame");
    const struct image_secret gone = {.id = "x"}, odd = {"s", (const uint8_t *)"\xff\xfe", 2};
    const struct image_options describe = {.describe = true, .lazy_refcounts = -1};
    struct qk_io *mem = make(&e, 16);
    struct image *img;
    struct qk_error err = {0};
    CHECK_ERR(open_with(mem, NULL, &img, &err), -EINVAL);
    CHECK_STR(err.text, "Parameter 'encrypt.key-secret' is required for cipher");
    CHECK_ERR(open_with(mem, &gone, &img, &err), -EINVAL);
    CHECK_STR(err.text, "No secret with id 'x'");
    CHECK_ERR(open_with(mem, &odd, &img, &err), -EINVAL);
    CHECK_STR(err.text, "Data from secret s is not valid UTF-8");
    CHECK_ERR(open_with(mem, secret("open SESAME"), &img, &err), -EPERM);
    CHECK_STR(err.text, "Invalid password, cannot unlock any keyslot");
    CHECK(!memmem(&err, sizeof(err), "SESAME", 6));
    CHECK_OK(open_with(mem, secret("open sesame"), &img, &err));
    REQUIRE(img);
    image_abandon(img);
    CHECK_OK(image_open(mem, &describe, &img, &err));
    uint8_t byte;
    write_at(img, 0, "", 1);
    CHECK_OK(read_at(img, 0, &byte, 1)); /* nothing there to decrypt */
    CHECK(image_luks(img) != NULL);
    CHECK_STR(image_luks(img)->suite.cipher->name, "aes-256");
    image_abandon(img);
    io_close(mem, NULL);
}

/* A check and a repair need no key; data stays out of reach. */
static void test_without_key(void)
{
    const struct create_encryption e = wish("k");
    struct qk_io *mem = make(&e, 12);
    struct image *img;
    uint8_t bytes[3000];
    memset(bytes, 0x5a, sizeof(bytes));
    CHECK_OK(open_with(mem, secret("k"), &img, NULL));
    CHECK_OK(write_at(img, 100, bytes, sizeof(bytes)));
    CHECK_OK(image_close(img, NULL));
    const struct image_options opts = {.writable = true, .for_check = true, .lazy_refcounts = -1};
    struct qk_check_options check = QK_CHECK_OPTIONS_INIT;
    struct qk_check_result result = QK_CHECK_RESULT_INIT;
    check.fix = QK_FIX_LEAKS | QK_FIX_ERRORS;
    CHECK_OK(image_open(mem, &opts, &img, NULL));
    CHECK_OK(check_image(img, &check, &result, NULL));
    CHECK_EQ(result.corruptions + result.leaks + result.corruptions_fixed + result.leaks_fixed, 0);
    CHECK_ERR(read_at(img, 100, bytes, 10), -EACCES);
    CHECK_ERR(write_at(img, 100, bytes, 10), -EACCES);
    image_abandon(img);
    io_close(mem, NULL);
}

/* ---- what reaches the store ---- */

static void do_some_of_everything(struct image *img, const uint8_t *text, size_t len)
{
    for (uint64_t off = 0; off + len <= SIZE; off += SIZE / 16)
        CHECK_OK(write_at(img, off, text, len));
    for (uint64_t off = 77; off + len <= SIZE; off += 9973)
        CHECK_OK(write_at(img, off, text, len % 1500));
    for (size_t n = 1; n < 600; n += 61)
        CHECK_OK(write_at(img, 5000 + n, text, n));
    CHECK_OK(image_zero(img, guest_off(3333), 100000, 0, NULL));
    CHECK_OK(write_at(img, 9001, text, 4000));
    CHECK_OK(image_discard(img, guest_off(1 << 16), 1 << 16, NULL));
    CHECK_OK(write_at(img, (1 << 16) + 5, text, 10));
    struct iovec pieces[] = {{(void *)(uintptr_t)text, 700}, {(void *)(uintptr_t)(text + 700), 9}};
    CHECK_OK(image_writev(img, guest_off(200000), pieces, 2, 0, NULL));
    struct iovec whole = {(void *)(uintptr_t)text, 4096};
    CHECK_ERR(image_writev(img, guest_off(0), &whole, 1, QK_WRITE_COMPRESSED, NULL), -EIO);
    CHECK_OK(image_flush(img, NULL));
}

static bool log_has(struct qk_io *trace, const void *word, size_t len)
{
    for (size_t i = 0; i < trace_count(trace); i++) {
        const struct trace_entry *e = trace_get(trace, i);
        if (e->kind == TRACE_WRITE && memmem(e->data, e->len, word, len))
            return true;
    }
    return false;
}

static void test_no_plaintext(uint32_t cluster_bits, enum crypt_method method)
{
    static uint8_t text[8192];
    struct create_encryption e = wish("passphrase");
    struct qk_io *trace;
    struct image *img;
    e.method = method;
    for (size_t i = 0; i < sizeof(text); i++)
        text[i] = (uint8_t) "plain text "[i % 11];
    CHECK_OK(io_trace_open(make(&e, cluster_bits), &trace, NULL));
    CHECK_OK(open_with(trace, secret("passphrase"), &img, NULL));
    REQUIRE(img);
    do_some_of_everything(img, text, sizeof(text));
    CHECK_OK(image_close(img, NULL));
    CHECK(trace_count(trace) > 20);
    CHECK(!log_has(trace, "n text p", 8));
    CHECK(!log_has(trace, "passphra", 8));
    io_close(trace, NULL);
}

/* ---- two writers, one sector ---- */

struct writer {
    struct image *img;
    unsigned number;
};

enum { WRITERS = 8, ROUNDS = 400, PART = 64 };

/* Each writer owns 64 bytes of every sector of a cluster. */
static void *write_parts(void *opaque)
{
    const struct writer *w = opaque;
    uint8_t part[PART];
    for (unsigned i = 0; i < ROUNDS; i++) {
        memset(part, (int)(i + w->number), PART);
        if (write_at(w->img, i % 8 * 512 + w->number * PART, part, PART) < 0)
            return opaque;
    }
    return NULL;
}

static void test_shared_sectors(void)
{
    const struct create_encryption e = wish("p");
    struct qk_io *mem = make(&e, 12);
    struct writer writers[WRITERS];
    pthread_t threads[WRITERS];
    struct image *img;
    CHECK_OK(open_with(mem, secret("p"), &img, NULL));
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){img, i};
        CHECK_EQ(pthread_create(&threads[i], NULL, write_parts, &writers[i]), 0);
    }
    for (unsigned i = 0; i < WRITERS; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        CHECK(!failed);
    }
    static uint8_t bytes[4096];
    CHECK_OK(read_at(img, 0, bytes, sizeof(bytes)));
    for (unsigned at = 0; at < sizeof(bytes); at++) {
        unsigned writer = at % 512 / PART, last = ROUNDS - 8 + at / 512;
        if (bytes[at] != (uint8_t)(last + writer)) {
            CHECK_EQ(bytes[at], (uint8_t)(last + writer));
            break;
        }
    }
    CHECK_OK(image_close(img, NULL));
    io_close(mem, NULL);
}

/* ---- key slots ---- */

static int amend(struct image *img, bool activate, int slot, const char *old, const char *new)
{
    const struct luks_amend a = {
        .activate = activate,
        .slot = slot,
        .has_iter_ms = activate,
        .iter_ms = 1,
        .old_secret = old ? secret(old) : NULL,
        .new_secret = new ? secret(new) : NULL,
    };
    return image_luks_amend(img, &a, NULL);
}

static bool opens(struct qk_io *io, const char *pass)
{
    struct image *img;
    if (open_with(io, secret(pass), &img, NULL) < 0)
        return false;
    image_abandon(img);
    return true;
}

static void test_slots(void)
{
    const struct create_encryption e = wish("one");
    struct qk_io *mem = make(&e, 16);
    struct image *img;
    CHECK_OK(open_with(mem, secret("one"), &img, NULL));
    CHECK_ERR(amend(img, false, 0, NULL, NULL), -EINVAL); /* the last one */
    CHECK_ERR(amend(img, false, LUKS_SLOT_ANY, "one", NULL), -EINVAL);
    CHECK_ERR(amend(img, true, 8, NULL, "x"), -EINVAL);
    CHECK_ERR(amend(img, true, 0, NULL, "x"), -EINVAL); /* in use */
    for (int i = 1; i < LUKS_SLOTS; i++)
        CHECK_OK(amend(img, true, LUKS_SLOT_ANY, NULL, i % 2 ? "odd" : "even"));
    CHECK_ERR(amend(img, true, LUKS_SLOT_ANY, NULL, "full"), -EINVAL);
    CHECK(opens(mem, "one") && opens(mem, "odd") && opens(mem, "even") && !opens(mem, "full"));
    CHECK_ERR(amend(img, false, 3, "even", NULL), -EINVAL); /* another's password */
    CHECK_OK(amend(img, false, LUKS_SLOT_ANY, "odd", NULL));
    CHECK(!opens(mem, "odd") && opens(mem, "even"));
    CHECK_ERR(amend(img, false, 1, NULL, NULL), -EINVAL); /* is erased */
    CHECK_OK(amend(img, false, 0, "one", NULL));
    CHECK(!opens(mem, "one") && opens(mem, "even"));
    const struct luks_amend force = {.activate = true,
                                     .force = true,
                                     .slot = 2,
                                     .has_iter_ms = true,
                                     .iter_ms = 1,
                                     .new_secret = secret("forced")};
    CHECK_OK(image_luks_amend(img, &force, NULL));
    CHECK(opens(mem, "forced") && opens(mem, "even"));
    CHECK_EQ(image_luks(img)->header.slots[0].active, false);
    CHECK_OK(image_close(img, NULL));
    io_close(mem, NULL);
}

/* What a crash behind entry `end` of the log leaves: all that is stable, of the rest what `subset`
 * says (bit i: the ith of them is there; in halves, when `torn`). */
static struct qk_io *crashed(const void *before, size_t len, struct qk_io *trace, size_t end,
                             unsigned subset)
{
    struct qk_io *mem = NULL;
    size_t stable = trace_stable_before(trace, end);
    CHECK_OK(io_mem_open(before, len, ROOM, &mem, NULL));
    for (size_t i = 0; i < end; i++) {
        const struct trace_entry *entry = trace_get(trace, i);
        bool there = i < stable || (subset >> (2 * (i - stable)) & 1);
        bool half = i >= stable && (subset >> (2 * (i - stable)) & 2) && entry->len > 512;
        if (there && half)
            trace_replay_part(entry, 0, entry->len > 1024 ? entry->len / 2 / 512 * 512 : 512, mem,
                              NULL);
        else if (there || half)
            trace_replay(entry, mem, NULL);
    }
    return mem;
}

struct slot_change {
    bool activate, force;
    int slot;
    const char *old, *new;
};

/* "keep" opens the image at each point, and the slot count never lies: a slot that says it is
 * active and was not touched by halves opens with the old or the new passphrase. */
static void crash_change(const struct slot_change *change)
{
    const struct create_encryption e = wish("keep");
    struct qk_io *mem = make(&e, 16), *trace;
    struct image *img;
    CHECK_OK(open_with(mem, secret("keep"), &img, NULL));
    CHECK_OK(amend(img, true, 6, NULL, "old"));
    CHECK_OK(image_close(img, NULL));
    size_t len;
    const uint8_t *now = io_mem_data(mem, &len);
    uint8_t *before = malloc(len);
    memcpy(before, now, len);
    CHECK_OK(io_trace_open(mem, &trace, NULL));
    CHECK_OK(open_with(trace, secret("keep"), &img, NULL));
    const struct luks_amend a = {.activate = change->activate,
                                 .force = change->force,
                                 .slot = change->slot,
                                 .has_iter_ms = change->activate,
                                 .iter_ms = 1,
                                 .old_secret = change->old ? secret(change->old) : NULL,
                                 .new_secret = change->new ? secret(change->new) : NULL};
    CHECK_OK(image_luks_amend(img, &a, NULL));
    image_abandon(img);
    for (size_t end = 0; end <= trace_count(trace); end++)
        for (unsigned subset = 0; subset < 4; subset++) {
            struct qk_io *left = crashed(before, len, trace, end, subset);
            CHECK(opens(left, "keep"));
            if (!CHECK(opens(left, "old") || opens(left, "new") || !change->force))
                printf("    entry %zu, subset %u\n", end, subset);
            io_close(left, NULL);
        }
    free(before);
    io_close(trace, NULL);
}

static void test_slot_crashes(void)
{
    static const struct slot_change changes[] = {
        {true, false, LUKS_SLOT_ANY, NULL, "new"},
        {true, false, 7, NULL, "new"},
        {true, true, 6, NULL, "new"},
        {false, false, 6, NULL, NULL},
        {false, false, LUKS_SLOT_ANY, "old", NULL},
    };
    for (size_t i = 0; i < ARRAY_SIZE(changes); i++)
        crash_change(&changes[i]);
}

/* Erased material opens with nothing, not even with the header as it was before. */
static void test_erased_for_good(void)
{
    const struct create_encryption e = wish("keep");
    struct qk_io *mem = make(&e, 16);
    struct image *img;
    uint8_t header[1024];
    CHECK_OK(open_with(mem, secret("keep"), &img, NULL));
    CHECK_OK(amend(img, true, 1, NULL, "gone"));
    uint64_t off = image_luks(img)->area.off;
    CHECK_OK(io_read(mem, off, header, sizeof(header), NULL));
    CHECK_OK(amend(img, false, 1, NULL, NULL));
    CHECK_OK(image_close(img, NULL));
    CHECK_OK(io_write(mem, off, header, sizeof(header), 0, NULL));
    CHECK(!opens(mem, "gone") && opens(mem, "keep"));
    io_close(mem, NULL);
}

/* 2^32 iterations are not worked off: another slot is tried, and the master key's own are refused.
 */
static void test_many_iterations(void)
{
    const uint8_t all_ones[4] = {0xff, 0xff, 0xff, 0xff};
    struct create_encryption e = wish("first");
    struct qk_io *io = make(&e, 12);
    struct image *img;
    struct luks_pointer area;
    struct qk_error err = {0};
    CHECK_OK(open_with(io, secret("first"), &img, NULL));
    CHECK_OK(amend(img, true, 1, NULL, "second"));
    area = image_luks(img)->area;
    CHECK_OK(image_close(img, NULL));
    CHECK_OK(io_write(io, area.off + 208 + 4, all_ones, 4, 0, NULL));
    CHECK(opens(io, "second"));
    CHECK_ERR(open_with(io, secret("first"), &img, &err), -EFBIG);
    CHECK(strstr(err.text, "more than 268435456 iterations"));
    CHECK_OK(io_write(io, area.off + 164, all_ones, 4, 0, NULL));
    CHECK_ERR(open_with(io, secret("second"), &img, NULL), -EFBIG);
    io_close(io, NULL);
}

int main(void)
{
    test_header_bytes();
    test_header_judged();
    test_header_malformed();
    test_passphrases();
    test_without_key();
    test_no_plaintext(9, CRYPT_LUKS);
    test_no_plaintext(12, CRYPT_LUKS);
    test_no_plaintext(16, CRYPT_LUKS);
    test_no_plaintext(12, CRYPT_AES);
    test_shared_sectors();
    test_slots();
    test_slot_crashes();
    test_erased_for_good();
    test_many_iterations();
    return TEST_SUMMARY();
}
