package run

import (
	"strings"
	"testing"
	"time"
)

func TestOutput(t *testing.T) {
	tests := []struct {
		name    string
		limit   time.Duration
		argv    []string
		want    string
		wantErr []string // parts of the error, in order
	}{
		{name: "output", limit: time.Minute, argv: []string{"echo", "hello"}, want: "hello\n"},
		{name: "stderr is not output", limit: time.Minute, argv: []string{"sh", "-c", "echo a; echo b >&2"}, want: "a\n"},
		{name: "failure names the program and its complaint", limit: time.Minute,
			argv: []string{"sh", "-c", "echo why >&2; exit 3"}, wantErr: []string{"sh -c", "exit status 3", "why"}},
		{name: "a long complaint keeps its end", limit: time.Minute,
			argv: []string{"sh", "-c", "yes x | head -c 5000 >&2; echo last >&2; exit 1"}, wantErr: []string{"last"}},
		{name: "limit", limit: 50 * time.Millisecond, argv: []string{"sleep", "60"}, wantErr: []string{"sleep 60", "no end within 50ms"}},
		{name: "no such program", limit: time.Minute, argv: []string{"no-such-program"}, wantErr: []string{"no-such-program"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, err := Output(t.Context(), tt.limit, tt.argv[0], tt.argv[1:]...)
			if tt.wantErr == nil {
				if err != nil || string(out) != tt.want {
					t.Fatalf("got %q, %v, want %q", out, err, tt.want)
				}
				return
			}
			if err == nil {
				t.Fatal("no error")
			}
			rest := err.Error()
			for _, part := range tt.wantErr {
				i := strings.Index(rest, part)
				if i < 0 {
					t.Fatalf("error %q lacks %q", err, part)
				}
				rest = rest[i:]
			}
			if len(err.Error()) > stderrTail+200 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
		})
	}
}
