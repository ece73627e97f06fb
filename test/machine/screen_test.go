//go:build machine

package machine

import (
	"context"
	"os"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"capsule/internal/lab"
	picture "capsule/test/screen"
)

// screen NAME DURATION TEXT…: waits until the monitor of a machine with a VGA card shows
// all texts at once, each in one row. @FILE is the first line of a file.
func screen(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 3, "screen NAME DURATION TEXT...")
	limit, err := time.ParseDuration(args[1])
	ts.Check(err)
	var texts []string
	for _, text := range args[2:] {
		if file, ok := strings.CutPrefix(text, "@"); ok {
			text, _, _ = strings.Cut(ts.ReadFile(file), "\n")
		}
		texts = append(texts, text)
	}
	m, err := lab.Attach("", args[0])
	ts.Check(err)
	for deadline := time.Now().Add(limit); ; time.Sleep(time.Second) {
		err := shows(m, ts.MkAbs("screen.ppm"), texts)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("after %v: %v\n%s", limit, err, consoleTail(args[0]))
		}
	}
}

func shows(m *lab.Machine, file string, texts []string) error {
	if _, err := m.QMP(context.Background(), "screendump", map[string]any{"filename": file}); err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := picture.ReadPPM(f)
	if err != nil {
		return err
	}
	return p.Shows(texts...)
}

// keys NAME KEY…: presses keys of a machine's keyboard together, by QEMU's names.
func keys(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 2, "keys NAME KEY...")
	m, err := lab.Attach("", args[0])
	ts.Check(err)
	var pressed []map[string]string
	for _, key := range args[1:] {
		pressed = append(pressed, map[string]string{"type": "qcode", "data": key})
	}
	_, err = m.QMP(context.Background(), "send-key", map[string]any{"keys": pressed})
	ts.Check(err)
}
