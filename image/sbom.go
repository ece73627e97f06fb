package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The parts of an SPDX 2.3 document that are used here: https://spdx.github.io/spdx-spec/v2.3/
type spdxDocument struct {
	Version       string             `json:"spdxVersion"`
	License       string             `json:"dataLicense"`
	ID            string             `json:"SPDXID"`
	Name          string             `json:"name"`
	Namespace     string             `json:"documentNamespace"`
	Creation      spdxCreation       `json:"creationInfo"`
	Packages      []spdxPackage      `json:"packages"`
	Relationships []spdxRelationship `json:"relationships"`
}

type spdxCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	ID            string         `json:"SPDXID"`
	Name          string         `json:"name"`
	Version       string         `json:"versionInfo"`
	Download      string         `json:"downloadLocation"`
	FilesAnalyzed bool           `json:"filesAnalyzed"`
	License       string         `json:"licenseConcluded"`
	Declared      string         `json:"licenseDeclared"`
	Copyright     string         `json:"copyrightText"`
	Checksums     []spdxChecksum `json:"checksums,omitempty"`
	References    []spdxRef      `json:"externalRefs,omitempty"`
}

type spdxChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type spdxRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxRelationship struct {
	Element string `json:"spdxElementId"`
	Type    string `json:"relationshipType"`
	Related string `json:"relatedSpdxElement"`
}

const (
	spdxRoot    = "SPDXRef-capsule"
	noAssertion = "NOASSERTION"
)

// writeSBOM lists every Debian package and every Go module that is in the image.
func (b *builder) writeSBOM() error {
	path := filepath.Join(b.out, "sbom.spdx.json")
	debian, err := b.shippedPackages()
	if err != nil {
		return err
	}
	modules, err := b.shippedModules()
	if err != nil {
		return err
	}
	doc := newSPDX(b.version, b.buildUnix, append(debian, modules...))
	content, err := json.MarshalIndent(doc, "", " ")
	if err != nil {
		return err
	}
	fmt.Printf("  %d Debian packages and %d Go modules in %s\n", len(debian), len(modules), filepath.Base(path))
	return replaceFile(path, append(content, '\n'))
}

// newSPDX makes the document; its namespace comes from its content.
func newSPDX(version string, unix int64, packages []spdxPackage) spdxDocument {
	sum := sha256.New()
	for _, p := range packages {
		fmt.Fprintf(sum, "%s %s\n", p.Name, p.Version)
	}
	doc := spdxDocument{
		Version: "SPDX-2.3", License: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: "capsule-" + version,
		Namespace: "https://capsule.invalid/spdx/" + version + "-" + hex.EncodeToString(sum.Sum(nil)[:8]),
		Creation:  spdxCreation{time.Unix(unix, 0).UTC().Format(time.RFC3339), []string{"Tool: capsule-image"}},
		Packages:  append([]spdxPackage{newSPDXPackage(spdxRoot, "capsule", version, "")}, packages...),
		Relationships: []spdxRelationship{
			{"SPDXRef-DOCUMENT", "DESCRIBES", spdxRoot},
		},
	}
	for _, p := range packages {
		doc.Relationships = append(doc.Relationships, spdxRelationship{spdxRoot, "CONTAINS", p.ID})
	}
	return doc
}

// newSPDXPackage describes one package; purl says where its name belongs.
func newSPDXPackage(id, name, version, purl string) spdxPackage {
	p := spdxPackage{
		ID: spdxID(id), Name: name, Version: version, Download: noAssertion,
		License: noAssertion, Declared: noAssertion, Copyright: noAssertion,
	}
	if purl != "" {
		p.References = []spdxRef{{"PACKAGE-MANAGER", "purl", purl}}
	}
	return p
}

// spdxID replaces what an identifier may not hold.
func spdxID(id string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, id)
}

// shippedPackages are those that own a file of the root or of the ESP.
func (b *builder) shippedPackages() ([]spdxPackage, error) {
	content, err := os.ReadFile(filepath.Join(b.work, "owners.json"))
	if err != nil {
		return nil, err
	}
	var owned owners
	if err := json.Unmarshal(content, &owned); err != nil {
		return nil, err
	}
	shipped := map[string]bool{
		// Joined or linked into files of other names.
		"ca-certificates": true, "intel-microcode": true, "amd64-microcode": true, "systemd-boot-efi": true,
		"libseccomp-dev": true, "libc6-dev": true, kernelSource: true,
	}
	tree := filepath.Join(b.work, "root")
	err = filepath.WalkDir(tree, func(path string, _ fs.DirEntry, err error) error {
		name, _ := filepath.Rel(tree, path)
		shipped[owned[strings.TrimPrefix(name, debugDir+"/")]] = true
		return err
	})
	if err != nil {
		return nil, err
	}
	var packages []spdxPackage
	for _, p := range b.lock {
		if !shipped[p.Name] {
			continue
		}
		purl := fmt.Sprintf("pkg:deb/debian/%s@%s?distro=%s", p.Name, strings.ReplaceAll(p.Version, "+", "%2B"), suite)
		described := newSPDXPackage("SPDXRef-deb-"+p.Name, p.Name, p.Version, purl)
		described.Checksums = []spdxChecksum{{"SHA256", p.SHA256}}
		packages = append(packages, described)
	}
	return packages, nil
}

// shippedModules are the modules that the Go programs themselves name.
func (b *builder) shippedModules() ([]spdxPackage, error) {
	files, err := filepath.Glob(filepath.Join(b.work, "bin", "*"))
	if err != nil {
		return nil, err
	}
	versions := map[string]bool{}
	for _, file := range files {
		info, err := buildinfo.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read modules of %s: %w", file, err)
		}
		versions["stdlib@"+strings.TrimPrefix(info.GoVersion, "go")] = true
		for _, module := range info.Deps {
			for module.Replace != nil {
				module = module.Replace
			}
			versions[module.Path+"@"+module.Version] = true
		}
		if info.Main.Version != "" && info.Main.Version != "(devel)" {
			versions[info.Main.Path+"@"+info.Main.Version] = true
		}
	}
	var packages []spdxPackage
	for module := range versions {
		name, version, _ := strings.Cut(module, "@")
		packages = append(packages, newSPDXPackage("SPDXRef-go-"+module, name, version,
			"pkg:golang/"+name+"@"+strings.ReplaceAll(version, "+", "%2B")))
	}
	slices.SortFunc(packages, func(x, y spdxPackage) int { return strings.Compare(x.ID, y.ID) })
	return packages, nil
}
