"""Running contenders in turn and keeping what they took: see `run` for what a row is."""
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import text_row

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


class Bench:
    def __init__(self, args):
        self.ours = str(args.build.resolve() / "bin" / "qemu-img")
        self.ours_io = str(args.build.resolve() / "bin" / "qemu-io")
        self.qemu = args.oracle
        self.qemu_io = str(Path(args.oracle).parent / "qemu-io")
        self.rounds = args.rounds
        self.scale = args.scale
        self.only = args.only
        self.dir = Path(tempfile.mkdtemp(prefix="qcowkit-bench.", dir=args.dir))
        self.rows = []
        self.notes = []
        self.load = os.getloadavg()[0]

    def path(self, name):
        return str(self.dir / name)

    def measure(self, argv):
        """(seconds, peak KiB) of one run. A process counts its parent's memory at the fork as its
        own peak, so a small one (time) stands between it and this script."""
        peak_file = self.dir / "peak"
        start = time.monotonic()
        process = subprocess.run(["/usr/bin/time", "-q", "-f", "%M", "-o", str(peak_file), *argv],
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                 stdin=subprocess.DEVNULL)
        seconds = time.monotonic() - start
        text = process.stdout.decode(errors="replace")
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)}: status {process.returncode}: {text[-300:]}")
        reported = re.search(r"Run completed in ([0-9.]+) seconds", text)
        return (float(reported.group(1)) if reported else seconds), int(peak_file.read_text())

    def row(self, name, contenders, before=None, rounds=None, operations=0):
        """contenders: {"qcowkit": argv, "qemu": argv, ...}; before(argv) prepares each run."""
        if self.only and self.only not in name:
            return
        times = {c: [] for c in contenders}
        peaks = dict.fromkeys(contenders, 0)
        try:
            for i in range(rounds or self.rounds):
                order = list(contenders)
                for contender in order if i % 2 == 0 else reversed(order):
                    if before:
                        before(contenders[contender])
                    os.sync()  # no run pays for what another wrote
                    seconds, peak = self.measure(contenders[contender])
                    times[contender].append(seconds)
                    peaks[contender] = max(peaks[contender], peak)
        except RuntimeError as e:
            print(f"{name}: {e}", file=sys.stderr, flush=True)
            self.rows.append({"name": name, "error": str(e)})
            return
        self.rows.append({"name": name, "times": times, "peaks": peaks, "operations": operations})
        print(text_row(self.rows[-1]), flush=True)

    def io(self, name, image, raw, flags, count, before=None):
        """One `bench` row: the image with both programs, the raw file with ours."""
        args = ["-c", str(count), *flags]
        contenders = {"qcowkit": [self.ours, "bench", "-f", "qcow2", *args, image],
                      "qemu": [self.qemu, "bench", "-f", "qcow2", *args, image]}
        if raw:
            contenders["raw"] = [self.ours, "bench", "-f", "raw", *args, raw]
        self.row(name, contenders, before, operations=count)
