package server

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/audit"
	"capsule/internal/identity"
)

// auditor stands before the gate: it records what became of each call that may
// change something, and of each that was refused. Of a request it reads the names
// of what it is about, and nothing else.
type auditor struct {
	log   *audit.Log
	roles map[string]capsulev1.Role // by full method name; set before serving
}

// goesOnAfter is how long a call goes on before it is recorded without its end: a
// shell that is open for hours is no secret until it is closed.
const goesOnAfter = 10 * time.Second

// changes tells whether a method may change something.
func (a *auditor) changes(method string) bool {
	return changes(a.roles[method]) || method == capsulev1.AccessService_Claim_FullMethodName || method == capsulev1.AccessService_RenewCertificate_FullMethodName
}

func (a *auditor) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if a.log == nil {
		return handler(ctx, req)
	}
	e := a.begin(ctx, info.FullMethod)
	e.about(objectOf(info.FullMethod, req))
	e.idle = func(code codes.Code) bool { return isDryRun(req) || idle[code] }
	resp, err := handler(context.WithValue(ctx, entryKey{}, e), req)
	e.end(err)
	return resp, err
}

func (a *auditor) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if a.log == nil {
		return handler(srv, s)
	}
	e := a.begin(s.Context(), info.FullMethod)
	err := handler(srv, &auditedStream{ServerStream: s, ctx: context.WithValue(s.Context(), entryKey{}, e), entry: e})
	e.end(err)
	return err
}

// auditedStream tells the record what its first message is about.
type auditedStream struct {
	grpc.ServerStream
	ctx   context.Context //nolint:containedctx // grpc's own form
	entry *entry
	once  sync.Once
}

func (s *auditedStream) Context() context.Context { return s.ctx }

func (s *auditedStream) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err == nil {
		s.once.Do(func() { s.entry.about(objectOf("/"+s.entry.record.Method, m)) })
	}
	return err
}

// entry is the record of a call under way.
type entry struct {
	auditor *auditor
	changes bool
	nobody  bool // may be called by whoever connects
	begun   time.Time
	idle    func(codes.Code) bool // tells whether it changed nothing; nil for a stream
	late    *time.Timer

	mu     sync.Mutex
	record audit.Record
	in     bool // the gate has let it in
	ended  bool
}

type entryKey struct{}

// about tells the audit log what a call is about, where the request doesn't.
func about(ctx context.Context, object string) {
	if e, ok := ctx.Value(entryKey{}).(*entry); ok {
		e.about(object)
	}
}

// begins tells the audit log what a call is about that is recorded before it does
// anything, since what it does may be the end of this machine.
func begins(ctx context.Context, object string) {
	if e, ok := ctx.Value(entryKey{}).(*entry); ok {
		e.about(object)
		if e.late != nil {
			e.late.Stop()
		}
		e.goesOn()
	}
}

// letIn tells the audit log that the gate lets a call in.
func letIn(ctx context.Context) {
	if e, ok := ctx.Value(entryKey{}).(*entry); ok {
		e.letIn()
	}
}

func (a *auditor) begin(ctx context.Context, method string) *entry {
	e := &entry{
		auditor: a, changes: a.changes(method), begun: time.Now(),
		nobody: a.roles[method] == capsulev1.Role_ROLE_NOBODY,
		record: audit.Record{Operator: "nobody", Method: strings.TrimPrefix(method, "/capsule.v1.")},
	}
	from, state, err := connection(ctx)
	e.record.From = from
	if err == nil && len(state.PeerCertificates) > 0 {
		e.record.Operator = state.PeerCertificates[0].Subject.CommonName
		e.record.Key = identity.KeyFingerprint(state.PeerCertificates[0])
	}
	if e.changes {
		e.late = time.AfterFunc(goesOnAfter, e.goesOn)
	}
	return e
}

func (e *entry) about(object string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if object != "" {
		e.record.Object = object
	}
}

func (e *entry) letIn() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.in = true
}

// goesOn records a call that takes long.
func (e *entry) goesOn() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		return
	}
	r := e.record
	r.Time, r.Duration, r.Code = time.Now(), time.Since(e.begun), "Running"
	e.auditor.log.Changed(r)
}

// end records what became of the call.
func (e *entry) end(err error) {
	if e.late != nil {
		e.late.Stop()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ended = true
	s := status.Convert(err)
	r := e.record
	r.Time, r.Duration, r.Code = time.Now(), time.Since(e.begun), s.Code().String()
	if err != nil {
		r.Message = s.Message()
	}
	switch {
	case e.nobody && s.Code() == codes.InvalidArgument:
		// Asked for nothing: a claim begins so, to learn of its connection.
	case e.refused(s.Code()):
		e.auditor.log.Refused(r, e.by())
	case e.changes && e.idle != nil && e.idle(s.Code()):
		e.auditor.log.Tried(r)
	case e.changes:
		e.auditor.log.Changed(r)
	}
}

// refused tells whether the caller was not let in: by the gate, or by the method
// that asks for its own proof. A call that was let in, and cut when its operator was
// revoked, may have changed something.
func (e *entry) refused(code codes.Code) bool {
	if e.nobody {
		return code != codes.OK
	}
	return !e.in && (code == codes.PermissionDenied || code == codes.Unauthenticated)
}

// by is whose quota of refusals it counts against. Claims have one of their own.
func (e *entry) by() string {
	switch {
	case e.record.Key != "":
		return e.record.Operator
	case e.nobody:
		return byClaimer
	}
	return byStranger
}

// idle are the ends of a call that was found wanting before it did anything. Those
// of a stream tell nothing: it may have been told to do more after it did something.
var idle = map[codes.Code]bool{
	codes.InvalidArgument: true, codes.NotFound: true, codes.AlreadyExists: true, codes.FailedPrecondition: true,
	codes.ResourceExhausted: true, codes.OutOfRange: true, codes.Unimplemented: true,
}

// nouns are what a service's "name" is the name of.
var nouns = map[string]string{"WorkloadService": "workload", "VolumeService": "volume", "ImageService": "image", "AccessService": "operator", "TokenService": "token"}

// namings are the fields that name what a request is about, in the order in which
// they are put together, with the noun that each is a name of.
var namings = []struct{ field, noun string }{
	{"volume", "volume"}, {"snapshot", ""}, {"host", "registry"}, {"service", "service"}, {"disk", "disk"}, {"name", ""},
}

// objectsShown of an apply.
const objectsShown = 5

// objectOf names what a request is about: "container/web", "volume/data/monday".
func objectOf(method string, req any) string {
	m, ok := req.(proto.Message)
	if !ok {
		return ""
	}
	if apply, ok := req.(*capsulev1.ApplyRequest); ok {
		return appliedObjects(apply)
	}
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	object := objectNamed(nouns[strings.TrimPrefix(service, "capsule.v1.")], m.ProtoReflect())
	if isDryRun(req) {
		object = strings.TrimSpace(object + dryRun)
	}
	return object
}

const dryRun = " (dry run)"

// isDryRun tells whether a request asks for nothing to be changed.
func isDryRun(req any) bool {
	m, ok := req.(proto.Message)
	if !ok {
		return false
	}
	dry := m.ProtoReflect().Descriptor().Fields().ByName("dry_run")
	return dry != nil && m.ProtoReflect().Get(dry).Bool()
}

func appliedObjects(req *capsulev1.ApplyRequest) string {
	var list []string
	for i, o := range req.GetObjects() {
		if i == objectsShown {
			list = append(list, fmt.Sprintf("and %d more", len(req.GetObjects())-i))
			break
		}
		list = append(list, strings.ToLower(o.GetMeta().GetKind())+"/"+o.GetMeta().GetName())
	}
	text := strings.Join(list, ", ")
	if req.GetDryRun() {
		text += dryRun
	}
	return text
}

// objectNamed puts an object's name together from the fields of a message, or of the
// one message in it that holds them, as the first of a stream does.
func objectNamed(noun string, m protoreflect.Message) string {
	fields := m.Descriptor().Fields()
	text := func(name string) string {
		f := fields.ByName(protoreflect.Name(name))
		if f == nil || f.Kind() != protoreflect.StringKind || f.IsList() {
			return ""
		}
		return m.Get(f).String()
	}
	if kind := text("kind"); kind != "" {
		noun = strings.ToLower(kind)
	}
	var parts []string
	for _, n := range namings {
		value := text(n.field)
		if value == "" {
			continue
		}
		if n.noun != "" {
			noun = n.noun
		}
		parts = append(parts, value)
	}
	if len(parts) > 0 {
		return strings.TrimPrefix(noun+"/"+strings.Join(parts, "/"), "/")
	}
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.Kind() == protoreflect.MessageKind && !f.IsList() && !f.IsMap() && m.Has(f) {
			return objectNamed(noun, m.Get(f).Message())
		}
	}
	return ""
}

var errNoAudit = fmt.Errorf("this capsule keeps no audit log since it was started, \"capsulectl capsule logs\" says why: %w", errdefs.ErrFailedPrecondition)

// Audit gives the records that are kept.
func (s *capsule) Audit(req *capsulev1.AuditRequest, out capsulev1.CapsuleService_AuditServer) error {
	if s.Options.Audit == nil {
		return errNoAudit
	}
	q := audit.Query{Tail: req.GetTail(), Follow: req.GetFollow()}
	if t := req.GetSince(); t != nil {
		if err := t.CheckValid(); err != nil {
			return fmt.Errorf("since: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		q.Since = t.AsTime()
	}
	return s.Options.Audit.Read(out.Context(), q, func(r audit.Record) error { return out.Send(auditMessage(r)) })
}

func auditMessage(r audit.Record) *capsulev1.AuditResponse {
	return &capsulev1.AuditResponse{
		Time: timestamppb.New(r.Time), Operator: r.Operator, KeyFingerprint: r.Key, From: r.From, Method: r.Method,
		Object: r.Object, Code: r.Code, Message: r.Message, Duration: durationpb.New(r.Duration), Lost: uint32(max(0, r.Lost)), //nolint:gosec // calls
	}
}
