"""Guest I/O: in place, allocating, on many threads, and in an image of 1 TiB."""
import os
import subprocess

from harness import GIB, MIB, TIB


def reads_and_writes(bench):
    size = 1 * GIB // bench.scale
    image, raw = bench.path("data.qcow2"), bench.path("data.raw")
    with open(raw, "wb") as f:
        block = os.urandom(MIB)
        for _ in range(size // MIB):
            f.write(block)
    bench.measure([bench.qemu, "convert", "-f", "raw", "-O", "qcow2", raw, image])
    # strides: odd multiples of 4 KiB near the golden section of the image
    stride4 = int(size * 0.618) // 4096 // 2 * 2 * 4096 + 4096
    stride64 = int(size * 0.618) // 65536 // 2 * 2 * 65536 + 65536
    for depth in (1, 16):
        for write in ([], ["-w"]):
            verb = "write" if write else "read"
            for block, text, stride in ((4096, "4k", stride4), (65536, "64k", stride64)):
                count = (100000 if block == 4096 else 20000) // bench.scale
                common = ["-s", str(block), "-d", str(depth), *write]
                bench.io(f"sequential {verb} {text}, depth {depth}", image, raw, common, count)
                bench.io(f"random {verb} {text}, depth {depth}", image, raw,
                         ["-S", str(stride), *common], count)
    threads(bench, image, stride4, 200000 // bench.scale)
    os.unlink(raw)
    os.unlink(image)


def threads(bench, image, stride, count):
    """Growth with threads: the image against itself with one thread, in the raw file's column."""
    args = [bench.ours, "bench", "-f", "qcow2", "-s", "4096", "-S", str(stride), "-c", str(count)]
    for n in (2, 4):
        if n <= (os.cpu_count() or 1):
            bench.row(f"random read 4k, {n} threads against 1 thread",
                      {"qcowkit": [*args, "--threads", str(n), image],
                       "raw": [*args, "--threads", "1", image]}, operations=count)


def allocating(bench):
    size = 4 * GIB // bench.scale
    image, raw = bench.path("new.qcow2"), bench.path("new.raw")

    def empty(_argv):
        for path in (image, raw):
            if os.path.exists(path):
                os.unlink(path)
        subprocess.run([bench.qemu, "create", "-q", "-f", "qcow2", image, str(size)], check=True)
        with open(raw, "wb") as f:
            f.truncate(size)

    for depth in (1, 16):
        bench.io(f"allocating write 64k, depth {depth}", image, raw,
                 ["-w", "-s", "65536", "-d", str(depth)], 8192 // bench.scale, before=empty)
    bench.io("allocating write 4k, depth 1", image, raw, ["-w", "-s", "4096"],
             40000 // bench.scale, before=empty)


def huge(bench):
    """1 TiB with all L2 tables: creating it, reading all over it, checking it."""
    image, raw = bench.path("huge.qcow2"), bench.path("huge.raw")
    size = 1 * TIB // bench.scale
    create = ["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", image, str(size)]

    def gone(_argv):
        if os.path.exists(image):
            os.unlink(image)

    bench.row("create 1 TiB, preallocation=metadata",
              {"qcowkit": [bench.ours, *create], "qemu": [bench.qemu, *create]}, gone, rounds=1)
    if not os.path.exists(image):
        bench.measure([bench.qemu, *create])
    with open(raw, "wb") as f:
        f.truncate(size)
    slices = size // (32 * MIB)
    for name, stride, count in (
            ("1 TiB, random read 4k, each in a new L2 slice", 32 * MIB * 37, slices),
            ("1 TiB, random read 4k, 1024 places, warm", GIB, 200000 // bench.scale),
            ("1 TiB, random read 4k, all over", 1237 * MIB + 4096, 100000 // bench.scale)):
        bench.io(name, image, raw, ["-s", "4096", "-d", "1", "-S", str(stride)], count)
    bench.row("check 1 TiB", {"qcowkit": [bench.ours, "check", "-q", "-f", "qcow2", image],
                              "qemu": [bench.qemu, "check", "-q", "-f", "qcow2", image]},
              rounds=min(3, bench.rounds))
    os.unlink(image)
    os.unlink(raw)


GROUPS = [reads_and_writes, allocating, huge]
