package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"capsule/internal/run"
)

const (
	suite    = "trixie"
	keyring  = "/usr/share/keyrings/debian-archive-keyring.gpg"
	lockName = "packages.json" // exact packages of the last resolve, below the cache

	// fetchMax bounds one call of apt that uses the network.
	fetchMax = 15 * time.Minute
)

// debPackage is one exact package.
type debPackage struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Source  string `json:"source"`
	SHA256  string `json:"sha256"`
	File    string `json:"file"` // name below the cache's debs folder
}

// hostPackages installs what the build itself runs, where it is missing.
func (b *builder) hostPackages() error {
	needs := []struct{ path, name string }{
		{keyring, "debian-archive-keyring"},
		{"/usr/bin/dpkg-deb", "dpkg"},
		{"/usr/bin/gcc", "gcc"},
		{"/usr/bin/pkg-config", "pkg-config"},
		{"/etc/ssl/certs/ca-certificates.crt", "ca-certificates"},
		// for the kernel of microVMs
		{"/usr/bin/make", "make"},
		{"/usr/bin/xz", "xz-utils"},
		{"/usr/bin/flex", "flex"},
		{"/usr/bin/bison", "bison"},
		{"/usr/bin/bc", "bc"},
		{"/usr/include/libelf.h", "libelf-dev"},
	}
	var missing []string
	for _, need := range needs {
		if _, err := os.Stat(need.path); err != nil {
			missing = append(missing, need.name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	fmt.Printf("  installing %s\n", strings.Join(missing, " "))
	apt := []string{"env", "DEBIAN_FRONTEND=noninteractive", "apt-get"}
	if os.Getuid() != 0 {
		apt = append([]string{"sudo"}, apt...)
	}
	for _, args := range [][]string{{"update", "-q"}, append([]string{"install", "-qy", "--no-install-recommends"}, missing...)} {
		argv := append(slices.Clone(apt), args...)
		if _, err := run.Output(b.ctx, fetchMax, argv[0], argv[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// resolve fixes the version of every package. The versions of the last build stay
// until the lists of names change or newer ones are asked for.
func (b *builder) resolve() error {
	lock := filepath.Join(b.cache, lockName)
	k := newKey("resolve 1", suite, list("packages"), list("packages-alone"))
	if b.update {
		k = newKey(time.Now())
	}
	if err := b.step("packages", k, []string{lock}, func() error { return b.resolveNow(lock) }); err != nil {
		return err
	}
	return b.readLock(lock)
}

func (b *builder) readLock(lock string) error {
	content, err := os.ReadFile(lock)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(content, &b.lock); err != nil {
		return fmt.Errorf("read %s: %w", lock, err)
	}
	for _, p := range b.lock {
		if release, ok := strings.CutPrefix(p.Name, "linux-image-"); ok {
			b.kernel = release
		}
	}
	return nil
}

func (b *builder) resolveNow(lock string) error {
	if err := b.writeAptRoot(); err != nil {
		return err
	}
	if _, err := b.apt("apt-get", "update", "-q"); err != nil {
		return err
	}
	alone := list("packages-alone")
	kernel, err := b.newestKernel()
	if err != nil {
		return err
	}
	alone[slices.Index(alone, "KERNEL")] = kernel
	out, err := b.apt("apt-get", append([]string{"install", "-y", "--print-uris", "-qq"}, list("packages")...)...)
	if err != nil {
		return err
	}
	names := append(alone, closureNames(string(out))...)
	slices.Sort(names)
	out, err = b.apt("apt-cache", append([]string{"show", "--no-all-versions"}, slices.Compact(names)...)...)
	if err != nil {
		return err
	}
	content, err := json.MarshalIndent(parsePackages(string(out)), "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(lock, content, 0o644)
}

// newestKernel is the package that the generic kernel's metapackage points to.
func (b *builder) newestKernel() (string, error) {
	out, err := b.apt("apt-cache", "show", "--no-all-versions", "linux-image-amd64")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(out)) {
		if depends, ok := strings.CutPrefix(line, "Depends: "); ok {
			name, _, _ := strings.Cut(strings.TrimSpace(depends), " ")
			return name, nil
		}
	}
	return "", errors.New("linux-image-amd64 depends on no kernel")
}

// closureNames reads the package names from apt-get's list of files:
// 'uri' name_version_arch.deb size hash.
func closureNames(uris string) []string {
	var names []string
	for line := range strings.Lines(uris) {
		fields := strings.Fields(line)
		if len(fields) < 3 || !strings.HasPrefix(line, "'") {
			continue
		}
		name, _, _ := strings.Cut(fields[1], "_")
		names = append(names, name)
	}
	return names
}

// parsePackages reads stanzas of apt-cache show.
func parsePackages(stanzas string) []debPackage {
	var packages []debPackage
	for stanza := range strings.SplitSeq(stanzas, "\n\n") {
		fields := map[string]string{}
		for line := range strings.Lines(stanza) {
			if name, value, ok := strings.Cut(line, ": "); ok && !strings.HasPrefix(line, " ") {
				fields[name] = strings.TrimSpace(value)
			}
		}
		if fields["Package"] == "" {
			continue
		}
		source, _, _ := strings.Cut(fields["Source"], " ")
		if source == "" {
			source = fields["Package"]
		}
		// apt's own name for a downloaded file: the epoch's colon is escaped.
		version := strings.ReplaceAll(fields["Version"], ":", "%3a")
		packages = append(packages, debPackage{
			Name: fields["Package"], Version: fields["Version"], Source: source, SHA256: fields["SHA256"],
			File: fields["Package"] + "_" + version + "_" + fields["Architecture"] + ".deb",
		})
	}
	slices.SortFunc(packages, func(x, y debPackage) int { return strings.Compare(x.Name, y.Name) })
	return packages
}

// download fetches the packages that are not in the cache. apt checks each one
// against the signed lists; the check here also finds what an interrupted run left.
func (b *builder) download() error {
	debs := filepath.Join(b.cache, "debs")
	if err := os.MkdirAll(debs, 0o755); err != nil {
		return err
	}
	var files []string
	for _, p := range b.lock {
		files = append(files, filepath.Join(debs, p.File))
	}
	return b.step("download", newKey("download 2", b.lock), files, func() error {
		missing, err := missingPackages(debs, b.lock)
		if err != nil || len(missing) == 0 {
			return err
		}
		config := "APT_CONFIG=" + filepath.Join(b.cache, "apt", "apt.conf")
		args := append([]string{"-C", debs, config, "apt-get", "download", "-q"}, missing...)
		if _, err := run.Output(b.ctx, fetchMax, "env", args...); err != nil {
			return fmt.Errorf("%w; if the mirror has newer versions, build once with -update", err)
		}
		if missing, err = missingPackages(debs, b.lock); err == nil && len(missing) > 0 {
			err = fmt.Errorf("the mirror gave other files than it lists for %s", strings.Join(missing, " "))
		}
		return err
	})
}

// missingPackages names, as apt does, the packages of which there is no good file,
// and removes bad ones.
func missingPackages(dir string, packages []debPackage) ([]string, error) {
	var missing []string
	for _, p := range packages {
		path := filepath.Join(dir, p.File)
		content, err := os.ReadFile(path)
		if sum := sha256.Sum256(content); err == nil && hex.EncodeToString(sum[:]) == p.SHA256 {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return nil, err
		}
		missing = append(missing, p.Name+"="+p.Version)
	}
	return missing, nil
}

// apt runs an apt program against the isolated root.
func (b *builder) apt(program string, args ...string) ([]byte, error) {
	config := "APT_CONFIG=" + filepath.Join(b.cache, "apt", "apt.conf")
	return run.Output(b.ctx, fetchMax, "env", append([]string{config, "LC_ALL=C", program}, args...)...)
}

// writeAptRoot makes an apt root that shares nothing with the machine's own but
// the address of its mirror.
func (b *builder) writeAptRoot() error {
	dir := filepath.Join(b.cache, "apt")
	for _, sub := range []string{"state/lists/partial", "cache/archives/partial", "etc"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	plain, security, err := b.mirrors()
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "state/status"), nil, 0o644),
		os.WriteFile(filepath.Join(dir, "etc/sources.list"), []byte(sourcesList(plain, security)), 0o644),
		os.WriteFile(filepath.Join(dir, "apt.conf"), []byte(aptConfig(dir)), 0o644),
	)
}

func sourcesList(plain, security string) string {
	const format = "deb [arch=amd64 signed-by=%s] %s %s main non-free-firmware\n"
	return fmt.Sprintf(format, keyring, plain, suite) +
		fmt.Sprintf(format, keyring, plain, suite+"-updates") +
		fmt.Sprintf(format, keyring, security, suite+"-security")
}

func aptConfig(dir string) string {
	return fmt.Sprintf(`Dir::State "%[1]s/state";
Dir::State::status "%[1]s/state/status";
Dir::Cache "%[1]s/cache";
Dir::Etc::sourcelist "%[1]s/etc/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
`, dir)
}

// mirrors gives the addresses of Debian's main and security archive: the one that
// was asked for, else what this machine's apt uses for its own release.
func (b *builder) mirrors() (plain, security string, err error) {
	if b.mirror != "" {
		plain = strings.TrimRight(b.mirror, "/")
		return plain, plain + "-security", nil
	}
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", "", err
	}
	targets, err := run.Output(b.ctx, quick, "apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)")
	if err != nil {
		return "", "", err
	}
	return debianMirrors(string(release), string(targets))
}

// debianMirrors finds the mirrors in apt's list of "suite address" lines.
func debianMirrors(osRelease, targets string) (plain, security string, err error) {
	values := map[string]string{}
	for line := range strings.Lines(osRelease) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[name] = strings.Trim(value, `"`)
	}
	if values["ID"] == "debian" {
		for line := range strings.Lines(targets) {
			name, address, _ := strings.Cut(strings.TrimSpace(line), " ")
			switch address = strings.TrimRight(address, "/"); {
			case name == values["VERSION_CODENAME"] && plain == "":
				plain = address
			case name == values["VERSION_CODENAME"]+"-security" && security == "":
				security = address
			}
		}
	}
	if plain == "" {
		return "", "", fmt.Errorf("apt on this machine (%s) has no Debian mirror: "+
			"set CAPSULE_MIRROR to the address of one, ending in /debian", values["PRETTY_NAME"])
	}
	if security == "" {
		security = plain + "-security"
	}
	return plain, security, nil
}
