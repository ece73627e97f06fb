package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	capsulev1 "capsule/api/capsule/v1"
)

// webSource is a file on a server, of which no head is read.
func webSource(t *testing.T, data []byte, handler http.HandlerFunc) *bundleSource {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	w := &webBundle{url: server.URL, shown: "x", client: server.Client(), size: int64(len(data)), patience: 200 * time.Millisecond,
		meter: &meter{line: statusLine{ui: &ui{err: &bytes.Buffer{}}}}}
	return &bundleSource{name: "x", size: w.size, gap: urlGap, open: w.open}
}

// Ranges that are near each other come by one answer, and no byte of between.
func TestWebJoinsNearRanges(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	var requests atomic.Int32
	s := webSource(t, data, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	})
	var ranges []*capsulev1.UpdateRange
	for at := int64(0); at < 100<<10; at += 8 << 10 {
		ranges = append(ranges, &capsulev1.UpdateRange{Offset: at + 1, Length: 4 << 10})
	}
	ranges = append(ranges,
		&capsulev1.UpdateRange{Offset: 400 << 10, Length: 300 << 10}, // far
		&capsulev1.UpdateRange{Offset: 0, Length: 1})                 // back
	got, want := make([]byte, len(data)), make([]byte, len(data))
	err := s.read(t.Context(), ranges, func(offset int64, part []byte) error {
		if len(part) > updateBytes {
			t.Errorf("%d bytes at once", len(part))
		}
		copy(got[offset:], part)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range ranges {
		copy(want[r.GetOffset():], data[r.GetOffset():][:r.GetLength()])
	}
	if !bytes.Equal(got, want) || requests.Load() != 3 {
		t.Errorf("equal: %v, %d requests", bytes.Equal(got, want), requests.Load())
	}
}

func TestWebGivesUp(t *testing.T) {
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		want    string
	}{
		"busy":         {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, "503"},
		"gone":         {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, "404"},
		"all of it":    {func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("x")) }, "changed"}, //nolint:errcheck // of a test
		"another part": {part("bytes 1-10/1000", ""), "another part"},
		"another size": {part("bytes 0-9/999", ""), "changed"},
		"no range":     {part("", ""), "another part"},
		"encoded":      {part("bytes 0-9/1000", "gzip"), `encoded as "gzip"`},
		"breaks off":   {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "the server broke off"},
		"empty":        {part("bytes 0-9/1000", ""), "the server broke off"},
	} {
		t.Run(name, func(t *testing.T) {
			s := webSource(t, make([]byte, 1000), c.handler)
			err := s.read(t.Context(), []*capsulev1.UpdateRange{{Length: 10}}, func(int64, []byte) error { return nil })
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

// part answers with a part of nothing.
func part(contentRange, encoding string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Range", contentRange)
		if encoding != "" {
			w.Header().Set("Content-Encoding", encoding)
		}
		w.WriteHeader(http.StatusPartialContent)
	}
}

func TestSourceHas(t *testing.T) {
	s := &bundleSource{size: 100}
	for _, c := range []struct {
		offset, length int64
		ok             bool
	}{{0, 100, true}, {99, 1, true}, {0, 101, false}, {100, 1, false}, {-1, 2, false}, {0, 0, false}, {1, -1, false}, {1 << 62, 1 << 62, false}, {50, 1<<63 - 1, false}} {
		err := s.has(slices.Repeat([]*capsulev1.UpdateRange{{Offset: c.offset, Length: c.length}}, 1))
		if (err == nil) != c.ok {
			t.Errorf("%d at %d: %v", c.length, c.offset, err)
		}
	}
}
