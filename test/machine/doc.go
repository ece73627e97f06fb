// Package machine tests whole capsules: the built image, booted in QEMU by the
// code of `capsulectl lab`, driven by `capsulectl` as an operator would.
//
// Scripts in testdata/shared run side by side on one machine and clean up
// after themselves; scripts in testdata/own boot machines of their own, cut
// their power and damage their disks; those in testdata/nested start microVMs and
// run alone. Build tag: machine.
package machine
