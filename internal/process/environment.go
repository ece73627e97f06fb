package process

import "strings"

// Environment adds what programs rely on and nobody set.
func Environment(env []string, who Account) []string {
	env = append([]string{}, env...)
	if _, ok := Lookup(env, "PATH"); !ok {
		env = append(env, "PATH="+DefaultPath)
	}
	if _, ok := Lookup(env, "HOME"); !ok {
		env = append(env, "HOME="+who.Home)
	}
	return env
}

// Lookup gives the last value of a variable.
func Lookup(env []string, name string) (value string, ok bool) {
	for _, e := range env {
		if v, is := strings.CutPrefix(e, name+"="); is {
			value, ok = v, true
		}
	}
	return value, ok
}

// Override sets variables, each name once.
func Override(env []string, more ...string) []string {
	env = append([]string{}, env...)
next:
	for _, m := range more {
		name, _, _ := strings.Cut(m, "=")
		for i, e := range env {
			if strings.HasPrefix(e, name+"=") {
				env[i] = m
				continue next
			}
		}
		env = append(env, m)
	}
	return env
}
