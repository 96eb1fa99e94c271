package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"time"
)

// ackInterval is well inside the 30 s after which an uploader gives up, and short enough to see several acks in a short test.
const ackInterval = 100 * time.Millisecond

// stored says what arrived.
type stored struct {
	Endpoint string `json:"endpoint"` // path of the request
	Bytes    int64  `json:"bytes"`
	SHA256   string `json:"sha256"`
	Error    string `json:"error"`
}

// recorder serves what a recorder should. It reads to the end, acks what it read over v2, and keeps only the hash.
type recorder struct {
	done func(stored)
}

func (rec *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	overHTTP2 := r.ProtoMajor == 2
	switch {
	case r.Method == http.MethodHead && (r.URL.Path == "/v2/record" && overHTTP2 || r.URL.Path == "/v2/event"):
		w.WriteHeader(http.StatusOK)
	case r.Method == http.MethodPost && r.URL.Path == "/v2/record" && overHTTP2:
		rec.record(w, r)
	case r.Method == http.MethodPost && (r.URL.Path == "/record" || r.URL.Path == "/v2/event") && !overHTTP2:
		rec.receive(w, r)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// receive takes a whole body, as /record and /v2/event do. The first read sends 100 Continue, if the client waits for it.
func (rec *recorder) receive(w http.ResponseWriter, r *http.Request) {
	sum := sha256.New()
	n, err := io.Copy(sum, r.Body)
	s := stored{Endpoint: r.URL.Path, Bytes: n, SHA256: hex.EncodeToString(sum.Sum(nil))}
	if err != nil {
		s.Error = err.Error()
	}
	rec.done(s)
	w.Header().Set("Connection", "close")
	w.WriteHeader(http.StatusOK)
}

func (rec *recorder) record(w http.ResponseWriter, r *http.Request) {
	flush := http.NewResponseController(w).Flush
	w.WriteHeader(http.StatusOK)
	if err := flush(); err != nil {
		return
	}

	var mu sync.Mutex // guards what follows against the acking loop
	s := stored{Endpoint: r.URL.Path}
	sum := sha256.New()
	end := make(chan error, 1)
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, err := r.Body.Read(buf)
			mu.Lock()
			sum.Write(buf[:n])
			s.Bytes += int64(n)
			mu.Unlock()
			if err != nil {
				end <- err
				return
			}
		}
	}()

	enc := json.NewEncoder(w)
	ack := func() {
		mu.Lock()
		n := s.Bytes
		mu.Unlock()
		if enc.Encode(map[string]int64{"ack": n}) == nil {
			_ = flush()
		}
	}
	tick := time.NewTicker(ackInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			ack()
		case err := <-end:
			ack()
			if err != io.EOF {
				s.Error = err.Error()
			}
			s.SHA256 = hex.EncodeToString(sum.Sum(nil))
			rec.done(s)
			return
		}
	}
}
