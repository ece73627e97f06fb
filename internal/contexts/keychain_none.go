//go:build !darwin && !windows

package contexts

func osKeychain() *keychain { return nil }
