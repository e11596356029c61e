#!/usr/bin/env python3
"""Draws flame graphs as SVG from the output of `perf script`.

    perf script --show-task-events --fields comm,pid,tid,ip,sym ... | flamegraph.py DIRECTORY

Writes DIRECTORY/all.svg, a graph of each program with at least one percent of all samples, and
shares.txt. A frame's width is its part of the samples; its title has the numbers. No script is in the
graphs. `flamegraph.py --test` checks this program.
"""

import html
import re
import sys
from collections import Counter
from pathlib import Path

WIDTH = 1200
ROW = 17
LETTER = 7
SMALLEST = 0.3
IDLE = {"swapper"}
# Threads have names of their own: a program is named after the first thread of its process.
COMMAND = re.compile(r"PERF_RECORD_COMM(?: exec)?: (.*):(\d+)/(\d+)\s*$")
HEAD = re.compile(r"^(.*?)\s+(\d+)/(\d+)\s*$")
KERNEL = "ffff"
PAGE_TABLES = re.compile(
    r"copy_page_range|copy_pte_range|dup_mm|dup_mmap|wp_page_copy|do_wp_page|unmap_page_range|zap_pte"
    r"|flush_tlb|tlb_flush|tlb_finish|native_flush_tlb|smp_call_function_many"
)


def samples(lines):
    """Gives the program and the stack, root first, of each sample."""
    names, head, stack = {}, None, []

    def sample():
        comm, pid = head
        return names.get(pid, comm), tuple(reversed(stack))

    for line in lines:
        line = line.rstrip("\n")
        command = COMMAND.search(line)
        if command:
            name, pid, tid = command.groups()
            if pid == tid:
                names[pid] = name
        elif "PERF_RECORD_" in line:
            continue
        elif not line.strip():
            if head:
                yield sample()
            head, stack = None, []
        elif not line[0].isspace():
            found = HEAD.match(line)
            head = found.groups()[:2] if found else None
        else:
            fields = line.split(None, 1)
            name = fields[1] if len(fields) > 1 else "[unknown]"
            name = re.sub(r"::h[0-9a-f]{16}$", "", name)
            stack.append(name + "_[k]" if fields[0].startswith(KERNEL) else name)
    if head:
        yield sample()


def tree(stacks):
    """Adds up stacks: a node is [number of samples, children by name]."""
    root = [0, {}]
    for stack, count in stacks.items():
        root[0] += count
        node = root
        for name in stack:
            node = node[1].setdefault(name, [0, {}])
            node[0] += count
    return root


def depth(node):
    return 1 + max((depth(child) for child in node[1].values()), default=0)


def colour(name):
    """Frames of one function have one colour; those of the kernel are blue."""
    value = sum(ord(letter) * (at + 1) for at, letter in enumerate(name))
    hue = 205 + value % 20 if name.endswith("_[k]") else 20 + value % 35
    return f"hsl({hue},75%,{62 + value % 12}%)"


def frames(node, name, left, level, scale, total, height, into):
    width = node[0] * scale
    if width < SMALLEST:
        return
    top = height - (level + 1) * ROW
    text = html.escape(name)
    percent = 100 * node[0] / total
    shown = html.escape(name[: int(width / LETTER)]) if width > 3 * LETTER else ""
    into.append(
        f'<g><title>{text}: {node[0]} samples, {percent:.2f} %</title>'
        f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{ROW - 1}" fill="{colour(name)}"/>'
        f'<text x="{left + 3:.1f}" y="{top + 12}">{shown}</text></g>'
    )
    for child in sorted(node[1]):
        frames(node[1][child], child, left, level + 1, scale, total, height, into)
        left += node[1][child][0] * scale


def svg(title, stacks):
    root = tree(stacks)
    height = (depth(root) + 1) * ROW
    into = []
    frames(root, title, 0.0, 0, WIDTH / max(root[0], 1), max(root[0], 1), height, into)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="monospace" font-size="11">{"".join(into)}</svg>\n'
    )


def shares(by_program):
    total = sum(sum(stacks.values()) for stacks in by_program.values())
    lines = [f"{total} samples of busy processors", f"{'program':<20} {'part':>7} {'page tables':>12}"]
    ranked = sorted(by_program.items(), key=lambda item: -sum(item[1].values()))
    for program, stacks in ranked:
        count = sum(stacks.values())
        of_tables = sum(
            number
            for stack, number in stacks.items()
            if any(PAGE_TABLES.search(name) for name in stack)
        )
        lines.append(f"{program:<20} {100 * count / total:>6.1f}% {100 * of_tables / count:>11.1f}%")
    return "\n".join(lines) + "\n"


def write(lines, directory):
    by_program = {}
    for program, stack in samples(lines):
        if program not in IDLE:
            by_program.setdefault(program, Counter())[stack] += 1
    if not by_program:
        sys.exit("no sample: was the machine idle?")
    together = Counter()
    for program, stacks in by_program.items():
        for stack, count in stacks.items():
            together[(program, *stack)] += count
    (directory / "all.svg").write_text(svg("all", together))
    total = sum(together.values())
    for program, stacks in by_program.items():
        if sum(stacks.values()) * 100 >= total:
            name = re.sub(r"[^A-Za-z0-9._-]", "_", program)
            (directory / f"{name}.svg").write_text(svg(program, stacks))
    (directory / "shares.txt").write_text(shares(by_program))


def test():
    text = """\
process_api     0/0     PERF_RECORD_COMM exec: boxd:12/12
boxd     12/13     PERF_RECORD_COMM: worker:12/13
swapper     0/0     PERF_RECORD_FORK(2:2):(0:0)
worker 12/13
\tffffffff817aadb4 dup_mmap
\tffffffff817aadb0 copy_process
\t           f8090 boxd::start::h0123456789abcdef

boxd 12/12
\t            7f10 main <loop>

a name with spaces 40/41
\t            7f10 work

swapper     0/0
\tffffffff81000000 native_safe_halt

"""
    found = list(samples(text.splitlines(keepends=True)))
    assert found[0] == ("boxd", ("boxd::start", "copy_process_[k]", "dup_mmap_[k]")), found
    programs = [program for program, _ in found]
    assert programs == ["boxd", "boxd", "a name with spaces", "swapper"], found
    stacks = Counter(stack for program, stack in found if program == "boxd")
    root = tree(stacks)
    assert root[0] == 2 and set(root[1]) == {"boxd::start", "main <loop>"}, root
    assert depth(root) == 4
    drawn = svg("boxd", stacks)
    assert "main &lt;loop&gt;: 1 samples, 50.00 %" in drawn, drawn
    assert drawn.count("<g>") == drawn.count("</g>") == 5, drawn
    assert "50.0%" in shares({"boxd": stacks}).splitlines()[2], shares({"boxd": stacks})


if __name__ == "__main__":
    if sys.argv[1:] == ["--test"]:
        test()
    elif len(sys.argv) == 2:
        write(sys.stdin, Path(sys.argv[1]))
    else:
        sys.exit(__doc__)
