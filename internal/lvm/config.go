package lvm

import (
	"fmt"
	"regexp"
	"strings"
)

// config is lvm.conf for a machine without udev, dmeventd, lvmpolld and devices
// file. Only our own physical volumes are ever looked at, so a foreign disk with a
// group of the same name can't be mistaken for ours. The threshold is both where lvm
// refuses new volumes and the kernel's low water mark, of which WatchPool tells. A
// full pool gives errors at once, instead of hanging its writers.
func config(devices ...string) []byte {
	var filter strings.Builder
	for _, device := range devices {
		fmt.Fprintf(&filter, `"a|^%s$|",`, regexp.QuoteMeta(device))
	}
	return fmt.Appendf(nil, `# Written at every boot.
devices {
	obtain_device_list_from_udev=0
	external_device_info_source="none"
	use_devicesfile=0
	hints="none"
	global_filter=[%s"r|.*|"]
	scan_lvs=0
	multipath_component_detection=0
	md_component_detection=0
	issue_discards=1
}
activation {
	udev_sync=0
	udev_rules=0
	verify_udev_operations=0
	monitoring=0
	error_when_full=1
	thin_pool_autoextend_threshold=90
	thin_pool_autoextend_percent=20
	use_mlockall=0
}
global {
	use_lvmpolld=0
	use_lvmlockd=0
	event_activation=0
	notify_dbus=0
	system_id_source="none"
	locking_dir="/run/lock/lvm"
	thin_check_executable="/usr/sbin/thin_check"
	thin_check_options=["-q","--clear-needs-check-flag"]
}
backup {
	backup=0
	archive=0
}
`, filter.String())
}
