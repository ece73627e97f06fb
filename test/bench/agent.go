package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	guestv1 "capsule/api/capsule/guest/v1"
	"capsule/internal/guest/channel"
)

// agentLine is what the agent says when it serves.
var agentLine = regexp.MustCompile(`capsule-guest: ready after (\S+)`)

// ourGuest starts the guest of microVMs until a call to its agent is answered.
func (b *bench) ourGuest(ctx context.Context) (guestStart, error) {
	arguments, err := os.ReadFile(filepath.Join(b.repository, driverArguments))
	if err != nil {
		return guestStart{}, err
	}
	g, err := asDriver(string(arguments), b.dir)
	if err != nil {
		return guestStart{}, fmt.Errorf("%s: %w", driverArguments, err)
	}
	g.kernel, g.initramfs = filepath.Join(b.repository, "build/guest/vmlinux"), filepath.Join(b.repository, "build/guest/initramfs")
	for _, disk := range []string{"image", "disk"} {
		if err := emptyDisk(filepath.Join(b.dir, disk)); err != nil {
			return guestStart{}, err
		}
	}
	socket := filepath.Join(b.dir, "agent")
	watch := func(line string) error {
		if !agentLine.MatchString(line) {
			return nil
		}
		return endGuest(ctx, socket)
	}
	return b.startGuest(ctx, g, watch, agentMoments)
}

// driverArguments is where the driver's test keeps the arguments that QEMU gets.
const driverArguments = "internal/microvm/testdata/args-plain.golden"

// dropped are options that have nothing to do with what the guest sees, or that
// the emulation sets; the number is that of their values.
var dropped = map[string]int{
	"-S": 0, "-sandbox": 1, "-add-fd": 1, "-mon": 1, "-nodefaults": 0, "-no-user-config": 0, "-display": 1, "-no-reboot": 0,
	"-accel": 1, "-rtc": 1, "-cpu": 1, "-smp": 1, "-kernel": 1, "-initrd": 1,
}

// replaced are values that name files which the driver's QEMU inherits. The disks
// are empty ones; the agent has not looked at them when it serves.
var replaced = []struct {
	value *regexp.Regexp
	with  string
}{
	{regexp.MustCompile(`^(driver=file,node-name=)(image|disk)(-file,.*filename=)/dev/fdset/[0-9]+$`), `${1}${2}${3}DIR/${2}`},
	{regexp.MustCompile(`^driver=vmdk,`), `driver=raw,`},
	{regexp.MustCompile(`^socket,id=agent,fd=[0-9]+,`), `socket,id=agent,path=DIR/agent,`},
	{regexp.MustCompile(`^socket,id=serial,fd=[0-9]+$`), `stdio,id=serial`},
	{regexp.MustCompile(`^socket,id=(qmp|stdout|stderr),.*`), `null,id=$1`},
}

// asDriver is a guest of the driver's arguments, one a line, whose disks and
// socket are in a folder.
func asDriver(lines, dir string) (emulated, error) {
	g := emulated{name: "microVM"}
	words := strings.Split(strings.TrimSpace(lines), "\n")[1:] // without the program
	for i := 0; i < len(words); i++ {
		if values, found := dropped[words[i]]; found {
			i += values
			continue
		}
		if words[i] == "-append" && i+1 < len(words) {
			i++
			g.cmdline = words[i]
			continue
		}
		word := words[i]
		for _, r := range replaced {
			word = r.value.ReplaceAllString(word, r.with)
		}
		g.machine = append(g.machine, strings.ReplaceAll(word, "DIR", dir))
	}
	if all := strings.Join(g.machine, " "); g.cmdline == "" || strings.Contains(all, "fd=") || strings.Contains(all, "fdset") {
		return g, fmt.Errorf("arguments of another form than the benchmark knows: %s", all)
	}
	return g, nil
}

func emptyDisk(path string) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	return os.Truncate(path, mib)
}

// agentMoments: there is nothing in the initramfs before the agent.
func agentMoments(console string) (initramfs, answers time.Duration, err error) {
	found := agentLine.FindStringSubmatch(console)
	if found == nil {
		return 0, 0, fmt.Errorf("no line %s", agentLine)
	}
	answers, err = time.ParseDuration(found[1])
	return 0, answers, err
}

// agentMax bounds the answer of an agent that serves.
const agentMax = 2 * time.Minute

// endGuest makes sure that the agent answers, and has it end its guest.
func endGuest(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, agentMax)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///guest", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return channel.DialPort(ctx, socket) }))
	if err != nil {
		return err
	}
	defer conn.Close()
	agent := guestv1.NewGuestServiceClient(conn)
	if _, err := agent.State(ctx, &guestv1.StateRequest{}, grpc.WaitForReady(true)); err != nil {
		return fmt.Errorf("the agent does not answer: %w", err)
	}
	_, _ = agent.PowerOff(ctx, &guestv1.PowerOffRequest{}) // the answer may be lost; QEMU's end tells
	return nil
}
