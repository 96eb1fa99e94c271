"""Every packet on the loopback of this network namespace, as the kernel hands it on, and how it is kept in a file.

Invariant: what was sent while a Sniffer is open is in its file, once, or it says how many packets it lost. `run.py` captures with it,
`judge.py` reads the file. A record is: length (u32), the kernel's virtio_net_hdr (10 bytes), the Ethernet frame.
"""

import os
import socket
import struct
import threading

ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_STATISTICS = 6
PACKET_VNET_HDR = 15
# Loopback shows each packet twice, as it leaves and as it arrives.
PACKET_OUTGOING = 4
RECEIVE_BUFFER_BYTES = 64 << 20
FRAME_BYTES_MAX = 1 << 17
LENGTH = struct.Struct("<I")
VNET_HDR = struct.Struct("<BBHHHH")


class Sniffer:
    """Captures from its making until `close`, into `path`."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        # Tells how the kernel would have cut a packet that was handed to it in one piece for many.
        self.socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self.socket.bind(("lo", 0))
        self.socket.settimeout(0.1)
        self.file = open(path, "wb")
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        while True:
            # Read first: what had arrived when the closing began is still read.
            closing = self.closing.is_set()
            try:
                record, address = self.socket.recvfrom(FRAME_BYTES_MAX)
            except TimeoutError:
                if closing:
                    return
                continue
            if address[2] == PACKET_OUTGOING:
                self.file.write(LENGTH.pack(len(record)) + record)

    def close(self):
        """Ends the capture; the number of packets that the kernel could not keep for it."""
        self.closing.set()
        self.thread.join()
        self.file.close()
        statistics = self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        self.socket.close()
        return struct.unpack("=II", statistics)[1]


def write_records(path, frames):
    """Writes (gso size, frame) pairs as a Sniffer does; for captures made by hand."""
    with open(path, "wb") as file:
        for gso_bytes, frame in frames:
            record = VNET_HDR.pack(0, 0, 0, gso_bytes, 0, 0) + frame
            file.write(LENGTH.pack(len(record)) + record)


def read_records(path):
    """The (gso size, frame) pairs of a file; gso size 0: the frame is one packet."""
    with open(path, "rb") as file:
        left = os.fstat(file.fileno()).st_size
        while left:
            (length,) = LENGTH.unpack(file.read(LENGTH.size))
            record = file.read(length)
            left -= LENGTH.size + length
            _, _, _, gso_bytes, _, _ = VNET_HDR.unpack_from(record)
            yield gso_bytes, record[VNET_HDR.size :]
