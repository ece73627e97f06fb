package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBudgets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, make([]byte, 100), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := checkBudgets([]budget{{"fits", file, 100}}); err != nil {
		t.Error(err)
	}
	err := checkBudgets([]budget{{"one", file, 99}, {"two", file, 100}, {"three", file, 1}})
	if err == nil || !strings.Contains(err.Error(), "one") || !strings.Contains(err.Error(), "three") || strings.Contains(err.Error(), "two") {
		t.Errorf("broken budgets: %v, want both named", err)
	}
}

func TestDebianMirrors(t *testing.T) {
	const debian = "ID=debian\nVERSION_CODENAME=bookworm\nPRETTY_NAME=\"Debian\"\n"
	for _, test := range []struct {
		name, release, targets string
		plain, security        string
		fails                  bool
	}{
		{"own mirror", debian, "bookworm http://a/debian/\nbookworm-updates http://a/debian/\nbookworm-security http://s/debian-security/\n",
			"http://a/debian", "http://s/debian-security", false},
		{"no security", debian, "bookworm http://a/debian\n", "http://a/debian", "http://a/debian-security", false},
		{"others first", debian, "nodistro http://n/\nbookworm http://a/debian\n", "http://a/debian", "http://a/debian-security", false},
		{"other system", "ID=ubuntu\nVERSION_CODENAME=noble\nPRETTY_NAME=\"Ubuntu\"\n", "noble http://u/ubuntu\n", "", "", true},
		{"nothing", debian, "", "", "", true},
	} {
		plain, security, err := debianMirrors(test.release, test.targets)
		if plain != test.plain || security != test.security || (err != nil) != test.fails {
			t.Errorf("%s: %q, %q, %v", test.name, plain, security, err)
		}
		if test.fails && !strings.Contains(err.Error(), "CAPSULE_MIRROR") {
			t.Errorf("%s: %v does not say what to do", test.name, err)
		}
	}
}

func TestParsePackages(t *testing.T) {
	got := parsePackages(`Package: qemu
Version: 1:10.0+ds-1
Architecture: amd64
SHA256: 12
Description: x
 Package: not this

Package: libx
Source: x (2.0)
Version: 2.0
Architecture: all
SHA256: 34
`)
	want := []debPackage{
		{Name: "libx", Version: "2.0", Source: "x", SHA256: "34", File: "libx_2.0_all.deb"},
		{Name: "qemu", Version: "1:10.0+ds-1", Source: "qemu", SHA256: "12", File: "qemu_1%3a10.0+ds-1_amd64.deb"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("packages (-want +got):\n%s", diff)
	}
	names := closureNames("'http://x/a.deb' liba_1%3a2_amd64.deb 10 MD5Sum:0\nNOTE: nothing\n")
	if diff := cmp.Diff([]string{"liba"}, names); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

func TestCpio(t *testing.T) {
	tree := writeTree(t, map[string]string{"b/file": "hello", "a": "-> b/file"})
	if err := chmodAll(tree); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	c := &cpioWriter{w: &archive}
	if err := c.tree(tree); err != nil {
		t.Fatal(err)
	}
	c.entry("dev/null", cpioChar|0o666, 1, 3, nil)
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	if archive.Len()%cpioBlocks != 0 {
		t.Errorf("archive of %d bytes is not whole blocks", archive.Len())
	}
	names := cpioNames(archive.Bytes())
	if diff := cmp.Diff([]string{"a", "b", "b/file", "dev/null", "TRAILER!!!"}, names); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}

// cpioNames are the names of an archive's entries.
func cpioNames(archive []byte) (names []string) {
	for rest := archive; len(rest) > 110 && string(rest[:6]) == "070701"; {
		field := func(i int) (n int) {
			for _, c := range rest[6+8*i : 14+8*i] {
				n = n*16 + strings.IndexByte("0123456789abcdef", c)
			}
			return n
		}
		nameEnd := 110 + field(11)
		names = append(names, string(rest[110:nameEnd-1]))
		data := (nameEnd + 3) &^ 3
		rest = rest[(data+field(6)+3)&^3:]
	}
	return names
}

func TestMicrocode(t *testing.T) {
	tree := writeTree(t, map[string]string{"06-01-01": "A", "06-01-02": "A", "06-02-01": "B", "06-8f-04": "big"})
	got, err := joinMicrocode(filepath.Join(tree, "*"), list("microcode-not"))
	if err != nil || string(got) != "AB" {
		t.Errorf("joined %q, %v, want each content once", got, err)
	}
	if _, err := joinMicrocode(filepath.Join(tree, "*.none"), nil); err == nil {
		t.Error("no microcode at all was taken")
	}
}

func TestStepCache(t *testing.T) {
	dir := t.TempDir()
	b := &builder{cache: dir}
	if err := os.MkdirAll(filepath.Join(dir, "steps"), 0o755); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out")
	runs := 0
	step := func(k *key) {
		t.Helper()
		err := b.step("test", k, []string{out}, func() error { runs++; return os.WriteFile(out, nil, 0o644) })
		if err != nil {
			t.Fatal(err)
		}
	}
	step(newKey("a"))
	step(newKey("a"))
	if runs != 1 {
		t.Errorf("%d runs for the same key, want 1", runs)
	}
	step(newKey("b"))
	if err := os.Remove(out); err != nil {
		t.Fatal(err)
	}
	step(newKey("b"))
	if runs != 3 {
		t.Errorf("%d runs after a new key and a lost output, want 3", runs)
	}
	if err := b.step("test", newKey().file(filepath.Join(dir, "absent")), nil, nil); err == nil {
		t.Error("a step with an unreadable input did not fail")
	}
}

func TestSPDX(t *testing.T) {
	doc := newSPDX("1.0", 0, []spdxPackage{newSPDXPackage("SPDXRef-deb-libstdc++6", "libstdc++6", "14", "pkg:deb/debian/x")})
	if id := doc.Packages[1].ID; id != "SPDXRef-deb-libstdc--6" {
		t.Errorf("identifier %q", id)
	}
	if len(doc.Relationships) != 2 || doc.Relationships[1].Related != doc.Packages[1].ID {
		t.Errorf("relationships %v", doc.Relationships)
	}
}

func TestMissingPackages(t *testing.T) {
	sum := func(s string) string { h := sha256.Sum256([]byte(s)); return hex.EncodeToString(h[:]) }
	dir := writeTree(t, map[string]string{"good.deb": "good", "cut.deb": "cu"})
	missing, err := missingPackages(dir, []debPackage{
		{Name: "good", Version: "1", File: "good.deb", SHA256: sum("good")},
		{Name: "cut", Version: "2", File: "cut.deb", SHA256: sum("cut")},
		{Name: "absent", Version: "3", File: "absent.deb", SHA256: sum("absent")},
	})
	if diff := cmp.Diff([]string{"cut=2", "absent=3"}, missing); diff != "" || err != nil {
		t.Errorf("missing (-want +got):\n%s%v", diff, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "cut.deb")); err == nil {
		t.Error("half a package was kept")
	}
}

func TestReplaceByLink(t *testing.T) {
	dir := writeTree(t, map[string]string{"new": "new", "public": "old"})
	for range 2 { // again with the same file
		if err := replaceByLink(filepath.Join(dir, "new"), filepath.Join(dir, "public")); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(filepath.Join(dir, "public"))
		if err != nil || string(content) != "new" {
			t.Errorf("read %q, %v", content, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "public.new")); err == nil {
		t.Error("the temporary name is left")
	}
}

func TestDifferences(t *testing.T) {
	one := writeTree(t, map[string]string{"same": "x", "changed": "x", "gone": "x", "link": "-> a"})
	two := writeTree(t, map[string]string{"same": "x", "changed": "y", "link": "-> b"})
	got, err := differences(one, two)
	if diff := cmp.Diff([]string{"changed", "gone", "link"}, got); diff != "" || err != nil {
		t.Errorf("differences (-want +got):\n%s%v", diff, err)
	}
}
