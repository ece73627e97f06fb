// Package runc stands between containerd's shim and runc for a container whose
// environment holds secrets. containerd keeps the settings of each container on the
// disk; so those have the name of a file in memory only, and what is in that file is
// added to the settings of one run, which are in memory too, as runc creates it.
package runc

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"capsule/internal/process"
)

// Annotation of a container's settings that names the file with more of its
// environment: NAME=value, each ended by a NUL.
const Annotation = "capsule.environment"

// Main takes the place of runc: it has the arguments of one, and ends as one.
func Main() {
	args := os.Args[1:]
	err := complete(args)
	if err == nil {
		err = become(args)
	}
	fmt.Fprintln(os.Stderr, "capsule-runc:", err)
	tell(args, err)
	os.Exit(1)
}

// become only returns when it failed.
func become(args []string) error {
	path, err := exec.LookPath("runc")
	if err != nil {
		return err
	}
	return unix.Exec(path, append([]string{"runc"}, args...), os.Environ())
}

// complete adds to the settings of a container that is about to be created.
func complete(args []string) error {
	if !slices.Contains(args, "create") {
		return nil
	}
	settings := filepath.Join(option(args, "--bundle"), "config.json")
	text, err := os.ReadFile(settings)
	if err != nil {
		return err
	}
	full, err := withSecrets(text)
	if err != nil {
		return fmt.Errorf("add to the environment of a container: %w", err)
	}
	if err := os.Chmod(settings, 0o600); err != nil {
		return err
	}
	return os.WriteFile(settings, full, 0o600)
}

// option is the value of an option, which the shim gives as a word of its own.
func option(args []string, name string) string {
	if i := slices.Index(args, name); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

// withSecrets gives the settings with what is in the file that they name. All else in
// them stays as it is.
func withSecrets(settings []byte) ([]byte, error) {
	var all, program map[string]json.RawMessage
	var annotations map[string]string
	var env []string
	for _, part := range []struct {
		text func() json.RawMessage
		into any
	}{
		{func() json.RawMessage { return settings }, &all},
		{func() json.RawMessage { return all["annotations"] }, &annotations},
		{func() json.RawMessage { return all["process"] }, &program},
		{func() json.RawMessage { return program["env"] }, &env},
	} {
		if text := part.text(); len(text) > 0 {
			if err := json.Unmarshal(text, part.into); err != nil {
				return nil, err
			}
		}
	}
	if annotations[Annotation] == "" || program == nil {
		return settings, nil
	}
	more, err := ReadEnvironment(annotations[Annotation])
	if err != nil {
		return nil, err
	}
	if program["env"], err = json.Marshal(process.Override(env, more...)); err != nil {
		return nil, err
	}
	if all["process"], err = json.Marshal(program); err != nil {
		return nil, err
	}
	return json.Marshal(all)
}

// Environment is the content of such a file.
func Environment(env []string) []byte {
	var b bytes.Buffer
	for _, entry := range env {
		b.WriteString(entry)
		b.WriteByte(0)
	}
	return b.Bytes()
}

// ReadEnvironment reads such a file.
func ReadEnvironment(path string) (env []string, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for entry := range bytes.SplitSeq(bytes.TrimSuffix(text, []byte{0}), []byte{0}) {
		if len(entry) > 0 {
			env = append(env, string(entry))
		}
	}
	return env, nil
}

// tell writes an error where the shim looks for that of runc.
func tell(args []string, err error) {
	line, _ := json.Marshal(map[string]string{"level": "error", "msg": err.Error()})
	if f, err := os.OpenFile(option(args, "--log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600); err == nil {
		_, _ = f.Write(append(line, '\n'))
		f.Close()
	}
}
