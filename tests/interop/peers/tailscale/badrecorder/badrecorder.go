// Package badrecorder serves the recorder's end of a recording connection on loopback and misbehaves there as a script says.
//
// It promises nothing of its own: a script is a plain handler, or a plain function for those who break HTTP itself. It keeps
// what arrived, so that a case can say what the client did as well as what it reported. cmd/conformance drives it.
package badrecorder

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// Request is the head of one request that arrived.
type Request struct {
	Proto  string // "HTTP/2.0" or "HTTP/1.1"
	Method string
	Path   string
}

func (r Request) String() string { return fmt.Sprintf("%s %s %s", r.Proto, r.Method, r.Path) }

// Recorder is one recorder on a port of its own.
type Recorder struct {
	ln       net.Listener
	arrivals chan struct{} // has a token after something arrived; see Wait

	mu       sync.Mutex // guards what follows
	requests []Request
	received []byte
	conns    map[net.Conn]bool
	closed   bool
}

// Script answers one request.
type Script func(rec *Recorder, w http.ResponseWriter, r *http.Request)

// Serve starts a recorder that speaks HTTP/1.1 and, with http2, HTTP/2 with prior knowledge.
func Serve(http2 bool, script Script) (*Recorder, error) {
	rec, err := listen()
	if err != nil {
		return nil, err
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(http2)
	server := &http.Server{
		Protocols: &protocols,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rec.arrived(func() { rec.requests = append(rec.requests, Request{r.Proto, r.Method, r.URL.Path}) })
			script(rec, w, r)
		}),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			rec.keep(c)
			return context.WithValue(ctx, connKey{}, c)
		},
	}
	go server.Serve(rec.ln)
	return rec, nil
}

// ServeConn starts a recorder that gives each connection to script, from its first byte, and closes it afterwards.
func ServeConn(script func(rec *Recorder, c net.Conn)) (*Recorder, error) {
	rec, err := listen()
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := rec.ln.Accept()
			if err != nil {
				return
			}
			rec.keep(c)
			go func() {
				defer c.Close()
				script(rec, c)
			}()
		}
	}()
	return rec, nil
}

func listen() (*Recorder, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return &Recorder{ln: ln, arrivals: make(chan struct{}, 1), conns: make(map[net.Conn]bool)}, nil
}

// Addr is where it listens.
func (rec *Recorder) Addr() netip.AddrPort {
	return rec.ln.Addr().(*net.TCPAddr).AddrPort()
}

// Close stops listening and breaks every connection.
func (rec *Recorder) Close() {
	rec.ln.Close()
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.closed = true
	for c := range rec.conns {
		c.Close()
	}
}

// Note records the head of a request that a script of ServeConn has read itself.
func (rec *Recorder) Note(r *http.Request) {
	rec.arrived(func() { rec.requests = append(rec.requests, Request{r.Proto, r.Method, r.URL.Path}) })
}

// Take reads body to its end and keeps what it reads.
func (rec *Recorder) Take(body io.Reader) error {
	buf := make([]byte, 1<<16)
	for {
		n, err := body.Read(buf)
		rec.arrived(func() { rec.received = append(rec.received, buf[:n]...) })
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Wait returns once enough is true of what has arrived so far, or with the error of ctx.
func (rec *Recorder) Wait(ctx context.Context, enough func(requests []Request, received []byte) bool) error {
	for {
		rec.mu.Lock()
		yes := enough(rec.requests, rec.received)
		rec.mu.Unlock()
		if yes {
			return nil
		}
		select {
		case <-rec.arrivals:
		case <-ctx.Done():
			requests, received := rec.Seen()
			return fmt.Errorf("waiting for the client: %w; so far %v and %d body bytes", ctx.Err(), requests, len(received))
		}
	}
}

// Seen is what has arrived so far: request heads in order, and all body bytes that were taken.
func (rec *Recorder) Seen() ([]Request, []byte) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return append([]Request(nil), rec.requests...), append([]byte(nil), rec.received...)
}

func (rec *Recorder) arrived(what func()) {
	rec.mu.Lock()
	what()
	rec.mu.Unlock()
	select {
	case rec.arrivals <- struct{}{}:
	default:
	}
}

func (rec *Recorder) keep(c net.Conn) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.conns[c] = true
	if rec.closed {
		c.Close()
	}
}

type connKey struct{}

// BreakConn closes the connection on which r came, as a recorder does that dies.
func BreakConn(r *http.Request) {
	r.Context().Value(connKey{}).(net.Conn).Close()
}
