"""Judges the order of system calls of journal commits and of the seal, in a trace by strace.

    strace_commit.py TRACE WRITES      TRACE: strace -f -y -o; WRITES: what the example ingest_loopback printed
    strace_commit.py --self-test TRACE WRITES      bends the trace in every way that matters: the judge must see each

For each upload the order must be: write of its bytes to a staged file, fsync of that file, link (or rename) to the final name,
fsync of the directory, and only then the first ack on a socket that covers a byte of it. One call is before another only if
it returned before the other began. Every directory up to the store's root must have been fsynced after its entry was made.
The last line of stdout is `N passed, M failed`; the exit status is 0 only if M is 0.
"""

import os
import re
import sys

LINE = re.compile(r"^(\d+) +(.*)$")
RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>(.*)$")
CALL = re.compile(r"^(\w+)\((.*)\)\s+= (-?\d+)", re.S)
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"(\.\.\.)?')
FD = re.compile(r"^\d+<([^>]*)>")
ACK = re.compile(r'\{\\"ack\\":(\d+)\}')
WRITES_TO_FILE = ("write", "writev", "pwrite64")
WRITES_TO_SOCKET = ("write", "writev", "sendto", "sendmsg")
SYNCS = ("fsync", "fdatasync")
MOVES = ("link", "linkat", "rename", "renameat", "renameat2")


class Call:
    """One system call: its name, arguments, result, and the lines where it began and returned."""

    def __init__(self, name, arguments, result, began, returned):
        self.name, self.arguments, self.result = name, arguments, result
        self.began, self.returned = began, returned
        fd = FD.match(arguments)
        self.path = fd.group(1) if fd else None
        self.strings = [found.group(1) for found in STRING.finditer(arguments)]
        self.cut = any(found.group(2) for found in STRING.finditer(arguments))

    def on_socket(self):
        return self.path is not None and self.path.startswith(("socket:", "TCP"))

    def acks(self):
        """The offsets of the ack frames in it, if it writes to a socket."""
        if self.name not in WRITES_TO_SOCKET or not self.on_socket():
            return []
        return [int(offset) for offset in ACK.findall(self.arguments)]


def calls_of(lines):
    """The calls that returned with success, in the order in which they began."""
    calls, open_calls = [], {}
    for at, line in enumerate(lines):
        parts = LINE.match(line)
        if not parts:
            continue
        thread, text = parts.groups()
        began = at
        resumed = RESUMED.match(text)
        if resumed:
            began, head = open_calls.pop(thread, (at, resumed.group(1) + "("))
            text = head + resumed.group(2)
        elif text.endswith("<unfinished ...>"):
            open_calls[thread] = (at, text[: -len("<unfinished ...>")].rstrip())
            continue
        call = CALL.match(text)
        if call and int(call.group(3)) >= 0:
            calls.append(Call(call.group(1), call.group(2), int(call.group(3)), began, at))
    return sorted(calls, key=lambda call: call.began)


def first(calls, after, wanted):
    return next((call for call in calls if call.began > after and wanted(call)), None)


class Verdict:
    """What was found: a line for each check, in the order of checking."""

    def __init__(self):
        self.lines = []

    def check(self, what, holds):
        self.lines.append((bool(holds), what))
        return bool(holds)

    def failed(self):
        return [what for holds, what in self.lines if not holds]


def judge_staging(verdict, calls, what, is_its_write):
    """Write, fsync, link, fsync of the directory. Gives the final name and the last call, or nothing."""
    write = first(calls, -1, is_its_write)
    if not verdict.check(f"{what}: its bytes are written to a file", write):
        return None
    staged = write.path
    pieces = [call for call in calls if call.name in WRITES_TO_FILE and call.path == staged]
    written = max(call.returned for call in pieces)
    move = first(calls, -1, lambda call: call.name in MOVES and call.strings[0] == staged)
    if not verdict.check(f"{what}: the staged file gets its final name", move):
        return None
    final = move.strings[1]
    fsync = first(calls, written, lambda call: call.name in SYNCS and call.path == staged)
    verdict.check(f"{what}: the staged file is fsynced between the last write and the {move.name}", fsync and fsync.returned < move.began)
    directory = os.path.dirname(final)
    fsync = first(calls, move.returned, lambda call: call.name in SYNCS and call.path == directory)
    if not verdict.check(f"{what}: its directory is fsynced after the {move.name}", fsync):
        return None
    return final, fsync


def judge_way_down(verdict, calls, what, final, before):
    """Every directory above has its entry on the disk, also if another process made it and died before the fsync."""
    child, root = os.path.dirname(final), final[: re.search(r"/(journal|recordings)/", final).start()]
    while child != root:
        directory = os.path.dirname(child)
        made = [call.returned for call in calls if call.name in ("mkdir", "mkdirat") and call.strings[0] == child]
        fsync = first(calls, max(made, default=-1), lambda call: call.name in SYNCS and call.path == directory)
        name = os.path.relpath(directory, root)
        verdict.check(f"{what}: the directory {name} is fsynced first", fsync and fsync.returned < before)
        child = directory


def judge(trace, writes):
    calls, verdict = calls_of(trace), Verdict()
    cut = [call for call in calls if call.cut and call.name in WRITES_TO_SOCKET and (call.on_socket() or "/journal/" in call.path)]
    verdict.check("no write that matters is cut short in the trace", not cut)
    for line in writes:
        _, start, end, text = line.split()
        what = f"bytes {start}..{end}"
        ack = first(calls, -1, lambda call: any(offset > int(start) for offset in call.acks()))
        verdict.check(f"{what}: an ack covers them", ack and max(ack.acks()) == int(end))
        durable = judge_staging(
            verdict, calls, what, lambda call: call.name in WRITES_TO_FILE and "/journal/" in (call.path or "") and text in call.arguments
        )
        if durable and ack:
            final, fsync = durable
            judge_way_down(verdict, calls, what, final, ack.began)
            verdict.check(f"{what}: the ack leaves only after the fsync of the directory returned", fsync.returned < ack.began)
    segment = judge_staging(
        verdict, calls, "segment", lambda call: call.name in WRITES_TO_FILE and re.search(r"/recordings/.*\.cast#\d+$", call.path or "")
    )
    manifest = judge_staging(
        verdict, calls, "manifest", lambda call: call.name in WRITES_TO_FILE and re.search(r"/recordings/.*\.json#\d+$", call.path or "")
    )
    if segment and manifest:
        final, _ = manifest
        named = first(calls, -1, lambda call: call.name in MOVES and call.strings[1] == final)
        judge_way_down(verdict, calls, "manifest", final, named.began)
        verdict.check("manifest: it gets its name only after its segment is durable", segment[1].returned < named.began)
    return verdict


def bent(trace):
    """The trace broken in one way each, and a part of the complaint that must follow."""

    def at(pattern, start=0):
        return next(at for at in range(start, len(trace)) if re.search(pattern, trace[at]))

    def without(index):
        return trace[:index] + trace[index + 1 :]

    def moved(index, to):
        rest = without(index)
        return rest[:to] + [trace[index]] + rest[to:]

    ack = at(r'\{\\"ack\\":[1-9]')
    write = at(r'write\(\d+<\S*/journal/\S*/0000000001#')
    fsync = at(r"fsync\(\d+<\S*/0000000001#", write)
    link = at(r"link(at)?\(.*/0000000001#", fsync)
    directory = at(r"fsync\(\d+<\S*/journal/[^#]*>\) += 0", link)
    cast, manifest = at(r"link(at)?\(.*\.cast#"), at(r"link(at)?\(.*\.json#")
    unfinished = re.sub(r"\) += 0$", " <unfinished ...>", trace[directory])
    resumed = re.sub(r" .*", " <... fsync resumed>) = 0", trace[directory])
    yield "an ack before the commit", moved(ack, write), "the ack leaves only after"
    yield "an ack before the fsync of the directory", moved(ack, directory), "the ack leaves only after"
    slow = trace[:directory] + [unfinished] + trace[directory + 1 : ack + 1] + [resumed] + trace[ack + 1 :]
    yield "an ack while the fsync of the directory runs", slow, "the ack leaves only after"
    yield "no fsync of the file", without(fsync), "between the last write"
    yield "a failed fsync of the file", [line.replace(" = 0", " = -1 EIO (Input/output error)") if at == fsync else line for at, line in enumerate(trace)], "between the last write"
    yield "the link before the fsync of the file", moved(link, fsync), "between the last write"
    yield "a write after the fsync of the file", moved(write, fsync + 1), "between the last write"
    # The fsync of the next commit comes too late for this one's ack.
    yield "no fsync of the directory", without(directory), "the ack leaves only after"
    yield "the fsync of the directory before the link", moved(directory, link), "the ack leaves only after"
    never = [line for at, line in enumerate(trace) if at < link or not re.search(r"fsync\(\d+<\S*/journal/[^#]*>\)", line)]
    yield "no fsync of the directory ever", never, "its directory is fsynced after"
    above = [line for line in trace if not re.search(r"fsync\(\d+<\S*/journal>\)", line)]
    yield "no fsync of a directory above", above, "the directory journal is fsynced first"
    yield "no commit", without(write), "written to a file"
    yield "no link", without(link), "gets its final name"
    yield "no ack", [line for line in trace if '{\\"ack\\":' not in line], "an ack covers them"
    yield "an ack of too much", [re.sub(r'(\{\\"ack\\":)([1-9])', r"\g<1>9\2", line) for line in trace], "an ack covers them"
    yield "a write cut short in the trace", [line.replace('", iov_len', '"..., iov_len') for line in trace], "cut short"
    yield "the manifest before its segment", moved(manifest, cast), "only after its segment is durable"


def main(arguments):
    self_test = arguments[:1] == ["--self-test"]
    paths = arguments[1:] if self_test else arguments
    if len(paths) != 2:
        sys.exit(__doc__)
    trace, writes = ([line.rstrip("\n") for line in open(path, encoding="utf-8", errors="replace")] for path in paths)
    if not writes:
        sys.exit(f"{paths[1]}: no writes")
    verdict = judge(trace, writes)
    if self_test:
        good, verdict = verdict, Verdict()
        verdict.check(f"self-test: the good trace passes {good.failed() or ''}", not good.failed())
        for way, lines, complaint in bent(trace):
            seen = judge(lines, writes).failed()
            verdict.check(f"self-test: {way} is seen", any(complaint in what for what in seen))
    for holds, what in verdict.lines:
        print("ok    " if holds else "FAILED", what)
    failed = len(verdict.failed())
    print(f"{len(verdict.lines) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
