"""Checking and rebuilding large images, with the page cache hot and cold."""
import os
import struct
import subprocess

from harness import GIB, MIB, TIB
from rows_snapshots import full_image

MEMORY_FIXED, MEMORY_PER_TIB = 16 * MIB, 8 * MIB  # what doc/design/check.md promises
DROP_CACHES = "/proc/sys/vm/drop_caches"


def forget_cache(_argv):
    os.sync()
    with open(DROP_CACHES, "w", encoding="ascii") as f:
        f.write("3")


def hold_to_memory(bench, name, size, seconds_and_peak):
    """A row that fails when a run took more than is promised for an image of that size."""
    most, peak = MEMORY_FIXED + MEMORY_PER_TIB * size / TIB, seconds_and_peak[1] << 10
    text = f"{peak / MIB:.1f} MiB, {most / MIB:.1f} MiB are promised"
    if peak > most:
        bench.rows.append({"name": f"memory of {name}", "error": text})
    bench.notes.append(f"Memory of {name}: {text}.")


def check_row(bench, name, image, rounds):
    contenders = {"qcowkit": [bench.ours, "check", "-q", "-f", "qcow2", image],
                  "qemu": [bench.qemu, "check", "-q", "-f", "qcow2", image]}
    bench.row(f"{name}, hot", contenders, rounds=rounds)
    if os.access(DROP_CACHES, os.W_OK):
        bench.row(f"{name}, cold", contenders, forget_cache, rounds=rounds)


def big_checks(bench):
    for size, text, rounds in ((TIB, "1 TiB", 3), (8 * TIB, "8 TiB", 1)):
        image = full_image(bench, "big.qcow2", size // bench.scale)
        check_row(bench, f"check {text}", image, rounds)
        if bench.rows and not bench.only:
            hold_to_memory(bench, f"check {text}", size // bench.scale,
                           bench.measure([bench.ours, "check", "-q", "-f", "qcow2", image]))
        os.unlink(image)
    for count in (100, 500):
        image = full_image(bench, "snaps.qcow2", 128 * GIB // bench.scale)
        for i in range(count):
            bench.measure([bench.ours, "snapshot", "-c", f"s{i}", image])
        check_row(bench, f"check 128 GiB with {count} snapshots", image, 1)
        os.unlink(image)


def damage_header_refcount(image):
    """Sets the refcount of the header's cluster to 0: the structure has to be rebuilt."""
    with open(image, "r+b") as f:
        f.seek(48)
        table, = struct.unpack(">Q", f.read(8))
        f.seek(table)
        block, = struct.unpack(">Q", f.read(8))
        f.seek(block)
        f.write(b"\0\0")


def rebuild(bench):
    images = {who: full_image(bench, f"rebuild-{who}.qcow2", TIB // bench.scale)
              for who in ("ours", "qemu")}
    ours = [bench.ours, "check", "-q", "-f", "qcow2", "-r", "all", images["ours"]]
    bench.row("rebuild all refcounts of 1 TiB",
              {"qcowkit": ours,
               "qemu": [bench.qemu, "check", "-q", "-f", "qcow2", "-r", "all", images["qemu"]]},
              lambda argv: damage_header_refcount(argv[-1]), rounds=1)
    damage_header_refcount(images["ours"])
    undo = bench.path("undo")
    hold_to_memory(bench, "rebuild of 1 TiB with undo", TIB // bench.scale,
                   bench.measure([*ours[:-1], "--undo", undo, images["ours"]]))
    os.unlink(undo)
    damage_header_refcount(images["ours"])
    trace = subprocess.run(["strace", "-f", "-c", "-e", "trace=pwrite64,pwritev,pwritev2,write",
                            *ours], capture_output=True, text=True, check=False).stderr
    calls = sum(int(line.split()[3]) for line in trace.splitlines()
                if line.strip().endswith(("pwrite64", "pwritev", "pwritev2", "write")))
    bench.notes.append(f"Rebuilding all refcounts of 1 TiB: {calls} write calls.")
    for image in images.values():
        os.unlink(image)


GROUPS = [big_checks, rebuild]
