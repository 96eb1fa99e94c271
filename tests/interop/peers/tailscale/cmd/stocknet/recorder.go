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
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
	Error  string `json:"error"`
}

// recorder serves HEAD and POST /v2/record: it reads to the end, acks what it read, and keeps only the hash.
type recorder struct {
	done func(stored)
}

func (rec *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/v2/record" {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	switch r.Method {
	case http.MethodHead:
		w.WriteHeader(http.StatusOK)
	case http.MethodPost:
		rec.record(w, r)
	default:
		w.WriteHeader(http.StatusMethodNotAllowed)
	}
}

func (rec *recorder) record(w http.ResponseWriter, r *http.Request) {
	flush := http.NewResponseController(w).Flush
	w.WriteHeader(http.StatusOK)
	if err := flush(); err != nil {
		return
	}

	var mu sync.Mutex // guards s and sum against the acking loop
	var s stored
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
