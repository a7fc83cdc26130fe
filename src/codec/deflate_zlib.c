/*
 * deflate_zlib.c - zlib: deflate at the levels that ISA-L does not have, and the second opinion on
 * streams that libdeflate refuses.
 */
#include "codec/engine.h"

#include <zlib.h>

#define WINDOW_BITS_WRITE (-12) /* raw, 4 KiB */
#define WINDOW_BITS_READ  (-15) /* raw, whatever the writer had */
#define MEMORY_LEVEL      8     /* faster than 9, and no larger for one cluster */

static void *open_compressor(int level)
{
    z_stream *z = calloc(1, sizeof(*z));
    if (z && deflateInit2(z, level, Z_DEFLATED, WINDOW_BITS_WRITE, MEMORY_LEVEL,
                          Z_DEFAULT_STRATEGY) != Z_OK) {
        free(z);
        return NULL;
    }
    return z;
}

static void close_compressor(void *context)
{
    deflateEnd(context);
    free(context);
}

static void set_buffers(z_stream *z, struct iovec in, struct iovec out)
{
    z->next_in = in.iov_base;
    z->avail_in = (uInt)in.iov_len;
    z->next_out = out.iov_base;
    z->avail_out = (uInt)out.iov_len;
}

static int compress_cluster(void *context, struct iovec in, struct iovec out, size_t *used)
{
    z_stream *z = context;
    deflateReset(z);
    set_buffers(z, in, out);
    int ret = deflate(z, Z_FINISH);
    *used = out.iov_len - z->avail_out;
    return ret == Z_STREAM_END ? 0 : -ENOSPC;
}

static void *open_decompressor(int level)
{
    (void)level;
    z_stream *z = calloc(1, sizeof(*z));
    if (z && inflateInit2(z, WINDOW_BITS_READ) != Z_OK) {
        free(z);
        return NULL;
    }
    return z;
}

static void close_decompressor(void *context)
{
    inflateEnd(context);
    free(context);
}

/* All of the output is there, but the stream has not ended: is there more in it? */
static int judge_full(z_stream *z)
{
    uint8_t more;
    z->next_out = &more;
    z->avail_out = 1;
    int ret = inflate(z, Z_SYNC_FLUSH);
    if (!z->avail_out)
        return -EOVERFLOW;
    /* QEMU reads a stream whose end mark is missing, and no byte of the cluster is in doubt. */
    return ret == Z_STREAM_END || ret == Z_OK || ret == Z_BUF_ERROR ? 0 : -EBADMSG;
}

static int decompress_cluster(void *context, struct iovec in, struct iovec out)
{
    z_stream *z = context;
    inflateReset(z);
    set_buffers(z, in, out);
    int ret = inflate(z, Z_FINISH);
    if (ret == Z_MEM_ERROR)
        return -ENOMEM;
    if (ret == Z_STREAM_END)
        return z->avail_out ? -ENODATA : 0;
    if (ret != Z_OK && ret != Z_BUF_ERROR)
        return -EBADMSG;
    return z->avail_out ? -ENODATA : judge_full(z);
}

const struct codec_engine zlib_compressor = {
    .open = open_compressor, .close = close_compressor, .compress = compress_cluster};
const struct codec_engine zlib_decompressor = {
    .open = open_decompressor, .close = close_decompressor, .decompress = decompress_cluster};
