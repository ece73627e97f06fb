package manifest

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	capsulev1 "capsule/api/capsule/v1"
)

const volumeText = `kind: Volume
name: photos
size: 10GB
snapshots:
  every: 24h
  keep: 3
`

// volumeBase is a correct manifest that each refused line is added to, as line 3.
const volumeBase = "kind: Volume\nname: photos\n"

func volumeObject(size int64) *capsulev1.Object {
	return &capsulev1.Object{
		Meta: &capsulev1.Meta{Kind: "Volume", Name: "photos"},
		Kind: &capsulev1.Object_Volume{Volume: &capsulev1.Volume{Spec: &capsulev1.VolumeSpec{
			Size:      size,
			Snapshots: &capsulev1.SnapshotSchedule{Every: durationpb.New(24 * time.Hour), Keep: 3},
		}}},
	}
}

func TestVolume(t *testing.T) {
	// The kind may stand after the fields that it decides.
	for _, source := range []string{volumeText, strings.TrimPrefix(volumeText, "kind: Volume\n") + "kind: Volume\n"} {
		got, err := Decode("f", strings.NewReader(source))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]*capsulev1.Object{volumeObject(1e10)}, got, protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
	}
	text, err := Encode(volumeObject(1e10))
	if err != nil || string(text) != volumeText {
		t.Errorf("%v\n%s", err, text)
	}
}

// YAML-07: what is written is what is meant, or refused; its bytes are shown.
func TestVolumeSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"10GB": 10003415040, "10GiB": 10 << 30, "10 GiB": 10 << 30, "1.5GiB": 3 << 29, "32MiB": 32 << 20, "16TiB": 16 << 40,
		"3221225473B": 3<<30 + 4<<20, "3GiB": 3 << 30,
	} {
		objs, err := Decode("f", strings.NewReader(volumeBase+"size: "+text+"\n"))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		declared := objs[0].GetVolume().Spec.Size
		notes := Default(objs[0])
		if got := objs[0].GetVolume().Spec.Size; got != want || (len(notes) == 1) != (got != declared) {
			t.Errorf("%s: got %d, want %d, told %q", text, got, want, notes)
		}
		if err := Validate(objs[0]); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if again := Default(objs[0]); len(again) != 0 {
			t.Errorf("%s: a rounded size is rounded again: %q", text, again)
		}
	}
	for text, want := range map[string]string{
		"10G":             `size "10G" may mean 10GB or 10GiB; write the one that is meant`,
		"1Github":         `unknown unit "Github"`,
		"-1GiB":           `size "-1GiB" must be above zero`,
		"0":               `size "0" must be above zero`,
		"0GiB":            `size "0GiB" must be above zero`,
		"1024":            `size "1024" has no unit; write 1024MB, 1024MiB or another`,
		"10gb":            `unknown unit "gb"; did you mean "GB"?`,
		"9999999999GiB":   `size "9999999999GiB" is larger than 9223372036854775807 bytes`,
		"8388607TiB":      `size must be within 32MiB and 16TiB, found 9223370937343148032 bytes`,
		"31MiB":           `size must be within 32MiB and 16TiB, found 32505856 bytes`,
		"17592186044417B": `size must be within 32MiB and 16TiB, found 17592186044417 bytes`,
		"1,5GiB":          `want a size such as "512MiB" or "1GB", found "1,5GiB"`,
		"１GiB":            `want a size such as "512MiB" or "1GB", found "１GiB"`,
		"[1GiB]":          `want a number, found a list`,
	} {
		_, err := Decode("f", strings.NewReader(volumeBase+"size: "+text+"\n"))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "no limit") {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
	if diff := cmp.Diff("-size: 10GB # 10000000000 bytes\n+size: 10GiB # 10737418240 bytes\n", Diff(volumeObject(1e10), volumeObject(10<<30))); diff != "" {
		t.Error(diff)
	}
	odd := volumeObject(1e10)
	if diff := cmp.Diff([]string{"size 10GB (10000000000 bytes) is rounded up to 10003415040 bytes, whole extents of 4MiB"}, Default(odd)); diff != "" {
		t.Error(diff)
	}
}

func TestVolumeRefused(t *testing.T) {
	for _, c := range []struct{ add, want string }{
		{"", `1:1: size is missing; want one such as "10GiB"`},
		{"sise: 1GiB", `3:1: unknown field "sise"; did you mean "size"?`},
		{"capacity: 1GiB", `3:1: unknown field "capacity"; it is called "size" here`},
		{"size: 1GiB\nimage: web", `4:1: unknown field "image"; known are kind, name, size, snapshots`},
		{"size: 1GiB\nkeep: 3", `4:1: unknown field "keep"; it belongs under "snapshots"`},
		{"size: 1GiB\nsize: 2GiB", `4:1: field "size" is given twice, first in line 3`},
		{"size: 1GiB\nsnapshots: 24h", `4:12: snapshots: want fields, found "24h"`},
		{"size: 1GiB\nsnapshots: {}", `4:12: snapshots.every is missing; want the time between two such as "24h"`},
		{"size: 1GiB\nsnapshots: {keep: 3}", `4:12: snapshots.every is missing`},
		{"size: 1GiB\nsnapshots: {every: 1d}", `4:20: snapshots.every: want a time in h, m, s or ms, found "1d"; a day is written "24h"`},
		{"size: 1GiB\nsnapshots: {every: 7 days}", `4:20: snapshots.every: want a time in h, m, s or ms, found "7 days"`},
		{"size: 1GiB\nsnapshots: {every: 24}", `4:20: snapshots.every: want a time with its unit`},
		{"size: 1GiB\nsnapshots: {every: daily}", `4:20: snapshots.every: want a time with its unit`},
		{"size: 1GiB\nsnapshots: {every: 9m59s}", `4:20: snapshots.every must be within 10m and 8760h`},
		{"size: 1GiB\nsnapshots: {every: 8760h1s}", `4:20: snapshots.every must be within 10m and 8760h`},
		{"size: 1GiB\nsnapshots: {every: 999999999h}", `4:20: snapshots.every: "999999999h" is out of range`},
		{"size: 1GiB\nsnapshots: {every: 24h, keep: 0}", `4:31: snapshots.keep: 0 is out of range`},
		{"size: 1GiB\nsnapshots: {every: 24h, keep: -1}", `4:31: snapshots.keep: -1 is out of range`},
		{"size: 1GiB\nsnapshots: {every: 24h, keep: 101}", `4:31: snapshots.keep must be within 1 and 100`},
		{"size: 1GiB\nsnapshots: {interval: 24h}", `4:13: unknown field "interval"; it is called "every" here`},
	} {
		t.Run(c.add, func(t *testing.T) {
			objs, err := Decode("f", strings.NewReader(volumeBase+c.add+"\n"))
			if objs != nil || !errdefs.IsInvalidArgument(err) {
				t.Fatalf("got %v, %v", objs, err)
			}
			if got := strings.Split(err.Error(), "\n"); !strings.HasPrefix(got[0], "f:"+c.want) || len(got) != 1 {
				t.Errorf("got  %s\nwant %s", err, c.want)
			}
		})
	}
}

// Names that mean something to LVM, to a file system or to nobody.
func TestVolumeNames(t *testing.T) {
	for _, name := range []string{
		"Photos", "photos_tdata", "photos.1", "pvmove0_", "a/b", "../x", ".", "..", "-a", "a-", "фото", "ｐhotos", "pho tos", "photo\u0301s",
		"photos\x00", "1", "12-3", "system", strings.Repeat("a", NameMax+1), "",
	} {
		o := volumeObject(1 << 30)
		o.Meta.Name = name
		if err := Validate(o); !errdefs.IsInvalidArgument(err) {
			t.Errorf("volume %q: %v", name, err)
		}
		if err := CheckName(name); !errdefs.IsInvalidArgument(err) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	for _, name := range []string{"a", "snapshot", "pvmove0", "tdata", "a--b", "2024-photos", strings.Repeat("a", NameMax)} {
		o := volumeObject(1 << 30)
		o.Meta.Name = name
		if err := Validate(o); err != nil {
			t.Error(err)
		}
	}
}

func TestVolumeOfAClient(t *testing.T) {
	for name, break_ := range map[string]func(*capsulev1.Object){
		"no spec":         func(o *capsulev1.Object) { o.GetVolume().Spec = nil },
		"another's spec":  func(o *capsulev1.Object) { o.Kind = wholeObject().Kind },
		"size 0":          func(o *capsulev1.Object) { o.GetVolume().Spec.Size = 0 },
		"size -1":         func(o *capsulev1.Object) { o.GetVolume().Spec.Size = -1 },
		"size overflow":   func(o *capsulev1.Object) { o.GetVolume().Spec.Size = math.MaxInt64 },
		"no every":        func(o *capsulev1.Object) { o.GetVolume().Spec.Snapshots.Every = nil },
		"negative every":  func(o *capsulev1.Object) { o.GetVolume().Spec.Snapshots.Every.Seconds = -1 },
		"strange every":   func(o *capsulev1.Object) { o.GetVolume().Spec.Snapshots.Every.Nanos = -1 },
		"keep is too big": func(o *capsulev1.Object) { o.GetVolume().Spec.Snapshots.Keep = 101 },
		"newer field": func(o *capsulev1.Object) {
			o.GetVolume().Spec.Snapshots.ProtoReflect().SetUnknown([]byte{0xa0, 0x06, 0x01})
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := volumeObject(1 << 30)
			if err := Validate(o); err != nil {
				t.Fatal(err)
			}
			break_(o)
			Default(o)
			if err := Validate(o); !errdefs.IsInvalidArgument(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// YAML-04: every document is checked, and one fault of any is the end of all.
func TestVolumeBesideWorkloads(t *testing.T) {
	a := "kind: Container\nname: a\nimage: a\nmounts: ['a:/data']\n"
	v := "kind: Volume\nname: a\nsize: 1GiB\n"
	for _, source := range []string{v + "---\n" + a, a + "---\n" + v, "\uFEFF" + a + "---\n---\n" + strings.ReplaceAll(v, "\n", "\r\n")} {
		objs, err := Decode("f", strings.NewReader(source))
		if err != nil || len(objs) != 2 || Unique(objs) != nil {
			t.Errorf("a volume and its workload of one name: %v, %v", objs, err)
		}
	}
	_, err := Decode("f", strings.NewReader(v+"---\n"+a+"---\n"+a+"---\n"+v+"---\nkind: Volume\nname: w\nsise: 1GiB\n"))
	want := "f:11:7: Container \"a\" is already declared in line 6\nf:16:7: Volume \"a\" is already declared in line 2\nf:21:1: unknown field \"sise\"; did you mean \"size\"?"
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	for source, want := range map[string]string{
		"kind: volume\nname: a\nsize: 1GiB\n":                          `f:1:7: unknown kind "volume"; did you mean "Volume"?`,
		"kind: Volum\nname: a\nsize: 1GiB\nsnapshots: {every: 1h}\n":   `f:1:7: unknown kind "Volum"; did you mean "Volume"?`,
		"kind: Volume\nname: a\nsize: 1GiB\nkind: Container\n":         `f:4:1: field "kind" is given twice, first in line 1`,
		"kind: [Volume]\nname: a\nimage: web\n":                        `f:1:7: kind: want text, found a list`,
		"kind: Container\nname: a\nimage: web\nvolumes: ['a:/data']\n": `f:4:1: unknown field "volumes"; it is called "mounts" here`,
	} {
		_, err := Decode("f", strings.NewReader(source))
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
