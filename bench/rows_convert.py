"""Converting and comparing, plain and compressed."""
import os
from pathlib import Path

from harness import GIB, MIB


def make_source(bench, name, size):
    """A raw file like a disk in use: 64 KiB runs of data, a third of them holes."""
    path = bench.path(name)
    chunk = os.urandom(4 * MIB)
    with open(path, "wb") as f:
        f.truncate(size)
        for off in range(0, size, 3 * MIB):
            f.seek(off)
            at = off // MIB % 3 * MIB
            f.write(chunk[at:at + min(2 * MIB, size - off, len(chunk) - at)])
    return path


def convert(bench):
    size = 3 * GIB // bench.scale
    raw, image, target = make_source(bench, "src.raw", size), bench.path("src.qcow2"), \
        bench.path("target")
    bench.measure([bench.qemu, "convert", "-f", "raw", "-O", "qcow2", raw, image])

    def gone(_argv):
        if os.path.exists(target):
            os.unlink(target)

    for source, source_format, target_format in ((raw, "raw", "qcow2"), (image, "qcow2", "raw"),
                                                 (image, "qcow2", "qcow2")):
        for order, extra in (("", []), (", in any order", ["-W", "-m", "16"])):
            args = ["convert", *extra, "-f", source_format, "-O", target_format, source, target]
            bench.row(f"convert {source_format} to {target_format}{order}",
                      {"qcowkit": [bench.ours, *args], "qemu": [bench.qemu, *args]}, gone)
    bench.row("check 3 GiB", {"qcowkit": [bench.ours, "check", "-q", image],
                              "qemu": [bench.qemu, "check", "-q", image]})
    bench.row("compare qcow2 with raw",
              {"qcowkit": [bench.ours, "compare", "-q", image, raw],
               "qemu": [bench.qemu, "compare", "-q", image, raw]})


def make_real_source(bench, name, size):
    """Real files one behind the other: programs, libraries and texts of this system."""
    path, left = bench.path(name), size
    with open(path, "wb") as out:
        for folder in ("/usr/bin", "/usr/include", "/usr/share", "/usr/lib"):
            for file in sorted(Path(folder).rglob("*")):
                if left <= 0:
                    break
                if file.is_file() and not file.is_symlink() and os.access(file, os.R_OK):
                    data = file.read_bytes()[:left]
                    out.write(data)
                    left -= len(data)
        out.truncate(size)
    return path


def compressed(bench):
    raw, target = make_real_source(bench, "real.raw", GIB // bench.scale), bench.path("target")
    images = {"qcowkit": bench.path("ours.qcow2"), "qemu": bench.path("theirs.qcow2")}
    for kind, name, extra in (("zlib", "zlib", []), ("zlib", "zlib, level 6",
                                                     ["--compress-level", "6"]),
                              ("zstd", "zstd", [])):
        args = ["convert", "-c", "-W", "-m", "16", "-f", "raw", "-O", "qcow2", "-o",
                f"compression_type={kind}"]
        bench.row(f"convert to compressed, {name}",
                  {"qcowkit": [bench.ours, *args, *extra, raw, images["qcowkit"]],
                   "qemu": [bench.qemu, *args, raw, images["qemu"]]})
        if not all(os.path.exists(i) for i in images.values()):
            continue
        sizes = {who: os.path.getsize(image) for who, image in images.items()}
        bench.notes.append(f"Compressed, {name}: {sizes['qcowkit'] / sizes['qemu'] - 1:+.1%} against "
                           f"qemu's file, {sizes['qcowkit'] / os.path.getsize(raw):.0%} of the "
                           "source.")
        print(bench.notes[-1], flush=True)
        if not extra:
            args = ["convert", "-W", "-m", "16", "-f", "qcow2", "-O", "raw", images["qemu"], target]
            bench.row(f"convert from compressed, {name}",
                      {"qcowkit": [bench.ours, *args], "qemu": [bench.qemu, *args]})
            compressed_reads(bench, name, images["qemu"], os.path.getsize(raw) // 65536)


def compressed_reads(bench, name, image, clusters):
    args = ["bench", "-f", "qcow2", "-s", "65536", "-S", str(65536 * 7), "-c",
            str(min(4000, clusters)), image]
    bench.row(f"random read 64k, compressed, {name}",
              {"qcowkit": [bench.ours, *args], "qemu": [bench.qemu, *args]},
              operations=min(4000, clusters))
    for n in (2, 4):
        if n <= (os.cpu_count() or 1):
            bench.row(f"compressed, {name}: {n} threads against 1 thread",
                      {"qcowkit": [bench.ours, *args, "--threads", str(n)],
                       "raw": [bench.ours, *args, "--threads", "1"]},
                      operations=min(4000, clusters))


GROUPS = [convert, compressed]
