//go:build unix

package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Publish leads a port of this machine's loopback to a port of the capsule.
type Publish struct {
	HostPort int    `json:"host_port"`
	Port     int    `json:"port"`
	Protocol string `json:"protocol"` // "tcp" or "udp"
}

// ParsePublish reads HOSTPORT:PORT[/PROTOCOL]; host port 0 is any free one.
func ParsePublish(s string) (Publish, error) {
	ports, protocol, ok := strings.Cut(s, "/")
	if !ok {
		protocol = "tcp"
	}
	host, guest, ok := strings.Cut(ports, ":")
	h, errHost := strconv.ParseUint(host, 10, 16)
	g, errGuest := strconv.ParseUint(guest, 10, 16)
	if !ok || errors.Join(errHost, errGuest) != nil || g == 0 || (protocol != "tcp" && protocol != "udp") {
		return Publish{}, fmt.Errorf("publish %q: want HOSTPORT:PORT[/tcp|/udp]: %w", s, errdefs.ErrInvalidArgument)
	}
	return Publish{HostPort: int(h), Port: int(g), Protocol: protocol}, nil
}

func (p Publish) String() string { return fmt.Sprintf("%d:%d/%s", p.HostPort, p.Port, p.Protocol) }

// fix gives each published port a number on this machine that is free now.
func fix(publish []Publish) ([]Publish, error) {
	fixed := make([]Publish, 0, len(publish))
	for _, p := range publish {
		port, held, err := hold(p.Protocol, p.HostPort)
		if err != nil {
			return nil, err
		}
		defer held.Close() // until all have theirs, or one might be given twice
		p.HostPort = port
		fixed = append(fixed, p)
	}
	return fixed, nil
}

// hold takes a loopback port; 0 picks one that is free.
func hold(protocol string, port int) (int, io.Closer, error) {
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	if protocol == "udp" {
		c, err := net.ListenPacket("udp", address)
		if err != nil {
			return 0, nil, fmt.Errorf("port %d/udp of this machine: %w", port, err)
		}
		return c.LocalAddr().(*net.UDPAddr).Port, c, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return 0, nil, fmt.Errorf("port %d/tcp of this machine: %w", port, err)
	}
	return l.Addr().(*net.TCPAddr).Port, l, nil
}
