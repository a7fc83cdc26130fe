/*
 * codec.h - compressing and decompressing one cluster at a time, whichever library does it best.
 * Pure: bytes in, bytes out, no state beyond the contexts of a struct codec, which one thread uses
 * at a time and which may be used again for any number of clusters.
 *
 * A deflate stream that is made here never reaches back more than 4 KiB, as QEMU's reader has only
 * that window (Format, section "Compressed Clusters Descriptor").
 */
#ifndef QK_CODEC_CODEC_H
#define QK_CODEC_CODEC_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct codec;

/* The numbers of the header's compression type. */
enum codec_type { CODEC_DEFLATE = 0, CODEC_ZSTD = 1, CODEC_TYPES };

/* level 0: the default. -EINVAL for a level that the type does not have, -ENOMEM. Contexts are
 * made when they are first needed. */
int codec_new(enum codec_type type, int level, struct codec **out);
void codec_free(struct codec *codec);

/* The levels of a type: 1 to the highest. */
int codec_level_max(enum codec_type type);

/*
 * Compresses into at most `room` bytes; *used gets how many. -ENOSPC when it does not fit (nothing
 * is lost: the data is to be stored as it is), -ENOMEM.
 */
int codec_compress(struct codec *codec, struct iovec in, struct iovec out, size_t *used);

/*
 * Decompresses a stream that begins at `in` and may end before it does into exactly out.iov_len
 * bytes. Never writes beyond them, whatever the stream says (INV-4). -EBADMSG damaged, -ENODATA it
 * ends before that many bytes are there, -EOVERFLOW it has more, -ENOMEM.
 */
int codec_decompress(struct codec *codec, struct iovec in, struct iovec out);

/* What is wrong with a stream, in words, for what codec_decompress returned. */
const char *codec_reason(int ret);

#endif
