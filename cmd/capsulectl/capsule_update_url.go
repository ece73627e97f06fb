package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"capsule/internal/bundle"
)

// Limits of fetching a bundle.
const (
	urlGap      = 128 << 10        // bytes: less costs more to ask for anew than to fetch
	urlAnswer   = 30 * time.Second // for a server's first byte
	urlStall    = 30 * time.Second // between two bytes
	urlPatience = 2 * time.Minute  // of trying again without a byte
	urlAgain    = 500 * time.Millisecond
	urlAgainMax = 10 * time.Second
	downloadMax = 4 << 30 // bytes, of a server without ranges
)

// webBundle is a bundle on a web server.
type webBundle struct {
	url    string
	shown  string // without a password
	client *http.Client
	meter  *meter
	size   int64
	// same is what the server knows this very file by; "" when it does not say.
	same     string
	patience time.Duration
}

// openURL finds what the server has there. Without ranges all of it is fetched to
// a file first.
func openURL(ctx context.Context, from string, meter *meter) (*bundleSource, error) {
	parsed, err := url.Parse(from)
	if err != nil || parsed.Host == "" {
		return nil, &failure{exitUsage, fmt.Errorf("%q is no URL", from), "write it as in http://HOST/FILE"}
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = urlAnswer
	w := &webBundle{url: from, shown: parsed.Redacted(), client: &http.Client{Transport: transport}, meter: meter, patience: urlPatience}
	source, err := w.begin(ctx)
	if err != nil {
		transport.CloseIdleConnections()
		return nil, err
	}
	inner := source.close
	source.close = func() {
		inner()
		transport.CloseIdleConnections()
	}
	return source, nil
}

func (w *webBundle) begin(ctx context.Context) (*bundleSource, error) {
	head, total, err := w.get(ctx, 0, int64(bundle.HeaderMax))
	if err != nil {
		return nil, fmt.Errorf("fetch %q: %w", w.shown, err)
	}
	if total < 0 { // all of it comes
		return w.download(ctx, head)
	}
	defer head.Close()
	w.size = total
	data, err := io.ReadAll(io.LimitReader(head, int64(bundle.HeaderMax)))
	if err != nil {
		return nil, fmt.Errorf("fetch %q: %w", w.shown, err)
	}
	header, err := bundle.ReadHeader(bytes.NewReader(data))
	if err != nil {
		return nil, notBundle(w.shown, err)
	}
	return &bundleSource{name: w.shown, header: header, size: total, gap: urlGap, open: w.open, close: func() {}}, nil
}

// errFinal is of an answer that does not change by asking again.
type errFinal struct{ error }

func (e errFinal) Unwrap() error { return e.error }

var contentRange = regexp.MustCompile(`^bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})$`)

// get asks for a part of the file. total is the file's size, or -1 when the
// server sends all of it instead.
func (w *webBundle) get(ctx context.Context, offset, length int64) (body io.ReadCloser, total int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url, nil)
	if err != nil {
		cancel()
		return nil, 0, errFinal{err}
	}
	request.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
	request.Header.Set("Accept-Encoding", "identity") // places are those of the file
	if w.same != "" {
		request.Header.Set("If-Range", w.same)
	}
	response, err := w.client.Do(request) //nolint:bodyclose // the taker closes it
	if err != nil {
		cancel()
		return nil, 0, plainURLError(err)
	}
	body = &fetched{ReadCloser: response.Body, cancel: cancel, stall: time.AfterFunc(urlStall, cancel)}
	if total, err = w.check(response, offset); err != nil {
		body.Close() //nolint:errcheck // only read
		return nil, 0, err
	}
	return body, total, nil
}

// check reads the head of an answer.
func (w *webBundle) check(r *http.Response, offset int64) (total int64, err error) {
	if coding := r.Header.Get("Content-Encoding"); coding != "" && coding != "identity" {
		return 0, errFinal{fmt.Errorf("the server sends it encoded as %q", coding)}
	}
	switch {
	case r.StatusCode == http.StatusOK && w.size == 0:
		return -1, nil
	case r.StatusCode == http.StatusOK:
		return 0, errFinal{errors.New("the file changed while it was fetched")}
	case r.StatusCode == http.StatusTooManyRequests, r.StatusCode == http.StatusRequestTimeout, r.StatusCode >= http.StatusInternalServerError:
		return 0, fmt.Errorf("the server answers %s", r.Status)
	case r.StatusCode != http.StatusPartialContent:
		return 0, errFinal{fmt.Errorf("the server answers %s", r.Status)}
	}
	m := contentRange.FindStringSubmatch(r.Header.Get("Content-Range"))
	if m == nil || m[1] != strconv.FormatInt(offset, 10) {
		return 0, errFinal{fmt.Errorf("the server gives another part (%q)", r.Header.Get("Content-Range"))}
	}
	total, err = strconv.ParseInt(m[3], 10, 64)
	if err != nil || (w.size != 0 && total != w.size) {
		return 0, errFinal{errors.New("the file changed while it was fetched")}
	}
	if w.same == "" {
		w.same = validator(r.Header)
	}
	return total, nil
}

// validator is what If-Range takes: a strong tag, else the time of the change.
func validator(h http.Header) string {
	if tag := h.Get("ETag"); tag != "" && !strings.HasPrefix(tag, "W/") {
		return tag
	}
	return h.Get("Last-Modified")
}

// plainURLError drops the method and the address that net/http puts in front.
func plainURLError(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// fetched is the body of an answer; one that stalls ends.
type fetched struct {
	io.ReadCloser
	cancel context.CancelFunc
	stall  *time.Timer
}

func (f *fetched) Read(p []byte) (int, error) {
	f.stall.Reset(urlStall)
	defer f.stall.Stop() // the taker may be slow
	return f.ReadCloser.Read(p)
}

func (f *fetched) Close() error {
	f.stall.Stop()
	defer f.cancel()
	return f.ReadCloser.Close()
}

func (w *webBundle) open(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
	return &webReader{web: w, ctx: ctx, at: offset, end: offset + length}, nil
}

// webReader reads a part of the file over as many answers as it takes.
type webReader struct {
	web     *webBundle
	ctx     context.Context //nolint:containedctx // of all its reads
	at, end int64
	body    io.ReadCloser
	tries   int       // without a byte
	stuck   time.Time // since the first of them
}

func (r *webReader) Read(p []byte) (int, error) {
	for r.at < r.end {
		n, err := r.once(p[:min(int64(len(p)), r.end-r.at)])
		r.at += int64(n)
		if n > 0 {
			r.tries = 0
			return n, nil
		}
		if err != nil {
			if err := r.rest(err); err != nil {
				return 0, err
			}
		}
	}
	return 0, io.EOF
}

// once reads from the answer that there is, or from a new one.
func (r *webReader) once(p []byte) (n int, err error) {
	if r.body == nil {
		if r.body, _, err = r.web.get(r.ctx, r.at, r.end-r.at); err != nil {
			r.body = nil
			return 0, err
		}
	}
	n, err = r.body.Read(p)
	if err != nil {
		r.Close() //nolint:errcheck // only read
	}
	return n, err
}

// rest waits before the next try, or ends the tries.
func (r *webReader) rest(err error) error {
	var final errFinal
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || (errors.Is(err, context.Canceled) && r.ctx.Err() == nil) {
		err = errors.New("the server broke off")
	}
	if r.tries == 0 {
		r.stuck = time.Now()
	}
	switch {
	case r.ctx.Err() != nil:
		return r.ctx.Err()
	case errors.As(err, &final):
		return final.error
	case time.Since(r.stuck) >= r.web.patience:
		return err
	}
	if r.tries++; r.tries > 1 { // an answer that ends early is common, and only asked for again
		r.web.meter.note("fetch %q: %s; trying again", r.web.shown, err)
	}
	pause(r.ctx, min(urlAgain<<min(r.tries, 8), urlAgainMax))
	return nil
}

func (r *webReader) Close() error {
	if r.body == nil {
		return nil
	}
	err := r.body.Close()
	r.body = nil
	return err
}

// download keeps all that a server without ranges sends in a file that is gone
// with the program.
func (w *webBundle) download(ctx context.Context, body io.ReadCloser) (*bundleSource, error) {
	defer body.Close()
	header, err := bundle.ReadHeader(body) // before the rest is fetched for nothing
	if err != nil {
		return nil, notBundle(w.shown, err)
	}
	f, err := os.CreateTemp("", "capsule-*.bundle")
	if err != nil {
		return nil, err
	}
	drop := func() {
		f.Close()           //nolint:errcheck // of no use any more
		os.Remove(f.Name()) //nolint:errcheck // as above
	}
	if header.Size > downloadMax {
		drop()
		return nil, fmt.Errorf("%q has no ranges on its server, and %s are more than the %s that are fetched first; use another server or a file", w.shown, size(header.Size), size(downloadMax))
	}
	w.meter.note("%q has no ranges on its server: all of it is fetched first", w.shown)
	source, err := w.fill(ctx, f, header, body)
	if err != nil {
		drop()
		return nil, err
	}
	source.close = drop
	return source, nil
}

func (w *webBundle) fill(ctx context.Context, f *os.File, header *bundle.Header, body io.Reader) (*bundleSource, error) {
	if _, err := f.Write(header.Bytes()); err != nil {
		return nil, fmt.Errorf("%w (TMPDIR names a folder with more space)", err)
	}
	counted := &countedWriter{w: f, done: int64(len(header.Bytes())), told: func(done int64) { w.meter.set("fetch", done, header.Size, "") }}
	// One byte more shows that there is more.
	_, err := io.Copy(counted, io.LimitReader(body, header.Size-counted.done+1))
	switch {
	case counted.err != nil:
		return nil, fmt.Errorf("%w (TMPDIR names a folder with more space)", counted.err)
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, fmt.Errorf("fetch %q: the server broke off after %s of %s, and can't go on from there: %w", w.shown, size(counted.done), size(header.Size), err)
	}
	return fileSource(w.shown, f)
}

// countedWriter tells how much was written, and keeps its own error apart.
type countedWriter struct {
	w    io.Writer
	done int64
	told func(done int64)
	err  error
}

func (c *countedWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.done += int64(n)
	c.told(c.done)
	c.err = err
	return n, err
}
