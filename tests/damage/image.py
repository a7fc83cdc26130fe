"""A qcow2 image seen by field names, for damaging it on purpose and looking at what a repair did.

Knows the layout of the header, the L1 and L2 tables, the refcount structure, the snapshot table and
the bitmap directory; nothing here judges an image. A `Place` is a named spot in the file with a
width, read and written as a big-endian number.
"""
import struct

HEADER = {  # field: (offset, bytes)
    "magic": (0, 4), "version": (4, 4), "backing_name_off": (8, 8), "backing_name_len": (16, 4),
    "cluster_bits": (20, 4), "size": (24, 8), "crypt_method": (32, 4), "l1_entries": (36, 4),
    "l1_off": (40, 8), "reftable_off": (48, 8), "reftable_clusters": (56, 4),
    "snapshot_count": (60, 4), "snapshots_off": (64, 8), "incompatible": (72, 8),
    "compatible": (80, 8), "autoclear": (88, 8), "refcount_order": (96, 4), "header_bytes": (100, 4),
    "compression_type": (104, 1),
}
OFFSET_MASK = 0x00FFFFFFFFFFFE00
COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1
DIRTY, CORRUPT, DATA_FILE, COMPRESSION, EXTENDED_L2 = 1, 2, 4, 8, 16
EXT_BITMAPS, EXT_CRYPTO, EXT_DATA_FILE = 0x23852875, 0x0537BE77, 0x44415441
EXT_FEATURE_NAMES = 0x6803F857


class Image:
    def __init__(self, name):
        self.name = name
        with open(name, "rb") as f:
            self.head = f.read(4096)
        self.version = self.field("version")
        self.cluster = 1 << self.field("cluster_bits")
        self.l1_off = self.field("l1_off")
        self.l1_entries = self.field("l1_entries")
        self.incompatible = self.field("incompatible") if self.version > 2 else 0
        self.refcount_bits = 1 << (self.field("refcount_order") if self.version > 2 else 4)
        self.l2_entry = 16 if self.incompatible & EXTENDED_L2 else 8
        self.l2_entries = self.cluster // self.l2_entry
        self.block_refcounts = self.cluster * 8 // self.refcount_bits

    # ---- bytes ----

    def read(self, off, length):
        """What lies behind the end of the file reads as zeroes."""
        if off >= self.length():
            return bytes(length)
        with open(self.name, "rb") as f:
            f.seek(off)
            return f.read(length).ljust(length, b"\0")

    def write(self, off, data):
        with open(self.name, "r+b") as f:
            f.seek(off)
            f.write(data)

    def number(self, off, length=8):
        return int.from_bytes(self.read(off, length), "big")

    def put(self, off, value, length=8):
        self.write(off, value.to_bytes(length, "big"))

    def length(self):
        with open(self.name, "rb") as f:
            return f.seek(0, 2)

    def resize(self, length):
        with open(self.name, "r+b") as f:
            f.truncate(length)

    def clusters(self):
        return -(-self.length() // self.cluster)

    # ---- header ----

    def field(self, name):
        off, length = HEADER[name]
        return int.from_bytes(self.head[off:off + length], "big")

    def set_field(self, name, value):
        off, length = HEADER[name]
        self.put(off, value, length)

    def extension(self, kind):
        """Offset and length of a header extension's data, or None."""
        at = self.field("header_bytes") if self.version > 2 else 72
        while at + 8 <= self.cluster:
            found, length = struct.unpack(">II", self.read(at, 8))
            if found == 0:
                return None
            if found == kind:
                return at + 8, length
            at += 8 + (length + 7) // 8 * 8
        return None

    # ---- L1 and L2 ----

    def l1_place(self, index):
        return self.l1_off + 8 * index

    def l1(self, index):
        return self.number(self.l1_place(index))

    def set_l1(self, index, value):
        self.put(self.l1_place(index), value)

    def l2_table(self, l1_index):
        return self.l1(l1_index) & OFFSET_MASK

    def l2_place(self, guest_cluster):
        table = self.l2_table(guest_cluster // self.l2_entries)
        return table + guest_cluster % self.l2_entries * self.l2_entry if table else None

    def l2(self, guest_cluster):
        place = self.l2_place(guest_cluster)
        return self.number(place) if place else 0

    def set_l2(self, guest_cluster, value):
        self.put(self.l2_place(guest_cluster), value)

    def bitmap(self, guest_cluster):
        return self.number(self.l2_place(guest_cluster) + 8)

    def set_bitmap(self, guest_cluster, value):
        self.put(self.l2_place(guest_cluster) + 8, value)

    def mapped(self):
        """(guest cluster, entry) of every active entry that is not zero."""
        for i in range(self.l1_entries):
            table = self.l2_table(i)
            if not table:
                continue
            data = self.read(table, self.cluster)
            for j in range(self.l2_entries):
                entry = int.from_bytes(data[j * self.l2_entry:j * self.l2_entry + 8], "big")
                if entry:
                    yield i * self.l2_entries + j, entry

    # ---- refcounts ----

    def reftable_place(self, index):
        return self.number(48) + 8 * index

    def reftable_entries(self):
        return self.number(56, 4) * self.cluster // 8

    def refblock(self, index):
        return self.number(self.reftable_place(index))

    def set_refblock(self, index, value):
        self.put(self.reftable_place(index), value)

    def refblocks(self):
        """(index, entry) of the refcount table's entries that name something. The table may be large."""
        table = self.read(self.number(48), self.reftable_entries() * 8)
        return [(i, entry) for i, (entry,) in enumerate(struct.iter_unpack(">Q", table)) if entry]

    def refcount_place(self, cluster):
        """(byte offset, bits to shift) of a cluster's refcount; None where there is no block."""
        block = self.refblock(cluster // self.block_refcounts)
        if not block:
            return None
        bit = cluster % self.block_refcounts * self.refcount_bits
        return block + bit // 8, bit % 8

    def refcount(self, cluster):
        place = self.refcount_place(cluster)
        if not place:
            return 0
        if self.refcount_bits >= 8:
            return self.number(place[0], self.refcount_bits // 8)
        return self.number(place[0], 1) >> place[1] & (1 << self.refcount_bits) - 1

    def set_refcount(self, cluster, value):
        off, shift = self.refcount_place(cluster)
        if self.refcount_bits >= 8:
            self.put(off, value, self.refcount_bits // 8)
            return
        mask = (1 << self.refcount_bits) - 1 << shift
        self.put(off, self.number(off, 1) & ~mask | value << shift, 1)

    def refcount_max(self):
        return (1 << self.refcount_bits) - 1

    # ---- snapshots ----

    def snapshots(self):
        """Offsets of the entries of the snapshot table."""
        at = self.field("snapshots_off")
        for _ in range(self.field("snapshot_count")):
            yield at
            id_bytes, name_bytes = struct.unpack(">HH", self.read(at + 12, 4))
            extra = self.number(at + 36, 4)
            at += (40 + extra + id_bytes + name_bytes + 7) // 8 * 8

    # ---- bitmaps ----

    def bitmap_directory(self):
        off, _ = self.extension(EXT_BITMAPS)
        return self.number(off + 16)
