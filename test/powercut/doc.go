// Package powercut proves the machine against power cuts. It boots the built
// image with every write to its disk recorded, works with it through the API,
// and notes what it was promised when. Then it cuts the power at any write
// afterwards: the disk of that moment is checked by the machine's own code, on
// its own kernel (program check), and every promise of before must hold. The last
// part of the work is an update: after a cut there the system is the old one or the
// new one, and some of these disks start whole machines, too.
//
// The quick form is `go test -tags=machine ./test/powercut`; `make powercut`
// tries all flushes and a sample of writes, and writes docs/reliability.md.
// Build tag: machine.
package powercut
