/*
 * data.c - the one place where guest bytes meet the store: the image file, or the external data
 * file. Knows where the bytes are on the host and nothing of tables; what is stored otherwise than
 * the guest sees it is turned here. Compressed streams are not guest bytes and do not come by.
 */
#include "image/image_int.h"

int data_readv(struct image *img, struct data_place at, const struct iovec *iov, int iovcnt,
               struct qk_error *err)
{
    io_event(img->file, "read_aio");
    return io_readv(img->data, at.host, iov, iovcnt, err);
}

/* `unsynced` is set when the bytes are there: a barrier that starts earlier does not cover them. */
int data_writev(struct image *img, struct data_place at, const struct iovec *iov, int iovcnt,
                struct qk_error *err)
{
    int ret =
        img->data == img->file ? overlap_check(img, 0, at.host, iov_total(iov, iovcnt), err) : 0;
    if (ret < 0)
        return ret;
    io_event(img->file, "write_aio");
    ret = io_writev(img->data, at.host, iov, iovcnt, 0, err);
    image_note_unsynced(img);
    return ret;
}
