package mdns

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

const testPrint = "3f2a:91c0:0000:1111:2222:3333:4444:5555:6666:7777:8888:9999:aaaa:bbbb:cccc:dddd"

func testService(name, id string) Service {
	return Service{Name: name, ID: strings.Repeat(id, 32/len(id)), Version: "1.2.0", State: Unclaimed, Fingerprint: testPrint, Port: 50000}
}

func testLink(addresses ...string) Link {
	l := Link{Index: 2, Name: "eth0"}
	for _, a := range addresses {
		l.Addresses = append(l.Addresses, netip.MustParsePrefix(a))
	}
	return l
}

// kinds are the types of records, in order.
func kinds(list []dns.RR) string {
	var all []string
	for _, rr := range list {
		all = append(all, dns.TypeToString[rr.Header().Rrtype])
	}
	return strings.Join(all, " ")
}

func TestAnswers(t *testing.T) {
	s := testService("capsule-a3f2", "a3f2")
	all := records(s, testLink("192.168.1.20/24", "2001:db8::20/64"))
	only4 := records(s, testLink("192.168.1.20/24"))
	instance, host := s.instance(), s.host()
	const service = serviceType
	for _, c := range []struct {
		name           string
		records        []dns.RR
		question       string
		kind, class    uint16
		known          []dns.RR
		answers, extra string
	}{
		{"all capsules", all, service, dns.TypePTR, dns.ClassINET, nil, "PTR", "SRV TXT NSEC A AAAA NSEC"},
		{"in capitals", all, strings.ToUpper(service), dns.TypePTR, dns.ClassINET, nil, "PTR", "SRV TXT NSEC A AAAA NSEC"},
		{"answer to the asker alone", all, service, dns.TypePTR, dns.ClassINET | unicast, nil, "PTR", "SRV TXT NSEC A AAAA NSEC"},
		{"anything of the type", all, service, dns.TypeANY, dns.ClassANY, nil, "PTR", "SRV TXT NSEC A AAAA NSEC"},
		{"all types", all, typesName, dns.TypePTR, dns.ClassINET, nil, "PTR", ""},
		{"known already", all, service, dns.TypePTR, dns.ClassINET, all[1:2], "", ""},
		{"another one known", all, service, dns.TypePTR, dns.ClassINET, records(testService("capsule-b", "b"), Link{})[1:2], "PTR", "SRV TXT NSEC A AAAA NSEC"},
		{"where", all, instance, dns.TypeSRV, dns.ClassINET, nil, "SRV", "TXT NSEC A AAAA NSEC"},
		{"what", all, instance, dns.TypeTXT, dns.ClassINET, nil, "TXT", ""},
		{"address", all, host, dns.TypeA, dns.ClassINET, nil, "A", ""},
		{"both addresses", all, host, dns.TypeANY, dns.ClassINET, nil, "A AAAA NSEC", ""},
		{"an address that there is not", only4, host, dns.TypeAAAA, dns.ClassINET, nil, "NSEC", ""},
		{"somebody else's name", all, "other.local.", dns.TypeA, dns.ClassINET, nil, "", ""},
		{"another service", all, "_http._tcp.local.", dns.TypePTR, dns.ClassINET, nil, "", ""},
		{"another class", all, service, dns.TypePTR, dns.ClassCHAOS, nil, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := &dns.Msg{Question: []dns.Question{{Name: c.question, Qtype: c.kind, Qclass: c.class}}, Answer: c.known}
			// As it comes from the network, where names are compressed and flags set.
			q.Answer = flushing(q.Answer)
			data, err := q.Pack()
			if err != nil {
				t.Fatal(err)
			}
			q, ok := readQuery(data)
			if !ok {
				t.Fatal("no question")
			}
			got := answers(c.records, q)
			if kinds(got) != c.answers || kinds(besides(c.records, got)) != c.extra {
				t.Errorf("answers %q with %q, want %q with %q", kinds(got), kinds(besides(c.records, got)), c.answers, c.extra)
			}
		})
	}
}

// A record that is known, but not for long, is said again.
func TestKnownForHalfOfTheTime(t *testing.T) {
	all := records(testService("capsule-a3f2", "a3f2"), testLink("192.168.1.20/24"))
	q := &dns.Msg{Question: []dns.Question{{Name: serviceType, Qtype: dns.TypePTR, Qclass: dns.ClassINET}}, Answer: []dns.RR{dns.Copy(all[1])}}
	q.Answer[0].Header().Ttl = otherTTL/2 - 1
	if got := answers(all, q); kinds(got) != "PTR" {
		t.Errorf("answers %q", kinds(got))
	}
}

// A plain DNS client gets back what it needs: its id, its question, no flags of
// multicast DNS, and nothing to keep for long.
func TestLegacy(t *testing.T) {
	all := records(testService("capsule-a3f2", "a3f2"), testLink("192.168.1.20/24"))
	q := &dns.Msg{MsgHdr: dns.MsgHdr{Id: 7}, Question: []dns.Question{{Name: serviceType, Qtype: dns.TypePTR, Qclass: dns.ClassINET | unicast}}}
	list := answers(all, q)
	m := legacy(q, list, besides(all, list))
	if m.Id != 7 || !m.Response || len(m.Question) != 1 || m.Question[0].Qclass != dns.ClassINET {
		t.Errorf("header %v, question %v", m.MsgHdr, m.Question)
	}
	for _, rr := range slices.Concat(m.Answer, m.Extra) {
		if h := rr.Header(); h.Ttl > legacyTTL || h.Class != dns.ClassINET {
			t.Errorf("%v", rr)
		}
	}
}

func TestGoodbyes(t *testing.T) {
	s := testService("capsule-a3f2", "a3f2")
	old := records(s, testLink("192.168.1.20/24", "2001:db8::20/64"))
	for name, c := range map[string]struct {
		now  []dns.RR
		want string
	}{
		"nothing new":  {old, ""},
		"all":          {nil, "PTR PTR SRV TXT A AAAA"},
		"address":      {records(s, testLink("192.168.1.21/24", "2001:db8::20/64")), "A"},
		"other name":   {records(testService("capsule-new", "a3f2"), testLink("192.168.1.20/24", "2001:db8::20/64")), "PTR SRV TXT"},
		"IPv4 is gone": {records(s, testLink("2001:db8::20/64")), "A"},
	} {
		t.Run(name, func(t *testing.T) {
			got := goodbyes(old, c.now)
			if kinds(got) != c.want {
				t.Errorf("got %q, want %q", kinds(got), c.want)
			}
			for _, rr := range got {
				if rr.Header().Ttl != 0 {
					t.Errorf("%v has time left", rr)
				}
			}
		})
	}
}

// What is said is what is found, however long the name.
func TestReadWhatIsSaid(t *testing.T) {
	for _, name := range []string{"capsule-a3f2", "a.name.with.dots", strings.Repeat("long", 15) + "abc"} {
		s := testService(name, "0123456789abcdef")
		all := records(s, testLink("192.168.1.20/24", "2001:db8::20/64"))
		data, err := response(all[1:2], besides(all, all[1:2])).Pack()
		if err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		want := []Found{{s, []netip.Addr{netip.MustParseAddr("192.168.1.20"), netip.MustParseAddr("2001:db8::20")}}}
		if diff := cmp.Diff(want, read(data), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%q: %s", name, diff)
		}
		if len(data) > 1232 {
			t.Errorf("%q: %d bytes don't fit in a packet everywhere", name, len(data))
		}
	}
}

// What strangers send is shown on a terminal: only what has the right form.
func TestParse(t *testing.T) {
	good := testService("capsule-a3f2", "a3f2")
	for name, c := range map[string]struct {
		change func(*Service)
		ok     bool
	}{
		"good":             {func(*Service) {}, true},
		"a later state":    {func(s *Service) { s.State = "recovery" }, true},
		"no id":            {func(s *Service) { s.ID = "" }, false},
		"short id":         {func(s *Service) { s.ID = "a3f2" }, false},
		"escapes":          {func(s *Service) { s.Name = "x\x1b[2J" }, false},
		"no name":          {func(s *Service) { s.Name = "" }, false},
		"an option":        {func(s *Service) { s.Name = "--help" }, false},
		"version of lines": {func(s *Service) { s.Version = "1\n2" }, false},
		"short print":      {func(s *Service) { s.Fingerprint = "3f2a" }, false},
		"state of words":   {func(s *Service) { s.State = "all is well" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := good
			c.change(&s)
			if _, err := parse(s.texts()); (err == nil) != c.ok {
				t.Errorf("%v", err)
			}
		})
	}
	twice := append(good.texts(), "state="+Claimed)
	if s, err := parse(twice); err != nil || s.State != Unclaimed {
		t.Errorf("said twice: %q, %v", s.State, err)
	}
}

func TestNear(t *testing.T) {
	l := &spoken{Link: testLink("192.168.1.20/24", "2001:db8::20/64")}
	for address, want := range map[string]bool{
		"192.168.1.7": true, "192.168.2.7": false, "8.8.8.8": false, "169.254.3.4": true,
		"fe80::1%eth0": true, "2001:db8::7": true, "2001:db8:1::7": false,
	} {
		if got := l.near(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s: %v", address, got)
		}
	}
}

// The address to use is one that the capsule answered from, IPv4 first.
func TestLearn(t *testing.T) {
	s := testService("capsule-a3f2", "a3f2")
	addrs := func(list ...string) (all []netip.Addr) {
		for _, a := range list {
			all = append(all, netip.MustParseAddr(a))
		}
		return all
	}
	f := finder{}
	for _, step := range []struct {
		from string
		said []netip.Addr
		news bool
		want []netip.Addr
	}{
		{"fe80::1%eth0", addrs("192.168.1.20", "2001:db8::20"), true, addrs("fe80::1%eth0", "192.168.1.20", "2001:db8::20")},
		{"192.168.1.20", addrs("192.168.1.20", "2001:db8::20"), true, addrs("192.168.1.20", "fe80::1%eth0", "2001:db8::20")},
		{"192.168.1.20", addrs("192.168.1.20", "2001:db8::20"), false, addrs("192.168.1.20", "fe80::1%eth0", "2001:db8::20")},
		{"10.0.0.1", addrs("10.9.9.9"), true, addrs("192.168.1.20", "fe80::1%eth0", "10.9.9.9", "2001:db8::20")},
	} {
		got, news := f.learn(answer{Found{s, step.said}, netip.MustParseAddr(step.from)})
		if news != step.news || !slices.Equal(got.Addresses, step.want) {
			t.Errorf("from %s: %v, news %v; want %v, %v", step.from, got.Addresses, news, step.want, step.news)
		}
	}
	// One that says it is the same without the same CA is another one.
	other := s
	other.Fingerprint = strings.Replace(testPrint, "3f2a", "0000", 1)
	f.learn(answer{Found{other, addrs("192.168.1.66")}, netip.MustParseAddr("192.168.1.66")})
	if len(f) != 2 {
		t.Errorf("%d capsules", len(f))
	}
}

// Who names a capsule that has namesakes is told where each of them is.
func TestNamesakes(t *testing.T) {
	at := func(digit, address string) Found {
		return Found{testService("home", digit), []netip.Addr{netip.MustParseAddr(address)}}
	}
	three := []Found{at("c", "192.168.1.30"), at("a", "192.168.1.10"), at("b", "fe80::1%eth0")}
	_, err := only("home", three)
	if want := `3 capsules answer to "home", at 192.168.1.10:50000, 192.168.1.30:50000, [fe80::1%eth0]:50000: name the right one by its address`; !errdefs.IsFailedPrecondition(err) || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v", err)
	}
	var many []Found
	for i := range 20 {
		many = append(many, at(fmt.Sprintf("%02d", i), fmt.Sprintf("192.168.1.%d", 10+i)))
	}
	if _, err := only("home", many); err == nil || !strings.Contains(err.Error(), "192.168.1.17:50000, and others") {
		t.Errorf("%v", err)
	}
	if f, err := only("home", three[:1]); err != nil || f.ID != three[0].ID {
		t.Errorf("%v, %v", f, err)
	}
	if _, err := only("home", nil); !errdefs.IsNotFound(err) {
		t.Errorf("%v", err)
	}
}

func FuzzRead(f *testing.F) {
	all := records(testService("capsule-a3f2", "a3f2"), testLink("192.168.1.20/24"))
	data, err := response(all[1:2], besides(all, all[1:2])).Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, found := range read(data) {
			if _, err := parse(found.texts()); err != nil {
				t.Error(err)
			}
		}
	})
}

// However a packet is filled, the work for it is that of reading it.
func TestAnswersToFullPackets(t *testing.T) {
	s := testService("capsule-a3f2", "a3f2")
	l := testLink("192.168.1.20/24")
	for i := range 15 {
		l.Addresses = append(l.Addresses, netip.MustParsePrefix(fmt.Sprintf("2001:db8::%x/64", i+1)))
	}
	all := records(s, l)
	ask := func(name string, kind uint16) dns.Question {
		return dns.Question{Name: name, Qtype: kind, Qclass: dns.ClassINET}
	}
	for name, fill := range map[string]func(q *dns.Msg, i int){
		"one question": func(q *dns.Msg, _ int) { q.Question = append(q.Question, ask(s.host(), dns.TypeAAAA)) },
		"all types":    func(q *dns.Msg, i int) { q.Question = append(q.Question, ask(s.host(), uint16(i))) },
		"known": func(q *dns.Msg, _ int) {
			q.Question = []dns.Question{ask(s.host(), dns.TypeANY)}
			q.Answer = append(q.Answer, all[len(all)-2])
		},
		"known by others": func(q *dns.Msg, _ int) {
			q.Question = []dns.Question{ask(s.host(), dns.TypeANY)}
			q.Answer = append(q.Answer, &dns.AAAA{Hdr: dns.RR_Header{Name: s.host(), Rrtype: dns.TypeAAAA, Class: dns.ClassINET | flush, Ttl: hostTTL}, AAAA: net.ParseIP("2001:db8::ffff")})
		},
		"both": func(q *dns.Msg, i int) {
			q.Question = append(q.Question, ask(s.host(), dns.TypeANY))
			q.Answer = append(q.Answer, all[len(all)-2])
		},
	} {
		t.Run(name, func(t *testing.T) {
			var q dns.Msg
			q.Compress = true
			data := []byte{}
			for i := 1; ; i += 10 {
				for j := range 10 {
					fill(&q, i+j)
				}
				next, err := q.Pack()
				if err != nil {
					t.Fatal(err)
				}
				if len(next) > packetMax {
					break
				}
				data = next
			}
			query, ok := readQuery(data)
			if !ok || len(query.Question) > questionsMax {
				t.Fatalf("%d questions, %v", len(query.Question), ok)
			}
			begun := time.Now()
			got := testing.AllocsPerRun(1, func() { answers(all, query) })
			t.Logf("%d questions, %d known: %v allocations, twice in %v", len(query.Question), len(query.Answer), got, time.Since(begun))
			if got > 1000 {
				t.Errorf("%v allocations", got)
			}
		})
	}
}
