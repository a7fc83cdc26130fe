/*
 * zstd.c - libzstd. A cluster is one frame, or several behind one another, which QEMU reads too.
 * Each is decompressed in one call, so that memory does not depend on the window that it names.
 */
#include "codec/engine.h"

#include <zstd.h>
#include <zstd_errors.h>

static void *open_compressor(int level)
{
    ZSTD_CCtx *c = ZSTD_createCCtx();
    if (c && ZSTD_isError(ZSTD_CCtx_setParameter(c, ZSTD_c_compressionLevel, level))) {
        ZSTD_freeCCtx(c);
        return NULL;
    }
    return c;
}

static void close_compressor(void *context)
{
    ZSTD_freeCCtx(context);
}

static int compress_cluster(void *context, struct iovec in, struct iovec out, size_t *used)
{
    *used = ZSTD_compress2(context, out.iov_base, out.iov_len, in.iov_base, in.iov_len);
    if (!ZSTD_isError(*used))
        return 0;
    return ZSTD_getErrorCode(*used) == ZSTD_error_memory_allocation ? -ENOMEM : -ENOSPC;
}

static void *open_decompressor(int level)
{
    (void)level;
    return ZSTD_createDCtx();
}

static void close_decompressor(void *context)
{
    ZSTD_freeDCtx(context);
}

static int reason_of(size_t result)
{
    switch (ZSTD_getErrorCode(result)) {
    case ZSTD_error_srcSize_wrong:
        return -ENODATA;
    case ZSTD_error_dstSize_tooSmall:
        return -EOVERFLOW;
    case ZSTD_error_memory_allocation:
        return -ENOMEM;
    default:
        return -EBADMSG;
    }
}

static int decompress_cluster(void *context, struct iovec in, struct iovec out)
{
    const uint8_t *from = in.iov_base;
    uint8_t *to = out.iov_base;
    size_t left = in.iov_len, room = out.iov_len;
    while (room) {
        size_t frame = ZSTD_findFrameCompressedSize(from, left);
        if (ZSTD_isError(frame))
            return reason_of(frame);
        size_t made = ZSTD_decompressDCtx(context, to, room, from, frame);
        if (ZSTD_isError(made))
            return reason_of(made);
        from += frame;
        left -= frame;
        to += made;
        room -= made;
    }
    return 0;
}

const struct codec_engine zstd_compressor = {
    .open = open_compressor, .close = close_compressor, .compress = compress_cluster};
const struct codec_engine zstd_decompressor = {
    .open = open_decompressor, .close = close_decompressor, .decompress = decompress_cluster};
