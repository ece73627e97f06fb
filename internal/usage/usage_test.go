package usage

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestRead(t *testing.T) {
	root := t.TempDir()
	if _, err := Read(root); err == nil {
		t.Error("read nothing")
	}
	for file, text := range map[string]string{
		"proc/stat":                               "cpu  100 1 200 9000 50 3 4 5 70 0\ncpu0 1 2 3\n",
		"proc/meminfo":                            "MemTotal:       2048 kB\nMemFree:  1 kB\nMemAvailable:    512 kB\n",
		"sys/block/vda/stat":                      "  10 0 8 5 20 0 16 7 0 1 2\n",
		"sys/block/vda/device/x":                  "",
		"sys/block/dm-0/stat":                     "  10 0 8 5 20 0 16 7 0 1 2\n",
		"sys/block/sdb/device/x":                  "",
		"sys/class/net/eth0/device/x":             "",
		"sys/class/net/eth0/statistics/rx_bytes":  "1000\n",
		"sys/class/net/eth0/statistics/tx_bytes":  "50\n",
		"sys/class/net/veth1/statistics/rx_bytes": "7\n",
	} {
		path := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := Machine{CPU: 3130 * time.Millisecond, MemoryTotal: 2 << 20, MemoryUsed: 1536 << 10, DiskRead: 4096, DiskWritten: 8192, NetworkReceived: 1000, NetworkSent: 50}
	if m, err := Read(root); err != nil || m != want {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestReadThisMachine(t *testing.T) {
	if m, err := Read("/"); err != nil || m.CPU <= 0 || m.MemoryTotal == 0 || m.MemoryUsed == 0 {
		t.Errorf("%+v, %v", m, err)
	}
}
