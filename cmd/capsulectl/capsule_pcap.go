package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

// PcapOptions of "capsule pcap".
type PcapOptions struct {
	Interface string
	Workload  string
	Write     string
	Count     uint64
	Duration  time.Duration
	Size      string
	Snaplen   uint32
	Own       bool
}

func newCapsulePcapCommand(a *app) *cobra.Command {
	var o PcapOptions
	cmd := &cobra.Command{
		Use: "pcap [FILTER]", Short: "Record packets of the network, within bounds",
		Long: `Records the packets of a network link in the form of pcapng, which Wireshark and
tcpdump read. It takes an admin, and ends by itself: after 10,000 packets, 60 s or
32 MiB unless told otherwise, or by Ctrl-C, which keeps what there is. At most are
1,000,000 packets, 1 h and 1 GiB.

Without --interface it is the link of the default route; "any" is all links, on which
a packet is seen on each that it passes. --workload is the link of a workload on the
bridge. The connection by which the packets come here is left out.

FILTER says which packets, in words of tcpdump: [tcp|udp|icmp|icmp6|arp|ip|ip6]
[src|dst] [host|net|port|portrange] VALUE, with "and", "or", "not" and parentheses.

FILE gets its name once the record is whole; "-" is the standard output, as is
nothing.`,
		Example: `  capsulectl capsule pcap -w attic.pcapng port 53
  capsulectl capsule pcap --workload web -w web.pcapng --count 100 "tcp port 80 and not host 192.168.1.7"
  capsulectl capsule pcap -i any --duration 10m | wireshark -k -i -`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runCapsulePcap(cmd.Context(), a, o, strings.Join(args, " "))
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&o.Interface, "interface", "i", "", "link to record, or any for all (default that of the default route)")
	flags.StringVar(&o.Workload, "workload", "", "record the link of this workload on the bridge")
	flags.StringVarP(&o.Write, "write", "w", "-", "file to write to, or - for the standard output")
	flags.Uint64Var(&o.Count, "count", 0, "packets to record (default 10000)")
	flags.DurationVar(&o.Duration, "duration", 0, "time to record (default 1m)")
	flags.StringVar(&o.Size, "size", "", "most that the record may take (default 32MiB)")
	flags.Uint32Var(&o.Snaplen, "snaplen", 0, "bytes to keep of each packet; 96 are about its headers (default all)")
	flags.BoolVar(&o.Own, "own", false, "record this connection too, which makes packets by each that is recorded")
	cmd.MarkFlagsMutuallyExclusive("interface", "workload")
	return cmd
}

func runCapsulePcap(ctx context.Context, a *app, o PcapOptions, filter string) error {
	req := &capsulev1.CaptureRequest{Link: o.Interface, Workload: o.Workload, Filter: filter, Packets: o.Count, PacketBytes: o.Snaplen, OwnConnection: o.Own}
	if o.Duration < 0 {
		return &failure{exitUsage, fmt.Errorf("--duration %v: nothing is recorded in no time", o.Duration), "write a time such as 30s"}
	}
	if o.Duration > 0 {
		req.Duration = durationpb.New(o.Duration)
	}
	if o.Size != "" {
		bytes, err := manifest.ParseSize(o.Size)
		if err != nil {
			return &failure{exitUsage, fmt.Errorf("--size: %w", err), ""}
		}
		req.Bytes = uint64(bytes) //nolint:gosec // not negative
	}
	c, err := a.dial()
	if err != nil {
		return err
	}
	call, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.support.Capture(call, req)
	if err != nil {
		return err
	}
	begun, err := stream.Recv() // nothing is made before packets are recorded
	if err != nil {
		return err
	}
	out, err := createArchive(a, o.Write)
	if err != nil {
		return err
	}
	a.ui.note("recording %s; Ctrl-C ends it", begun.GetStart().GetLink())
	end, written, err := receivePackets(ctx, stream, out)
	if err != nil && written == 0 {
		out.drop()
		return err
	}
	// A record is whole after each of its blocks, and of use without its end.
	if kept := out.keep(); kept != nil || err != nil {
		return errors.Join(err, kept)
	}
	a.ui.note("%s", pcapText(end, written))
	return nil
}

// receivePackets writes what comes, until its end; nil is one that was interrupted.
func receivePackets(ctx context.Context, stream capsulev1.SupportService_CaptureClient, out *archiveFile) (end *capsulev1.CaptureEnd, written int64, err error) {
	for {
		message, err := stream.Recv()
		switch {
		case err != nil && ctx.Err() != nil:
			return nil, written, nil //nolint:nilerr // interrupting is how it ends
		case err != nil:
			return nil, written, err
		case message.GetEnd() != nil:
			return message.GetEnd(), written, nil
		}
		n, err := out.Write(message.GetData())
		written += int64(n)
		if err != nil {
			return nil, written, fileError("write", out.path, err)
		}
	}
}

func pcapText(end *capsulev1.CaptureEnd, written int64) string {
	if end == nil {
		return "interrupted after " + size(written)
	}
	text := fmt.Sprintf("%d packets, %s, ended by --%s", end.GetPackets(), size(written),
		map[string]string{"packets": "count", "duration": "duration", "bytes": "size"}[end.GetReason()])
	if n := end.GetDropped(); n > 0 {
		text += fmt.Sprintf("; %d more came too fast: use a filter, or --snaplen 96", n)
	}
	return text
}
