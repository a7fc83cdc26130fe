"""Damage by field name, for each problem of src/check/problems.def: what is found, whether `-r all`
repairs it, and on which kinds of images it can occur (harness.KINDS). test-problems runs them.

A case may touch guest clusters: these may read anew afterwards, all others read as they did."""
import dataclasses
import typing

import harness as h
from image import (COMPRESSED, COMPRESSION, COPIED, DATA_FILE, EXT_BITMAPS, EXT_CRYPTO, EXT_DATA_FILE,
                   EXT_FEATURE_NAMES, EXTENDED_L2, OFFSET_MASK, ZERO)

CLEAN, STAYS = "clean", "stays"
KEPT = "kept"  # all is repaired, but what looks leaked may belong to what is damaged
WIDE = h.SHARING
ALL_TOUCHED = range(1000)

ANY = tuple(h.KINDS)


def without(*kinds):
    return tuple(k for k in ANY if k not in kinds)


OWN_DATA = without(*h.DATA_FILE_KINDS)  # guest clusters are in this file
V3 = without("v2")
SUBCLUSTERS = ("extended", "mixed")
BITMAPS = ("bitmaps", "mixed")
# Where guest data comes last in the file.
DATA_LAST = ("plain", "v2", "extended", "backing", "luks", "aes")
# An L1 table that one place can hold: no snapshot has one like it.
ONE_L1 = without(*h.SNAPSHOT_KINDS)
ALIGNED = (4096, 16384, 65536, 2 << 20)  # so that an offset can be unaligned


@dataclasses.dataclass
class Case:
    damage: typing.Callable
    numbers: set       # found before
    after: str         # CLEAN, STAYS or KEPT
    kinds: tuple
    touched: typing.Iterable
    clusters: tuple    # of those that the kind has
    widths: tuple

    @property
    def name(self):
        return self.damage.__name__

    def shapes(self, kind):
        clusters, widths = h.KINDS[kind]
        return [(c, w) for c in clusters if c in self.clusters for w in widths if w in self.widths]


CASES: list = []
ALL_CLUSTERS = (512, 4096, 16384, 65536, 2 << 20)


def case(numbers, after, kinds=ANY, touched=(), clusters=ALL_CLUSTERS, widths=h.WIDTHS):
    def register(damage):
        of = (kinds,) if isinstance(kinds, str) else tuple(kinds)
        CASES.append(Case(damage, set(numbers), after, of, touched, clusters, widths))
        return damage
    return register


def header_case(name, values, *of, **more):
    """Fields of the header that get these values."""
    def damage(image):
        for field, value in values.items():
            image.set_field(field, value)
    damage.__name__ = name
    case(*of, **more)(damage)


def host(image, guest_cluster):
    return (image.l2(guest_cluster) & OFFSET_MASK) // image.cluster


def unused_block(image):
    """A refcount table entry that names no block."""
    return next(i for i in range(image.reftable_entries()) if not image.refblock(i))


def far(image, clusters=5):
    return (image.clusters() + clusters) * image.cluster


# ---- refcounts ----

@case([1], CLEAN, OWN_DATA)
def zero_refcount_of_data(image):
    image.set_refcount(host(image, 3), 0)


@case([1], CLEAN)
def zero_refcount_of_header(image):
    image.set_refcount(0, 0)


@case([1], CLEAN)
def missing_refcount_block(image):
    image.set_refblock(0, 0)


@case([2], CLEAN, h.SNAPSHOT_KINDS)
def shared_cluster_counted_once(image):
    image.set_refcount(host(image, 0), 1)


@case([3], CLEAN)
def leaked_clusters(image):
    end = image.clusters()
    image.resize((end + 3) * image.cluster)
    for cluster in range(end, end + 3):
        image.set_refcount(cluster, image.refcount_max())


@case([3, 34], CLEAN, [k for k in OWN_DATA if k not in h.SNAPSHOT_KINDS], widths=h.SHARING)
def refcount_too_high(image):
    image.set_refcount(host(image, 4), 2)


@case([3], CLEAN, h.SNAPSHOT_KINDS, widths=(4, 8, 16, 32, 64))
def refcount_of_shared_cluster_too_high(image):
    image.set_refcount(host(image, 4), image.refcount(host(image, 4)) + 1)


@case([4], STAYS, OWN_DATA, widths=(1, 2, 4), touched=range(2, 18))
def more_references_than_fit(image):
    for cluster in range(2, 2 + image.refcount_max()):
        image.set_l2(cluster, image.l2(1))


@case([4, 10], STAYS, ("plain", "extended", "bitmaps", "luks", "aes", "backing"), widths=(1,),
      touched=(2,))
def more_references_than_fit_behind_a_bad_block(image):
    image.set_l2(2, image.l2(1))
    for index, block in image.refblocks():
        image.set_refblock(index, block | 1)


# ---- the refcount table ----

@case([10], CLEAN)
def reftable_reserved_bits(image):
    image.set_refblock(0, image.refblock(0) | 1)


@case([11], CLEAN, clusters=ALIGNED)
def reftable_unaligned(image):
    image.set_refblock(0, image.refblock(0) | 512)


@case([12], CLEAN)
def reftable_outside(image):
    image.set_refblock(image.reftable_entries() - 1, far(image, 7))


@case([13], CLEAN, OWN_DATA)
def refblock_on_data(image):
    image.set_refblock(unused_block(image), image.l2(3) & OFFSET_MASK)


@case([13], CLEAN)
def refblock_on_a_table(image):
    image.set_refblock(unused_block(image), image.l2_table(0))


@case([13], CLEAN)
def refblock_named_twice(image):
    image.set_refblock(unused_block(image), image.refblock(0))


@case([15], CLEAN, clusters=(512, 4096, 16384, 65536))
def refcount_table_outside(image):
    image.set_field("reftable_clusters", image.clusters() + 1)


@case([16], CLEAN)
def refcount_table_unaligned(image):
    image.set_field("reftable_off", image.number(48) + 256)


header_case("refcount_table_of_no_clusters", {"reftable_clusters": 0}, [16], CLEAN)
header_case("refcount_table_nowhere", {"reftable_off": 0}, [16], CLEAN)
header_case("refcount_table_huge", {"reftable_clusters": 0xFFFFFFFF}, [16], CLEAN)
header_case("refcount_order_impossible", {"refcount_order": 200}, [17], CLEAN, V3)


# ---- L1 ----

@case([3, 47], KEPT, without(*h.SNAPSHOT_KINDS), touched=ALL_TOUCHED)
def l1_entry_zeroed(image):
    image.set_l1(0, 0)


@case([20], STAYS)
def l1_reserved_bits(image):
    image.set_l1(0, image.l1(0) | 1 << 57)


@case([21], STAYS, clusters=ALIGNED, touched=ALL_TOUCHED)
def l1_unaligned(image):
    image.set_l1(0, image.l1(0) | 512)


@case([22], STAYS, touched=ALL_TOUCHED)
def l1_outside(image):
    image.set_l1(0, COPIED | far(image))


@case([23], CLEAN, without("data_raw"), clusters=(512,))
def l1_stray_copied(image):
    """Only the tables of small clusters have entries that are not used, and only where not every
    cluster is mapped."""
    image.set_l1(image.l1_entries - 1, COPIED)


@case([24], CLEAN, without("shared"))
def l1_copied_missing(image):
    image.set_l1(0, image.l1(0) & ~COPIED)


@case([24], CLEAN, "shared")
def l1_copied_on_shared_table(image):
    image.set_l1(0, image.l1(0) | COPIED)


@case([26], STAYS, touched=ALL_TOUCHED)
def l1_table_far_outside(image):
    image.set_field("l1_off", far(image, 3))


@case([27], STAYS, ONE_L1, touched=ALL_TOUCHED)
def l1_table_unaligned(image):
    image.set_field("l1_off", image.l1_off + 256)


header_case("l1_table_nowhere", {"l1_off": 0}, [27], STAYS, ONE_L1, touched=ALL_TOUCHED)
header_case("l1_table_nowhere_with_snapshots", {"l1_off": 0},
            [27, 82, 83], STAYS, ("snapshots", "mixed"), touched=ALL_TOUCHED)


@case([28], STAYS, touched=ALL_TOUCHED)
def l1_table_overwritten(image):
    image.set_field("l1_off", 1 << 63)
    image.write(image.l1_off, bytes([7]) * 8 * image.l1_entries)


@case([29], CLEAN)
def l1_size_too_small(image):
    image.set_field("l1_entries", image.l1_entries - 1)


header_case("l1_size_huge", {"l1_entries": 0xFFFFFFFF}, [29], CLEAN)


@case([29], CLEAN)
def l1_size_past_the_end(image):
    image.set_field("l1_entries", image.length() // 8)


# ---- L2 ----

@case([30], STAYS)
def l2_reserved_bits(image):
    image.set_l2(3, image.l2(3) | 2)


@case([31], STAYS, clusters=ALIGNED, touched=(3,))
def l2_unaligned(image):
    image.set_l2(3, image.l2(3) | 512)


@case([32], CLEAN, without("v2", *SUBCLUSTERS), clusters=ALIGNED, touched=(3,))
def l2_preallocated_unaligned(image):
    image.set_l2(3, image.l2(3) | 512 | ZERO)


@case([32], CLEAN, SUBCLUSTERS, touched=(3,))
def l2_extended_preallocated_unaligned(image):
    image.set_l2(3, image.l2(3) | 512)
    image.set_bitmap(3, 0xFFFFFFFF << 32)


@case([33], STAYS, OWN_DATA, touched=(3,))
def l2_outside(image):
    image.set_l2(3, COPIED | far(image))


@case([33], STAYS, h.COMPRESSED_KINDS, touched=(9,))
def l2_compressed_outside(image):
    image.set_l2(9, COMPRESSED | far(image))


@case([33], STAYS, DATA_LAST, touched=range(20, 23))
def truncated_in_the_data(image):
    image.resize((host(image, 20)) * image.cluster)


@case([42, 84], STAYS, touched=ALL_TOUCHED)
def l2_table_cut(image):
    image.resize(image.l2_table(0) + image.cluster // 2 + 3)


@case([43, 84], STAYS, "compressed", touched=range(9, 14))
def compressed_cluster_cut(image):
    """Its first bytes only are there."""
    bits = 62 - (image.field("cluster_bits") - 8)
    image.resize((image.l2(9) & (1 << bits) - 1) + 5)


@case([44], STAYS, "data_file", touched=(21, 22), clusters=(512, 4096, 65536))
def data_file_cut(image):
    place, length = image.extension(EXT_DATA_FILE)
    name = image.read(place, length)
    shorter = name[:-1] + b"-"
    with open(name, "rb") as whole, open(shorter, "wb") as part:
        part.write(whole.read(21 * image.cluster))
    image.write(place, shorter)


@case([45, 84], STAYS, without("luks"), touched=ALL_TOUCHED)
def l1_table_cut(image):
    image.resize(image.l1_off + 8 * image.l1_entries - 3)


@case([20, 46], STAYS, clusters=(512,), touched=ALL_TOUCHED)
def l1_table_of_text(image):
    image.write(image.l1_off, b"a line of a log\n" * (image.l1_entries // 2))


@case([34], CLEAN, [k for k in ANY if k not in h.SNAPSHOT_KINDS])
def l2_copied_missing(image):
    image.set_l2(3, image.l2(3) & ~COPIED)


@case([34], CLEAN, h.SNAPSHOT_KINDS)
def l2_copied_on_shared_cluster(image):
    image.set_l2(0, image.l2(0) | COPIED)


@case([2, 3, 80], KEPT, OWN_DATA, touched=(3,), widths=h.SHARING[1:])
def l2_names_its_own_table(image):
    image.set_l2(3, COPIED | image.l2_table(0))


@case([2, 3, 80], CLEAN, OWN_DATA, touched=(3,), widths=h.SHARING)
def l2_names_the_l1_table(image):
    """Offset 0 is no cluster at all in an L2 entry, so not the header."""
    image.set_l2(3, COPIED | image.l1_off)


@case([2, 3, 80], CLEAN, OWN_DATA, touched=(3,), widths=h.SHARING)
def l2_names_the_refcount_table(image):
    image.set_l2(3, COPIED | image.number(48))


@case([13], CLEAN, OWN_DATA, touched=(3,), widths=h.SHARING)
def l2_names_a_refcount_block(image):
    image.set_l2(3, COPIED | image.refblock(0))


@case([2, 3], CLEAN, OWN_DATA, touched=(3,), widths=h.SHARING)
def l2_entries_share_a_cluster(image):
    image.set_l2(3, image.l2(4))


@case([2, 81], CLEAN, "luks", touched=(3, 7), widths=h.SHARING)
def l2_entries_share_an_encrypted_cluster(image):
    image.set_l2(3, image.l2(4))
    image.set_l2(7, image.l2(4))


@case([4, 81], STAYS, "luks", touched=(3,), widths=(1,))
def l2_entries_share_an_encrypted_cluster_that_cannot(image):
    image.set_l2(3, image.l2(4))


@case([35], CLEAN, h.COMPRESSED_KINDS)
def compressed_copied(image):
    image.set_l2(9, image.l2(9) | COPIED)


@case([36], STAYS, h.DATA_FILE_KINDS, touched=(3,))
def compressed_with_data_file(image):
    image.set_l2(3, COMPRESSED | 0x5000)


@case([41], STAYS, h.DATA_FILE_KINDS, touched=(3,))
def data_file_offset(image):
    image.set_l2(3, image.l2(4))


@case([37], STAYS, SUBCLUSTERS, touched=(3,))
def compressed_with_bitmap(image):
    image.set_l2(3, COMPRESSED | image.l2(3) & OFFSET_MASK)


@case([38], STAYS, SUBCLUSTERS, touched=(3,))
def subcluster_allocated_and_zero(image):
    image.set_bitmap(3, 1 << 32 | 0xFFFFFFFF)


@case([39], STAYS, SUBCLUSTERS, touched=(3, 11))
def subcluster_of_no_cluster(image):
    image.set_l2(11, 0)
    image.set_bitmap(11, 0xFF)


@case([2, 48], STAYS, h.DATA_FILE_KINDS, clusters=(512,), widths=h.SHARING)
def table_of_another_entry(image):
    """Only small clusters have an L1 table of several entries."""
    image.set_l1(5, image.l1(0) & ~COPIED)


@case([2, 48], STAYS, "data_file", clusters=(512,), widths=h.SHARING)
def table_of_a_later_entry(image):
    """The entries fit the second of those that name the table."""
    h.oracle("qemu-io", "-c", f"write -q {5 * image.l2_entries * image.cluster} 512", image.name)
    image.set_l1(2, image.l1(5))


# ---- snapshots ----

@case([22, 50], STAYS, h.SNAPSHOT_KINDS, touched=ALL_TOUCHED)
def truncated_before_the_snapshot_table(image):
    image.resize(min(image.field("snapshots_off"), image.l2_table(0)))


@case([50], STAYS, h.SNAPSHOT_KINDS)
def snapshot_entry_past_the_end(image):
    image.put(next(image.snapshots()) + 36, image.length(), 4)


@case([51], STAYS, h.SNAPSHOT_KINDS, clusters=ALIGNED)
def snapshot_l1_unaligned(image):
    place = next(image.snapshots())
    image.put(place, image.number(place) + 512)


@case([52], STAYS, h.SNAPSHOT_KINDS)
def snapshot_l1_too_large(image):
    image.put(next(image.snapshots()) + 8, (32 << 20) // 8 + 1, 4)


@case([53], CLEAN, h.SNAPSHOT_KINDS)
def snapshot_without_extra_data(image):
    """The last entry's id and name follow at once."""
    *_, place = image.snapshots()
    extra = image.number(place + 36, 4)
    names = image.read(place + 40 + extra, 16)
    image.put(place + 36, 0, 4)
    image.write(place + 40, names)


@case([53], CLEAN, h.SNAPSHOT_KINDS, clusters=(512,), touched=ALL_TOUCHED)
def snapshot_without_extra_data_and_half_its_table(image):
    """Its disk is what the table has then."""
    snapshot_without_extra_data(image)
    *_, place = image.snapshots()
    image.put(place + 8, image.number(place + 8, 4) // 2, 4)


@case([54], STAYS, h.DATA_FILE_KINDS)
def snapshots_with_data_file(image):
    end = image.clusters() * image.cluster
    image.resize(end + image.cluster)
    image.write(end, bytes(12) + b"\0\1\0\1" + bytes(20) + b"\0\0\0\x10" + bytes(16) + b"1a")
    image.set_refcount(end // image.cluster, 1)
    image.set_field("snapshots_off", end)
    image.set_field("snapshot_count", 1)


# with large clusters, millions of words that are no entries lie before the end
@case([55], STAYS, h.SNAPSHOT_KINDS, clusters=(512, 4096, 16384, 65536))
def snapshot_l1_outside(image):
    place = next(image.snapshots())
    image.put(place + 8, (far(image, 2) - image.number(place)) // 8, 4)


@case([56], CLEAN, h.SNAPSHOT_KINDS, clusters=ALIGNED)
def snapshot_with_much_extra_data(image):
    """The last entry's id and name lie behind 2,000 more bytes."""
    *_, place = image.snapshots()
    extra = image.number(place + 36, 4)
    names = image.read(place + 40 + extra, 16)
    image.put(place + 36, 2000, 4)
    image.write(place + 40 + 2000, names)


@case([57], STAYS, h.SNAPSHOT_KINDS)
def snapshot_without_l1_entries(image):
    image.put(next(image.snapshots()) + 8, 0, 4)


@case([57], STAYS, h.SNAPSHOT_KINDS)
def snapshot_without_l1_far_outside(image):
    """No table at all, so nothing of it is cut off, and no file has to grow to there."""
    place = next(image.snapshots())
    image.put(place, far(image, 1 << 20))
    image.put(place + 8, 0, 4)


@case([57], STAYS, h.SNAPSHOT_KINDS)
def snapshot_of_a_huge_disk(image):
    image.put(next(image.snapshots()) + 48, 1 << 60)


@case([57], STAYS, h.SNAPSHOT_KINDS)
def snapshot_count_too_high(image):
    """Behind the last entry the cluster is not used, and reads as zeroes."""
    table = image.field("snapshots_off")
    *_, last = image.snapshots()
    end = last + 40 + image.number(last + 36, 4) + image.number(last + 12, 2) + \
        image.number(last + 14, 2)
    image.write(end, bytes(table + image.cluster - end))
    image.set_field("snapshot_count", image.field("snapshot_count") + 1)


@case([58], STAYS, h.SNAPSHOT_KINDS)
def snapshot_count_too_low(image):
    image.set_field("snapshot_count", image.field("snapshot_count") - 1)


header_case("snapshot_count_zero", {"snapshot_count": 0}, [58], STAYS, ("snapshots", "mixed"))


# ---- bitmaps, encryption, header ----

@case([60], STAYS, BITMAPS)
def bitmap_count_too_high(image):
    place, _ = image.extension(EXT_BITMAPS)
    image.put(place, 9, 4)


@case([61], STAYS, BITMAPS, clusters=ALIGNED)
def bitmap_table_unaligned(image):
    place = image.bitmap_directory()
    image.put(place, image.number(place) + 512)


@case([62], STAYS, BITMAPS)
def bitmap_table_entry_outside(image):
    image.put(image.number(image.bitmap_directory()), far(image, 9))


@case([62], STAYS, BITMAPS)
def bitmap_table_entry_with_place_and_flag(image):
    table = image.number(image.bitmap_directory())
    image.put(table, image.l1_off | 1)


@case([65], STAYS, "luks", touched=ALL_TOUCHED)
def encryption_header_outside(image):
    place, _ = image.extension(EXT_CRYPTO)
    image.put(place + 8, image.length())


header_case("luks_without_encryption_header", {"crypt_method": 2},
            [66], STAYS, without(*h.ENCRYPTED), touched=ALL_TOUCHED)


@case([70], CLEAN, without("v2", *h.DATA_FILE_KINDS))
def data_file_raw_without_data_file(image):
    image.set_field("autoclear", image.field("autoclear") | 2)


header_case("backing_name_without_length", {"backing_name_off": 8}, [71], CLEAN, without("backing"))
header_case("backing_name_inside_the_header", {"backing_name_off": 8, "backing_name_len": 4},
            [72], STAYS, touched=ALL_TOUCHED)
header_case("backing_name_far_outside", {"backing_name_off": 1 << 40, "backing_name_len": 4},
            [73], STAYS, touched=ALL_TOUCHED)
header_case("header_length_odd", {"header_bytes": 109}, [74], CLEAN, V3)
header_case("header_length_huge", {"header_bytes": 1 << 31}, [74], CLEAN, V3)
header_case("disk_size_impossible", {"size": 1 << 63}, [75], STAYS, touched=ALL_TOUCHED)


# ---- fields that decide what all tables mean ----

header_case("magic_wrong", {"magic": 0x514649FA}, [90], CLEAN)
header_case("version_impossible", {"version": 0x30000}, [91], STAYS, touched=ALL_TOUCHED)
header_case("version_too_old", {"version": 2},
            [91], STAYS, "bitmaps", clusters=ALIGNED, touched=ALL_TOUCHED)
header_case("version_too_new", {"version": 3}, [91], STAYS, "v2", touched=ALL_TOUCHED)
header_case("cluster_bits_impossible", {"cluster_bits": 77}, [92], STAYS, touched=ALL_TOUCHED)


@case([92], STAYS, touched=ALL_TOUCHED)
def cluster_bits_too_high(image):
    image.set_field("cluster_bits", image.field("cluster_bits") + 1)


@case([92], STAYS, without(*SUBCLUSTERS), clusters=ALIGNED, touched=ALL_TOUCHED)
def cluster_bits_too_low(image):
    image.set_field("cluster_bits", image.field("cluster_bits") - 1)


header_case("cluster_bits_zero_with_data_file", {"cluster_bits": 0},
            [92], STAYS, "data_file", clusters=ALIGNED, touched=ALL_TOUCHED)
header_case("cluster_bits_too_low_for_subclusters", {"cluster_bits": 9},
            [92], STAYS, "extended", clusters=h.LARGE, widths=(1, 16, 64), touched=ALL_TOUCHED)


@case([93], STAYS, touched=ALL_TOUCHED)
def cluster_bits_and_l1_table(image):
    image.set_field("cluster_bits", 77)
    image.set_field("l1_off", image.l1_off + 256)


header_case("cluster_bits_and_refcount_table", {"cluster_bits": 77, "reftable_off": 1},
            [16, 92], STAYS, "plain", touched=ALL_TOUCHED)
header_case("disk_size_and_l1_size", {"size": 1 << 63, "l1_entries": 0},
            [104], STAYS, touched=ALL_TOUCHED)


@case([94], STAYS, V3, touched=ALL_TOUCHED)
def feature_unknown(image):
    image.set_field("incompatible", image.incompatible | 1 << 40)


@case([95], STAYS, without("v2", *SUBCLUSTERS), clusters=h.LARGE, touched=ALL_TOUCHED)
def feature_extended_on(image):
    image.set_field("incompatible", image.incompatible | EXTENDED_L2)


@case([95], STAYS, SUBCLUSTERS, touched=ALL_TOUCHED)
def feature_extended_off(image):
    image.set_field("incompatible", image.incompatible & ~EXTENDED_L2)


@case([96], STAYS, [k for k in OWN_DATA if k != "v2"], touched=ALL_TOUCHED)
def feature_data_file_on(image):
    image.set_field("incompatible", image.incompatible | DATA_FILE)


@case([96], STAYS, h.DATA_FILE_KINDS, touched=ALL_TOUCHED)
def feature_data_file_off(image):
    image.set_field("incompatible", image.incompatible & ~DATA_FILE)


header_case("compression_type_without_bit", {"compression_type": 1},
            [97], CLEAN, without("v2", "zstd", "mixed"))
header_case("compression_bit_without_type", {"incompatible": COMPRESSION},
            [97], CLEAN, "compressed")
header_case("compression_type_lost", {"compression_type": 99},
            [97], CLEAN, "zstd", clusters=ALIGNED, widths=WIDE)


@case([98], STAYS, "compressed", clusters=ALIGNED, widths=WIDE, touched=ALL_TOUCHED)
def compression_of_two_types(image):
    """What a zstd stream begins with, where one of the streams is."""
    image.set_field("incompatible", COMPRESSION)
    image.write(image.l2(8) & (1 << 62 - (image.field("cluster_bits") - 8)) - 1, b"\x28\xb5\x2f\xfd")


header_case("crypt_method_none", {"crypt_method": 0},
            [99], STAYS, "luks", clusters=ALIGNED, touched=ALL_TOUCHED)
header_case("crypt_method_impossible", {"crypt_method": 0x2000000},
            [100], STAYS, without("luks"), touched=ALL_TOUCHED)


@case([101], CLEAN, "bitmaps", clusters=ALIGNED)
def bitmaps_extension_too_short(image):
    image.put(image.extension(EXT_BITMAPS)[0] - 4, 16, 4)


@case([103], CLEAN, "bitmaps")
def bitmaps_extension_reserved(image):
    image.put(image.extension(EXT_BITMAPS)[0] + 4, 7, 4)


@case([106], STAYS, h.SNAPSHOT_KINDS, touched=ALL_TOUCHED)
def l1_table_of_a_snapshot(image):
    image.set_field("l1_off", image.number(next(image.snapshots())))


@case([106], STAYS, h.SNAPSHOT_KINDS, touched=ALL_TOUCHED)
def l1_table_at_a_snapshots_l2(image):
    table = image.number(next(image.snapshots()))
    image.set_field("l1_off", image.number(table) & OFFSET_MASK)


@case([105], STAYS, BITMAPS, clusters=h.LARGE)
def bitmaps_extension_twice(image):
    """In the first bytes of the feature names, which come before it; another extension takes the rest."""
    names, length = image.extension(EXT_FEATURE_NAMES)
    true, _ = image.extension(EXT_BITMAPS)
    other = image.read(true, 16) + (image.bitmap_directory() + image.cluster).to_bytes(8, "big")
    image.write(names - 8, EXT_BITMAPS.to_bytes(4, "big") + len(other).to_bytes(4, "big") + other)
    image.put(names + 24, 0x11111111, 4)
    image.put(names + 28, length - 32, 4)


@case([102], STAYS, ("snapshots", "extended", "plain"), touched=ALL_TOUCHED)
def extension_past_the_header(image):
    image.put(image.field("header_bytes") + 4, image.cluster, 4)
