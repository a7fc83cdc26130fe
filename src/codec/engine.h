/*
 * engine.h - one library's way of doing one thing: the part of codec.c that knows the library.
 */
#ifndef QK_CODEC_ENGINE_H
#define QK_CODEC_ENGINE_H

#include "codec/codec.h"

#include <errno.h>
#include <stdlib.h>

struct codec_engine {
    void *(*open)(int level); /* NULL: out of memory */
    void (*close)(void *context);
    /* As codec_compress, or codec_decompress, which fills all of `out`. */
    int (*compress)(void *context, struct iovec in, struct iovec out, size_t *used);
    int (*decompress)(void *context, struct iovec in, struct iovec out);
};

extern const struct codec_engine zlib_compressor, zlib_decompressor;
extern const struct codec_engine libdeflate_decompressor;
extern const struct codec_engine zstd_compressor, zstd_decompressor;
extern const struct codec_engine isal_compressor; /* only where the build has ISA-L */

#endif
