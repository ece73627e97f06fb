// Package server is the API of a capsule: gRPC over mutual TLS. It checks who
// may call what, what is asked for, and turns errors into codes; then it writes
// what is declared to the store and wakes the loop. It never drives a runtime to
// change state: only streams (exec, copy, logs) go straight through, and it
// holds no policy.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/audit"
	"capsule/internal/config"
	"capsule/internal/identity"
	"capsule/internal/logs"
	"capsule/internal/network"
	"capsule/internal/quota"
	"capsule/internal/secret"
	"capsule/internal/store"
	"capsule/internal/support"
	"capsule/internal/token"
	"capsule/internal/uplink"
	"capsule/internal/version"
	"capsule/internal/workload"
)

// Limits of what clients can take up.
const (
	messageMax       = 4 << 20 // bytes of one message in
	answerMax        = 64 << 20
	headersMax       = 16 << 10 // bytes of a call's headers
	streamsMax       = 128      // at once, of one connection
	handshakeLimit   = 30 * time.Second
	callLimit        = 5 * time.Minute // of a call that is no stream
	keepaliveIdle    = 30 * time.Second
	keepaliveAnswer  = 20 * time.Second
	keepaliveFastest = 5 * time.Second // pings of a client
	// ConnectionsMax at once, for the listener.
	ConnectionsMax = 256
)

// Options of a server. In recovery mode Store may be a copy or nil, and Images,
// Runtime and Volumes nil.
type Options struct {
	TLS *tls.Config
	// Identity that TLS is of.
	Identity   *identity.Identity
	Store      *store.Store
	Images     Images
	Registries *config.Registries
	Runtime    Runtime
	Volumes    Volumes
	// Secrets is nil in recovery mode.
	Secrets *secret.Book
	// Network tries changes of the machine's network; nil where there are none.
	Network *uplink.Trials
	// LastPass is how long the last look at all workloads took, 0 when there was none;
	// nil where none are looked at.
	LastPass func() time.Duration
	// Traffic of workloads over their links, by name; nil where none is counted.
	Traffic func() (map[string]network.Traffic, error)
	// Room for workloads; nil where nobody asks.
	Room func() Room
	// MachineMemory is what a MicroVM with a limit of that many bytes takes, its own
	// kernel included; 0 is its default.
	MachineMemory func(limit int64) int64
	// Updates is nil in MODE_INSTALLER.
	Updates Updates
	// Installer is nil but in MODE_INSTALLER.
	Installer Installer
	// Debug runs a command with the slot's tools in the machine itself, as a driver runs
	// one in a workload; nil where there are none.
	Debug func(context.Context, workload.Exec) (int, error)
	// Disks is nil in recovery mode.
	Disks Disks
	// Stage takes backups to be installed; nil but in MODE_INSTALLER.
	Stage Stage
	// Backups is nil but in MODE_NORMAL.
	Backups Backups
	// Kinds of workloads that have a driver here.
	Kinds   []string
	Machine Machine
	// Version that every answer names; default that of this program.
	Version string
	// Support is what the machine adds to an archive for support.
	Support []support.Entry
	// WorkloadLink is the capsule's end of a workload's link; nil where there are none.
	WorkloadLink func(workload string) (string, error)
	// Audit keeps who changed what; nil keeps nothing.
	Audit *audit.Log
	// LogDir is the folder of a workload's log; default logs.Dir.
	LogDir func(name string) string
	Log    *slog.Logger
}

// New makes a server with all services registered. It fails when any method
// does not say which role it needs.
func New(o Options) (*grpc.Server, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.LogDir == nil {
		o.LogDir = logs.Dir
	}
	if o.Version == "" {
		o.Version = version.Version
	}
	if o.TLS == nil || o.Identity == nil || o.Machine == nil {
		return nil, errors.New("server needs TLS, an identity and the machine")
	}
	refused := newRefusals()
	g := &gate{log: o.Log, mode: o.Machine.Mode, id: o.Identity, refusals: refused, version: metadata.Pairs(version.Header, o.Version)}
	var book *token.Book
	if o.Store != nil {
		var err error
		if book, err = token.Open(o.Store.Bucket("tokens")); err != nil {
			o.Log.Error("no tokens are let in", "error", err)
		}
	}
	recorder := &auditor{log: o.Audit}
	entrance := newDoor(o, refused, &webSide{Options: o, tokens: book, id: o.Identity, metrics: newMetrics(o), refusals: refused})
	s := grpc.NewServer(
		grpc.Creds(entrance),
		grpc.ChainUnaryInterceptor(recorder.unary, g.unary),
		grpc.ChainStreamInterceptor(recorder.stream, g.stream),
		grpc.MaxRecvMsgSize(messageMax),
		grpc.MaxSendMsgSize(answerMax),
		grpc.MaxHeaderListSize(headersMax),
		grpc.MaxConcurrentStreams(streamsMax),
		grpc.ConnectionTimeout(handshakeLimit),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveIdle, Timeout: keepaliveAnswer}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveFastest, PermitWithoutStream: true}),
		// A handler of an ended call must be through before its server is gone.
		grpc.WaitForHandlers(true),
	)
	capsulev1.RegisterObjectServiceServer(s, &objects{Options: o})
	capsulev1.RegisterWorkloadServiceServer(s, &workloads{Options: o})
	capsulev1.RegisterVolumeServiceServer(s, newVolumes(o))
	capsulev1.RegisterImageServiceServer(s, &images{Options: o})
	capsulev1.RegisterUpdateServiceServer(s, newUpdates(o))
	capsulev1.RegisterInstallServiceServer(s, &installs{Options: o})
	capsulev1.RegisterDiskServiceServer(s, &disks{Options: o})
	capsulev1.RegisterBackupServiceServer(s, newBackups(o))
	capsulev1.RegisterCapsuleServiceServer(s, &capsule{Options: o})
	capsulev1.RegisterDebugServiceServer(s, &debugging{Options: o})
	capsulev1.RegisterEventServiceServer(s, &events{Options: o})
	capsulev1.RegisterStatsServiceServer(s, &stats{Options: o})
	capsulev1.RegisterSupportServiceServer(s, newSupports(o))
	capsulev1.RegisterTokenServiceServer(s, &tokens{book: book})
	capsulev1.RegisterAccessServiceServer(s, &access{Options: o, door: entrance, refusals: refused, renewals: quota.New(renewalEvery, renewalsBurst)})
	reflection.Register(s)
	roles, err := methodRoles(s.GetServiceInfo())
	if err != nil {
		return nil, fmt.Errorf("start server: %w", err)
	}
	g.roles, recorder.roles = roles, roles
	return s, nil
}
