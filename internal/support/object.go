package support

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
)

// plain are values that can't be secrets: numbers as of ports, yes and no, levels of
// logs, times.
var plain = regexp.MustCompile(`^(?i:|-?[0-9]{1,5}|true|false|yes|no|on|off|none|null|trace|debug|info|notice|warn|warning|error|fatal|production|development|utc|c|c\.utf-?8|[a-z]{2}_[a-z]{2}(\.utf-?8)?|(africa|america|antarctica|asia|atlantic|australia|europe|indian|pacific|etc)/[a-z_+-]+|[0-9]{1,5}(ms|s|m|h|d|k|kb|kib|m|mb|mib|g|gb|gib))$`)

// Object gives a declared object, already without the values of a Secret, as it may
// leave the capsule: of what an operator wrote freely, such as variables, arguments
// and files, only what can't be a secret.
func Object(obj *v1.Object) *v1.Object {
	obj = proto.CloneOf(obj)
	if spec := obj.GetWorkload().GetSpec(); spec != nil {
		for name, value := range spec.GetEnv() {
			if smells.MatchString(name) || !plain.MatchString(value) {
				spec.Env[name] = removed(value)
			}
		}
		for _, f := range spec.GetFiles() {
			if f.Content != nil {
				f.Content = proto.String(removed(f.GetContent()))
			}
		}
		spec.Command, spec.Args = arguments(spec.GetCommand(), true), arguments(spec.GetArgs(), false)
		if h := spec.GetHealth(); h != nil {
			h.Exec = arguments(h.GetExec(), true)
			if path, query, _ := strings.Cut(h.GetHttp().GetPath(), "?"); query != "" {
				h.Http.Path = path + "?" + Removed
			}
		}
	}
	for _, r := range obj.GetCapsule().GetSpec().GetRegistries() {
		if r.GetUsername() != "" {
			r.Username = Removed
		}
	}
	return obj
}

func removed(value string) string { return fmt.Sprintf("%s %d characters", Removed, len(value)) }

// flagName is one without a value: "-v", "--log-level".
var flagName = regexp.MustCompile(`^(-[A-Za-z]|--[A-Za-z][A-Za-z0-9_-]*)$`)

// arguments keeps the program, the names of flags and plain values.
func arguments(args []string, program bool) []string {
	shown := slices.Clone(args)
	secret := false // the value of the flag before
	for i, a := range shown {
		name, value, assigned := strings.Cut(a, "=")
		switch {
		case program && i == 0:
		case flagName.MatchString(a):
			secret = smells.MatchString(a)
			continue
		case assigned && flagName.MatchString(name):
			if smells.MatchString(name) || !plain.MatchString(value) {
				shown[i] = name + "=" + Removed
			}
		case secret || !plain.MatchString(a):
			shown[i] = Removed
		}
		secret = false
	}
	return shown
}

// Values are those of an object that are secrets by their names, or by standing in a
// URL: they are looked for in all else.
func Values(obj *v1.Object) []string {
	spec := obj.GetWorkload().GetSpec()
	var list []string
	for name, value := range spec.GetEnv() {
		if smells.MatchString(name) && !plain.MatchString(value) {
			list = append(list, value)
		}
		list = append(list, within(value)...)
	}
	for _, f := range spec.GetFiles() {
		list = append(list, within(f.GetContent())...)
	}
	for _, args := range [][]string{spec.GetCommand(), spec.GetArgs(), spec.GetHealth().GetExec()} {
		secret := false
		for _, a := range args {
			if secret && !plain.MatchString(a) {
				list = append(list, a)
			}
			secret = flagName.MatchString(a) && smells.MatchString(a)
			list = append(list, within(a)...)
		}
	}
	return list
}

var urls = regexp.MustCompile(`[a-zA-Z][a-zA-Z0-9+.-]*://[^\s"'<>]+`)

// within finds passwords of URLs and values of secret names in a text.
func within(text string) []string {
	var list []string
	for _, raw := range urls.FindAllString(text, -1) {
		if u, err := url.Parse(raw); err == nil && u.User != nil {
			if password, ok := u.User.Password(); ok {
				list = append(list, password)
			} else {
				list = append(list, u.User.Username())
			}
		}
	}
	for _, m := range named.FindAllStringSubmatch(text, -1) {
		if value := strings.Trim(m[3], `"'\`); !plain.MatchString(value) {
			list = append(list, value)
		}
	}
	return list
}
