"""Changing the shape of a 1 TiB image that has all its tables."""
import os

from harness import GIB, TIB


def shape(bench):
    size = TIB // bench.scale
    image = bench.path("shape.qcow2")

    def create(preallocation, bytes_):
        def prepare(_argv):
            if os.path.exists(image):
                os.unlink(image)
            bench.measure([bench.ours, "create", "-q", "-f", "qcow2", "-o",
                           f"preallocation={preallocation}", image, str(bytes_)])
        return prepare

    def both(name, args, prepare, tools=None):
        ours, qemu = tools or (bench.ours, bench.qemu)
        bench.row(name, {"qcowkit": [ours, *args], "qemu": [qemu, *args]}, prepare, rounds=1)

    full = create("metadata", size)
    for bits in (8, 64):
        both(f"amend 1 TiB to refcount_bits={bits}",
             ["amend", "-f", "qcow2", "-o", f"refcount_bits={bits}", image], full)
    both("resize --shrink 1 TiB to half",
         ["resize", "-q", "-f", "qcow2", "--shrink", image, str(size // 2)], full)
    discards = [w for off in range(0, size, GIB) for w in ("-c", f"discard {off} 1G")]
    both("discard 1 TiB in steps of 1 GiB", ["-f", "qcow2", *discards, image], full,
         (bench.ours_io, bench.qemu_io))
    both("resize to 1 TiB, preallocation=metadata",
         ["resize", "-q", "-f", "qcow2", "--preallocation=metadata", image, str(size)],
         create("off", GIB))
    both("resize a full 1 TiB to 2 TiB, preallocation=metadata",
         ["resize", "-q", "-f", "qcow2", "--preallocation=metadata", image, str(2 * size)], full)


GROUPS = [shape]
