//go:build unix

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"capsule/internal/qemu"
)

// qmpMax bounds one command, QEMU's greeting included.
const qmpMax = 30 * time.Second

// QMP runs one command of QEMU's machine protocol, such as "system_reset" or
// "set_link", and gives its answer.
func (m *Machine) QMP(ctx context.Context, command string, arguments any) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, qmpMax)
	defer cancel()
	monitor, err := qemu.Dial(ctx, m.socket("qmp"))
	if err != nil {
		return nil, fmt.Errorf("machine %q: %w", m.Name, err)
	}
	defer monitor.Close()
	var answer json.RawMessage
	if err := monitor.Do(ctx, command, arguments, &answer); err != nil {
		return nil, fmt.Errorf("machine %q: %w", m.Name, err)
	}
	return answer, nil
}
