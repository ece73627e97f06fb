package microvm

import "time"

// pace is how long a guest may take for what it is asked. Whoever takes longer
// is held to be stuck.
type pace struct {
	boot     time.Duration // from QEMU's start to the agent's first word
	run      time.Duration // for mounts and the payload's start
	call     time.Duration // for what needs no time
	stop     time.Duration // to kill what is left and to write out its disks, after the grace
	powerOff time.Duration // for the agent to answer that it does
	exit     time.Duration // for QEMU to end after that
}

// What is emulated twice is slower by nestedFactor, and as slow again where the
// machine around it shares its processors: a start was measured to take one minute
// and a half, and on a busy computer more than eight.
const (
	nestedFactor = 20
	nestedBoot   = 20 * time.Minute
)

func paceOf(opts Options) pace {
	p := pace{boot: 30 * time.Second, run: time.Minute, call: 10 * time.Second, stop: 20 * time.Second, powerOff: 5 * time.Second, exit: 20 * time.Second}
	if opts.Emulated != "" {
		p.boot = 2 * time.Minute
	}
	if opts.Nested {
		p.boot = nestedBoot
		for _, limit := range []*time.Duration{&p.run, &p.call, &p.stop, &p.powerOff, &p.exit} {
			*limit *= nestedFactor
		}
	}
	return p
}

// settle is what may follow once the end of a payload is known.
func (p pace) settle() time.Duration { return p.powerOff + p.exit + quitMax + killMax + loggerMax }

// StepMax is the longest that a start takes, or a stop beyond its grace.
func (d *Driver) StepMax() time.Duration {
	return d.pace.boot + d.pace.run + d.pace.stop + d.pace.settle()
}
