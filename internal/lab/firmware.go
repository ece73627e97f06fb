//go:build unix

package lab

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
)

const defaultImage = "build/capsule.img"

// firmwares are where systems keep OVMF: code, then variables.
var firmwares = [][2]string{
	{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},
	{"/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"},
	{"/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"},
	{"/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"},
	{"/opt/homebrew/share/qemu/edk2-x86_64-code.fd", "/opt/homebrew/share/qemu/edk2-i386-vars.fd"},
	{"/usr/local/share/qemu/edk2-x86_64-code.fd", "/usr/local/share/qemu/edk2-i386-vars.fd"},
}

// sources finds the image and its firmware: what the options name, else what
// lies beside the image, else the system's.
func (o Options) sources() (image, code, variables string, err error) {
	image = o.Image
	if image == "" {
		image = defaultImage
	}
	if image, err = filepath.Abs(image); err != nil {
		return "", "", "", err
	}
	if !exists(image) {
		return "", "", "", fmt.Errorf("image %s: %w", image, errdefs.ErrNotFound)
	}
	if o.Firmware != "" || o.Variables != "" {
		code, err = filepath.Abs(o.Firmware)
		return image, code, o.Variables, err
	}
	beside := [2]string{filepath.Join(filepath.Dir(image), "ovmf-code.fd"), filepath.Join(filepath.Dir(image), "ovmf-vars.fd")}
	for _, f := range append([][2]string{beside}, firmwares...) {
		if exists(f[0]) && exists(f[1]) {
			return image, f[0], f[1], nil
		}
	}
	return "", "", "", fmt.Errorf("UEFI firmware (OVMF), beside %s or in the system: %w", image, ErrNoFirmware)
}

func exists(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
