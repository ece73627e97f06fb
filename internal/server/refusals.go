package server

import (
	"log/slog"
	"sync"
	"time"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/quota"
)

const (
	refusalsEvery = time.Second
	refusalsBurst = 20
)

// refusals bounds what those who are refused can write into the log: many at once
// are counted, not listed. Each operator has a quota, and so have those who claim
// and all other strangers, so that nobody hides another.
type refusals struct {
	quota   *quota.Quota
	mu      sync.Mutex
	skipped int
}

// Whose quota a refusal counts against, where it is no operator's, by name: a key
// is renewed, and would bring a new quota.
const (
	byStranger = ""
	byClaimer  = capsulev1.AccessService_Claim_FullMethodName
)

func newRefusals() *refusals {
	return &refusals{quota: quota.New(refusalsEvery, refusalsBurst)}
}

func (r *refusals) log(log *slog.Logger, by, what string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.quota.Allow(by) {
		r.skipped++
		return
	}
	log.Warn(what, append(args, "not_logged_before", r.skipped)...)
	r.skipped = 0
}
