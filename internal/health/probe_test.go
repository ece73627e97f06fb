package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

var here = Place{Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}

func port(address net.Addr) uint16 { return netip.MustParseAddrPort(address.String()).Port() }

func TestProbeTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := Check{TCP: port(l.Addr()), Timeout: 5 * time.Second}
	// The first address refuses; the second one answers.
	two := Place{Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.2"), here.Addresses[0]}}
	for _, at := range []Place{here, two} {
		if r := Probe(t.Context(), c, at); !r.OK {
			t.Errorf("%+v", r)
		}
	}
	l.Close()
	if diff := cmp.Diff(Result{Text: "connection refused"}, Probe(t.Context(), c, two)); diff != "" {
		t.Error(diff)
	}
	if r := Probe(t.Context(), c, Place{}); !r.Void {
		t.Errorf("without an address: %+v", r)
	}
}

func TestProbeHTTP(t *testing.T) {
	hang := make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
			fmt.Fprint(w, r.UserAgent())
		case "/moved":
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		case "/broken":
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintf(w, "the database is away\x1b[2J?%s", r.URL.RawQuery)
		case "/large":
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(w, strings.Repeat("x", 1<<20))
		case "/endless":
			w.(http.Flusher).Flush()
			<-hang
		case "/silent":
			<-hang
		}
	})
	web, tls := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer web.Close()
	defer tls.Close()
	defer close(hang)
	web.Config.ErrorLog, tls.Config.ErrorLog = nil, nil
	for _, test := range []struct {
		scheme, path string
		want         Result
	}{
		{"http", "/ok", Result{OK: true, Text: "HTTP status 200"}},
		{"https", "/ok", Result{OK: true, Text: "HTTP status 200"}},
		{"http", "/moved", Result{OK: true, Text: "HTTP status 302"}},
		{"http", "/broken?a=b", Result{Text: "HTTP status 503: the database is away[2J?a=b"}},
		{"http", "/large", Result{Text: "HTTP status 500: " + strings.Repeat("x", TextMax-len("HTTP status 500: "))}},
		{"http", "/endless", Result{OK: true, Text: "HTTP status 200"}},
		{"http", "/silent", Result{Text: "timed out after 300ms"}},
		{"https", "/silent", Result{Text: "timed out after 300ms"}},
	} {
		c := Check{HTTP: &HTTP{Port: port(web.Listener.Addr()), Path: test.path, Scheme: test.scheme}, Timeout: 10 * time.Second}
		if test.scheme == "https" {
			c.HTTP.Port = port(tls.Listener.Addr())
		}
		if test.path == "/silent" {
			c.Timeout = 300 * time.Millisecond
		}
		if diff := cmp.Diff(test.want, Probe(t.Context(), c, here)); diff != "" {
			t.Errorf("%s %s: %s", test.scheme, test.path, diff)
		}
	}
	// Plain text where TLS is expected, and the reverse.
	for scheme, at := range map[string]net.Addr{"https": web.Listener.Addr(), "http": tls.Listener.Addr()} {
		c := Check{HTTP: &HTTP{Port: port(at), Path: "/ok", Scheme: scheme}, Timeout: 10 * time.Second}
		if r := Probe(t.Context(), c, here); r.OK || r.Void || r.Text == "" {
			t.Errorf("%s: %+v", scheme, r)
		}
	}
}

func TestProbeExec(t *testing.T) {
	c := Check{Exec: []string{"check", "it"}, Timeout: 200 * time.Millisecond}
	gone := fmt.Errorf("containerd: %w", errdefs.ErrUnavailable)
	for name, test := range map[string]struct {
		run  func(ctx context.Context, out io.Writer) (int, error)
		want Result
	}{
		"ok":        {func(_ context.Context, out io.Writer) (int, error) { fmt.Fprintln(out, "fine"); return 0, nil }, Result{OK: true, Text: "fine"}},
		"fails":     {func(_ context.Context, out io.Writer) (int, error) { fmt.Fprint(out, "a\r\nb"); return 3, nil }, Result{Text: "exit code 3: a\nb"}},
		"silent":    {func(context.Context, io.Writer) (int, error) { return 1, nil }, Result{Text: "exit code 1"}},
		"away":      {func(context.Context, io.Writer) (int, error) { return 0, gone }, Result{Void: true, Text: gone.Error()}},
		"no forks":  {func(context.Context, io.Writer) (int, error) { return 0, errors.New("too many processes") }, Result{Text: "too many processes"}},
		"floods":    {func(_ context.Context, out io.Writer) (int, error) { return 1, flood(out) }, Result{Text: "exit code 1: " + strings.Repeat("y", TextMax-len("exit code 1: "))}},
		"not UTF-8": {func(_ context.Context, out io.Writer) (int, error) { fmt.Fprint(out, "\xff\x00"); return 0, nil }, Result{OK: true, Text: "\uFFFD"}},
		"hangs": {func(ctx context.Context, out io.Writer) (int, error) {
			fmt.Fprint(out, "looking")
			<-ctx.Done()
			return 0, ctx.Err()
		}, Result{Text: "timed out after 200ms: looking"}},
	} {
		at := Place{Exec: func(ctx context.Context, command []string, out io.Writer) (int, error) {
			if diff := cmp.Diff(c.Exec, command); diff != "" {
				t.Error(diff)
			}
			return test.run(ctx, out)
		}}
		if diff := cmp.Diff(test.want, Probe(t.Context(), c, at)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func flood(out io.Writer) error {
	for range 1000 {
		if _, err := io.WriteString(out, strings.Repeat("y", 1000)); err != nil {
			return err
		}
	}
	return nil
}
