package update

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"capsule/internal/store"
)

// UPD-08: what a newer version wrote stays, in records and beside them.
func TestRecordOfNewerVersion(t *testing.T) {
	t.Parallel()
	w, m := onTrial(t, nil)
	h, err := readHistory(m.Bucket)
	if err != nil {
		t.Fatal(err)
	}
	key := h[0].key
	data, _, err := m.Bucket.Get(key)
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]any
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	all["soaked"] = map[string]any{"by": "the moon"}
	data, _ = json.Marshal(all)
	for key, value := range map[string]string{
		key: string(data), "history/0000000000000000": `{"version":["another","form"]}`, "schedule/weekly": `x`,
	} {
		if err := m.Bucket.Put(key, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	w.settled(m)
	if _, err := m.Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.wantHistory(m, "v1.1.0 slot_b from v1.0.0: confirmed: confirmed by an operator")
	data, _, err = m.Bucket.Get(key)
	if err != nil || json.Unmarshal(data, &all) != nil || fmt.Sprint(all["soaked"]) != "map[by:the moon]" || all["outcome"] != "confirmed" {
		t.Errorf("%s, %v", data, err)
	}
	for key, want := range map[string]string{"history/0000000000000000": `{"version":["another","form"]}`, "schedule/weekly": "x"} {
		if got, _, err := m.Bucket.Get(key); string(got) != want || err != nil {
			t.Errorf("%s: %q, %v", key, got, err)
		}
	}
}

// An outcome that this version doesn't know is shown as such, and kept.
func TestOutcomeOfNewerVersion(t *testing.T) {
	t.Parallel()
	w := newWorld(t, first(t))
	m := w.manager()
	if _, err := addRecord(m.Bucket, facts{Version: "v2", Slot: "slot_b", Outcome: "postponed"}); err != nil {
		t.Fatal(err)
	}
	w.settled(m)
	w.wantHistory(m, "v2 slot_b from : unspecified: ")
}

func TestHistoryIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, first(t))
	m := w.manager()
	err := m.Bucket.Update(func(table store.Table) error {
		for i := range historyMax + 4 {
			r := record{key: fmt.Sprintf("history/%016d", i+1), facts: facts{Version: fmt.Sprint("v", i)}}
			data, err := r.encode()
			if err := errors.Join(err, table.Put(r.key, data)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := addRecord(m.Bucket, facts{Version: fmt.Sprint("v", historyMax+4)}); err != nil {
		t.Fatal(err)
	}
	h, err := readHistory(m.Bucket)
	if err != nil || len(h) != historyMax || h[0].Version != "v5" || h[historyMax-1].Version != fmt.Sprint("v", historyMax+4) {
		t.Error(len(h), err)
	}
}
