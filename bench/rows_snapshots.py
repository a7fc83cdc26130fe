"""Taking, deleting and applying snapshots of images whose L2 tables are all there."""
import os
import subprocess

from harness import GIB, TIB


def full_image(bench, name, size):
    path = bench.path(name)
    bench.measure([bench.ours, "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path,
                   str(size)])
    return path


def one_size(bench, size, text, rounds):
    """Each program has an image of its own. Before each run the image gets the snapshots it is to
    have, by ours: that is the faster way."""
    images = {who: full_image(bench, f"snap-{who}.qcow2", size) for who in ("ours", "qemu")}

    def command(action, name):
        return {"qcowkit": [bench.ours, "snapshot", action, name, images["ours"]],
                "qemu": [bench.qemu, "snapshot", action, name, images["qemu"]]}

    def having(wanted):
        def prepare(argv):
            image = argv[-1]
            listed = subprocess.run([bench.qemu, "snapshot", "-l", image], capture_output=True,
                                    text=True, check=True).stdout.splitlines()[2:]
            has = [line.split()[1] for line in listed]
            for name in set(has) - set(wanted):
                bench.measure([bench.ours, "snapshot", "-d", name, image])
            for name in set(wanted) - set(has):
                bench.measure([bench.ours, "snapshot", "-c", name, image])
        return prepare

    bench.row(f"snapshot of {text}: create", command("-c", "one"), having([]), rounds=rounds)
    bench.row(f"snapshot of {text}: apply", command("-a", "one"), having(["one"]), rounds=rounds)
    bench.row(f"snapshot of {text}: delete", command("-d", "one"), having(["one"]), rounds=rounds)
    for image in images.values():
        os.unlink(image)


def snapshots(bench):
    one_size(bench, 128 * GIB // bench.scale, "128 GiB", bench.rounds)
    one_size(bench, TIB // bench.scale, "1 TiB", 1)


def many(bench):
    """The same operations beside 5 and beside 500 snapshots; their own figure is per snapshot."""
    for count in (5, 500):
        image = full_image(bench, f"many-{count}.qcow2", 8 * GIB // bench.scale)
        for i in range(count):
            bench.measure([bench.ours, "snapshot", "-c", f"s{i}", image])
        bench.row(f"{count} snapshots: list",
                  {"qcowkit": [bench.ours, "snapshot", "-l", image],
                   "qemu": [bench.qemu, "snapshot", "-l", image]}, operations=count)
        one_more = ["sh", "-c", f'"$0" snapshot -c x "{image}" && "$0" snapshot -d x "{image}"']
        bench.row(f"{count} snapshots: create and delete one more",
                  {"qcowkit": [*one_more, bench.ours], "qemu": [*one_more, bench.qemu]})
        os.unlink(image)


GROUPS = [snapshots, many]
