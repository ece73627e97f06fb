// Package token owns the tokens by which programs without a certificate read
// metrics: random words, of which only the SHA-256 is kept. It knows no HTTP.
package token

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"capsule/internal/store"
)

// Max is how many there may be.
const Max = 50

// prefix lets people and scanners for secrets see what a token is.
const prefix = "capsule_"

const secretBytes = 32

var goodName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

// Token is what is known of one.
type Token struct {
	Name      string    `json:"-"`
	Hash      string    `json:"sha256"` // hexadecimal
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"`
	// LastUsed is since the daemon was started; zero when not yet.
	LastUsed time.Time `json:"-"`
}

// Book is safe for use by several goroutines.
type Book struct {
	bucket *store.Bucket

	mu  sync.Mutex
	all map[string]*Token // by name
}

// Open reads the tokens of a bucket.
func Open(bucket *store.Bucket) (*Book, error) {
	b := &Book{bucket: bucket, all: map[string]*Token{}}
	err := bucket.Each(func(name string, value []byte) error {
		t := &Token{Name: name}
		if err := json.Unmarshal(value, t); err != nil {
			return fmt.Errorf("decode token %q: %w", name, err)
		}
		b.all[name] = t
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	return b, nil
}

// Create makes a token, whose secret is told this once.
func (b *Book) Create(name, by string) (t Token, secret string, err error) {
	if !goodName.MatchString(name) {
		return t, "", fmt.Errorf("token %q: a name has lower-case letters, digits and \"-\", at most 40: %w", name, errdefs.ErrInvalidArgument)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.all[name] != nil:
		return t, "", fmt.Errorf("token %q is there already: %w", name, errdefs.ErrAlreadyExists)
	case len(b.all) >= Max:
		return t, "", fmt.Errorf("there are %d tokens, at most so many are kept: %w", len(b.all), errdefs.ErrResourceExhausted)
	}
	random := make([]byte, secretBytes)
	rand.Read(random) // never fails: crypto/rand ends the program instead
	secret = prefix + base64.RawURLEncoding.EncodeToString(random)
	t = Token{Name: name, Hash: hash(secret), CreatedAt: time.Now(), CreatedBy: by}
	data, err := json.Marshal(t)
	if err != nil {
		return Token{}, "", err
	}
	if err := b.bucket.Put(name, data); err != nil {
		return Token{}, "", fmt.Errorf("keep token %q: %w", name, err)
	}
	b.all[name] = &t
	return t, secret, nil
}

// List gives all by name.
func (b *Book) List() []Token {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []Token
	for _, t := range b.all {
		list = append(list, *t)
	}
	slices.SortFunc(list, func(a, b Token) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// Revoke ends one at once.
func (b *Book) Revoke(name string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all[name] == nil {
		return fmt.Errorf("token %q does not exist: %w", name, errdefs.ErrNotFound)
	}
	if err := b.bucket.Delete(name); err != nil {
		return fmt.Errorf("remove token %q: %w", name, err)
	}
	delete(b.all, name)
	return nil
}

// Any tells whether there is one.
func (b *Book) Any() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.all) > 0
}

// Admit gives the name of the token in an Authorization header. Hashes are
// compared: how long that takes tells nothing of a secret.
func (b *Book) Admit(authorization string) (name string, ok bool) {
	secret, ok := bearer(authorization)
	if !ok {
		return "", false
	}
	h := hash(secret)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, t := range b.all {
		if t.Hash == h {
			t.LastUsed = time.Now()
			return t.Name, true
		}
	}
	return "", false
}

// bearer takes the secret out of "Bearer capsule_…", as RFC 6750 writes it; the
// scheme is in any case of letters.
func bearer(authorization string) (secret string, ok bool) {
	scheme, secret, ok := strings.Cut(authorization, " ")
	secret = strings.Trim(secret, " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || !strings.HasPrefix(secret, prefix) ||
		len(secret) != len(prefix)+base64.RawURLEncoding.EncodedLen(secretBytes) {
		return "", false
	}
	return secret, true
}

func hash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}
