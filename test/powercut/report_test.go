//go:build machine

package powercut

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"capsule/internal/blocklog"
	"capsule/test/campaign"
	"capsule/test/powercut/plan"
)

// A summary is what a run found.
type summary struct {
	version  string
	log      *blocklog.Log
	logBytes int64
	steps    []step
	seed     uint64
	planned  int
	results  []plan.Result
	started  []started
	began    time.Time
	took     time.Duration
}

const reportHead = `# Proof against power cuts

<!-- written by "make powercut" -->

A capsule in QEMU is recorded at work: every write, discard and flush of its
disk, from the first boot on. Then its power is cut after one of them, at every
flush (at most 200 of one operation), three times at every write of an ext4
superblock, of the header of the volume group's metadata and of a boot entry, and
at others by chance. The disk of that moment is made of the recording and checked on the
capsule's own kernel by the code with which a capsule starts. It passes when

- the boot loader finds an entry with its kernel, and the partition table is whole,
- the volume group activates, or is made anew if the first boot never finished,
- ` + "`e2fsck -p`" + ` of /perm succeeds, and a full check finds nothing afterwards,
- the state opens,
- every operation that was acknowledged before the cut is there: objects, volumes
  with their size and content, snapshots with theirs, the image with its layers,
- what was synced is intact, byte for byte,
- no logical volume is lost, and none is left that no record knows,
- all volumes become as declared, and a new one can be made.

At last the system is updated: another version is pushed, started and confirmed, it
is gone back from it, it is pushed again, and gone back from while it is on trial.
After a cut there

- whatever the boot loader can start is the old version or the new one, and never a
  mix: the kernel image has that version's SHA-256, and every block of its slot
  matches the root hash that the image names,
- it first starts what was promised: the new version once its push was acknowledged,
  without a trial once it was confirmed,
- the old version can be started at any time,
- the history of updates knows what became of each, and the next update is taken:
  both by the daemon's own code. Its slot is made free, and its entry starts next.

Some of these disks are started, as whole machines. The version that answers is one
of both, in its own slot, and takes the other one as an update.

Three kinds of cuts are tried. ` + "`prefix`" + `: a disk without a cache keeps all up to the
cut. ` + "`drop`" + `: a disk with a volatile cache keeps what a flush covers, and a random
half of the rest. ` + "`torn`" + `: of the last write only some sectors of 512 bytes arrive.

` + "```console\n$ make powercut\n```" + `

first cuts 24 times around the moment at which a pool's metadata is full: that
takes too long on a capsule, so it is a small pool of its own. It must activate,
take more metadata, and have what was synced. The sweep takes ` + "`MINUTES=60`" + ` and
` + "`SEED=1`" + `. A failure names its cut and the command that makes
the disk of it.

## The last run

`

// report is docs/reliability.md.
func (s *summary) report() []byte {
	var b bytes.Buffer
	b.WriteString(reportHead)
	failed := 0
	for _, r := range s.results {
		if r.Problem != "" {
			failed++
		}
	}
	fmt.Fprintf(&b, "Image %s, checked by the code of %s, %s, seed %d.\nRecorded: %d requests in %d MiB, %d of them flushes.\n", s.version, campaign.Checkout(repository), s.began.UTC().Format("2006-01-02"),
		s.seed, len(s.log.Entries), s.logBytes>>20, len(s.log.Flushes()))
	fmt.Fprintf(&b, "**%d cuts tried, %d failed**", len(s.results), failed)
	if len(s.results) < s.planned {
		fmt.Fprintf(&b, " (of %d planned; the time ended first)", s.planned)
	}
	fmt.Fprintf(&b, ", in %d minutes.\n\n", int(s.took.Minutes()))
	s.writeModes(&b)
	s.writeStarted(&b)
	s.writeSteps(&b)
	s.writeFailures(&b)
	return b.Bytes()
}

func (s *summary) writeModes(b *bytes.Buffer) {
	fmt.Fprint(b, "| Kind of cut | Tried | Failed | Promises checked |\n|---|---:|---:|---:|\n")
	for _, mode := range []blocklog.Mode{blocklog.Prefix, blocklog.Drop, blocklog.Torn} {
		tried, failed, facts := 0, 0, 0
		for _, r := range s.results {
			if r.Cut.Mode != mode {
				continue
			}
			tried++
			facts += r.Facts
			if r.Problem != "" {
				failed++
			}
		}
		fmt.Fprintf(b, "| `%s` | %d | %d | %d |\n", mode, tried, failed, facts)
	}
}

// writeStarted tells of the machines that were started.
func (s *summary) writeStarted(b *bytes.Buffer) {
	if len(s.started) == 0 {
		return
	}
	came, failed := map[string]int{}, 0
	for _, d := range s.started {
		if d.problem != "" {
			failed++
			continue
		}
		came[d.version]++
	}
	fmt.Fprintf(b, "\n%d disks that were cut at the updates were started, %d failed; there came up:", len(s.started), failed)
	for _, version := range slices.Sorted(maps.Keys(came)) {
		fmt.Fprintf(b, " %s %d times", version, came[version])
	}
	fmt.Fprint(b, ".\n")
}

// writeSteps tells during which operations the power was cut.
func (s *summary) writeSteps(b *bytes.Buffer) {
	fmt.Fprint(b, "\n| Cut during | Requests | Tried | Failed |\n|---|---:|---:|---:|\n")
	end := 0
	for _, step := range s.steps {
		from, to := s.log.Begun(step.Begin), s.log.Begun(step.Acked)
		s.writeStep(b, "(after that)", end, from)
		s.writeStep(b, step.Name, from, to)
		end = to
	}
	s.writeStep(b, "shutdown", end, len(s.log.Entries)+1)
}

func (s *summary) writeStep(b *bytes.Buffer, name string, from, to int) {
	tried, failed := 0, 0
	for _, r := range s.results {
		if r.Cut.N >= from && r.Cut.N < to {
			tried++
			if r.Problem != "" {
				failed++
			}
		}
	}
	if tried > 0 || name != "(after that)" {
		fmt.Fprintf(b, "| %s | %d | %d | %d |\n", name, max(to-from, 0), tried, failed)
	}
}

func (s *summary) writeFailures(b *bytes.Buffer) {
	first := true
	for _, r := range s.results {
		if r.Problem == "" {
			continue
		}
		if first {
			fmt.Fprint(b, "\n## Failures\n\n")
			first = false
		}
		fmt.Fprintf(b, "- `%v`: %s\n", r.Cut, strings.ReplaceAll(r.Problem, "\n", "; "))
	}
	for _, d := range s.started {
		if d.problem != "" {
			fmt.Fprintf(b, "- start of `%v`: %s\n", d.cut, strings.ReplaceAll(d.problem, "\n", "; "))
		}
	}
}
