"""What was measured as a table and a picture."""
import math
import os
import statistics
import subprocess


def ratio(row, base, of="qcowkit"):
    """Median over the rounds of time(base) / time(of): above 1, `of` is faster."""
    if base not in row.get("times", {}):
        return None
    return statistics.median(b / o for b, o in zip(row["times"][base], row["times"][of]))


def show(value, form="{:.2f}"):
    return "-" if value is None else form.format(value)


def cells(row):
    """The columns of the table."""
    if "error" in row:
        return [row["name"], "-", "-", "-", "-", "-", "-", "-"]
    median = {c: statistics.median(t) for c, t in row["times"].items()}
    per, unit = (1e6 / row["operations"], "us") if row["operations"] else (1e3, "ms")

    def duration(contender):
        return show(median[contender] * per, "{:.1f} " + unit) if contender in median else "-"

    def peak(contender):
        return f"{row['peaks'][contender] / 1024:.0f}" if contender in row["peaks"] else "-"

    return [row["name"], show(ratio(row, "qemu")), show(ratio(row, "raw")), duration("qcowkit"),
            duration("qemu"), duration("raw"), peak("qcowkit"), peak("qemu")]


def text_row(row):
    c = cells(row)
    return f"{c[0]:44} {c[1]:>7} x qemu {c[2]:>6} x raw   {c[3]:>12} {c[4]:>12} {c[5]:>12}"


HEAD = ["what", "faster than qemu", "of the raw file's speed", "qcowkit", "qemu", "raw file",
        "peak MiB", "qemu's peak MiB"]


def write_table(bench, path):
    version = subprocess.run([bench.qemu, "--version"], capture_output=True, text=True, check=True)
    lines = ["# Benchmark", "", f"{os.cpu_count()} cores, {version.stdout.splitlines()[0]}, "
             f"medians of {bench.rounds} paired rounds, page cache warm where a row does not say "
             f"cold, load average {bench.load:.0f} at the start (other work makes the ratios less "
             "sure and the times longer). Times are per operation (us) or for the whole command "
             "(ms).", "", "| " + " | ".join(HEAD) + " |",
             "|---|" + "---:|" * (len(HEAD) - 1)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in bench.rows]
    lines += [""] + [f"- {note}" for note in bench.notes]
    lines += ["", "![ratios](ratios.svg)", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def write_plot(rows, path):
    """Bars of the ratio to qemu on a logarithmic axis; 1 is a draw."""
    rows = [r for r in rows if ratio(r, "qemu")]
    left, width, step = 330, 460, 22
    height = step * len(rows) + 60

    def x(value):
        low, high = 0.25, 64.0
        clipped = min(max(value, low), high)
        return left + width * math.log(clipped / low) / math.log(high / low)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 70}" '
           f'height="{height}" font-family="sans-serif" font-size="12">',
           '<rect width="100%" height="100%" fill="white"/>',
           '<text x="10" y="20" font-size="14">Times faster than the installed qemu tools</text>']
    for mark in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64):
        colour = "#444" if mark == 1 else "#ddd"
        out.append(f'<line x1="{x(mark):.0f}" y1="30" x2="{x(mark):.0f}" y2="{height - 22}" '
                   f'stroke="{colour}"/><text x="{x(mark):.0f}" y="{height - 8}" '
                   f'text-anchor="middle" fill="#444">{mark:g}</text>')
    for i, row in enumerate(rows):
        y, value = 36 + i * step, ratio(row, "qemu")
        start, end = sorted((x(1), x(value)))
        colour = "#2a7" if value >= 1 else "#c63"
        out.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{row["name"]}</text>'
                   f'<rect x="{start:.1f}" y="{y}" width="{max(end - start, 1):.1f}" height="15" '
                   f'fill="{colour}"/><text x="{max(end, x(1)) + 4:.1f}" y="{y + 12}">'
                   f'{value:.2f}</text>')
    out.append("</svg>\n")
    path.write_text("\n".join(out), encoding="utf-8")
