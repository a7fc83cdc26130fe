/*
 * codec.c - which library does what at which level (see codec.h). Levels were chosen by measuring
 * 64 KiB clusters of a real file system: doc/design/compression.md has the figures.
 */
#include "codec/engine.h"

#include "base/checked.h"

#include <stdbool.h>

/* Levels up to this one; rows of a type ascend. */
static const struct compressor_row {
    enum codec_type type;
    int level_max;
    const struct codec_engine *engine;
} compressors[] = {
#ifdef HAVE_ISAL
    {CODEC_DEFLATE, 2, &isal_compressor},
#endif
    {CODEC_DEFLATE, 9, &zlib_compressor},
    {CODEC_ZSTD, 19, &zstd_compressor},
};

/*
 * ISA-L loses most, by the time that winning it back takes, on clusters that hardly compress. At
 * the default level such a cluster goes through zlib once more: one cluster in seven of a file
 * system, for a fifth of what ISA-L loses. Both depend on the cluster alone, so that a file is the
 * same however many threads make it.
 */
#ifdef HAVE_ISAL
#define SECOND_ATTEMPT_LEVEL 2 /* of deflate */
#else
#define SECOND_ATTEMPT_LEVEL (-1)
#endif
#define SECOND_LEVEL        4
#define SECOND_FROM_PERCENT 55 /* of the cluster, after the first attempt */
#define SECOND_TO_PERCENT   95

#define DECOMPRESSORS_MAX 2

/* Tried in turn until one succeeds; what the last one says counts. libdeflate cannot tell a stream
 * that was cut from one that goes on. */
static const struct {
    int default_level;
    const struct codec_engine *decompressors[DECOMPRESSORS_MAX];
} types[CODEC_TYPES] = {
    [CODEC_DEFLATE] = {2, {&libdeflate_decompressor, &zlib_decompressor}},
    [CODEC_ZSTD] = {3, {&zstd_decompressor, NULL}},
};

struct codec {
    enum codec_type type;
    int level;
    const struct codec_engine *engine;
    void *compressor;                       /* NULL: not made yet */
    void *second;                           /* of zlib; the same */
    void *decompressors[DECOMPRESSORS_MAX]; /* the same */
};

static const struct compressor_row *find_compressor(enum codec_type type, int level)
{
    for (size_t i = 0; i < ARRAY_SIZE(compressors); i++)
        if (compressors[i].type == type && level <= compressors[i].level_max)
            return &compressors[i];
    return NULL;
}

int codec_level_max(enum codec_type type)
{
    int level = 0;
    for (size_t i = 0; i < ARRAY_SIZE(compressors); i++)
        if (compressors[i].type == type)
            level = compressors[i].level_max;
    return level;
}

int codec_new(enum codec_type type, int level, struct codec **out)
{
    if (type >= CODEC_TYPES || level < 0 || level > codec_level_max(type))
        return -EINVAL;
    struct codec *codec = calloc(1, sizeof(*codec));
    if (!codec)
        return -ENOMEM;
    codec->type = type;
    codec->level = level ? level : types[type].default_level;
    codec->engine = find_compressor(type, codec->level)->engine;
    *out = codec;
    return 0;
}

void codec_free(struct codec *codec)
{
    if (!codec)
        return;
    if (codec->compressor)
        codec->engine->close(codec->compressor);
    if (codec->second)
        zlib_compressor.close(codec->second);
    for (size_t i = 0; i < DECOMPRESSORS_MAX; i++)
        if (codec->decompressors[i])
            types[codec->type].decompressors[i]->close(codec->decompressors[i]);
    free(codec);
}

static bool hardly_compresses(const struct codec *codec, size_t in, size_t out)
{
    return codec->type == CODEC_DEFLATE && codec->level == SECOND_ATTEMPT_LEVEL &&
           out >= in / 100 * SECOND_FROM_PERCENT && out < in / 100 * SECOND_TO_PERCENT;
}

/* Into the same buffer: in the rare case that the stream gets longer, the first one is made again.
 */
static int compress_again(struct codec *codec, struct iovec in, struct iovec out, size_t *used)
{
    struct iovec shorter = {out.iov_base, *used - 1};
    if (!codec->second)
        codec->second = zlib_compressor.open(SECOND_LEVEL);
    if (!codec->second)
        return -ENOMEM;
    if (zlib_compressor.compress(codec->second, in, shorter, used) == 0)
        return 0;
    return codec->engine->compress(codec->compressor, in, out, used);
}

int codec_compress(struct codec *codec, struct iovec in, struct iovec out, size_t *used)
{
    if (!codec->compressor)
        codec->compressor = codec->engine->open(codec->level);
    if (!codec->compressor)
        return -ENOMEM;
    int ret = codec->engine->compress(codec->compressor, in, out, used);
    if (ret == 0 && hardly_compresses(codec, in.iov_len, *used))
        ret = compress_again(codec, in, out, used);
    return ret;
}

int codec_decompress(struct codec *codec, struct iovec in, struct iovec out)
{
    int ret = -EBADMSG;
    for (size_t i = 0; i < DECOMPRESSORS_MAX && ret < 0 && ret != -ENOMEM; i++) {
        const struct codec_engine *engine = types[codec->type].decompressors[i];
        if (!engine)
            break;
        if (!codec->decompressors[i])
            codec->decompressors[i] = engine->open(0);
        if (!codec->decompressors[i])
            return -ENOMEM;
        ret = engine->decompress(codec->decompressors[i], in, out);
    }
    return ret;
}

const char *codec_reason(int ret)
{
    static const struct {
        int ret;
        const char *text;
    } reasons[] = {
        {-ENODATA, "its stream ends before the cluster is complete"},
        {-EOVERFLOW, "its stream holds more than a cluster"},
        {-ENOMEM, "out of memory"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(reasons); i++)
        if (reasons[i].ret == ret)
            return reasons[i].text;
    return "its stream is damaged";
}
