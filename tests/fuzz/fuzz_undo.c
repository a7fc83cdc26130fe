/*
 * fuzz_undo.c - takes bytes as an undo log and applies it to a small store, once as it is and once
 * with all its checksums made right, so that what lies behind them is reached.
 *
 * Promises that are tested beside "no crash": what is refused as no log, damaged, or about another
 * store has changed nothing; what was accepted gives the store the length that the log's head says,
 * and is accepted again.
 */
#include "fuzz.h"
#include "io/undo_log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STORE_BYTES = 40000, MAX_INPUT = 1 << 20, MAX_STORE = 64 << 20 };

static void promise(bool held, const char *what)
{
    if (held)
        return;
    fprintf(stderr, "promise broken: %s\n", what);
    abort();
}

static void restore(const uint8_t *data, size_t size)
{
    static uint8_t before[STORE_BYTES];
    struct qk_io *log = NULL, *store = NULL;
    struct undo_result result;
    size_t now_bytes;

    for (size_t i = 0; i < sizeof(before); i++)
        before[i] = (uint8_t)(i / 512);
    promise(io_mem_open(data, size, 0, &log, NULL) == 0, "memory store opens");
    promise(io_mem_open(before, sizeof(before), MAX_STORE, &store, NULL) == 0,
            "memory store opens");
    int ret = undo_restore(log, store, &result, NULL);
    const uint8_t *now = io_mem_data(store, &now_bytes);
    if (ret == -EINVAL || ret == -EUCLEAN || (ret == 0 && result.never_begun)) {
        promise(now_bytes == sizeof(before) && !memcmp(now, before, now_bytes),
                "what is refused changes nothing");
    } else if (ret == 0) {
        promise(now_bytes == result.length, "the length is that of the head");
        promise(undo_restore(log, store, &result, NULL) == 0, "an undo can be done again");
    }
    io_close(log, NULL);
    io_close(store, NULL);
}

/* Gives the head and each record in reach the checksum that fits. */
static void seal(uint8_t *log, size_t size)
{
    struct undo_head head = {.length = load_be64(log + 16)};
    struct undo_record r;

    memcpy(head.id, log + 24, sizeof(head.id));
    undo_head_encode(&head, log);
    for (size_t at = UNDO_HEAD_BYTES; at + UNDO_RECORD_BYTES <= size;) {
        uint8_t *payload = log + at + UNDO_RECORD_BYTES;
        if (!undo_record_decode(log + at, &r) || r.payload_bytes > size - at - UNDO_RECORD_BYTES)
            return;
        undo_record_encode(&head, &r, payload, log + at);
        at += UNDO_RECORD_BYTES + (size_t)((r.payload_bytes + UNDO_ALIGN - 1) & ~15u);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < UNDO_HEAD_BYTES || size > MAX_INPUT)
        return 0;
    restore(data, size);
    uint8_t *sealed = malloc(size);
    if (!sealed)
        return 0;
    memcpy(sealed, data, size);
    seal(sealed, size);
    restore(sealed, size);
    free(sealed);
    return 0;
}
