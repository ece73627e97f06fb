package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	crypt "filippo.io/age"
	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/backup"
	"capsule/internal/identity"
)

// BackupOptions of "capsule backup".
type BackupOptions struct {
	Volumes        bool
	Full           bool
	Verify         bool
	Identity       string // for Verify
	Recipients     []string
	PassphraseFile string
}

func newCapsuleBackupCommand(a *app) *cobra.Command {
	var o BackupOptions
	cmd := &cobra.Command{
		Use: "backup FILE|FOLDER/", Short: "Write all that makes the capsule what it is to a file",
		Long: `Writes what is declared, who may enter, the capsule's own keys and its secrets to
FILE, and with --volumes the data of all volumes. "capsulectl install --restore FILE"
makes another machine this capsule.

In a folder each backup is a file of its own, and with --volumes only the first has
all data: those after it have what changed since. Each needs those that it stands on,
back to a whole one; --full begins anew.

The file is encrypted, by age, for the recipients that are named or with a passphrase,
which is asked for or read from a file: whoever reads a backup has the capsule. It is
written beside FILE and takes its name once it is whole.

Workloads go on meanwhile. Each volume is as it was at one moment. Images are not in
a backup: they are pulled again, and those that were pushed are to be pushed again.

--verify reads a backup that is there, with all that it stands on, and says what is in
it; no capsule is asked.`,
		Example: `  capsulectl capsule backup box.backup
  capsulectl capsule backup --volumes --recipient age1... /mnt/nas/box/
  capsulectl capsule backup --volumes --passphrase-file ~/.box.pass box.backup
  capsulectl capsule backup --verify --identity key.txt /mnt/nas/box/`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.Verify {
				return runBackupVerify(cmd.Context(), a, o, args[0])
			}
			return runCapsuleBackup(cmd.Context(), a, o, args[0])
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&o.Volumes, "volumes", false, "the data of all volumes too")
	flags.BoolVar(&o.Full, "full", false, "a whole backup, although an earlier one is in the folder")
	flags.StringArrayVar(&o.Recipients, "recipient", nil, "public key of age that can open it, age1...; may be given several times")
	flags.BoolVar(&o.Verify, "verify", false, "make none: read the one that is there, or the newest of the folder, to its end")
	flags.StringVar(&o.Identity, "identity", "", "with --verify, file with the age key that opens it")
	passphraseFile(cmd, &o.PassphraseFile)
	return cmd
}

func runCapsuleBackup(ctx context.Context, a *app, o BackupOptions, target string) error {
	recipients, err := a.recipients(o.Recipients, o.PassphraseFile)
	if err != nil {
		return err
	}
	c, err := a.dial()
	if err != nil {
		return err
	}
	m := &backupMaking{app: a, options: o, recipients: recipients, path: target}
	if isBackupFolder(target) {
		if err := m.useFolder(c); err != nil {
			return err
		}
		defer m.known.close()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.backups.Backup(ctx)
	if err != nil {
		return err
	}
	if err := m.run(ctx, stream); err != nil {
		m.drop()
		return err
	}
	return m.finish()
}

// runBackupVerify tells what is in a backup, or what is wrong with it.
func runBackupVerify(ctx context.Context, a *app, o BackupOptions, path string) error {
	saved, err := a.openBackup(path, OpenOptions{Identity: o.Identity, PassphraseFile: o.PassphraseFile})
	if err != nil {
		return err
	}
	b, err := saved.check(ctx, a)
	if err != nil {
		return err
	}
	a.ui.printf("%s is whole: capsule %q, version %s, %s; volumes: %d, %s\n",
		saved.path, b.header.GetName(), b.header.GetVersion(), stampOf(b.header), len(b.header.GetVolumes()), size(b.used()))
	return nil
}

// backupMaking is a backup on its way into a file.
type backupMaking struct {
	app        *app
	options    BackupOptions
	recipients []crypt.Recipient
	folder     string // "" for a single file
	path       string
	known      *known // nil for a whole one

	out    *archiveFile
	sealed io.WriteCloser
	index  *archiveFile // nil without a folder
	header *capsulev1.BackupHeader
	bytes  int64 // that came
	data   int64 // of volumes, packed
}

func (m *backupMaking) useFolder(c *client) error {
	m.folder = m.path
	if err := os.MkdirAll(m.folder, 0o700); err != nil {
		return fileError("make", m.folder, err)
	}
	m.path = filepath.Join(m.folder, "new"+backupSuffix) // until its name is known
	if !m.options.Volumes || m.options.Full {
		return nil
	}
	ca, err := c.context.Authority()
	if err != nil {
		return err
	}
	var why string
	m.known, why, err = openKnown(m.folder, identity.Fingerprint(ca))
	if why != "" {
		m.app.ui.note("%s: this backup is a whole one", why)
	}
	return err
}

func (m *backupMaking) drop() {
	for _, f := range []*archiveFile{m.out, m.index} {
		if f != nil {
			f.drop()
		}
	}
}

// run asks for the backup and takes all of it.
func (m *backupMaking) run(ctx context.Context, stream capsulev1.BackupService_BackupClient) error {
	start := &capsulev1.BackupStart{Volumes: m.options.Volumes, Base: m.known.base()}
	if err := stream.Send(&capsulev1.BackupRequest{Part: &capsulev1.BackupRequest_Start{Start: start}}); err != nil && !isEOF(err) {
		return err // on EOF the answer says why
	}
	told := make(chan error, 1)
	go func() { told <- m.tell(stream) }()
	if err := m.take(stream); err != nil {
		if !errors.Is(err, backup.ErrCut) && !errors.Is(err, backup.ErrDamaged) {
			return m.app.cutOff(ctx, "the backup", m.bytes, err)
		}
		return &failure{exitFailed, fmt.Errorf("what the capsule sent is no whole backup: %w", err), "nothing of it is kept; run it again"}
	}
	return <-told
}

// tell sends what is known.
func (m *backupMaking) tell(stream capsulev1.BackupService_BackupClient) error {
	if m.known != nil {
		err := m.known.send(func(k *capsulev1.BackupKnown) error {
			return stream.Send(&capsulev1.BackupRequest{Part: &capsulev1.BackupRequest_Known{Known: k}})
		})
		if err != nil && !isEOF(err) { // the capsule has all that it needs, or says what is wrong
			return fmt.Errorf("read %q: %w", indexFile, err)
		}
	}
	return ignoreEOF(stream.CloseSend())
}

// take writes what comes, and makes sure that it's whole.
func (m *backupMaking) take(stream capsulev1.BackupService_BackupClient) (err error) {
	first, err := stream.Recv() // nothing is made before the capsule has something to send
	if err != nil {
		return err
	}
	if m.out, err = createArchive(m.app, m.path); err != nil {
		return err
	}
	if m.sealed, err = crypt.Encrypt(m.out, m.recipients...); err != nil {
		return err
	}
	bar := m.app.ui.progress()
	defer bar.end()
	in := &backupStream{stream: stream, rest: first.GetData(), came: func(n int) {
		m.bytes += int64(n)
		bar.set("back up", m.bytes, 0)
	}}
	r, err := backup.NewReader(io.TeeReader(in, m.sealed))
	if err != nil {
		return err
	}
	m.header = r.Header()
	if err := m.follow(r); err != nil {
		return err
	}
	bar.done()
	return m.sealed.Close()
}

// follow reads the records up to the end, and writes the index of a folder.
func (m *backupMaking) follow(r *backup.Reader) (err error) {
	var index *backup.Writer
	if m.folder != "" && m.options.Volumes {
		if m.index, err = createArchive(m.app, filepath.Join(m.folder, indexFile)); err != nil {
			return err
		}
		if index, err = backup.NewWriter(m.index, m.header); err != nil {
			return err
		}
	}
	for {
		rec, err := r.Next()
		switch {
		case isEOF(err):
			return nil
		case err != nil:
			return err
		}
		m.data += int64(len(rec.GetChunk().GetData()))
		if index == nil {
			continue
		}
		switch {
		case rec.GetVolume() != nil:
			err = index.Put(rec)
		case rec.GetChunk() != nil:
			err = index.Chunk(rec.GetChunk().GetIndex(), rec.GetChunk().GetHash(), nil)
		case rec.GetEnd() != nil:
			_, err = index.End()
		}
		if err != nil {
			return fileError("write", indexFile, err)
		}
	}
}

// finish gives the files their names, the index last: one that is behind only makes the
// next backup larger.
func (m *backupMaking) finish() error {
	if m.folder != "" {
		place := 0
		if m.known != nil {
			place = m.known.place
		}
		m.out.path = filepath.Join(m.folder, nameOfBackup(m.header, place))
		m.path = m.out.path
	}
	if err := m.out.keep(); err != nil {
		m.drop()
		return err
	}
	if m.index != nil {
		m.known.close() // Windows replaces no file that is open
		if err := m.index.keep(); err != nil {
			return err
		}
	}
	how := "a whole backup"
	if m.known != nil {
		how = fmt.Sprintf("what changed since the backup before, %s of volumes", size(m.data))
	}
	if !m.options.Volumes {
		how = "without the data of volumes"
	}
	m.app.ui.note("%s, %s", how, size(m.bytes))
	m.app.ui.printf("%s\n", m.path)
	return nil
}

// backupStream is what the capsule sends.
type backupStream struct {
	stream capsulev1.BackupService_BackupClient
	rest   []byte
	came   func(n int)
}

func (s *backupStream) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		resp, err := s.stream.Recv()
		if err != nil {
			return 0, err
		}
		s.rest = resp.GetData()
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	s.came(n)
	return n, nil
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) }
