package uplink

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/store"
)

// What the bucket holds.
const (
	trialBucket = "network-trial"
	keyTrial    = "trial"    // v1.NetworkTrial, while one goes on
	keyReverted = "reverted" // why the last one was taken back
)

const (
	proofBytes   = 16
	putBackAgain = 5 * time.Second // between tries to write down that it went back
	// answerTime is for the answer to whoever declares a change, by the way that may
	// be gone then.
	answerTime = 300 * time.Millisecond
)

// Trials keeps the network that the capsule declares, and tries each change of it:
//
//	confirmed ──apply──► tried ──confirmed over the new way──► confirmed
//	    ▲                  │
//	    └─────taken back───┘ nobody confirms, an address is somebody else's, or the
//	                         capsule or this daemon starts anew meanwhile
//
// What to go back to is in the store as long as a change is tried. It is written with
// the change, and removed with the confirmation: whatever is cut leaves one of both.
type Trials struct {
	// Settings are for Run of this package.
	Settings *Settings

	store    *store.Store
	onChange func()
	ours     func(netlink.Link) bool
	log      *slog.Logger
	wake     chan struct{}

	mu    sync.Mutex
	now   *trial  // nil while none goes on
	next  *change // nil while the settings are as they should be
	state State
}

// change is what the settings become, and when.
type change struct {
	config Config
	at     time.Time
}

// trial is a change that is tried.
type trial struct {
	*v1.NetworkTrial
	deadline time.Time // of the next thing to do, by the monotonic clock
	number   uint64    // of the settings that are tried; 0 until they are set
	known    []string  // conflicts that there were before
	proof    []byte    // nil until the change is made
	why      string    // it is taken back; "" as long as it isn't
}

// TrialOptions of OpenTrials.
type TrialOptions struct {
	Store    *store.Store
	OnChange func()                  // called when Status may have changed, with nothing locked; nil: nobody
	Select   func(netlink.Link) bool // links that are uplinks, default all wired Ethernet
	Log      *slog.Logger
}

// OpenTrials begins with the network that was confirmed last. A change that was tried
// when the daemon ended is taken back.
func OpenTrials(ctx context.Context, o TrialOptions) (*Trials, error) {
	t := &Trials{store: o.Store, onChange: o.OnChange, ours: o.Select, log: o.Log, wake: make(chan struct{}, 1)}
	if t.ours == nil {
		t.ours = wired
	}
	if t.onChange == nil {
		t.onChange = func() {}
	}
	kept, declared, err := t.read()
	if err != nil {
		return nil, err
	}
	if kept == nil {
		t.Settings = NewSettings(ConfigOf(declared))
		return t, nil
	}
	t.Settings = NewSettings(ConfigOf(kept.GetBefore()))
	t.now = &trial{NetworkTrial: kept, deadline: time.Now(), why: "the capsule or its service was started again before it was confirmed"}
	if !t.store.ReadOnly() {
		t.end(ctx)
	}
	return t, nil
}

// read gives the trial that the store holds, nil for none, and what is declared.
func (t *Trials) read() (*v1.NetworkTrial, *v1.CapsuleNetwork, error) {
	data, found, err := t.store.Bucket(trialBucket).Get(keyTrial)
	if err != nil {
		return nil, nil, err
	}
	obj, err := t.store.Get(manifest.KindCapsule, manifest.CapsuleName)
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, nil, err
	}
	declared := obj.GetCapsule().GetSpec().GetNetwork()
	if !found {
		return nil, declared, nil
	}
	kept := &v1.NetworkTrial{}
	if err := proto.Unmarshal(data, kept); err != nil {
		return nil, nil, fmt.Errorf("read the network to go back to: %w", err)
	}
	return kept, declared, nil
}

// Look finds out what can be said of a network before it is tried: its error is why it
// can't be right here, the texts what may surprise.
func (t *Trials) Look(ctx context.Context, n *v1.CapsuleNetwork) ([]string, error) {
	_, declared, err := t.read()
	if err != nil || manifest.SameNetwork(n, declared) {
		return nil, err
	}
	return look(ctx, ConfigOf(n), t.ours)
}

// Admit lets one change of the network be declared at a time, and writes down with it
// what to go back to. Follow must come after the transaction.
func (t *Trials) Admit(tx store.View, obj *v1.Object) error {
	before, after := tx.Old(obj).GetCapsule().GetSpec().GetNetwork(), obj.GetCapsule().GetSpec().GetNetwork()
	if manifest.SameNetwork(before, after) {
		return nil
	}
	table, err := tx.Table(trialBucket)
	if err != nil {
		return err
	}
	data, tried, err := table.Get(keyTrial)
	if err != nil {
		return err
	}
	if tried {
		return admitSecond(tx, table, obj, data)
	}
	data, err = proto.Marshal(&v1.NetworkTrial{
		Generation: obj.GetMeta().GetGeneration(), Until: timestamppb.New(time.Now().Add(manifest.TrialMax)), Before: before,
	})
	if err != nil {
		return fmt.Errorf("keep the network to go back to: %w", err)
	}
	return errors.Join(table.Put(keyTrial, data), table.Delete(keyReverted),
		tx.Note(obj, "network-tried", fmt.Sprintf("a change of the network is tried for %v, and goes back unless it is confirmed", manifest.TrialMax)))
}

// admitSecond lets an operator go back at once, and change nothing else meanwhile.
func admitSecond(tx store.View, table store.Table, obj *v1.Object, data []byte) error {
	kept := &v1.NetworkTrial{}
	if err := proto.Unmarshal(data, kept); err != nil {
		return fmt.Errorf("read the network to go back to: %w", err)
	}
	if manifest.SameNetwork(kept.GetBefore(), obj.GetCapsule().GetSpec().GetNetwork()) {
		return errors.Join(table.Delete(keyTrial), tx.Note(obj, "network-reverted", "the change of the network that was tried is taken back by an operator"))
	}
	return fmt.Errorf("the network is busy: a change of it is being tried, and goes back at %s unless it is confirmed; wait until then: %w",
		kept.GetUntil().AsTime().UTC().Format("15:04:05 MST"), errdefs.ErrFailedPrecondition)
}

// Follow does what was declared since; it is nothing where nothing was.
func (t *Trials) Follow() {
	t.mu.Lock()
	kept, declared, err := t.read()
	begun, changed := time.Now(), true
	switch {
	case err != nil:
		t.log.Error("try the network", "error", err)
	case kept != nil && (t.now == nil || t.now.GetGeneration() != kept.GetGeneration()):
		t.now = &trial{NetworkTrial: kept, deadline: begun.Add(manifest.TrialMax), known: t.state.Conflicts}
		t.next = &change{ConfigOf(declared), begun.Add(answerTime)}
	case kept == nil && t.now != nil && t.now.why == "":
		t.now, t.next = nil, &change{ConfigOf(declared), begun.Add(answerTime)}
	default:
		changed = false
	}
	t.mu.Unlock()
	if changed && err == nil { // whoever is told may ask for this again
		t.tell()
	}
}

// tell has Run look at the deadline, and others at the status.
func (t *Trials) tell() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
	t.onChange()
}

// Heard takes in how the links stand.
func (t *Trials) Heard(s State) {
	t.mu.Lock()
	t.state = s
	if n := t.now; n != nil && n.why == "" && n.number > 0 && s.Number == n.number {
		fresh := slices.DeleteFunc(slices.Clone(s.Conflicts), func(c string) bool { return slices.Contains(n.known, c) })
		if len(fresh) > 0 {
			t.giveUp(strings.Join(fresh, "; "))
		} else if n.proof == nil {
			n.proof = make([]byte, proofBytes)
			rand.Read(n.proof) // never fails: crypto/rand ends the program instead
		}
	}
	t.mu.Unlock()
	t.tell()
}

// giveUp goes back to the network before; end writes that down. t.mu is held.
func (t *Trials) giveUp(why string) {
	t.now.why, t.now.deadline = why, time.Now()
	t.next = nil
	t.Settings.Set(ConfigOf(t.now.GetBefore()))
}

// Confirm keeps the change that is tried. Without the proof that it gave once the
// change was made it only gives that: whoever brings it has got our answer by the new
// way. It is on the disk before done.
func (t *Trials) Confirm(ctx context.Context, generation uint64, proof []byte) (next []byte, done bool, err error) {
	next, done, err = t.confirm(ctx, generation, proof)
	if done {
		t.onChange()
	}
	return next, done, err
}

func (t *Trials) confirm(ctx context.Context, generation uint64, proof []byte) (next []byte, done bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.now
	switch {
	case n == nil || n.GetGeneration() != generation:
		err := t.confirmed(generation)
		return nil, err == nil, err
	case n.why != "":
		return nil, false, tookBack(n.why)
	case !time.Now().Before(n.deadline):
		return nil, false, tookBack(late())
	case n.proof == nil:
		return nil, false, fmt.Errorf("the change of the network is being made: %w", errdefs.ErrUnavailable)
	case subtle.ConstantTimeCompare(proof, n.proof) == 0:
		return n.proof, false, nil
	}
	_, err = t.store.Edit(ctx, manifest.KindCapsule, manifest.CapsuleName, func(*v1.Object) error { return nil },
		func(tx store.View, objs []*v1.Object) error {
			table, err := tx.Table(trialBucket)
			if err != nil {
				return err
			}
			return errors.Join(table.Delete(keyTrial), tx.Note(objs[0], "network-confirmed", "the change of the network was confirmed over the new way"))
		})
	if err != nil {
		return nil, false, err
	}
	t.now = nil
	return nil, true, nil
}

func late() string { return fmt.Sprintf("it was not confirmed within %v", manifest.TrialMax) }

func tookBack(why string) error {
	return fmt.Errorf("the change of the network was taken back: %s: %w", why, errdefs.ErrFailedPrecondition)
}

// confirmed tells whether a generation that is not tried any more holds: an answer
// that was lost is asked for again. t.mu is held.
func (t *Trials) confirmed(generation uint64) error {
	obj, err := t.store.Get(manifest.KindCapsule, manifest.CapsuleName)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	why, err := t.reverted()
	switch {
	case err != nil:
		return err
	case why != "":
		return tookBack(why)
	case obj.GetMeta().GetGeneration() < generation || t.now != nil:
		return fmt.Errorf("no change of the network of generation %d is tried: %w", generation, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// reverted is why the last change was taken back.
func (t *Trials) reverted() (string, error) {
	why, _, err := t.store.Bucket(trialBucket).Get(keyReverted)
	return string(why), err
}

// TrialStatus is how the network stands.
type TrialStatus struct {
	Trial    *v1.NetworkTrial // nil while nothing is tried
	Reverted string           // why the last change was taken back, until the next one
	Problems []string         // what is not as declared; each is a sentence
}

// Status is how the network stands now.
func (t *Trials) Status() (TrialStatus, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := TrialStatus{Problems: append(append([]string{}, t.state.Conflicts...), t.state.Problems...)}
	if n := t.now; n != nil && n.why == "" {
		s.Trial = proto.CloneOf(n.NetworkTrial)
	}
	var err error
	s.Reverted, err = t.reverted()
	return s, err
}

// Run makes changes, and takes back what nobody confirms in time, until ctx ends.
func (t *Trials) Run(ctx context.Context) error {
	for {
		timer := time.NewTimer(t.left())
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-t.wake:
			timer.Stop()
		case <-timer.C:
		}
		t.change()
		if t.left() <= 0 && t.end(ctx) {
			t.onChange()
		}
	}
}

// change has the links follow what is declared, once it's time.
func (t *Trials) change() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next == nil || time.Now().Before(t.next.at) {
		return
	}
	number := t.Settings.Set(t.next.config)
	t.next = nil
	if t.now != nil {
		t.now.number = number
	}
}

// left is the time until the next thing to do.
func (t *Trials) left() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	left := forever
	if t.next != nil {
		left = time.Until(t.next.at)
	}
	if t.now != nil && !t.store.ReadOnly() {
		left = min(left, time.Until(t.now.deadline))
	}
	return left
}

// end takes back the change that is tried. The links go back first; what is declared
// follows, as often as it takes.
func (t *Trials) end(ctx context.Context) (done bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.now == nil {
		return false // confirmed at the last moment
	}
	if t.now.why == "" {
		t.giveUp(late())
	}
	if err := t.putBack(ctx); err != nil {
		t.log.Error("write down that the network is as before", "error", err, "reason", t.now.why)
		t.now.deadline = time.Now().Add(putBackAgain)
		return false
	}
	t.log.Warn("the network is as before", "reason", t.now.why)
	t.now = nil
	return true
}

// putBack declares what there was before.
func (t *Trials) putBack(ctx context.Context) error {
	_, err := t.store.Edit(ctx, manifest.KindCapsule, manifest.CapsuleName, func(obj *v1.Object) error {
		if obj.GetCapsule().GetSpec() == nil {
			obj.Kind = &v1.Object_Capsule{Capsule: &v1.Capsule{Spec: &v1.CapsuleSpec{}}}
		}
		obj.GetCapsule().Spec.Network = t.now.GetBefore()
		return nil
	}, func(tx store.View, objs []*v1.Object) error {
		table, err := tx.Table(trialBucket)
		if err != nil {
			return err
		}
		return errors.Join(table.Delete(keyTrial), table.Put(keyReverted, []byte(t.now.why)),
			tx.Note(objs[0], "network-reverted", "the network is as before again: "+t.now.why))
	})
	return err
}
