package image_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"capsule/internal/image"
	"capsule/internal/imagetest"
)

const secret = "s3cr3t-word"

func TestPullFromRegistries(t *testing.T) {
	f := open(t)
	tests := []struct {
		name    string
		options imagetest.RegistryOptions
		access  func(r *imagetest.RegistryServer) image.RegistryAccess
		class   func(error) bool // nil when it succeeds
		want    string
	}{
		{name: "plain HTTP, set",
			access: func(*imagetest.RegistryServer) image.RegistryAccess { return image.RegistryAccess{PlainHTTP: true} }},
		{name: "plain HTTP, not set",
			class: errdefs.IsFailedPrecondition, want: "--plain-http"},
		{name: "own authority, set", options: imagetest.RegistryOptions{TLS: true},
			access: func(r *imagetest.RegistryServer) image.RegistryAccess { return image.RegistryAccess{CA: r.CA} }},
		{name: "own authority, not set", options: imagetest.RegistryOptions{TLS: true},
			class: errdefs.IsFailedPrecondition, want: "--ca FILE"},
		{name: "login", options: imagetest.RegistryOptions{TLS: true, Username: "bob", Password: secret},
			access: func(r *imagetest.RegistryServer) image.RegistryAccess {
				return image.RegistryAccess{CA: r.CA, Username: "bob", Password: secret}
			}},
		{name: "no login", options: imagetest.RegistryOptions{TLS: true, Username: "bob", Password: secret},
			access: func(r *imagetest.RegistryServer) image.RegistryAccess { return image.RegistryAccess{CA: r.CA} },
			class:  errdefs.IsUnauthorized, want: "asks for a login (401)"},
		{name: "wrong login", options: imagetest.RegistryOptions{TLS: true, Username: "bob", Password: "other"},
			access: func(r *imagetest.RegistryServer) image.RegistryAccess {
				return image.RegistryAccess{CA: r.CA, Username: "bob", Password: secret}
			},
			class: errdefs.IsUnauthorized, want: `refuses the login of user "bob" (401)`},
		{name: "broken authority",
			access: func(*imagetest.RegistryServer) image.RegistryAccess { return image.RegistryAccess{CA: []byte("x")} },
			class:  errdefs.IsFailedPrecondition, want: "no PEM certificate"},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := imagetest.Registry(t, test.options)
			if test.access != nil {
				f.book[r.Host] = test.access(r)
			}
			ref := r.Push(t, "web", fmt.Sprint(i), hello(fmt.Sprint(i)))
			_, err := f.Pull(t.Context(), ref, nil)
			if test.class == nil {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !test.class(err) {
				t.Fatalf("class of %v", err)
			}
			for _, want := range []string{fmt.Sprintf("pull image %q: registry %s", ref, r.Host), test.want} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q lacks %q", err, want)
				}
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%q tells the password", err)
			}
		})
	}
}

func TestPullErrors(t *testing.T) {
	f := open(t)
	r := f.registry(t)
	ref := r.Push(t, "web", "1", hello("one"))
	status := func(code int) func(w http.ResponseWriter, r *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(code)
			return true
		}
	}
	closed := refusing(t)
	tests := []struct {
		name  string
		ref   string
		hook  func(w http.ResponseWriter, r *http.Request) bool
		class func(error) bool
		want  string
	}{
		{"no such tag", r.Host + "/web:none", nil, errdefs.IsNotFound, "no such image"},
		{"bad reference", "web:a:b", nil, errdefs.IsInvalidArgument, "web:a:b"},
		{"refused", closed + "/web:1", nil, errdefs.IsUnavailable, "connection refused"},
		{"forbidden", ref, status(403), errdefs.IsPermissionDenied, "(403)"},
		{"too many", ref, status(429), errdefs.IsUnavailable, "(429)"},
		{"broken", ref, status(503), errdefs.IsUnavailable, "503 Service Unavailable"},
		{"teapot", ref, status(418), errdefs.IsFailedPrecondition, "418"},
		{"redirect with a token", ref, func(w http.ResponseWriter, req *http.Request) bool {
			http.Redirect(w, req, "http://"+closed+"/blob?token="+secret, http.StatusTemporaryRedirect)
			return true
		}, errdefs.IsUnavailable, "connection refused"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r.Hook(test.hook)
			_, err := f.Pull(t.Context(), test.ref, nil)
			if err == nil || !test.class(err) {
				t.Fatalf("class of %v", err)
			}
			if !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), secret) {
				t.Errorf("error %q", err)
			}
			if n := f.leftovers(t); n != 0 {
				t.Errorf("%d blobs and layers left", n)
			}
		})
	}
}

// refusing is an address that is taken, so that nobody comes to listen there.
func refusing(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	own, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", own.(*unix.SockaddrInet4).Port)
}

func TestPullPicksPlatform(t *testing.T) {
	f := open(t)
	r := f.registry(t)
	other := hello("other")
	other.Architecture = foreignArch
	img, err := f.Pull(t.Context(), r.PushIndex(t, "web", "both", other, hello("one")), nil)
	if err != nil || img.Digest != hello("one").Build().Digest() {
		t.Errorf("%+v %v", img, err)
	}
	for _, ref := range []string{r.PushIndex(t, "web", "foreign", other), r.Push(t, "web", "single", other)} {
		_, err = f.Pull(t.Context(), ref, nil)
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "has linux/"+foreignArch+", this capsule is linux/") {
			t.Errorf("%s: %v", ref, err)
		}
	}
	by := r.PushIndex(t, "web", "by", hello("two"))
	if _, err := f.Pull(t.Context(), by, nil); err != nil {
		t.Fatal(err)
	}
	pinned := r.Host + "/web@" + hello("two").Build().Digest()
	if img, err := f.Pull(t.Context(), pinned, nil); err != nil || img.Name != pinned {
		t.Errorf("by digest: %+v %v", img, err)
	}
}

// TestPullBrokenLayer: a layer that comes damaged is refused, one that breaks
// off is fetched again from there.
func TestPullBrokenLayer(t *testing.T) {
	f := open(t)
	r := f.registry(t)
	ref := r.Push(t, "web", "1", hello("one"))
	layer := hello("one").Build().Layers[0]
	var broke atomic.Bool
	r.Hook(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, string(layer.Digest)) || broke.Swap(true) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(layer.Data)))
		_, _ = w.Write(layer.Data[:len(layer.Data)/2])
		return true
	})
	if _, err := f.Pull(t.Context(), ref, nil); err != nil || !broke.Load() {
		t.Fatalf("%v", err)
	}
	if _, err := f.Prune(t.Context(), nil, false); err != nil {
		t.Fatal(err)
	}
	r.Hook(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, string(layer.Digest)) {
			return false
		}
		_, _ = w.Write([]byte(strings.Repeat("x", len(layer.Data))))
		return true
	})
	_, err := f.Pull(t.Context(), ref, nil)
	if err == nil || !strings.Contains(err.Error(), string(layer.Digest)) {
		t.Errorf("damaged: %v", err)
	}
	if n := f.leftovers(t); n != 0 {
		t.Errorf("%d blobs and layers left", n)
	}
}

// TestPullShared: many who want the same image share one pull, which ends when
// the last of them has gone.
func TestPullShared(t *testing.T) {
	f := open(t)
	r := f.registry(t)
	ref := r.Push(t, "web", "1", hello("one"))
	asked, answer := make(chan struct{}, 100), make(chan struct{})
	r.Hook(func(http.ResponseWriter, *http.Request) bool {
		asked <- struct{}{}
		<-answer
		return false
	})
	first, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := f.Pull(first, ref, nil)
		left <- err
	}()
	<-asked
	var all sync.WaitGroup
	errs := make(chan error, 5)
	for range 5 {
		all.Go(func() {
			_, err := f.Pull(t.Context(), ref, nil)
			errs <- err
		})
	}
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("who left: %v", err)
	}
	close(answer)
	all.Wait()
	for range 5 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for _, l := range hello("one").Build().Layers {
		if n := r.Requests("GET /v2/web/blobs/" + string(l.Digest)); n != 1 {
			t.Errorf("layer fetched %d times", n)
		}
	}
}

func TestPullCancelled(t *testing.T) {
	f := open(t)
	r := f.registry(t)
	ref := r.Push(t, "web", "1", hello("one"))
	ctx, cancel := context.WithCancel(t.Context())
	r.Hook(func(_ http.ResponseWriter, req *http.Request) bool {
		if strings.Contains(req.URL.Path, "/blobs/") {
			cancel()
			<-req.Context().Done()
			return true
		}
		return false
	})
	if _, err := f.Pull(ctx, ref, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if n := f.leftovers(t); n != 0 {
		t.Errorf("%d blobs and layers left", n)
	}
	r.Hook(nil)
	if _, err := f.Pull(t.Context(), ref, nil); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestPullStalled: a registry that stops sending is an error in the end.
func TestPullStalled(t *testing.T) {
	f := open(t)
	f.Hasten(200*time.Millisecond, time.Millisecond)
	r := f.registry(t)
	ref := r.Push(t, "web", "1", hello("one"))
	r.Hook(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, "/blobs/") {
			return false
		}
		w.Header().Set("Content-Length", "1000")
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-req.Context().Done()
		return true
	})
	_, err := f.Pull(t.Context(), ref, nil)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "in time") {
		t.Errorf("%v", err)
	}
}
