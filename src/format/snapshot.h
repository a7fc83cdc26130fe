/*
 * snapshot.h - entries of the snapshot table (Format, section "Snapshots"): a fixed part, extra
 * data, id and name without terminators, padded to 8 bytes. An entry that is decoded and encoded
 * again is the same, byte for byte, whatever extra data it has; only version 3 images get the extra
 * data that their version demands. Pure.
 */
#ifndef QK_FORMAT_SNAPSHOT_H
#define QK_FORMAT_SNAPSHOT_H

#include "base/error.h"
#include "base/vector.h"

#include <stdbool.h>

#define SNAPSHOT_FIXED_BYTES       40u
#define SNAPSHOT_V3_EXTRA_BYTES    16u   /* vmstate size and disk size: required in version 3 */
#define SNAPSHOT_EXTRA_KNOWN_BYTES 24u   /* these and the instruction count */
#define SNAPSHOT_EXTRA_BYTES_MAX   1024u /* QEMU's limit */
#define SNAPSHOT_TABLE_BYTES_MAX   (64u << 20) /* QEMU's limit */
#define SNAPSHOT_TEXT_MAX          UINT16_MAX

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

/* A whole entry. */
struct snapshot {
    struct snapshot_fixed fixed;
    uint64_t vm_state_bytes;
    uint64_t disk_bytes;
    uint64_t icount; /* UINT64_MAX: not stored */
    uint8_t *extra;  /* fixed.extra_bytes as found; owned */
    char *id, *name; /* with terminators; owned */
};
DEFINE_VECTOR(snapshot_vec, struct snapshot)

/* What the entry leaves out is taken from here. */
struct snapshot_defaults {
    uint32_t version;
    uint64_t disk_bytes;
};

/*
 * The entry at the beginning of `len` bytes; *used gets its length. -EINVAL: it is longer than
 * `len`, or has more extra data than QEMU reads. -ENOMEM. Release with snapshot_free.
 */
int snapshot_decode(const uint8_t *bytes, size_t len, const struct snapshot_defaults *defaults,
                    struct snapshot *out, size_t *used, struct qk_error *err);
void snapshot_free(struct snapshot *s);
void snapshots_free_all(struct snapshot_vec *v);

/* Length of the entry that snapshot_encode writes. */
uint64_t snapshot_bytes(const struct snapshot *s, uint32_t version);
/* Writes the entry, padding included. Lengths of id, name and extra data are taken from `fixed`. */
void snapshot_encode(const struct snapshot *s, uint32_t version, uint8_t *out);

#endif
