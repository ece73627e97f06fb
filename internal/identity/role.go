package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
)

// roleUnits are the organisational units that name a role in a certificate.
var roleUnits = map[capsulev1.Role]string{
	capsulev1.Role_ROLE_READER:   "capsule:reader",
	capsulev1.Role_ROLE_OPERATOR: "capsule:operator",
	capsulev1.Role_ROLE_ADMIN:    "capsule:admin",
}

// RoleName is "reader", "operator" or "admin".
func RoleName(role capsulev1.Role) string {
	if unit, ok := roleUnits[role]; ok {
		return unit[len("capsule:"):]
	}
	return "nobody"
}

// RoleNamed is the role of a name, ROLE_UNSPECIFIED of none.
func RoleNamed(name string) capsulev1.Role {
	for role := range roleUnits {
		if RoleName(role) == name {
			return role
		}
	}
	return capsulev1.Role_ROLE_UNSPECIFIED
}

// Role reads the one role of a certificate.
func Role(cert *x509.Certificate) (capsulev1.Role, error) {
	found := capsulev1.Role_ROLE_UNSPECIFIED
	for _, unit := range cert.Subject.OrganizationalUnit {
		for role, name := range roleUnits {
			if unit != name {
				continue
			}
			if found != capsulev1.Role_ROLE_UNSPECIFIED {
				return 0, fmt.Errorf("certificate of %q names two roles: %w", cert.Subject.CommonName, errdefs.ErrUnauthenticated)
			}
			found = role
		}
	}
	if found == capsulev1.Role_ROLE_UNSPECIFIED {
		return 0, fmt.Errorf("certificate of %q names no role: %w", cert.Subject.CommonName, errdefs.ErrUnauthenticated)
	}
	return found, nil
}

// checkName keeps names that people and tables can bear.
func checkName(name string) error {
	if name == "" || len(name) > nameMax || !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsGraphic(r) || unicode.IsSpace(r) }) {
		return fmt.Errorf("operator's name %.80q: 1 to %d bytes without spaces or control characters: %w", name, nameMax, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Bounds of an RSA key, bits: the time to check one grows with it, and anybody may send one.
const (
	rsaMin = 2048
	rsaMax = 8192
)

// strong refuses keys that nobody should use any more, or that are work to use.
func strong(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve.Params().BitSize >= 256 {
			return nil
		}
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits >= rsaMin && bits <= rsaMax {
			return nil
		}
	}
	return fmt.Errorf("key of type %T: want ECDSA of 256 bits or more, Ed25519, or RSA of %d to %d bits: %w", key, rsaMin, rsaMax, errdefs.ErrInvalidArgument)
}
