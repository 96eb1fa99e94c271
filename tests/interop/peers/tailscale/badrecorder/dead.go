package badrecorder

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
)

// Refusing returns an address that refuses connections: a socket is bound to it that does not listen. close frees it.
func Refusing() (addr netip.AddrPort, close func(), err error) {
	return bound(func(int) error { return nil })
}

// BlackHole returns an address that never answers a SYN, as that of a machine that is gone: it listens, but its queue is full and
// nobody accepts. close frees it.
func BlackHole() (addr netip.AddrPort, close func(), err error) {
	addr, free, err := bound(func(fd int) error { return syscall.Listen(fd, 0) })
	if err != nil {
		return addr, nil, err
	}
	// A backlog of 0 takes one connection; it stays in the queue, and the kernel drops further SYNs.
	filler, err := net.Dial("tcp", addr.String())
	if err != nil {
		free()
		return addr, nil, fmt.Errorf("filling the queue: %w", err)
	}
	return addr, func() { filler.Close(); free() }, nil
}

// bound makes a TCP socket on a free loopback port and hands it to prepare.
func bound(prepare func(fd int) error) (addr netip.AddrPort, free func(), err error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		return addr, nil, os.NewSyscallError("socket", err)
	}
	free = func() { syscall.Close(fd) }
	defer func() {
		if err != nil {
			free()
		}
	}()
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return addr, nil, os.NewSyscallError("bind", err)
	}
	if err := prepare(fd); err != nil {
		return addr, nil, err
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		return addr, nil, os.NewSyscallError("getsockname", err)
	}
	in4, ok := name.(*syscall.SockaddrInet4)
	if !ok {
		return addr, nil, fmt.Errorf("bound to %v", name)
	}
	return netip.AddrPortFrom(netip.AddrFrom4(in4.Addr), uint16(in4.Port)), free, nil
}
