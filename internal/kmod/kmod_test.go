package kmod

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const depText = `kernel/fs/erofs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz
kernel/lib/libcrc32c.ko.xz:
kernel/crypto/crc32c_generic.ko.xz:
kernel/arch/x86/crypto/crc32c-intel.ko.xz:
kernel/drivers/md/dm-mod.ko.xz:
kernel/drivers/md/dm-bufio.ko.xz: kernel/drivers/md/dm-mod.ko.xz
kernel/drivers/md/dm-thin-pool.ko.xz: kernel/drivers/md/persistent-data/dm-persistent-data.ko.xz kernel/drivers/md/dm-bufio.ko.xz kernel/lib/libcrc32c.ko.xz kernel/drivers/md/dm-mod.ko.xz
kernel/drivers/md/persistent-data/dm-persistent-data.ko.xz: kernel/drivers/md/dm-bufio.ko.xz kernel/lib/libcrc32c.ko.xz kernel/drivers/md/dm-mod.ko.xz
kernel/drivers/nvme/nvme.ko.xz:
kernel/a.ko: kernel/b.ko
kernel/b.ko: kernel/a.ko
`

const aliasText = `# Aliases
alias crc32c crc32c_generic
alias crc32c crc32c_intel
alias pci:v*d*sv*sd*bc01sc08i02* nvme
alias acpi*:PNP0A[0-9]3:* pnp_a
alias fs-erofs erofs
alias nft-expr-1-bitwise nft_b
`

func testSet(t *testing.T) (*Set, *[]string) {
	s, err := parse(fstest.MapFS{
		"modules.dep":     {Data: []byte(depText)},
		"modules.alias":   {Data: []byte(aliasText)},
		"modules.softdep": {Data: []byte("# soft\nsoftdep libcrc32c pre: crc32c\nsoftdep bad\n")},
		"modules.builtin": {Data: []byte("kernel/fs/fuse/fuse.ko\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	s.insert = func(file, _ string) error {
		name := nameOf(file)
		got = append(got, name)
		switch name {
		case "crc32c_intel":
			return unix.ENODEV
		case "dm_bufio":
			return unix.EEXIST
		}
		return nil
	}
	return s, &got
}

func TestParameters(t *testing.T) {
	s, _ := testSet(t)
	s.params = parameters("quiet console=ttyS0,1.5 capsule.verity=ab usb-storage.quirks=152d:0578:u dm_mod.a=1 dm-mod.b=2 erofs.bad=x root=/a.b\n")
	var got []string
	s.insert = func(file, params string) error {
		got = append(got, nameOf(file)+"("+params+")")
		if params == "bad=x" {
			return unix.EINVAL
		}
		return nil
	}
	if err := s.Load("dm_mod", "erofs"); err != nil {
		t.Error(err)
	}
	want := "dm_mod(a=1 b=2) crc32c_generic() crc32c_intel() libcrc32c() erofs(bad=x) erofs()"
	if diff := strings.Join(got, " "); diff != want {
		t.Errorf("loaded %s, want %s", diff, want)
	}
	if s.params["usb_storage"] != "quirks=152d:0578:u" {
		t.Errorf("%q", s.params)
	}
}

func TestLoadOrder(t *testing.T) {
	for _, tc := range []struct {
		name string
		load []string
		want string
		err  string
	}{
		{"softdep by alias before its module", []string{"erofs"}, "crc32c_generic crc32c_intel libcrc32c erofs", ""},
		{"dependencies last first", []string{"dm-thin-pool"}, "dm_mod crc32c_generic crc32c_intel libcrc32c dm_bufio dm_persistent_data dm_thin_pool", ""},
		{"alias", []string{"fs-erofs"}, "crc32c_generic crc32c_intel libcrc32c erofs", ""},
		{"once", []string{"dm_mod", "dm-mod"}, "dm_mod", ""},
		{"built in", []string{"fuse"}, "", ""},
		{"circle ends", []string{"a"}, "b a", ""},
		{"required one refuses", []string{"crc32c_intel"}, "crc32c_intel", `load module "crc32c_intel": no such device`},
		{"unknown", []string{"nope"}, "", `load module "nope": no such module`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, got := testSet(t)
			err := s.Load(tc.load...)
			if text := errText(err); text != tc.err {
				t.Errorf("error %q, want %q", text, tc.err)
			}
			if diff := cmp.Diff(strings.Fields(tc.want), *got, cmp.Transformer("nil", func(s []string) string { return strings.Join(s, " ") })); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestGlob(t *testing.T) {
	for _, tc := range []struct {
		pattern, s string
		want       bool
	}{
		{"pci:v00001AF4d*sv*", "pci:v00001AF4d00001001sv00001AF4sd2", true},
		{"pci:v00001AF4d*bc02*", "pci:v00001AF4d00001001sv00001AF4sd2", false},
		{"acpi*:PNP0A[0-9]3:*", "acpi:PNP0A03:", true},
		{"acpi*:PNP0A[0-9]3:*", "acpi:PNP0AX3:", false},
		{"usb:v[0-9A-F]?*", "usb:vA", false},
		{"usb:v[0-9A-F]?*", "usb:vAB", true},
		{"*", "", true}, {"", "", true}, {"", "x", false}, {"[", "[", true}, {"a*b*c", "aXbXbYc", true}, {"a*b*c", "ab", false},
	} {
		if got := glob(tc.pattern, tc.s); got != tc.want {
			t.Errorf("glob(%q, %q) = %v", tc.pattern, tc.s, got)
		}
	}
}

func TestMatch(t *testing.T) {
	s, _ := testSet(t)
	for alias, want := range map[string][]string{
		"pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02": {"nvme"},
		"acpi:PNP0A03:":      {"pnp_a"},
		"nft_expr_1_bitwise": {"nft_b"},
		"usb:v1":             nil,
	} {
		if diff := cmp.Diff(want, s.aliases().match(alias)); diff != "" {
			t.Errorf("%s: %s", alias, diff)
		}
	}
}

func TestColdplug(t *testing.T) {
	sysfs := t.TempDir()
	dev := filepath.Join(sysfs, "bus/pci/devices/0")
	if err := os.MkdirAll(dev, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dev, "modalias"), []byte("pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s, got := testSet(t)
	s.Coldplug(sysfs)
	if diff := cmp.Diff([]string{"nvme"}, *got); diff != "" {
		t.Error(diff)
	}
}

func TestParseUevent(t *testing.T) {
	ev, ok := parseUevent([]byte("add@/devices/x\x00ACTION=add\x00MODALIAS=virtio:d2\x00"))
	want := Uevent{Action: "add", DevPath: "/devices/x", Env: map[string]string{"ACTION": "add", "MODALIAS": "virtio:d2"}}
	if diff := cmp.Diff(want, ev); !ok || diff != "" {
		t.Error(ok, diff)
	}
}

func FuzzParseUevent(f *testing.F) {
	f.Add([]byte("add@/x\x00A=b\x00"))
	f.Fuzz(func(t *testing.T, b []byte) { parseUevent(b) })
}

func FuzzGlob(f *testing.F) {
	f.Add("a*[0-9]?", "ab1c")
	f.Fuzz(func(t *testing.T, pattern, s string) { glob(pattern, s) })
}
