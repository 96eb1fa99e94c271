"""The sockets of a process, as the kernel has them.

Invariant: a socket that no table explains is a finding, never passed over. Called by `run.py` with the recorder's process.
"""

import os
import re

SOCKET = re.compile(r"^socket:\[(\d+)\]$")
TCP_LISTEN = "0A"  # include/net/tcp_states.h
UNIX_LISTENING = 1 << 16  # __SO_ACCEPTCON
# In all but unix the columns are: slot, local address, remote address, state, ..., inode as the tenth.
INODE_COLUMN, STATE_COLUMN, LOCAL_COLUMN = 9, 3, 1
IP_TABLES = ("tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6")


def inodes_of(pid):
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            match = SOCKET.match(os.readlink(f"/proc/{pid}/fd/{name}"))
        except FileNotFoundError:
            continue  # Closed since the listing.
        if match:
            found.add(match.group(1))
    return found


def rows(pid, table):
    try:
        with open(f"/proc/{pid}/net/{table}") as file:
            return [line.split() for line in file.readlines()[1:]]
    except FileNotFoundError:
        return []  # A kernel without this protocol.


def checks_of_sockets(pid, path):
    """What must be true of a recorder whose Unix socket is at `path`: (what, whether) pairs."""
    unexplained = inodes_of(pid)
    of_process = {}
    for table in IP_TABLES:
        of_process[table] = [row for row in rows(pid, table) if row[INODE_COLUMN] in unexplained]
    of_process["unix"] = [row for row in rows(pid, "unix") if row[6] in unexplained]
    for table, found in of_process.items():
        unexplained -= {row[6] if table == "unix" else row[INODE_COLUMN] for row in found}

    listening = [row for table in ("tcp", "tcp6") for row in of_process[table] if row[STATE_COLUMN] == TCP_LISTEN]
    connected = [row for table in ("tcp", "tcp6") for row in of_process[table] if row[STATE_COLUMN] != TCP_LISTEN]
    udp = {table: [row[LOCAL_COLUMN] for row in of_process[table]] for table in ("udp", "udp6")}
    other = [table for table in IP_TABLES[4:] if of_process[table]]
    unix_listening = [" ".join(row[7:]) for row in of_process["unix"] if int(row[3], 16) & UNIX_LISTENING]
    return [
        (f"serve listens on no TCP port ({len(listening)}), and follows control ({len(connected)})", not listening and bool(connected)),
        (f"serve has one UDP socket per family at most, and one at least ({udp})", any(udp.values()) and all(len(of) <= 1 for of in udp.values())),
        (f"serve's only listening Unix socket is its own ({unix_listening})", unix_listening == [path]),
        (f"serve has no other kind of socket ({other}, {len(unexplained)} that no table explains)", not other and not unexplained),
    ]
