#!/usr/bin/env python3
"""Tables and pictures of what bench/run measured.

report.py DIRECTORY reads runs.tsv (and counts.tsv, …) there, prints the
tables, and leaves summary.md and bench.svg beside them.
"""

import csv
import os
import statistics
import sys

NAMES = {
    "local": "two local commits, not atomic",
    "local-auto": "the same, single statements",
    "xa": "XA, in sequence",
    "xa-parallel": "XA, in parallel",
    "tpc-applied": "tpc_amqp, applied",
    "tpc-decided": "tpc_amqp, decided",
    "tpc-one-applied": "tpc_amqp, one statement, applied",
    "tpc-one-decided": "tpc_amqp, one statement, decided",
    "pgbench-applied": "tpc_amqp by pgbench, applied",
    "pgbench-decided": "tpc_amqp by pgbench, decided",
    "writeup-shared": "the write-up's way, shared queues",
    "writeup-per-transaction": "the write-up's way, 3 queues each",
}
COLORS = {
    "local": "#9aa5b1", "local-auto": "#c5ccd3", "xa": "#c7793b",
    "xa-parallel": "#e0b080", "tpc-applied": "#1f5fa8",
    "tpc-decided": "#5fa0e0", "tpc-one-applied": "#3a3f9a",
    "tpc-one-decided": "#8489d8", "writeup-shared": "#7b9e57",
    "writeup-per-transaction": "#b3cc94",
}
BASE = "xa"


def read(directory, name):
    path = os.path.join(directory, name)
    if not os.path.exists(path):
        return []
    with open(path, newline="") as f:
        return list(csv.DictReader(f, delimiter="\t"))


class Point:
    """Rounds of one mode with one number of clients."""

    def __init__(self, rows):
        self.tps = [float(r["tps"]) for r in rows]
        self.p50 = [float(r["p50_us"]) / 1000 for r in rows]
        self.p99 = [float(r["p99_us"]) / 1000 for r in rows]
        self.cpu = [sum(float(item.split(":")[1])
                        for item in r["spent"].split(",")) / 1000
                    for r in rows if r["spent"]]
        self.others = [float(r["other_cpu"]) for r in rows]
        self.by_round = {r["round"]: r for r in rows}


def spread(values, digits=0):
    """median (lowest – highest)"""
    text = f"{statistics.median(values):.{digits}f}"
    if len(values) > 1:
        text += f" ({min(values):.{digits}f}–{max(values):.{digits}f})"
    return text


def ratios(point, base, column):
    """Round by round, so that what slows a whole round cancels out."""
    return [float(row[column]) / float(base.by_round[number][column])
            for number, row in point.by_round.items()
            if number in base.by_round]


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |",
             "|" + "|".join(" --- " if i == 0 else " ---: "
                            for i in range(len(header))) + "|"]
    lines += ["| " + " | ".join(str(c) for c in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main_tables(rows):
    text = ""
    points = {}
    modes = []
    clients = sorted({int(r["clients"]) for r in rows})
    for row in rows:
        if row["label"] not in modes:
            modes.append(row["label"])
    modes.sort(key=list(NAMES).index)
    for mode in modes:
        for n in clients:
            some = [r for r in rows
                    if r["label"] == mode and int(r["clients"]) == n]
            if some:
                points[mode, n] = Point(some)
    for n in clients:
        body = []
        base = points.get((BASE, n))
        for mode in modes:
            point = points.get((mode, n))
            if point is None:
                continue
            cells = [NAMES[mode], spread(point.tps), spread(point.p50, 2),
                     spread(point.p99, 1),
                     spread(point.cpu, 2) if point.cpu else ""]
            if base is not None:
                cells += [spread(ratios(point, base, "tps"), 2) + " ×",
                          spread(ratios(point, base, "p50_us"), 2) + " ×"]
            body.append(cells)
        text += f"\n### {n} client{'s' if n > 1 else ''}\n\n"
        text += table(["", "transactions/s", "median ms", "99 % ms",
                       "CPU ms", "throughput against XA", "median latency against XA"]
                      if base is not None else
                      ["", "transactions/s", "median ms", "99 % ms",
                            "CPU ms"], body)
    return text, points, modes, clients


def spent_table(rows):
    """CPU time and context switches per transaction, by process tree."""
    body = []
    for row in rows:
        cells = {}
        for item in filter(None, row["spent"].split(",")):
            name, cpu, switches = item.split(":")
            cells[name] = f"{float(cpu):.0f} / {float(switches):.1f}"
        body.append([NAMES[row["mode"]], row["clients"]] +
                    [cells.get(n, "") for n in ("client", "a", "b", "broker")])
    return table(["CPU µs / context switches per transaction", "clients",
                  "client", "cluster a", "cluster b", "broker"], body)


def count_table(rows):
    body = []
    for row in rows:
        if row["mode"].startswith("tpc"):
            messages = (f"{float(row['sent_a']):.2f} + "
                        f"{float(row['sent_b']):.2f}")
            publishes = (f"{float(row['publishes_a']):.2f} + "
                         f"{float(row['publishes_b']):.2f}")
            writes = (f"{float(row['writes_a']):.2f} + "
                      f"{float(row['writes_b']):.2f}")
        else:
            messages = publishes = writes = ""
        body.append([NAMES[row["mode"]], row["clients"],
                     f"{float(row['flushes_a']):.2f}",
                     f"{float(row['flushes_b']):.2f}",
                     f"{float(row['wal_bytes_a']):.0f} + "
                     f"{float(row['wal_bytes_b']):.0f}", messages, publishes,
                     writes])
    return table(["per transaction", "clients", "WAL flushes a",
                  "WAL flushes b", "WAL bytes a + b", "messages sent a + b",
                  "AMQP messages a + b", "socket writes a + b"], body)


PARTS = {
    "workers": "Prepare and resolve workers",
    "participants": "Participants besides the client's own database",
    "sessions": "Sessions (memory: private, per session on a; AMQP "
                "connections: of all of a)",
    "payload": "Payload in bytes",
    "hot": "All clients update one row",
    "frozen": "A participant is frozen; transactions that do not involve it",
}


def cpu_ms(row):
    """Of client, clusters and broker together, per transaction."""
    return "{:.2f}".format(sum(float(item.split(":")[1])
                               for item in row["spent"].split(",")) / 1000)


def part_table(rows):
    body = [[row["parameter"], NAMES.get(row["label"], row["label"]),
             row["clients"], f"{float(row['tps']):.0f}",
             f"{float(row['p50_us']) / 1000:.2f}",
             f"{float(row['p99_us']) / 1000:.1f}", cpu_ms(row),
             f"{100 * float(row['other_cpu']):.0f} %", row["errors"]]
            for row in rows]
    return table(["", "mode", "clients", "transactions/s", "median ms",
                  "99 % ms", "CPU ms", "others", "errors"], body)


def bystander_table(rows):
    body = []
    for kind in dict.fromkeys(r["kind"] for r in rows):
        tps = {server: [float(r["tps"]) for r in rows
                        if r["kind"] == kind and r["server"] == server]
               for server in ("without", "attached")}
        pairs = [a / b for a, b in zip(tps["attached"], tps["without"])]
        body.append([kind, spread(tps["without"]), spread(tps["attached"]),
                     spread(pairs, 3)])
    return table(["pgbench", "tps without", "tps with, attached", "ratio"],
                 body)


def plot(directory, points, modes, clients):
    try:
        import matplotlib
    except ImportError:
        print("no matplotlib: no picture")
        return
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tpc_amqp"
    import matplotlib.pyplot as plt

    modes = [m for m in modes if m in COLORS]
    if not modes:
        return
    figure, axes = plt.subplots(1, 2, figsize=(11, 5))
    width = 0.8 / len(modes)
    for axis, attribute, title in (
            (axes[0], "tps", "transactions per second"),
            (axes[1], "p50", "median latency, ms")):
        for i, mode in enumerate(modes):
            xs, ys, low, high = [], [], [], []
            for j, n in enumerate(clients):
                point = points.get((mode, n))
                if point is None:
                    continue
                values = getattr(point, attribute)
                median = statistics.median(values)
                xs.append(j + (i - (len(modes) - 1) / 2) * width)
                ys.append(median)
                low.append(median - min(values))
                high.append(max(values) - median)
            axis.bar(xs, ys, width * 0.92, label=NAMES[mode],
                     color=COLORS[mode])
            axis.errorbar(xs, ys, yerr=[low, high], fmt="none",
                          ecolor="#333333", elinewidth=0.8)
        axis.set_title(title, fontsize=11)
        axis.set_xticks(range(len(clients)))
        axis.set_xticklabels([f"{n} client{'s' if n > 1 else ''}"
                              for n in clients])
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_yscale("log")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=3, fontsize=9,
                  frameon=False)
    figure.suptitle("one row on each of two databases: "
                    "medians, lowest and highest round", fontsize=12)
    figure.tight_layout(rect=(0, 0.24, 1, 1))
    figure.savefig(os.path.join(directory, "bench.svg"),
                   metadata={"Date": None})


def main():
    directory = sys.argv[1]
    runs = read(directory, "runs.tsv")
    text = "# Measured\n\n"
    with open(os.path.join(directory, "machine.txt")) as f:
        text += "```\n" + f.read() + "```\n"

    rows = [r for r in runs if r["part"] == "main"]
    points = {}
    if rows:
        tables, points, modes, clients = main_tables(rows)
        text += ("\n## One row on each of two clusters\n\nMedian of the "
                 "rounds (lowest–highest); ratios are taken within a round. "
                 "CPU: per transaction, of client, clusters and broker "
                 "together; it moves less with what else the machine does.\n"
                 + tables)
        others = [x for (mode, _), p in points.items()
                  if not mode.startswith(("writeup", "pgbench"))
                  for x in p.others]
        if others:
            text += (f"\nProcesses that are not part of this took "
                     f"{100 * min(others):.0f}–{100 * max(others):.0f} % "
                     f"(median {100 * statistics.median(others):.0f} %) of "
                     "the machine's CPU time meanwhile.\n")
    rows = [r for r in runs if r["part"] == "slow"]
    if rows:
        text += ("\n## The same, where a flush takes 2 ms longer\n\n"
                 "With 32 prepare and 16 resolve workers: each waits for "
                 "its flush.\n"
                 + main_tables(rows)[0])
    counts = read(directory, "counts.tsv")
    if counts:
        text += "\n## Counts\n\n" + count_table(counts)
        text += "\n" + spent_table(counts)
    rows = read(directory, "broker.tsv")
    if rows:
        text += ("\n## The broker's CPU time for one message of the "
                 "protocol\n\n" + table(["", "µs"],
                 [[r["message"], r["cpu_us"]] for r in rows]))
    for part, title in PARTS.items():
        rows = [r for r in runs if r["part"] == part]
        if rows:
            text += f"\n## {title}\n\n" + part_table(rows)
    rows = read(directory, "bystanders.tsv")
    if rows:
        text += ("\n## Transactions that do not use it\n\n" +
                 bystander_table(rows))
    rows = read(directory, "instructions.tsv")
    if len(rows) == 2:
        a, b = (int(r["instructions"]) for r in rows)
        text += (f"\nInstructions of BEGIN, UPDATE, COMMIT (callgrind): "
                 f"{a} without the library, {b} with it: "
                 f"{100 * (b - a) / a:+.2f} %.\n")
    rows = read(directory, "doubt.tsv")
    if rows:
        text += "\n## Branches in doubt at restart\n\n" + table(
            ["broker's data", "branches", "seconds until all are finished",
             "per second"],
            [[r["broker"], r["branches"], r["seconds"], r["per_second"]]
             for r in rows])
    with open(os.path.join(directory, "summary.md"), "w") as f:
        f.write(text)
    print(text)
    if points:
        plot(directory, points, modes, clients)


if __name__ == "__main__":
    main()
