package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"

	"tailscale.com/sessionrecording"
)

// openCast returns the i-th cast to stream: the file, or a generated one.
func openCast(o options, i int) (io.ReadCloser, error) {
	if o.castFile != "" {
		return os.Open(o.castFile)
	}
	return io.NopCloser(bytes.NewReader(generateCast(o.generateBytes, i))), nil
}

// generateCast returns an asciicast, the same one each time for the same seed: the header that stock nodes write, then keystroke echoes, lines of
// output, now and then a screenful, a resize, and text outside ASCII, until it is sizeBytes long or a little longer.
func generateCast(sizeBytes int64, seed int) []byte {
	rnd := rand.New(rand.NewPCG(1, uint64(seed)))
	var b bytes.Buffer
	writeLine := func(v any) {
		line, err := json.Marshal(v)
		if err != nil {
			panic(err) // Only strings and numbers are marshalled.
		}
		b.Write(line)
		b.WriteByte('\n')
	}
	writeLine(sessionrecording.CastHeader{
		Version: 2, Width: 80, Height: 24, Timestamp: 1767225600,
		SrcNode: "laptop.tail.test", SrcNodeID: "nLaptopCNTRL", SrcNodeUser: "alice@example.com", SrcNodeUserID: 1,
		Env: map[string]string{"TERM": "xterm-256color"}, SSHUser: "alice", LocalUser: "alice", ConnectionID: "ssh-conn-20260101T000000-0123456789",
	})
	seconds := 0.0
	for int64(b.Len()) < sizeBytes {
		seconds += rnd.Float64() / 10
		kind, data := "o", ""
		switch n := rnd.IntN(100); {
		case n < 60:
			data = string(rune('a' + rnd.IntN(26)))
		case n < 90:
			data = fmt.Sprintf("-rw-r--r-- 1 alice alice %7d Jan  1 00:00 file%04d.txt\r\n", rnd.IntN(1e7), rnd.IntN(1e4))
		case n < 97:
			data = "\x1b[32mgrüße, 世界 \U0001f980\x1b[0m\r\n"
		case n < 99:
			data = strings.Repeat("\x1b[2K0123456789abcdef0123456789abcdef\r\n", 1+rnd.IntN(400))
		default:
			kind, data = "r", fmt.Sprintf("%dx%d", 80+rnd.IntN(40), 24+rnd.IntN(20))
		}
		writeLine([]any{seconds, kind, data})
	}
	return b.Bytes()
}
