// Program conformance shows what the stock recording client does when its recorder misbehaves. Each case starts a scripted
// recorder on a loopback port (package badrecorder), drives tailscale.com/sessionrecording against it with a plain dialer, and
// compares what the client did with what a recorder may rely on. tests/interop/conformance.rs holds the list of what must run.
//
// All cases run at once, since the client's own limits, of up to 30 s, are the time they take. It prints one JSON object (type
// result) per line on stdout; logs go to stderr. Exit code 0 means that every case ran, not that it went as expected: the
// judge reads the results.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"slices"
	"strings"
	"time"
)

// caseLimit is more than the 30 s that the longest limit of the client takes, and what a case does besides.
const caseLimit = 75 * time.Second

// result is what became of one case.
type result struct {
	ID      string `json:"id"`      // of the case
	Variant string `json:"variant"` // of several ways to misbehave alike; "" for the only one
	OK      bool   `json:"ok"`      // the client did what was expected
	Detail  string `json:"detail"`  // what it did
	MS      int64  `json:"ms"`
}

// testCase is one case, or one variant of it.
type testCase struct {
	id, variant string
	// run returns what the client did, and an error if that is not what was expected.
	run func(ctx context.Context) (string, error)
}

func main() {
	log.SetPrefix("conformance: ")
	only := flag.String("only", "", "run only the case with this id, such as X04")
	list := flag.Bool("list", false, "print the ids and variants and run nothing")
	flag.Parse()

	cases := slices.Concat(v2Cases, v1Cases, failoverCases)
	if *only != "" {
		cases = slices.DeleteFunc(cases, func(c testCase) bool { return c.id != *only })
	}
	if *list {
		for _, c := range cases {
			fmt.Println(strings.TrimSpace(c.id + " " + c.variant))
		}
		return
	}

	results := make(chan result)
	for _, c := range cases {
		go func() { results <- judge(c) }()
	}
	out := json.NewEncoder(os.Stdout)
	for range cases {
		if err := out.Encode(<-results); err != nil {
			log.Fatal(err)
		}
	}
}

// judge runs one case. A case that does not end within its limit has failed; it is left behind, since the client may hang.
func judge(c testCase) result {
	started := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), caseLimit)
	defer cancel()
	type end struct {
		detail string
		err    error
	}
	ended := make(chan end, 1)
	go func() {
		detail, err := c.run(ctx)
		ended <- end{detail, err}
	}()
	r := result{ID: c.id, Variant: c.variant}
	select {
	case e := <-ended:
		r.OK, r.Detail = e.err == nil, e.detail
		if e.err != nil {
			r.Detail = e.err.Error()
		}
	case <-time.After(caseLimit + time.Second):
		r.Detail = fmt.Sprintf("did not end within %v", caseLimit)
	}
	r.MS = time.Since(started).Milliseconds()
	return r
}
