/*
 * snapshot.h - entries of the snapshot table (Format, section "Snapshots"): a fixed part, extra
 * data, id and name without terminators, padded to 8 bytes. Pure.
 */
#ifndef QK_FORMAT_SNAPSHOT_H
#define QK_FORMAT_SNAPSHOT_H

#include <stdint.h>

#define SNAPSHOT_FIXED_BYTES       40u
#define SNAPSHOT_V3_EXTRA_BYTES    16u   /* vmstate size and disk size: required in version 3 */
#define SNAPSHOT_EXTRA_KNOWN_BYTES 24u   /* these and the instruction count */
#define SNAPSHOT_EXTRA_BYTES_MAX   1024u /* QEMU's limit */

/* The fixed part; vm_state_bytes is the 32-bit field, which the extra data may supersede. */
struct snapshot_fixed {
    uint64_t l1_off;
    uint32_t l1_entries;
    uint32_t id_bytes, name_bytes, extra_bytes;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_ns;
    uint32_t vm_state_bytes;
};

struct snapshot_fixed snapshot_fixed_decode(const uint8_t bytes[SNAPSHOT_FIXED_BYTES]);

/* Length of the whole entry, padding included. */
uint64_t snapshot_entry_bytes(const struct snapshot_fixed *f);

#endif
