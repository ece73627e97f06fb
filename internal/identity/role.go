package identity

import (
	"crypto/x509"
	"fmt"

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
