// Command demo is "make demo": it shows the main job end to end with the
// commands that a user would type, and leaves the capsule up. "make demo-down"
// removes it. `make` builds capsulectl and the image before.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"time"
)

const (
	capsulectl = "bin/capsulectl"
	machine    = "demo"
	webPort    = 8080 // of the capsule, and of this machine when it is free
	fetchMax   = 5 * time.Minute
	fetchTry   = 10 * time.Second
	fetchAgain = 250 * time.Millisecond
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	do := map[string]func(context.Context) error{"up": up, "down": down}[strings.Join(os.Args[1:], " ")]
	if do == nil {
		fmt.Fprintln(os.Stderr, "usage: demo up|down")
		os.Exit(2)
	}
	if err := do(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func up(ctx context.Context) error {
	begun := time.Now()
	if known(ctx) {
		if err := step(ctx, "remove the capsule of an earlier demo", capsulectl, "lab", "down", machine); err != nil {
			return err
		}
	}
	port := webPort
	if !free(port) {
		port = 0
	}
	steps := []struct {
		title string
		argv  []string
	}{
		{"boot a capsule in QEMU", []string{capsulectl, "lab", "up", "--name", machine, "--publish", fmt.Sprintf("%d:%d", port, webPort)}},
		{"push the image to it", []string{capsulectl, "--capsule", machine, "image", "push", "build/example/web.tar"}},
		{"apply the manifest", []string{capsulectl, "--capsule", machine, "apply", "-f", "examples/web.yaml", "--wait"}},
	}
	for _, s := range steps {
		if err := step(ctx, s.title, s.argv...); err != nil {
			return err
		}
	}
	url, err := fetch(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("\nThe capsule is up after %.1f s, and its web server answers at %s\n%s", time.Since(begun).Seconds(), url, next)
	return nil
}

const next = `Try next:
  bin/capsulectl workload logs web
  bin/capsulectl workload exec web -- /web -get /
  bin/capsulectl capsule info
"make demo-down" removes it.
`

func down(ctx context.Context) error {
	if !known(ctx) {
		fmt.Println("there is no demo to remove")
		return nil
	}
	return step(ctx, "shut the capsule down and remove it", capsulectl, "lab", "down", machine)
}

// step runs one command in sight and says how long it took.
func step(ctx context.Context, title string, argv ...string) error {
	fmt.Printf("== %s\n   $ %s\n", title, strings.Join(argv, " "))
	begun := time.Now()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", title, err)
	}
	fmt.Printf("   done in %.1f s\n", time.Since(begun).Seconds())
	return nil
}

// fact is what the demo needs of "lab list -o json".
type fact struct {
	Name    string `json:"name"`
	Publish []struct {
		HostPort int `json:"host_port"`
		Port     int `json:"port"`
	} `json:"publish"`
}

func machines(ctx context.Context) ([]fact, error) {
	out, err := exec.CommandContext(ctx, capsulectl, "lab", "list", "-o", "json").Output()
	if err != nil {
		return nil, fmt.Errorf("%s lab list: %w", capsulectl, err)
	}
	var facts []fact
	err = json.Unmarshal(out, &facts)
	return facts, err
}

func known(ctx context.Context) bool {
	facts, err := machines(ctx)
	if err != nil {
		return false
	}
	for _, f := range facts {
		if f.Name == machine {
			return true
		}
	}
	return false
}

// fetch gets the page through the port of this machine.
func fetch(ctx context.Context) (string, error) {
	facts, err := machines(ctx)
	if err != nil {
		return "", err
	}
	for _, f := range facts {
		if f.Name != machine || len(f.Publish) == 0 {
			continue
		}
		url := fmt.Sprintf("http://127.0.0.1:%d/", f.Publish[0].HostPort)
		fmt.Printf("== fetch %s\n", url)
		begun := time.Now()
		page, err := page(ctx, url)
		if err != nil {
			return "", err
		}
		fmt.Printf("   %s\n   done in %.1f s\n", strings.TrimSpace(page), time.Since(begun).Seconds())
		return url, nil
	}
	return "", fmt.Errorf("machine %q publishes no port", machine)
}

// page asks again while the server comes up: "running" means its process runs.
func page(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchMax)
	defer cancel()
	for {
		text, err := get(ctx, url)
		if err == nil {
			return text, nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("fetch %s: %w", url, errors.Join(err, ctx.Err()))
		case <-time.After(fetchAgain):
		}
	}
}

func get(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTry)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return "", fmt.Errorf("it answers %s", answer.Status)
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, 4<<10))
	return string(text), err
}

func free(port int) bool {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return false
	}
	return l.Close() == nil
}
