package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"tailscale.com/net/netx"
	"tailscale.com/sessionrecording"
)

// upload is the part of the report about the upload itself.
type upload struct {
	Attempts   []attempt `json:"attempts"`
	BytesSent  int64     `json:"bytes_sent"`
	LinesSent  int64     `json:"lines_sent"`
	SHA256Sent string    `json:"sha256_sent"` // of the bytes whose write succeeded
	ConnectMS  int64     `json:"connect_ms"`
	StreamMS   int64     `json:"stream_ms"` // first write to the end of the error channel
	Error      string    `json:"error"`     // "" only if every write succeeded and the upload ended without error
	watched
}

// attempt is one entry of what ConnectToRecorder says it tried.
type attempt struct {
	Recorder string `json:"recorder"`
	Error    string `json:"error"`
}

// stream uploads the cast, one write per line, as the SSH server of a stock node does.
func stream(ctx context.Context, o options, cast io.Reader, dial netx.DialFunc) (u upload) {
	started := time.Now()
	w := &watch{dial: dial}
	defer func() { u.watched = w.result() }()

	dial = w.Dial
	if o.v1 {
		dial = withoutProbe(dial)
	}
	pw, attempts, errChan, err := sessionrecording.ConnectToRecorder(ctx, o.recorders, dial)
	u.ConnectMS = time.Since(started).Milliseconds()
	for _, a := range attempts {
		u.Attempts = append(u.Attempts, attempt{a.Recorder.String(), a.FailureMessage})
	}
	if err != nil {
		u.Error = fmt.Sprintf("connecting: %v", err)
		return u
	}

	firstWrite := time.Now()
	defer func() { u.StreamMS = time.Since(firstWrite).Milliseconds() }()
	sum := sha256.New()
	defer func() { u.SHA256Sent = hex.EncodeToString(sum.Sum(nil)) }()

	lines := bufio.NewReaderSize(cast, 1<<16)
	var writeErr error
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			if _, end := lines.Peek(1); end == io.EOF {
				time.Sleep(o.idle)
			}
			var n int
			n, writeErr = pw.Write(line)
			sum.Write(line[:n])
			u.BytesSent += int64(n)
			if writeErr != nil {
				break
			}
			u.LinesSent++
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			writeErr = err
			break
		}
		time.Sleep(o.pace)
	}
	if err := pw.Close(); err != nil && writeErr == nil {
		writeErr = err
	}

	select {
	case err := <-errChan:
		if err != nil {
			u.Error = err.Error()
		}
	case <-time.After(finishLimit):
		u.Error = fmt.Sprintf("the upload did not end within %v of its last byte", finishLimit)
	}
	if writeErr != nil {
		u.Error = fmt.Sprintf("writing: %v; upload: %s", writeErr, u.Error)
	}
	return u
}

// withoutProbe returns a dialer that fails the first dial to each address. That one is for HEAD /v2/record, so that what follows
// is the library's own way to v1.
func withoutProbe(dial netx.DialFunc) netx.DialFunc {
	var mu sync.Mutex
	probed := make(map[string]bool)
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		mu.Lock()
		first := !probed[addr]
		probed[addr] = true
		mu.Unlock()
		if first {
			return nil, errors.New("the probe for v2 is off")
		}
		return dial(ctx, network, addr)
	}
}
