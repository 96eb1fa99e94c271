#!/usr/bin/env python3
"""Writes journal.hex beside itself: one journal object, byte by byte from docs/format.md.

A second implementation, so that the codec in src/recording does not only agree with itself.
The second data frame is a zstd frame built by hand (RFC 8878: magic, single segment, one RLE block).
"""
import base64, hashlib, pathlib, struct

def frame(kind, flags, recording, offset, plain_len, stored):
    head = b"ttfr" + bytes([1, kind, flags, 0]) + struct.pack(">I", 0) + recording
    head += struct.pack(">QII", offset, plain_len, len(stored)) + stored
    return head + hashlib.sha256(head).digest()[:8]

recording = bytes(range(10))
recorder = base64.b32encode(hashlib.sha256(b"key").digest()).lower()[:26]
# 600 times "a": frame header descriptor 0x60 = single segment, 2-byte content size (stored minus 256); last RLE block.
rle = bytes.fromhex("28b52ffd") + bytes([0x60]) + struct.pack("<H", 600 - 256)
rle += struct.pack("<I", 600 << 3 | 1 << 1 | 1)[:3] + b"a"

frames = [
    frame(1, 0, recording, 0, 2, b"{}"),
    frame(2, 0, recording, 0, 6, b"hello\n"),
    frame(2, 1, recording, 6, 600, rle),
    frame(3, 0, recording, 606, 14, b'{"clean":true}'),
]
body = b"".join(frames)
head = b"ttjrnl" + struct.pack(">H", 1) + recorder
head += struct.pack(">Q", 1764000000123) + bytes(range(16, 32)) + struct.pack(">Q", 7)
head += hashlib.sha256(b"object 6").digest() + struct.pack(">QII", 3, len(frames), len(body)) + body
whole = head + hashlib.sha256(head).digest()
out = pathlib.Path(__file__).with_suffix(".hex")
text = whole.hex()
out.write_text("\n".join(text[i:i + 96] for i in range(0, len(text), 96)) + "\n")
print(len(whole), hashlib.sha256(whole).hexdigest())
