package slot

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"capsule/internal/durable"
)

// ReasonFile is where whoever rolls back says why, process 1 or the daemon. The
// system that runs afterwards takes it into its history.
const ReasonFile = "/perm/update/rollback.json"

// reasonMax bounds one reason in bytes: it may name many workloads, or be anything
// that a daemon said.
const reasonMax = 1024

// A Reason is why a system was rolled back: the content of ReasonFile.
type Reason struct {
	Slot    string    `json:"slot"` // that it was in
	Version string    `json:"version"`
	Reason  string    `json:"reason"`
	Time    time.Time `json:"time"`
}

// Leave writes the reason to a file, in a folder that is made if need be.
func (r Reason) Leave(file string) error {
	if len(r.Reason) > reasonMax {
		r.Reason = strings.ToValidUTF8(r.Reason[:reasonMax], "")
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	dir := filepath.Dir(file)
	if err := os.Mkdir(dir, 0o700); err == nil {
		err = durable.Sync(filepath.Dir(dir))
		if err != nil {
			return fmt.Errorf("make %q: %w", dir, err)
		}
	}
	return durable.WriteFile(file, append(text, '\n'), 0o600)
}
