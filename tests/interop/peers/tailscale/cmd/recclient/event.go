package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"

	"tailscale.com/net/netx"
	"tailscale.com/sessionrecording"
)

// sentEvent is the part of the report about an event.
type sentEvent struct {
	Attempts     []attempt `json:"attempts"` // one per recorder that was tried; the last has no error if the event was taken
	BytesSent    int64     `json:"bytes_sent"`
	SHA256Sent   string    `json:"sha256_sent"`
	NotSupported bool      `json:"not_supported"` // the last attempt failed with sessionrecording.EventAPINotSupportedErr
	MS           int64     `json:"ms"`
	watched
}

// send sends event as the API server proxy does: to one recorder after the other, until one takes it.
func send(o options, event []byte, dial netx.DialFunc) *sentEvent {
	started := time.Now()
	sum := sha256.Sum256(event)
	e := &sentEvent{BytesSent: int64(len(event)), SHA256Sent: hex.EncodeToString(sum[:])}
	w := &watch{dial: dial}
	for _, rec := range o.recorders {
		a := attempt{Recorder: rec.String()}
		err := sessionrecording.SendEvent(rec, bytes.NewReader(event), w.Dial)
		if err != nil {
			a.Error = err.Error()
		}
		e.Attempts = append(e.Attempts, a)
		e.NotSupported = errors.As(err, new(sessionrecording.EventAPINotSupportedErr))
		if err == nil {
			break
		}
	}
	e.MS = time.Since(started).Milliseconds()
	e.watched = w.result()
	return e
}
