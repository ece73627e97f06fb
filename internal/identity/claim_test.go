package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/claim"
	"capsule/internal/durable"
)

// clock is the time since the boot of a test.
type clock struct{ at time.Duration }

func (c *clock) since() time.Duration { return c.at }

func request(t *testing.T, name string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// boot loads an identity and opens its window, as a daemon's start does.
func boot(t *testing.T, root string, c Claiming) *Identity {
	t.Helper()
	id, err := Load(filepath.Join(root, "identity"), filepath.Join(root, "seed.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if c.State == "" {
		c.State = filepath.Join(root, "claim.json")
	}
	if c.SinceBoot == nil {
		c.SinceBoot = (&clock{time.Minute}).since
	}
	if err := id.OpenClaim(c); err != nil {
		t.Fatal(err)
	}
	return id
}

// power cuts take the boot's own files with them.
func reboot(t *testing.T, root string) {
	t.Helper()
	if err := os.Remove(filepath.Join(root, "claim.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

var export = bytes.Repeat([]byte{1}, 32)

func tryClaim(t *testing.T, id *Identity, code claim.Code, csr []byte) (*x509.Certificate, error) {
	t.Helper()
	key, err := code.Key()
	if err != nil {
		t.Fatal(err)
	}
	cert, proof, err := id.Claim(export, csr, key.ClientProof(export, csr))
	if err == nil && !claim.Equal(proof, key.ServerProof(export, id.ca.Raw, cert.Raw)) {
		t.Error("the capsule's proof is wrong")
	}
	return cert, err
}

func TestClaimWindow(t *testing.T) {
	root, now := t.TempDir(), &clock{ClaimWindow - time.Second}
	id := boot(t, root, Claiming{SinceBoot: now.since})
	offer := id.Offer()
	if offer.Code == "" || offer.Left != time.Second {
		t.Errorf("offer %+v", offer)
	}
	now.at = ClaimWindow
	if _, err := tryClaim(t, id, offer.Code, request(t, "ann")); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "within 30 minutes") {
		t.Errorf("after the window: %v", err)
	}
	if late := id.Offer(); late.Code != "" || !strings.Contains(late.Why, "switch it off and on") {
		t.Errorf("offer %+v", late)
	}
	if !id.anonymous() {
		t.Error("nobody can be told so")
	}
	// A daemon that starts anew opens nothing again; a boot does, with a new code.
	if again := boot(t, root, Claiming{SinceBoot: now.since}); again.Offer().Code != "" {
		t.Error("open again without a boot")
	}
	reboot(t, root)
	id = boot(t, root, Claiming{})
	if code := id.Offer().Code; code == "" || code == offer.Code {
		t.Errorf("code %q after %q", code, offer.Code)
	}
	if _, err := tryClaim(t, id, offer.Code, request(t, "ann")); !errdefs.IsPermissionDenied(err) {
		t.Errorf("with the code of the boot before: %v", err)
	}
}

// Who does not know the code has nothing read of what they send; who does hears what
// is wrong with it, and has lost no try.
func TestProofComesFirst(t *testing.T) {
	id := boot(t, t.TempDir(), Claiming{})
	for name, csr := range map[string][]byte{"none": nil, "rubbish": []byte("x"), "huge": make([]byte, 2*csrMax)} {
		if _, err := tryClaim(t, id, claim.NewCode(), csr); !errdefs.IsPermissionDenied(err) {
			t.Errorf("%s, wrong code: %v", name, err)
		}
		if _, err := tryClaim(t, id, id.Offer().Code, csr); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s, right code: %v", name, err)
		}
	}
	if id.window.kept.Tries != 3 || id.Claimed() {
		t.Errorf("%d tries, claimed %v", id.window.kept.Tries, id.Claimed())
	}
}

// A key is looked at before it is used: the larger it is the longer that takes.
func TestWeakKeysAreNotUsed(t *testing.T) {
	huge := &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 16383, 1), E: 65537}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		key  crypto.PublicKey
		want string
	}{
		"RSA of 16384 bits": {huge, "want ECDSA"}, "RSA of 1024 bits": {&small.PublicKey, "want ECDSA"}, "P-224": {&p224.PublicKey, "want ECDSA"},
		"RSA of 2048 bits": {&good.PublicKey, "not signed by its own key"}, "Ed25519": {edwards.Public(), "not signed by its own key"},
	} {
		if _, err := ParseRequest(foreign(t, c.key)); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// foreign is a request for somebody else's key, with a signature of no worth.
func foreign(t *testing.T, key crypto.PublicKey) []byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	name, err := asn1.Marshal(pkix.Name{CommonName: "eve"}.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	type info struct {
		Version      int
		Subject, Key asn1.RawValue
		Attributes   []asn1.RawValue `asn1:"tag:0,set"`
	}
	der, err := asn1.Marshal(struct {
		Info      info
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{
		info{0, asn1.RawValue{FullBytes: name}, asn1.RawValue{FullBytes: spki}, nil},
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue},
		asn1.BitString{Bytes: make([]byte, 256), BitLength: 2048},
	})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// A crash of the daemon gives nobody more tries, and nobody a new code to read.
func TestClaimStateOutlivesTheDaemon(t *testing.T) {
	root := t.TempDir()
	id := boot(t, root, Claiming{})
	code := id.Offer().Code
	for range ClaimTriesMax - 1 {
		if _, err := tryClaim(t, id, claim.NewCode(), request(t, "eve")); !errdefs.IsPermissionDenied(err) {
			t.Fatal(err)
		}
		id = boot(t, root, Claiming{})
	}
	if id.Offer().Code != code {
		t.Error("another code")
	}
	if _, err := tryClaim(t, id, claim.NewCode(), request(t, "eve")); !strings.Contains(fmt.Sprint(err), "0 of 10") {
		t.Errorf("the last try: %v", err)
	}
	id = boot(t, root, Claiming{})
	if _, err := tryClaim(t, id, code, request(t, "ann")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("after all tries: %v", err)
	}
	info, err := os.Stat(filepath.Join(root, "claim.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// cutAt are an identity's writes, the last of which never comes, or comes and is
// the last that happens.
type cutAt struct {
	n     int
	after bool
}

var errCut = errors.New("the power is cut")

func (c *cutAt) write(path string, data []byte, perm fs.FileMode) error {
	switch c.n--; {
	case c.n > 0:
		return durable.WriteFile(path, data, perm)
	case c.n == 0 && c.after:
		return errors.Join(durable.WriteFile(path, data, perm), errCut)
	}
	return errCut
}

// Wherever the power goes during a claim, the capsule is unclaimed, or claimed by
// that key, which gets its certificate by the same code; and by nobody else.
func TestCutMidClaim(t *testing.T) {
	for n := 1; n <= 2; n++ { // the list, then the mark
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("write %d, done %v", n, after), func(t *testing.T) {
				root, csr := t.TempDir(), request(t, "ann")
				id := boot(t, root, Claiming{})
				code := id.Offer().Code
				id.write = (&cutAt{n, after}).write
				if _, err := tryClaim(t, id, code, csr); !errors.Is(err, errCut) {
					t.Fatalf("got %v", err)
				}
				reboot(t, root)
				checkAfterCut(t, boot(t, root, Claiming{}), code, csr, n > 1 || after)
			})
		}
	}
	t.Run("answer lost", func(t *testing.T) {
		root, csr := t.TempDir(), request(t, "ann")
		id := boot(t, root, Claiming{})
		code := id.Offer().Code
		if _, err := tryClaim(t, id, code, csr); err != nil {
			t.Fatal(err)
		}
		reboot(t, root)
		checkAfterCut(t, boot(t, root, Claiming{}), code, csr, true)
	})
}

func checkAfterCut(t *testing.T, id *Identity, code claim.Code, csr []byte, claimed bool) {
	t.Helper()
	if id.Claimed() != claimed {
		t.Fatalf("claimed: %v", id.Claimed())
	}
	if !claimed {
		if len(id.List()) != 0 {
			t.Error("unclaimed, and somebody is let in")
		}
		code = id.Offer().Code // a new boot has its own
	} else if _, err := tryClaim(t, id, code, request(t, "ben")); !errdefs.IsAlreadyExists(err) {
		t.Errorf("another key with the same code: %v", err)
	}
	if !id.anonymous() {
		t.Fatal("who claimed can't connect to hear so")
	}
	cert, err := tryClaim(t, id, code, csr)
	if err != nil {
		t.Fatal(err)
	}
	mark, err := os.ReadFile(filepath.Join(id.dir, claimedFile))
	if err != nil || string(mark) != listedMark {
		t.Errorf("mark %q, %v", mark, err)
	}
	if role, err := id.Admit(cert); err != nil || role != capsulev1.Role_ROLE_ADMIN {
		t.Errorf("%v, %v", role, err)
	}
	if len(id.List()) != 1 {
		t.Errorf("let in: %+v", id.List())
	}
	if _, err := tryClaim(t, id, code, csr); !errdefs.IsAlreadyExists(err) {
		t.Errorf("asked once more after the first use: %v", err)
	}
}

// A daemon that is killed at any moment of a claim: a child of this test claims,
// and dies when it may have got anywhere.
func TestKilledMidClaim(t *testing.T) {
	if root := os.Getenv("CLAIM_ROOT"); root != "" {
		claimAndTell(t, root)
		return
	}
	for n := range 20 {
		root, csr := t.TempDir(), request(t, "ann")
		id := boot(t, root, Claiming{})
		code := id.Offer().Code
		if err := os.WriteFile(filepath.Join(root, "csr"), csr, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledMidClaim$")
		cmd.Env = append(os.Environ(), "CLAIM_ROOT="+root)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil { // it is about to
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(n*n)*20*time.Microsecond, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		timer.Stop()
		id = boot(t, root, Claiming{})
		t.Logf("killed at round %d: claimed %v", n, id.Claimed())
		checkAfterCut(t, id, code, csr, id.Claimed())
	}
}

func claimAndTell(t *testing.T, root string) {
	csr, err := os.ReadFile(filepath.Join(root, "csr"))
	if err != nil {
		t.Fatal(err)
	}
	id := boot(t, root, Claiming{})
	code := id.Offer().Code
	os.Stdout.WriteString(".") //nolint:errcheck // the parent waits for it
	_, err = tryClaim(t, id, code, csr)
	if err != nil {
		t.Fatal(err)
	}
}

// Nobody can get in: with the file on the ESP a further admin claims the capsule,
// and those there were stay.
func TestReclaim(t *testing.T) {
	root := t.TempDir()
	id := boot(t, root, Claiming{Reclaimed: func() error { t.Error("nothing is there to be removed"); return nil }})
	ann, err := tryClaim(t, id, id.Offer().Code, request(t, "ann"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := id.Admit(ann); err != nil {
		t.Fatal(err)
	}
	reboot(t, root)
	if id = boot(t, root, Claiming{}); id.Offer() != (Offer{}) || id.anonymous() {
		t.Errorf("a claimed capsule offers %+v", id.Offer())
	}
	removed := 0
	reclaim := Claiming{Reclaim: true, Reclaimed: func() error { removed++; return nil }}
	boot(t, root, reclaim)
	// A daemon that starts anew has not looked at the ESP.
	id = boot(t, root, Claiming{Reclaimed: reclaim.Reclaimed})
	code := id.Offer().Code
	if code == "" || !id.anonymous() {
		t.Fatalf("offer %+v", id.Offer())
	}
	ben, err := tryClaim(t, id, code, request(t, "ben"))
	if err != nil || removed != 1 {
		t.Fatalf("removed %d times, %v", removed, err)
	}
	for _, cert := range []*x509.Certificate{ann, ben} {
		if role, err := id.Admit(cert); err != nil || role != capsulev1.Role_ROLE_ADMIN {
			t.Errorf("%s: %v, %v", cert.Subject.CommonName, role, err)
		}
	}
	if by := id.List()[1].GrantedBy; by != byReclaim {
		t.Errorf("granted by %q", by)
	}
	if again := boot(t, root, Claiming{}); again.Offer() != (Offer{}) {
		t.Errorf("offers still %+v", again.Offer())
	}
}

// A capsule whose state can't be written isn't claimed, and says so.
func TestClaimInRecovery(t *testing.T) {
	id, err := LoadReadOnly(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := id.OpenClaim(Claiming{State: filepath.Join(t.TempDir(), "s"), SinceBoot: (&clock{}).since}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("opened: %v", err)
	}
	if _, err := tryClaim(t, id, claim.NewCode(), request(t, "ann")); !errdefs.IsFailedPrecondition(err) || id.anonymous() {
		t.Errorf("claimed: %v", err)
	}
}

func TestDamagedStateOfClaiming(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "claim.json"), []byte(`{"code": "short"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	id, err := Load(filepath.Join(root, "identity"), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := id.OpenClaim(Claiming{State: filepath.Join(root, "claim.json"), SinceBoot: (&clock{}).since}); err == nil {
		t.Error("opened")
	}
}

func FuzzParseRequest(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "ann"}}, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr)
	f.Fuzz(func(t *testing.T, der []byte) {
		if r, err := ParseRequest(der); err == nil && (r.Name == "" || r.key == nil || len(r.id) != 64) {
			t.Error("accepted without name or key")
		}
	})
}

func FuzzReadList(f *testing.F) {
	f.Add([]byte(`{"operators":[{"name":"ann","role":"admin","key":"00"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, operatorsFile), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err := readList(dir); err == nil {
			if _, err := json.Marshal(&l); err != nil {
				t.Error(err)
			}
		}
	})
}
