package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	testDep = `kernel/lib/libcrc32c.ko.xz:
kernel/crypto/crc32c_generic.ko.xz:
kernel/arch/x86/crypto/crc32c-intel.ko.xz:
kernel/fs/erofs/erofs.ko.xz: kernel/fs/netfs/netfs.ko.xz kernel/lib/libcrc32c.ko.xz
kernel/fs/netfs/netfs.ko.xz:
kernel/drivers/net/phy/realtek.ko.xz: kernel/drivers/net/phy/libphy.ko.xz
kernel/drivers/net/phy/libphy.ko.xz:
kernel/drivers/net/ethernet/realtek/r8169.ko.xz: kernel/drivers/net/phy/libphy.ko.xz
`
	testAlias = `# Aliases
alias crc32c crc32c_generic
alias crc32c crc32c_intel
alias pci:v000010ECd00008168sv*sd*bc*sc*i* r8169
`
	testSoftdep = `# Soft dependencies
softdep libcrc32c pre: crc32c
softdep r8169 pre: realtek post: built_in_thing
`
)

func TestModuleClosure(t *testing.T) {
	graph, err := readModuleGraph(strings.NewReader(testDep), strings.NewReader(testAlias), strings.NewReader(testSoftdep))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		patterns string
		want     string
	}{
		{"fs/erofs/*", "crc32c-intel erofs netfs crc32c_generic libcrc32c"},
		{"drivers/net/ethernet/**", "r8169 libphy realtek"},
		{"drivers/net/phy/libphy*", "libphy"},
	} {
		got, err := graph.closure(strings.Fields(test.patterns))
		if err != nil {
			t.Fatal(err)
		}
		names := map[string]bool{}
		for _, module := range got {
			name := module[strings.LastIndex(module, "/")+1:]
			names[strings.TrimSuffix(name, ".ko.xz")] = true
		}
		want := map[string]bool{}
		for _, name := range strings.Fields(test.want) {
			want[name] = true
		}
		if diff := cmp.Diff(want, names); diff != "" {
			t.Errorf("closure(%s) (-want +got):\n%s", test.patterns, diff)
		}
	}
}

func TestModuleClosureNames(t *testing.T) {
	graph, err := readModuleGraph(strings.NewReader(testDep), strings.NewReader(""), strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	_, err = graph.closure([]string{"fs/erofs/*", "fs/zfs/*"})
	if err == nil || !strings.Contains(err.Error(), `"fs/zfs/*"`) || strings.Contains(err.Error(), "erofs") {
		t.Errorf("closure of an absent module = %v, want an error that names only it", err)
	}
	if _, err := readModuleGraph(strings.NewReader("no colon\n"), strings.NewReader(""), strings.NewReader("")); err == nil {
		t.Error("a line of modules.dep without a colon was taken")
	}
}
