package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2/transport"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/audit"
)

func noTPM() (transport.TPMCloser, error) { return nil, errors.New("no TPM in tests") }

const secretText = "correct horse battery staple"

func secretObject(password string) *capsulev1.Object {
	return &capsulev1.Object{
		Meta: &capsulev1.Meta{Kind: manifest.KindSecret, Name: "db"},
		Kind: &capsulev1.Object_Secret{Secret: &capsulev1.Secret{
			Spec:   &capsulev1.SecretSpec{Data: map[string]string{"password": password, "user": "ann-of-the-database"}},
			Sealed: &capsulev1.SealedSecret{KeyId: "of the client", Values: map[string][]byte{"password": []byte("x")}}, // ignored
		}},
	}
}

func secretUser(ref string) *capsulev1.Object {
	return &capsulev1.Object{
		Meta: &capsulev1.Meta{Kind: manifest.KindContainer, Name: "web"},
		Kind: &capsulev1.Object_Workload{Workload: &capsulev1.Workload{Spec: &capsulev1.WorkloadSpec{
			Image: "web:1", SecretEnv: map[string]string{"PASSWORD": ref},
		}}},
	}
}

// hides fails when a message holds a value, or what is kept of one.
func hides(t *testing.T, m proto.Message) {
	t.Helper()
	text := prototext.Format(m)
	for _, word := range []string{secretText, "ann-of-the-database", "another", "sealed", "key_id"} {
		if strings.Contains(text, word) {
			t.Errorf("an answer holds %q: %s", word, text)
		}
	}
}

func TestSecretsAreShownToNobody(t *testing.T) {
	var log *audit.Log
	dir := t.TempDir()
	b := newBox(t, func(o *Options) {
		var err error
		if log, err = audit.Open(dir, o.Log); err != nil {
			t.Fatal(err)
		}
		o.Audit = log
	})
	admin := capsulev1.NewObjectServiceClient(b.dial(t, capsulev1.Role_ROLE_ADMIN))
	apply := func(dryRun bool, objs ...*capsulev1.Object) *capsulev1.ApplyResponse {
		t.Helper()
		answer, err := admin.Apply(limit(t), &capsulev1.ApplyRequest{Objects: objs, DryRun: dryRun})
		if err != nil {
			t.Fatal(err)
		}
		hides(t, answer)
		return answer
	}
	apply(true, secretObject(secretText))
	created := apply(false, secretObject(secretText), secretUser("db/password"))
	if diff := created.Results[0].Diff; !strings.Contains(diff, `+  password: "(hidden)"`) {
		t.Errorf("the difference is %s", diff)
	}
	if again := apply(false, secretObject(secretText)).Results[0]; again.Outcome != capsulev1.Outcome_OUTCOME_UNCHANGED || again.Diff != "" {
		t.Errorf("the same again: %v", again)
	}
	for _, dryRun := range []bool{true, false} {
		r := apply(dryRun, secretObject("another")).Results[0]
		if want := " data:\n-  password: \"(hidden)\"\n+  password: \"(changed)\"\n"; r.Diff != want {
			t.Errorf("the difference is %s", r.Diff)
		}
		if len(r.Warnings) != 1 || r.Warnings[0] != `workload "web" uses it and starts anew` {
			t.Errorf("it warns %q", r.Warnings)
		}
		obj, err := b.store.Get("", "web")
		if err != nil || (obj.Meta.Generation == 2) == dryRun {
			t.Errorf("generation %d, %v", obj.Meta.Generation, err)
		}
	}
	for _, role := range []capsulev1.Role{capsulev1.Role_ROLE_READER, capsulev1.Role_ROLE_OPERATOR, capsulev1.Role_ROLE_ADMIN} {
		c := capsulev1.NewObjectServiceClient(b.dial(t, role))
		got, err := c.Get(limit(t), &capsulev1.GetRequest{Kind: manifest.KindSecret, Name: "db"})
		if err != nil {
			t.Fatal(err)
		}
		hides(t, got)
		s := got.Object.GetSecret()
		if s.Spec.Data["password"] != manifest.Hidden || len(s.Spec.Data) != 2 || len(s.Status.Users) != 1 || s.Status.Users[0] != "web" {
			t.Errorf("%v sees %v", role, s)
		}
		list, err := c.List(limit(t), &capsulev1.ListRequest{})
		if err != nil || len(list.Objects) != 2 {
			t.Fatal(list, err)
		}
		hides(t, list)
		watchAll(t, c)
	}
	events, err := b.store.Events(0, 100, nil)
	if err != nil || len(events.Events) < 4 {
		t.Fatal(events, err)
	}
	for _, e := range events.Events {
		hides(t, e)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	hidesInFiles(t, dir)
	hidesInFiles(t, b.logs)
	if text := b.log.String(); strings.Contains(text, secretText) || strings.Contains(text, "another") {
		t.Errorf("the log holds it: %s", text)
	}
}

// watchAll reads all that is there.
func watchAll(t *testing.T, c capsulev1.ObjectServiceClient) {
	t.Helper()
	ctx, cancel := context.WithCancel(limit(t))
	defer cancel()
	w, err := c.Watch(ctx, &capsulev1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := w.Recv()
		if err != nil {
			t.Fatal(err)
		}
		hides(t, m)
		if m.Synced {
			return
		}
	}
}

func hidesInFiles(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), secretText) {
			t.Errorf("%s holds it", f)
		}
	}
}

func TestDeleteSecret(t *testing.T) {
	b := newBox(t, nil)
	c := capsulev1.NewObjectServiceClient(b.dial(t, capsulev1.Role_ROLE_OPERATOR))
	if _, err := c.Apply(limit(t), &capsulev1.ApplyRequest{Objects: []*capsulev1.Object{secretObject(secretText), secretUser("db/password")}}); err != nil {
		t.Fatal(err)
	}
	del := func() error {
		_, err := c.Delete(limit(t), &capsulev1.DeleteRequest{Kind: manifest.KindSecret, Name: "db"})
		return err
	}
	if err := del(); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), `secret "db" is used by workload "web": change or delete that first`) {
		t.Errorf("it can be deleted: %v", err)
	}
	answer, err := c.Apply(limit(t), &capsulev1.ApplyRequest{Objects: []*capsulev1.Object{secretUser("mail/password")}})
	if err != nil || len(answer.Results[0].Warnings) != 1 || answer.Results[0].Warnings[0] != `it waits for secret "mail", which is not declared` {
		t.Errorf("%v, %v", answer, err)
	}
	if err := del(); err != nil {
		t.Error(err)
	}
	if err := del(); status.Code(err) != codes.NotFound {
		t.Errorf("again: %v", err)
	}
}

func TestUsersOfSecrets(t *testing.T) {
	for want, users := range map[string][]string{
		`workload "web"`: {"web"}, "a registry of the capsule": {"capsule"},
		`workloads "db", "web" and a registry of the capsule`: {"capsule", "db", "web"},
	} {
		if got := usedBy(users); got != want {
			t.Errorf("%q are %s, want %s", users, got, want)
		}
	}
}

// What is shown can't be applied again by mistake, and bad input changes nothing.
func TestBadSecrets(t *testing.T) {
	b := newBox(t, nil)
	c := capsulev1.NewObjectServiceClient(b.dial(t, capsulev1.Role_ROLE_OPERATOR))
	for text, spec := range map[string]*capsulev1.SecretSpec{
		"what a capsule shows":    {Data: map[string]string{"password": manifest.Hidden}},
		"data is missing":         {},
		"longer than 64KiB":       {Data: map[string]string{"a": strings.Repeat(secretText, 64<<10/len(secretText)+1)}},
		"has that key already":    {Data: map[string]string{"a": secretText}, BinaryData: map[string][]byte{"a": nil}},
		`key "a/b" must have`:     {Data: map[string]string{"a/b": secretText}},
		"hold 196611 bytes toget": {BinaryData: map[string][]byte{"a": make([]byte, 64<<10), "b": make([]byte, 64<<10), "c": make([]byte, 64<<10), "d": make([]byte, 3)}},
	} {
		_, err := c.Apply(limit(t), &capsulev1.ApplyRequest{Objects: []*capsulev1.Object{{
			Meta: &capsulev1.Meta{Kind: manifest.KindSecret, Name: "db"},
			Kind: &capsulev1.Object_Secret{Secret: &capsulev1.Secret{Spec: spec}},
		}}})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), secretText) {
			t.Errorf("%v, want %q", err, text)
		}
	}
	if objs, err := b.store.List(""); err != nil || len(objs) > 0 {
		t.Errorf("%v, %v", objs, err)
	}
}
