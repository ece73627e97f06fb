package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"capsule/internal/version"
)

const (
	// TextMax bounds what is kept of a result, in bytes.
	TextMax = 4 << 10
	// bodyMax is how much of an HTTP answer is read, in bytes.
	bodyMax = TextMax
	// headerMax bounds the header of an HTTP answer, in bytes.
	headerMax = 64 << 10
)

// A Place is where a check is made.
type Place struct {
	// Addresses of the workload, each tried in order.
	Addresses []netip.Addr
	// Exec runs a command in the workload until it ends or ctx does, when nothing
	// of it is left.
	Exec func(ctx context.Context, command []string, out io.Writer) (code int, err error)
}

// Probe makes a check once, within its timeout.
func Probe(ctx context.Context, c Check, at Place) Result {
	limited, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	r := c.probe(limited, at)
	switch {
	case ctx.Err() != nil:
		return Result{Void: true, Text: "no check was made"}
	case limited.Err() != nil && !r.OK && !r.Void:
		r.Text = strings.TrimSuffix(fmt.Sprintf("timed out after %v: %s", c.Timeout, r.Text), ": ")
	}
	r.Text = clip(r.Text)
	return r
}

func (c Check) probe(ctx context.Context, at Place) Result {
	switch {
	case len(c.Exec) > 0:
		return execute(ctx, c.Exec, at)
	case len(at.Addresses) == 0:
		return Result{Void: true, Text: "the workload has no address"}
	case c.HTTP != nil:
		return c.HTTP.get(ctx, at)
	}
	conn, err := dial(ctx, at, c.TCP)
	if err != nil {
		return Result{Text: reason(ctx, err)}
	}
	conn.Close()
	return Result{OK: true, Text: fmt.Sprintf("port %d accepts connections", c.TCP)}
}

// execute runs the program.
func execute(ctx context.Context, command []string, at Place) Result {
	var out head
	code, err := at.Exec(ctx, command, &out)
	text := strings.TrimSpace(out.String())
	switch {
	case ctx.Err() != nil: // also when its end came with it
		return Result{Text: text}
	case errdefs.IsUnavailable(err), errdefs.IsNotFound(err), errdefs.IsFailedPrecondition(err):
		return Result{Void: true, Text: err.Error()}
	case err != nil:
		return Result{Text: err.Error()}
	case code == 0:
		return Result{OK: true, Text: text}
	}
	return Result{Text: strings.TrimSuffix(fmt.Sprintf("exit code %d: %s", code, text), ": ")}
}

// head keeps the beginning of what is written.
type head struct {
	mu   sync.Mutex // a command has two streams
	text []byte
}

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.text = append(h.text, p[:min(len(p), TextMax-len(h.text))]...)
	return len(p), nil
}

func (h *head) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return string(h.text)
}

// dial connects to the first address that accepts, else tells of the first.
func dial(ctx context.Context, at Place, port uint16) (net.Conn, error) {
	var first error
	for _, a := range at.Addresses {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", netip.AddrPortFrom(a, port).String())
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// get makes the request. A redirect is an answer: where it leads may be elsewhere.
func (h *HTTP) get(ctx context.Context, at Place) Result {
	client := &http.Client{
		Transport: &http.Transport{
			DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, at, h.Port) },
			TLSClientConfig:        &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // whether it answers is asked, not who
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: headerMax,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	host := net.JoinHostPort(at.Addresses[0].String(), strconv.Itoa(int(h.Port)))
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, h.Scheme+"://"+host+h.Path, nil)
	if err != nil {
		return Result{Text: err.Error()}
	}
	request.Header.Set("User-Agent", "capsule-health/"+version.Version)
	answer, err := client.Do(request)
	if err != nil {
		return Result{Text: reason(ctx, err)}
	}
	defer answer.Body.Close()
	text := fmt.Sprintf("HTTP status %d", answer.StatusCode)
	if answer.StatusCode >= 200 && answer.StatusCode < 400 {
		return Result{OK: true, Text: text} // however much it has to say yet
	}
	body, _ := io.ReadAll(io.LimitReader(answer.Body, bodyMax)) // as far as it comes
	return Result{Text: strings.TrimSuffix(text+": "+strings.TrimSpace(string(body)), ": ")}
}

// reason is a failure without where it was met, which the check says.
func reason(ctx context.Context, err error) string {
	if ctx.Err() != nil {
		return ""
	}
	var no syscall.Errno
	if errors.As(err, &no) {
		return no.Error()
	}
	for next := errors.Unwrap(err); next != nil; next = errors.Unwrap(err) {
		err = next
	}
	return err.Error()
}

// clip bounds a text to what is kept, as text that can be shown: line by line, with
// nothing that moves a terminal's cursor.
func clip(text string) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	text = strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return -1
		}
		return r
	}, text)
	if len(text) > TextMax {
		text = strings.ToValidUTF8(text[:TextMax], "")
	}
	return strings.TrimSpace(text)
}

// jitter adds up to a tenth, so that many checks don't come together.
func jitter(d time.Duration, random float64) time.Duration {
	return d + time.Duration(float64(d)*random/10)
}
