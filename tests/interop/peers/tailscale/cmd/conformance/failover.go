package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"tailtape.dev/interop/tailscale/badrecorder"
)

// failoverCases are those with several recorders.
var failoverCases = []testCase{
	{"C09", "500 over v2", func(ctx context.Context) (string, error) {
		return thirdIsUsed(ctx, post(func(_ *badrecorder.Recorder, w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
		}))
	}},
	{"C09", "500 over v1", func(ctx context.Context) (string, error) {
		return thirdIsUsed(ctx, v1(func(_ *badrecorder.Recorder, _ *http.Request, c net.Conn) {
			io.WriteString(c, "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 6\r\nConnection: close\r\n\r\nsorry\n")
		}))
	}},
	{"X15", "", fourDeadAddresses},
}

// thirdIsUsed: a port that refuses, a recorder that fails, and a good one.
func thirdIsUsed(ctx context.Context, serve start) (string, error) {
	failing, err := serve()
	if err != nil {
		return "", err
	}
	defer failing.Close()
	refusing, free, err := badrecorder.Refusing()
	if err != nil {
		return "", err
	}
	defer free()
	good, err := post(func(rec *badrecorder.Recorder, w http.ResponseWriter, r *http.Request) {
		begin(w, http.StatusOK)
		if rec.Take(r.Body) == nil {
			fmt.Fprintf(w, "{\"ack\":%d}\n", len(line))
		}
	})()
	if err != nil {
		return "", err
	}
	defer good.Close()
	s, err := connect(ctx, refusing, failing.Addr(), good.Addr())
	if err != nil {
		return "", err
	}
	return usesTheLast(ctx, s, good)
}

// usesTheLast: all attempts but the last say why they failed, and the upload goes to the last recorder.
func usesTheLast(ctx context.Context, s session, last *badrecorder.Recorder) (string, error) {
	var detail string
	for i, a := range s.attempts {
		if isLast := i == len(s.attempts)-1; isLast != (a.FailureMessage == "") || isLast != (a.Recorder == last.Addr()) {
			return "", fmt.Errorf("attempt %d of %d, to %v: %q", i+1, len(s.attempts), a.Recorder, a.FailureMessage)
		}
		if a.FailureMessage != "" {
			detail += fmt.Sprintf("attempt %d: %s; ", i+1, a.FailureMessage)
		}
	}
	return endsWell(ctx, s, last, fmt.Sprintf("%sattempt %d is used", detail, len(s.attempts)))
}

// fourDeadAddresses: nothing answers a SYN. Two dials of 5 s for each of the first three, until the budget of 30 s is used up.
func fourDeadAddresses(ctx context.Context) (string, error) {
	const budget, perRecorder = 30 * time.Second, 10 * time.Second
	var dead []netip.AddrPort
	for range 4 {
		addr, free, err := badrecorder.BlackHole()
		if err != nil {
			return "", err
		}
		defer free()
		dead = append(dead, addr)
	}
	s, err := connect(ctx, dead...)
	if err == nil {
		return "", errors.New("a dead recorder was connected")
	}
	if len(s.attempts) != len(dead) {
		return "", fmt.Errorf("%d attempts", len(s.attempts))
	}
	dials := s.dials.all()
	for i, d := range dials {
		if want := dead[min(i/2, 3)].String(); d.addr != want {
			return "", fmt.Errorf("dial %d of %v went to %s instead of %s", i+1, dials, d.addr, want)
		}
	}
	if len(dials) < 6 || s.took < budget || s.took >= budget+perRecorder {
		return "", fmt.Errorf("gave up after %v, dials %v", s.took, dials)
	}
	return fmt.Sprintf("dials of three recorders %v, the fourth fails at once; gave up after %.1f s", dials[:6], s.took.Seconds()), nil
}
