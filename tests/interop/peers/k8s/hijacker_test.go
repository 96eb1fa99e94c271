package k8s

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap"
	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/envknob"
	ksr "tailscale.com/k8s-operator/sessionrecording"
	"tailscale.com/sessionrecording"
	"tailscale.com/tailcfg"
	"tailscale.com/tsnet"
	"tailscale.com/tstest/integration"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/logger"

	"tailtape.dev/interop/tailscale/badrecorder"
)

// limit is for everything that must happen at all.
const limit = 30 * time.Second

// TestHijackerAgainstARecorder is `kubectl exec` over WebSocket as the operator's proxy records it: its own hijacker, connected by
// the library to a recorder on loopback. The upstream tests of the hijacker have no recorder.
func TestHijackerAgainstARecorder(t *testing.T) {
	node := startNode(t)
	for _, enforced := range []bool{true, false} {
		policy := map[bool]string{true: "enforced", false: "fail open"}[enforced]
		t.Run("recorded, "+policy, func(t *testing.T) { recorded(t, node, enforced) })
		t.Run("refused, "+policy, func(t *testing.T) { refused(t, node, enforced) })
		t.Run("failing later, "+policy, func(t *testing.T) { failingLater(t, node, enforced) })
	}
}

// recorded: what the container prints reaches the recorder as a cast, and the user unchanged.
func recorded(t *testing.T, node *tsnet.Server, enforced bool) {
	rec := serve(t, func(rec *badrecorder.Recorder, w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		http.NewResponseController(w).Flush()
		if rec.Take(r.Body) == nil {
			io.WriteString(w, `{"ack":1}`)
		}
	})
	conn, user, err := hijack(t, node, rec.Addr(), enforced)
	if err != nil {
		t.Fatal(err)
	}
	if err := stdout(conn, user, "hi"); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, rec, func(received []byte) bool { return bytes.Count(received, []byte("\n")) == 2 })
	_, received := rec.Seen()
	lines := bytes.Split(received, []byte("\n"))
	var header sessionrecording.CastHeader
	if err := json.Unmarshal(lines[0], &header); err != nil {
		t.Fatal(err)
	}
	k := header.Kubernetes
	if k == nil || k.PodName != "web-0" || k.Namespace != "shop" || k.Container != "app" || k.SessionType != "exec" ||
		header.Command != "ls -l" || header.SrcNode != "laptop.tail.test" || header.SrcNodeUser != "alice@example.com" {
		t.Errorf("header: %s", lines[0])
	}
	var event []any
	if err := json.Unmarshal(lines[1], &event); err != nil || len(event) != 3 || event[1] != "o" || event[2] != "hi" {
		t.Errorf("event: %s, %v", lines[1], err)
	}
}

// refused: no recorder takes the upload. Enforced, the user gets a 403 and the end; else the session goes on.
func refused(t *testing.T, node *tsnet.Server, enforced bool) {
	rec := serve(t, func(_ *badrecorder.Recorder, w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	conn, user, err := hijack(t, node, rec.Addr(), enforced)
	if !enforced {
		if err != nil {
			t.Fatal(err)
		}
		if err := stdout(conn, user, "hi"); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err == nil {
		t.Fatal("the session goes on")
	}
	buffered := bufio.NewReader(user)
	response, err := http.ReadResponse(buffered, nil)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusForbidden {
		t.Errorf("the user gets %s", response.Status)
	}
	if _, err := io.Copy(io.Discard, buffered); err != nil {
		t.Errorf("the connection does not end: %v", err)
	}
}

// failingLater: an error frame in the middle of the session. Enforced, the connection is closed. Else the session should go on,
// but its context is cancelled, and so it soon ends as well: a frame of output fails with a probability of about one half.
func failingLater(t *testing.T, node *tsnet.Server, enforced bool) {
	fail := make(chan struct{})
	rec := serve(t, func(rec *badrecorder.Recorder, w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		http.NewResponseController(w).Flush()
		go rec.Take(r.Body)
		<-fail
		io.WriteString(w, `{"error":"no space left on device"}`)
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	conn, user, err := hijack(t, node, rec.Addr(), enforced)
	if err != nil {
		t.Fatal(err)
	}
	if err := stdout(conn, user, "hi"); err != nil {
		t.Fatal(err)
	}
	close(fail)
	if enforced {
		if n, err := io.Copy(io.Discard, user); n != 0 || err != nil {
			t.Errorf("the connection does not end: %d bytes, %v", n, err)
		}
		return
	}
	// The first frames may come before the failure does.
	for frames, deadline := 1, time.Now().Add(limit); ; frames++ {
		if err := stdout(conn, user, "still here"); err != nil {
			t.Logf("output fails at frame %d after the failure: %v", frames, err)
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %d frames the session still goes on", frames)
		}
	}
}

// stdout is the container printing text, and the user reading it.
func stdout(conn, user net.Conn, text string) error {
	// A final binary message, unmasked; its first byte is the channel, 1 for stdout.
	frame := append([]byte{0x82, byte(len(text) + 1), 1}, text...)
	wrote := make(chan error, 1)
	go func() {
		_, err := conn.Write(frame)
		if err != nil {
			user.SetReadDeadline(time.Now())
		}
		wrote <- err
	}()
	got := make([]byte, len(frame))
	_, readErr := io.ReadFull(user, got)
	if err := <-wrote; err != nil {
		return err
	}
	if readErr != nil {
		return readErr
	}
	if !bytes.Equal(got, frame) {
		return fmt.Errorf("the user gets %q", got)
	}
	return nil
}

// hijack takes over a connection as the proxy does when kubectl asks for an upgrade, and returns both ends.
func hijack(t *testing.T, node *tsnet.Server, recorder netip.AddrPort, enforced bool) (conn, user net.Conn, err error) {
	t.Helper()
	ours, user := connected(t)
	r := httptest.NewRequest("GET", "/api/v1/namespaces/shop/pods/web-0/exec?container=app&command=ls&command=-l&stdout=true", nil)
	h := ksr.NewHijacker(ksr.HijackerOpts{
		TS:  node,
		Req: r,
		W:   hijackable{httptest.NewRecorder(), ours},
		Who: &apitype.WhoIsResponse{
			Node:        &tailcfg.Node{Name: "laptop.tail.test.", StableID: "n1"},
			UserProfile: &tailcfg.UserProfile{LoginName: "alice@example.com"},
		},
		Addrs:       []netip.AddrPort{recorder},
		Log:         zap.NewNop().Sugar(),
		Pod:         "web-0",
		Namespace:   "shop",
		FailOpen:    !enforced,
		Proto:       ksr.WSProtocol,
		SessionType: ksr.ExecSessionType,
	})
	conn, _, err = h.Hijack()
	return conn, user, err
}

// connected returns the two ends of a TCP connection, which, unlike a pipe, takes what nobody reads yet.
func connected(t *testing.T) (ours, user net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if user, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { user.Close() })
	if ours, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	user.SetDeadline(time.Now().Add(limit))
	return ours, user
}

// hijackable is a response whose connection can be taken over.
type hijackable struct {
	http.ResponseWriter
	conn net.Conn
}

func (h hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}

// serve starts a recorder that answers the probe and gives POST to script.
func serve(t *testing.T, script badrecorder.Script) *badrecorder.Recorder {
	t.Helper()
	rec, err := badrecorder.Serve(true, func(rec *badrecorder.Recorder, w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			script(rec, w, r)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(rec.Close)
	return rec
}

func waitFor(t *testing.T, rec *badrecorder.Recorder, enough func(received []byte) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := rec.Wait(ctx, func(_ []badrecorder.Request, received []byte) bool { return enough(received) }); err != nil {
		t.Fatal(err)
	}
}

// startNode joins a tailnet of its own: the hijacker dials through a running node, also to loopback.
func startNode(t *testing.T) *tsnet.Server {
	t.Helper()
	envknob.SetNoLogsNoSupport()
	envknob.Setenv("TS_PANIC_IF_HIT_MAIN_CONTROL", "1")
	control := &testcontrol.Server{Logf: logger.Discard, DERPMap: integration.RunDERPAndSTUN(t, logger.Discard, "127.0.0.1")}
	control.HTTPTestServer = httptest.NewServer(control)
	t.Cleanup(control.HTTPTestServer.Close)
	node := &tsnet.Server{Dir: t.TempDir(), Hostname: "operator", ControlURL: control.HTTPTestServer.URL, Logf: logger.Discard, UserLogf: logger.Discard}
	t.Cleanup(func() { node.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if _, err := node.Up(ctx); err != nil {
		t.Fatal(err)
	}
	return node
}
