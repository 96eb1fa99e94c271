"""Records a session over each endpoint while everything on loopback is captured; then the same uploads with WireGuard bypassed.

    run.py TAILTAPE DEVNET_SENDER      inside a network namespace of its own

Invariant: the recorder is the shipped binary, in a process of its own; the texts are random, so nothing else on the wire can hold 8 bytes
of them. Called by `tests/wire_capture.sh`. The last line is `N passed, M failed`; the exit status is 0 only if M is 0.
"""

import atexit
import fcntl
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

from capture import Sniffer
from judge import Verdict, report
from sockets import checks_of_sockets

CAST_BYTES_MIN = 64 << 10
EVENT_BYTES_MIN = 8 << 10
PATIENCE = 30.0  # seconds; what takes longer is broken
LOOK_INTERVAL = 0.05
UPLOADS = ("record-v2", "record-v1", "event")
SIOCSIFFLAGS = 0x8914
IFF_UP = 1


def loopback_up():
    """A new network namespace has its loopback down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def child(arguments, **options):
    """A process that does not outlive this one."""
    started = subprocess.Popen(arguments, **options)
    atexit.register(started.kill)
    return started


def words(noise):
    """Random words with blanks between them, without an end."""
    while True:
        yield "".join(noise.choices("abcdefghijklmnopqrstuvwxyz", k=noise.randint(3, 11)))


def timestamp(noise):
    return noise.randint(1_600_000_000, 1_799_999_999)


def cast(noise, number):
    """An asciicast of at least CAST_BYTES_MIN, as a stock node sends it."""
    # Nothing that the HTTP of control says in the open: no run of zeros, as in its unset key, and no "connection".
    header = {"version": 2, "width": 80, "height": 24, "timestamp": timestamp(noise), "command": "", "srcNode": f"wire-{number}"}
    lines, size, source = [json.dumps(header)], 0, words(noise)
    while size < CAST_BYTES_MIN:
        text = " ".join(next(source) for _ in range(8)) + "\r\n"
        lines.append(json.dumps([round(len(lines) * 0.05, 3), "o", text]))
        size += len(lines[-1])
    return ("\n".join(lines) + "\n").encode()


def event(noise):
    """A report of one request, as a Kubernetes proxy sends it."""
    source = words(noise)
    request = " ".join(next(source) for _ in range(EVENT_BYTES_MIN // 8))
    return json.dumps({"timestamp": timestamp(noise), "kubernetes": {"IsResourceRequest": True}, "request": {"body": request}}).encode()


class Sender:
    """The example devnet_sender as a child."""

    def __init__(self, program, mode, directory):
        arguments = [program, mode, directory]
        self.child = child(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hello = self.answer()

    def answer(self):
        line = self.child.stdout.readline()
        if not line:
            sys.exit(f"devnet_sender ended with {self.child.wait()}")
        return json.loads(line)

    def send_all(self, files):
        for what, path in files.items():
            self.child.stdin.write(f"{what} {path}\n")
            self.child.stdin.flush()
            assert self.answer()["sent"] == what

    def end(self):
        self.child.stdin.close()
        return self.child.wait(PATIENCE)


class Recorder:
    """`tailtape serve` as a child, healthy."""

    def __init__(self, program, directory, hello):
        self.program, self.directory = program, directory
        self.socket = f"{directory}/state/tailtape.sock"
        self.environment = {"HOME": directory, "TAILTAPE_STATE": f"{directory}/state", "TAILTAPE_STORE": f"{directory}/store"}
        with open(f"{directory}/tailtape.toml", "w") as file:
            file.write(f'control_url = "{hello["control_url"]}"\nauth_key_file = "{directory}/auth-key"\ndisk_free_min = "0"\n')
        log = open(f"{directory}/log", "w")
        arguments = [program, "serve", "--config", f"{directory}/tailtape.toml"]
        self.child = child(arguments, stdin=subprocess.DEVNULL, stderr=log, env=self.environment)
        deadline = time.monotonic() + PATIENCE
        while self.command("health").returncode != 0:
            if self.child.poll() is not None or time.monotonic() > deadline:
                sys.exit("serve did not become healthy")
            time.sleep(LOOK_INTERVAL)

    def command(self, *arguments):
        return subprocess.run([self.program, *arguments], env=self.environment, capture_output=True, timeout=PATIENCE)

    def recorded(self):
        """The streams of all sealed recordings, by the tool that an operator has."""
        listed = self.command("ls", "--json").stdout.splitlines()
        return sorted(self.command("cat", json.loads(line)["id"]).stdout for line in listed)

    def end(self):
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait(PATIENCE)

    def events_hold(self, body):
        """Whether the store has the event's body as it was sent."""
        found = []
        for folder, _, names in os.walk(f"{self.directory}/store/events"):
            found += [open(os.path.join(folder, name), "rb").read() for name in names]
        return any(body in lines for lines in found)


def through_the_tunnel(tailtape, devnet_sender, work, files, texts):
    sniffer = Sniffer(f"{work}/tunnel.capture")
    try:
        sender = Sender(devnet_sender, "tunnel", work)
        recorder = Recorder(tailtape, work, sender.hello)
        sender.send_all(files)
        checks = checks_of_sockets(recorder.child.pid, recorder.socket)
        checks.append(("serve drains and ends well", recorder.end() == 0))
        checks.append(("the sender ends well", sender.end() == 0))
    finally:
        lost = sniffer.close()
    casts = sorted([texts["record-v1"], texts["record-v2"]])
    checks.append(("both sessions were recorded, byte for byte", recorder.recorded() == casts))
    checks.append(("the event was recorded, byte for byte", recorder.events_hold(texts["event"])))
    verdict = Verdict(f"{work}/tunnel.capture", texts.values(), sender.hello["control_port"])
    print("\n".join(["through the tunnel:", verdict.table(), *verdict.places()]))
    return checks + verdict.checks_of_tunnel(lost, sum(map(len, texts.values())))


def with_wireguard_bypassed(devnet_sender, work, files, texts):
    sniffer = Sniffer(f"{work}/plain.capture")
    try:
        sender = Sender(devnet_sender, "plain", work)
        sender.send_all(files)
        checks = [("without WireGuard the sender ends well", sender.end() == 0)]
    finally:
        lost = sniffer.close()
    verdict = Verdict(f"{work}/plain.capture", texts.values(), None)
    print("with WireGuard bypassed:\n" + verdict.table())
    return checks + verdict.checks_of_bypass(lost)


def main(tailtape, devnet_sender):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside: it took too long"))
    loopback_up()
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    noise = random.Random(seed)
    texts = {"record-v2": cast(noise, 2), "record-v1": cast(noise, 1), "event": event(noise)}
    with tempfile.TemporaryDirectory() as work:
        files = {what: f"{work}/{what}" for what in UPLOADS}
        for what, path in files.items():
            with open(path, "wb") as file:
                file.write(texts[what])
        try:
            checks = through_the_tunnel(tailtape, devnet_sender, work, files, texts)
        except BaseException:
            if os.path.exists(f"{work}/log"):
                with open(f"{work}/log") as log:
                    print(f"serve said:\n{log.read()}")
            raise
        checks += with_wireguard_bypassed(devnet_sender, work, files, texts)
    return report(checks)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: run.py TAILTAPE DEVNET_SENDER")
    sys.exit(main(*sys.argv[1:]))
