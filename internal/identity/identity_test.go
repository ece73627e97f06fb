package identity

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/contexts"
)

func newCA(t *testing.T) *CA {
	t.Helper()
	ca, err := NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func operator(t *testing.T, ca *CA, role capsulev1.Role, ttl time.Duration) Pair {
	t.Helper()
	pair, err := ca.IssueOperator("anna", role, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// seeded writes a seed and loads a capsule's identity from it.
func seeded(t *testing.T, ca *CA) (id *Identity, dir, seed string) {
	t.Helper()
	root := t.TempDir()
	dir, seed = filepath.Join(root, "perm", "identity"), filepath.Join(root, "seed.pem")
	text, err := ca.SeedPEM()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(seed, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil { // as the machine makes it
		t.Fatal(err)
	}
	id, err = Load(dir, seed)
	if err != nil {
		t.Fatal(err)
	}
	return id, dir, seed
}

// connect does a real handshake and returns what each side says.
func connect(t *testing.T, id *Identity, ca *CA, pair Pair) (client, server error) {
	t.Helper()
	config, err := id.ServerTLS("capsule-a3f2")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	done := make(chan error, 1)
	go func() {
		c, err := listener.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		err = c.(*tls.Conn).Handshake()
		if err == nil {
			_, err = c.Write([]byte("hi"))
		}
		done <- err
	}()
	clientConfig := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: ServerName, RootCAs: x509.NewCertPool()}
	clientConfig.RootCAs.AddCert(ca.Cert)
	if pair.CertPEM != nil {
		if clientConfig, err = (contexts.Context{CA: string(ca.CertPEM()), Certificate: string(pair.CertPEM), Key: string(pair.KeyPEM)}).TLS(); err != nil {
			t.Fatal(err)
		}
	}
	clientConfig.NextProtos = []string{"h2"}
	raw, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, clientConfig)
	defer c.Close()
	_, client = io.ReadAll(c)
	return client, <-done
}

func TestSeedIsConsumed(t *testing.T) {
	ca := newCA(t)
	id, dir, seed := seeded(t, ca)
	if !id.Claimed() || len(id.Warnings) > 0 {
		t.Errorf("claimed %v, warnings %q", id.Claimed(), id.Warnings)
	}
	if _, err := os.Stat(seed); !os.IsNotExist(err) {
		t.Errorf("seed is still there: %v", err)
	}
	info, err := os.Stat(filepath.Join(dir, caKeyFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key: %v, %v", info, err)
	}
	again, err := Load(dir, seed)
	if err != nil || again.Fingerprint() != id.Fingerprint() || !again.Claimed() {
		t.Errorf("loaded again: %+v, %v", again, err)
	}
}

func TestPowerCutBeforeSeedIsRemoved(t *testing.T) {
	ca := newCA(t)
	_, dir, seed := seeded(t, ca)
	text, _ := ca.SeedPEM()
	if err := os.WriteFile(seed, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir+".new", 0o700); err != nil { // half of an earlier try
		t.Fatal(err)
	}
	if _, err := Load(dir, seed); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(seed); !os.IsNotExist(err) {
		t.Errorf("seed is still there: %v", err)
	}
}

func TestStrangersSeedChangesNothing(t *testing.T) {
	ca := newCA(t)
	id, dir, seed := seeded(t, ca)
	text, _ := newCA(t).SeedPEM()
	if err := os.WriteFile(seed, text, 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := Load(dir, seed)
	if err != nil || again.Fingerprint() != id.Fingerprint() {
		t.Errorf("identity was replaced: %v", err)
	}
}

func TestDamagedIdentityIsNotReplaced(t *testing.T) {
	for _, damage := range []func(dir string) error{
		func(dir string) error { return os.Remove(filepath.Join(dir, caKeyFile)) },
		func(dir string) error { return os.Remove(filepath.Join(dir, caCertFile)) },
		func(dir string) error { return os.WriteFile(filepath.Join(dir, caKeyFile), []byte("x"), 0o600) },
		func(dir string) error { return os.Truncate(filepath.Join(dir, caCertFile), 0) },
	} {
		ca := newCA(t)
		_, dir, seed := seeded(t, ca)
		if err := damage(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(dir, seed); !errdefs.IsDataLoss(err) {
			t.Errorf("got %v", err)
		}
		// The copy beside the seed still lets operators in, read only.
		id, err := LoadReadOnly(dir, seed)
		if err != nil {
			t.Fatal(err)
		}
		if _, server := connect(t, id, ca, operator(t, ca, capsulev1.Role_ROLE_ADMIN, time.Hour)); server != nil {
			t.Errorf("recovery refuses an operator: %v", server)
		}
	}
}

func TestUnclaimedRefusesAll(t *testing.T) {
	root := t.TempDir()
	id, err := Load(filepath.Join(root, "identity"), filepath.Join(root, "seed.pem"))
	if err != nil || id.Claimed() {
		t.Fatalf("claimed: %v, %v", id.Claimed(), err)
	}
	// Even a certificate of its very own CA.
	_, server := connect(t, id, id.authority, operator(t, id.authority, capsulev1.Role_ROLE_ADMIN, time.Hour))
	if server == nil || !strings.Contains(server.Error(), "not claimed") {
		t.Errorf("got %v", server)
	}
}

func TestLateSeedOfAnUnclaimedCapsule(t *testing.T) {
	root, ca := t.TempDir(), newCA(t)
	dir, seed := filepath.Join(root, "identity"), filepath.Join(root, "seed.pem")
	if id, err := Load(dir, seed); err != nil || id.Claimed() {
		t.Fatalf("claimed: %v, %v", id.Claimed(), err)
	}
	text, err := ca.SeedPEM()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(seed, text, 0o600); err != nil {
		t.Fatal(err)
	}
	id, err := Load(dir, seed)
	if err != nil || !id.Claimed() || id.Fingerprint() != Fingerprint(ca.Cert) {
		t.Errorf("the seed was not taken: %v", err)
	}
}

// A cut while an unclaimed identity gives way to a seed leaves all of it or nothing,
// which the next boot makes anew: a child of this test loads it, and is killed while
// files go. There are many, so that there is time for it.
func TestKilledWhileSeedReplaces(t *testing.T) {
	if dir := os.Getenv("SEED_DIR"); dir != "" {
		_, err := Load(dir, filepath.Join(filepath.Dir(dir), "seed.pem"))
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	const files = 3000
	for round := range 4 {
		root, ca := t.TempDir(), newCA(t)
		dir, seed := filepath.Join(root, "identity"), filepath.Join(root, "seed.pem")
		if _, err := Load(dir, seed); err != nil {
			t.Fatal(err)
		}
		for n := range files {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(n)), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		text, err := ca.SeedPEM()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(seed, text, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWhileSeedReplaces$")
		cmd.Env = append(os.Environ(), "SEED_DIR="+dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for left := files; left > files-files*(round+1)/5; { // wherever they are
			inDir, _ := os.ReadDir(dir)
			moved, _ := os.ReadDir(removed(dir))
			left = len(inDir) + len(moved)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		id, err := Load(dir, seed)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if !id.Claimed() || id.Fingerprint() != Fingerprint(ca.Cert) {
			t.Errorf("round %d: not the seed's", round)
		}
		if entries, err := os.ReadDir(root); err != nil || slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == "identity.old" }) {
			t.Errorf("round %d: left behind: %v, %v", round, entries, err)
		}
	}
}

func TestHandshake(t *testing.T) {
	ca := newCA(t)
	id, _, _ := seeded(t, ca)
	serverOnly, err := ca.IssueServer("capsule")
	if err != nil {
		t.Fatal(err)
	}
	roleless, err := ca.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "anna"}, NotAfter: now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		t.Fatal(err)
	}
	twoRoles, err := ca.issue(&x509.Certificate{Subject: pkix.Name{OrganizationalUnit: []string{"capsule:admin", "capsule:reader"}}, NotAfter: now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		pair Pair
		want string
	}{
		"good":         {operator(t, ca, capsulev1.Role_ROLE_READER, time.Hour), ""},
		"none":         {Pair{}, "didn't provide a certificate"},
		"foreign CA":   {operator(t, newCA(t), capsulev1.Role_ROLE_ADMIN, time.Hour), "unknown authority"},
		"server only":  {serverOnly, "incompatible key usage"},
		"no role":      {roleless, "names no role"},
		"two roles":    {twoRoles, "names two roles"},
		"expired":      {operator(t, ca, capsulev1.Role_ROLE_ADMIN, -24*time.Hour), "expired"},
		"never expire": {operator(t, ca, capsulev1.Role_ROLE_ADMIN, 50*365*24*time.Hour), ""},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := connect(t, id, ca, c.pair)
			if c.want == "" {
				if client != nil || server != nil {
					t.Errorf("refused: %v, %v", client, server)
				}
				return
			}
			if client == nil || server == nil || !strings.Contains(server.Error(), c.want) {
				t.Errorf("client %v, server %v", client, server)
			}
		})
	}
}

func TestClockBeforeNotBefore(t *testing.T) {
	ca := newCA(t)
	id, _, _ := seeded(t, ca)
	pair := operator(t, ca, capsulev1.Role_ROLE_ADMIN, time.Hour)
	cert, err := ParseCert(pair.CertPEM)
	if err != nil {
		t.Fatal(err)
	}
	if err := id.verify([]*x509.Certificate{cert}, time.Unix(0, 0)); err != nil {
		t.Errorf("refused in 1970: %v", err)
	}
}

func TestServerNames(t *testing.T) {
	id, _, _ := seeded(t, newCA(t))
	config, err := id.ServerTLS("capsule-a3f2")
	if err != nil {
		t.Fatal(err)
	}
	names := func() []string {
		t.Helper()
		cert, err := config.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return cert.Leaf.DNSNames
	}
	if err := id.Rename("attic"); err != nil {
		t.Fatal(err)
	}
	if got := names(); !slices.Equal(got, []string{"capsule", "attic"}) {
		t.Errorf("renamed, the certificate is for %q", got)
	}
	if err := id.Rename("capsule-a3f2"); err != nil {
		t.Fatal(err)
	}
	if got := names(); !slices.Equal(got, []string{"capsule", "capsule-a3f2"}) {
		t.Errorf("got %q", got)
	}
}

func FuzzParseCA(f *testing.F) {
	ca, err := NewCA("fuzz")
	if err != nil {
		f.Fatal(err)
	}
	seed, err := ca.SeedPEM()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		if ca, err := ParseCA(data, data); err == nil && (ca.Cert == nil || ca.key == nil) {
			t.Fatal("accepted without certificate or key")
		}
	})
}
