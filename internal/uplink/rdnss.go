package uplink

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// rdnss are the DNS servers named by routers (RFC 8106), by link index, with
// the time until which each holds.
type rdnss map[int]map[netip.Addr]time.Time

// advert is one option of a router advertisement.
type advert struct {
	link     int
	servers  []netip.Addr
	lifetime time.Duration
}

// next is how long until a server stops to hold.
func (r rdnss) next(now time.Time) time.Duration {
	wait := forever
	for _, servers := range r {
		for _, until := range servers {
			if until.After(now) {
				wait = min(wait, until.Sub(now))
			}
		}
	}
	return wait
}

// learn takes what a router says; a lifetime of zero takes a server back.
func (r rdnss) learn(a advert, now time.Time) {
	have := r[a.link]
	if have == nil {
		have = map[netip.Addr]time.Time{}
		r[a.link] = have
	}
	for s, until := range have {
		if !until.After(now) {
			delete(have, s)
		}
	}
	for _, s := range a.servers {
		if a.lifetime == 0 {
			delete(have, s)
		} else if _, known := have[s]; known || len(have) < serversMax {
			have[s] = now.Add(a.lifetime)
		}
	}
}

// of returns the servers of a link, in a stable order.
func (r rdnss) of(link int, now time.Time) []netip.Addr {
	var list []netip.Addr
	for s, until := range r[link] {
		if until.After(now) {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

// Lengths of struct nduseroptmsg (linux/rtnetlink.h) and of option 25's head.
const (
	userOptLen   = 16
	rdnssHeadLen = 8
	optionRDNSS  = 25
)

// parseRDNSS reads the payload of an RTM_NEWNDUSEROPT message.
func parseRDNSS(b []byte) (advert, bool) {
	if len(b) < userOptLen+rdnssHeadLen || b[0] != unix.AF_INET6 {
		return advert{}, false
	}
	a := advert{link: int(int32(binary.NativeEndian.Uint32(b[4:])))}
	option := b[userOptLen:]
	size := int(option[1]) * 8
	if option[0] != optionRDNSS || size < rdnssHeadLen || size > len(option) {
		return advert{}, false
	}
	// All ones means for ever, which a duration of that many seconds is.
	a.lifetime = time.Duration(binary.BigEndian.Uint32(option[4:])) * time.Second
	for rest := option[rdnssHeadLen:size]; len(rest) >= 16; rest = rest[16:] {
		s := netip.AddrFrom16([16]byte(rest))
		switch {
		case s.IsLinkLocalUnicast(): // as many a router for homes names itself
			a.servers = append(a.servers, s.WithZone(strconv.Itoa(a.link)))
		case s.IsGlobalUnicast() && !s.Is4In6():
			a.servers = append(a.servers, s)
		}
	}
	return a, true
}

// subscribeRDNSS sends the options that the kernel passes on until done closes.
func subscribeRDNSS(done <-chan struct{}, lost func(error)) (<-chan advert, error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_ND_USEROPT)
	if err != nil {
		return nil, err
	}
	adverts := make(chan advert)
	go func() {
		<-done
		socket.Close()
	}()
	go func() {
		for {
			messages, _, err := socket.Receive()
			if err != nil {
				lost(err)
				return
			}
			for _, m := range messages {
				a, ok := parseRDNSS(m.Data)
				if m.Header.Type != unix.RTM_NEWNDUSEROPT || !ok {
					continue
				}
				select {
				case adverts <- a:
				case <-done:
					return
				}
			}
		}
	}()
	return adverts, nil
}
