package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"tailtape.dev/interop/tailscale/badrecorder"
)

// probeLimit is how long the client waits for the answer to HEAD /v2/record before it falls back to v1.
const probeLimit = 10 * time.Second

// v1Cases are those of POST /record over HTTP/1.1, and of the way there.
var v1Cases = []testCase{
	{"X11", "", okBeforeContinue},
	{"X12", "", okBeforeTheEnd},
	{"X13", "", silence},
	{"X14", "400 in HTTP/1.1", notHTTP2(func(c net.Conn) {
		io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	})},
	{"X14", "closed", notHTTP2(func(net.Conn) {})},
}

// serveConn begins to serve connections by script.
func serveConn(script func(*badrecorder.Recorder, net.Conn)) start {
	return func() (*badrecorder.Recorder, error) { return badrecorder.ServeConn(script) }
}

// v1 reads one request's head and gives it to script if it is that of POST /record; others are refused as by a server that knows
// HTTP/1.1 only.
func v1(script func(rec *badrecorder.Recorder, r *http.Request, c net.Conn)) start {
	return serveConn(func(rec *badrecorder.Recorder, c net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		rec.Note(r)
		if r.Method != http.MethodPost || r.URL.Path != "/record" || r.Header.Get("Expect") != "100-continue" {
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			return
		}
		script(rec, r, c)
	})
}

const (
	continue100 = "HTTP/1.1 100 Continue\r\n\r\n"
	ok200       = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)

// goodV1 is a v1 recorder as it should be.
func goodV1() (*badrecorder.Recorder, error) {
	return v1(takeAll)()
}

// takeAll asks for the body and takes it.
func takeAll(rec *badrecorder.Recorder, r *http.Request, c net.Conn) {
	io.WriteString(c, continue100)
	if rec.Take(r.Body) == nil {
		io.WriteString(c, ok200)
	}
}

// okBeforeContinue: 200 at once; the client goes to the next recorder.
func okBeforeContinue(ctx context.Context) (string, error) {
	bad, err := v1(func(_ *badrecorder.Recorder, _ *http.Request, c net.Conn) { io.WriteString(c, ok200) })()
	if err != nil {
		return "", err
	}
	defer bad.Close()
	good, err := goodV1()
	if err != nil {
		return "", err
	}
	defer good.Close()
	s, err := connect(ctx, bad.Addr(), good.Addr())
	if err != nil {
		return "", err
	}
	return usesTheLast(ctx, s, good)
}

// okBeforeTheEnd: 100, then 200 while the session still writes.
func okBeforeTheEnd(ctx context.Context) (string, error) {
	return meets(ctx, v1(func(rec *badrecorder.Recorder, r *http.Request, c net.Conn) {
		io.WriteString(c, continue100)
		if _, err := io.ReadFull(r.Body, make([]byte, len(line))); err != nil {
			return
		}
		io.WriteString(c, ok200)
		io.Copy(io.Discard, c) // Until the client closes.
	}), func(rec *badrecorder.Recorder, s session) (string, error) {
		if _, err := s.Write(line); err != nil {
			return "", err
		}
		if err := s.uploadEnds(ctx); err != nil {
			return "", fmt.Errorf("the upload ended with %w", err)
		}
		detail, err := s.mustRefuseWrites(ctx)
		return "the upload ends without an error; " + detail, err
	})
}

// silence: a peer that accepts and reads, and says nothing.
func silence(ctx context.Context) (string, error) {
	rec, err := badrecorder.ServeConn(func(rec *badrecorder.Recorder, c net.Conn) {
		buffered := bufio.NewReader(c)
		if r, err := http.ReadRequest(buffered); err == nil {
			rec.Note(r)
		}
		io.Copy(io.Discard, buffered)
	})
	if err != nil {
		return "", err
	}
	started := time.Now()
	var fellBack time.Duration
	detail, err := mustHang(ctx, rec.Addr(), func(ctx context.Context) error {
		// The preface of HTTP/2 reads as the request "PRI *".
		err := rec.Wait(ctx, func(requests []badrecorder.Request, _ []byte) bool {
			return len(requests) > 0 && requests[len(requests)-1].Path == "/record"
		})
		fellBack = time.Since(started)
		return err
	}, rec.Close)
	if err == nil && fellBack < probeLimit {
		err = fmt.Errorf("fell back to v1 after %v already", fellBack)
	}
	return fmt.Sprintf("POST /record after %.1f s, then %s", fellBack.Seconds(), detail), err
}

// notHTTP2: a peer that answers the preface of HTTP/2 with answer and closes, and speaks v1.
func notHTTP2(answer func(net.Conn)) func(context.Context) (string, error) {
	script := func(rec *badrecorder.Recorder, c net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		rec.Note(r)
		if r.Method == "PRI" {
			answer(c)
			return
		}
		takeAll(rec, r, c)
	}
	return func(ctx context.Context) (string, error) {
		return meets(ctx, serveConn(script), func(rec *badrecorder.Recorder, s session) (string, error) {
			if s.took >= probeLimit {
				return "", fmt.Errorf("fell back to v1 only after %v", s.took)
			}
			if dials := s.dials.all(); len(dials) != 2 {
				return "", errors.New("not one dial for each protocol: " + fmt.Sprint(dials))
			}
			return endsWell(ctx, s, rec, fmt.Sprintf("POST /record after %d ms", s.took.Milliseconds()))
		})
	}
}
