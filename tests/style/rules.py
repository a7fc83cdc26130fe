"""The house rules as functions: each takes a Tree and yields one line per violation."""
import re
import statistics
import subprocess
from pathlib import Path

# What each room of src/ may include beside itself and the public header; the table of
# doc/design/architecture.md says the same (a rule below).
ROOMS = {
    "base": "",
    "io": "base",
    "format": "base",
    "codec": "base",
    "image": "base io format codec",
    "check": "base io format codec image",
    "node": "base io image check",
    "job": "base node",
}
MAX_FUNCTION_LINES, P95_FUNCTION_LINES, MAX_PARAMETERS, MAX_FILE_LINES = 100, 60, 5, 800
CODE_FOLDERS = ["include", "src", "tools", "tests", "bench"]
TEXT_FOLDERS = CODE_FOLDERS + ["scripts", "doc", ".ci"]
PRINTING = re.compile(
    r"(?<![\w.>])(printf|fprintf|vprintf|vfprintf|dprintf|puts|fputs|putchar|putc|fputc|perror|"
    r"exit|_exit|abort|err|errx|warn|warnx|syslog|signal|sigaction|setlocale)\s*\(")
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK|st" r"ub|for n" r"ow)\b")
MACHINE_PATH = re.compile(r"/(work|home|root)/[a-z]")


class Function:
    def __init__(self, path, name, line, end, signature):
        self.path, self.name, self.line, self.signature = path, name, line, signature
        self.lines = end - line + 1

    def parameters(self):
        """Number of parameters: commas outside of parentheses, brackets and braces. The closing
        `struct qk_error *err` that every fallible function has is not counted."""
        inner = self.signature.strip()[1:-1].strip()
        inner = re.sub(r",\s*struct qk_error\s*\*\s*\w*$", "", inner)
        if inner in ("", "void"):
            return 0
        depth = count = 0
        for c in inner:
            depth += (c in "([{") - (c in ")]}")
            count += c == "," and depth == 0
        return count + 1


class Tree:
    def __init__(self, root):
        self.root = Path(root)

    def files(self, folders, suffixes=None):
        for folder in folders:
            for path in sorted((self.root / folder).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts and (
                        suffixes is None or path.suffix in suffixes):
                    yield path

    def code(self, folders=None):
        return self.files(folders or CODE_FOLDERS, {".c", ".h"})

    def texts(self):
        yield from (p for p in self.root.glob("*") if p.is_file())
        yield from self.files(TEXT_FOLDERS)

    def name(self, path):
        return str(path.relative_to(self.root))

    def functions(self):
        paths = [str(p) for p in self.code()]
        out = subprocess.run(["ctags", "--fields=neS", "--kinds-C=f", "--language-force=C",
                              "-D", "QK_API=", "-o", "-", "-L", "-"],
                             input="\n".join(paths), capture_output=True, text=True, check=True)
        for row in out.stdout.splitlines():
            if row.startswith("!"):
                continue
            cells = row.split("\t")
            keys = dict(c.split(":", 1) for c in cells[3:] if ":" in c)
            if "end" in keys:
                yield Function(Path(cells[1]), cells[0], int(keys["line"]), int(keys["end"]),
                               keys.get("signature", "()"))


def read(path):
    """Text, or '' for a file that is none (an image in a corpus)."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def without_comments(text):
    """C text with comments and string contents blanked, line structure kept."""
    def blank(match):
        return re.sub(r"[^\n]", " ", match.group(0))
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', blank, text, flags=re.S)


# ---- rules ----

def include_table(tree):
    """Rooms include only what the table allows."""
    for path in tree.code(["src"]):
        room = path.relative_to(tree.root / "src").parts[0]
        if room not in ROOMS:
            yield f"{tree.name(path)}: room {room} is not in the table"
            continue
        for line, header in includes(path):
            other = header.split("/")[0]
            if "/" in header and other != room and other not in ROOMS[room].split():
                yield f"{tree.name(path)}:{line}: {room} must not include {header}"
    for path in tree.code(["tools"]):
        face = path.relative_to(tree.root / "tools").parts[0]
        for line, header in includes(path):
            if header != "qcowkit.h" and not header.startswith("common/") and not \
                    beside(tree, path, face, header):
                yield f"{tree.name(path)}:{line}: tools must not include {header}"


def table_documented(tree):
    """The table of rooms in the documentation is the one that is enforced."""
    page = tree.root / "doc" / "design" / "architecture.md"
    if not page.exists():
        return
    rows = re.findall(r"^\| `src/(\w+)/` \|.*\| ([^|]*) \|$", read(page), re.M)
    told = {room: "" if others == "libc" else others for room, others in rows}
    for room in sorted(told.keys() | ROOMS.keys()):
        if told.get(room) != ROOMS.get(room):
            yield f"{tree.name(page)}: {room} may include {ROOMS.get(room)}, not {told.get(room)}"


def includes(path):
    for number, line in enumerate(read(path).splitlines(), 1):
        found = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
        if found:
            yield number, found.group(1)


def beside(tree, path, face, header):
    return (path.parent / header).exists() or header.startswith(face + "/") and (
        tree.root / "tools" / header).exists()


def function_length(tree):
    """At most 100 lines each, 95th percentile at most 60."""
    lengths = []
    for f in tree.functions():
        lengths.append(f.lines)
        if f.lines > MAX_FUNCTION_LINES:
            yield f"{tree.name(f.path)}:{f.line}: {f.name} has {f.lines} lines"
    if len(lengths) > 20:
        p95 = statistics.quantiles(lengths, n=20)[-1]
        if p95 > P95_FUNCTION_LINES:
            yield f"95th percentile of function lengths is {p95:.0f}"


def parameter_count(tree):
    """At most 5 parameters beside the error."""
    for f in tree.functions():
        if f.parameters() > MAX_PARAMETERS and not public(tree, f.name):
            yield f"{tree.name(f.path)}:{f.line}: {f.name} has {f.parameters()} parameters"


def public(tree, name):
    return name in {n for n, _ in public_functions(tree)}


def file_length(tree):
    """Source files under 800 lines."""
    for path in tree.files(CODE_FOLDERS, {".c", ".h", ".py", ".sh", ""}):
        count = read(path).count("\n")
        if count >= MAX_FILE_LINES:
            yield f"{tree.name(path)}: {count} lines"


def layout(tree):
    """Lines of at most 100 columns, no tabs, no trailing blanks in C code."""
    for path in tree.code():
        for number, line in enumerate(read(path).splitlines(), 1):
            if len(line) > 100 or "\t" in line or line != line.rstrip():
                yield f"{tree.name(path)}:{number}: long line, tab or trailing blank"


def head_paragraph(tree):
    """Each C file starts with a paragraph that names it and says what it is for."""
    for path in tree.code():
        text = read(path)
        if not text.startswith("/*") or path.name not in text.split("*/")[0]:
            yield f"{tree.name(path)}: no head comment that names the file"


def typedefs(tree):
    """No typedef but value types of one or two members and function types."""
    for path in tree.code():
        text = without_comments(read(path))
        for found in re.finditer(r"^[ \t]*typedef\b([^;{]*)(\{[^}]*\})?", text, re.M):
            head, body = found.groups()
            small = body.count(";") <= 2 if body else "(" in head
            if not small:
                line = text.count("\n", 0, found.start()) + 1
                yield f"{tree.name(path)}:{line}: typedef of something larger than a value"


def silent_library(tree):
    """The library never prints, never exits, installs no handler."""
    for path in tree.code(["src"]):
        for number, line in enumerate(without_comments(read(path)).splitlines(), 1):
            if PRINTING.search(line):
                yield f"{tree.name(path)}:{number}: {line.strip()}"


def no_global_state(tree):
    """No writable variable at file scope in the library."""
    variable = re.compile(r"^(static|extern|_Thread_local)?\s*(?!.*\bconst\b)[A-Za-z_][\w\s*]*"
                          r"(\[[^\]]*\])*\s*(=|;)")
    for path in tree.code(["src"]):
        for number, line in enumerate(without_comments(read(path)).splitlines(), 1):
            starts_static = line.startswith("static ")
            if starts_static and variable.match(line) and "(" not in line.split("=")[0]:
                yield f"{tree.name(path)}:{number}: {line.strip()}"


def finished(tree):
    """No word that marks unfinished work, no path of one machine."""
    for path in tree.texts():
        for number, line in enumerate(read(path).splitlines(), 1):
            if UNFINISHED.search(line) or MACHINE_PATH.search(line):
                yield f"{tree.name(path)}:{number}: {line.strip()[:90]}"


def public_functions(tree):
    """(name, documented) of each function of the public header. A comment documents the
    declarations that follow it without an empty line."""
    header = tree.root / "include" / "qcowkit.h"
    if not header.exists():
        return
    text = re.sub(r"/\*.*?\*/", lambda m: "/*" + "\n" * m.group(0).count("\n") + "*/",
                  read(header), flags=re.S)
    documented = False
    for line in text.splitlines():
        if "*/" in line:
            documented = True
        elif not line.strip() or line.startswith("}"):
            documented = documented and line.startswith("}")
        found = re.search(r"\bQK_API\b.*?\b(qk_\w+)\(", line)
        if found:
            yield found.group(1), documented


def public_documented(tree):
    """Each public function has a comment."""
    for name, documented in public_functions(tree):
        if not documented:
            yield f"include/qcowkit.h: {name} has no comment"


def public_in_map(tree):
    """The symbol map lists the public functions and nothing else."""
    symbols = set(re.findall(r"^\s+(qk_\w+);", read(tree.root / "src" / "qcowkit.map"), re.M))
    names = {n for n, _ in public_functions(tree)}
    for name in sorted(symbols ^ names):
        yield f"src/qcowkit.map: {name} is only in the " + ("map" if name in symbols else "header")


def public_tested(tree):
    """Each public function is called in some test program."""
    tests = "\n".join(without_comments(read(p)) for p in tree.code(["tests"]))
    for name, _ in public_functions(tree):
        if not re.search(rf"\b{name}\(", tests):
            yield f"include/qcowkit.h: {name} is called in no test"


RULES = [include_table, table_documented, function_length, parameter_count, file_length, layout,
         head_paragraph, typedefs, silent_library, no_global_state, finished, public_documented,
         public_in_map, public_tested]
