//go:build machine

package powercut

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"google.golang.org/grpc"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/bundle"
	"capsule/internal/slot"
	"capsule/test/powercut/plan"
)

// bootMax is from the request to restart to an API that answers.
const bootMax = 6 * time.Minute

// blessed is what a capsule says once its first system is one to go back to.
var blessed = regexp.MustCompile(`its boot entry is good`)

// update replaces the system by the other one while the writes are recorded. The
// long form goes back in both ways, and pushes onto what a slot has already.
func (r *recording) update(quick bool) {
	older, newer := r.findSystems()
	if err := r.awaitConsole(blessed, bootMax); err != nil {
		r.t.Fatal(err)
	}
	r.systems = []plan.System{older, newer}
	r.updatesAt = r.logged()
	r.storeWrites("update", 1)
	r.keeps(older.Version)
	r.pushUpdate(newer.Version)
	r.storeWrites("installed", 2)
	r.restart(newer.Version, func() error { return r.ctl("capsule", "reboot") })
	r.step("update confirm", func() error { return r.ctl("capsule", "update", "confirm") })
	r.willStart(newer.Version, true)
	if quick {
		return
	}
	kept := r.keeps(newer.Version)
	r.restart(older.Version, func() error { return r.ctl("capsule", "update", "rollback") })
	r.ends(kept)
	r.pushUpdate(newer.Version, "--force")
	r.restart(newer.Version, func() error { return r.ctl("capsule", "reboot") })
	r.restart(older.Version, func() error { return r.ctl("capsule", "update", "rollback") })
	r.willStart(older.Version, true)
}

// findSystems says what the image and the bundle are.
func (r *recording) findSystems() (older, newer plan.System) {
	file, err := r.newerBundle()
	if err != nil {
		r.t.Fatal(err)
	}
	h, err := readHeader(file)
	if err != nil {
		r.t.Fatal(err)
	}
	r.bundle = file
	older.Version, newer.Version, newer.UKI = r.version, h.Manifest.Version, h.Manifest.UKI.SHA256
	if older.UKI, err = sumOf(r.kernel()); err != nil {
		r.t.Fatal(err)
	}
	return older, newer
}

// kernel is the kernel image of the image's version.
func (r *recording) kernel() string { return filepath.Join(built(), "capsule-"+r.version+".efi") }

// newerBundle is the bundle that is pushed: by itself the image's content as another
// version, which stays in the build's folder for the next run.
func (r *recording) newerBundle() (string, error) {
	if path := os.Getenv(bundleVariable); path != "" {
		return path, nil
	}
	path := filepath.Join(built(), "powercut", "next.bundle")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(r.ctx, "go", "run", "./image", "-out", built(), "-variant", path, "-version", r.version+"+next")
	cmd.Dir = repository
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make the next version: %w: %s", err, text)
	}
	return path, nil
}

func readHeader(path string) (*bundle.Header, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return bundle.ReadHeader(f)
}

func sumOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	return fmt.Sprintf("%x", sum.Sum(nil)), err
}

// pushUpdate installs a version. From then on it starts, with the one before to go
// back to.
func (r *recording) pushUpdate(version string, flags ...string) {
	r.anyStarts()
	r.step("update push", func() error {
		return r.ctl(append([]string{"capsule", "update", "push", r.bundle, "--no-reboot", "--allow-downgrade"}, flags...)...)
	})
	r.willStart(version, false)
}

// restart waits until a version runs. Meanwhile the firmware renames the entry, by
// its own code and not safe from cuts: there may be none for a moment, and the other
// system starts.
func (r *recording) restart(version string, do func() error) {
	r.anyStarts()
	r.step("restart with "+version, func() error {
		if err := do(); err != nil {
			return err
		}
		return awaitSystem(r.ctx, r.conn, version)
	})
	r.willStart(version, false)
}

// willStart notes what the loader starts from the last step on.
func (r *recording) willStart(version string, confirmed bool) {
	r.anyStarts()
	r.starts = r.holds(plan.Fact{Starts: &plan.Starts{Version: version, Confirmed: confirmed}})
}

// anyStarts notes that from now on another system may start.
func (r *recording) anyStarts() {
	r.ends(r.starts)
	r.starts = nil
}

// keeps notes what can be started from the last step on.
func (r *recording) keeps(version string) *fact { return r.holds(plan.Fact{Keeps: version}) }

// awaitSystem waits until the API answers with a version.
func awaitSystem(ctx context.Context, conn *grpc.ClientConn, version string) error {
	ctx, cancel := context.WithTimeout(ctx, bootMax)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		info, err := infoOf(ctx, conn)
		if err == nil && info.GetVersion() == version {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("version %s never answered, at last %q: %w", version, info.GetVersion(), errors.Join(err, ctx.Err()))
		case <-tick.C:
		}
	}
}

func infoOf(ctx context.Context, conn *grpc.ClientConn) (*capsulev1.InfoResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return capsulev1.NewCapsuleServiceClient(conn).Info(ctx, &capsulev1.InfoRequest{})
}

// olderBundle makes a bundle of the image, signed as the image's own.
func (r *recording) olderBundle() (string, error) {
	path := filepath.Join(r.dir, "older.bundle")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	key, err := bundle.LoadPrivateKey(filepath.Join(built(), "development.key"))
	if err != nil {
		return "", err
	}
	kernel, err := os.ReadFile(r.kernel())
	if err != nil {
		return "", err
	}
	root, err := os.Open(filepath.Join(built(), "root-"+r.version+".erofs"))
	if err != nil {
		return "", err
	}
	defer root.Close()
	size, err := root.Seek(0, io.SeekEnd)
	if err != nil {
		return "", err
	}
	content, err := slot.RootOf(built(), slot.Entry{UKI: filepath.Base(r.kernel())})
	if err != nil {
		return "", err
	}
	out, err := os.Create(path)
	if err != nil {
		return "", err
	}
	m := bundle.Manifest{
		Product: bundle.Product, Version: r.version, Architecture: "amd64", UKI: bundle.NewPart(kernel),
		Root: bundle.Root{Size: size, DataBytes: content.DataBytes, VerityHash: content.Hash},
	}
	return path, errors.Join(bundle.Write(out, m, key, bytes.NewReader(kernel), io.NewSectionReader(root, 0, size)), out.Close())
}
