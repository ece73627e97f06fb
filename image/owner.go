package main

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	yaml "go.yaml.in/yaml/v4"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/contexts"
	"capsule/internal/durable"
	"capsule/internal/identity"
)

// An image with an owner needs no code at its first boot. The owner's key was made
// where it is used ("capsulectl access request"); the capsule's CA is made here, and
// kept beside the image until the image is thrown away: both are as secret as a key.
const (
	ownerSeedFile  = "owner-seed.pem"
	ownerGrantFile = "owner.grant"
)

// ownedBy sees to the seed of the image, if there is to be one.
func (b *builder) ownedBy(requestFile string) (err error) {
	switch {
	case requestFile != "" && b.seed != "":
		return errors.New("-owner makes a seed of its own: leave -seed out")
	case requestFile != "":
		if err := os.MkdirAll(b.out, 0o755); err != nil {
			return err
		}
		b.seed, err = ownerSeed(b.out, requestFile)
		return err
	case b.seed != "":
		return checkSeed(b.seed)
	}
	return nil
}

// checkSeed refuses what a capsule would come up unclaimed or broken with.
func checkSeed(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	n, err := identity.CheckSeed(text)
	if err == nil && n == 0 {
		fmt.Fprintf(os.Stderr, "warning: %s names no operator: every certificate that its CA ever signs is let in\n", path)
	}
	if err != nil {
		return fmt.Errorf("seed %s: %w", path, err)
	}
	return nil
}

// ownerSeed makes the seed of an image that belongs to whoever made a request, and
// the grant to accept; the same request finds those of the last build.
func ownerSeed(out, requestFile string) (seed string, err error) {
	text, err := os.ReadFile(requestFile)
	if err != nil {
		return "", err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != identity.PEMRequest {
		return "", fmt.Errorf("%s is no certificate request: \"capsulectl access request\" makes one", requestFile)
	}
	r, err := identity.ParseRequest(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("%s: %w", requestFile, err)
	}
	seed, granted := filepath.Join(out, ownerSeedFile), filepath.Join(out, ownerGrantFile)
	if old, err := os.ReadFile(seed); err == nil && identity.SeedLetsIn(old, r) {
		if _, err := os.Stat(granted); err == nil {
			return seed, nil
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := writeOwner(seed, granted, r); err != nil {
		return "", fmt.Errorf("make the identity of an image for %q: %w", r.Name, err)
	}
	fmt.Printf("owner %s, key %s: once the capsule is up, run: capsulectl access accept %s\n", r.Name, r.KeyFingerprint(), granted)
	return seed, nil
}

func writeOwner(seed, granted string, r identity.Request) error {
	ca, err := identity.NewCA("capsule")
	if err != nil {
		return err
	}
	cert, err := ca.Issue(r, capsulev1.Role_ROLE_ADMIN, identity.ClaimLife)
	if err != nil {
		return err
	}
	text, err := ca.SeedPEM(cert)
	if err != nil {
		return err
	}
	// Its address is not known yet: the context finds it by its CA.
	letter, err := yaml.Marshal(contexts.Grant{Capsule: "capsule", Host: fmt.Sprintf("capsule.local:%d", contexts.Port), CA: string(ca.CertPEM()), Certificate: string(cert)})
	if err != nil {
		return err
	}
	return errors.Join(durable.WriteFile(granted, letter, 0o644), durable.WriteFile(seed, text, 0o600))
}
