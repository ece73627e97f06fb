package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/opencontainers/runtime-spec/specs-go"

	"capsule/internal/instance"
	"capsule/internal/process"
	"capsule/internal/runc"
	"capsule/internal/workload"
)

// What an instance that runs has of files and secrets is in a folder of its own, in
// memory: containerd keeps the settings of a container on the disk.
const environmentFile = "environment"

func (d *Driver) secretDir(record string) string { return filepath.Join(d.opts.SecretDir, record) }

// lay puts an instance's files and secret variables into its folder.
func (d *Driver) lay(record string, in workload.Instance, owners []process.Account) error {
	if err := d.clear(record); err != nil || len(in.Files)+len(in.SecretEnv) == 0 {
		return err
	}
	if len(owners) != len(in.Files) {
		return fmt.Errorf("its record has %d owners of %d files; remove the workload and declare it again", len(owners), len(in.Files))
	}
	dir := d.secretDir(record)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for i, f := range in.Files {
		if err := layFile(d.file(record, i), f, owners[i]); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, environmentFile), runc.Environment(in.SecretEnv), 0o600)
}

// layFile gives a file to its owner last, who is to find it whole.
func layFile(path string, f workload.File, owner process.Account) error {
	err := os.WriteFile(path, f.Content, 0o600)
	if err == nil {
		err = os.Chown(path, int(owner.UID), int(owner.GID))
	}
	if err == nil {
		err = os.Chmod(path, fs.FileMode(f.Mode))
	}
	return err
}

// clear removes what lay does.
func (d *Driver) clear(record string) error { return os.RemoveAll(d.secretDir(record)) }

// file is the path of an instance's file.
func (d *Driver) file(record string, i int) string {
	return filepath.Join(d.secretDir(record), strconv.Itoa(i))
}

// fileMounts show an instance's files.
func (d *Driver) fileMounts(in workload.Instance) (list []specs.Mount) {
	for i, f := range in.Files {
		list = append(list, specs.Mount{
			Destination: f.Path, Type: "bind", Source: d.file(instance.RecordID(in.ID), i),
			Options: []string{"bind", "rprivate", "ro", "nosuid", "nodev"},
		})
	}
	return list
}

// annotations of an instance that starts.
func (d *Driver) annotations(in workload.Instance) map[string]string {
	list := map[string]string{groupAnnotation: groupName}
	if len(in.SecretEnv) > 0 {
		list[runc.Annotation] = filepath.Join(d.secretDir(instance.RecordID(in.ID)), environmentFile)
	}
	return list
}

// runcOptions are those of an instance: with secrets in its environment it is created
// by way of a program that adds them.
func (d *Driver) runcOptions(in workload.Instance) *options.Options {
	o := &options.Options{ShimCgroup: d.opts.ShimCgroup}
	if len(in.SecretEnv) > 0 {
		o.BinaryName = d.opts.Runc
	}
	return o
}

// secretEnv is what a running instance has of secret variables.
func (d *Driver) secretEnv(record string) ([]string, error) {
	env, err := runc.ReadEnvironment(filepath.Join(d.secretDir(record), environmentFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return env, err
}
