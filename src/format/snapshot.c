/* snapshot.c - decoding entries of the snapshot table: see snapshot.h. */
#include "format/snapshot.h"
#include "base/bytes.h"
#include "base/checked.h"

struct snapshot_fixed snapshot_fixed_decode(const uint8_t bytes[SNAPSHOT_FIXED_BYTES])
{
    return (struct snapshot_fixed){
        .l1_off = load_be64(bytes),
        .l1_entries = load_be32(bytes + 8),
        .id_bytes = load_be16(bytes + 12),
        .name_bytes = load_be16(bytes + 14),
        .date_sec = load_be32(bytes + 16),
        .date_nsec = load_be32(bytes + 20),
        .vm_clock_ns = load_be64(bytes + 24),
        .vm_state_bytes = load_be32(bytes + 32),
        .extra_bytes = load_be32(bytes + 36),
    };
}

uint64_t snapshot_entry_bytes(const struct snapshot_fixed *f)
{
    /* At most 2^32 + 2 * 2^16 + 40: cannot wrap. */
    return round_up((uint64_t)SNAPSHOT_FIXED_BYTES + f->extra_bytes + f->id_bytes + f->name_bytes,
                    8);
}
