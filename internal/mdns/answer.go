package mdns

import (
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// unicast is the top bit of a question's class: the answer may go to the asker
// alone. In an answer the same bit is flush: forget what you knew of this name.
const (
	unicast = 1 << 15
	flush   = 1 << 15
)

// questionsMax of one packet are answered: more than fit in one of a usual size.
const questionsMax = 128

// readQuery reads a question, and tells it from all else that comes to the group.
func readQuery(data []byte) (*dns.Msg, bool) {
	var m dns.Msg
	if err := m.Unpack(data); err != nil || m.Response || m.Opcode != dns.OpcodeQuery || m.Rcode != dns.RcodeSuccess || len(m.Question) == 0 {
		return nil, false
	}
	m.Question = m.Question[:min(len(m.Question), questionsMax)]
	for _, rr := range m.Answer {
		rr.Header().Class &^= flush
	}
	return &m, true
}

// answers are those of the records that a query asks for, less what the asker
// has said that it knows. Each record is looked for among those only once: packets
// are large, and anybody may send one.
func answers(records []dns.RR, query *dns.Msg) []dns.RR {
	var list, judged []dns.RR
	for _, q := range query.Question {
		for _, rr := range asked(records, q) {
			if slices.Contains(judged, rr) {
				continue
			}
			judged = append(judged, rr)
			if !known(query.Answer, rr) {
				list = append(list, rr)
			}
		}
	}
	return list
}

// asked are the records that a question asks for. When there are none of its type
// at a name of ours, the answer is the record that says which there are.
func asked(records []dns.RR, q dns.Question) []dns.RR {
	if class := q.Qclass &^ unicast; class != dns.ClassINET && class != dns.ClassANY {
		return nil
	}
	var list, absent []dns.RR
	for _, rr := range records {
		switch h := rr.Header(); {
		case !strings.EqualFold(h.Name, q.Name):
		case h.Rrtype == q.Qtype, q.Qtype == dns.TypeANY:
			list = append(list, rr)
		case h.Rrtype == dns.TypeNSEC:
			absent = append(absent, rr)
		}
	}
	if len(list) == 0 {
		return absent
	}
	return list
}

// known tells whether the asker has the record for at least half of its time yet.
func known(list []dns.RR, rr dns.RR) bool {
	return slices.ContainsFunc(list, func(k dns.RR) bool {
		return k.Header().Ttl >= rr.Header().Ttl/2 && dns.IsDuplicate(k, rr)
	})
}

// besides are the records that whoever gets these answers asks for next: all of
// the instance and its host.
func besides(records, answers []dns.RR) []dns.RR {
	var list []dns.RR
	follows := slices.ContainsFunc(answers, func(rr dns.RR) bool {
		h := rr.Header()
		return h.Rrtype == dns.TypeSRV || h.Rrtype == dns.TypePTR && h.Name == serviceType
	})
	for _, rr := range records {
		if kind := rr.Header().Rrtype; follows && kind != dns.TypePTR && !slices.Contains(answers, rr) {
			list = append(list, rr)
		}
	}
	return list
}

// response is a message to the group, or to one asker.
func response(answers, extra []dns.RR) *dns.Msg {
	return &dns.Msg{
		MsgHdr:   dns.MsgHdr{Response: true, Authoritative: true},
		Compress: true,
		Answer:   flushing(answers),
		Extra:    flushing(extra),
	}
}

// flushing are copies with the bit set of records that are ours alone.
func flushing(records []dns.RR) []dns.RR {
	var list []dns.RR
	for _, rr := range records {
		rr = dns.Copy(rr)
		if rr.Header().Rrtype != dns.TypePTR {
			rr.Header().Class |= flush
		}
		list = append(list, rr)
	}
	return list
}

// legacy is an answer to a plain DNS client: with its question, and nothing that
// only multicast DNS knows.
func legacy(query *dns.Msg, answers, extra []dns.RR) *dns.Msg {
	plain := func(records []dns.RR) []dns.RR {
		var list []dns.RR
		for _, rr := range records {
			rr = dns.Copy(rr)
			rr.Header().Ttl = min(rr.Header().Ttl, legacyTTL)
			list = append(list, rr)
		}
		return list
	}
	m := &dns.Msg{
		MsgHdr:   dns.MsgHdr{Id: query.Id, Response: true, Authoritative: true},
		Compress: true,
		Answer:   plain(answers),
		Extra:    plain(extra),
	}
	for _, q := range query.Question {
		q.Qclass &^= unicast
		m.Question = append(m.Question, q)
	}
	return m
}

// goodbyes are the records of old that are not among the new, with no time left.
func goodbyes(old, now []dns.RR) []dns.RR {
	var list []dns.RR
	for _, rr := range old {
		if rr.Header().Rrtype == dns.TypeNSEC || slices.ContainsFunc(now, func(n dns.RR) bool { return dns.IsDuplicate(n, rr) }) {
			continue
		}
		rr = dns.Copy(rr)
		rr.Header().Ttl = 0
		list = append(list, rr)
	}
	return list
}
