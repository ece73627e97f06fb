//go:build machine

package machine

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
	"github.com/rogpeppe/go-internal/testscript"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/contexts"
	"capsule/internal/disk"
	"capsule/internal/identity"
	"capsule/internal/lab"
)

// stick VERB NAME [ARGS…]:
//
//	create NAME BLOCK [QEMU ARGS…]  makes a machine with the image on a USB stick and the
//	                                smallest NVMe disk that will do, empty, with blocks
//	                                of BLOCK bytes, and with port 8080 published
//	seed NAME                       puts an owner on the stick, and saves the context NAME
//	pull NAME, put NAME             take the stick out, or put it in, while it's off
//	code NAME FILE                  waits for the code on the console and writes it down
//	address NAME VARIABLE           where its API is reached
//	disk NAME VARIABLE              the file that its disk is; image, the one of the stick
func stick(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 2, "stick create|seed|pull|put|code|address|disk|image NAME [ARGS...]")
	verb, name := args[0], args[1]
	if verb == "create" {
		need(ts, args, 3, "stick create NAME BLOCK [QEMU ARGS...]")
		block := 0
		_, err := fmt.Sscan(args[2], &block)
		ts.Check(err)
		m, err := lab.Create(context.Background(), lab.Options{
			Name: name, Image: filepath.Join(repository, "build/capsule.img"), MemoryBytes: 768 << 20, Stick: true, BlockBytes: block, DiskBytes: disk.NeededBytes,
			Publish: []lab.Publish{{Port: 8080, Protocol: "tcp"}}, Args: args[3:],
		})
		ts.Check(err)
		ts.Defer(func() { _ = m.Kill(context.Background()) })
		for _, p := range m.Publish {
			ts.Setenv(fmt.Sprintf("TCP_%d", p.Port), fmt.Sprintf("127.0.0.1:%d", p.HostPort))
		}
		return
	}
	m, err := lab.Attach("", name)
	ts.Check(err)
	switch verb {
	case "seed":
		ts.Check(seedStick(m))
	case "pull", "put":
		ts.Check(m.Plug(verb == "put"))
	case "code":
		need(ts, args, 3, "stick code NAME FILE")
		found := onConsole(ts, name, 15*time.Minute, regexp.MustCompile(`capsule claim: code=([0-9A-Z-]+) name=(\S+)`))
		ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(found[1]+"\n"), 0o600))
		ts.Setenv("NAME", found[2])
	case "address":
		need(ts, args, 3, "stick address NAME VARIABLE")
		ts.Setenv(args[2], m.API)
	case "disk", "image":
		need(ts, args, 3, "stick disk|image NAME VARIABLE")
		ts.Setenv(args[2], map[string]string{"disk": m.Disk(), "image": m.StickImage()}[verb])
	default:
		ts.Fatalf("stick: no verb %q", verb)
	}
}

// seedStick does what the image builder does for an owner.
func seedStick(m *lab.Machine) error {
	ca, err := identity.NewCA(m.Name)
	if err != nil {
		return err
	}
	pair, err := ca.IssueOperator("owner", capsulev1.Role_ROLE_ADMIN, 24*time.Hour)
	if err != nil {
		return err
	}
	seed, err := ca.SeedPEM(pair.CertPEM)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(m.StickImage(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	table, err := disk.ReadTable(f, 512, uint64(info.Size())/512)
	if err != nil {
		return err
	}
	p, err := table.ByName(disk.ESP)
	if err != nil {
		return err
	}
	volume, err := fat32.Read(file.New(f, false), int64(table.Bytes(p)), table.Offset(p), 512)
	if err != nil {
		return err
	}
	if err := volume.Mkdir("/" + filepath.Dir(disk.SeedFile)); err != nil {
		return err
	}
	if err := putFAT(volume, onFAT(disk.SeedFile), seed); err != nil {
		return err
	}
	store, err := contexts.Open("")
	if err != nil {
		return err
	}
	return store.Put(contexts.Context{Name: m.Name, Host: m.API, CA: string(ca.CertPEM()), Certificate: string(pair.CertPEM), Key: string(pair.KeyPEM)})
}

// onConsole waits until the console showed it since the machine's last start.
func onConsole(ts *testscript.TestScript, name string, limit time.Duration, want *regexp.Regexp) []string {
	m, err := lab.Attach("", name)
	ts.Check(err)
	begin, _ := boots.LoadOrStore(name, int64(0))
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		log, err := os.ReadFile(m.ConsoleLog())
		ts.Check(err)
		if found := want.FindStringSubmatch(string(log[begin.(int64):])); found != nil {
			return found
		}
	}
	ts.Fatalf("console of %s never showed %q:\n%s", name, want, consoleTail(name))
	return nil
}

// medium FILE SIZE [KIND]: makes a disk with ext4 or ntfs on it, or with nothing.
func medium(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 2, "medium FILE SIZE [ext4|ntfs]")
	path := ts.MkAbs(args[0])
	size, err := manifest.ParseSize(args[1])
	ts.Check(err)
	ts.Check(os.WriteFile(path, nil, 0o600))
	ts.Check(os.Truncate(path, size))
	switch append(args, "")[2] {
	case "ext4":
		ts.Check(ts.Exec("mkfs.ext4", "-q", "-F", "-L", "photos", path))
	case "ntfs": // as much as tells it
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		ts.Check(err)
		defer f.Close()
		_, err = f.WriteAt([]byte("\xeb\x52\x90NTFS    "), 0)
		ts.Check(err)
		_, err = f.WriteAt([]byte{0x55, 0xaa}, 510)
		ts.Check(err)
	}
}

// same NAME FILE [PARTITION]: at the first call notes what a file, or a partition in
// it, holds; later fails when it holds something else.
func same(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 2, "same NAME FILE [PARTITION]")
	sum := hashOf(ts, args[1], append(args, "")[2])
	switch known := ts.Getenv("SUM_" + args[0]); known {
	case "":
		ts.Setenv("SUM_"+args[0], sum)
	case sum:
	default:
		ts.Fatalf("%s has changed", args[0])
	}
}

func hashOf(ts *testscript.TestScript, file, partition string) string {
	f, err := os.Open(ts.MkAbs(file))
	ts.Check(err)
	defer f.Close()
	info, err := f.Stat()
	ts.Check(err)
	section := io.NewSectionReader(f, 0, info.Size())
	if partition != "" {
		table, err := disk.ReadTable(f, 512, uint64(info.Size())/512)
		ts.Check(err)
		p, err := table.ByName(partition)
		ts.Check(err)
		section = io.NewSectionReader(f, table.Offset(p), int64(table.Bytes(p)))
	}
	h := sha256.New()
	_, err = io.Copy(h, section)
	ts.Check(err)
	return fmt.Sprintf("%x", h.Sum(nil))
}

// cutduring NAME REGEXP COMMAND…: cuts the machine's power when what the command
// prints matches; the command must fail.
func cutduring(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 3, "cutduring NAME REGEXP COMMAND...")
	m, err := lab.Attach("", args[0])
	ts.Check(err)
	want, err := regexp.Compile(args[1])
	ts.Check(err)
	cmd := exec.Command(args[2], args[3:]...)
	seen := &watcher{want: want, then: func() { _ = m.Kill(context.Background()) }}
	cmd.Stdout, cmd.Stderr = seen, seen
	err = cmd.Run()
	ts.Logf("%s", seen.text.String())
	if !seen.done || err == nil {
		ts.Fatalf("cut: %t; %v", seen.done, err)
	}
}

type watcher struct {
	want *regexp.Regexp
	then func()
	text strings.Builder
	done bool
}

func (w *watcher) Write(p []byte) (int, error) {
	w.text.Write(p)
	if !w.done && w.want.MatchString(w.text.String()) {
		w.done = true
		w.then()
	}
	return len(p), nil
}
