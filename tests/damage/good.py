"""What a check owes a sound image: no finding, no note, no loss; the oracle's words, status 0; nothing
that a repair would do; and a repair that leaves each byte, and the clock of the file, as they were."""
import hashlib
import json
import os

import harness as h


def fingerprint(path):
    """Of all the bytes, and when they were last written."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha1").digest(), os.stat(path).st_mtime_ns


def check_words(side, path, key, *more):
    """key: the kind of a key that the check gets, or None. The oracle cannot do without."""
    return h.run(side, "qemu-img", "check", *more, *h.opened(key, path))


def same_as_oracle(path, label, key=None):
    theirs = check_words(h.ORACLE, path, key)
    ours = check_words(h.BIN, path, None)
    h.check((ours.stdout, ours.stderr, ours.returncode) == (theirs.stdout, theirs.stderr, 0),
            f"check of {label}", "theirs:", theirs.stdout, theirs.stderr, "ours:", ours.stdout,
            ours.stderr, f"status {ours.returncode}")


def nothing_to_tell(path, label):
    """No notes either, and no losses."""
    result = h.run(h.BIN, "qcowkit", "check", "--output=json", "-f", "qcow2", path)
    told = json.loads(result.stdout) if result.stdout else {}
    h.check(result.returncode == 0 and told.get("findings") == [] and told.get("losses") == [],
            f"nothing is said of {label}", result.stdout[:600], result.stderr)


def nothing_to_do(path, label):
    """Neither with every choice: an image without damage asks for none."""
    result = h.run(h.BIN, "qcowkit", "check", "--plan", "--output=json", "--allow", "lossy,rollback",
                   "-f", "qcow2", path)
    told = json.loads(result.stdout) if result.stdout else {}
    h.check(result.returncode == 0 and told.get("plan") == [], f"no plan for {label}",
            result.stdout[:600], result.stderr)
    repair = check_words(h.BIN, path, None, "-r", "all")
    h.check(repair.returncode == 0, f"repair of {label}", repair.stdout, repair.stderr)


def good(path, label, key=None, oracle=True):
    """oracle: False where it cannot open the image, or says less than ours on purpose."""
    before = fingerprint(path)
    if oracle:
        same_as_oracle(path, label, key)
    nothing_to_tell(path, label)
    nothing_to_do(path, label)
    h.check(fingerprint(path) == before, f"{label}: something was written")
