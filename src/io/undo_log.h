/*
 * undo_log.h - the records of an undo log, for who writes them (undo.c) and who reads them
 * (undo_restore.c). The layout is told in undo.h.
 */
#ifndef QK_IO_UNDO_LOG_H
#define QK_IO_UNDO_LOG_H

#include "base/bytes.h"
#include "base/crc32c.h"
#include "io/undo.h"

#define UNDO_HEAD_BYTES   64u
#define UNDO_RECORD_BYTES 48u
#define UNDO_ALIGN        16u
#define UNDO_VERSION      1u
#define UNDO_MAGIC        "QCOWUNDO"
#define UNDO_RANGE_MAX    (UINT32_C(1) << 20) /* bytes of the store in one record */

#define UNDO_BYTE UINT32_C(0x42595445)
#define UNDO_ZERO UINT32_C(0x5a45524f)
#define UNDO_SUMS UINT32_C(0x53554d53)
#define UNDO_SIZE UINT32_C(0x53495a45)
#define UNDO_REDY UINT32_C(0x52454459)
#define UNDO_DONE UINT32_C(0x444f4e45)
#define UNDO_BACK UINT32_C(0x4241434b)

struct undo_head {
    uint64_t length; /* of the store before any change */
    uint8_t id[16];
};

struct undo_record {
    uint32_t type;
    uint64_t seq;           /* place among the records, from 0 */
    uint64_t off, len;      /* the range; SIZE: len is the length */
    uint64_t payload_bytes; /* behind the record, padded to UNDO_ALIGN */
};

void undo_head_encode(const struct undo_head *head, uint8_t out[UNDO_HEAD_BYTES]);
int undo_head_decode(const uint8_t bytes[UNDO_HEAD_BYTES], struct undo_head *head,
                     struct qk_error *err);

/* `payload` is what follows the record. */
void undo_record_encode(const struct undo_head *head, const struct undo_record *r,
                        const void *payload, uint8_t out[UNDO_RECORD_BYTES]);
/* False: not a record of this log. The payload is judged by undo_record_sum. */
bool undo_record_decode(const uint8_t bytes[UNDO_RECORD_BYTES], struct undo_record *r);
/* The checksum that the record has, and the one that it must have. */
bool undo_record_sound(const struct undo_head *head, const uint8_t bytes[UNDO_RECORD_BYTES],
                       const void *payload, size_t payload_bytes);

#endif
