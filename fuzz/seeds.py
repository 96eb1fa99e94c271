#!/usr/bin/env python3
"""Writes the seeds of corpus/ that nobody could read: vectors from hexadecimal, and scripts (src/script.rs).

Inputs that once broke a decoder are beside them and are not made here. Run it after changing what a script means.
"""
import hashlib, pathlib, struct

CORPUS = pathlib.Path(__file__).parent / "corpus"
VECTORS = pathlib.Path(__file__).parent.parent / "tests" / "vectors"


def seed(target, name, data):
    path = CORPUS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def piece(data):
    data = data if isinstance(data, bytes) else data.encode()
    return struct.pack("<H", len(data)) + data


def u16(value):
    return struct.pack("<H", value & 0xFFFF)


# ts2021: what another implementation wrote.
INITIATION = bytes.fromhex(
    "0082010060358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254ad5b8febedeb97415be53612205e6bfab385e34c"
    "b127dd8854c4f9afb10f9b0e49945171d80e52b62b1cc7794ec92042d7380dba1e3c96fde099f9f4158e08ea")
RESPONSE = bytes.fromhex(
    "020030675dd574ed7789310b3d2e7681f3790b466c773b1521fecf36577958371ea52fc9dd7d78df78ba87d8e5e246ffc6af00")
HELLO = bytes.fromhex("040015dc192494126dbf7536fc5739545df3ba74e6dc4970040015d2340ad1e4312e8db9998d67f7fa32f131ac9d935b")
seed("noise_initiation", "vector", INITIATION)
seed("noise_initiation", "unbent", b"\0")
seed("noise_initiation", "bent_ephemeral", b"\1" + u16(36) + b"\x80" + b"\0")
seed("noise_initiation", "bent_twice_is_good", (b"\1" + u16(9) + b"\x01") * 2)
seed("noise_response", "vector", RESPONSE)
seed("noise_response", "error", b"\x03\0\x0fbad machine key")
seed("noise_response", "bent_tag", b"\1" + u16(50) + b"\x01")
seed("noise_records", "hello_hello", b"\x05\0" + HELLO)
seed("noise_records", "sealed", b"\x01\x01" + b"\0" + piece("hello") + b"\0" + piece("") + b"\1" + piece(b"x" * 4077))
seed("noise_records", "too_long", b"\x07\x01" + b"\0" + piece(b"x" * 4078) + b"\0" + piece("y"))
seed("noise_records", "bent", b"\x09\x01" + b"\0" + piece("hello") + b"\0" + piece("world") + b"\2" + u16(30) + b"\x40")
seed("noise_records", "cut", b"\x09\x01" + b"\0" + piece("hello") + b"\0" + piece("world") + b"\3" + u16(40))
seed("noise_records", "bent_length", b"\0\x01" + b"\0" + piece("hello") + b"\2" + u16(2) + b"\x01")
CHALLENGE = b'{"nodeKeyChallenge":"chalpub:' + b"ab" * 32 + b'"}'
seed("noise_early", "challenge", b"\xff\xff\xffTS" + struct.pack(">I", len(CHALLENGE)) + CHALLENGE + b"\0\0\0\x04\0\0\0\0\0")
seed("noise_early", "settings_at_once", b"\0\0\x12\x04\0\0\0\0\0" + b"\0\x03\0\0\0\x80")
seed("noise_early", "too_long", b"\xff\xff\xffTS\0\x01\0\x01{}")

# disco: NaCl boxes made outside of the project.
PING = bytes.fromhex("0100a0a1a2a3a4a5a6a7a8a9aaab7b0d47d93427f8311160781c7c733fd89f88970aef490d8aa0ee19a4cb8a1b14")
PONG = bytes.fromhex("0200a0a1a2a3a4a5a6a7a8a9aaab00000000000000000000ffffc0000205a2a9")
CALL = bytes.fromhex("030000000000000000000000ffffc0000205a2a920010db8000000000000000000000007a2a9")
PING_PACKET = bytes.fromhex(
    "5453f09f92ac7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13404142434445464748494a4b4c4d4e4f5051525354"
    "555657ff7b7796d541fe4d84bf274d86e488314ab6101442135f0c0e03dd96fe43e8d4f672e247a8603564c019be57a790d1e543c5902dd6a28b70"
    "33a3746e8ae4")
for name, payload in {"ping": PING, "ping_of_old_client": PING[:14], "pong": PONG, "call_me_maybe": CALL,
                      "call_me_maybe_odd": CALL[:-1], "unknown": b"\x04\x01xyz", "padded_ping": PING + bytes(64)}.items():
    seed("disco_message", name, payload)
seed("disco_datagram", "foreign_ping", PING_PACKET)
seed("disco_datagram", "sealed_ping", bytes(range(24)) + piece(PING))
seed("disco_datagram", "bent_box", bytes(24) + piece(PONG) + b"\0" + u16(70) + b"\x10")
seed("disco_datagram", "bent_sender", bytes(24) + piece(CALL) + b"\0" + u16(10) + b"\x10")

# STUN: a request and two answers made outside of the project, and the other forms of an address.
STUN_TXID = bytes(range(1, 13))
STUN_REQUEST = bytes.fromhex("000100142112a4420102030405060708090a0b0c802200087461696c6e6f646580280004b32c370f")
STUN_V4 = bytes.fromhex("00200008000183bbe112a647")
STUN_V6 = bytes.fromhex("00200014000283bb0113a9fa0102030405060708090a0b0b")
STUN_PLAIN = bytes.fromhex("000100080001a2a9c0000206")
def success(attributes):
    return bytes.fromhex("0101") + struct.pack(">H", len(attributes)) + bytes.fromhex("2112a442") + STUN_TXID + attributes
for name, attributes in {"v4": STUN_V4, "v6": STUN_V6, "early": b"\x80" + STUN_V4[1:], "plain": STUN_PLAIN, "both": STUN_PLAIN + STUN_V4,
                         "padded": bytes.fromhex("8022000561626364650000007777000000") + STUN_V4[1:], "empty": b"",
                         "family": STUN_V4[:5] + b"\x03" + STUN_V4[6:], "too_long": b"\0\x20\0\x09" + STUN_V4[4:]}.items():
    seed("stun_message", name, success(attributes))
seed("stun_message", "request", STUN_REQUEST)
seed("stun_message", "bent_request", STUN_TXID + b"\0\0" + b"\0" + u16(8) + b"\x01")
seed("stun_message", "bent_answer", STUN_TXID + b"\x09\x01" + b"\0" + u16(25) + b"\x03" + b"\0" + u16(1) + b"\x10")

# netcheck: src/netcheck.rs says what the numbers mean.
def regions(*told):
    return bytes([3 | len(told) << 3]) + b"".join(bytes([id, len(nodes) << 6 | flags]) + bytes(nodes) for id, flags, nodes in told)
millis = lambda time: b"\2" + u16(time)
answers = lambda *places: b"".join(bytes([1, place]) for place in places)
CONTROL_UP, ACTIVE, CHANGED, RELAY_FAILED, FULL = 0xBF, 0x1F, 0x07, 0x0F, 0x97
THREE = regions((1, 0, [8]), (2, 0, [16]), (3, 4, [24]))
seed("netcheck", "three_regions", b"\0" + bytes([CONTROL_UP]) + THREE + millis(20) + answers(9) + millis(30) + answers(9, 9) + millis(300))
seed("netcheck", "two_families", b"\2" + regions((1, 0, [13]), (2, 0, [21])) + millis(10) + answers(9, 12, 9, 12) + millis(400))
seed("netcheck", "no_udp", b"\0" + THREE + millis(3000) + b"\5" + u16(90) + b"\5" + u16(40) + b"\x45" + u16(0) + millis(2500))
seed("netcheck", "names", b"\2" + regions((1, 0, [2, 34]), (2, 0, [66])) + millis(40) + b"\x24\x09\x0c" + b"\x04" + millis(10) + answers(9, 9) + millis(4000))
seed("netcheck", "home_moves", b"\0" + bytes([CONTROL_UP]) + THREE + millis(20) + answers(9, 9, 9) + millis(100)
     + bytes([RELAY_FAILED]) + millis(2000) + answers(9) + millis(4000) + bytes([FULL]) + millis(5000))
seed("netcheck", "hard_nat_in_use", b"\4" + THREE + millis(5) + answers(3, 11, 19) + millis(50)
     + (bytes([ACTIVE]) + millis(27000) + answers(27, 35, 43)) * 4)
seed("netcheck", "network_changes", b"\0" + THREE + millis(20) + bytes([CHANGED]) + answers(9) + millis(1500) + answers(9, 9) + bytes([0x37, 2]) + millis(6000))
seed("netcheck", "map_changes", b"\0" + THREE + millis(20) + regions((2, 1, [16]), (3, 2, [24])) + answers(9) + millis(9000) + regions() + millis(100))
seed("netcheck", "foreign", b"\0" + THREE + b"\0" + piece(success(STUN_V4)) + b"\0" + piece(STUN_REQUEST) + answers(6, 7) + b"\0" + piece(b"") + millis(5000))

# control.
ACCEPTED = '{"User":{"ID":1,"DisplayName":"Ada"},"Login":{"ID":1,"LoginName":"ada@example.com"},"MachineAuthorized":true,"AuthURL":"","Error":""}'
SELF = '{"Node":{"ID":1,"StableID":"n1","Name":"rec.tail.test.","Addresses":["100.64.0.1/32"]}}'
def frame(json):
    return struct.pack("<I", len(json)) + json.encode()
def answer(code, *pieces):
    return bytes([code]) + b"".join(piece(part) for part in pieces)
seed("control_map", "self_then_delta", b"\x21" + b"\0".join(
    text.encode() for text in [SELF, '{"KeepAlive":true}', '{"PeersRemoved":[2]}']))
seed("control_map", "delta_first", b"\x05" + b'{"PeersRemoved":[2]}\0' + SELF.encode())
seed("control_map", "not_json", b"\x07" + SELF.encode() + b"\0nonsense")
seed("control_map", "key_expired", b"\x09" + b'{"Node":{"ID":1,"Expired":true}}\0' + SELF.encode())
seed("control_map", "framed", b"\x03" + frame(SELF) + frame('{"KeepAlive":true}'))
seed("control_map", "huge_frame", b"\x03" + frame(SELF) + b"\x01\0\0\x01{")
STREAM = b"\x80"  # time passes, and what is due is asked
seed("control_register", "accepted", b"\x01" + answer(0, ACCEPTED) + answer(0, "", frame(SELF)) + answer(0x10, ""))
seed("control_register", "stored_key", b"\x02" + answer(0, ACCEPTED) + answer(0, "", frame(SELF)))
seed("control_register", "expired_then_fresh", b"\x03" + answer(0, '{"NodeKeyExpired":true}') + answer(0, ACCEPTED))
seed("control_register", "login", b"\x00" + answer(0, '{"AuthURL":"https://login.example/a/1"}') + answer(0, ACCEPTED))
seed("control_register", "refused", b"\x01" + answer(0, '{"Error":"invalid key: \\u001b[2J"}') + STREAM + answer(0, ACCEPTED))
seed("control_register", "slow_down", b"\x01" + b"\x0e\x05" + piece("later") + STREAM + b"\x0e\0" + piece("") + STREAM)
seed("control_register", "version", b"\x01" + answer(3, "unsupported client version") + STREAM)
seed("control_register", "forgotten", b"\x03" + answer(0, ACCEPTED) + answer(5, "node not found") + STREAM + answer(0, '{"Error":"no"}') + STREAM)

# path: src/path.rs says what the numbers mean.
TELL, ROUTE, ANSWER, WAIT = 5, 3, 2, 4
tell = lambda one, other: bytes([TELL | 0x60, len(one)]) + bytes(one) + bytes([len(other)]) + bytes(other)
wait = lambda millis: bytes([WAIT]) + u16(millis)
says = lambda src, payload, who=0: bytes([1 | who << 7, src, 7]) + piece(payload)
seed("path", "found_and_lost", tell([9], [17]) + bytes([ROUTE, ANSWER, 9, ROUTE]) + wait(3000) + wait(7000) + wait(60000))
seed("path", "moves", tell([9, 17, 12], []) + bytes([ROUTE]) + wait(40) + bytes([ANSWER, 9]) + wait(5) + bytes([ANSWER, 9, ROUTE]) + wait(61000) + bytes([ROUTE, ANSWER, 9]))
seed("path", "pinged_first", tell([], []) + says(25, PING) + bytes([ANSWER, 25]) + says(25, PING) + says(13, PING, 1) + says(33, CALL) + says(6, PING))
seed("path", "held_handshake", tell([9], []) + bytes([6]) + piece(b"\x01" + bytes(147)) + bytes([ROUTE, ANSWER, 9]))
seed("path", "foreign", tell([9], []) + bytes([0, 9]) + piece(PING_PACKET) + bytes([0, 9]) + piece(PING_PACKET[:61]))
seed("path", "peer_leaves", tell([9], [17]) + bytes([ROUTE, ANSWER, 9]) + bytes([TELL]) + tell([9], []) + bytes([ROUTE]))
RELAY = 7
relay = lambda sub: bytes([RELAY | sub << 3])
relayed = lambda payload, region=900: relay(5) + u16(region) + b"\x07" + piece(payload)
seed("path", "called", tell([], []) + relay(0) + b"\x01" + relay(1) + b"\x02" + bytes([9, 17]) + bytes([ROUTE]) + relayed(CALL) + bytes([ANSWER, 9, ROUTE]) + wait(6500) + bytes([ROUTE]) + relay(3) + bytes([ROUTE]))
seed("path", "relayed_ping", tell([9], []) + relayed(PING) + relayed(CALL) + relayed(CALL) + wait(1000) + relayed(CALL) + relay(2) + b"\x09" + relay(4) + u16(900) + piece(PING_PACKET))
seed("path", "many_candidates", tell(range(1, 250), range(100, 250)) + bytes([ROUTE, ROUTE | 0x80]) + wait(5001) + bytes([ROUTE]))

# DERP: src/derp.rs says what the numbers mean.
SERVER_KEY = bytes.fromhex("010000002844455250f09f94910faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20")
CLIENT_INFO = bytes.fromhex(
    "02000000687b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13404142434445464748494a4b4c4d4e4f5051525354555657"
    "d5476cd4d77682a4708c8c12f764c8013094c6d092c392c6c6864f0d78cad0b8dfeab50b00384a63cb27f850ea3d2b10")
frame = lambda kind, payload=b"": bytes([kind]) + struct.pack(">I", len(payload)) + payload
A_KEY = bytes(range(32))
EVERY = [SERVER_KEY, CLIENT_INFO, frame(3, bytes(40)), frame(4, A_KEY + b"to"), frame(5, A_KEY + b"from"), frame(6), frame(7, b"\1"), frame(8, A_KEY),
         frame(8, A_KEY + b"\1"), frame(9, A_KEY + bytes(19)), frame(10, A_KEY * 2 + b"x"), frame(16), frame(17, A_KEY), frame(18, b"pingpong"),
         frame(19, b"pingpong"), frame(20, b"two of you"), frame(20), frame(21, struct.pack(">II", 1000, 5000))]
seed("derp_frame", "server_key", b"\0" + SERVER_KEY)
seed("derp_frame", "client_info", b"\0" + CLIENT_INFO)
seed("derp_frame", "every_kind", b"\x05" + b"".join(EVERY))
seed("derp_frame", "unknown_between", b"\x03" + frame(0x7F, bytes(300)) + frame(6) + frame(0xFE) + frame(18, b"12345678"))
seed("derp_frame", "too_long", b"\0" + b"\x04\x00\x01\x00\x21" + bytes(40))
seed("derp_frame", "cut", b"\0" + SERVER_KEY + frame(5, A_KEY + bytes(99))[:70])
seed("derp_frame", "server_info_json", b'\0{"version":2,"TokenBucketBytesPerSecond":1000,"TokenBucketBytesBurst":-5,"New":[1]}')
UP = bytes([10, 3, 4, 10, 5]) + u16(0) + u16(0) + bytes(24)
said = lambda kind, payload=b"": bytes([9, kind]) + piece(payload)
after = lambda millis: bytes([1]) + u16(millis)
seed("derp_client", "up_and_packets", UP + bytes([2]) + piece(b"hello") + bytes([10]) + said(5, A_KEY + b"answer") + bytes([6, 10, 7]))
seed("derp_client", "one_piece", bytes([0]) + piece(b"HTTP/1.1 101 x\r\n\r\n" + SERVER_KEY + frame(6) + frame(5, A_KEY)) + bytes([10]))
seed("derp_client", "refused", bytes([0]) + piece(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\nno \x1b[2J") + bytes([0]) + piece("no") + bytes([11]))
seed("derp_client", "endless_head", bytes([0]) + piece(b"HTTP/1.1 101 x\r\n" + b"A: " + b"b" * 3000) + (bytes([0]) + piece(b"c" * 4000)) * 4)
seed("derp_client", "slow", bytes([3]) + after(9999) + bytes([4]) + after(1))
seed("derp_client", "silent", UP + after(60000) + said(6) + after(60000) + after(59999) + after(1))
seed("derp_client", "no_pong", UP + bytes([6, 10]) + after(2999) + said(19, b"pingpong") + after(1))
seed("derp_client", "rate", bytes([10, 3, 4, 5]) + u16(100) + u16(200) + bytes(24) + (bytes([2]) + piece(b"x" * 60) + after(500)) * 6 + bytes([10]))
seed("derp_client", "floods", UP + bytes([12, 255]) + (bytes([2]) + piece("p")) * 40 + said(18, b"flooding") * 12 + bytes([10]))
seed("derp_client", "every_frame", UP + b"".join(said(one[0], one[5:]) for one in EVERY if one[0] != 3) + bytes([8, 24, 10]))
seed("derp_client", "two_keys", bytes([10, 3, 4, 4]) + bytes([5]) + u16(0) * 2 + bytes(24) + bytes([5]) + u16(9) * 2 + bytes(24) + bytes([10, 11, 11]))
seed("derp_client", "key_first", bytes([3]) + said(6))

# Inner packets, and WireGuard: src/wireguard.rs.
def ipv4(protocol, payload, src=1, dst=2):
    head = struct.pack(">BBHHHBBH4B4B", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0, 100, 64, 0, src, 100, 64, 0, dst)
    return head + payload
def ipv6(protocol, payload):
    address = lambda host: bytes.fromhex("fd7a115ca1e0") + bytes(9) + bytes([host])
    return struct.pack(">IHBB", 0x60000000, len(payload), protocol, 64) + address(1) + address(2) + payload
def tcp(flags, seq=0, ack=0, sport=40000, dport=80, options=b"", payload=b""):
    return struct.pack(">HHIIBBHHH", sport, dport, seq, ack, (20 + len(options)) // 4 << 4, flags, 65535, 0, 0) + options + payload
ECHO = bytes([8, 0, 0, 0, 0, 7, 0, 1]) + b"ping"
GO = 0x10  # deliver afterwards
seed("wireguard", "handshake_and_data", bytes([1 | GO]) + bytes([2 | GO]) + piece(ipv4(1, ECHO)) + bytes([3 | GO]) + piece(ipv4(17, bytes(8))) + bytes([5 | GO, 1]))
seed("wireguard", "bent_initiation", bytes([1]) + bytes([4 | GO]) + u16(20) + b"\x01")
seed("wireguard", "bent_mac", bytes([1]) + bytes([4 | GO]) + u16(120) + b"\x01")
seed("wireguard", "cut_data", bytes([1 | GO, 2]) + piece(ipv4(1, ECHO)) + bytes([12 | GO]) + u16(0) + b"\0" + u16(40))
seed("wireguard", "lost_and_late", bytes([1, 7, 1 | 8, 6 | GO]) + u16(6000) + bytes([2, 7 | GO]) + bytes([6 | GO]) + u16(20000))
seed("wireguard", "both_begin", bytes([1, 3]) + piece(ipv4(17, bytes(8))) + bytes([2 | GO]) + piece(ipv4(1, ECHO)))
seed("wireguard", "no_ip_inside", bytes([1 | GO, 2 | GO]) + piece(b"not an ip packet, though long enough") + bytes([2 | GO]) + piece(b"\x45\0\0\xff" + bytes(16)))
seed("wireguard", "longer_than_it_is", bytes([1 | GO, 2 | GO]) + piece(b"\x45\0\0\x20" + bytes(16)))
for name, kind, length in [("initiation", 1, 148), ("response", 2, 92), ("cookie", 3, 64), ("data", 4, 64), ("unknown", 5, 64), ("short", 1, 147)]:
    seed("wireguard", f"zeros_{name}", b"\x10" + piece(bytes([kind, 0, 0, 0]) + bytes(length - 4)))
seed("wireguard", "last_counter", bytes([1 | GO, 0 | GO]) + piece(b"\x04\0\0\0\0\x01\0\0" + b"\xff" * 8 + bytes(16)))

# TCP: src/tcpip.rs and src/segment.rs.
SYN, FIN, RST, PSH, ACK, URG = 2, 1, 4, 8, 16, 32
MSS = bytes.fromhex("020405b40402080a0f0e0d0c0000000001030307")
raw = lambda *packets: b"".join(b"\0" + piece(packet) for packet in packets)
seed("tcpip_packet", "syn", b"\0" + raw(ipv4(6, tcp(SYN, options=MSS))))
seed("tcpip_packet", "syn_v6", b"\1" + raw(ipv6(6, tcp(SYN, options=MSS))))
seed("tcpip_packet", "closed_port", b"\0" + raw(ipv4(6, tcp(SYN, dport=81)), ipv4(6, tcp(ACK, 5, 6, dport=81))))
seed("tcpip_packet", "echo_and_udp", b"\0" + raw(ipv4(1, ECHO), ipv4(17, struct.pack(">HHHH", 5, 53, 12, 0) + b"abcd")))
seed("tcpip_packet", "syn_repeated_later", b"\0" + raw(ipv4(6, tcp(SYN))) + b"\2" + piece(ipv4(6, tcp(SYN))) + u16(1500) + b"\2" + piece(b"") + u16(12000))
def seg(flags, payload=b"", seq=0, ack=0, window=0xFFFF, options=b"", urgent=0):
    shape = (len(options) // 4) & 3 | urgent << 2
    return u16(seq) + u16(ack) + bytes([flags]) + u16(window) + bytes([shape]) + options.ljust(12, b"\0") + piece(payload)
here = lambda *args, **more: b"\0\0" + seg(*args, **more)  # from the peer, on its open connection
wait = lambda millis: b"\x07\0" + u16(millis)
for v6 in (0, 1):
    name = lambda text: text + ("_v6" if v6 else "")
    start = bytes([v6])
    seed("tcpip_segment", name("data_and_fin"), start + here(ACK | PSH, b"hello") + b"\4\0" + u16(64) + here(FIN | ACK) + b"\5\0" + wait(500) + here(ACK) + wait(60000))
    seed("tcpip_segment", name("we_send"), start + b"\3\0" + piece(b"x" * 3000) + here(ACK) + here(ACK, window=0) + wait(3000) + b"\5\0" + wait(1000) + here(ACK))
seed("tcpip_segment", "reset", b"\0" + here(RST) + here(RST | ACK, seq=5) + b"\4\0" + u16(8))
seed("tcpip_segment", "out_of_order", b"\0" + here(ACK, b"world", seq=5) + here(ACK, b"hello") + b"\4\0" + u16(64))
seed("tcpip_segment", "old_and_beyond", b"\0" + here(ACK, b"old", seq=-3) + here(ACK, b"", ack=9000) + here(ACK, b"far", seq=30000))
seed("tcpip_segment", "syns", b"\0" + b"".join(b"\0" + bytes([host]) + seg(SYN, options=b"\2\4\5\xb4") for host in (2, 6, 10, 14, 18, 22, 26)) + b"\6\0" + wait(11000))
seed("tcpip_segment", "syn_on_living", b"\0" + here(SYN) + here(SYN | ACK) + here(SYN | FIN) + here(0) + here(0xFF, b"x", urgent=3))
seed("tcpip_segment", "dial", b"\0" + b"\6\x90" + wait(1000) + b"\0\x05" + seg(RST | ACK) + wait(31000))
seed("tcpip_segment", "abandoned", b"\0" + here(ACK, b"unread") + b"\5\xc0" + wait(70000))
seed("tcpip_segment", "strays", b"\0" + b"\2\1\1" + piece(ECHO) + b"\2\1\x11" + piece(struct.pack(">HHHH", 5, 53, 8, 0)) + b"\2\1\x06" + piece(b"short"))

# The node: src/node.rs.
join = bytes([1]) + piece(PING) + bytes([2])
inner = lambda *args, code=3, **more: bytes([code]) + seg(*args, **more)
seed("node", "ping", bytes([1]) + piece(PING))
seed("node", "handshake_and_connection", join + inner(SYN, options=b"\2\4\5\xb4") + inner(ACK) + inner(ACK | PSH, b"hello") + bytes([0x1B]) + piece("bye") + bytes([13]) + u16(200) + inner(ACK))
seed("node", "connection_v6", join + inner(SYN, code=0x13) + inner(ACK, code=0x13) + inner(FIN | ACK, code=0x13))
seed("node", "closed_port", join + inner(SYN, code=0x43) + inner(ACK, code=0x43))
seed("node", "foreign_source", join + bytes([0x23, 9]) + seg(SYN))
seed("node", "echo_tsmp_udp", join + bytes([7, 1]) + piece(ECHO) + bytes([7, 99]) + piece(b"p" + bytes(8)) + bytes([7, 17]) + piece(bytes(12)))
seed("node", "dials", join + bytes([10]) + u16(443) + bytes([13]) + u16(1000) + bytes([13]) + u16(30000))
seed("node", "peer_removed", join + inner(SYN) + bytes([9]) + piece('{"PeersRemoved":[1]}') + inner(ACK) + bytes([2]))
seed("node", "filter_closed", join + bytes([9]) + piece('{"PacketFilter":[]}') + inner(SYN))
seed("node", "key_expired", join + bytes([9]) + piece('{"Node":{"ID":2,"Expired":true}}') + inner(SYN) + bytes([12]) + u16(60000))
seed("node", "raw", bytes([0]) + piece(PING_PACKET) + bytes([0]) + piece(b"\x01" + bytes(147)) + bytes([8]) + piece(b"not ip"))
seed("node", "bent_initiation", bytes([0x12]) + u16(50) + b"\x01" + bytes([2]))

# The upload machine: src/upload.rs.
CAST = b'{"version":2,"width":80,"height":24}\n[0.5,"o","hi"]\n'
seed("upload", "clean", b"\0" + piece(CAST) + b"\x42" + b"\6" + u16(200) + b"\x03" + piece("") + b"\5" + b"\6" + u16(400))
seed("upload", "silence", b"\0" + piece(CAST) + (b"\6" + u16(9000)) * 4)
seed("upload", "reset", b"\0" + piece(CAST) + b"\x83" + piece("gone") + b"\5")
seed("upload", "shutdown", b"\0" + piece(CAST) + b"\xc3" + piece("this recorder stops") + b"\5" + b"\6" + u16(10))
seed("upload", "failed", b"\0" + piece(CAST) + b"\x44" + b"\0" + piece("late") + b"\6" + u16(1))
seed("upload", "short_seal", b"\0" + piece(CAST) + b"\x03" + piece("") + b"\x85")
seed("upload", "boast", b"\0" + piece(CAST) + b"\x82" + b"\xff" * 8 + b"\6" + u16(5000) + b"\2" + u16(3))
for name, text in {"acks": '{"ack":0}\n{"ack":17}\n{"ack":18446744073709551615}\n', "unspaced": '{}{"ack":1}  {"ack":2,"new":[1]}',
                   "error": '{"ack":5}\n{"error":"disk \\"a\\" full"}\n', "string_brackets": '{"note":"}\\"]\\\\","ack":7}{"ack":8}',
                   "nulls": '{"ack":null,"error":null}', "not_a_number": '{"ack":"5"}', "cut": '{"ack":1}{"ac', "array": "[]",
                   "nested": '{"new":[[{"a":[]}]],"ack":3}', "twice": '{"ack":1,"ack":2}', "too_large": '{"ack":18446744073709551616}'}.items():
    seed("ack_frames", name, text)

# The journal.
OBJECT = bytes.fromhex((VECTORS / "journal.hex").read_text())
seed("journal_object", "vector", OBJECT)
rest, frames = OBJECT[114:-32], []
while rest:
    length = 46 + struct.unpack(">I", rest[34:38])[0]
    frames.append(rest[:length])
    rest = rest[length:]
seed("journal_object", "parts", OBJECT[:114] + b"".join(b"\0" + piece(frame[:-8]) for frame in frames))
seed("journal_object", "no_frames", OBJECT[:106] + bytes(8))
for name, one in zip(["open", "data", "packed", "close"], frames):
    seed("journal_frame", name, one)
    seed("journal_frame", name + "_unchecked", one[:-8])
seed("journal_frame", "unknown_flag_unchecked", frames[1][:6] + b"\x02" + frames[1][7:-8])
seed("journal_frame", "newer", frames[1][:4] + b"\x02" + frames[1][5:])
seed("manifest_json", "vector", (VECTORS / "manifest.json").read_bytes())
seed("manifest_json", "newer", '{"version":2}')
RLE = frames[2][38:-8]
seed("unpack", "rle_600", struct.pack("<I", 600)[:3] + RLE)
seed("unpack", "rle_599", struct.pack("<I", 599)[:3] + RLE)
seed("unpack", "text", struct.pack("<I", 0x70000)[:3] + b"the same words again and " * 8)

# Recordings: the short ones as text, the real one from the vectors.
HEADERS = ['{"version":2,"width":120,"height":40,"timestamp":1770000000,"srcNode":"laptop.tail-scale.ts.net","srcNodeID":"nAbCdEfCNTRL","srcNodeUserID":30585448562688899,"srcNodeUser":"alice@example.com","env":{"TERM":"xterm-256color"},"sshUser":"root","localUser":"root","connectionID":"ssh-conn-20260201T101500-0123456789"}',
           '{"version":2,"width":120,"height":40,"timestamp":1770000000,"command":"echo a \\u0026\\u0026 b","srcNode":"","srcNodeID":"","srcNodeTags":["tag:ci"],"env":null,"kubernetes":{"PodName":"web-0","Namespace":"default","Container":"app","SessionType":"exec"},"theme":{"fg":"#fff"},"idle_time_limit":2.5}']
seed("asciicast", "session", b"".join((VECTORS / "shell.cast").read_bytes().splitlines(True)[:12]))
seed("asciicast", "stock_header", HEADERS[0] + '\n[0.456997416,"o","a\\u003cb\\u003e"]\n')
seed("asciicast", "kubernetes", HEADERS[1] + '\n[1,"r","40x120"]\n[2.5e-10,"o","\\ufffd"]\n')
seed("asciicast", "cut", HEADERS[0] + '\n[1,"o","x"]\n[2,"o","x')
seed("asciicast", "foreign", b"not a cast\n[1,2]\n[1e400,\"o\",\"\"]\n[-0,\"o\",\"\\ud83d\\ude00\"]\n\xff\xfe\n\n")
seed("asciicast", "large_times", '{"version":2}\n[821844694380087.2,"o","x"]\n[1e21,"o","x"]\n[123456789.12345679,"o","x"]\n[5e-324,"o",""]\n')

# Ids and keys.
recorder = "fryock32azdpsitz6qt4pm4oom"
for name, text in {"recording": "aaaqeayeaudaocaj", "attempt": "mzxw6ytb", "store": "caireeyuculbogazdinryhi6d4", "recorder": recorder,
                   "epoch": "1764000000123-caireeyuculbogazdinryhi6d4", "node_key": "nodekey:" + "ab" * 32, "disco_key": "discokey:" + "AB" * 32,
                   "machine_key": "mkey:" + "01" * 32, "private_key": "privkey:" + "10" * 32}.items():
    seed("text_forms", name, text)
assert hashlib.sha256(OBJECT[:-32]).digest() == OBJECT[-32:]
