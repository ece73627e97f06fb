//go:build unix

package lab

import (
	"errors"
	"os"
	"os/user"
	"time"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/identity"
)

// operatorLife of the keys that a lab machine gives its operator.
const operatorLife = 10 * 365 * 24 * time.Hour

// writeKeys makes a CA for this machine alone, keeps an operator's keys of it
// and gives the seed for the capsule, which lets that operator in and nobody else.
// The CA's key is kept nowhere else.
func (m *Machine) writeKeys() ([]byte, error) {
	ca, err := identity.NewCA("capsule lab " + m.Name)
	if err != nil {
		return nil, err
	}
	pair, err := ca.IssueOperator(operatorName(), capsulev1.Role_ROLE_ADMIN, operatorLife)
	if err != nil {
		return nil, err
	}
	seed, err := ca.SeedPEM(pair.CertPEM)
	if err != nil {
		return nil, err
	}
	return seed, errors.Join(
		os.WriteFile(m.path("ca.pem"), ca.CertPEM(), 0o600),
		os.WriteFile(m.path("operator.pem"), pair.CertPEM, 0o600),
		os.WriteFile(m.path("operator.key"), pair.KeyPEM, 0o600),
	)
}

func operatorName() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	return "operator"
}
