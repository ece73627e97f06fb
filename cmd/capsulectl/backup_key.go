package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	crypt "filippo.io/age"
	"github.com/spf13/cobra"
)

// A backup holds the key of the capsule's CA and its secrets: it's only ever written
// encrypted, by age, and there is no way to say otherwise.

// Bounds of what encrypts a backup.
const (
	passphraseMin = 12      // characters: who has the file tries as many as they like
	passphraseMax = 1024    // bytes
	keyFileMax    = 1 << 20 // bytes
	recipientsMax = 64
)

// passphraseFile is --passphrase-file of all commands that have it.
func passphraseFile(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "passphrase-file", "", "file with the passphrase of the backup (default is to ask for it)")
}

// recipients are who can read a backup that is made.
func (a *app) recipients(keys []string, file string) ([]crypt.Recipient, error) {
	if len(keys) > 0 && file != "" {
		return nil, &failure{exitUsage, errors.New("a backup is for recipients, or has a passphrase"), "leave out --recipient or --passphrase-file"}
	}
	if len(keys) > recipientsMax {
		return nil, &failure{exitUsage, fmt.Errorf("more than %d recipients", recipientsMax), ""}
	}
	var all []crypt.Recipient
	for _, key := range keys {
		found, err := crypt.ParseRecipients(strings.NewReader(key))
		if err != nil {
			return nil, &failure{exitUsage, fmt.Errorf("%.80q is no recipient", key), "it looks like age1..., and \"age-keygen\" makes one"}
		}
		all = append(all, found...)
	}
	if len(all) > 0 {
		return all, nil
	}
	passphrase, err := a.passphrase(file, true)
	if err != nil {
		return nil, err
	}
	r, err := crypt.NewScryptRecipient(passphrase)
	return []crypt.Recipient{r}, err
}

// identities are what opens a backup.
func (a *app) identities(identityFile, file string) ([]crypt.Identity, error) {
	if identityFile != "" && file != "" {
		return nil, &failure{exitUsage, errors.New("a backup is opened by a key, or by a passphrase"), "leave out --identity or --passphrase-file"}
	}
	if identityFile != "" {
		f, err := os.Open(identityFile)
		if err != nil {
			return nil, readError(identityFile, err)
		}
		defer f.Close()
		ids, err := crypt.ParseIdentities(io.LimitReader(f, keyFileMax))
		if err != nil { // whose text may quote the file
			return nil, &failure{exitUsage, fmt.Errorf("%q holds no key", identityFile), "name a file that \"age-keygen\" made: AGE-SECRET-KEY-…"}
		}
		return ids, nil
	}
	passphrase, err := a.passphrase(file, false)
	if err != nil {
		return nil, err
	}
	id, err := crypt.NewScryptIdentity(passphrase)
	return []crypt.Identity{id}, err
}

// passphrase comes from a file or a terminal, never from the command line or the
// environment, which others see.
func (a *app) passphrase(file string, fresh bool) (string, error) {
	var text string
	switch {
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return "", readError(file, err)
		}
		defer f.Close()
		data, err := io.ReadAll(io.LimitReader(f, passphraseMax+1))
		if err != nil {
			return "", readError(file, err)
		}
		text = strings.TrimRight(string(data), "\r\n")
	case !isTerminal(os.Stdin):
		return "", &failure{exitUsage, errors.New("no terminal to ask for the passphrase on"), "use --passphrase-file, or keys: --recipient when it is made, --identity when it is read"}
	default:
		var err error
		if text, err = a.askPassphrase(fresh); err != nil {
			return "", err
		}
	}
	switch {
	case len(text) > passphraseMax:
		return "", &failure{exitUsage, fmt.Errorf("a passphrase has at most %d bytes", passphraseMax), ""}
	case text == "" || fresh && len([]rune(text)) < passphraseMin:
		return "", &failure{exitUsage, fmt.Errorf("a passphrase has at least %d characters", passphraseMin), "some random words are easier to keep than letters and signs"}
	}
	return text, nil
}

func (a *app) askPassphrase(fresh bool) (string, error) {
	text, err := a.ui.password("Passphrase of the backup: ")
	if err != nil || !fresh {
		return text, err
	}
	again, err := a.ui.password("Once more: ")
	if err == nil && again != text {
		err = &failure{exitUsage, errors.New("the two are not the same"), ""}
	}
	return text, err
}
