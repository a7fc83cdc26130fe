"""What the damage tests share: counting, running both programs, and base images.

Base images are made by the oracle, so that nothing of ours takes part in what is then damaged.
(But for the LUKS area.)
Every cluster that a base image holds has a pattern of its own, known here.
"""
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from image import Image

BIN = Path(os.environ.get("QCOWKIT_BIN", Path(__file__).resolve().parents[2] / "build" / "bin"))
ORACLE = Path(os.environ.get("QCOWKIT_ORACLE", "/usr/bin"))
FULL = os.environ.get("QCOWKIT_MATRIX") == "full"
SHARD = int(os.environ.get("QCOWKIT_SHARD", 0))
SHARDS = int(os.environ.get("QCOWKIT_SHARDS", 1))
WRITTEN = {0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 6: 7, 7: 8, 20: 21, 21: 22, 22: 23}
SECRET = "secret,id=key,data=open sesame"

passed = failed = skipped = 0


def check(ok, text, *details):
    """Counts; says what failed. Returns ok."""
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print("failed:", text)
        for line in "\n".join(str(d) for d in details).splitlines()[:25]:
            print("   ", line)
    return ok


def skip(text):
    global skipped
    skipped += 1
    print("skipped:", text)


def summary():
    if not passed + failed + skipped:
        check(False, "no check ran")
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    sys.exit(1 if failed else 0)


def run(side, tool, *args, limit=120):
    """side: BIN or ORACLE. A hang counts as status -1000."""
    try:
        return subprocess.run([str(side / tool), *map(str, args)], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              errors="replace", timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(args, -1000, "", "no end")


def oracle(tool, *args):
    result = run(ORACLE, tool, *args)
    if result.returncode != 0:
        raise RuntimeError(f"{tool} {args}: {result.stdout} {result.stderr}")
    return result


def died(result):
    return result.returncode < 0 or result.returncode >= 99


# What images are made of: (kind, cluster sizes, widths). A kind that is not here is made for one test.
WIDTHS = (1, 2, 4, 8, 16, 32, 64)
SHARING = WIDTHS[1:]  # a shared cluster has a refcount of 2 or more
CLUSTERS = (512, 4096, 65536, 2 << 20)
LARGE = (16384, 65536, 2 << 20)  # subclusters have 512 bytes or more
KINDS = {
    "plain": (CLUSTERS, WIDTHS), "v2": (CLUSTERS, (16,)), "snapshots": (CLUSTERS, SHARING[1:]),
    "shared": (CLUSTERS, SHARING), "compressed": (CLUSTERS, SHARING[1:]),
    "zstd": (CLUSTERS, SHARING[1:]), "extended": (LARGE, WIDTHS), "bitmaps": (CLUSTERS, WIDTHS),
    "luks": (CLUSTERS, WIDTHS), "aes": (CLUSTERS, WIDTHS), "data_file": (CLUSTERS, WIDTHS),
    "data_raw": (CLUSTERS, WIDTHS), "backing": (CLUSTERS, WIDTHS), "mixed": (LARGE, SHARING[2:]),
}
ENCRYPTED = ("luks", "aes")
COMPRESSED_KINDS = ("compressed", "zstd", "mixed")
DATA_FILE_KINDS = ("data_file", "data_raw")
SNAPSHOT_KINDS = ("snapshots", "shared", "mixed")
AGAIN = {"snapshots": (2, 3, 21), "mixed": (2, 3)}  # written after the first snapshot as well


def written(cluster):
    """What a base image holds: guest cluster -> pattern. Large clusters take long to write."""
    few = (0, 1, 2, 3, 4, 6, 20)
    return {i: p for i, p in WRITTEN.items() if cluster < 1 << 20 or i in few}


def compressed(cluster):
    return {i: i + 1 for i in ((8, 9) if cluster >= 1 << 20 else range(8, 14))}


def content(kind, cluster):
    """All that the guest can read of a base image."""
    return {**written(cluster), **(compressed(cluster) if kind in COMPRESSED_KINDS else {})}


def opened(kind, path):
    """The words that open an image of this kind, with its key."""
    if kind in ENCRYPTED:
        return ["--object", SECRET, "--image-opts",
                f"driver=qcow2,encrypt.key-secret=key,file.filename={path}"]
    return ["-f", "qcow2", path]


class Bases:
    """Base images by kind, cluster size and refcount width, made on first use."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def path(self, kind, cluster, bits):
        path = self.folder / f"base-{kind}-{cluster}-{bits}"
        if not path.exists():
            part = Path(f"{path}.part")
            getattr(self, "make_" + kind)(part, cluster,
                                          f"cluster_size={cluster},refcount_bits={bits}")
            part.rename(path)
        return path

    def copy(self, kind, cluster, bits, name="hd"):
        target = self.folder / name
        shutil.copyfile(self.path(kind, cluster, bits), target)
        return Image(str(target))

    def create(self, path, cluster, options, *more):
        oracle("qemu-img", "create", "-q", "-f", "qcow2", *more, "-o", options, path,
               max(64 * cluster, 1 << 20))

    def fill(self, path, cluster, data=None, kind=None, write="write -q"):
        commands = []
        for index, pattern in (data or written(cluster)).items():
            commands += ["-c", f"{write} -P {pattern} {index * cluster} {cluster}"]
        oracle("qemu-io", *commands, *opened(kind, path))

    def make_plain(self, path, cluster, options):
        self.create(path, cluster, options)
        self.fill(path, cluster)

    def make_v2(self, path, cluster, options):
        self.create(path, cluster, f"cluster_size={cluster},compat=0.10")
        self.fill(path, cluster)

    def add_snapshots(self, path, cluster, again):
        """Two snapshots; the clusters of `again` were written again after the first."""
        again = [i for i in again if i in written(cluster)]
        self.fill(path, cluster, {**written(cluster), **{i: 99 for i in again}})
        oracle("qemu-img", "snapshot", "-c", "first", path)
        self.fill(path, cluster, {i: WRITTEN[i] for i in again})
        oracle("qemu-img", "snapshot", "-c", "second", path)
        self.fill(path, cluster, {6: WRITTEN[6]})

    def make_snapshots(self, path, cluster, options):
        self.create(path, cluster, options)
        self.add_snapshots(path, cluster, AGAIN["snapshots"])

    def make_shared(self, path, cluster, options):
        """One snapshot, and nothing written since: the L2 table is shared."""
        self.create(path, cluster, options)
        self.fill(path, cluster)
        oracle("qemu-img", "snapshot", "-c", "only", path)

    def make_compressed(self, path, cluster, options):
        """Clusters 8 to 13 are compressed."""
        self.create(path, cluster, options)
        self.fill(path, cluster)
        self.fill(path, cluster, compressed(cluster), write="write -q -c")

    def make_zstd(self, path, cluster, options):
        self.make_compressed(path, cluster, options + ",compression_type=zstd")

    def make_extended(self, path, cluster, options):
        self.create(path, cluster, options + ",extended_l2=on")
        self.fill(path, cluster)

    def make_bitmaps(self, path, cluster, options):
        self.create(path, cluster, options)
        for name in ("one", "two"):
            oracle("qemu-img", "bitmap", "--add", path, name)
        self.fill(path, cluster)

    def make_mixed(self, path, cluster, options):
        """Everything that goes together: subclusters, compression, bitmaps, snapshots."""
        self.create(path, cluster, options + ",extended_l2=on,compression_type=zstd")
        self.fill(path, cluster, compressed(cluster), write="write -q -c")
        for name in ("one", "two"):
            oracle("qemu-img", "bitmap", "--add", path, name)
        self.add_snapshots(path, cluster, AGAIN["mixed"])

    def make_data_file(self, path, cluster, options):
        self.create(path, cluster, f"{options},data_file={path}.data")
        self.fill(path, cluster)

    def make_data_raw(self, path, cluster, options):
        self.make_data_file(path, cluster, options + ",data_file_raw=on")

    def make_backing(self, path, cluster, options):
        """What the overlay does not hold, its backing file does: cluster 40."""
        base = f"{path}.backing"
        self.create(base, cluster, "cluster_size=65536")
        oracle("qemu-io", "-f", "qcow2", "-c", f"write -q -P 41 {40 * cluster} {cluster}", base)
        self.create(path, cluster, options, "-b", base, "-F", "qcow2")
        self.fill(path, cluster)

    def make_aes(self, path, cluster, options):
        self.create(path, cluster, options + ",encrypt.format=aes,encrypt.key-secret=key",
                    "--object", SECRET)
        self.fill(path, cluster, kind="aes")

    def make_luks(self, path, cluster, options):
        """Created by ours: the oracle needs seconds to measure the processor, and may fail at it.
        A small key makes a small area, so that small clusters do not become many."""
        options += (",encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10,"
                    "encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=plain64")
        made = run(BIN, "qemu-img", "create", "-q", "-f", "qcow2", "--object", SECRET, "-o", options,
                   path, max(64 * cluster, 1 << 20))
        if made.returncode != 0:
            raise RuntimeError(made.stderr)
        self.fill(path, cluster, kind="luks")


def random_work(path, cluster, size, seed, steps=12):
    """Writes, zeroes and discards of all sorts by the oracle."""
    pick = random.Random(seed)
    commands = []
    for _ in range(steps):
        off = pick.randrange(size // 512) * 512
        length = min(size - off, pick.choice([512, cluster, 3 * cluster, 5 * cluster + 512]))
        verb = pick.choice([f"write -q -P {pick.randrange(1, 255)}"] * 3 +
                           ["write -q -z", "discard -q", "write -q -z -u"])
        commands += ["-c", f"{verb} {off} {length}"]
    oracle("qemu-io", "-f", "qcow2", *commands, path)


def guest_data_intact(side, image, cluster, data, touched=(), kind=None):
    """Every cluster that was written still reads as its pattern, but for the touched ones."""
    commands = []
    for index, pattern in data.items():
        if index not in touched:
            commands += ["-c", f"read -q -P {pattern} {index * cluster} {cluster}"]
    if not commands:
        return True, ""
    result = run(side, "qemu-io", "-r", *commands, *opened(kind, image))
    bad = result.returncode != 0 or "failed" in result.stdout + result.stderr
    return not bad, result.stdout + result.stderr


def snapshot_differs(kind, image, cluster, touched=()):
    """What of the oldest snapshot does not read as it was written; empty: all does."""
    name = "only" if kind == "shared" else "first"
    raw = Path(str(image) + ".raw")
    made = run(ORACLE, "qemu-img", "convert", "--salvage", "-f", "qcow2", "-O", "raw",
               "-l", f"snapshot.name={name}", image, raw)
    if made.returncode != 0:
        return made.stderr
    data = content(kind, cluster)
    if kind != "shared":
        data.update({i: 99 for i in AGAIN[kind] if i in data})
    wrong = []
    with open(raw, "rb") as f:
        for index, pattern in data.items():
            f.seek(index * cluster)
            if index not in touched and f.read(cluster) != bytes([pattern]) * cluster:
                wrong.append(index)
    raw.unlink()
    return f"guest clusters {wrong}" if wrong else ""


def plan(label, image, *words):
    """What `--plan` tells, without a write; words: as for a repair, with the image."""
    before = Path(image.name).read_bytes()
    result = run(BIN, "qcowkit", "check", "--plan", "--output=json", *words)
    check(Path(image.name).read_bytes() == before, f"{label}: the plan wrote to the image")
    try:
        return json.loads(result.stdout)
    except ValueError as error:
        check(not result.stdout and result.returncode == 1, f"{label}: the plan is JSON", error,
              result.stdout, result.stderr)
        return {"plan": [], "findings": []}


def planned(label, steps, before, after):
    """Every byte that differs lies in a step; values are those of the files where a step is the last
    one of its place."""
    length = max(len(before), len(after))
    old, new = bytearray(before.ljust(length, b"\0")), after.ljust(length, b"\0")
    seen = bytearray(length)
    for step in reversed(steps):
        off, end = step["offset"], step["offset"] + step["length"]
        if "to" in step and not any(seen[off:end]):
            check(int.from_bytes(new[off:end], "big") == step["to"], f"{label}: value of {step}",
                  new[off:end].hex())
        seen[off:end] = bytes([1]) * step["length"]
        old[off:end] = new[off:end]
    check(old == new, f"{label}: changed what no step of the plan names")


def folder():
    return tempfile.TemporaryDirectory(prefix="qcowkit-damage.")
