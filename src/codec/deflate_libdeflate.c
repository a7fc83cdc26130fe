/*
 * deflate_libdeflate.c - libdeflate: the fastest way to read a deflate stream. It cannot bound the
 * window of what it writes, so it is not used for that.
 */
#include "codec/engine.h"

#include <libdeflate.h>

static void *inflate_open(int level)
{
    (void)level;
    return libdeflate_alloc_decompressor();
}

static void inflate_close(void *context)
{
    libdeflate_free_decompressor(context);
}

static int inflate_cluster(void *context, struct iovec in, struct iovec out)
{
    size_t used_in, made;
    enum libdeflate_result result = libdeflate_deflate_decompress_ex(
        context, in.iov_base, in.iov_len, out.iov_base, out.iov_len, &used_in, &made);
    if (result == LIBDEFLATE_SUCCESS)
        return made == out.iov_len ? 0 : -ENODATA;
    return result == LIBDEFLATE_INSUFFICIENT_SPACE ? -EOVERFLOW : -EBADMSG;
}

const struct codec_engine libdeflate_decompressor = {
    .open = inflate_open, .close = inflate_close, .decompress = inflate_cluster};
