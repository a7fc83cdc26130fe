/*
 * packer.c - see packer.h. The worker's buffer holds a chunk of data, a chunk for the streams, each
 * at the place of its cluster, and a number for each cluster.
 */
#include "job/packer.h"

#include "base/checked.h"
#include "job/zero.h"

/* What is to be done with a cluster, when it is no stream's length. */
#define AS_IT_IS  0u
#define AS_ZEROES UINT32_MAX

int packer_init(struct packer *packer, struct qk_disk *target, struct qk_error *err)
{
    struct image *img = target->node->image;
    if (!img)
        return qk_fail(err, -ENOTSUP, "Compression not supported for this file format");
    *packer = (struct packer){
        .target = target,
        .image = img,
        .target_size = qk_disk_size(target),
        .cluster = image_geometry(img)->cluster_bytes,
    };
    packer->chunk = max_u64(JOB_CHUNK_BYTES, packer->cluster);
    return 0;
}

size_t packer_buffer_bytes(const struct packer *packer)
{
    return 2 * packer->chunk + packer->chunk / packer->cluster * sizeof(uint32_t);
}

static uint8_t *data_at(const struct packer *packer, struct job_worker *worker, uint64_t off)
{
    return worker->buffer + (off & (packer->chunk - 1));
}

static uint8_t *stream_at(const struct packer *packer, struct job_worker *worker, uint64_t off)
{
    return data_at(packer, worker, off) + packer->chunk;
}

static uint32_t *verdict_at(const struct packer *packer, struct job_worker *worker, uint64_t off)
{
    uint32_t *list = (uint32_t *)(void *)(worker->buffer + 2 * packer->chunk);
    return &list[(off & (packer->chunk - 1)) / packer->cluster];
}

/* The range's part in the cluster of off; only a whole one can be compressed. */
static size_t part_at(const struct packer *packer, struct packer_range range, uint64_t off,
                      bool *whole)
{
    uint64_t in_cluster = off & (packer->cluster - 1);
    size_t n = (size_t)min_u64(packer->cluster - in_cluster, range.off + range.len - off);
    *whole = !in_cluster && (n == packer->cluster || off + n == packer->target_size);
    return n;
}

static int judge(const struct packer *packer, struct job_worker *worker, struct iovec data,
                 uint64_t off, struct qk_error *err)
{
    struct iovec stream = {stream_at(packer, worker, off), packer->cluster};
    size_t bytes;
    int ret = image_compress(packer->image, data, stream, &bytes, err);
    if (ret < 0)
        return job_fail_at_byte(err, ret, "error while writing at byte", off);
    *verdict_at(packer, worker, off) = (uint32_t)bytes;
    return 0;
}

int packer_compress(const struct packer *packer, struct job_worker *worker,
                    struct packer_range range, struct qk_error *err)
{
    int ret = 0;
    for (uint64_t off = range.off, n; off < range.off + range.len && ret == 0; off += n) {
        bool whole;
        n = part_at(packer, range, off, &whole);
        struct iovec data = {data_at(packer, worker, off), (size_t)n};
        /* Ranges that share a cluster share its verdict, so for parts there is only one. */
        if (!whole)
            *verdict_at(packer, worker, off) = AS_IT_IS;
        else if (!range.keep_zeroes && bytes_are_zero(data.iov_base, data.iov_len))
            *verdict_at(packer, worker, off) = AS_ZEROES;
        else
            ret = judge(packer, worker, data, off, err);
    }
    return ret;
}

static int write_part(const struct packer *packer, struct job_worker *worker, uint64_t off,
                      size_t n, struct qk_error *err)
{
    uint32_t verdict = *verdict_at(packer, worker, off);
    if (verdict == AS_IT_IS)
        return qk_disk_write(packer->target, off, data_at(packer, worker, off), n, 0, err);
    struct iovec stream = {stream_at(packer, worker, off), verdict};
    return image_write_stream(packer->image, guest_off(off), stream, err);
}

int packer_write(const struct packer *packer, struct job_worker *worker, struct packer_range range,
                 const struct packer_zeroes *zeroes, struct qk_error *err)
{
    int ret = 0;
    for (uint64_t off = range.off, n; off < range.off + range.len && ret == 0; off += n) {
        bool whole;
        n = part_at(packer, range, off, &whole);
        if (*verdict_at(packer, worker, off) == AS_ZEROES)
            ret = zeroes->write(zeroes->opaque, off, n, err);
        else
            ret = write_part(packer, worker, off, (size_t)n, err);
    }
    return ret;
}
