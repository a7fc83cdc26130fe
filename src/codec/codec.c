/*
 * codec.c - which library does what at which level (see codec.h). Levels were chosen by measuring
 * 64 KiB clusters of a real file system: doc/design/compression.md has the figures.
 */
#include "codec/engine.h"

#include "base/checked.h"

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
    for (size_t i = 0; i < DECOMPRESSORS_MAX; i++)
        if (codec->decompressors[i])
            types[codec->type].decompressors[i]->close(codec->decompressors[i]);
    free(codec);
}

int codec_compress(struct codec *codec, struct iovec in, struct iovec out, size_t *used)
{
    if (!codec->compressor)
        codec->compressor = codec->engine->open(codec->level);
    if (!codec->compressor)
        return -ENOMEM;
    return codec->engine->compress(codec->compressor, in, out, used);
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
