"""The image options and their values, which combinations are legal, and small sets of combinations
in which every pair (or triple) of values occurs. LEGAL and REASONS say what QEMU's format allows;
test-refusals holds that table against the oracle, test-combinations works on what it allows."""
import itertools
import random

SIZES = [str(1 << n) for n in range(9, 22)]
VALUES = {
    "compat": ["1.1", "0.10"],
    "cluster_size": ["65536", *(s for s in SIZES if s != "65536")],
    "refcount_bits": ["16", "1", "2", "4", "8", "32", "64"],
    "extended_l2": ["off", "on"],
    "compression_type": ["zlib", "zstd"],
    "data": ["none", "plain", "raw"],
    "encryption": ["none", "luks", "aes"],
    "lazy_refcounts": ["off", "on"],
    "backing": ["none", "raw", "qcow2", "shorter", "longer"],
    "preallocation": ["off", "metadata", "falloc", "full"],
}
# what no image has, beside the legal values
WRONG = {
    "compat": ["2"],
    "cluster_size": ["256", "1000", "4194304"],
    "refcount_bits": ["0", "3", "128"],
    "extended_l2": [],
    "compression_type": ["lzma"],
    "data": ["raw-without"],
    "encryption": ["serpent", "luks-without"],
    "lazy_refcounts": [],
    "backing": [],
    "preallocation": ["some"],
}
# each a reason why a combination is refused
REASONS = {
    "version 2 has refcounts of 16 bits": lambda s:
        s["compat"] == "0.10" and s["refcount_bits"] != "16",
    "version 2 has no subclusters": lambda s:
        s["compat"] == "0.10" and s["extended_l2"] == "on",
    "version 2 has one kind of compression": lambda s:
        s["compat"] == "0.10" and s["compression_type"] != "zlib",
    "version 2 has no data file": lambda s: s["compat"] == "0.10" and s["data"] != "none",
    "version 2 has no lazy refcounts": lambda s:
        s["compat"] == "0.10" and s["lazy_refcounts"] == "on",
    "small clusters have no subclusters": lambda s:
        s["extended_l2"] == "on" and s["cluster_size"] in SIZES[:5],
    "a raw data file is all of the disk": lambda s:
        s["data"] == "raw" and s["backing"] != "none",
    "preallocated clusters hide the backing file": lambda s:
        s["preallocation"] != "off" and s["backing"] != "none" and s["extended_l2"] == "off",
}
# legal for QEMU, whose image then reads as what zero bytes decrypt to (doc/divergences.md)
OURS_REFUSES = {
    "version 2 cannot mark preallocated clusters as zero": lambda s:
        s["compat"] == "0.10" and s["encryption"] in ("luks", "aes") and s["preallocation"] != "off",
}
DEFAULTS = {name: values[0] for name, values in VALUES.items()}
# where a pair is legal only together with a third value
BASES = [DEFAULTS, {**DEFAULTS, "extended_l2": "on"}]


def wrong_values(shape):
    return [f"{name}={value}" for name, value in shape.items() if value in WRONG[name]]


def reasons(shape):
    """Why qemu refuses it; nothing when it is legal."""
    return wrong_values(shape) + [text for text, rule in REASONS.items() if rule(shape)]


def legal(shape):
    return not reasons(shape) and not any(rule(shape) for rule in OURS_REFUSES.values())


def options(shape, name="hd"):
    """The argument of -o, and the arguments for the backing file "base"."""
    words = [f"{key}={shape[key]}" for key in ("compat", "cluster_size", "refcount_bits")]
    words += [f"{key}={shape[key]}" for key in ("extended_l2", "compression_type", "lazy_refcounts",
                                                "preallocation") if shape[key] != VALUES[key][0]]
    words += {"none": [], "plain": [f"data_file={name}.data"], "raw-without": ["data_file_raw=on"],
              "raw": [f"data_file={name}.data", "data_file_raw=on"]}[shape["data"]]
    words += encryption(shape["encryption"])
    below = {"none": (), "raw": ("-b", "base", "-F", "raw")}
    return ",".join(words), below.get(shape["backing"], ("-b", "base", "-F", "qcow2"))


def encryption(kind):
    if kind == "none":
        return []
    if kind == "luks-without":
        return ["encrypt.format=luks"]
    words = [f"encrypt.format={kind}", "encrypt.key-secret=s"]
    return words + ["encrypt.iter-time=1"] if kind == "luks" else words


def tuples(shape, strength):
    return itertools.combinations(sorted(shape.items()), strength)


def possible(values, strength, fits):
    """All tuples that some fitting combination has, with one of those."""
    for names in itertools.combinations(sorted(values), strength):
        for chosen in itertools.product(*(values[name] for name in names)):
            part = tuple(zip(names, chosen))
            for base in BASES:
                if fits({**base, **dict(part)}):
                    yield part, {**base, **dict(part)}
                    break


def extend(row, part, left, values, fits, rng):
    """Turns free values of the row to what covers most of what is left."""
    fixed = dict(part)
    free = [name for name in values if name not in fixed]
    rng.shuffle(free)
    for name in free:
        ranked = []
        for value in values[name]:
            trial = {**row, name: value}
            if fits(trial):
                ranked.append((sum(t in left for t in tuples(trial, len(part)) if (name, value) in t),
                               rng.random(), value))
        row[name] = max(ranked)[2]
    return row


def covering(values, strength, fits):
    """Combinations that fit, in which every possible tuple of that many values occurs."""
    rng, rows = random.Random(7), []
    left = dict(possible(values, strength, fits))
    while left:
        part = next(iter(left))
        row = extend(dict(left[part]), part, left, values, fits, rng)
        rows.append(row)
        for covered in tuples(row, strength):
            left.pop(covered, None)
    return rows
