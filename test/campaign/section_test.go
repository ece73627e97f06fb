package campaign

import "testing"

const page = "# Page\n\nText.\n\n<!-- begin: a -->\nold\n<!-- end: a -->\n\nMore.\n"

func TestPutSection(t *testing.T) {
	for name, tc := range map[string]struct{ page, section, text, want string }{
		"replaced":      {page, "a", "new\n\n", "# Page\n\nText.\n\n<!-- begin: a -->\nnew\n<!-- end: a -->\n\nMore.\n"},
		"another":       {page, "b", "new", page + "\n<!-- begin: b -->\nnew\n<!-- end: b -->\n"},
		"an empty page": {"", "b", "new", "<!-- begin: b -->\nnew\n<!-- end: b -->\n"},
		"no end":        {"<!-- begin: a -->\nrest\n", "a", "new", "<!-- begin: a -->\nrest\n\n<!-- begin: a -->\nnew\n<!-- end: a -->\n"},
	} {
		if got := string(PutSection([]byte(tc.page), tc.section, []byte(tc.text))); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestKeepSection(t *testing.T) {
	got := KeepSection([]byte("# New\n"), []byte(page), "a")
	if want := "# New\n\n<!-- begin: a -->\nold\n<!-- end: a -->\n"; string(got) != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := KeepSection([]byte("# New\n"), []byte("# Old\n"), "a"); string(got) != "# New\n" {
		t.Errorf("%q", got)
	}
	if text, ok := Section([]byte(page), "a"); !ok || string(text) != "old\n" {
		t.Errorf("%q, %v", text, ok)
	}
}
