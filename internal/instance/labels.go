package instance

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"capsule/internal/logs"
	"capsule/internal/process"
	"capsule/internal/workload"
)

// Labels of a record. The first four tell whose it is, the others what became
// of it.
const (
	LabelName       = "capsule.name"
	LabelUID        = "capsule.uid"
	LabelGeneration = "capsule.generation"
	LabelKind       = "capsule.kind" // missing: a container
	LabelNumber     = "capsule.number"
	LabelDigest     = "capsule.digest"
	LabelLogDir     = "capsule.logdir"
	LabelOwners     = "capsule.owners"  // of files, see OwnerLabels
	LabelStarted    = "capsule.started" // time of the last start
	LabelEnd        = "capsule.end"     // see Ending
	LabelNote       = "capsule.note"    // Ending.Note
)

// uidChars of the object's UID are in the record's ID, which containerd bounds
// to 76 bytes.
const uidChars = 8

// RecordID is the ID of an instance's record, its snapshot and all else that is
// named after it.
func RecordID(id workload.ID) string {
	uid := strings.ReplaceAll(id.UID, "-", "")
	if len(uid) > uidChars {
		uid = uid[:uidChars]
	}
	return fmt.Sprintf("%s.%s.%d", id.Name, uid, id.Generation)
}

// WorkloadName is the name in a record's ID, "" when it is not of ours.
func WorkloadName(recordID string) string {
	for range 2 {
		i := strings.LastIndexByte(recordID, '.')
		if i < 0 {
			return ""
		}
		recordID = recordID[:i]
	}
	return recordID
}

// labels of a new instance.
func (r *Records) labels(in workload.Instance) map[string]string {
	return map[string]string{
		LabelName:       in.Name,
		LabelUID:        in.UID,
		LabelGeneration: strconv.FormatUint(in.Generation, 10),
		LabelKind:       r.kind,
		LabelDigest:     in.Image.Digest,
		LabelLogDir:     in.LogDir,
	}
}

// Observed is what labels tell of an instance that does not run; false when
// they are not of ours.
func Observed(labels map[string]string) (workload.Observed, bool) {
	generation, err := strconv.ParseUint(labels[LabelGeneration], 10, 64)
	if err != nil || labels[LabelName] == "" {
		return workload.Observed{}, false
	}
	o := workload.Observed{
		ID:          workload.ID{Name: labels[LabelName], UID: labels[LabelUID], Generation: generation},
		State:       workload.Prepared,
		ImageDigest: labels[LabelDigest],
	}
	if started, err := time.Parse(time.RFC3339Nano, labels[LabelStarted]); err == nil {
		o.StartedAt = started
		o.State = workload.Ended
		o.ExitCode = process.Killed
	}
	if end, ok := ParseEnding(labels[LabelEnd]); ok {
		o.State = workload.Ended
		o.ExitCode, o.FinishedAt, o.OOM = end.Code, end.At, end.OOM
		o.Note = labels[LabelNote]
	}
	return o, true
}

// OwnerLabels keep who an instance's files belong to: "UID:GID UID:GID".
func OwnerLabels(list []process.Account) map[string]string {
	if len(list) == 0 {
		return nil
	}
	var words []string
	for _, a := range list {
		words = append(words, fmt.Sprintf("%d:%d", a.UID, a.GID))
	}
	return map[string]string{LabelOwners: strings.Join(words, " ")}
}

// Owners reads what OwnerLabels wrote, up to the first that is none.
func Owners(labels map[string]string) (list []process.Account) {
	for _, word := range strings.Fields(labels[LabelOwners]) {
		var a process.Account
		if n, err := fmt.Sscanf(word, "%d:%d", &a.UID, &a.GID); n != 2 || err != nil {
			return list
		}
		list = append(list, a)
	}
	return list
}

// Ending is how an instance ended.
type Ending struct {
	Code int // 128 + signal when killed by one
	At   time.Time
	OOM  bool
	Note string // one sentence more, kept in a label of its own; may be empty
}

// String is the form that labels keep: "CODE TIME" or "CODE TIME oom".
func (e Ending) String() string {
	s := fmt.Sprintf("%d %s", e.Code, e.At.UTC().Format(time.RFC3339Nano))
	if e.OOM {
		s += " oom"
	}
	return s
}

// ParseEnding reads what String wrote.
func ParseEnding(s string) (Ending, bool) {
	fields := strings.Fields(s)
	if len(fields) < 2 {
		return Ending{}, false
	}
	code, err := strconv.Atoi(fields[0])
	if err != nil {
		return Ending{}, false
	}
	at, err := time.Parse(time.RFC3339Nano, fields[1])
	return Ending{Code: code, At: at, OOM: len(fields) > 2}, err == nil
}

// sentence for the log.
func (e Ending) sentence() string {
	switch {
	case e.OOM:
		return "ended: out of memory"
	case e.Note != "":
		return "ended: " + clip(e.Note)
	case e.Code > 128:
		return fmt.Sprintf("ended by signal %d", e.Code-128)
	}
	return fmt.Sprintf("ended with code %d", e.Code)
}

// Mark notes the end in a workload's log, if that is still kept.
func (e Ending) Mark(logDir string) {
	if logDir == "" {
		return
	}
	if _, err := os.Stat(logDir); err == nil {
		_ = logs.Mark(logDir, e.sentence())
	}
}

// noteMax bounds a note, which may quote what a guest printed. containerd takes
// 4 KiB for a label.
const noteMax = 1024

// clip bounds a note and keeps it valid text.
func clip(note string) string {
	note = strings.ToValidUTF8(note, "?")
	if len(note) <= noteMax {
		return note
	}
	end := noteMax
	for !utf8.RuneStart(note[end]) {
		end--
	}
	return note[:end] + "…"
}
