package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"capsule/internal/bundle"
)

func newReleaseCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "release", Short: "Make keys for releases, and sign bundles with them"}
	cmd.AddCommand(newReleaseKeygenCommand(a), newReleaseSignCommand(a))
	return cmd
}

func newReleaseKeygenCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "keygen NAME",
		Short: "Make a key that signs releases",
		Long: `Makes an ed25519 key: NAME.key, which signs and which only you may have, and
NAME.pub, which goes into image/keys of the source tree: capsules built from it
take what the key signed. Files that are there already are never overwritten.`,
		Example: `  capsulectl release keygen home
  cp home.pub image/keys/`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return runReleaseKeygen(a, args[0]) },
	}
}

func runReleaseKeygen(a *app, name string) error {
	if ext := filepath.Ext(name); ext == bundle.PrivateSuffix || ext == bundle.PublicSuffix {
		return &failure{exitUsage, fmt.Errorf("%q ends as a key's file does", name), "name the key without it: both files get theirs"}
	}
	key, err := bundle.Generate()
	if err != nil {
		return err
	}
	if err := saveKeys(name, key); err != nil {
		return err
	}
	id := key.Public().ID()
	private, public := name+bundle.PrivateSuffix, name+bundle.PublicSuffix
	return a.ui.show(a.output, view{
		single: true, names: []string{id}, values: []any{map[string]string{"id": id, "private": private, "public": public}},
		rows: [][]string{{"id:", id}, {"private:", private + ", keep it secret, and a copy of it safe"}, {"public:", public}},
	})
}

// saveKeys writes both halves or none.
func saveKeys(name string, key *bundle.PrivateKey) error {
	private, public := name+bundle.PrivateSuffix, name+bundle.PublicSuffix
	if err := key.Save(private); err != nil {
		return keyFileError(private, err)
	}
	if err := key.Public().Save(public); err != nil {
		return errors.Join(keyFileError(public, err), os.Remove(private))
	}
	return nil
}

func keyFileError(file string, err error) error {
	if errors.Is(err, fs.ErrExist) {
		return &failure{exitFailed, fileError("create", file, fs.ErrExist), "a key is never overwritten: choose another name"}
	}
	return fileError("create", file, err)
}

// ReleaseSignOptions of "release sign".
type ReleaseSignOptions struct {
	Key string // file
}

func newReleaseSignCommand(a *app) *cobra.Command {
	var o ReleaseSignOptions
	cmd := &cobra.Command{
		Use:   "sign BUNDLE",
		Short: "Sign a bundle",
		Long: `Checks that a bundle holds what its manifest says, and signs it in place of who
signed it before. The signed bundle is written to BUNDLE.partial and takes its
name once it is whole; a bundle that is not right stays as it is.

Capsules take bundles that one of the keys in their root signed.`,
		Example: "  capsulectl release sign build/capsule-v1.2.0-amd64.bundle --key home.key",
		Args:    cobra.ExactArgs(1),
		RunE:    func(_ *cobra.Command, args []string) error { return runReleaseSign(a, o, args[0]) },
	}
	cmd.Flags().StringVar(&o.Key, "key", "", "file of the key that signs")
	must(cmd.MarkFlagRequired("key"))
	return cmd
}

func runReleaseSign(a *app, o ReleaseSignOptions, file string) error {
	key, err := bundle.LoadPrivateKey(o.Key)
	var path *fs.PathError
	if errors.As(err, &path) {
		return readError(o.Key, err)
	}
	if err != nil {
		return err
	}
	before, after, err := signFile(a, file, key)
	if err != nil {
		return err
	}
	facts := map[string]string{"file": file, "version": after.Manifest.Version, "key": after.KeyID}
	rows := [][]string{{"bundle:", file}, {"version:", facts["version"]}, {"signed by:", after.KeyID}}
	if before.KeyID != "" && before.KeyID != after.KeyID {
		facts["replaced"] = before.KeyID
		rows = append(rows, []string{"no more by:", before.KeyID})
	}
	return a.ui.show(a.output, view{single: true, names: []string{file}, values: []any{facts}, rows: rows})
}

// signFile replaces a bundle by one with another signature. It gives the headers of
// both.
func signFile(a *app, file string, key *bundle.PrivateKey) (before, after *bundle.Header, err error) {
	in, err := os.Open(file)
	if err != nil {
		return nil, nil, readError(file, err)
	}
	defer in.Close()
	info, err := in.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a file")
	}
	if err != nil {
		return nil, nil, readError(file, err)
	}
	if before, err = bundle.ReadHeader(in); err != nil {
		return nil, nil, fmt.Errorf("sign %q: %w", file, err)
	}
	out, err := createArchive(a, file)
	if err != nil {
		return nil, nil, err
	}
	after = before.Sign(key)
	if err := copySigned(out, after, in, info.Mode().Perm()); err != nil {
		out.drop()
		return nil, nil, fmt.Errorf("sign %q: %w", file, err)
	}
	return before, after, out.keep()
}

// copySigned writes a bundle with a new header; closing what was read lets its name
// go to the copy on Windows too.
func copySigned(out *archiveFile, header *bundle.Header, in *os.File, mode fs.FileMode) error {
	if _, err := out.Write(header.Bytes()); err != nil {
		return err
	}
	if err := header.CopyContent(out, in); err != nil {
		return err
	}
	return errors.Join(out.file.Chmod(mode), in.Close())
}
