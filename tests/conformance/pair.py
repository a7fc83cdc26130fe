"""The same commands for the oracle and for ours, side by side in two folders: what the Python tests
of this folder share. A difference raises Mismatch, which ends a case and counts as one failure."""
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OURS = Path(os.environ.get("QCOWKIT_BIN", Path(__file__).parent / "../../build/bin")).resolve()
THEIRS = Path(os.environ.get("QCOWKIT_ORACLE", "/usr/bin"))
FULL = os.environ.get("QCOWKIT_MATRIX") == "full"
SHARD = int(os.environ.get("QCOWKIT_SHARD", 0))
SHARDS = int(os.environ.get("QCOWKIT_SHARDS", 1))
SECRET = ("--object", "secret,id=s,data=geheim")
passed = failed = 0


class Mismatch(Exception):
    pass


def expect(what, holds, detail=""):
    global passed
    if not holds:
        raise Mismatch(f"{what}\n    {detail}")
    passed += 1


def normal(text):
    """Without times, and without what only newer versions of qemu have."""
    text = re.sub(r"[0-9:.]+( sec)? \(\S+( \S+)?/sec and \S+ ops/sec\)", "T", text)
    return re.sub(r"^  (keep_data_file|data_file_keep)=.*\n", "", text, flags=re.M)


def opts(name, encryption="none", **more):
    words = {"driver": "qcow2", "file.filename": name, **more}
    if encryption != "none":
        words.update({"encrypt.format": encryption, "encrypt.key-secret": "s"})
    return ",".join(f"{key}={value}" for key, value in words.items())


def commands(*words):
    return [part for word in words for part in ("-c", word)]


class Pair:
    """Two folders, one for each program."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.theirs, self.ours = self.sides = [self.folder / "theirs", self.folder / "ours"]
        for side in self.sides:
            side.mkdir(parents=True)

    def run(self, side, tool, *args, program=None):
        """One program in one folder; the oracle gives up at random when it measures the machine."""
        program = program or (OURS if side == self.ours else THEIRS)
        for _ in range(40):
            done = subprocess.run([str(program / tool), *args], cwd=side, text=True, check=False,
                                  stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
            if "accurate CPU usage" not in done.stderr:
                break
        expect(f"{program}/{tool} {' '.join(args)} ends by itself", 0 <= done.returncode < 99,
               done.stderr[-3000:])
        return done

    def must(self, side, tool, *args, program=None):
        done = self.run(side, tool, *args, program=program)
        expect(f"{side.name}, {program or 'its own program'}: {tool} {' '.join(args)}",
               done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:])
        return done

    def both(self, tool, *args, stderr=False):
        """Same status and output, and text on stderr if wanted; the oracle's result."""
        theirs, ours = (self.run(side, tool, *args) for side in self.sides)
        what = f"{tool} {' '.join(args)}"
        expect(f"status of {what}", theirs.returncode == ours.returncode,
               f"theirs {theirs.returncode}: {theirs.stderr}\n    ours {ours.returncode}: {ours.stderr}")
        for stream in ("stdout", "stderr") if stderr else ("stdout",):
            expected, actual = (normal(getattr(done, stream)) for done in (theirs, ours))
            expect(f"{stream} of {what}", expected == actual, f"theirs: {expected}\n    ours:   {actual}")
        return theirs

    def fine(self, tool, *args):
        """As both, and it succeeds."""
        done = self.both(tool, *args)
        expect(f"{tool} {' '.join(args)} succeeds", done.returncode == 0, done.stdout + done.stderr)
        return done

    def content(self, side, program, image, *more):
        self.must(side, "qemu-img", "convert", *SECRET, *more, "--image-opts", image, "-O", "raw",
                  "content.raw", program=program)
        path = side / "content.raw"
        data = path.read_bytes()
        path.unlink()
        return data

    def same_content(self, image, *more, sides=None):
        """What either program reads of either image, which must be one thing."""
        first = None
        for side in sides or self.sides:
            for program in (THEIRS, OURS):
                data = self.content(side, program, image, *more)
                first = data if first is None else first
                expect(f"{program} reads {side.name}/{image}", data == first,
                       f"first difference at {first_difference(first, data)}")
        return first

    def clean(self, image, sides=None):
        for side in sides or self.sides:
            for program in (THEIRS, OURS):
                done = self.run(side, "qemu-img", "check", *SECRET, "--image-opts", image,
                                program=program)
                expect(f"{side.name}/{image} is clean for {program}", done.returncode == 0,
                       (done.stdout + done.stderr)[:2000])

    def state(self, side):
        return {path.name: path.read_bytes() for path in side.iterdir()}

    def restore(self, files):
        """Both folders hold just these."""
        for side in self.sides:
            for path in side.iterdir():
                path.unlink()
            for name, data in files.items():
                (side / name).write_bytes(data)

    def swap(self, *names):
        for name in names:
            theirs, ours = (side / name for side in self.sides)
            theirs.rename(self.folder / "swap")
            ours.rename(theirs)
            (self.folder / "swap").rename(ours)

    def give(self, name):
        """The oracle's file on our side, too, with the same holes."""
        subprocess.run(["cp", "--sparse=always", self.theirs / name, self.ours / name], check=True)


def first_difference(a, b):
    if a == b:
        return "nowhere"
    if len(a) != len(b):
        return f"the length: {len(a)} and {len(b)}"
    step = 1 << 12
    at = next(i for i in range(0, len(a), step) if a[i:i + step] != b[i:i + step])
    return next(i for i in range(at, at + step) if a[i] != b[i])


def each(items, one):
    """one(item) for all; what went wrong is told at the end."""
    problems = []
    for item in items:
        try:
            one(item)
        except Mismatch as problem:
            problems.append(f"{item}: {problem}")
    expect(f"{len(problems)} of {len(items)}", not problems, "\n    ".join(problems))


def run_cases(cases, one):
    """one(Pair, case) for this shard's cases, then the closing line; the exit status."""
    global failed
    work = Path(tempfile.mkdtemp(prefix="qcowkit-pair."))
    only = sys.argv[1:]
    for index, case in enumerate(cases):
        if index % SHARDS != SHARD or (only and str(index) not in only):
            continue
        folder = work / str(index)
        try:
            one(Pair(folder), case)
        except (Mismatch, subprocess.TimeoutExpired) as problem:
            failed += 1
            print(f"failed: case {index} {str(case)[:400]}\n    {problem}", flush=True)
        shutil.rmtree(folder)
    work.rmdir()
    print(f"{passed} passed, {failed} failed")
    return failed != 0
