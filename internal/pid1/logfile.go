package pid1

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

const (
	logFileMax = 2 << 20 // bytes of one file
	logFiles   = 4       // kept of each name: the current and three older
)

// A logFile is a file that never takes more than logFiles times logFileMax: it's
// renamed to name.1 when full, name.1 to name.2 and so on. A disk that is full or
// gone loses lines and nothing else.
type logFile struct {
	name string
	mu   sync.Mutex
	f    *os.File
	size int64
	shut bool
}

func newLogFile(name string) *logFile { return &logFile{name: name} }

// Write never fails: its caller has nobody to tell.
func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut {
		return len(b), nil
	}
	if l.f == nil {
		l.reopen()
	}
	if l.size+int64(len(b)) > logFileMax {
		l.rotate()
	}
	if l.f != nil {
		n, err := l.f.Write(b)
		l.size += int64(n)
		if err != nil {
			l.f.Close()
			l.f = nil
		}
	}
	return len(b), nil
}

func (l *logFile) reopen() {
	_ = os.MkdirAll(filepath.Dir(l.name), 0o755)
	f, err := os.OpenFile(l.name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return
	}
	l.f, l.size = f, 0
	if st, err := f.Stat(); err == nil {
		l.size = st.Size()
	}
}

func (l *logFile) rotate() {
	if l.f != nil {
		l.f.Close()
		l.f = nil
	}
	for i := logFiles - 1; i > 0; i-- {
		from := l.name
		if i > 1 {
			from = fmt.Sprintf("%s.%d", l.name, i-1)
		}
		_ = os.Rename(from, fmt.Sprintf("%s.%d", l.name, i))
	}
	l.reopen()
}

// sync returns once all that was written is on the disk, or an error when it isn't.
func (l *logFile) sync() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return fmt.Errorf("write to %q: nothing could be", l.name)
	}
	return l.f.Sync()
}

// Close ends writing for good, so that the file system can be unmounted.
func (l *logFile) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shut = true
	if l.f != nil {
		l.f.Close()
		l.f = nil
	}
}
