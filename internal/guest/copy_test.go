package guest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	guestv1 "capsule/api/capsule/guest/v1"
	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/imagetest"
)

func copyTo(ctx context.Context, c guestv1.GuestServiceClient, path, source string, data []byte) (*capsulev1.CopyToResponse, error) {
	stream, err := c.CopyTo(ctx)
	if err != nil {
		return nil, err
	}
	err = stream.Send(&capsulev1.CopyToRequest{Part: &capsulev1.CopyToRequest_Target{Target: &capsulev1.CopyTarget{Path: path, Source: source}}})
	for len(data) > 0 && err == nil {
		n := min(len(data), 32<<10)
		err = stream.Send(&capsulev1.CopyToRequest{Part: &capsulev1.CopyToRequest_Data{Data: data[:n]}})
		data = data[n:]
	}
	if err != nil && !errors.Is(err, io.EOF) { // the answer says why
		return nil, err
	}
	return stream.CloseAndRecv()
}

func copyFrom(ctx context.Context, c guestv1.GuestServiceClient, path string) ([]byte, error) {
	stream, err := c.CopyFrom(ctx, &capsulev1.CopyFromRequest{Path: path})
	if err != nil {
		return nil, err
	}
	var data []byte
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return data, nil
		}
		if err != nil {
			return nil, err
		}
		data = append(data, r.GetData()...)
	}
}

// copies is what every guest does, on this machine and in a real one.
func copies(t *testing.T, c guestv1.GuestServiceClient) {
	big := strings.Repeat("0123456789abcdef", 1<<16)
	data := imagetest.NewLayer().Dir("d", 0o750).Owner(1000, 1001).File("d/f", 0o640, big).Symlink("d/link", "/etc/passwd").Tar()
	r, err := copyTo(t.Context(), c, "/tmp", "d", data)
	if err != nil || r.GetFiles() != 2 || r.GetBytes() != uint64(len(big)) {
		t.Fatalf("copied %v, %v", r, err)
	}
	look := payloadVerb("stat", "/tmp/d/f", "/tmp/d/link")
	look.User = "root"
	_, out, _ := begin(t, c, look).finish()
	if !strings.HasPrefix(out, "-rw-r----- 1000:1001 1048576\nLrwxrwxrwx ") {
		t.Errorf("in the guest: %q", out)
	}
	back, err := copyFrom(t.Context(), c, "/tmp/d")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for entries := tar.NewReader(bytes.NewReader(back)); ; {
		h, err := entries.Next()
		if err != nil {
			break
		}
		text, _ := io.ReadAll(entries)
		files[h.Name] = string(text) + h.Linkname
	}
	if files["d/f"] != big || files["d/link"] != "/etc/passwd" || len(files) != 3 {
		t.Errorf("came back with %d entries", len(files))
	}
	for name, err := range map[string]error{
		"from nowhere": second(copyFrom(t.Context(), c, "/none")),
		"to nowhere":   second(copyTo(t.Context(), c, "/none/there", "d", data)),
	} {
		if status.Code(err) != codes.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"no path":     second(copyFrom(t.Context(), c, "")),
		"no target":   second(copyTo(t.Context(), c, "", "d", data)),
		"no stream":   second(copyTo(t.Context(), c, "/tmp", "d", nil)),
		"half of one": second(copyTo(t.Context(), c, "/tmp", "e", data[:2000])),
	} {
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestCopy(t *testing.T) {
	h := runHere(t, []string{"sleep"}, asApp)
	copies(t, h.client)
}

// A copy that hangs holds neither the payload's end nor its disks.
func TestCopyEnds(t *testing.T) {
	h := runHere(t, []string{"sleep"})
	to, err := h.client.CopyTo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []*capsulev1.CopyToRequest{
		{Part: &capsulev1.CopyToRequest_Target{Target: &capsulev1.CopyTarget{Path: "/tmp/x", Source: "f"}}},
		{Part: &capsulev1.CopyToRequest_Data{Data: imagetest.NewLayer().File("f", 0o600, strings.Repeat("x", 4096)).Tar()[:1024]}},
	} {
		if err := to.Send(part); err != nil {
			t.Fatal(err)
		}
	}
	from, err := h.client.CopyFrom(t.Context(), &capsulev1.CopyFromRequest{Path: "/payload"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := from.Recv(); err != nil { // no more: it fills the window and waits
		t.Fatal(err)
	}
	r, err := h.client.Stop(t.Context(), &guestv1.StopRequest{Signal: int32(unix.SIGKILL)})
	if err != nil || r.GetEnding().GetUnmountError() != "" {
		t.Errorf("stopped with %v, %v", r, err)
	}
	if _, err := to.CloseAndRecv(); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("copy to: %v", err)
	}
	for err == nil {
		_, err = from.Recv()
	}
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("copy from: %v", err)
	}
}
