package manifest

import "strings"

// foreignNames are what other tools call our fields, in lower case.
var foreignNames = map[string]string{
	"cmd": "args", "entrypoint": "command", "environment": "env", "volumes": "mounts",
	"volumemounts": "mounts", "restartpolicy": "restart", "networkmode": "network",
	"network_mode": "network", "workdir": "workingDir", "working_dir": "workingDir",
	"stop_signal": "stopSignal", "stop_grace_period": "stopGrace", "limits": "resources",
	"terminationgraceperiodseconds": "stopGrace", "published": "hostPort", "target": "path",
	"containerport": "port", "hostip": "address", "ro": "readOnly", "mountpath": "path",
	"required": "requiredForUpdate", "updaterequired": "requiredForUpdate", "mem_limit": "memory", "pids_limit": "pids", "mem": "memory",
	"blkio_config": "io", "device_read_bps": "read", "device_write_bps": "write", "readbps": "read", "writebps": "write",
	"device_read_iops": "readOperations", "device_write_iops": "writeOperations", "readiops": "readOperations", "writeiops": "writeOperations",
	"ephemeral-storage": "disk", "rootfs": "disk",
	"source": "volume", "src": "volume", "claimname": "volume", "destination": "path", "dst": "path",
	"healthcheck": "health", "livenessprobe": "health", "readinessprobe": "health", "test": "exec",
	"httpget": "http", "tcpsocket": "tcp", "start_period": "startPeriod", "initialdelayseconds": "startPeriod",
	"start_interval": "startInterval", "periodseconds": "interval", "timeoutseconds": "timeout",
	"failurethreshold": "retries", "depends_on": "dependsOn", "depends": "dependsOn", "requires": "dependsOn",
	"secrets": "secretEnv", "stringdata": "data", "defaultmode": "mode", "permissions": "mode", "configs": "files", "text": "content", "secretref": "secret", "secretkeyref": "secret",
	"capacity": "size", "storage": "size", "schedule": "snapshots", "interval": "every", "retain": "keep", "retention": "keep",
}

// nearest returns the name that a typo most likely meant, or "".
func nearest(word string, names []string) string {
	if len(word) > 40 {
		return ""
	}
	best, bestName := len(word)/3+1, ""
	for _, name := range names {
		// Case alone is the nearest that a word can be without being it.
		if strings.EqualFold(word, name) {
			return name
		}
		if n := distance(strings.ToLower(word), strings.ToLower(name)); n <= best && n < len(name) {
			if n < best || bestName == "" {
				best, bestName = n, name
			}
		}
	}
	return bestName
}

// distance counts single-byte edits between two words, a swap of neighbours as one.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
