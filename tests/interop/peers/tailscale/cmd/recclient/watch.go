package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"

	"golang.org/x/net/http2"
	"tailscale.com/net/netx"
)

// watched is what was seen on the wire beside the library, which itself tells nothing about acks.
type watched struct {
	Dials      int    `json:"dials"`
	Protocol   string `json:"protocol"`    // of the last connection: "v2", "v1" or ""
	WatchError string `json:"watch_error"` // the watcher could not follow the bytes

	// Of HTTP/2.
	AckFrames     int    `json:"ack_frames"`
	LastAck       int64  `json:"last_ack"`
	AcksMonotonic bool   `json:"acks_monotonic"`
	FrameError    string `json:"frame_error"` // text of the recorder's error frame
	CleanEnd      bool   `json:"clean_end"`   // the recorder ended the response stream itself, by END_STREAM

	// Of HTTP/1.1.
	Statuses   []int `json:"statuses"`     // of all responses on the last connection, 100 Continue included
	SaysItEnds bool  `json:"says_it_ends"` // the last response has "Connection: close"
}

// watch wraps a dialer and reads along with what the recorder answers.
type watch struct {
	dial netx.DialFunc

	mu    sync.Mutex
	dials int
	last  *watchedConn
}

func (w *watch) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	w.mu.Lock()
	w.dials++
	w.mu.Unlock()
	c, err := w.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	pr, pw := io.Pipe()
	wc := &watchedConn{Conn: c, tee: pw, done: make(chan struct{}), began: make(chan struct{})}
	go wc.follow(pr)
	w.mu.Lock()
	w.last = wc
	w.mu.Unlock()
	return wc, nil
}

// result closes the last connection and returns what was seen on it.
func (w *watch) result() watched {
	w.mu.Lock()
	defer w.mu.Unlock()
	var r watched
	if w.last != nil {
		w.last.Close()
		<-w.last.done
		r = w.last.seen
	}
	r.Dials = w.dials
	if r.Statuses == nil {
		r.Statuses = []int{} // In JSON a list, not null.
	}
	return r
}

// watchedConn copies all it reads to a follower, which parses it by the protocol that the first write shows.
type watchedConn struct {
	net.Conn
	tee  *io.PipeWriter
	done chan struct{}
	seen watched // owned by follow until done is closed

	once  sync.Once
	began chan struct{} // closed by the first write, or by Close
	first firstWrite    // valid once began is closed
}

// firstWrite is what the first bytes of a client say.
type firstWrite struct{ http2, http1, head bool }

// http2Preface is how a client that knows that the server speaks HTTP/2 begins (RFC 9113, section 3.4).
var http2Preface = []byte(http2.ClientPreface)

func (c *watchedConn) Write(p []byte) (int, error) {
	c.begin(func() {
		c.first.http2 = bytes.HasPrefix(p, http2Preface[:min(len(p), len(http2Preface))])
		c.first.http1 = !c.first.http2
		c.first.head = bytes.HasPrefix(p, []byte("HEAD "))
	})
	return c.Conn.Write(p)
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		// The follower reads until the pipe is closed, so this write waits only for its parsing. It begins with the first
		// write of the client, and a recorder does not speak before that.
		c.tee.Write(p[:n])
	}
	if err != nil {
		c.tee.Close()
	}
	return n, err
}

func (c *watchedConn) Close() error {
	c.begin(func() {})
	c.tee.Close()
	return c.Conn.Close()
}

func (c *watchedConn) begin(note func()) {
	c.once.Do(func() {
		note()
		close(c.began)
	})
}

// follow parses r until its end. Whatever it cannot parse it reads and drops, so that the upload never waits for it.
func (c *watchedConn) follow(r io.Reader) {
	defer close(c.done)
	defer io.Copy(io.Discard, r)
	<-c.began
	switch {
	case c.first.http2:
		c.followHTTP2(r)
	case c.first.http1:
		c.followHTTP1(r)
	}
}

// followHTTP1 notes the responses. Only the first may be to HEAD, and have no body whatever it says of its length.
func (c *watchedConn) followHTTP1(r io.Reader) {
	c.seen.Protocol = "v1"
	buffered := bufio.NewReader(r)
	for {
		to := &http.Request{Method: http.MethodPost}
		if c.first.head && len(c.seen.Statuses) == 0 {
			to.Method = http.MethodHead
		}
		response, err := http.ReadResponse(buffered, to)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return
		}
		if err != nil {
			c.seen.WatchError = fmt.Sprintf("reading a response: %v", err)
			return
		}
		c.seen.Statuses = append(c.seen.Statuses, response.StatusCode)
		c.seen.SaysItEnds = response.Close
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			c.seen.WatchError = fmt.Sprintf("reading the body of a response: %v", err)
			return
		}
	}
}

func (c *watchedConn) followHTTP2(r io.Reader) {
	c.seen.Protocol = "v2"
	c.seen.AcksMonotonic = true

	// Bodies of all streams go to one decoder: only one response has a body, that of POST /v2/record.
	body, bodyWriter := io.Pipe()
	decoded := make(chan struct{})
	go func() {
		defer close(decoded)
		defer io.Copy(io.Discard, body)
		c.decodeAcks(body)
	}()
	defer func() {
		bodyWriter.Close()
		<-decoded
	}()

	framer := http2.NewFramer(io.Discard, r)
	framer.SetMaxReadFrameSize(1<<24 - 1)
	var bodyStream uint32
	for {
		f, err := framer.ReadFrame()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return
		}
		if err != nil {
			if c.seen.WatchError == "" {
				c.seen.WatchError = fmt.Sprintf("reading frames: %v", err)
			}
			return
		}
		switch f := f.(type) {
		case *http2.DataFrame:
			bodyStream = f.StreamID
			bodyWriter.Write(f.Data())
			if f.StreamEnded() {
				c.seen.CleanEnd = true
			}
		case *http2.HeadersFrame:
			// Trailers end a stream as well.
			if bodyStream != 0 && f.StreamID == bodyStream && f.StreamEnded() {
				c.seen.CleanEnd = true
			}
		}
	}
}

func (c *watchedConn) decodeAcks(body io.Reader) {
	dec := json.NewDecoder(body)
	for {
		var frame struct {
			Ack   int64  `json:"ack"`
			Error string `json:"error"`
		}
		if err := dec.Decode(&frame); err != nil {
			return
		}
		if frame.Error != "" {
			c.seen.FrameError = frame.Error
			continue
		}
		if frame.Ack < c.seen.LastAck {
			c.seen.AcksMonotonic = false
		}
		c.seen.AckFrames++
		c.seen.LastAck = frame.Ack
	}
}
