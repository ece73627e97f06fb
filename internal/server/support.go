package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/audit"
	"capsule/internal/capture"
	"capsule/internal/support"
)

// Limits of support.
const (
	collectsMax   = 2 // at once
	capturesMax   = 4 // at once
	collectChunk  = 64 << 10
	eventsTail    = 2000
	auditTail     = 2000
	logLinesMax   = 20000   // of a service that are read for its end
	logBytesMax   = 2 << 20 // of a service
	collectorTime = "20060102-150405"
)

// supports gives what is needed to understand a problem.
type supports struct {
	capsulev1.UnimplementedSupportServiceServer
	Options
	collects, captures chan struct{} // one for each under way
}

func newSupports(o Options) *supports {
	return &supports{Options: o, collects: make(chan struct{}, collectsMax), captures: make(chan struct{}, capturesMax)}
}

const supportReadme = `What the capsule %s knew of itself at %s, made by "capsulectl capsule support".

Each file tells one thing. Where one could not be had, NAME.error says why.

Removed, as "(removed)": values of Secrets wherever they stood, values of variables,
arguments and files that operators declared unless they can't be secret, logins of
registries, passwords in addresses, private keys, tokens, codes to claim with. What
workloads print is not here. Names, addresses on your network and hardware addresses
are: look through it before you give it to others.
`

// Collect sends the archive as it is made.
func (s *supports) Collect(_ *capsulev1.CollectRequest, out capsulev1.SupportService_CollectServer) error {
	done, err := place(s.collects, "another archive")
	if err != nil {
		return err
	}
	defer done()
	now, name := time.Now().UTC(), s.Machine.Info().GetName()
	w := bufio.NewWriterSize(pieces(func(data []byte) error { return out.Send(&capsulev1.CollectResponse{Data: data}) }), collectChunk)
	secrets, unread := s.secretValues()
	o := support.Options{
		Folder: name + "-" + now.Format(collectorTime), Time: now, Secrets: secrets,
		Readme: fmt.Sprintf(supportReadme, name, now.Format(time.RFC3339)),
		Step:   func(step string) { _ = out.Send(&capsulev1.CollectResponse{Step: step}) }, // the next piece tells
	}
	if unread != nil { // nothing that stands in objects may be shown then
		return fmt.Errorf("read what is to be removed from the archive: %w", unread)
	}
	if err := support.Write(out.Context(), w, o, append(s.entries(), s.Support...)); err != nil {
		return err
	}
	return w.Flush()
}

// pieces is a writer that sends.
type pieces func(data []byte) error

func (p pieces) Write(data []byte) (int, error) {
	if err := p(slices.Clone(data)); err != nil {
		return 0, err
	}
	return len(data), nil
}

// secretValues are those that the archive is searched for. A Secret that can't be
// opened, by a lost key, has its values nowhere else either.
func (s *supports) secretValues() ([]string, error) {
	if s.Store == nil {
		return nil, nil
	}
	objs, err := s.Store.List("")
	if err != nil {
		return nil, err
	}
	var values []string
	for _, obj := range objs {
		values = append(values, support.Values(obj)...)
		for key := range maps.Keys(obj.GetSecret().GetSealed().GetValues()) {
			if s.Secrets == nil {
				continue
			}
			if value, err := s.Secrets.Value(obj.GetMeta().GetName() + "/" + key); err == nil {
				values = append(values, string(value))
			}
		}
	}
	return values, nil
}

// entries are what the server knows.
func (s *supports) entries() []support.Entry {
	list := []support.Entry{
		{Name: "info.json", Messages: s.giveInfo},
		{Name: "objects.json", Messages: s.giveObjects, Bytes: 8 << 20},
		{Name: "updates.json", Messages: s.giveUpdates},
		{Name: "usage.json", Messages: s.giveUsage},
		{Name: "events.json", Messages: s.giveEvents, Bytes: 2 << 20},
		{Name: "audit.json", Messages: s.giveAudit, Bytes: 2 << 20},
	}
	for _, name := range append(slices.Clone(services), kernelService) {
		list = append(list, support.Entry{
			Name: name + ".log", Newest: true, Bytes: logBytesMax,
			Text: func(ctx context.Context, w io.Writer) error { return s.giveLog(ctx, name, w) },
		})
	}
	return list
}

func (s *supports) giveInfo(ctx context.Context, give func(proto.Message) error) error {
	info, err := (&capsule{Options: s.Options}).Info(ctx, nil)
	if err != nil {
		return err
	}
	return give(info)
}

func (s *supports) giveObjects(_ context.Context, give func(proto.Message) error) error {
	st, err := s.state()
	if err != nil {
		return err
	}
	objs, err := st.List("")
	if err != nil {
		return err
	}
	if objs, err = s.show(objs...); err != nil {
		return err
	}
	for _, obj := range objs {
		if err := give(support.Object(obj)); err != nil {
			return err
		}
	}
	return nil
}

func (s *supports) giveUpdates(ctx context.Context, give func(proto.Message) error) error {
	if s.Updates == nil {
		return nil
	}
	status, err := s.Updates.Status(ctx)
	if err != nil {
		return err
	}
	return give(status)
}

func (s *supports) giveUsage(ctx context.Context, give func(proto.Message) error) error {
	sample, err := s.sample(ctx)
	if err != nil {
		return err
	}
	return give(sample)
}

func (s *supports) giveEvents(ctx context.Context, give func(proto.Message) error) error {
	st, err := s.state()
	if err != nil {
		return err
	}
	newest, err := st.NewestEvent()
	if err != nil {
		return err
	}
	for after, more := newest-min(newest, eventsTail), true; more; {
		page, err := st.Events(after, eventsMax, nil)
		if err != nil {
			return err
		}
		for _, e := range page.Events {
			if err := give(e); err != nil {
				return err
			}
		}
		after, more = page.Through, page.More && ctx.Err() == nil
	}
	return ctx.Err()
}

func (s *supports) giveAudit(ctx context.Context, give func(proto.Message) error) error {
	if s.Audit == nil {
		return errNoAudit
	}
	return s.Audit.Read(ctx, audit.Query{Tail: auditTail}, func(r audit.Record) error { return give(auditMessage(r)) })
}

// giveLog is the end of the log of a service.
func (s *supports) giveLog(ctx context.Context, service string, w io.Writer) error {
	sources, err := (&capsule{Options: s.Options}).sources(service)
	if err != nil {
		return err
	}
	past := &backlog{tail: logLinesMax, waiting: len(sources), send: func(l sysLine) error {
		text := string(l.data)
		if service == kernelService { // whose lines have no time of their own
			text = l.time.UTC().Format(time.RFC3339Nano) + " " + text
		}
		_, err := io.WriteString(w, text)
		return err
	}}
	for _, src := range sources {
		if err := past.feed(ctx, src, false); err != nil {
			return err
		}
	}
	return nil
}

// Capture records packets and sends them as they come.
func (s *supports) Capture(req *capsulev1.CaptureRequest, out capsulev1.SupportService_CaptureServer) error {
	link, err := s.link(req)
	if err != nil {
		return err
	}
	about(out.Context(), "link/"+link)
	done, err := place(s.captures, "another capture")
	if err != nil {
		return err
	}
	defer done()
	o := capture.Options{
		Link: link, Filter: req.GetFilter(), Packets: req.GetPackets(), Bytes: req.GetBytes(),
		Duration: req.GetDuration().AsDuration(), PacketBytes: req.GetPacketBytes(), Application: "capsule " + s.Version,
	}
	if !req.GetOwnConnection() {
		o.Without = ends(out.Context())
	}
	c, err := capture.Open(o)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := out.Send(&capsulev1.CaptureResponse{Part: &capsulev1.CaptureResponse_Start{Start: &capsulev1.CaptureStart{Link: link}}}); err != nil {
		return err
	}
	end, err := c.Run(out.Context(), func(data []byte) error {
		return out.Send(&capsulev1.CaptureResponse{Part: &capsulev1.CaptureResponse_Data{Data: data}})
	})
	if err != nil {
		return err
	}
	return out.Send(&capsulev1.CaptureResponse{Part: &capsulev1.CaptureResponse_End{End: &capsulev1.CaptureEnd{
		Packets: end.Packets, Bytes: end.Bytes, Dropped: end.Dropped, Reason: end.Reason,
	}}})
}

// link is the one that is meant.
func (s *supports) link(req *capsulev1.CaptureRequest) (string, error) {
	workload := req.GetWorkload()
	switch {
	case workload != "" && req.GetLink() != "":
		return "", fmt.Errorf("a link and a workload are named: a workload has its own link: %w", errdefs.ErrInvalidArgument)
	case workload == "" && req.GetLink() != "":
		return req.GetLink(), nil
	case workload == "":
		return capture.DefaultLink()
	}
	st, err := s.state()
	if err != nil {
		return "", err
	}
	if _, err := st.Get("", workload); err != nil {
		return "", err
	}
	if s.WorkloadLink == nil {
		return "", fmt.Errorf("workloads have no links now: %w", errdefs.ErrFailedPrecondition)
	}
	return s.WorkloadLink(workload)
}

// ends are both ends of a call's connection; zero where it is none of TCP.
func ends(ctx context.Context) (both [2]netip.AddrPort) {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil || p.LocalAddr == nil {
		return both
	}
	from, err1 := netip.ParseAddrPort(p.Addr.String())
	at, err2 := netip.ParseAddrPort(p.LocalAddr.String())
	if err1 != nil || err2 != nil {
		return both
	}
	return [2]netip.AddrPort{from, at}
}
