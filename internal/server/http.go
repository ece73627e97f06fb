package server

import (
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/audit"
	"capsule/internal/identity"
	"capsule/internal/token"
)

// Metrics are told over HTTP on the API's own port: whoever offers HTTP/1.1 in the
// TLS handshake, which no gRPC client does, is handed over after it. One request is
// answered on each connection.
const (
	protoHTTP     = "http/1.1"
	metricsPath   = "/metrics"
	httpConnMax   = 30 * time.Second // from the handshake to the answer's last byte
	httpAskMax    = 10 * time.Second // of these for what is asked
	httpHeaderMax = 8 << 10          // bytes
)

// forHTTP lets clients of HTTP choose it; all else stays as config has it. While there
// are tokens, those clients need no certificate to ask.
func forHTTP(config *tls.Config, book *token.Book) *tls.Config {
	both := config.Clone()
	both.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		chosen := config
		if config.GetConfigForClient != nil {
			c, err := config.GetConfigForClient(hello)
			if err != nil {
				return nil, err
			}
			if c != nil {
				chosen = c
			}
		}
		if !slices.Contains(hello.SupportedProtos, protoHTTP) {
			return chosen, nil
		}
		chosen = chosen.Clone()
		chosen.NextProtos = []string{protoHTTP}
		if book != nil && book.Any() {
			verify := chosen.VerifyConnection
			chosen.ClientAuth = tls.RequestClientCert
			chosen.VerifyConnection = func(state tls.ConnectionState) error {
				if len(state.PeerCertificates) == 0 || verify == nil {
					return nil
				}
				return verify(state)
			}
		}
		return chosen, nil
	}
	return both
}

// webSide answers HTTP.
type webSide struct {
	id       *identity.Identity
	tokens   *token.Book // nil without a store
	metrics  http.Handler
	refusals *refusals
	Options
}

// serve answers the one request of a connection, and closes it.
func (w *webSide) serve(conn net.Conn, state tls.ConnectionState) {
	limit := time.AfterFunc(httpConnMax, func() { _ = conn.Close() })
	srv := &http.Server{
		Handler:        http.HandlerFunc(func(out http.ResponseWriter, req *http.Request) { w.answer(out, req, conn, state) }),
		MaxHeaderBytes: httpHeaderMax,
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateClosed {
				limit.Stop()
			}
		},
		ReadHeaderTimeout: httpAskMax,
		ErrorLog:          slog.NewLogLogger(w.Log.Handler(), slog.LevelDebug), // what strangers send
	}
	srv.SetKeepAlivesEnabled(false)
	_ = srv.Serve(&oneConn{conn: conn}) // it ends at once, and the connection is served
}

// oneConn is a listener for a connection that is there.
type oneConn struct{ conn net.Conn }

func (l *oneConn) Accept() (net.Conn, error) {
	if l.conn == nil {
		return nil, io.EOF
	}
	c := l.conn
	l.conn = nil
	return c, nil
}
func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

func (w *webSide) answer(out http.ResponseWriter, req *http.Request, conn net.Conn, state tls.ConnectionState) {
	out.Header().Set("Cache-Control", "no-store")
	if who, err := w.admit(state, req.Header.Get("Authorization")); err != nil {
		w.refuse(req, who, state, err)
		code := http.StatusForbidden
		if errdefs.IsUnauthorized(err) {
			code = http.StatusUnauthorized
			out.Header().Set("WWW-Authenticate", "Bearer")
		}
		http.Error(out, sentence(err.Error(), errdefs.ErrUnauthenticated), code)
		return
	}
	if s, ok := conn.(*stranger); ok { // a token's: scrapes that take long keep no other out
		s.known()
	}
	switch {
	case req.URL.Path != metricsPath:
		http.Error(out, "only "+metricsPath+" is here", http.StatusNotFound)
	case req.Method != http.MethodGet && req.Method != http.MethodHead:
		out.Header().Set("Allow", "GET, HEAD")
		http.Error(out, "metrics are read with GET", http.StatusMethodNotAllowed)
	default:
		w.metrics.ServeHTTP(out, req)
	}
}

var errNoCertificate = fmt.Errorf("metrics take an operator's certificate, or a token: %w", errdefs.ErrUnauthenticated)

// admit lets in whoever has a role, or a token.
func (w *webSide) admit(state tls.ConnectionState, authorization string) (who string, err error) {
	if len(state.PeerCertificates) == 0 && w.tokens != nil {
		if name, ok := w.tokens.Admit(authorization); ok {
			return name, nil
		}
	}
	if len(state.PeerCertificates) == 0 {
		return nobody, errNoCertificate
	}
	cert := state.PeerCertificates[0]
	who = cert.Subject.CommonName
	role, err := w.id.Admit(cert)
	if err == nil && role < capsulev1.Role_ROLE_READER {
		err = errdefs.ErrPermissionDenied
	}
	return who, err
}

func (w *webSide) refuse(req *http.Request, who string, state tls.ConnectionState, err error) {
	by := who
	if len(state.PeerCertificates) == 0 {
		by = byStranger
	}
	w.refusals.log(w.Log, by, "call refused", "method", "GET "+metricsPath, "operator", who, "from", req.RemoteAddr, "error", err)
	if w.Audit == nil {
		return
	}
	r := audit.Record{Time: time.Now(), Operator: who, From: req.RemoteAddr, Method: "Metrics", Code: codes.Unauthenticated.String(), Message: err.Error()}
	if len(state.PeerCertificates) > 0 {
		r.Key = identity.KeyFingerprint(state.PeerCertificates[0])
	}
	w.Audit.Refused(r, by)
}
