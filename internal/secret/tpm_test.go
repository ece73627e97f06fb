package secret

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"capsule/internal/await"
)

// software is a TPM in software, with its state in a folder.
type software struct {
	dir    string
	cmd    *exec.Cmd
	socket string
}

// softwareTPM starts one that ends with the test.
func softwareTPM(t *testing.T) *software {
	t.Helper()
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Skipf("SKIPPED, needs a TPM in software: %v", err)
	}
	// Short: the path of a socket has at most 107 bytes.
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	s := &software{dir: dir, socket: filepath.Join(dir, "s")}
	s.start(t)
	t.Cleanup(func() {
		s.stop(t)
		_ = os.RemoveAll(dir)
	})
	return s
}

func (s *software) start(t *testing.T) {
	t.Helper()
	_ = os.Remove(s.socket)
	s.cmd = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+s.dir,
		"--server", "type=unixio,path="+s.socket, "--flags", "not-need-init,startup-clear")
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.cmd.Stderr = os.Stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), startMax)
	defer cancel()
	for {
		// The socket's file is there a moment before anybody is let in.
		if conn, err := net.Dial("unix", s.socket); err == nil {
			conn.Close()
			return
		}
		if await.Pause(ctx, 10*time.Millisecond) != nil {
			t.Fatalf("swtpm lets nobody in after %v", startMax)
		}
	}
}

const startMax = time.Minute

func (s *software) stop(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = s.cmd.Wait()
}

// clear makes it forget its seeds, as when it is cleared by the firmware, or another
// machine's.
func (s *software) clear(t *testing.T) {
	t.Helper()
	s.stop(t)
	files, _ := filepath.Glob(filepath.Join(s.dir, "tpm2-*"))
	if len(files) == 0 {
		t.Fatal("the TPM keeps no state")
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	s.start(t)
}

func (s *software) open() (transport.TPMCloser, error) { return linuxudstpm.Open(s.socket) }

func noTPM() (transport.TPMCloser, error) { return nil, errNoTPM }

func TestSealedToTPM(t *testing.T) {
	tpm := softwareTPM(t)
	key := bytes.Repeat([]byte{7}, keyBytes)
	sealed, err := sealTo(tpm.open, key)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed.Private, key) || bytes.Contains(sealed.Public, key) {
		t.Error("what is kept holds the key")
	}
	for range 10 { // nothing is left in the TPM, which has room for three
		got, err := unseal(tpm.open, sealed)
		if err != nil || !bytes.Equal(got, key) {
			t.Fatalf("%x, %v", got, err)
		}
	}
	tpm.stop(t)
	tpm.start(t) // as after a restart of the machine
	if got, err := unseal(tpm.open, sealed); err != nil || !bytes.Equal(got, key) {
		t.Errorf("after a restart: %x, %v", got, err)
	}
	tpm.clear(t)
	if _, err := unseal(tpm.open, sealed); !errors.Is(err, errForeign) {
		t.Errorf("a cleared TPM: %v", err)
	}
}
