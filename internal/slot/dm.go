package slot

import (
	"fmt"

	"golang.org/x/sys/unix"

	"capsule/internal/dm"
)

// Activate makes the verified device and returns its path. device is the slot's
// partition.
func (v *Verity) Activate(name, device string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return "", fmt.Errorf("slot %q: %w", device, err)
	}
	c, err := dm.Open()
	if err != nil {
		return "", err
	}
	defer c.Close()
	number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	d, err := c.Create(name, true, dm.Target{Sectors: v.Blocks * blockSize / 512, Kind: "verity", Params: v.table(number)})
	if err != nil {
		return "", fmt.Errorf("verified device: %w", err)
	}
	return d.Path(), nil
}
