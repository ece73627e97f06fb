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

// names: the instance asks who its resolv.conf names, is told what there is and what
// isn't, and sees both files rewritten.
func (s *suite) names(t *testing.T, in workload.Instance, n *Neighbour) {
	n.serveNames(t, n.Own[0], "192.0.2.77")
	n.serveNames(t, n.Own[1], "192.0.2.78")
	many := "NOERROR" + strings.Repeat(" 192.0.2.77", manyAnswers)
	for _, test := range [][4]string{
		{"udp", "blog.", "A", "NOERROR 192.0.2.77"},
		{"udp", "blog.", "AAAA", "NOERROR"}, // it is there, and has none
		{"udp", "six.", "A", "NOERROR"},
		{"udp", "six.", "AAAA", "NOERROR 2001:db8::77"},
		{"udp", "gone.", "A", "NXDOMAIN"},
		{"tcp", "blog.", "A", "NOERROR 192.0.2.77"},
		{"tcp", "gone.", "AAAA", "NXDOMAIN"},
		{"tcp", "many.", "A", many},
	} {
		if code, out, errs := s.command(t, in.ID, payload("ask", test[0], test[1], test[2])); code != 0 || out != test[3]+"\n" {
			t.Errorf("%s %s by %s: code %d, %q, %q; want %q", test[1], test[2], test[0], code, out, errs, test[3])
		}
	}
	if _, out, errs := s.command(t, in.ID, payload("ask", "udp", "many.", "A")); !strings.HasPrefix(out, "NOERROR truncated") {
		t.Errorf("more than a packet holds: %q, %q", out, errs)
	}
	for name, want := range map[string]string{"blog": "blog 192.0.2.77\n", "six": "six 2001:db8::77\n", "many": "many" + many[len("NOERROR"):] + "\n"} {
		if code, out, errs := s.command(t, in.ID, payload("lookup", name)); code != 0 || out != want {
			t.Errorf("code %d, %q, %q; want %q", code, out, errs, want)
		}
	}
	const changed = "127.0.0.1 localhost\n192.0.2.9 other\n"
	server := fmt.Sprintf("nameserver %s\n", n.Own[1])
	for path, content := range map[string]string{in.Network.Hosts: changed, in.Network.ResolvConf: server} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s.shows(t, in.ID, "/etc/hosts", changed)
	s.shows(t, in.ID, "/etc/resolv.conf", server)
	if code, out, errs := s.command(t, in.ID, payload("lookup", "blog")); code != 0 || out != "blog 192.0.2.78\n" {
		t.Errorf("by the other server: code %d, %q, %q", code, out, errs)
	}
}

// manyAnswers are more than fit into a packet of 512 bytes.
const manyAnswers = 100

// serveNames answers on an address of the neighbour, with this one for an address.
func (n *Neighbour) serveNames(t *testing.T, at netip.Addr, answer string) {
	t.Helper()
	var packets net.PacketConn
	var connections net.Listener
	err := n.Do(func() (err error) {
		if packets, err = net.ListenPacket("udp", netip.AddrPortFrom(at, 53).String()); err == nil {
			connections, err = net.Listen("tcp", netip.AddrPortFrom(at, 53).String())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	handle := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg).SetReply(q)
		record := func(kind, value string) {
			rr, err := dns.NewRR(q.Question[0].Name + " 60 IN " + kind + " " + value)
			if err == nil && q.Question[0].Qtype == rr.Header().Rrtype {
				r.Answer = append(r.Answer, rr)
			}
		}
		switch q.Question[0].Name {
		case "blog.":
			record("A", answer)
		case "six.":
			record("AAAA", "2001:db8::77")
		case "many.":
			for range manyAnswers {
				record("A", answer)
			}
		default:
			r.Rcode = dns.RcodeNameError
		}
		if w.RemoteAddr().Network() == "udp" {
			r.Truncate(dns.MinMsgSize)
		}
		_ = w.WriteMsg(r)
	})
	for _, server := range []*dns.Server{{PacketConn: packets, Handler: handle}, {Listener: connections, Handler: handle}} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go func() { _ = server.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = server.Shutdown() })
	}
}

// shows waits until a file of the instance holds it.
func (s *suite) shows(t *testing.T, id workload.ID, path, want string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		_, out, _ := s.command(t, id, payload("cat", path))
		if out == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v %s is still %q", patience, path, out)
		}
		<-time.After(100 * time.Millisecond)
	}
}
