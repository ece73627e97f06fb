package drivertest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"capsule/internal/imagetest"
	"capsule/internal/workload"
)

// network checks ports and names both ways over one pair of Ethernet.
func (s *suite) network(t *testing.T) {
	n := s.Neighbour(t, "served")
	in := s.instance("spawn", "udp", ":9000", "then", "http", ":8080", "hi")
	in.Network = n.Network
	s.start(t, in)
	s.printedTimes(t, in, "listening", 2)
	for i := range n.Own {
		t.Run(fmt.Sprintf("ports by %s", n.Own[i]), func(t *testing.T) { s.reached(t, n, n.Instance[i], n.Own[i]) })
		t.Run(fmt.Sprintf("out to %s", n.Own[i]), func(t *testing.T) { s.reaches(t, in.ID, n, n.Own[i]) })
	}
	t.Run("names", func(t *testing.T) { s.names(t, in, n) })
	t.Run("again", func(t *testing.T) {
		if err := s.driver.Stop(t.Context(), in.ID, sigkill, 0); err != nil {
			t.Fatal(err)
		}
		if err := s.driver.Start(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		s.printedTimes(t, in, "listening", 4)
		s.reached(t, n, n.Instance[0], n.Own[0])
	})
}

// fetch reads a page of the instance as its neighbour.
func (n *Neighbour) fetch(url string) (body []byte, err error) {
	err = n.Do(func() error {
		// The connection must be made on this thread.
		address := strings.TrimPrefix(url, "http://")
		address, _, _ = strings.Cut(address, "/")
		conn, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		client := http.Client{Transport: &http.Transport{
			Dial:              func(string, string) (net.Conn, error) { return conn, nil }, //nolint:staticcheck // it is there already
			DisableKeepAlives: true,
		}}
		resp, err := client.Get(url) //nolint:noctx // the connection has a deadline
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err = io.ReadAll(resp.Body)
		return err
	})
	return body, err
}

// reached: the neighbour meets the instance's ports, and is seen as itself.
func (s *suite) reached(t *testing.T, n *Neighbour, instance, own netip.Addr) {
	t.Helper()
	url := "http://" + netip.AddrPortFrom(instance, 8080).String()
	body, err := n.fetch(url)
	if want := "hi from " + strings.TrimSuffix(netip.AddrPortFrom(own, 0).String(), "0"); err != nil || !strings.HasPrefix(string(body), want) {
		t.Errorf("got %q, %v; want %q", body, err, want)
	}
	// Some thousand packets, in as large pieces as the links take.
	program := imagetest.Payload(t)
	body, err = n.fetch(url + "/file/payload")
	if err != nil || sha256.Sum256(body) != sha256.Sum256(program) {
		t.Errorf("%d bytes of %d, %v", len(body), len(program), err)
	}
	err = n.Do(func() error {
		conn, err := net.Dial("udp", netip.AddrPortFrom(instance, 9000).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		packet := bytes.Repeat([]byte("0123456789"), 400) // more than a frame
		if _, err := conn.Write(packet); err != nil {
			return err
		}
		answer := make([]byte, 2*len(packet))
		got, err := conn.Read(answer)
		if err == nil && !bytes.Equal(answer[:got], packet) {
			err = fmt.Errorf("other %d bytes", got)
		}
		return err
	})
	if err != nil {
		t.Errorf("udp: %v", err)
	}
}

// reaches: the instance meets a port of its neighbour.
func (s *suite) reaches(t *testing.T, id workload.ID, n *Neighbour, own netip.Addr) {
	big := bytes.Repeat([]byte("neighbour "), 100_000)
	var listener net.Listener
	err := n.Do(func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(own, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		_ = http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(big) })) //nolint:gosec // a test
	}()
	code, out, errs := s.command(t, id, payload("dial", "http", listener.Addr().String()))
	if code != 0 || out != string(big) {
		t.Errorf("code %d, %d bytes of %d, %q", code, len(out), len(big), errs)
	}
}

// names: the instance asks who its resolv.conf names, and sees that rewritten.
func (s *suite) names(t *testing.T, in workload.Instance, n *Neighbour) {
	var packets net.PacketConn
	err := n.Do(func() (err error) {
		packets, err = net.ListenPacket("udp", netip.AddrPortFrom(n.Own[0], 53).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: packets, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg)
		r.SetReply(q)
		if q.Question[0].Name == "blog." && q.Question[0].Qtype == dns.TypeA {
			r.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "blog.", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(192, 0, 2, 77)}}
		}
		_ = w.WriteMsg(r)
	})}
	go func() { _ = server.ActivateAndServe() }()
	defer func() { _ = server.Shutdown() }()
	if code, out, errs := s.command(t, in.ID, payload("lookup", "blog")); code != 0 || out != "blog 192.0.2.77\n" {
		t.Errorf("code %d, %q, %q", code, out, errs)
	}
	const changed = "127.0.0.1 localhost\n192.0.2.9 other\n"
	if err := os.WriteFile(in.Network.Hosts, []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for {
		_, out, _ := s.command(t, in.ID, payload("cat", "/etc/hosts"))
		if out == changed {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v /etc/hosts is still %q", patience, out)
		}
		<-time.After(100 * time.Millisecond)
	}
}
