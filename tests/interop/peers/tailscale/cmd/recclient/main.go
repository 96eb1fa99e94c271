// Program recclient is a stock uploader of session recordings: a tsnet node of the Go library that streams casts to a
// recorder with sessionrecording.ConnectToRecorder, exactly as the SSH server of a stock node does: one write per line. With -v1
// it takes the library's way to the old endpoint; with -event it sends an event with sessionrecording.SendEvent instead, as the
// API server proxy for Kubernetes does.
//
// It joins, waits for Running, warms the path to the recorder with disco pings, streams, closes, and waits for the error
// channels. It prints one JSON object (type report) as the only line on stdout; logs go to stderr. Exit code 0 means that the
// report was printed, not that the upload succeeded: the judge reads the report. tests/interop starts it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/envknob"
	"tailscale.com/tailcfg"
	"tailscale.com/tsnet"
	"tailscale.com/version"
)

// Bounds of the waits. ConnectToRecorder gives up by itself 30 s after its first dial.
const (
	joinLimit   = 60 * time.Second
	finishLimit = 60 * time.Second
	pingLimit   = 5 * time.Second
	pingPause   = 200 * time.Millisecond
)

type options struct {
	control, authKeyFile, hostname, state, castFile, eventFile, reportFile string
	recorders                                                              recorderList
	generateBytes                                                          int64
	uploads                                                                int
	pace, idle, warm                                                       time.Duration
	v1, verbose                                                            bool
}

type recorderList []netip.AddrPort

func (l *recorderList) String() string { return fmt.Sprint(*l) }

func (l *recorderList) Set(s string) error {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return err
	}
	*l = append(*l, ap)
	return nil
}

// report is what the program says about its run. All durations are milliseconds.
type report struct {
	Version   string     `json:"version"`
	StableID  string     `json:"stable_id"`
	Addresses []string   `json:"addresses"`
	JoinMS    int64      `json:"join_ms"`
	Warm      warming    `json:"warm"`
	Uploads   []upload   `json:"uploads"` // none with -event
	Event     *sentEvent `json:"event"`   // null without -event
	Path      peerPath   `json:"path"`    // afterwards
}

// warming is how the first packets to the recorder fared.
type warming struct {
	MS       int64  `json:"ms"`
	Pings    int    `json:"pings"`
	Endpoint string `json:"endpoint"` // ip:port of the direct answer, or ""
	Derp     string `json:"derp"`     // region code, if any answer came over a relay
	Error    string `json:"error"`    // of the last ping, if none was answered directly
}

// peerPath is the path to the recorder right after the upload, from the local API.
type peerPath struct {
	Name    string `json:"name"`
	CurAddr string `json:"cur_addr"` // ip:port when direct
	Relay   string `json:"relay"`    // home region of the recorder
	Online  bool   `json:"online"`
	RxBytes int64  `json:"rx_bytes"`
	TxBytes int64  `json:"tx_bytes"`
}

func main() {
	log.SetPrefix("recclient: ")
	var o options
	flag.StringVar(&o.control, "control", "", "URL of the control server")
	flag.StringVar(&o.authKeyFile, "authkey-file", "", "file that holds the auth key")
	flag.StringVar(&o.hostname, "hostname", "recclient", "host name to ask for")
	flag.StringVar(&o.state, "state", "", "directory for the node's state")
	flag.Var(&o.recorders, "recorder", "ip:port of a recorder; repeat for failover")
	flag.StringVar(&o.castFile, "cast", "", "cast file to stream")
	flag.Int64Var(&o.generateBytes, "generate-bytes", 1<<20, "without -cast: generate a cast of at least this size")
	flag.BoolVar(&o.v1, "v1", false, "fail the probe for v2, so that the upload is POST /record over HTTP/1.1")
	flag.StringVar(&o.eventFile, "event", "", "upload nothing; send this file, one JSON object, to /v2/event of the first recorder that takes it")
	flag.DurationVar(&o.pace, "pace", 0, "pause between two lines")
	flag.IntVar(&o.uploads, "uploads", 1, "upload so many casts at once; generated ones all differ")
	flag.DurationVar(&o.idle, "idle", 0, "stay silent for this long before the last line, as an idle shell does")
	flag.DurationVar(&o.warm, "warm", 60*time.Second, "longest wait for a direct path before the upload; 0: do not ping")
	flag.StringVar(&o.reportFile, "report", "", "also write the report here")
	flag.BoolVar(&o.verbose, "verbose", false, "log what the node logs")
	flag.Parse()

	r, err := run(context.Background(), o)
	if err != nil {
		log.Fatal(err)
	}
	line, err := json.Marshal(r)
	if err != nil {
		log.Fatal(err)
	}
	line = append(line, '\n')
	if o.reportFile != "" {
		if err := os.WriteFile(o.reportFile, line, 0o644); err != nil {
			log.Fatal(err)
		}
	}
	if _, err := os.Stdout.Write(line); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, o options) (*report, error) {
	if o.control == "" || o.state == "" || len(o.recorders) == 0 {
		return nil, errors.New("-control, -state and at least one -recorder are needed")
	}
	// Neither logs nor registrations of a test may leave for the vendor's servers.
	envknob.SetNoLogsNoSupport()
	envknob.Setenv("TS_PANIC_IF_HIT_MAIN_CONTROL", "1")

	var event []byte
	var casts []io.ReadCloser
	if o.eventFile != "" {
		if o.v1 || o.castFile != "" {
			return nil, errors.New("-event goes with neither -v1 nor -cast")
		}
		var err error
		if event, err = os.ReadFile(o.eventFile); err != nil {
			return nil, err
		}
	} else {
		for i := range o.uploads {
			cast, err := openCast(o, i)
			if err != nil {
				return nil, err
			}
			defer cast.Close()
			casts = append(casts, cast)
		}
	}

	authKey := ""
	if o.authKeyFile != "" {
		b, err := os.ReadFile(o.authKeyFile)
		if err != nil {
			return nil, err
		}
		authKey = strings.TrimSpace(string(b))
	}
	node := &tsnet.Server{Dir: o.state, Hostname: o.hostname, AuthKey: authKey, ControlURL: o.control, UserLogf: log.Printf}
	if o.verbose {
		node.Logf = log.Printf
	}
	defer node.Close()

	r := &report{Version: version.Long()}
	started := time.Now()
	joinCtx, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	st, err := node.Up(joinCtx)
	if err != nil {
		return nil, fmt.Errorf("joining the tailnet: %w", err)
	}
	r.JoinMS = time.Since(started).Milliseconds()
	r.StableID = string(st.Self.ID)
	for _, ip := range st.TailscaleIPs {
		r.Addresses = append(r.Addresses, ip.String())
	}

	lc, err := node.LocalClient()
	if err != nil {
		return nil, err
	}
	if o.warm > 0 {
		r.Warm = warmPath(ctx, lc, o.recorders[0].Addr(), o.warm)
	}
	r.Uploads = make([]upload, len(casts))
	var wg sync.WaitGroup
	for i, cast := range casts {
		wg.Go(func() { r.Uploads[i] = stream(ctx, o, cast, node.Dial) })
	}
	wg.Wait()
	if event != nil {
		r.Event = send(o, event, node.Dial)
	}
	r.Path = pathTo(ctx, lc, o.recorders[0].Addr())
	return r, nil
}

// warmPath pings ip over disco until an answer comes directly, or limit has passed. ConnectToRecorder allows a dial only
// 5 s, and with no relay in between the first exchange of endpoints may take longer than that.
func warmPath(ctx context.Context, lc *local.Client, ip netip.Addr, limit time.Duration) (w warming) {
	started := time.Now()
	defer func() { w.MS = time.Since(started).Milliseconds() }()
	for time.Since(started) < limit {
		pingCtx, cancel := context.WithTimeout(ctx, pingLimit)
		pr, err := lc.Ping(pingCtx, ip, tailcfg.PingDisco)
		cancel()
		w.Pings++
		switch {
		case err != nil:
			w.Error = err.Error()
		case pr.Err != "":
			w.Error = pr.Err
		case pr.Endpoint != "":
			w.Endpoint, w.Error = pr.Endpoint, ""
			return w
		case pr.DERPRegionCode != "":
			w.Derp, w.Error = pr.DERPRegionCode, ""
		}
		time.Sleep(pingPause)
	}
	return w
}

// pathTo says by which path the node reaches ip now.
func pathTo(ctx context.Context, lc *local.Client, ip netip.Addr) (p peerPath) {
	st, err := lc.Status(ctx)
	if err != nil {
		log.Printf("status: %v", err)
		return p
	}
	for _, peer := range st.Peer {
		for _, have := range peer.TailscaleIPs {
			if have == ip {
				return peerPath{peer.HostName, peer.CurAddr, peer.Relay, peer.Online, peer.RxBytes, peer.TxBytes}
			}
		}
	}
	return p
}
