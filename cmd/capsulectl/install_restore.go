package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/backup"
	"capsule/internal/contexts"
	"capsule/internal/identity"
)

const (
	restoreLook    = 2 * time.Second  // between looks at a machine that restarts
	restoreLookMax = 15 * time.Second // for one
	oldLookMax     = 5 * time.Second  // for the capsule of before, which is hoped not to answer
	stageBytes     = 256 << 10        // of a backup in one message
)

// restoration is a machine on its way to be the capsule of a backup. Of nil nothing is
// restored.
type restoration struct {
	app     *app
	options InstallOptions
	backup  *checkedBackup
	// context of the capsule, whose Name is "" when this machine has none.
	context contexts.Context
}

// restoration reads all of the backup: what can't be restored is told before anything
// else is done.
func (a *app) restoration(ctx context.Context, o InstallOptions) (*restoration, error) {
	if o.Restore == "" {
		return nil, nil
	}
	saved, err := a.openBackup(o.Restore, o.Open)
	if err != nil {
		return nil, err
	}
	checked, err := saved.check(ctx, a)
	if err != nil {
		return nil, err
	}
	r := &restoration{app: a, options: o, backup: checked}
	if r.context, err = contextWithCA(checked.header.GetFingerprint()); err != nil {
		return nil, err
	}
	r.warnOfOld(ctx)
	return r, nil
}

// contextWithCA is the context of a capsule, by its CA; without a name when there's none.
func contextWithCA(fingerprint string) (contexts.Context, error) {
	store, err := contexts.Open("")
	if err != nil {
		return contexts.Context{}, err
	}
	names, err := store.List()
	if err != nil {
		return contexts.Context{}, err
	}
	for _, name := range names {
		c, err := store.Get(name)
		if err != nil {
			continue // another one may be good
		}
		if ca, err := c.Authority(); err == nil && identity.Fingerprint(ca) == fingerprint {
			return c, nil
		}
	}
	return contexts.Context{}, nil
}

// warnOfOld tells of the capsule that still runs.
func (r *restoration) warnOfOld(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, oldLookMax)
	defer cancel()
	where := ""
	if r.context.Name != "" && letsIn(ctx, r.context) == nil {
		where = r.context.Host
	} else if hosts, err := findByCA(ctx, r.backup.header.GetFingerprint()); err == nil && len(hosts) > 0 {
		where = hosts[0]
	}
	if where != "" {
		r.app.ui.warn(fmt.Sprintf("capsule %q, which the backup is of, answers at %s: switch it off before the restored one starts", r.backup.header.GetName(), where))
	}
}

// stage gives the state to the stick, which checks it, and gives what names it there.
func (r *restoration) stage(ctx context.Context) (digest string, err error) {
	if r == nil {
		return "", nil
	}
	var state bytes.Buffer
	h := r.backup.header
	h.Base = nil
	w, err := backup.NewWriter(&state, h)
	if err != nil {
		return "", err
	}
	for _, rec := range r.backup.state {
		if err := w.Put(rec); err != nil {
			return "", err
		}
	}
	if _, err := w.End(); err != nil {
		return "", err
	}
	resp, err := callWithin(ctx, r.app, workMax, func(ctx context.Context, c *client) (*capsulev1.StageRestoreResponse, error) {
		stream, err := c.backups.StageRestore(ctx)
		if err != nil {
			return nil, err
		}
		start := &capsulev1.StageRestoreStart{Reclaim: r.context.Name == ""}
		err = stream.Send(&capsulev1.StageRestoreRequest{Part: &capsulev1.StageRestoreRequest_Start{Start: start}})
		for err == nil && state.Len() > 0 {
			err = stream.Send(&capsulev1.StageRestoreRequest{Part: &capsulev1.StageRestoreRequest_Data{Data: state.Next(stageBytes)}})
		}
		if err != nil && !errors.Is(err, io.EOF) { // on EOF the answer says why
			return nil, err
		}
		return stream.CloseAndRecv()
	})
	return resp.GetDigest(), err
}

// tell says what the machine is to be.
func (r *restoration) tell() {
	if r == nil {
		return
	}
	h, ui := r.backup.header, r.app.ui
	ui.note("it becomes capsule %q, as it was %s", h.GetName(), stampOf(h))
	if n := len(h.GetVolumes()); n > 0 {
		ui.note("then its volumes are filled: %d, with %s", n, size(r.backup.used()))
	}
	if names := h.GetWithoutData(); len(names) > 0 {
		ui.warn("the backup has no data of volumes; these are made anew, empty: " + strings.Join(names, ", "))
	}
}

// finish waits for the capsule, once its disk is written, and fills its volumes.
func (r *restoration) finish(ctx context.Context) error {
	a, name := r.app, r.backup.header.GetName()
	stick := a.client.context
	a.ui.note("pull the stick, then switch the machine off and on: it comes up as %s", name)
	if r.context.Name == "" {
		a.ui.note("there is no context of it here: become one of its admins by the code on its console, with \"capsulectl claim %s\"", name)
		if len(r.backup.header.GetVolumes()) > 0 {
			a.ui.note("then fill its volumes: capsulectl capsule restore %s", r.options.Restore)
		}
		return nil
	}
	store, err := contexts.Open("")
	if err != nil {
		return err
	}
	if err := store.Use(r.context.Name); err != nil {
		return err
	}
	a.ui.note("context %s is current; %s was for the stick: capsulectl context delete %s", r.context.Name, stick.Name, stick.Name)
	if r.options.NoWait {
		if len(r.backup.header.GetVolumes()) > 0 {
			a.ui.note("once it is up, fill its volumes: capsulectl capsule restore %s", r.options.Restore)
		}
		return nil
	}
	if err := r.await(ctx, store, stick.Host); err != nil {
		return err
	}
	if len(r.backup.header.GetVolumes()) > 0 {
		if err := a.fillVolumes(ctx, r.backup.savedBackup); err != nil {
			return err
		}
	}
	a.ui.printf("capsule %s is restored\n", name)
	return nil
}

// await returns once the restored capsule answers, where its context says, where the
// stick's system did, or where mDNS finds it.
func (r *restoration) await(ctx context.Context, store *contexts.Store, stickHost string) error {
	a, outer := r.app, ctx
	ctx, cancel := context.WithTimeout(ctx, r.options.Timeout)
	defer cancel()
	line := statusLine{ui: a.ui}
	defer line.end()
	line.set("waiting until the restored capsule is up")
	for {
		c, err := store.Get(r.context.Name)
		if err != nil {
			return err
		}
		back, err := r.look(ctx)
		if err == nil && back {
			return nil
		}
		if err == nil {
			line.set(fmt.Sprintf("the capsule of before answers at %s: switch it off", c.Host))
		}
		if outer.Err() != nil {
			return outer.Err()
		}
		if ctx.Err() != nil {
			return &failure{exitNotReady, fmt.Errorf("the restored capsule did not come up %s", timeoutText(r.options.Timeout)),
				fmt.Sprintf("its console says how it is; once it is up: capsulectl capsule restore %s", r.options.Restore)}
		}
		c.Host = stickHost
		if lookIn(ctx, c) == nil { // the same machine, most likely at the same address
			if err := store.Move(c.Name, stickHost); err != nil {
				return err
			}
			continue
		}
		pause(ctx, restoreLook)
	}
}

func lookIn(ctx context.Context, c contexts.Context) error {
	ctx, cancel := context.WithTimeout(ctx, restoreLookMax)
	defer cancel()
	return letsIn(ctx, c)
}

// look tells whether what answers is the restored capsule, and not the one of before.
func (r *restoration) look(ctx context.Context) (bool, error) {
	a := r.app
	a.close()
	a.client, a.capsule = nil, r.context.Name
	status, err := callWithin(ctx, a, restoreLookMax, func(ctx context.Context, c *client) (*capsulev1.RestoreStatusResponse, error) {
		return c.backups.RestoreStatus(ctx, &capsulev1.RestoreStatusRequest{})
	})
	if err != nil {
		return false, err
	}
	return bytes.Equal(status.GetId(), r.backup.header.GetId()), nil
}
