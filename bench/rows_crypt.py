"""LUKS: both programs with the same image, whole commands."""
import os

from harness import GIB, MIB
from rows_convert import make_source

SECRET = ["--object", "secret,id=key,data=not-much-of-a-secret"]


def luks(bench):
    raw, target = make_source(bench, "src.raw", 2 * GIB // bench.scale), bench.path("target")
    image = bench.path("luks.qcow2")
    create = ["create", "-q", *SECRET, "-f", "qcow2", "-o",
              "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10", image]
    opened = f"driver=qcow2,file.filename={image},encrypt.key-secret=key"

    def fresh(_argv):
        # not qemu: it fails at random where the clock of a thread is coarse
        bench.measure([bench.ours, *create, str(os.path.getsize(raw))])

    to = ["convert", *SECRET, "-n", "-W", "-m", "16", "--image-opts", "--target-image-opts",
          f"driver=raw,file.filename={raw}", opened]
    back = ["convert", *SECRET, "-W", "-m", "16", "--image-opts", opened, "-O", "raw", target]
    bench.row("convert raw to LUKS", {"qcowkit": [bench.ours, *to], "qemu": [bench.qemu, *to]},
              fresh)
    bench.row("convert LUKS to raw", {"qcowkit": [bench.ours, *back],
                                      "qemu": [bench.qemu, *back]})
    reads = [w for off in range(0, os.path.getsize(raw), 64 * MIB)
             for w in ("-c", f"read {off} 4M")]
    io = [*SECRET, "--image-opts", *reads, opened]
    bench.row("LUKS, reads of 4 MiB one by one",
              {"qcowkit": [bench.ours_io, *io], "qemu": [bench.qemu_io, *io]})


GROUPS = [luks]
