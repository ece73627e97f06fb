package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRefusedOptions(t *testing.T) {
	config := "# Linux/x86 6.12.1 Kernel Configuration\nCONFIG_A=y\nCONFIG_N=64\n# CONFIG_OFF is not set\nCONFIG_S=\"x y\"\n"
	asked := []string{"CONFIG_A=y", "CONFIG_N=64", `CONFIG_S="x y"`, "CONFIG_OFF=y", "CONFIG_N=6", "CONFIG_UNKNOWN=y"}
	want := []string{"CONFIG_OFF=y", "CONFIG_N=6", "CONFIG_UNKNOWN=y"}
	if diff := cmp.Diff(want, refusedOptions(asked, config)); diff != "" {
		t.Errorf("refused (-want +got):\n%s", diff)
	}
}

// A line that make can't read would be ignored by it, and an option that is given
// twice would keep one of the two.
func TestGuestKernelList(t *testing.T) {
	line := regexp.MustCompile(`^(CONFIG_[A-Z0-9_]+)=(y|-?[0-9]+|"[^"]*")$`)
	var names []string
	for _, option := range list("guest-kernel") {
		parts := line.FindStringSubmatch(option)
		if parts == nil {
			t.Errorf("%q is no option", option)
			continue
		}
		if slices.Contains(names, parts[1]) {
			t.Errorf("%s stands twice", parts[1])
		}
		names = append(names, parts[1])
	}
	if !slices.Contains(list("packages-alone"), kernelSource) {
		t.Errorf("%s is in no list of packages", kernelSource)
	}
}

// What one checkout made, another one has; not under another key, and not for a user
// who has no cache.
func TestKeep(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	made, other := filepath.Join(t.TempDir(), "vmlinux"), filepath.Join(t.TempDir(), "guest", "vmlinux")
	if err := os.WriteFile(made, []byte("kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := keepOf("k", "1").put(made); err != nil {
		t.Fatal(err)
	}
	if ok, err := keepOf("k", "2").take(other); ok || err != nil {
		t.Errorf("another key: %v, %v", ok, err)
	}
	if ok, err := keepOf("k", "1").take(other); !ok || err != nil {
		t.Fatalf("the same key: %v, %v", ok, err)
	}
	if content, err := os.ReadFile(other); string(content) != "kernel" {
		t.Errorf("%q, %v", content, err)
	}
	t.Setenv("XDG_CACHE_HOME", "")
	t.Setenv("HOME", "")
	none := keepOf("k", "1")
	if ok, err := none.take(other); ok || err != nil || none.put(made) != nil {
		t.Errorf("without a cache: %v, %v", ok, err)
	}
}

func TestKernelEdit(t *testing.T) {
	edit := kernelEdit{path: "a/b.c", old: "\nint x = 0;\n", new: "\nint x = 1;\n"}
	for _, c := range []struct{ source, want string }{
		{"/* */\nint x = 0;\nint y;\n", "/* */\nint x = 1;\nint y;\n"},
		{"int x = 2;\n", ""},
		{"\nint x = 0;\n\nint x = 0;\n", ""},
	} {
		tree := writeTree(t, map[string]string{edit.path: c.source})
		err := edit.apply(tree)
		if c.want == "" {
			if err == nil {
				t.Errorf("%q was edited", c.source)
			}
			continue
		}
		got, readErr := os.ReadFile(filepath.Join(tree, edit.path))
		if string(got) != c.want || err != nil || readErr != nil {
			t.Errorf("%q became %q, %v %v", c.source, got, err, readErr)
		}
	}
}

func TestInitramfs(t *testing.T) {
	archive, err := packInitramfs([]byte("program"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"dev", "dev/console", "dev/null", "init", "TRAILER!!!"}
	if diff := cmp.Diff(want, cpioNames(archive)); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}
