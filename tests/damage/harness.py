"""What the damage tests share: counting, running both programs, and base images.

Base images are made by the oracle, so that nothing of ours takes part in what is then damaged.
Every cluster that a base image holds has a pattern of its own, known here.
"""
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


class Bases:
    """Base images by kind, cluster size and refcount width, made on first use."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def path(self, kind, cluster, bits):
        path = self.folder / f"base-{kind}-{cluster}-{bits}"
        if not path.exists():
            getattr(self, "make_" + kind)(path, cluster, f"cluster_size={cluster},refcount_bits={bits}")
        return path

    def copy(self, kind, cluster, bits, name="hd"):
        target = self.folder / name
        shutil.copyfile(self.path(kind, cluster, bits), target)
        return Image(str(target))

    def create(self, path, cluster, options, *more):
        oracle("qemu-img", "create", "-q", "-f", "qcow2", *more, "-o", options, path,
               max(64 * cluster, 1 << 20))

    def fill(self, path, cluster, written=None):
        commands = []
        for index, pattern in (written or WRITTEN).items():
            commands += ["-c", f"write -q -P {pattern} {index * cluster} {cluster}"]
        oracle("qemu-io", "-f", "qcow2", *commands, path)

    def make_plain(self, path, cluster, options):
        self.create(path, cluster, options)
        self.fill(path, cluster)

    def make_v2(self, path, cluster, options):
        self.create(path, cluster, f"cluster_size={cluster},compat=0.10")
        self.fill(path, cluster)

    def make_snapshots(self, path, cluster, options):
        """Two snapshots; clusters 2, 3 and 21 were written again after the first."""
        self.create(path, cluster, options)
        self.fill(path, cluster, {**WRITTEN, 2: 99, 3: 99, 21: 99})
        oracle("qemu-img", "snapshot", "-c", "first", path)
        self.fill(path, cluster, {i: WRITTEN[i] for i in (2, 3, 21)})
        oracle("qemu-img", "snapshot", "-c", "second", path)
        self.fill(path, cluster, {6: WRITTEN[6]})

    def make_shared(self, path, cluster, options):
        """One snapshot, and nothing written since: the L2 table is shared."""
        self.create(path, cluster, options)
        self.fill(path, cluster)
        oracle("qemu-img", "snapshot", "-c", "only", path)

    def make_compressed(self, path, cluster, options):
        """Clusters 8 to 13 are compressed."""
        self.create(path, cluster, options)
        self.fill(path, cluster)
        commands = []
        for index in range(8, 14):
            commands += ["-c", f"write -q -c -P {index + 1} {index * cluster} {cluster}"]
        oracle("qemu-io", "-f", "qcow2", *commands, path)

    def make_extended(self, path, cluster, options):
        self.create(path, cluster, options + ",extended_l2=on")
        self.fill(path, cluster)

    def make_bitmaps(self, path, cluster, options):
        self.create(path, cluster, options)
        for name in ("one", "two"):
            oracle("qemu-img", "bitmap", "--add", path, name)
        self.fill(path, cluster)

    def make_data_file(self, path, cluster, options):
        self.create(path, cluster, f"{options},data_file={path}.data")
        self.fill(path, cluster)

    def make_luks(self, path, cluster, options):
        """The oracle sometimes cannot measure the processor's speed: a few tries."""
        options += ",encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10"
        for attempt in range(20):
            try:
                self.create(path, cluster, options, "--object", SECRET)
                return
            except RuntimeError:
                if attempt == 19:
                    raise


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


def guest_data_intact(side, image, cluster, written, touched=()):
    """Every cluster that was written still reads as its pattern, but for the touched ones."""
    commands = []
    for index, pattern in written.items():
        if index not in touched:
            commands += ["-c", f"read -q -P {pattern} {index * cluster} {cluster}"]
    if not commands:
        return True, ""
    result = run(side, "qemu-io", "-r", "-f", "qcow2", *commands, image)
    bad = result.returncode != 0 or "failed" in result.stdout + result.stderr
    return not bad, result.stdout + result.stderr


def folder():
    return tempfile.TemporaryDirectory(prefix="qcowkit-damage.")
