/*
 * crypt.c - guest bytes of an encrypted image on their way to and from the store. Sectors of 512
 * bytes are encrypted one by one, each under its number: LUKS counts where the bytes are in the
 * store, the old AES format where the guest sees them (format section "Encryption"). Relies on
 * whoever writes less than whole sectors to hold their clusters exclusively, as the rest of a
 * sector is read, and written again (write.c); promises that nothing but ciphertext is handed to
 * the store, and that the caller's memory is not changed by a write.
 *
 * A request's memory is one buffer of CRYPT_BUFFER_BYTES, whatever its length. Each thread borrows
 * a worker (contexts of the cipher, and the buffer) from a pool that keeps a bounded number.
 */
#include "image/image_int.h"

#include "codec/cipher.h"

#define SECTOR             CIPHER_SECTOR_BYTES
#define CRYPT_BUFFER_BYTES (256u << 10)
#define CRYPT_IDLE_MAX     16

struct crypt_worker {
    struct sector_cipher *cipher;
    uint8_t *buf;
};

struct crypt {
    struct cipher_suite suite;
    uint8_t key[CIPHER_KEY_MAX_BYTES];
    bool by_guest; /* sectors are numbered as the guest counts */
    pthread_mutex_t lock;
    struct crypt_worker *idle[CRYPT_IDLE_MAX];
    unsigned count;
};

/* ---- workers ---- */

static void worker_free(struct crypt_worker *w)
{
    if (!w)
        return;
    if (w->buf)
        explicit_bzero(w->buf, CRYPT_BUFFER_BYTES);
    sector_cipher_free(w->cipher);
    free(w->buf);
    free(w);
}

static int worker_new(const struct crypt *c, struct crypt_worker **out, struct qk_error *err)
{
    struct crypt_worker *w = calloc(1, sizeof(*w));
    if (!w)
        return qk_fail_nomem(err);
    w->buf = aligned_alloc(4096, CRYPT_BUFFER_BYTES);
    int ret = w->buf ? sector_cipher_new(&c->suite, c->key, &w->cipher, err) : qk_fail_nomem(err);
    if (ret < 0)
        worker_free(w);
    else
        *out = w;
    return ret;
}

static int worker_take(struct crypt *c, struct crypt_worker **out, struct qk_error *err)
{
    pthread_mutex_lock(&c->lock);
    *out = c->count ? c->idle[--c->count] : NULL;
    pthread_mutex_unlock(&c->lock);
    return *out ? 0 : worker_new(c, out, err);
}

static void worker_give(struct crypt *c, struct crypt_worker *w)
{
    pthread_mutex_lock(&c->lock);
    bool keep = c->count < CRYPT_IDLE_MAX;
    if (keep)
        c->idle[c->count++] = w;
    pthread_mutex_unlock(&c->lock);
    if (!keep)
        worker_free(w);
}

int crypt_new(const struct cipher_suite *suite, const uint8_t *key, bool by_guest,
              struct crypt **out, struct qk_error *err)
{
    struct crypt *c = calloc(1, sizeof(*c));
    if (!c)
        return qk_fail_nomem(err);
    pthread_mutex_init(&c->lock, NULL);
    c->suite = *suite;
    c->by_guest = by_guest;
    memcpy(c->key, key, cipher_suite_key_bytes(suite));
    /* What cannot be made later is better known now. */
    int ret = worker_new(c, &c->idle[0], err);
    if (ret < 0) {
        crypt_free(c);
        return ret;
    }
    c->count = 1;
    *out = c;
    return 0;
}

void crypt_free(struct crypt *c)
{
    if (!c)
        return;
    for (unsigned i = 0; i < c->count; i++)
        worker_free(c->idle[i]);
    pthread_mutex_destroy(&c->lock);
    explicit_bzero(c->key, sizeof(c->key));
    free(c);
}

const uint8_t *crypt_key(const struct crypt *c)
{
    return c->key;
}

int crypt_clone(const struct crypt *c, struct crypt **out, struct qk_error *err)
{
    return crypt_new(&c->suite, c->key, c->by_guest, out, err);
}

/* ---- sectors ---- */

/* A request, and where its first byte is; piece by piece through a worker. */
struct crypt_request {
    struct image *img;
    struct crypt_worker *w;
    struct data_place at;
    const struct iovec *iov;
    int iovcnt;
    uint64_t len;
};

static uint64_t sector_of(const struct image *img, struct data_place at)
{
    return (img->crypt->by_guest ? at.guest.v : at.host) / SECTOR;
}

static struct data_place place_at(struct data_place at, uint64_t delta)
{
    return (struct data_place){guest_off(at.guest.v + delta), at.host + delta};
}

static int cipher_failed(struct image *img, struct data_place at, struct qk_error *err)
{
    return qk_fail_at(err, -EIO, WHERE(img->data->name, "encrypted data", at.host),
                      "the cipher failed at guest offset %" PRIu64, at.guest.v);
}

/* Ciphertext in buf becomes plain, where it is. */
static int decrypt(const struct crypt_request *r, struct data_place at, uint8_t *buf, size_t len,
                   struct qk_error *err)
{
    struct sector_run run = {sector_of(r->img, at), buf, buf, len};
    return sector_cipher_decrypt(r->w->cipher, &run) < 0 ? cipher_failed(r->img, at, err) : 0;
}

static int load(const struct crypt_request *r, struct data_place at, uint8_t *buf, size_t len,
                struct qk_error *err)
{
    int ret = io_read(r->img->data, at.host, buf, len, err);
    return ret < 0 ? ret : decrypt(r, at, buf, len, err);
}

/* One bufferful of a request: whole sectors [start, start + bytes), of which [skip, skip + len) are
 * the request's, from its byte `done` on. */
struct bufferful {
    struct data_place start;
    size_t bytes, skip, len;
    uint64_t done;
};

static struct bufferful next_bufferful(const struct crypt_request *r, uint64_t done)
{
    struct bufferful b = {.done = done, .skip = (r->at.host + done) % SECTOR};
    b.start = place_at(r->at, done - b.skip);
    b.len = (size_t)min_u64(r->len - done, CRYPT_BUFFER_BYTES - b.skip);
    b.bytes = (size_t)round_up(b.skip + b.len, SECTOR);
    return b;
}

/* ---- reading ---- */

static int read_by_buffer(const struct crypt_request *r, struct qk_error *err)
{
    for (uint64_t done = 0; done < r->len;) {
        struct bufferful b = next_bufferful(r, done);
        int ret = load(r, b.start, r->w->buf, b.bytes, err);
        if (ret < 0)
            return ret;
        iov_from_buf(r->iov, r->iovcnt, (size_t)done, r->w->buf + b.skip, b.len);
        done += b.len;
    }
    return 0;
}

/* Every element of the vector holds whole sectors: the bytes become plain in the caller's memory.
 */
static int read_in_place(const struct crypt_request *r, struct qk_error *err)
{
    int ret = io_readv(r->img->data, r->at.host, r->iov, r->iovcnt, err);
    uint64_t done = 0;
    for (int i = 0; i < r->iovcnt && ret == 0; i++) {
        ret = decrypt(r, place_at(r->at, done), r->iov[i].iov_base, r->iov[i].iov_len, err);
        done += r->iov[i].iov_len;
    }
    return ret;
}

static bool in_whole_sectors(const struct crypt_request *r)
{
    uint64_t odd = r->at.host % SECTOR;
    for (int i = 0; i < r->iovcnt; i++)
        odd |= r->iov[i].iov_len % SECTOR;
    return !odd;
}

int crypt_readv(struct image *img, struct data_place at, const struct iovec *iov, int iovcnt,
                struct qk_error *err)
{
    struct crypt_request r = {img, NULL, at, iov, iovcnt, iov_total(iov, iovcnt)};
    int ret = worker_take(img->crypt, &r.w, err);
    if (ret < 0)
        return ret;
    ret = in_whole_sectors(&r) ? read_in_place(&r, err) : read_by_buffer(&r, err);
    worker_give(img->crypt, r.w);
    return ret;
}

/* ---- writing ---- */

/* The rest of the first and of the last sector. */
static int load_rest(const struct crypt_request *r, const struct bufferful *b, struct qk_error *err)
{
    size_t end = b->skip + b->len, last = b->bytes - SECTOR;
    int ret = b->skip ? load(r, b->start, r->w->buf, SECTOR, err) : 0;
    if (ret == 0 && end < b->bytes && !(b->skip && !last))
        ret = load(r, place_at(b->start, last), r->w->buf + last, SECTOR, err);
    return ret;
}

/* The request's bytes [done, done + len) when they lie in one piece of memory; else NULL. */
static const uint8_t *one_piece(const struct crypt_request *r, uint64_t done, size_t len)
{
    for (int i = 0; i < r->iovcnt; i++) {
        if (done < r->iov[i].iov_len)
            return r->iov[i].iov_len - done >= len ? (const uint8_t *)r->iov[i].iov_base + done
                                                   : NULL;
        done -= r->iov[i].iov_len;
    }
    return NULL;
}

static int write_bufferful(const struct crypt_request *r, const struct bufferful *b,
                           struct qk_error *err)
{
    uint8_t *buf = r->w->buf;
    const uint8_t *plain = b->bytes == b->len ? one_piece(r, b->done, b->len) : NULL;
    int ret = load_rest(r, b, err);
    if (ret < 0)
        return ret;
    if (!plain) {
        iov_to_buf(r->iov, r->iovcnt, (size_t)b->done, buf + b->skip, b->len);
        plain = buf;
    }
    struct sector_run run = {sector_of(r->img, b->start), buf, plain, b->bytes};
    if (sector_cipher_encrypt(r->w->cipher, &run) < 0)
        return cipher_failed(r->img, b->start, err);
    return io_write(r->img->data, b->start.host, buf, b->bytes, 0, err);
}

int crypt_writev(struct image *img, struct data_place at, const struct iovec *iov, int iovcnt,
                 struct qk_error *err)
{
    struct crypt_request r = {img, NULL, at, iov, iovcnt, iov_total(iov, iovcnt)};
    int ret = worker_take(img->crypt, &r.w, err);
    if (ret < 0)
        return ret;
    for (uint64_t done = 0; done < r.len && ret == 0;) {
        struct bufferful b = next_bufferful(&r, done);
        ret = write_bufferful(&r, &b, err);
        done += b.len;
    }
    worker_give(img->crypt, r.w);
    return ret;
}

/* ---- to another place ---- */

bool image_bound_to_place(const struct image *img)
{
    return img->h.crypt_method == CRYPT_LUKS && !img->crypt;
}

int image_move_bytes(struct image *img, const struct moved_bytes *m, struct qk_error *err)
{
    memcpy(m->out, m->in, m->len);
    if (!img->crypt || img->crypt->by_guest)
        return 0;
    struct crypt_worker *w;
    int ret = worker_take(img->crypt, &w, err);
    if (ret < 0)
        return ret;
    const struct sector_run old = {m->from / SECTOR, m->out, m->out, m->len},
                            new = {m->to / SECTOR, m->out, m->out, m->len};
    if (sector_cipher_decrypt(w->cipher, &old) < 0 || sector_cipher_encrypt(w->cipher, &new) < 0)
        ret = cipher_failed(img, (struct data_place){guest_off(QK_OFFSET_NONE), m->from}, err);
    worker_give(img->crypt, w);
    return ret;
}

int crypt_locked(const struct image *img, struct qk_error *err)
{
    return qk_fail_at(err, -EACCES, WHERE(img->file->name, NULL, QK_OFFSET_NONE),
                      "the image is encrypted and was opened without its key");
}
