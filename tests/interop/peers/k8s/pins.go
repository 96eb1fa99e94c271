// Package k8s pins the stock Kubernetes operator, which uploads recordings and events as the SSH server of a node does. Its own
// tests say what it does and when, and one here gives its hijacker a recorder; tests/interop/conformance.rs runs them. It is a module of its own, since the
// operator needs a hundred modules that no other peer needs.
package k8s

import (
	// Imported so that `go mod tidy` keeps what their tests need; the operator itself, a program, is a tool of this module.
	_ "tailscale.com/k8s-operator/api-proxy"
	_ "tailscale.com/k8s-operator/sessionrecording"
)
