package pid1

import (
	"context"
	"net"
	"os"
	"strings"
)

const noticeMax = 4096

// listenNotices receives what serve tells, in the form of sd_notify.
func listenNotices(ctx context.Context, socket string) (<-chan string, error) {
	_ = os.Remove(socket)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	out := make(chan string)
	go func() {
		buf := make([]byte, noticeMax)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			for line := range strings.SplitSeq(strings.TrimSpace(string(buf[:n])), "\n") {
				select {
				case out <- line:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out, nil
}
