package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"tailtape.dev/interop/tailscale/badrecorder"
)

// ackWindow is how long the client waits for a frame; it cannot be set from outside.
const ackWindow = 30 * time.Second

// v2Cases are those of POST /v2/record over HTTP/2.
var v2Cases = []testCase{
	{"C03", "", noAcks},
	{"X03", "", func(ctx context.Context) (string, error) {
		return afterOneLine(ctx, func(w io.Writer, r *http.Request) { fmt.Fprint(w, `{"ack":1}`) }, func(s session) (string, error) {
			if err := s.uploadEnds(ctx); err != nil {
				return "", fmt.Errorf("the upload ended with %w", err)
			}
			detail, err := s.mustRefuseWrites(ctx)
			return "the upload ends without an error; " + detail, err
		})
	}},
	{"X04", "reset", failing(func(io.Writer, *http.Request) { panic(http.ErrAbortHandler) })},
	{"X04", "connection lost while idle", failing(func(_ io.Writer, r *http.Request) { badrecorder.BreakConn(r) })},
	{"X04", "connection lost while writing", lostWhileWriting},
	{"X04", "truncated JSON", failing(func(w io.Writer, _ *http.Request) { fmt.Fprint(w, `{"ack":`) })},
	{"X04", "not JSON", failing(func(w io.Writer, _ *http.Request) { fmt.Fprint(w, "ack 5\n") })},
	{"X04", "ack as a string", failing(func(w io.Writer, _ *http.Request) { fmt.Fprint(w, `{"ack":"5"}`) })},
	{"X04", "ack as a fraction", failing(func(w io.Writer, _ *http.Request) { fmt.Fprint(w, `{"ack":5.5}`) })},
	{"X05", "", errorAfterTheBody},
	{"X08", "404 with a body", refusal(http.StatusNotFound, "not found\n", false)},
	{"X08", "403 left open", refusal(http.StatusForbidden, "", true)},
	{"X08", "202 left open", refusal(http.StatusAccepted, "", true)},
	{"X09", "", lateHeaders},
	{"X10", "", gzippedAcks},
}

// post serves HEAD /v2/record as it should be, and POST by script.
func post(script badrecorder.Script) start {
	return func() (*badrecorder.Recorder, error) {
		return badrecorder.Serve(true, func(rec *badrecorder.Recorder, w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path != "/v2/record":
				w.WriteHeader(http.StatusNotFound)
			case r.Method == http.MethodPost:
				script(rec, w, r)
			}
		})
	}
}

// begin sends the response's headers.
func begin(w http.ResponseWriter, status int) {
	w.WriteHeader(status)
	http.NewResponseController(w).Flush()
}

// noAcks: the body is consumed, but nothing is ever acked.
func noAcks(ctx context.Context) (string, error) {
	return meets(ctx, post(func(rec *badrecorder.Recorder, w http.ResponseWriter, r *http.Request) {
		begin(w, http.StatusOK)
		rec.Take(r.Body)
		<-r.Context().Done()
	}), func(rec *badrecorder.Recorder, s session) (string, error) {
		sent := bytes.Repeat(line, 1<<20/len(line))
		if err := s.sendAll(sent); err != nil {
			return "", err
		}
		if err := rec.Wait(ctx, func(_ []badrecorder.Request, received []byte) bool { return len(received) == len(sent) }); err != nil {
			return "", err
		}
		waited := time.Now()
		detail, err := s.mustFailLater(ctx)
		if err != nil {
			return "", err
		}
		if _, received := rec.Seen(); !bytes.Equal(received, sent) {
			return "", fmt.Errorf("%d bytes arrived of %d", len(received), len(sent))
		}
		return fmt.Sprintf("all %d bytes arrived; %.0f s later: %s", len(sent), time.Since(waited).Seconds(), detail), nil
	})
}

// afterOneLine: the recorder takes one line, does what end does, and returns; then is asked what the client made of it.
func afterOneLine(ctx context.Context, end func(io.Writer, *http.Request), then func(session) (string, error)) (string, error) {
	return meets(ctx, post(func(_ *badrecorder.Recorder, w http.ResponseWriter, r *http.Request) {
		begin(w, http.StatusOK)
		if _, err := io.ReadFull(r.Body, make([]byte, len(line))); err != nil {
			return
		}
		end(w, r)
	}), func(rec *badrecorder.Recorder, s session) (string, error) {
		if _, err := s.Write(line); err != nil {
			return "", err
		}
		return then(s)
	})
}

// failing: whatever end does, the upload fails and writes with it.
func failing(end func(io.Writer, *http.Request)) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		return afterOneLine(ctx, end, func(s session) (string, error) {
			detail, err := s.mustFailLater(ctx)
			if err != nil {
				return "", err
			}
			refused, err := s.mustRefuseWrites(ctx)
			return detail + "; " + refused, err
		})
	}
}

// lostWhileWriting: an idle client notices a lost connection only when it misses the next frame, a writing one at once.
func lostWhileWriting(ctx context.Context) (string, error) {
	return afterOneLine(ctx, func(_ io.Writer, r *http.Request) { badrecorder.BreakConn(r) }, func(s session) (string, error) {
		broken := time.Now()
		refused, err := s.mustRefuseWrites(ctx)
		if err != nil {
			return "", err
		}
		detail, err := s.mustFailLater(ctx)
		if err == nil && time.Since(broken) >= ackWindow {
			err = errors.New("the client noticed it only by the missing acks")
		}
		return detail + "; " + refused, err
	})
}

// errorAfterTheBody: all was taken, and only then the recorder says that it failed.
func errorAfterTheBody(ctx context.Context) (string, error) {
	const reason = "no space left on device"
	return meets(ctx, post(func(rec *badrecorder.Recorder, w http.ResponseWriter, r *http.Request) {
		begin(w, http.StatusOK)
		rec.Take(r.Body)
		fmt.Fprintf(w, "{\"ack\":%d}\n{\"error\":%q}\n", len(line), reason)
	}), func(rec *badrecorder.Recorder, s session) (string, error) {
		if err := s.sendAll(line); err != nil {
			return "", err
		}
		detail, err := s.mustFailLater(ctx)
		if err == nil && !strings.Contains(detail, reason) {
			err = fmt.Errorf("the recorder's words are missing: %s", detail)
		}
		return detail, err
	})
}

// refusal: POST is refused with a body, or in a response that does not end.
func refusal(status int, body string, open bool) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		answered := make(chan struct{}, 1)
		rec, err := post(func(_ *badrecorder.Recorder, w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			io.WriteString(w, body)
			http.NewResponseController(w).Flush()
			answered <- struct{}{}
			if open {
				<-r.Context().Done()
			}
		})()
		if err != nil {
			return "", err
		}
		return mustHang(ctx, rec.Addr(), func(ctx context.Context) error {
			select {
			case <-answered:
				return nil
			case <-ctx.Done():
				return errors.New("the client did not get as far as POST")
			}
		}, rec.Close)
	}
}

// lateHeaders: the response to POST begins late.
func lateHeaders(ctx context.Context) (string, error) {
	const late = 3 * time.Second
	return meets(ctx, post(func(rec *badrecorder.Recorder, w http.ResponseWriter, r *http.Request) {
		time.Sleep(late)
		begin(w, http.StatusOK)
		rec.Take(r.Body)
	}), func(rec *badrecorder.Recorder, s session) (string, error) {
		if s.took < late {
			return "", fmt.Errorf("connected after %v, before the headers came", s.took)
		}
		return endsWell(ctx, s, rec, fmt.Sprintf("connected after %.1f s", s.took.Seconds()))
	})
}

// gzippedAcks: the response is compressed, each frame flushed; the session is idle for longer than the client waits for a frame.
func gzippedAcks(ctx context.Context) (string, error) {
	const acks, interval = 8, 4 * time.Second
	acked := make(chan struct{})
	return meets(ctx, post(func(rec *badrecorder.Recorder, w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Content-Encoding", "gzip")
		begin(w, http.StatusOK)
		compressed := gzip.NewWriter(w)
		defer compressed.Close()
		for range acks {
			time.Sleep(interval)
			fmt.Fprintln(compressed, `{"ack":0}`)
			compressed.Flush()
			http.NewResponseController(w).Flush()
		}
		close(acked)
		rec.Take(r.Body)
	}), func(rec *badrecorder.Recorder, s session) (string, error) {
		idle := time.Now()
		select {
		case <-acked:
		case err := <-s.upload:
			return "", fmt.Errorf("the upload ended with %v", err)
		}
		if time.Since(idle) <= ackWindow {
			return "", errors.New("the session was not idle for long enough to show anything")
		}
		return endsWell(ctx, s, rec, fmt.Sprintf("idle for %.0f s with %d acks", time.Since(idle).Seconds(), acks))
	})
}

// endsWell writes one line and ends the upload; the line must have arrived. before is what is told of the time until now.
func endsWell(ctx context.Context, s session, rec *badrecorder.Recorder, before string) (string, error) {
	if err := s.sendAll(line); err != nil {
		return "", err
	}
	if err := s.uploadEnds(ctx); err != nil {
		return "", err
	}
	if _, received := rec.Seen(); !bytes.Equal(received, line) {
		return "", fmt.Errorf("%q arrived", received)
	}
	return before + "; the upload arrives whole and ends without an error", nil
}
