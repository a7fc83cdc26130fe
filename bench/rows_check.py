"""Checking and rebuilding large images, with the page cache hot and cold: time, memory against what
doc/design/check.md promises, and the number of write calls."""
import os
import struct
import subprocess

from harness import GIB, MIB, TIB
from rows_snapshots import full_image

MEMORY_FIXED, MEMORY_PER_TIB, MEMORY_REPAIR = 16 * MIB, 8 * MIB, 12 * MIB
WRITE_CALLS = 1000  # at most, for all refcounts of 1 TiB
DROP_CACHES = "/proc/sys/vm/drop_caches"
WANTED = ("Wanted: 12 times qemu's speed for a check of 1 TiB (8 on two cores) and of 8 TiB, 100 with "
          "100 and 500 snapshots, 40 for a rebuild.")


def forget_cache():
    os.sync()
    with open(DROP_CACHES, "w", encoding="ascii") as f:
        f.write("3")


def hot_and_cold(bench, name, contenders, rounds, prepare=lambda image: None):
    """Two rows; the image is the last word of a contender."""
    bench.row(f"{name}, hot", contenders, lambda argv: prepare(argv[-1]), rounds=rounds)
    if os.access(DROP_CACHES, os.W_OK):
        bench.row(f"{name}, cold", contenders,
                  lambda argv: (prepare(argv[-1]), forget_cache()), rounds=rounds)


def fail_row(bench, name, text):
    bench.rows.append({"name": name, "error": text})
    bench.notes.append(f"{name}: {text}.")


def hold_to_memory(bench, names, size, more=0):
    """Fails where our peak in one of these rows is above the promise for an image of that size; a
    sanitizer or another allocator would show here, too."""
    promised = MEMORY_FIXED + MEMORY_PER_TIB * size / TIB + more
    for row in [r for r in bench.rows if r["name"].startswith(names) and "peaks" in r]:
        peak = row["peaks"]["qcowkit"] << 10
        text = f"{peak / MIB:.1f} MiB, {promised / MIB:.1f} MiB are promised"
        if peak > promised:
            fail_row(bench, f"memory of {row['name']}", text)
        else:
            bench.notes.append(f"Memory of {row['name']}: {text}.")


def plain_copy(bench, image):
    """A file of as many bytes as the image has on the medium: reading it once, in order, is the
    least that a check can take."""
    path = bench.path("plain")
    with open(path, "wb") as f:
        for _ in range(0, os.stat(image).st_blocks * 512, MIB):
            f.write(os.urandom(MIB))
    return path


def check_rows(bench, name, image, rounds, size):
    plain = plain_copy(bench, image)
    hot_and_cold(bench, name, {"qcowkit": [bench.ours, "check", "-q", "-f", "qcow2", image],
                               "qemu": [bench.qemu, "check", "-q", "-f", "qcow2", image],
                               "raw": ["dd", "of=/dev/null", "bs=1M", f"if={plain}"]}, rounds)
    os.unlink(plain)
    hold_to_memory(bench, name, size)


def no_more_than_qemu(bench, name):
    for row in [r for r in bench.rows if r["name"].startswith(name) and "peaks" in r]:
        if row["peaks"]["qcowkit"] > row["peaks"]["qemu"]:
            fail_row(bench, f"memory of {row['name']}", "more than qemu takes")


def big_checks(bench):
    bench.notes.append(WANTED)
    size = TIB // bench.scale
    image = full_image(bench, "big.qcow2", size)
    check_rows(bench, "check 1 TiB", image, 3, size)
    if os.cpu_count() > 2:
        two = ["taskset", "-c", "0,1"]
        bench.row("check 1 TiB on two cores",
                  {"qcowkit": [*two, bench.ours, "check", "-q", "-f", "qcow2", image],
                   "qemu": [*two, bench.qemu, "check", "-q", "-f", "qcow2", image]}, rounds=3)
    os.unlink(image)
    image = full_image(bench, "big.qcow2", 8 * size)
    check_rows(bench, "check 8 TiB", image, 1, 8 * size)
    if bench.scale == 1:
        no_more_than_qemu(bench, "check 8 TiB")
    os.unlink(image)


def snapshot_checks(bench):
    size = 128 * GIB // bench.scale
    for count in (100, 500):
        image = full_image(bench, "snaps.qcow2", size)
        for i in range(count):
            bench.measure([bench.ours, "snapshot", "-c", f"s{i}", image])
        check_rows(bench, f"check 128 GiB with {count} snapshots", image, 1, size)
        os.unlink(image)


# ---- rebuilding ----

def blocks(f):
    """Where the refcount blocks are."""
    f.seek(48)
    table, clusters = struct.unpack(">QI", f.read(12))
    f.seek(table)
    entries = f.read(clusters << 16)
    return [off for off, in struct.iter_unpack(">Q", entries) if off]


def zero_header_refcount(image):
    """The refcount of the header's cluster alone is 0: all are written anew."""
    with open(image, "r+b") as f:
        f.seek(blocks(f)[0])
        f.write(b"\0\0")


def zero_all_refcounts(image):
    """Each cluster has its own line of text."""
    with open(image, "r+b") as f:
        for off in blocks(f):
            f.seek(off)
            f.write(bytes(1 << 16))


def repair(program, *args):
    """A contender; its lines go nowhere, as reading them would be what is measured."""
    return ["sh", "-c", '"$0" check -q -f qcow2 -r all "$@" 2>/dev/null', program, *args]


def count_write_calls(bench, argv):
    result = subprocess.run(["strace", "-f", "-c", "-o", bench.path("calls"), "-e",
                             "trace=write,writev,pwrite64,pwritev,pwritev2", *argv],
                            capture_output=True, check=False)
    with open(bench.path("calls"), encoding="ascii") as f:
        rows = [line.split() for line in f if "write" in line]
    return result.returncode, sum(int(row[3]) for row in rows)


def hold_to_calls(bench, name, argv):
    status, calls = count_write_calls(bench, argv)
    text = f"{calls} write calls, status {status}"
    if status or not calls or calls >= WRITE_CALLS:
        fail_row(bench, f"write calls of {name}", text)
    else:
        bench.notes.append(f"{name}: {text}.")


def rebuild(bench):
    size = TIB // bench.scale
    images = {who: full_image(bench, f"rebuild-{who}.qcow2", size) for who in ("ours", "qemu")}
    undo = bench.path("undo")
    for what, damage in (("one refcount is zero", zero_header_refcount),
                         ("all are", zero_all_refcounts)):
        def prepare(image, damage=damage):
            if os.path.exists(undo):
                os.unlink(undo)
            damage(image)

        name = f"rebuild 1 TiB, {what}"
        theirs = repair(bench.qemu, images["qemu"])
        hot_and_cold(bench, f"{name}, no undo",
                     {"qcowkit": repair(bench.ours, images["ours"]), "qemu": theirs}, 1, prepare)
        hot_and_cold(bench, f"{name}, undo",
                     {"qcowkit": repair(bench.ours, "--undo", undo, images["ours"]),
                      "qemu": theirs}, 1, prepare)
        hold_to_memory(bench, name, size, MEMORY_REPAIR)
        prepare(images["ours"])
        if not bench.only:
            hold_to_calls(bench, name, repair(bench.ours, images["ours"]))
    for path in (*images.values(), undo):
        if os.path.exists(path):
            os.unlink(path)


GROUPS = [big_checks, snapshot_checks, rebuild]
