/*
 * data.c - the one place where guest bytes meet the store: the image file, or the external data
 * file. Knows where the bytes are on the host and nothing of tables; what is stored otherwise than
 * the guest sees it is turned here. Compressed streams are not guest bytes and do not come by.
 */
#include "image/image_int.h"

int data_missing(const struct image *img, struct qk_error *err)
{
    return qk_fail_at(err, -EBADF, WHERE(img->file->name, NULL, QK_OFFSET_NONE),
                      "the image's external data file is not open");
}

int data_readv(struct image *img, struct data_place at, const struct iovec *iov, int iovcnt,
               struct qk_error *err)
{
    if (!img->data)
        return data_missing(img, err);
    if (image_is_encrypted(img) && !img->crypt)
        return crypt_locked(img, err);
    io_event(img->file, "read_aio");
    if (img->crypt)
        return crypt_readv(img, at, iov, iovcnt, err);
    return io_readv(img->data, at.host, iov, iovcnt, err);
}

/* `unsynced` is set when the bytes are there: a barrier that starts earlier does not cover them. */
int data_writev(struct image *img, struct data_place at, const struct iovec *iov, int iovcnt,
                struct qk_error *err)
{
    if (!img->data)
        return data_missing(img, err);
    if (image_is_encrypted(img) && !img->crypt)
        return crypt_locked(img, err);
    int ret =
        img->data == img->file ? overlap_check(img, 0, at.host, iov_total(iov, iovcnt), err) : 0;
    if (ret < 0)
        return ret;
    io_event(img->file, "write_aio");
    ret = img->crypt ? crypt_writev(img, at, iov, iovcnt, err)
                     : io_writev(img->data, at.host, iov, iovcnt, 0, err);
    image_note_unsynced_data(img);
    return ret;
}

int data_sync(struct image *img, struct qk_error *err)
{
    if (!img->g.data_file || !img->data ||
        !__atomic_exchange_n(&img->data_unsynced, false, __ATOMIC_ACQ_REL))
        return 0;
    int ret = io_flush(img->data, err);
    if (ret < 0)
        image_note_unsynced_data(img);
    return ret;
}
