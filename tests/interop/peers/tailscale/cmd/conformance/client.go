package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"tailscale.com/sessionrecording"
	"tailscale.com/tailcfg"

	"tailtape.dev/interop/tailscale/badrecorder"
)

// hangWindow is how long a client is watched that is expected to wait for ever. It is more than the second after which Go's
// HTTP client would go on without a 100 Continue.
const hangWindow = 5 * time.Second

// writePause is between two writes that are expected to fail sooner or later.
const writePause = 10 * time.Millisecond

// line is what sessions write: an event of a cast, as good as any.
var line = []byte("[0.5,\"o\",\"hello\\r\\n\"]\n")

// session is an upload as the SSH server of a stock node begins it.
type session struct {
	io.WriteCloser
	attempts []*tailcfg.SSHRecordingAttempt
	upload   <-chan error // gets the error of the upload, or is closed without one
	took     time.Duration
	dials    *dialLog
}

// connect is sessionrecording.ConnectToRecorder with a plain dialer. The session is valid, but for the upload itself, when it
// fails, too. ctx ends the upload.
func connect(ctx context.Context, recorders ...netip.AddrPort) (session, error) {
	dials := &dialLog{started: time.Now()}
	w, attempts, upload, err := sessionrecording.ConnectToRecorder(ctx, recorders, dials.dial)
	return session{w, attempts, upload, time.Since(dials.started), dials}, err
}

// start begins to serve as a recorder.
type start func() (*badrecorder.Recorder, error)

// meets connects a client to the recorder that serve starts, and returns what then says of it.
func meets(ctx context.Context, serve start, then func(*badrecorder.Recorder, session) (string, error)) (string, error) {
	rec, err := serve()
	if err != nil {
		return "", err
	}
	defer rec.Close()
	s, err := connect(ctx, rec.Addr())
	if err != nil {
		return "", err
	}
	return then(rec, s)
}

// sendAll writes the whole body and ends it.
func (s session) sendAll(body []byte) error {
	if _, err := s.Write(body); err != nil {
		return err
	}
	return s.Close()
}

// uploadEnds returns what the upload ended with, nil included.
func (s session) uploadEnds(ctx context.Context) error {
	select {
	case err := <-s.upload:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the upload goes on: %w", ctx.Err())
	}
}

// mustFailLater returns an error unless the upload ends with one.
func (s session) mustFailLater(ctx context.Context) (string, error) {
	err := s.uploadEnds(ctx)
	if err == nil || ctx.Err() != nil {
		return "", fmt.Errorf("the upload ended with %v", err)
	}
	return err.Error(), nil
}

// mustRefuseWrites writes until that fails, as it must soon once the upload has ended. The pipe's reader may still swallow what
// nobody will send.
func (s session) mustRefuseWrites(ctx context.Context) (string, error) {
	for lost := 0; ctx.Err() == nil; lost++ {
		switch _, err := s.Write(line); {
		case errors.Is(err, io.ErrClosedPipe):
			return fmt.Sprintf("then writes fail: %v (%d before are lost)", err, lost), nil
		case err != nil:
			return "", fmt.Errorf("a write after the end fails with %w", err)
		}
		time.Sleep(writePause)
	}
	return "", errors.New("writes after the end go on and on")
}

// mustHang returns an error if connecting ends although the recorder never lets it; ready waits until the recorder has done its
// worst. Then the connection is broken, to see whether that frees the client.
func mustHang(ctx context.Context, addr netip.AddrPort, ready func(context.Context) error, breakConn func()) (string, error) {
	returned := make(chan error, 1)
	go func() {
		_, err := connect(ctx, addr)
		returned <- err
	}()
	if err := ready(ctx); err != nil {
		return "", err
	}
	select {
	case err := <-returned:
		return "", fmt.Errorf("the client did not hang; it returned %v", err)
	case <-time.After(hangWindow):
	}
	breakConn()
	select {
	case err := <-returned:
		if err == nil {
			return "", errors.New("the client connected after its connection was broken")
		}
		return fmt.Sprintf("hangs for %v and more, until the connection breaks: %v", hangWindow, err), nil
	case <-time.After(hangWindow):
		return fmt.Sprintf("hangs for %v and more, and for as long after the connection broke", hangWindow), nil
	}
}

// dialLog is a plain dialer that remembers what it was asked for.
type dialLog struct {
	started time.Time
	mu      sync.Mutex
	dialed  []dialed
}

// dialed is one call of the dialer.
type dialed struct {
	addr        string
	after, took time.Duration // since the first address was tried; until it returned
}

func (d dialed) String() string {
	return fmt.Sprintf("%.1f-%.1f s", d.after.Seconds(), (d.after + d.took).Seconds())
}

func (l *dialLog) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	began := time.Now()
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dialed = append(l.dialed, dialed{addr, began.Sub(l.started), time.Since(began)})
	return c, err
}

// all returns the calls in the order in which they ended.
func (l *dialLog) all() []dialed {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]dialed(nil), l.dialed...)
}
