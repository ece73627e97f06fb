package process

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func rootWith(t testing.TB, files map[string]string) FS {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			err = os.Symlink(target, name)
		} else {
			err = os.WriteFile(name, []byte(text), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := OpenFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// A name that the image lacks is refused and never means root (IMG-10).
func TestAccount(t *testing.T) {
	const passwd = "# comment\nroot:x:0:0:root:/root:/bin/sh\nbad:x:y:z:::\napp:x:1000:1001:App:/home/app:\n77:x:5:6::/seven:\n"
	const groups = "root:x:0:\nwheel:x:10:root,app\nextra:x:11:other,app\nbroken\n"
	full := rootWith(t, map[string]string{"etc/passwd": passwd, "etc/group": groups})
	bare := rootWith(t, nil)
	linked := rootWith(t, map[string]string{"etc/passwd": "-> /../../../../../../etc/passwd", "etc/group": "-> /none"})
	for _, tc := range []struct {
		user string
		root FS
		want Account
		bad  string
	}{
		{"", full, Account{0, 0, []uint32{10}, "/root"}, ""},
		{"0", full, Account{0, 0, []uint32{10}, "/root"}, ""},
		{"app", full, Account{1000, 1001, []uint32{10, 11}, "/home/app"}, ""},
		{"1000", full, Account{1000, 1001, []uint32{10, 11}, "/home/app"}, ""},
		{"app:wheel", full, Account{1000, 10, nil, "/home/app"}, ""},
		{"app:7", full, Account{1000, 7, nil, "/home/app"}, ""},
		{"77", full, Account{5, 6, nil, "/seven"}, ""},
		{":wheel", full, Account{0, 10, nil, "/root"}, ""},
		{"", bare, Account{0, 0, nil, "/"}, ""},
		{"1234", bare, Account{1234, 0, nil, "/"}, ""},
		{"ghost", full, Account{}, `"ghost"`},
		{"ghost", bare, Account{}, `"ghost"`},
		{"app:nogrp", full, Account{}, `"nogrp"`},
		{"bad", full, Account{}, `"bad"`},
		{"-1", full, Account{}, `"-1"`},
		{"4294967295", full, Account{}, `"4294967295"`},
		{"root", linked, Account{}, `"root"`}, // not the capsule's own users
	} {
		got, err := tc.root.Account(tc.user)
		if tc.bad != "" {
			if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tc.bad) {
				t.Errorf("%q: got %v, %v; want it refused with %s", tc.user, got, err, tc.bad)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", tc.user, err)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%q: %s", tc.user, diff)
		}
	}
}

func FuzzAccount(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\n", "wheel:x:10:root\n", "root:wheel")
	f.Fuzz(func(t *testing.T, passwd, groups, user string) {
		root := rootWith(t, map[string]string{"etc/passwd": passwd, "etc/group": groups})
		who, err := root.Account(user)
		name, _, _ := strings.Cut(user, ":")
		if err == nil && who.UID == 0 && name != "" && name != "0" && !strings.Contains(passwd, name) && strings.Trim(name, "0") != "" {
			t.Fatalf("%q became root", user)
		}
	})
}
