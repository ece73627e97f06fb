package image

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

const (
	// graceDefault is the time between stop signal and SIGKILL.
	graceDefault = 10 * time.Second
	// pathDefault is the search path of a workload whose image sets none.
	pathDefault = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Process merges what an image says about its program with what a manifest
// says; the manifest wins. As for docker and Kubernetes, a command replaces the
// image's entrypoint and drops its default arguments, args replace those only.
func Process(cfg ocispec.ImageConfig, spec *v1.WorkloadSpec) (args, env []string, cwd, user string, signal int, grace time.Duration, err error) {
	if args, err = command(cfg, spec); err != nil {
		return
	}
	if env, err = environment(cfg.Env, spec.GetEnv()); err != nil {
		return
	}
	if cwd, err = workingDir(cfg, spec); err != nil {
		return
	}
	user = cfg.User
	if spec.GetUser() != "" {
		user = spec.GetUser()
	}
	if signal, err = stopSignal(cfg, spec); err != nil {
		return
	}
	grace = graceDefault
	if spec.GetStopGrace() != nil {
		grace = spec.GetStopGrace().AsDuration()
	}
	return
}

// command is the program and its arguments.
func command(cfg ocispec.ImageConfig, spec *v1.WorkloadSpec) ([]string, error) {
	entrypoint, arguments := cfg.Entrypoint, cfg.Cmd
	if len(spec.GetCommand()) > 0 {
		entrypoint, arguments = spec.GetCommand(), nil
	}
	if len(spec.GetArgs()) > 0 {
		arguments = spec.GetArgs()
	}
	if len(entrypoint) == 1 && entrypoint[0] == "" {
		entrypoint = nil // how some builders write that there is none
	}
	args := slices.Concat(entrypoint, arguments)
	if len(args) == 0 || args[0] == "" {
		return nil, fmt.Errorf("image %q names no program to run: set command in the manifest: %w", spec.GetImage(), errdefs.ErrInvalidArgument)
	}
	for _, a := range args {
		if strings.ContainsRune(a, 0) {
			return nil, fmt.Errorf("command: argument %q holds a NUL byte: %w", a, errdefs.ErrInvalidArgument)
		}
	}
	return args, nil
}

// environment has each name once, at its first place with its last value; the
// manifest's come after the image's, in the order of their names. A value is
// all after the first "=", byte for byte.
func environment(image []string, manifest map[string]string) ([]string, error) {
	var env []string
	place := map[string]int{}
	set := func(name, entry string) {
		if i, ok := place[name]; ok {
			env[i] = entry
			return
		}
		place[name] = len(env)
		env = append(env, entry)
	}
	for _, entry := range image {
		name, _, ok := strings.Cut(entry, "=")
		if !ok || name == "" || strings.ContainsRune(entry, 0) {
			continue // means nothing to a program, so it is no reason to refuse one
		}
		set(name, entry)
	}
	names := make([]string, 0, len(manifest))
	for name := range manifest {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		value := manifest[name]
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return nil, fmt.Errorf("env %q: a name has no \"=\", and neither holds a NUL byte: %w", name, errdefs.ErrInvalidArgument)
		}
		set(name, name+"="+value)
	}
	if _, ok := place["PATH"]; !ok {
		env = append(env, pathDefault)
	}
	return env, nil
}

func workingDir(cfg ocispec.ImageConfig, spec *v1.WorkloadSpec) (string, error) {
	if dir := spec.GetWorkingDir(); dir != "" {
		if !path.IsAbs(dir) {
			return "", fmt.Errorf("working_dir %q is not an absolute path: %w", dir, errdefs.ErrInvalidArgument)
		}
		return path.Clean(dir), nil
	}
	return path.Clean("/" + cfg.WorkingDir), nil
}

func stopSignal(cfg ocispec.ImageConfig, spec *v1.WorkloadSpec) (int, error) {
	if text := spec.GetStopSignal(); text != "" {
		n, err := manifest.ParseSignal(text)
		if err != nil {
			return 0, fmt.Errorf("stop_signal: %w", err)
		}
		return n, nil
	}
	if cfg.StopSignal == "" {
		return int(syscall.SIGTERM), nil
	}
	n, err := manifest.ParseSignal(cfg.StopSignal)
	if err != nil {
		return 0, fmt.Errorf("stop signal of image %q: %w; set stop_signal in the manifest", spec.GetImage(), err)
	}
	return n, nil
}
