package support

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Removed stands where a secret stood.
const Removed = "(removed)"

// Bounds of the values that are looked for. A shorter one would be found in every
// word; where it is declared it is not shown anyhow.
const (
	valueMin = 4 // characters
	lineMin  = 8 // of one line of a value
)

// smells are in names whose values are secrets, of variables and flags: rather one too
// many, as all that is lost by it is a value.
var smells = regexp.MustCompile(`(?i)pass|pwd|secret|token|key|credential|auth|cookie|session|jwt|salt|dsn|login|connection_?string|(^|_)pin($|_)`)

// nameWords are in names whose values are removed from any text, where a key may be one
// of a list.
var nameWords = []string{"pass", "pwd", "secret", "token", "apikey", "api_key", "api-key", "access_key", "access-key", "accesskey",
	"private_key", "private-key", "privatekey", "encryption_key", "encryption-key", "credential", "auth", "cookie", "jwt", "dsn"}

// named matches NAME=VALUE and NAME: VALUE, in text, JSON and flags: the name, what is
// between, and the value.
var named = regexp.MustCompile(`(?i)([\w.-]*(?:` + strings.Join(nameWords, "|") + `)[\w.-]*)` +
	`(\\?["']?\s*[:=]\s*)` + `(\\"[^"\\]*\\"|"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"'\\,;&{}\[\]()]+)`)

// A pattern finds what looks like a secret in a line that has one of the words, which
// are in lower case: most lines have none, and are passed over quickly.
type pattern struct {
	words []string
	find  *regexp.Regexp
	with  string
}

// keys are private ones, whole or cut off at either end, also with "\n" for the breaks
// of their lines.
var keys = []*regexp.Regexp{
	regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`),
	regexp.MustCompile(`(?s)\A[A-Za-z0-9+/=\s\\]*-----END [A-Z0-9 ]*PRIVATE KEY-----`),
}

var patterns = []pattern{
	{[]string{"://"}, regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/?#"'<>]*@`), "${1}" + Removed + "@"},
	{[]string{"?", "&"}, regexp.MustCompile(`(?i)([?&][\w.-]*(?:token|sig(?:nature)?|secret|key|pass|pwd|auth|code|credential)[\w.-]*=)[^&\s"'\\]+`), "${1}" + Removed},
	{[]string{"bearer", "basic", "digest", "negotiate"}, regexp.MustCompile(`(?i)\b(bearer|basic|digest|negotiate)(\s+)[A-Za-z0-9+/_.~=-]{8,}`), "${1}${2}" + Removed},
	{nameWords, named, "${1}${2}" + Removed},
	{[]string{"eyj"}, regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*`), Removed}, // JWT
	{[]string{"capsule_"}, regexp.MustCompile(`\bcapsule_[A-Za-z0-9_-]{43}`), Removed},                          // a token for metrics
	{[]string{"-"}, regexp.MustCompile(`\b[0-9A-HJKMNP-TV-Z]{5}(?:-[0-9A-HJKMNP-TV-Z]{5}){3}\b`), Removed},      // a code to claim with
	{[]string{"$"}, regexp.MustCompile(`\$(?:[156y7]|2[aby]|argon2id?)\$[^\s"':]{8,}`), Removed},                // a hash of a password
	{[]string{"gh", "github_pat_", "glpat-", "dckr_pat_", "xox", "sk-", "akia", "asia", "npm_", "hf_", "aiza"},
		regexp.MustCompile(`\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|dckr_pat_[A-Za-z0-9_-]{16,}|xox[abprs]-[A-Za-z0-9-]{10,}|sk-[A-Za-z0-9_-]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|npm_[A-Za-z0-9]{20,}|hf_[A-Za-z0-9]{20,}|AIza[A-Za-z0-9_-]{30,})`), Removed},
}

// Redactor removes secrets: values that it is told, and what looks like one.
type Redactor struct{ known *strings.Replacer }

// NewRedactor makes one that knows these values, in whatever form they are written
// often: as they are, a line of them, in base64, in a URL and in JSON.
func NewRedactor(values []string) *Redactor {
	var forms []string
	add := func(form string, least int) {
		if len(form) >= least {
			forms = append(forms, form)
		}
	}
	for _, v := range values {
		trimmed := strings.TrimSpace(v)
		add(v, valueMin)
		add(trimmed, valueMin)
		for line := range strings.Lines(v) {
			add(strings.TrimSpace(line), lineMin)
		}
		if len(trimmed) < valueMin {
			continue
		}
		for _, text := range []string{v, trimmed} {
			for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
				add(encoding.EncodeToString([]byte(text)), lineMin)
			}
			add(url.QueryEscape(text), valueMin)
			add(url.PathEscape(text), valueMin)
			if quoted, err := json.Marshal(text); err == nil {
				add(string(quoted[1:len(quoted)-1]), valueMin)
			}
		}
	}
	// At one place the first that fits is taken: the longest.
	slices.SortFunc(forms, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	var pairs []string
	for _, f := range slices.Compact(forms) {
		pairs = append(pairs, f, Removed)
	}
	return &Redactor{strings.NewReplacer(pairs...)}
}

// Text gives a text without its secrets.
func (r *Redactor) Text(s string) string {
	s = r.known.Replace(s)
	if strings.Contains(s, "PRIVATE KEY") {
		for _, k := range keys {
			s = k.ReplaceAllString(s, Removed)
		}
	}
	var clean strings.Builder
	for line := range strings.Lines(s) {
		lower := strings.ToLower(line)
		for _, p := range patterns {
			if slices.ContainsFunc(p.words, func(w string) bool { return strings.Contains(lower, w) }) {
				line = p.find.ReplaceAllString(line, p.with)
			}
		}
		clean.WriteString(line)
	}
	return clean.String()
}

// Message removes secrets from all texts of a message. Keys of maps stay: they are
// names. Bytes go, but for how many there were.
func (r *Redactor) Message(m proto.Message) { r.fields(m.ProtoReflect()) }

func (r *Redactor) fields(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			of := f.MapValue()
			v.Map().Range(func(k protoreflect.MapKey, item protoreflect.Value) bool {
				if of.Message() != nil {
					r.fields(item.Message())
				} else if clean, changed := r.value(of.Kind(), item); changed {
					v.Map().Set(k, clean)
				}
				return true
			})
		case f.IsList():
			for i := range v.List().Len() {
				if f.Message() != nil {
					r.fields(v.List().Get(i).Message())
				} else if clean, changed := r.value(f.Kind(), v.List().Get(i)); changed {
					v.List().Set(i, clean)
				}
			}
		case f.Message() != nil:
			r.fields(v.Message())
		default:
			if clean, changed := r.value(f.Kind(), v); changed {
				m.Set(f, clean)
			}
		}
		return true
	})
}

// value is that of a text or of bytes.
func (r *Redactor) value(kind protoreflect.Kind, v protoreflect.Value) (protoreflect.Value, bool) {
	switch kind {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(r.Text(v.String())), true
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(nil), true
	}
	return v, false
}
