/* iov.c - walking iovecs: copy in, copy out, zero, slice. Pure. */
#include "base/checked.h"
#include "io/io.h"

#include <stdlib.h>
#include <string.h>

size_t iov_total(const struct iovec *iov, int iovcnt)
{
    size_t total = 0;
    for (int i = 0; i < iovcnt; i++)
        total += iov[i].iov_len;
    return total;
}

int iov_slice(const struct iovec *iov, int iovcnt, size_t skip, size_t len, struct iovec *out)
{
    int n = 0;
    for (int i = 0; i < iovcnt && len; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        size_t take = (size_t)min_u64(iov[i].iov_len - skip, len);
        out[n++] = (struct iovec){(uint8_t *)iov[i].iov_base + skip, take};
        skip = 0;
        len -= take;
    }
    return n;
}

/* What to do with each piece of a walk: exactly one of the two is set, neither means zero. */
struct walk {
    uint8_t *to;
    const uint8_t *from;
};

static size_t walk_pieces(const struct iovec *iov, int iovcnt, size_t skip, size_t len,
                          struct walk w)
{
    size_t done = 0;
    for (int i = 0; i < iovcnt && done < len; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        size_t take = (size_t)min_u64(iov[i].iov_len - skip, len - done);
        uint8_t *piece = (uint8_t *)iov[i].iov_base + skip;
        if (w.to)
            memcpy(w.to + done, piece, take);
        else if (w.from)
            memcpy(piece, w.from + done, take);
        else
            memset(piece, 0, take);
        skip = 0;
        done += take;
    }
    return done;
}

size_t iov_to_buf(const struct iovec *iov, int iovcnt, size_t skip, void *buf, size_t len)
{
    return walk_pieces(iov, iovcnt, skip, len, (struct walk){.to = buf});
}

size_t iov_from_buf(const struct iovec *iov, int iovcnt, size_t skip, const void *buf, size_t len)
{
    return walk_pieces(iov, iovcnt, skip, len, (struct walk){.from = buf});
}

void iov_zero(const struct iovec *iov, int iovcnt, size_t skip, size_t len)
{
    walk_pieces(iov, iovcnt, skip, len, (struct walk){0});
}

int iov_view_init(struct iov_view *view, const struct iovec *iov, int iovcnt, size_t skip,
                  size_t len)
{
    view->many = NULL;
    view->iov = view->few;
    view->iovcnt = 0;
    if ((size_t)iovcnt > ARRAY_SIZE(view->few)) {
        view->iov = view->many = malloc((size_t)iovcnt * sizeof(*view->many));
        if (!view->many)
            return -ENOMEM;
    }
    view->iovcnt = iov_slice(iov, iovcnt, skip, len, view->iov);
    return 0;
}

void iov_view_free(struct iov_view *view)
{
    free(view->many);
}
