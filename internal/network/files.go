package network

import (
	"bufio"
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Domain is what workload names end in.
const Domain = "capsule.internal"

// nameserversMax is what resolvers read of resolv.conf (MAXNS of resolv.h).
const nameserversMax = 3

// writeInPlace replaces the content of a file that is mounted elsewhere, so its
// inode has to stay.
func writeInPlace(path string, content []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(content, 0); err != nil {
		return err
	}
	if err := f.Truncate(int64(len(content))); err != nil {
		return err
	}
	return f.Close()
}

// resolvConf is the content of resolv.conf.
func resolvConf(servers []netip.Addr, search ...string) []byte {
	var b bytes.Buffer
	if search = slices.DeleteFunc(search, func(s string) bool { return s == "" }); len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	for _, s := range servers[:min(len(servers), nameserversMax)] {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	return b.Bytes()
}

// nameservers reads the servers of a resolv.conf that we wrote.
func nameservers(content []byte) []netip.Addr {
	var servers []netip.Addr
	lines := bufio.NewScanner(bytes.NewReader(content))
	for lines.Scan() {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		if a, err := netip.ParseAddr(rest); word == "nameserver" && err == nil {
			servers = append(servers, a)
		}
	}
	return servers
}

// hostsFile is the content of a hosts file: the loopback, then names with their
// addresses in order.
func hostsFile(names map[string][]netip.Addr) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	for _, name := range slices.Sorted(maps.Keys(names)) {
		for _, a := range names[name] {
			fmt.Fprintf(&b, "%s %s.%s %s\n", a, name, Domain, name)
		}
	}
	return b.Bytes()
}
