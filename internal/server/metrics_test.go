package server

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/reflect/protoreflect"
	"sigs.k8s.io/yaml"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/contexts"
	"capsule/internal/event"
	"capsule/internal/identity"
	"capsule/internal/network"
	"capsule/internal/token"
)

// browser is a client of HTTP with a certificate of a role, or none.
func (b *box) browser(t *testing.T, role capsulev1.Role) *http.Client {
	t.Helper()
	config := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
	if role != capsulev1.Role_ROLE_UNSPECIFIED {
		pair, err := b.ca.IssueOperator("anna", role, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if config, err = (contexts.Context{CA: string(b.ca.CertPEM()), Certificate: string(pair.CertPEM), Key: string(pair.KeyPEM)}).TLS(); err != nil {
			t.Fatal(err)
		}
	}
	// As Prometheus and curl do: both protocols are offered.
	config.NextProtos = []string{"h2", "http/1.1"}
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}
}

func (b *box) scrape(t *testing.T, c *http.Client, method, path string, header http.Header) (code int, text string, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(limit(t), method, "https://"+b.address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// watched is a capsule with all that there is a metric of.
func watched(t *testing.T) *box {
	t.Helper()
	b := sampled(t, "web", "stopped")
	o, err := b.store.Get("", "web")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.store.Apply(t.Context(), []*capsulev1.Object{disk("data", 1<<30)}, false, nil); err != nil {
		t.Fatal(err)
	}
	err = b.store.PutStatus(o.Meta.Uid, &capsulev1.WorkloadStatus{Generation: 1, RunningGeneration: 1, Phase: capsulev1.Phase_PHASE_RUNNING, Restarts: 2, Health: capsulev1.HealthState_HEALTH_STATE_HEALTHY})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMetrics(t *testing.T) {
	b := watched(t)
	for _, role := range []capsulev1.Role{capsulev1.Role_ROLE_READER, capsulev1.Role_ROLE_OPERATOR, capsulev1.Role_ROLE_ADMIN} {
		code, text, err := b.scrape(t, b.browser(t, role), http.MethodGet, "/metrics", nil)
		if err != nil || code != http.StatusOK {
			t.Fatalf("%v: %d, %v", role, code, err)
		}
		for _, line := range []string{
			`capsule_workload_state{kind="Container",state="running",workload="web"} 1`,
			`capsule_workload_state{kind="Container",state="back-off",workload="web"} 0`,
			`capsule_workload_state{kind="Container",state="pending",workload="stopped"} 1`,
			`capsule_workload_health{health="healthy",kind="Container",workload="web"} 1`,
			`capsule_workload_restarts_total{kind="Container",workload="web"} 2`,
			`capsule_workload_running{kind="Container",workload="stopped"} 0`,
			`capsule_workload_cpu_seconds_total{kind="Container",workload="web"} 1`,
			`capsule_workload_cpu_limit{kind="Container",workload="web"} 0.5`,
			`capsule_workload_memory_bytes{kind="Container",workload="web"} 1.048576e+06`,
			`capsule_workload_network_sent_bytes_total{kind="Container",workload="web"} 200`,
			`capsule_mode{mode="normal"} 1`, `capsule_uplink_up 0`, `capsule_update_tentative 1`, `capsule_events_total 3`,
			`capsule_full_pass_seconds 0.25`,
			`capsule_volume_state{state="pending",volume="data"} 1`, `capsule_volume_size_bytes{volume="data"} 0`,
		} {
			if !strings.Contains(text, line+"\n") {
				t.Errorf("no %s in\n%s", line, text)
			}
		}
		if strings.Contains(text, `health="healthy",kind="Container",workload="stopped"`) || strings.Contains(text, "orphan") {
			t.Errorf("too much in\n%s", text)
		}
		problems, err := promlint.New(strings.NewReader(text)).Lint()
		if err != nil || len(problems) > 0 {
			t.Errorf("%v, %v", problems, err)
		}
	}
	reader := b.browser(t, capsulev1.Role_ROLE_READER)
	code, text, err := b.scrape(t, reader, http.MethodGet, "/metrics", http.Header{"Accept": {"application/openmetrics-text;version=1.0.0"}})
	if err != nil || code != http.StatusOK || !strings.Contains(text, "# TYPE capsule_events counter\n") || !strings.HasSuffix(text, "\n# EOF\n") {
		t.Errorf("OpenMetrics: %d, %v\n%s", code, err, text)
	}
	for path, want := range map[string]int{"/": http.StatusNotFound, "/metrics/": http.StatusNotFound} {
		if code, _, err := b.scrape(t, reader, http.MethodGet, path, nil); err != nil || code != want {
			t.Errorf("%s: %d, %v", path, code, err)
		}
	}
	if code, _, err := b.scrape(t, reader, http.MethodPost, "/metrics", nil); err != nil || code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d, %v", code, err)
	}
	if code, _, err := b.scrape(t, b.browser(t, capsulev1.Role_ROLE_UNSPECIFIED), http.MethodGet, "/metrics", nil); err == nil {
		t.Errorf("nobody: %d", code)
	}
	// The same port goes on to serve calls.
	if _, err := b.apply(t, web("more")); err != nil {
		t.Error(err)
	}
}

// While a capsule can be claimed, whoever connects needs no certificate: metrics do.
func TestMetricsOfAnUnclaimedCapsule(t *testing.T) {
	dir := t.TempDir()
	b := boxOf(t, dir, nil)
	err := b.id.OpenClaim(identity.Claiming{State: dir + "/claim.json", SinceBoot: func() time.Duration { return time.Minute }})
	if err != nil {
		t.Fatal(err)
	}
	code, text, err := b.scrape(t, b.browser(t, capsulev1.Role_ROLE_UNSPECIFIED), http.MethodGet, "/metrics", nil)
	if err == nil && code != http.StatusUnauthorized || strings.Contains(text, "capsule_") {
		t.Errorf("%d, %v:\n%s", code, err, text)
	}
}

func TestMetricsWithoutState(t *testing.T) {
	b := newBox(t, func(o *Options) { o.Store, o.Registries, o.Runtime = nil, nil, nil })
	b.machine.reason = "gone"
	code, text, err := b.scrape(t, b.browser(t, capsulev1.Role_ROLE_READER), http.MethodGet, "/metrics", nil)
	if err != nil || code != http.StatusOK || !strings.Contains(text, `capsule_mode{mode="recovery"} 1`) {
		t.Errorf("%d, %v:\n%s", code, err, text)
	}
}

// TestManualQuotesLimits checks what the manual says of limits.
func TestManualQuotesLimits(t *testing.T) {
	text, err := os.ReadFile("../../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []string{
		fmt.Sprintf("| events that are kept | %d, each", event.Max),
		fmt.Sprintf("| tokens | %d |", token.Max),
		fmt.Sprintf("| scrapes at once | %d |", scrapesAtOnce),
		fmt.Sprintf("| connections without a certificate | %d, of one address %d;", strangersMax, strangersOfOne),
	} {
		if !strings.Contains(string(text), row) {
			t.Errorf("docs/observability.md lacks %q", row)
		}
	}
}

var metricName = regexp.MustCompile(`capsule_[a-z_]*`)

// pooled are metrics that a test's capsule has none of: it has no disk.
var pooled = regexp.MustCompile(`^capsule_(pool|perm)_`)

// What the examples show is there: every name in them is one that a capsule tells.
func TestExamplesNameRealMetrics(t *testing.T) {
	b := watched(t)
	_, text, err := b.scrape(t, b.browser(t, capsulev1.Role_ROLE_READER), http.MethodGet, "/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			told[strings.Fields(rest)[0]] = true
		}
	}
	for _, d := range allDescs { // of parts that are not in this test
		if name := metricName.FindString(d.String()); pooled.MatchString(name) {
			told[name] = true
		} else if !told[name] {
			t.Errorf("%s is told by nobody", name)
		}
	}
	dashboard, err := os.ReadFile("../../examples/metrics/grafana-dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(dashboard) {
		t.Error("the dashboard is no JSON")
	}
	manual, err := os.ReadFile("../../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range metricName.FindAllString(string(manual), -1) {
		if !told[name] && !slices.Contains([]string{"capsule_", "capsule_workload_", "capsule_volume_"}, name) {
			t.Errorf("the manual names %s, which is none", name)
		}
	}
	shown := map[string]bool{}
	for _, name := range metricName.FindAllString(string(dashboard), -1) {
		shown[name] = true
		if !told[name] {
			t.Errorf("the dashboard shows %s, which is none", name)
		}
	}
	if len(shown) < 20 {
		t.Errorf("the dashboard shows only %v", slices.Sorted(maps.Keys(shown)))
	}
	config, err := os.ReadFile("../../examples/metrics/prometheus.yml")
	if err != nil {
		t.Fatal(err)
	}
	var prometheus struct {
		Scrape []struct {
			Scheme string `json:"scheme"`
			Path   string `json:"metrics_path"`
			TLS    struct {
				ServerName string `json:"server_name"`
			} `json:"tls_config"`
		} `json:"scrape_configs"`
	}
	if err := yaml.Unmarshal(config, &prometheus); err != nil {
		t.Fatal(err)
	}
	for _, s := range prometheus.Scrape {
		if s.Scheme != "https" || s.Path != "" && s.Path != metricsPath || s.TLS.ServerName != identity.ServerName {
			t.Errorf("%+v", s)
		}
	}
}

// Scrapes by token that take long leave the places of strangers to others.
func TestSlowScrapesByToken(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	b := newBox(t, func(o *Options) {
		o.Runtime = hostDriver{}
		o.Traffic = func() (map[string]network.Traffic, error) {
			asked <- struct{}{}
			<-answer
			return nil, nil
		}
	})
	made, err := capsulev1.NewTokenServiceClient(b.dial(t, capsulev1.Role_ROLE_ADMIN)).Create(limit(t), &capsulev1.TokenServiceCreateRequest{Name: "prometheus"})
	if err != nil {
		t.Fatal(err)
	}
	codes := make(chan int)
	for range strangersOfOne {
		go func() {
			code, _, err := b.scrape(t, b.browser(t, capsulev1.Role_ROLE_UNSPECIFIED), http.MethodGet, "/metrics", http.Header{"Authorization": {"Bearer " + made.GetSecret()}})
			if err != nil {
				t.Error(err)
			}
			codes <- code
		}()
		<-asked
	}
	if code, _, err := b.scrape(t, b.browser(t, capsulev1.Role_ROLE_UNSPECIFIED), http.MethodGet, "/metrics", nil); err != nil || code != http.StatusUnauthorized {
		t.Errorf("one more: %d, %v", code, err)
	}
	close(answer)
	for range strangersOfOne {
		if code := <-codes; code != http.StatusOK {
			t.Errorf("got %d", code)
		}
	}
}

// What panics while metrics are read is that scrape's end, and not the daemon's.
func TestMetricsPanic(t *testing.T) {
	b := newBox(t, func(o *Options) {
		o.Runtime = hostDriver{}
		o.Traffic = func() (map[string]network.Traffic, error) { panic("no such link") }
	})
	code, text, err := b.scrape(t, b.browser(t, capsulev1.Role_ROLE_READER), http.MethodGet, "/metrics", nil)
	if err != nil || code != http.StatusOK || !strings.Contains(text, "capsule_build_info") {
		t.Errorf("%d, %v:\n%s", code, err, text)
	}
}

// A token opens metrics and no call; without one, nobody's handshake is as before.
func TestTokens(t *testing.T) {
	b := watched(t)
	admin := capsulev1.NewTokenServiceClient(b.dial(t, capsulev1.Role_ROLE_ADMIN))
	made, err := admin.Create(limit(t), &capsulev1.TokenServiceCreateRequest{Name: "prometheus"})
	if err != nil || made.GetToken().GetCreatedBy() != "anna" {
		t.Fatal(made, err)
	}
	nobody := b.browser(t, capsulev1.Role_ROLE_UNSPECIFIED)
	for header, want := range map[string]int{"Bearer " + made.GetSecret(): http.StatusOK, "Bearer x": http.StatusUnauthorized, "": http.StatusUnauthorized} {
		code, text, err := b.scrape(t, nobody, http.MethodGet, "/metrics", http.Header{"Authorization": {header}})
		if err != nil || code != want || (want == http.StatusOK) != strings.Contains(text, "capsule_build_info") {
			t.Errorf("%q: %d, %v", header, code, err)
		}
	}
	// A certificate that is refused is no better with a token beside it.
	other, err := identity.NewCA("other")
	if err != nil {
		t.Fatal(err)
	}
	stranger := *b
	stranger.ca = other
	stray := stranger.browser(t, capsulev1.Role_ROLE_ADMIN)
	stray.Transport.(*http.Transport).TLSClientConfig.InsecureSkipVerify = true
	stray.Transport.(*http.Transport).TLSClientConfig.VerifyConnection = nil
	if code, _, err := b.scrape(t, stray, http.MethodGet, "/metrics", http.Header{"Authorization": {"Bearer " + made.GetSecret()}}); err == nil {
		t.Errorf("a stranger: %d", code)
	}
	eachMethod(func(m protoreflect.MethodDescriptor) {
		if got := call(limit(t), b.dial(t, capsulev1.Role_ROLE_UNSPECIFIED), m); got != codes.Unavailable {
			t.Errorf("%s without certificate: %v", m.FullName(), got)
		}
	})
	if _, err := admin.Revoke(limit(t), &capsulev1.TokenServiceRevokeRequest{Name: "prometheus"}); err != nil {
		t.Fatal(err)
	}
	if code, _, err := b.scrape(t, nobody, http.MethodGet, "/metrics", http.Header{"Authorization": {"Bearer " + made.GetSecret()}}); err == nil {
		t.Errorf("revoked: %d", code)
	}
}
