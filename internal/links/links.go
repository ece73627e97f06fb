// Package links lists network links and addresses as a whole: the kernel interrupts
// a list when something changes meanwhile, as any workload's link does.
package links

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// attempts bounds the tries at one list.
const attempts = 3

// List gives all links. One that was interrupted each time comes in part, with an
// error that is netlink.ErrDumpInterrupted.
func List() ([]netlink.Link, error) { return whole(netlink.LinkList) }

// Addresses gives those of a link, or of all links when it is nil, as List does.
func Addresses(l netlink.Link, family int) ([]netlink.Addr, error) {
	return whole(func() ([]netlink.Addr, error) { return netlink.AddrList(l, family) })
}

func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range attempts {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}
