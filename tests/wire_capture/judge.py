"""Judges a capture: is a recorded text in it, and what are its packets?

    judge.py --self-test      makes a capture by hand and bends it in every way that matters: the judge must see each

Invariant: a packet counts as WireGuard only if its type, its reserved bytes, its length and its index are right, the index having been
announced by the end that the packet goes to. A text is in a capture if 8 bytes in a row of it are in any frame, headers included.
Called by `run.py`. The last line of the self-test is `N passed, M failed`; the exit status is 0 only if M is 0.
"""

import os
import random
import struct
import sys
import tempfile
from collections import Counter

from capture import read_records, write_records

WINDOW_BYTES = 8
CLASSIFIED_MIN = 0.95
# With nothing in the way only the windows that a packet's end cuts are missing.
FOUND_MIN = 0.95
FOUND_SHOWN_MAX = 8
DISCO_MAGIC = b"TS\xf0\x9f\x92\xac"
DISCO_BYTES_MIN = len(DISCO_MAGIC) + 32 + 24 + 16  # key, nonce, tag
TCP, UDP = 6, 17
INITIATION, RESPONSE, COOKIE, DATA = 1, 2, 3, 4
HANDSHAKE_BYTES = {INITIATION: 148, RESPONSE: 92, COOKIE: 64}
WIREGUARD = {
    INITIATION: "WireGuard initiation",
    RESPONSE: "WireGuard response",
    COOKIE: "WireGuard cookie",
    DATA: "WireGuard data",
}
DISCO, CONTROL, OTHER = "disco", "control", "other"


def windows_of(text):
    return {text[at : at + WINDOW_BYTES] for at in range(len(text) - WINDOW_BYTES + 1)}


def parse(frame):
    """(protocol, source, destination, payload) of a frame, or None if it is neither TCP nor UDP over IP."""
    kind, packet = frame[12:14], frame[14:]
    if kind == b"\x08\x00" and len(packet) >= 20:
        header, end, protocol = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big"), packet[9]
        source, destination = packet[12:16], packet[16:20]
    elif kind == b"\x86\xdd" and len(packet) >= 40:
        header, end, protocol = 40, 40 + int.from_bytes(packet[4:6], "big"), packet[6]
        source, destination = packet[8:24], packet[24:40]
    else:
        return None
    segment = packet[header:end]
    if protocol == UDP and len(segment) >= 8:
        payload = segment[8:]
    elif protocol == TCP and len(segment) >= 20:
        payload = segment[(segment[12] >> 4) * 4 :]
    else:
        return None
    from_port, to_port = struct.unpack_from("!HH", segment)
    return protocol, (source, from_port), (destination, to_port), payload


def where_of(frame):
    parsed = parse(frame)
    return f"protocol {parsed[0]} from port {parsed[1][1]} to port {parsed[2][1]}" if parsed else "what is no TCP or UDP"


class Verdict:
    """What a capture holds."""

    def __init__(self, path, texts, control_port):
        self.packets, self.bytes = Counter(), Counter()
        self.others = Counter()
        self.windows = set().union(*(windows_of(text) for text in texts))
        self.found = set()
        self.found_in = Counter()
        self.announced = set()
        self.control_port = control_port
        for gso_bytes, frame in read_records(path):
            self._search(frame)
            self._count(gso_bytes, frame)

    def _search(self, frame):
        for at in range(len(frame) - WINDOW_BYTES + 1):
            window = frame[at : at + WINDOW_BYTES]
            if window in self.windows:
                self.found.add(window)
                self.found_in[f"{window!r} in {where_of(frame)}, at byte {at}"] += 1

    def _count(self, gso_bytes, frame):
        parsed = parse(frame)
        if parsed is None:
            self._add(OTHER, len(frame), "frame that is neither TCP nor UDP")
            return
        protocol, source, destination, payload = parsed
        step = gso_bytes or max(len(payload), 1)
        for at in range(0, max(len(payload), 1), step):
            part = payload[at : at + step]
            if protocol == UDP:
                name = self._datagram(source, destination, part)
                why = f"UDP to port {destination[1]}"
            else:
                name = CONTROL if self.control_port in (source[1], destination[1]) else OTHER
                why = f"TCP between ports {source[1]} and {destination[1]}"
            self._add(name, len(part), why)

    def _add(self, name, size, why):
        self.packets[name] += 1
        self.bytes[name] += size
        if name == OTHER:
            self.others[why] += 1

    def _datagram(self, source, destination, payload):
        if payload.startswith(DISCO_MAGIC) and len(payload) >= DISCO_BYTES_MIN:
            return DISCO
        if len(payload) < 16 or payload[1:4] != b"\0\0\0" or payload[0] not in WIREGUARD:
            return OTHER
        kind = payload[0]
        right = len(payload) % 16 == 0 and len(payload) >= 32 if kind == DATA else len(payload) == HANDSHAKE_BYTES[kind]
        if not right:
            return OTHER
        if kind != INITIATION:
            receiver = payload[8:12] if kind == RESPONSE else payload[4:8]
            if (destination, receiver) not in self.announced:
                return OTHER
        if kind in (INITIATION, RESPONSE):
            self.announced.add((source, payload[4:8]))
        return WIREGUARD[kind]

    def table(self):
        lines = [f"{'':24}{'packets':>9}{'payload bytes':>15}"]
        for name in [*WIREGUARD.values(), DISCO, CONTROL, OTHER]:
            lines.append(f"{name:24}{self.packets[name]:>9,}{self.bytes[name]:>15,}")
        lines += [f"  other: {count:,} x {why}" for why, count in sorted(self.others.items())]
        return "\n".join(lines)

    def places(self):
        """Where the text was found, some of them."""
        return [f"  found: {what}" for what, _ in self.found_in.most_common(FOUND_SHOWN_MAX)]

    def classified(self):
        total = sum(self.packets.values())
        return (total - self.packets[OTHER]) / total if total else 0.0

    def found_share(self):
        return len(self.found) / len(self.windows)

    def checks_of_tunnel(self, lost, sent_bytes):
        """What must be true of a capture of the recorder: (what, whether) pairs."""
        data_bytes = self.bytes[WIREGUARD[DATA]]
        return [
            (f"no packet was lost to the capture ({lost})", lost == 0),
            (f"{data_bytes:,} bytes of WireGuard data are in it, for {sent_bytes:,} recorded bytes", data_bytes > sent_bytes),
            (f"of {len(self.windows):,} runs of 8 recorded bytes {len(self.found):,} are in it", not self.found),
            (
                f"{self.classified():.2%} of the packets are WireGuard, disco or control",
                self.classified() > CLASSIFIED_MIN,
            ),
        ]

    def checks_of_bypass(self, lost):
        """What must be true of a capture of the same uploads without WireGuard."""
        return [
            (f"without WireGuard no packet was lost to the capture ({lost})", lost == 0),
            (
                f"without WireGuard {len(self.found):,} of {len(self.windows):,} runs of 8 recorded bytes are in it",
                self.found_share() > FOUND_MIN,
            ),
            ("without WireGuard no packet counts as WireGuard", not any(self.packets[name] for name in WIREGUARD.values())),
        ]


LOOPBACK = bytes([127, 0, 0, 1])
A, B, CONTROL_PORT = 4001, 4002, 8080


def frame_of(protocol, from_port, to_port, payload):
    ports = struct.pack("!HH", from_port, to_port)
    head = ports + struct.pack("!HH", 8 + len(payload), 0) if protocol == UDP else ports + bytes(8) + b"\x50" + bytes(7)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(head) + len(payload), 0, 0, 64, protocol, 0)
    return bytes(12) + b"\x08\x00" + ip + LOOPBACK + LOOPBACK + head + payload


def good_capture(noise):
    """A session between ports A and B: handshake, data both ways, some of it in one piece for many, disco and control."""
    draw = noise.randbytes
    initiation = b"\1\0\0\0AAAA" + draw(140)
    response = b"\2\0\0\0BBBBAAAA" + draw(80)
    frames = [(0, frame_of(UDP, A, B, initiation)), (0, frame_of(UDP, B, A, response))]
    data = lambda index, size: b"\4\0\0\0" + index + draw(size - 8)
    frames += [(0, frame_of(UDP, A, B, data(b"BBBB", 1440))) for _ in range(60)]
    frames += [(0, frame_of(UDP, B, A, data(b"AAAA", 96))) for _ in range(30)]
    pieces = b"".join(data(b"BBBB", 1440) for _ in range(9)) + data(b"BBBB", 480)
    frames += [(1440, frame_of(UDP, A, B, pieces))]
    frames += [(0, frame_of(UDP, A, B, DISCO_MAGIC + draw(100)))]
    frames += [(0, frame_of(TCP, 5000, CONTROL_PORT, draw(300))), (0, frame_of(TCP, CONTROL_PORT, 5000, b""))]
    return frames


def self_test():
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"self-test of the judge, seed {seed}")
    noise = random.Random(seed)
    text = bytes(noise.choices(b"abcdefghijklmnopqrstuvwxyz ", k=5000))
    good = good_capture(noise)
    in_data = good[10][1]
    with_text = lambda at: [(0, in_data[:at] + text[2000 : 2000 + WINDOW_BYTES] + in_data[at + WINDOW_BYTES :])]
    foreign = lambda payload: [(0, frame_of(UDP, A, B, payload))] * 6
    bent = {
        "eight recorded bytes in a packet": good + with_text(100),
        "eight recorded bytes at a packet's end": good + with_text(len(in_data) - WINDOW_BYTES),
        "eight recorded bytes in a control packet": good + [(0, frame_of(TCP, 5000, CONTROL_PORT, b"x" + text[:8]))],
        "eight recorded bytes in what is no IP": good + [(0, bytes(14) + text[-8:])],
        "data for an index that nobody announced": good + foreign(b"\4\0\0\0CCCC" + bytes(88)),
        "data for an index that the other end announced": good + foreign(b"\4\0\0\0AAAA" + bytes(88)),
        "data with reserved bytes that are not zero": good + foreign(b"\4\0\1\0BBBB" + bytes(88)),
        "data of a length that WireGuard does not pad to": good + foreign(b"\4\0\0\0BBBB" + bytes(89)),
        "a handshake of a wrong length": good + foreign(b"\1\0\0\0DDDD" + bytes(139)),
        "a type that WireGuard has not": good + foreign(b"\5\0\0\0BBBB" + bytes(88)),
        "a disco head without its box": good + foreign(DISCO_MAGIC + bytes(20)),
        "TCP that does not go to control": good + [(0, frame_of(TCP, 5000, 80, b"GET"))] * 6,
        "one piece for many with six strange ones in it": good + [(96, frame_of(UDP, A, B, bytes(96 * 6)))],
        "no handshake": good[2:],
        "fewer bytes than were recorded": [*good[:12], *good[-3:]],
        "nothing": [],
    }
    checks = []
    with tempfile.TemporaryDirectory() as work:
        path = os.path.join(work, "capture")

        def refused(frames, lost=0):
            write_records(path, frames)
            verdict = Verdict(path, [text], CONTROL_PORT)
            return not all(true for _, true in verdict.checks_of_tunnel(lost, 50_000))

        checks.append(("a good capture is accepted", not refused(good)))
        checks.append(("a capture with lost packets is refused", refused(good, lost=1)))
        checks += [(f"refused: {what}", refused(frames)) for what, frames in bent.items()]

        def found(frames):
            write_records(path, frames)
            return all(true for _, true in Verdict(path, [text], CONTROL_PORT).checks_of_bypass(0))

        halves = [(0, frame_of(TCP, 5000, 80, text[:2500])), (0, frame_of(TCP, 5000, 80, text[2500:]))]
        checks.append(("the whole text in two packets is found", found(halves)))
        checks.append(("half of the text is not enough", not found(halves[:1])))
        checks.append(("the whole text beside WireGuard is not the bypass", not found(halves + good)))
    return report(checks)


def report(checks):
    """Prints what was found and the closing line; 0 if all is true."""
    for what, true in checks:
        print(f"{'ok    ' if true else 'FAILED'} {what}")
    failed = sum(not true for _, true in checks)
    print(f"{len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:] != ["--self-test"]:
        sys.exit("usage: judge.py --self-test")
    sys.exit(self_test())
