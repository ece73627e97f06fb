package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// askLimit of one question by UDP, which may be lost; askTimes it is sent.
const (
	askLimit = 5 * time.Second
	askTimes = 6
)

// ask NETWORK NAME TYPE [SERVER] asks the first server of resolv.conf, or the one
// that is named, and prints the code and the addresses: "NOERROR 192.0.2.1". By UDP
// it takes 512 bytes, and says "truncated" of more.
func ask(args []string) int {
	network, name, kind := argument(args, 0, "udp"), argument(args, 1, "."), argument(args, 2, "A")
	server := argument(args, 3, "")
	if server == "" {
		var err error
		if server, err = nameserver(); err != nil {
			return fail(err)
		}
	}
	types := map[string]dnsmessage.Type{"A": dnsmessage.TypeA, "AAAA": dnsmessage.TypeAAAA, "MX": dnsmessage.TypeMX, "TXT": dnsmessage.TypeTXT}
	owner, err := dnsmessage.NewName(name)
	if err != nil {
		return fail(err)
	}
	question := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: uint16(os.Getpid()), RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: owner, Type: types[kind], Class: dnsmessage.ClassINET}},
	}
	packed, err := question.Pack()
	if err != nil {
		return fail(err)
	}
	for try := 1; ; try++ {
		answer, err := exchange(network, net.JoinHostPort(server, "53"), packed)
		if err == nil {
			fmt.Println(said(answer))
			return 0
		}
		if network != "udp" || try == askTimes {
			return fail(err)
		}
	}
}

// nameserver is the first one of resolv.conf.
func nameserver() (string, error) {
	content, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(content)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "nameserver" {
			return f[1], nil
		}
	}
	return "", errors.New("resolv.conf names no server")
}

// exchange sends one message, by TCP behind its length (RFC 1035, 4.2.2).
func exchange(network, to string, packed []byte) (answer dnsmessage.Message, err error) {
	conn, err := net.DialTimeout(network, to, dialLimit)
	if err != nil {
		return answer, err
	}
	defer func() { _ = conn.Close() }()
	limit := askLimit
	if network == "tcp" {
		limit, packed = dialLimit, append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...)
	}
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return answer, err
	}
	if _, err := conn.Write(packed); err != nil {
		return answer, err
	}
	got := make([]byte, 64<<10)
	if network == "tcp" {
		if _, err := io.ReadFull(conn, got[:2]); err != nil {
			return answer, err
		}
		n, err := io.ReadFull(conn, got[:binary.BigEndian.Uint16(got)])
		if err != nil {
			return answer, err
		}
		return answer, answer.Unpack(got[:n])
	}
	n, err := conn.Read(got)
	if err != nil {
		return answer, err
	}
	return answer, answer.Unpack(got[:n])
}

// said is an answer in short.
func said(m dnsmessage.Message) string {
	code, known := map[dnsmessage.RCode]string{
		dnsmessage.RCodeSuccess: "NOERROR", dnsmessage.RCodeNameError: "NXDOMAIN", dnsmessage.RCodeServerFailure: "SERVFAIL",
	}[m.RCode]
	if !known {
		code = m.RCode.String()
	}
	words := []string{code}
	if m.Truncated {
		words = append(words, "truncated")
	}
	for _, r := range m.Answers {
		switch body := r.Body.(type) {
		case *dnsmessage.AResource:
			words = append(words, net.IP(body.A[:]).String())
		case *dnsmessage.AAAAResource:
			words = append(words, net.IP(body.AAAA[:]).String())
		}
	}
	return strings.Join(words, " ")
}
