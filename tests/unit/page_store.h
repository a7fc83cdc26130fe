/*
 * page_store.h - a store of pages in memory for images of which gigabytes are holes: what was never
 * written takes nothing, a copy shares the pages of its original until it writes to them, and reads
 * of some clusters can be made to fail. It takes no lock, so that a thread sanitizer sees every
 * race of its users: many may read, but only while nobody writes.
 */
#ifndef QK_PAGE_STORE_H
#define QK_PAGE_STORE_H

#include "base/checked.h"
#include "io/io.h"
#include "test.h"

#include <sched.h>

#define PAGE_BYTES ((uint64_t)64 << 10)
#define PAGES      ((uint64_t)20 << 10)
#define BAD_BYTES  512u
#define BAD_MOST   128u

struct page_store {
    struct qk_io io;
    uint64_t length;
    uint64_t bad[BAD_MOST]; /* places that cannot be read, BAD_BYTES long */
    unsigned bad_count;
    unsigned writes;
    bool borrowed[PAGES]; /* the page belongs to another store, which lives longer */
    uint8_t *page[PAGES]; /* NULL: zeroes */
};

static inline size_t page_piece(uint64_t off, uint64_t left)
{
    return (size_t)min_u64(left, PAGE_BYTES - off % PAGE_BYTES);
}

static inline int page_preadv(struct qk_io *io, uint64_t off, const struct iovec *iov, int n,
                              struct qk_error *err)
{
    const struct page_store *s = (struct page_store *)io;
    size_t total = iov_total(iov, n), piece;
    for (unsigned i = 0; i < s->bad_count; i++) {
        if (ranges_overlap(off, total, s->bad[i], BAD_BYTES))
            return qk_fail(err, -EIO, "bad spot");
    }
    for (size_t done = 0; done < total; done += piece) {
        uint64_t at = off + done;
        piece = page_piece(at, total - done);
        if (at / PAGE_BYTES < PAGES && s->page[at / PAGE_BYTES])
            iov_from_buf(iov, n, done, s->page[at / PAGE_BYTES] + at % PAGE_BYTES, piece);
        else
            iov_zero(iov, n, done, piece);
    }
    return 0;
}

static inline uint8_t *page_own(struct page_store *s, uint64_t number)
{
    uint8_t *old = s->page[number],
            *new = old && !s->borrowed[number] ? old : calloc(1, PAGE_BYTES);
    if (new &&old &&new != old)
        memcpy(new, old, PAGE_BYTES);
    s->borrowed[number] = false;
    return s->page[number] = new;
}

static inline int page_pwritev(struct qk_io *io, uint64_t off, const struct iovec *iov, int n,
                               unsigned flags, struct qk_error *err)
{
    struct page_store *s = (struct page_store *)io;
    size_t total = iov_total(iov, n), piece;
    (void)flags;
    if (off + total > PAGES * PAGE_BYTES)
        return qk_fail(err, -ENOSPC, "too far");
    for (size_t done = 0; done < total; done += piece) {
        uint64_t at = off + done;
        piece = page_piece(at, total - done);
        uint8_t *page = page_own(s, at / PAGE_BYTES);
        if (!page)
            return qk_fail_nomem(err);
        iov_to_buf(iov, n, done, page + at % PAGE_BYTES, piece);
    }
    s->writes++;
    s->length = max_u64(s->length, off + total);
    return 0;
}

static inline int page_flush(struct qk_io *io, struct qk_error *err)
{
    (void)io;
    (void)err;
    return 0;
}

static inline int page_size(struct qk_io *io, uint64_t *size, struct qk_error *err)
{
    (void)err;
    *size = ((struct page_store *)io)->length;
    return 0;
}

/* What is cut off a page stays in it: only tests that never grow such a file again cut one. */
static inline int page_resize(struct qk_io *io, uint64_t size, enum qk_prealloc prealloc,
                              struct qk_error *err)
{
    (void)prealloc;
    if (size > PAGES * PAGE_BYTES)
        return qk_fail(err, -ENOSPC, "too far");
    ((struct page_store *)io)->length = size;
    return 0;
}

static inline int page_status(struct qk_io *io, uint64_t off, uint64_t len, unsigned flags,
                              struct qk_extent *e, struct qk_error *err)
{
    const struct page_store *s = (struct page_store *)io;
    bool data = s->page[off / PAGE_BYTES];
    uint64_t end = off;
    (void)flags;
    (void)err;
    while (end < off + len && !!s->page[end / PAGE_BYTES] == data)
        end = round_down(end, PAGE_BYTES) + PAGE_BYTES;
    *e = (struct qk_extent){.off = off,
                            .len = min_u64(end, off + len) - off,
                            .flags = data ? QK_EXTENT_DATA : QK_EXTENT_ZERO};
    return 0;
}

/* Lets others run meanwhile, as a file does. */
static inline void page_will_read(struct qk_io *io, uint64_t off, uint64_t len)
{
    (void)io;
    (void)off;
    (void)len;
    sched_yield();
}

static const struct qk_io_ops page_ops = {
    .name = "pages",
    .preadv = page_preadv,
    .pwritev = page_pwritev,
    .flush = page_flush,
    .size = page_size,
    .resize = page_resize,
    .status = page_status,
    .will_read = page_will_read,
};

static inline struct page_store *page_store_new(void)
{
    static char name[] = "pages";
    struct page_store *s = calloc(1, sizeof(*s));
    if (s)
        s->io = (struct qk_io){.ops = &page_ops,
                               .name = name,
                               .alignment = 1,
                               .writable = true,
                               .can_grow = true,
                               .zero_init = true};
    return s;
}

/* With all its bad spots, and nothing written yet. */
static inline struct page_store *page_store_copy(const struct page_store *from)
{
    struct page_store *s = malloc(sizeof(*s));
    if (!s)
        return NULL;
    memcpy(s, from, sizeof(*s));
    s->writes = 0;
    for (size_t i = 0; i < PAGES; i++)
        s->borrowed[i] = s->page[i];
    return s;
}

static inline void page_store_free(struct page_store *s)
{
    for (size_t i = 0; s && i < PAGES; i++) {
        if (!s->borrowed[i])
            free(s->page[i]);
    }
    free(s);
}

/* The first page that differs; PAGES: none does. */
static inline uint64_t page_store_differs(const struct page_store *a, const struct page_store *b)
{
    static const uint8_t zeroes[PAGE_BYTES];
    for (uint64_t i = 0; i < PAGES; i++) {
        const uint8_t *x = a->page[i] ? a->page[i] : zeroes, *y = b->page[i] ? b->page[i] : zeroes;
        if (x != y && memcmp(x, y, PAGE_BYTES) != 0)
            return i;
    }
    return PAGES;
}

#endif
