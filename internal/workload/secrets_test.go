package workload

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2/transport"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/secret"
	"capsule/internal/store"
)

func noTPM() (transport.TPMCloser, error) { return nil, errors.New("no TPM in tests") }

// keeps declares a secret as the API does.
func (m *machine) keeps(name string, data map[string]string) {
	m.Helper()
	objs := []*v1.Object{{
		Meta: &v1.Meta{Kind: manifest.KindSecret, Name: name},
		Kind: &v1.Object_Secret{Secret: &v1.Secret{Spec: &v1.SecretSpec{Data: data}}},
	}}
	err := m.book.Seal(objs, false, func() error {
		_, err := m.store.Apply(m.Context(), objs, false, func(tx store.View, objs []*v1.Object) error {
			_, err := m.book.Admit(tx, objs)
			return err
		})
		return err
	})
	if err != nil {
		m.Fatal(err)
	}
	m.rest(5 * time.Second)
}

func usesSecrets(s *v1.WorkloadSpec) {
	s.Env = map[string]string{"USER": "ann"}
	s.SecretEnv = map[string]string{"PASSWORD": "db/password", "B": "db/b"}
	s.Files = []*v1.File{
		{Path: "/etc/app.conf", Content: new("plain\n"), Mode: "0444", Owner: "app"},
		{Path: "/etc/key", Secret: "db/key", Mode: "0400"},
	}
	s.OnSecretChange = "restart"
}

func TestLoopWaitsForSecrets(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "web:1", usesSecrets)
		m.want("web", "pending 1/0 secret")
		m.says("web", `waits, as secret "db" is not declared`)
		m.keeps("db", map[string]string{"password": "one", "b": "two"})
		m.want("web", "pending 1/0 secret")
		m.says("web", `waits, as secret "db" has no key "key"; it has b, password`)
		m.took("prepare web 1")
		m.keeps("db", map[string]string{"password": "one", "b": "two", "key": "three"})
		m.took("start web 1") // what waits starts, as it is
		m.want("web", "running 1/1")
		in := m.driver.started
		if diff := cmp.Diff([]string{"B=two", "PASSWORD=one"}, in.SecretEnv); diff != "" {
			t.Error(diff)
		}
		want := []File{
			{Path: "/etc/app.conf", Content: []byte("plain\n"), Mode: 0o444, Owner: "app"},
			{Path: "/etc/key", Content: []byte("three"), Mode: 0o400},
		}
		if diff := cmp.Diff(want, in.Files); diff != "" {
			t.Error(diff)
		}
		if strings.Contains(strings.Join(in.Env, " "), "one") {
			t.Errorf("the environment that is kept holds it: %q", in.Env)
		}
	})
}

// A changed secret starts anew what uses it; what ends meanwhile gets what it is now.
func TestLoopFollowsSecrets(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.keeps("db", map[string]string{"password": "one", "b": "two", "key": "three"})
		m.apply("web", "web:1", usesSecrets)
		m.apply("calm", "web:1", usesSecrets, func(s *v1.WorkloadSpec) { s.OnSecretChange, s.Ports = "none", nil })
		m.driver.took()
		m.keeps("db", map[string]string{"password": "1", "b": "two", "key": "three"})
		m.took("prepare web 2", "stop:2 web 1", "start web 2", "remove web 1")
		if got := m.driver.started.SecretEnv; got[1] != "PASSWORD=1" {
			t.Errorf("it has %q", got)
		}
		m.driver.crash("calm", 1)
		m.rest(time.Minute)
		m.took("start calm 1")
		if got := m.driver.started.SecretEnv; got[1] != "PASSWORD=1" {
			t.Errorf("it has %q", got)
		}
	})
}

// A machine whose key is lost holds what uses secrets, says why, and goes on when
// they are declared again.
func TestLoopWithoutTheKey(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.keeps("db", map[string]string{"password": "one", "b": "two", "key": "three"})
		m.apply("web", "web:1", usesSecrets)
		m.apply("other", "web:1", func(s *v1.WorkloadSpec) { s.Ports = nil })
		m.want("web", "running 1/1")
		m.kill()
		m.driver.reset()
		path := filepath.Join(t.TempDir(), "other.keys")
		m.book = secret.Open(m.store, path, noTPM)
		m.boot()
		m.want("web", "pending 1/0 secret")
		m.says("web", `waits, as secret "db" can't be opened: the key that sealed it is lost; declare it again`)
		m.want("other", "running 1/1")
		m.keeps("db", map[string]string{"password": "one", "b": "two", "key": "three"})
		m.want("web", "running 1/1")
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	})
}

// What can't be given to a program is said, and not tried for ever.
func TestLoopRefusesValues(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*v1.WorkloadSpec)
		want   string
	}{
		"NUL": {func(s *v1.WorkloadSpec) { s.SecretEnv = map[string]string{"A": "db/nul"} }, `secretEnv.A: "db/nul" holds a NUL character`},
		"environment": {func(s *v1.WorkloadSpec) {
			s.SecretEnv = map[string]string{"A": "db/large", "B": "db/large", "C": "db/large", "D": "db/large"}
		}, "hold more than 262144 bytes together with secretEnv"},
		"files": {func(s *v1.WorkloadSpec) {
			for _, path := range []string{"/a", "/b", "/c"} {
				s.Files = append(s.Files, &v1.File{Path: path, Secret: "db/large", Mode: "0400"})
			}
			s.Files = append(s.Files, &v1.File{Path: "/d", Content: new("one more"), Mode: "0400"})
		}, "files hold more than 192KiB together with what is in secrets"},
	} {
		t.Run(name, func(t *testing.T) {
			inMachine(t, func(m *machine) {
				m.keeps("db", map[string]string{"nul": "a\x00b", "large": strings.Repeat("x", 64<<10)})
				m.apply("web", "web:1", tc.change)
				m.want("web", "failed 1/0 config")
				if s := m.status("web"); !strings.Contains(s.Message, tc.want) {
					t.Errorf("it says %q", s.Message)
				}
			})
		})
	}
}
