/*
 * undo_log.c - the bytes of an undo log's head and records. Pure. A decoded record has a range and
 * a payload of bounded length that fit each other (INV-4).
 */
#include "io/undo_log.h"
#include "base/checked.h"

#include <string.h>

enum { AT_TYPE = 0, AT_SUM = 4, AT_SEQ = 8, AT_OFF = 16, AT_LEN = 24, AT_PAYLOAD = 32 };
enum { HEAD_VERSION = 8, HEAD_SECTOR = 12, HEAD_LENGTH = 16, HEAD_ID = 24, HEAD_SUM = 60 };

void undo_head_encode(const struct undo_head *head, uint8_t out[UNDO_HEAD_BYTES])
{
    memset(out, 0, UNDO_HEAD_BYTES);
    memcpy(out, UNDO_MAGIC, 8);
    store_be32(out + HEAD_VERSION, UNDO_VERSION);
    store_be32(out + HEAD_SECTOR, UNDO_SECTOR);
    store_be64(out + HEAD_LENGTH, head->length);
    memcpy(out + HEAD_ID, head->id, sizeof(head->id));
    store_be32(out + HEAD_SUM, crc32c(0, out, HEAD_SUM));
}

int undo_head_decode(const uint8_t bytes[UNDO_HEAD_BYTES], struct undo_head *head,
                     struct qk_error *err)
{
    if (memcmp(bytes, UNDO_MAGIC, 8) != 0)
        return qk_fail(err, -EINVAL, "not an undo file");
    if (load_be32(bytes + HEAD_SUM) != crc32c(0, bytes, HEAD_SUM))
        return qk_fail(err, -EINVAL, "the undo file's head is damaged");
    if (load_be32(bytes + HEAD_VERSION) != UNDO_VERSION ||
        load_be32(bytes + HEAD_SECTOR) != UNDO_SECTOR)
        return qk_fail(err, -ENOTSUP, "undo file of version %u, which this program does not know",
                       load_be32(bytes + HEAD_VERSION));
    head->length = load_be64(bytes + HEAD_LENGTH);
    memcpy(head->id, bytes + HEAD_ID, sizeof(head->id));
    if (head->length > INT64_MAX)
        return qk_fail(err, -EINVAL, "the undo file's head is damaged");
    return 0;
}

static uint32_t record_sum(const struct undo_head *head, const uint8_t *record, const void *payload,
                           size_t payload_bytes)
{
    static const uint8_t no_sum[4];
    uint32_t sum = crc32c(0, head->id, sizeof(head->id));
    sum = crc32c(sum, record, AT_SUM);
    sum = crc32c(sum, no_sum, sizeof(no_sum));
    sum = crc32c(sum, record + AT_SEQ, UNDO_RECORD_BYTES - AT_SEQ);
    return crc32c(sum, payload, payload_bytes);
}

void undo_record_encode(const struct undo_head *head, const struct undo_record *r,
                        const void *payload, uint8_t out[UNDO_RECORD_BYTES])
{
    memset(out, 0, UNDO_RECORD_BYTES);
    store_be32(out + AT_TYPE, r->type);
    store_be64(out + AT_SEQ, r->seq);
    store_be64(out + AT_OFF, r->off);
    store_be64(out + AT_LEN, r->len);
    store_be64(out + AT_PAYLOAD, r->payload_bytes);
    store_be32(out + AT_SUM, record_sum(head, out, payload, (size_t)r->payload_bytes));
}

static bool payload_fits(const struct undo_record *r)
{
    uint64_t sectors = div_round_up(r->len, UNDO_SECTOR);
    switch (r->type) {
    case UNDO_BYTE:
        return r->payload_bytes == r->len;
    case UNDO_SUMS:
        return r->payload_bytes == sectors * 4;
    case UNDO_ZERO:
    case UNDO_SIZE:
    case UNDO_REDY:
    case UNDO_DONE:
    case UNDO_BACK:
        return !r->payload_bytes;
    default:
        return false;
    }
}

bool undo_record_decode(const uint8_t bytes[UNDO_RECORD_BYTES], struct undo_record *r)
{
    *r = (struct undo_record){
        .type = load_be32(bytes + AT_TYPE),
        .seq = load_be64(bytes + AT_SEQ),
        .off = load_be64(bytes + AT_OFF),
        .len = load_be64(bytes + AT_LEN),
        .payload_bytes = load_be64(bytes + AT_PAYLOAD),
    };
    if (!payload_fits(r))
        return false;
    if (r->type == UNDO_SIZE)
        return r->len <= INT64_MAX;
    return r->len <= UNDO_RANGE_MAX && r->off <= INT64_MAX - UNDO_RANGE_MAX &&
           is_aligned(r->off, UNDO_SECTOR);
}

bool undo_record_sound(const struct undo_head *head, const uint8_t bytes[UNDO_RECORD_BYTES],
                       const void *payload, size_t payload_bytes)
{
    return load_be32(bytes + AT_SUM) == record_sum(head, bytes, payload, payload_bytes);
}
