package ledger

import "testing"

func TestWitness(t *testing.T) {
	var w Witness
	const later = "fedcba9876543210"
	one := Entry{}.next(start)
	two := one.next(start)
	three := two.next(later)
	for _, e := range []Entry{one, three} { // the answer about the second one was lost
		if err := w.Told(e); err != nil {
			t.Fatal(err)
		}
	}
	if w.Acked != 2 || w.Starts != 2 || w.Last != three {
		t.Errorf("%+v", w)
	}
	for _, again := range []Entry{three, two.next(start), two} {
		if err := w.Told(again); err == nil {
			t.Errorf("record %d again is no loss", again.Number)
		}
	}
	if w.Acked != 2 {
		t.Errorf("%+v", w)
	}
}

func TestVerify(t *testing.T) {
	one := Entry{}.next(start)
	two := one.next(start)
	for name, tc := range map[string]struct {
		acked Entry
		s     State
		lost  bool
	}{
		"nothing acknowledged": {Entry{}, State{}, false},
		"there":                {one, State{Last: two, At: one}, false},
		"gone":                 {two, State{Last: one}, true},
		"all gone":             {one, State{}, true},
		"another history":      {two, State{Last: two, At: one.next("fedcba9876543210")}, true},
	} {
		if err := Verify(tc.acked, tc.s); (err != nil) != tc.lost {
			t.Errorf("%s: %v", name, err)
		}
	}
}
