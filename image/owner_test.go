package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"

	yaml "go.yaml.in/yaml/v4"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/contexts"
	"capsule/internal/identity"
)

func request(t *testing.T, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name+".csr")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// A capsule that takes the seed lets its owner in by the grant, with no code.
func TestOwner(t *testing.T) {
	out, ann := t.TempDir(), request(t, "ann")
	seed, err := ownerSeed(out, ann)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkSeed(seed); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(seed)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(seed)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	text, err := os.ReadFile(filepath.Join(out, ownerGrantFile))
	if err != nil {
		t.Fatal(err)
	}
	var g contexts.Grant
	if err := yaml.Unmarshal(text, &g); err != nil {
		t.Fatal(err)
	}
	cert, err := identity.ParseCert([]byte(g.Certificate))
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.Load(filepath.Join(t.TempDir(), "identity"), seed) // takes it
	if err != nil || !id.Claimed() {
		t.Fatalf("claimed %v, %v", id.Claimed(), err)
	}
	if role, err := id.Admit(cert); err != nil || role != capsulev1.Role_ROLE_ADMIN {
		t.Errorf("owner: %v, %v", role, err)
	}

	// The same request finds what there is; another makes its own.
	if err := os.WriteFile(seed, first, 0o600); err != nil {
		t.Fatal(err)
	}
	for request, same := range map[string]bool{ann: true, request(t, "ben"): false} {
		if _, err := ownerSeed(out, request); err != nil {
			t.Fatal(err)
		}
		again, err := os.ReadFile(seed)
		if err != nil {
			t.Fatal(err)
		}
		if (string(again) == string(first)) != same {
			t.Errorf("%s: the same seed: %v", filepath.Base(request), !same)
		}
		if err := os.WriteFile(seed, first, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBadSeed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "seed.pem")
	if err := os.WriteFile(path, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := checkSeed(path); err == nil {
		t.Error("accepted")
	}
}
